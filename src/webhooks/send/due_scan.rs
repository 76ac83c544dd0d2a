//! Decides how to scan the database for due deliveries: everything, or only since the last scan.
//!
//! Ended deliveries leave dead entries at the start of Postgres' index of due rows. While any transaction holds an old snapshot
//! (a dump, a long report), every scan from the start passes over all of them. A full scan therefore runs every time while it
//! is quick. When it is slow it runs rarely enough to take a small part of the time; in between, every known endpoint is
//! queried for what became due since shortly before the last scan.
//!
//! Rows that become due further in the past (an event stored days late, a long transaction) are found by the next full scan,
//! or at once if they were announced.
//!
//! Owned by the claimer; pure.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use millrace_base::clock::Timestamp;
use millrace_base::event::EndpointId;
use millrace_store::webhooks::DueEndpoint;

/// A full scan that takes no longer than this runs every time.
const QUICK: Duration = Duration::from_millis(20);
/// A slower one runs again after this many times its duration.
const PAUSE_FACTOR: u32 = 50;
/// And after this time in any case.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// An incremental scan that takes longer than [`QUICK`] runs again after this many times its duration.
const INCREMENTAL_PAUSE_FACTOR: u32 = 10;
/// How far before the last scan the next one begins: a row may be committed a little later than another one that became
/// due after it.
const MARGIN: Duration = Duration::from_secs(5);

/// The kind of a scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScanKind {
    /// All due rows, from the start.
    Full,
    /// Every known endpoint, from the last scan on.
    Incremental,
    /// No scan yet.
    Skip,
}

/// What is known from earlier scans, and when the next ones are due.
#[derive(Debug, Default)]
pub struct DueScan {
    /// The time of the next full scan; `None` means always.
    full_at: Option<Instant>,
    /// The time of the next incremental scan; `None` means always.
    incremental_at: Option<Instant>,
    /// The last scan, by the clock of deliveries; `None` before the first.
    finished_at: Option<Timestamp>,
    /// Endpoints that had due deliveries at the last scan, and since when; [`Timestamp::MIN`] if that is not known.
    due_since: HashMap<EndpointId, Timestamp>,
}

impl DueScan {
    /// What to scan at `now`, which is `time` by the clock of deliveries.
    pub fn next(&self, now: Instant, time: Timestamp) -> ScanKind {
        let is_due = |at: Option<Instant>| at.is_none_or(|at| at <= now);
        // After the clock was set back, `finished_at` is meaningless.
        if is_due(self.full_at) || self.finished_at.is_none_or(|finished_at| time < finished_at) {
            ScanKind::Full
        } else if is_due(self.incremental_at) {
            ScanKind::Incremental
        } else {
            ScanKind::Skip
        }
    }

    /// The due time from which to query an endpoint.
    pub fn scan_from(&self, id: EndpointId) -> Timestamp {
        let since = self.due_since.get(&id).copied().or(self.finished_at);
        since.map_or(Timestamp::MIN, |since| since.minus(MARGIN))
    }

    /// A scan at `time` has finished. It took `took` and found `due`.
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

    /// Forgets everything: the next scan is a full one.
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    /// Something became due for this endpoint at an unknown time: query it from the start.
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
    fn slow_full_scans_alternate_with_incremental_scans() {
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
        // Incremental scans do not delay the full one.
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
    fn a_scan_starts_before_the_last_one_or_at_the_backlog() {
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
