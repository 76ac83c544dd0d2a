//! The daily partitions of `events`: made ahead by housekeeping, and on demand for a day that has none.
//!
//! The process remembers which days it saw a partition of, so that the usual batch asks the server nothing. The
//! memory may be wrong (retention drops partitions): an insert that finds none is answered by forgetting the
//! day, creating the partition and inserting again.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::columns::At;
use super::error::CallError;
use super::session::Session;
use crate::clock::{Day, Timestamp};
use crate::event::Event;
use crate::limits;

/// The days whose partition this process saw; bounded by [`limits::PARTITION_DAYS_KNOWN_MAX`].
pub(super) struct Partitions {
    known: Mutex<BTreeSet<Day>>,
}

impl Partitions {
    pub(super) fn new() -> Self {
        Self { known: Mutex::new(BTreeSet::new()) }
    }

    /// Makes sure of yesterday, today and the coming days.
    pub(super) fn create_ahead(&self, session: &mut Session) -> Result<(), CallError> {
        let today = Timestamp::now().day();
        (-1..=limits::PARTITION_DAYS_AHEAD).try_for_each(|offset| self.create(session, today.offset(offset)))
    }

    /// Makes sure of every day in `batch`.
    pub(super) fn ensure(&self, session: &mut Session, batch: &[&Event]) -> Result<(), CallError> {
        let missing: BTreeSet<Day> = {
            let known = self.known();
            let mut last = None;
            let days = batch.iter().map(|event| event.received_at.day());
            days.filter(|day| last.replace(*day) != Some(*day) && !known.contains(day)).collect()
        };
        missing.into_iter().try_for_each(|day| self.create(session, day))
    }

    /// Forgets the days of `batch`: one of them has no partition after all.
    pub(super) fn forget(&self, batch: &[&Event]) {
        let mut known = self.known();
        for event in batch {
            known.remove(&event.received_at.day());
        }
    }

    fn create(&self, session: &mut Session, day: Day) -> Result<(), CallError> {
        session.query("SELECT events_ensure_day_v1($1)", &[&At(day.start())])?;
        let mut known = self.known();
        if known.len() >= limits::PARTITION_DAYS_KNOWN_MAX {
            known.clear();
        }
        known.insert(day);
        Ok(())
    }

    fn known(&self) -> MutexGuard<'_, BTreeSet<Day>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
