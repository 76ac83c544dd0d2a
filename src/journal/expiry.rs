//! Expiry: events of an earlier run whose day the store has dropped since. They are released instead of being stored and
//! delivered a second time, and are counted and logged per day.
//!
//! Runs on the thread that replays. It asks the store again every [`limits::EXPIRY_AGE_MAX`], since a day may be dropped during a
//! long replay.

use std::collections::BTreeMap;
use std::time::Instant;

use millrace_base::clock::{Day, Timestamp};
use millrace_base::event::Event;
use millrace_base::limits;

/// Returns up to which time the events of a day were dropped; `None` if they were not, or if the server stops before the
/// store has answered. May block.
pub type DroppedUntil = Box<dyn Fn(Day) -> Option<Timestamp> + Send + Sync>;

/// What a replay knows about the days that it met; bounded by [`limits::PARTITION_DAYS_KNOWN_MAX`].
pub(super) struct Expiry<'a> {
    dropped_until: Option<&'a DroppedUntil>,
    days: BTreeMap<Day, (Instant, Option<Timestamp>)>,
    /// Released events by day; has the same bound.
    released: BTreeMap<Day, u64>,
}

impl<'a> Expiry<'a> {
    pub(super) fn new(dropped_until: Option<&'a DroppedUntil>) -> Self {
        Self { dropped_until, days: BTreeMap::new(), released: BTreeMap::new() }
    }

    /// Whether `event` was dropped with its day. Counts it if so.
    pub(super) fn is_dropped(&mut self, event: &Event) -> bool {
        let Some(dropped_until) = self.dropped_until else { return false };
        let day = event.received_at.day();
        let known = self.days.get(&day).filter(|(at, _)| at.elapsed() < limits::EXPIRY_AGE_MAX);
        let until = if let Some((_, until)) = known {
            *until
        } else {
            let until = dropped_until(day);
            if self.days.len() >= limits::PARTITION_DAYS_KNOWN_MAX {
                self.days.clear();
            }
            self.days.insert(day, (Instant::now(), until));
            until
        };
        let is_expired = until.is_some_and(|until| event.received_at < until);
        if is_expired {
            if self.released.len() >= limits::PARTITION_DAYS_KNOWN_MAX {
                self.log();
            }
            *self.released.entry(day).or_default() += 1;
        }
        is_expired
    }

    fn log(&mut self) {
        for (day, events) in std::mem::take(&mut self.released) {
            let start = day.start().to_rfc3339();
            let day = start.split('T').next().unwrap_or(&start);
            tracing::warn!(
                day,
                events,
                "the journal held events of a day whose partition was dropped since: they are released, not stored again"
            );
        }
    }
}

impl Drop for Expiry<'_> {
    fn drop(&mut self) {
        self.log();
    }
}
