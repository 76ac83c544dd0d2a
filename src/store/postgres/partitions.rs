//! The daily partitions of `events`: created at the start for today, by housekeeping for the next days, and otherwise on
//! demand.
//!
//! The process remembers for which days it saw a partition, so that the usual batch asks the server nothing. The memory may
//! be wrong, because retention drops partitions: after an insert without a partition the store forgets the day, creates the
//! partition and inserts again.
//!
//! **Only today's partition is needed to be ready.** Another one that cannot be created delays only the events of its day,
//! and none of them if there is a DEFAULT partition.
//!
//! **Reads go by ranges of time** ([`Partitions::ranges`]): a statement takes three locks on every partition that it may
//! touch, and all sessions share the lock table.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use millrace_base::clock::{Day, Timestamp};
use millrace_base::event::Event;
use millrace_base::limits;

use super::error::{CallError, schema_error};
use super::session::{Conversation, Session};
use super::values::Timestamptz;
use crate::StoreError;

const LOCK_TIMEOUT: &str = "55P03";

const ENSURE: &str = "SELECT events_ensure_day_v2($1, $2, $3)";

/// The lower bound of each partition, if it has one.
const BOUNDS: &str = r"
    SELECT (regexp_match(pg_get_expr(relpartbound, pg_class.oid), 'FROM \(''([^'']+)''\)'))[1]::timestamptz
    FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid WHERE inhparent = 'events'::regclass";

/// The DEFAULT partition, and whether it would notice the copy of a row.
const DEFAULT: &str = "
    SELECT partdefid::regclass::text, EXISTS (
        SELECT FROM pg_index WHERE indrelid = partdefid AND indisunique AND indisvalid AND indnkeyatts = 1
            AND indkey[0] = (SELECT attnum FROM pg_attribute WHERE attrelid = partdefid AND attname = 'id'))
    FROM pg_partitioned_table WHERE partrelid = 'events'::regclass AND partdefid <> 0";

/// Whether a day had a partition that was dropped, whether there is one again, and since when.
const DROPPED: &str = "
    SELECT remade_at, EXISTS (SELECT FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
            WHERE inhparent = 'events'::regclass AND relname = $2::text),
        to_regclass($2::text) IS NOT NULL
    FROM event_days WHERE day = ($1::timestamptz AT TIME ZONE 'UTC')::date";

/// From and to, the end excluded.
pub(super) type Range = (Timestamp, Timestamp);

/// What this process knows about the partitions.
pub(super) struct Partitions {
    /// A partition that is created again was dropped before this time.
    started_at: Timestamp,
    memory: Mutex<Memory>,
}

#[derive(Default)]
struct Memory {
    /// Days with a partition; bounded by [`limits::PARTITION_DAYS_KNOWN_MAX`].
    known: BTreeSet<Day>,
    /// Days whose partition could not be created, since when and why; bounded in the same way.
    failed: BTreeMap<Day, (Instant, StoreError)>,
    ranges: Option<(Instant, Arc<[Range]>)>,
}

impl Partitions {
    pub(super) fn new() -> Self {
        Self { started_at: Timestamp::now(), memory: Mutex::default() }
    }

    /// Makes sure that today has a partition.
    pub(super) fn ensure_today(&self, session: &mut Session) -> Result<(), StoreError> {
        let today = Timestamp::now().day();
        self.create(session, today, false).map_err(|error| refusal(today, error))
    }

    /// Makes sure that today, the next days and yesterday have partitions, as far as possible. Returns the error of the first
    /// one that could not be created. Does not create yesterday's again if it was dropped.
    pub(super) fn create_ahead(&self, session: &mut Session) -> Result<(), StoreError> {
        let today = Timestamp::now().day();
        let mut refused = Ok(());
        for offset in (0..=limits::PARTITION_DAYS_AHEAD).chain([-1]) {
            let day = today.offset(offset);
            if let Err(error) = self.create(session, day, offset < 0) {
                // If one has to wait for a lock, all others would.
                let is_lock = matches!(&error, CallError::Database(refused) if refused.code().code() == LOCK_TIMEOUT);
                let is_last = is_lock || error.ends_session();
                refused = refused.and(Err(refusal(day, error)));
                if is_last {
                    break;
                }
            }
        }
        refused
    }

    /// Makes sure that every day in `batch` has a partition. Returns the error of the first one that could not be created;
    /// the rows of the other days may still be stored.
    pub(super) fn ensure(&self, session: &mut Session, batch: &[&Event]) -> Result<Option<StoreError>, CallError> {
        let mut refused = None;
        for day in self.unknown(batch) {
            let failed = self.memory().failed.get(&day).cloned();
            if let Some((_, error)) = failed.filter(|(at, _)| at.elapsed() < limits::PARTITION_RETRY_PAUSE) {
                refused.get_or_insert(error);
                continue;
            }
            match self.create(session, day, false) {
                Ok(()) => {}
                Err(error) if error.ends_session() => return Err(error),
                Err(error) => {
                    let error = refusal(day, error);
                    let mut memory = self.memory();
                    if memory.failed.len() >= limits::PARTITION_DAYS_KNOWN_MAX {
                        memory.failed.clear();
                    }
                    memory.failed.insert(day, (Instant::now(), error.clone()));
                    refused.get_or_insert(error);
                }
            }
        }
        Ok(refused)
    }

    fn unknown(&self, batch: &[&Event]) -> BTreeSet<Day> {
        let memory = self.memory();
        let mut last = None;
        let days = batch.iter().map(|event| event.received_at.day());
        days.filter(|day| last.replace(*day) != Some(*day) && !memory.known.contains(day)).collect()
    }

    /// Forgets the days of `batch`, because one of them has no partition.
    pub(super) fn forget(&self, batch: &[&Event]) {
        let mut memory = self.memory();
        for event in batch {
            memory.known.remove(&event.received_at.day());
        }
    }

    fn create(&self, session: &mut Session, day: Day, only_new: bool) -> Result<(), CallError> {
        let row = session.query_opt(ENSURE, &[&Timestamptz(day.start()), &Timestamptz(self.started_at), &only_new])?;
        let done: String = row.and_then(|row| row.try_get(0).ok()).unwrap_or_default();
        match done.as_str() {
            "dropped" => return Ok(()),
            "remade" => tracing::warn!(day = %Date(day), "the partition of a day was dropped; it is made again"),
            "default" => warn_of_default(session, day)?,
            _ => {}
        }
        let mut memory = self.memory();
        if memory.known.len() >= limits::PARTITION_DAYS_KNOWN_MAX {
            memory.known.clear();
        }
        memory.known.insert(day);
        memory.failed.remove(&day);
        Ok(())
    }

    /// Ranges of time, the newest first, that together cover all time. At most [`limits::PARTITIONS_AT_ONCE_MAX`] partitions
    /// begin in each, as counted less than [`limits::PARTITION_RANGES_AGE_MAX`] ago. One range if there are few partitions.
    pub(super) fn ranges(&self, session: &mut Session) -> Result<Arc<[Range]>, CallError> {
        if let Some((at, ranges)) = &self.memory().ranges
            && at.elapsed() < limits::PARTITION_RANGES_AGE_MAX
        {
            return Ok(Arc::clone(ranges));
        }
        let rows = session.query(BOUNDS, &[])?;
        let bounds: Vec<Option<Timestamptz>> =
            rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>().map_err(|error| CallError::new(&error))?;
        let ranges: Arc<[Range]> = divide(bounds.into_iter().map(|bound| bound.map(|at| at.0))).into();
        self.memory().ranges = Some((Instant::now(), Arc::clone(&ranges)));
        Ok(ranges)
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Until when events of `day` went into a partition that was dropped; `None` if none was.
pub(super) fn dropped_until(session: &mut Session, day: Day) -> Result<Option<Timestamp>, CallError> {
    session.within(async |conversation: &mut Conversation| {
        let rows = conversation.query(DROPPED, &[&Timestamptz(day.start()), &name(day)]).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let remade_at: Option<Timestamptz> = row.try_get(0)?;
        Ok(match (row.try_get(1)?, row.try_get(2)?) {
            (true, _) => remade_at.map(|at| at.0),
            // Detached and kept under its name: nothing was dropped.
            (false, true) => None,
            (false, false) => Some(day.offset(1).start()),
        })
    })
}

/// Divides all time so that each range meets few of the partitions with these lower bounds. A partition without a bound may
/// meet every range.
fn divide(bounds: impl Iterator<Item = Option<Timestamp>>) -> Vec<Range> {
    let (mut bounds, mut everywhere) = (bounds.collect::<Vec<_>>(), 0);
    bounds.retain(|bound| {
        everywhere += usize::from(bound.is_none());
        bound.is_some()
    });
    let mut bounds: Vec<Timestamp> = bounds.into_iter().flatten().collect();
    bounds.sort_unstable_by(|a, b| b.cmp(a));
    let most = limits::PARTITIONS_AT_ONCE_MAX.saturating_sub(everywhere).max(1);
    let mut ranges = Vec::with_capacity(bounds.len() / most + 1);
    let mut to = Timestamptz::MAX.0;
    for chunk in bounds.chunks(most) {
        let from = *chunk.last().expect("a chunk is not empty");
        ranges.push((from, to));
        to = from;
    }
    match ranges.last_mut() {
        Some((from, _)) => *from = Timestamptz::MIN.0,
        None => ranges.push((Timestamptz::MIN.0, Timestamptz::MAX.0)),
    }
    ranges
}

/// Why a day has no partition, and what to do about it. Never the fault of a row.
fn refusal(day: Day, error: CallError) -> StoreError {
    let CallError::Database(refused) = error else { return error.into() };
    let day = Date(day);
    let advice = match refused.code().code() {
        "42P07" => {
            "a table of its name is there and not attached: attach it to events again, rename it or drop it".to_owned()
        }
        "42883" => "the schema is older than this server: start it once without --no-migrate".to_owned(),
        LOCK_TIMEOUT => "another session holds a lock on events (ANALYZE, VACUUM or a change of the table)".to_owned(),
        _ => format!("create it as the owner with SELECT events_ensure_day_v1('{day} 00:00:00+00')"),
    };
    schema_error(&refused, |why| format!("{why}; the partition of {day} is missing: {advice}"))
}

fn warn_of_default(session: &mut Session, day: Day) -> Result<(), CallError> {
    let row = session.query_opt(DEFAULT, &[])?;
    let default: Option<(String, bool)> = row.and_then(|row| Some((row.try_get(0).ok()?, row.try_get(1).ok()?)));
    if let Some((partition, finds_copies)) = default {
        let copies =
            if finds_copies { "" } else { ", where a second copy is not noticed: it has no unique index on id" };
        tracing::warn!(
            day = %Date(day),
            partition,
            "a DEFAULT partition holds events of the day and takes the others too{copies}; move them out, and the day gets \
             a partition of its own"
        );
    }
    Ok(())
}

/// As `YYYY-MM-DD`.
struct Date(Day);

impl std::fmt::Display for Date {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let start = self.0.start().to_rfc3339();
        f.write_str(start.split('T').next().unwrap_or(&start))
    }
}

/// The partition of a day.
fn name(day: Day) -> String {
    format!("events_p{}", day.compact())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_cover_all_time_and_meet_few_partitions_each() {
        let day = |n: i32| Timestamp::from_micros(0).day().offset(n).start();
        for (days, everywhere, expected) in
            [(0, 0, 1), (1, 0, 1), (32, 0, 1), (33, 0, 2), (31, 1, 1), (32, 1, 2), (400, 0, 13), (5, 40, 5)]
        {
            let bounds = (0..days).map(day).map(Some).chain((0..everywhere).map(|_| None));
            let ranges = divide(bounds);
            assert_eq!(ranges.len(), expected, "{days} and {everywhere}");
            assert_eq!((ranges[0].1, ranges[expected - 1].0), (Timestamptz::MAX.0, Timestamptz::MIN.0));
            for pair in ranges.windows(2) {
                assert_eq!(pair[0].0, pair[1].1);
            }
            let most = limits::PARTITIONS_AT_ONCE_MAX.saturating_sub(everywhere).max(1);
            for (from, to) in &ranges {
                assert!((0..days).map(day).filter(|at| at >= from && at < to).count() <= most);
            }
        }
    }

    #[test]
    fn a_lost_answer_says_nothing_of_the_partition() {
        let day = Timestamp::parse_rfc3339("2026-11-29T12:00:00Z").unwrap().day();
        assert_eq!(Date(day).to_string(), "2026-11-29");
        let lost = refusal(day, CallError::ConnectionLost("no answer".to_owned()));
        assert_eq!(lost, StoreError::Unavailable("no answer".to_owned()));
    }
}
