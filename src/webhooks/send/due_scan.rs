//! LOOKOUT: where in the database to look for what is due, and since when.
//!
//! What has ended leaves dead entries behind in Postgres' index of what is due, at its beginning; and as long as anybody
//! holds an old snapshot (a dump, a long report) each look that begins there passes over all of them. So endpoints are
//! looked through from the beginning whenever that is quick; where it is not, seldom enough that it takes a small part of
//! the time, and in between every known endpoint is asked for what became due since shortly before the last look.
//!
//! What is put further into the past than that (an event set aside days ago that is stored now, a transaction that took
//! long) is found by the next full look, and at once where it was announced.
//!
//! Owned by the claiming thread; pure.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use millrace_base::clock::Timestamp;
use millrace_base::event::EndpointId;
use millrace_store::webhooks::DueEndpoint;

/// A look through everything that takes no longer than this is made each time.
const QUICK: Duration = Duration::from_millis(20);
/// One that takes longer is made again after so many times what it took.
const PAUSE_FACTOR: u32 = 50;
/// And after this long in any case.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// A look at what is known that takes longer than that is made again after so many times what it took.
const INCREMENTAL_PAUSE_FACTOR: u32 = 10;
/// How far before the last look the next begins: what is due when it is stored may be stored a little later than others that
/// became due after it.
const MARGIN: Duration = Duration::from_secs(5);

/// What to look through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScanKind {
    /// Everything, from the beginning.
    Full,
    /// Every known endpoint, from where the last look was.
    Incremental,
    /// Nothing yet.
    Skip,
}

/// See the module.
#[derive(Debug, Default)]
pub struct DueScan {
    /// When everything is to be looked through again; `None`: each time.
    full_at: Option<Instant>,
    /// When what is known is; `None`: each time.
    incremental_at: Option<Instant>,
    /// By the clock of deliveries, the last look; `None` before the first.
    finished_at: Option<Timestamp>,
    /// Endpoints that had something due then, and since when; or of which it is not known.
    due_since: HashMap<EndpointId, Timestamp>,
}

impl DueScan {
    /// What to look through now, which is `time` by the clock of deliveries.
    pub fn next(&self, now: Instant, time: Timestamp) -> ScanKind {
        let is_due = |at: Option<Instant>| at.is_none_or(|at| at <= now);
        // Where the clock was set back, nothing is known.
        if is_due(self.full_at) || self.finished_at.is_none_or(|finished_at| time < finished_at) {
            ScanKind::Full
        } else if is_due(self.incremental_at) {
            ScanKind::Incremental
        } else {
            ScanKind::Skip
        }
    }

    /// The moment from which on to look at what is due for an endpoint.
    pub fn scan_from(&self, id: EndpointId) -> Timestamp {
        let since = self.due_since.get(&id).copied().or(self.finished_at);
        since.map_or(Timestamp::MIN, |since| since.minus(MARGIN))
    }

    /// A look at `time` is done, took so long, and found this due.
    pub fn finished(&mut self, kind: ScanKind, now: Instant, time: Timestamp, took: Duration, due: &[DueEndpoint]) {
        let again = |factor, most| (took > QUICK).then(|| now + (took * factor).min(most));
        match kind {
            ScanKind::Full => (self.full_at, self.incremental_at) = (again(PAUSE_FACTOR, PAUSE_MAX), None),
            ScanKind::Incremental => self.incremental_at = again(INCREMENTAL_PAUSE_FACTOR, PAUSE_MAX),
            ScanKind::Skip => return,
        }
        self.finished_at = Some(time);
        self.due_since = due.iter().map(|due| (due.id, due.since)).collect();
    }

    /// Nothing is known any more.
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    /// Something was made due for this endpoint, at whatever moment.
    pub fn rescan(&mut self, id: EndpointId) {
        self.due_since.insert(id, Timestamp::MIN);
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    fn id(n: u128) -> EndpointId {
        EndpointId(Uuid::from_u128(n))
    }

    #[test]
    fn what_is_quick_is_always_done_and_what_is_slow_takes_a_small_part_of_the_time() {
        let (mut due_scan, start) = (DueScan::default(), Instant::now());
        let (millis, seconds) = (Duration::from_millis, Duration::from_secs);
        assert_eq!(due_scan.next(start, at(100)), ScanKind::Full);
        due_scan.finished(ScanKind::Full, start, at(100), millis(1), &[]);
        assert_eq!(due_scan.next(start, at(100)), ScanKind::Full);
        due_scan.finished(ScanKind::Full, start, at(100), millis(100), &[]);
        assert_eq!(due_scan.next(start + millis(4999), at(105)), ScanKind::Incremental);
        assert_eq!(due_scan.next(start + millis(5000), at(105)), ScanKind::Full);
        assert_eq!(due_scan.next(start, at(99)), ScanKind::Full, "the clock was set back");
        due_scan.finished(ScanKind::Full, start, at(100), seconds(10), &[]);
        // Other looks do not put it off.
        due_scan.finished(ScanKind::Incremental, start + seconds(30), at(130), millis(200), &[]);
        assert_eq!(due_scan.next(start + millis(31_999), at(132)), ScanKind::Skip);
        assert_eq!(due_scan.next(start + millis(32_000), at(132)), ScanKind::Incremental);
        due_scan.finished(ScanKind::Incremental, start + seconds(32), at(132), millis(1), &[]);
        assert_eq!(due_scan.next(start + seconds(59), at(159)), ScanKind::Incremental);
        assert_eq!(due_scan.next(start + seconds(60), at(160)), ScanKind::Full);
        due_scan.reset();
        assert_eq!(due_scan.next(start, at(160)), ScanKind::Full);
    }

    #[test]
    fn a_look_begins_shortly_before_the_last_or_where_the_backlog_begins() {
        let mut due_scan = DueScan::default();
        let mut looked = |time, due: &[DueEndpoint]| {
            due_scan.finished(ScanKind::Incremental, Instant::now(), at(time), Duration::ZERO, due);
            [id(1), id(2)].map(|id| due_scan.scan_from(id))
        };
        assert_eq!(looked(100, &[DueEndpoint { id: id(1), since: at(40) }]), [at(35), at(95)]);
        assert_eq!(looked(200, &[]), [at(195), at(195)]);
        due_scan.rescan(id(2));
        assert_eq!([id(1), id(2)].map(|id| due_scan.scan_from(id)), [at(195), Timestamp::MIN]);
        assert_eq!(DueScan::default().scan_from(id(1)), Timestamp::MIN);
    }
}
