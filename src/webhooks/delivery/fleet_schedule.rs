//! The effective retry schedule when servers on one database are configured with different ones.
//!
//! **The longest schedule applies to all servers.** The server that makes a delivery's last attempt marks it as failed, so a
//! server with fewer retries would cut off retries that another one is configured to make. Retrying for longer than
//! configured does no harm. Every server logs an ERROR when it finds that the schedules differ, and a line when
//! they agree again.
//!
//! Each server writes its own schedule to the database every ten seconds and reads the others. A server that stops removes
//! its entry; the entry of a killed server counts for another
//! [`RETRY_SCHEDULE_ALIVE`](millrace_base::limits::RETRY_SCHEDULE_ALIVE).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use millrace_store::{Store, StoreError};

use crate::delivery::schedule::RetrySchedule;

/// This server's schedule and the one that applies to all servers. Shared by the sender and the claimer.
#[derive(Debug)]
pub struct FleetSchedule {
    own: RetrySchedule,
    state: Mutex<FleetState>,
}

#[derive(Debug)]
struct FleetState {
    /// The other servers' schedules as text, in the database's order.
    others: Vec<String>,
    effective: Arc<RetrySchedule>,
    pause_max: Duration,
    /// Whether the store refused the query and that was logged.
    is_refused: bool,
}

impl FleetSchedule {
    /// Knows no other schedule yet.
    pub fn new(own: RetrySchedule) -> Self {
        let (effective, pause_max) = (Arc::new(own.clone()), own.pause_max());
        Self { own, state: Mutex::new(FleetState { others: Vec::new(), effective, pause_max, is_refused: false }) }
    }

    /// The schedule that applies.
    pub fn current(&self) -> Arc<RetrySchedule> {
        Arc::clone(&self.lock().effective)
    }

    /// The longest time between two attempts, on any server.
    pub fn pause_max(&self) -> Duration {
        self.lock().pause_max
    }

    /// Writes this server's schedule to the store and reads the others.
    ///
    /// # Errors
    /// If the store is unavailable. A refused query is logged and counts as no others.
    pub fn sync(&self, store: &dyn Store) -> Result<(), StoreError> {
        match store.note_retry_schedule(&self.own.to_string()) {
            Ok(others) => self.learn(others),
            Err(error @ (StoreError::Misconfigured(_) | StoreError::RowRefused(_))) => {
                if !std::mem::replace(&mut self.lock().is_refused, true) {
                    tracing::warn!(%error, "cannot check whether other servers have the same webhook_retry_schedule");
                }
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Removes this server's schedule from the store, if the store is available.
    pub fn withdraw(&self, store: &dyn Store) {
        let _ = store.forget_retry_schedule(&self.own.to_string());
    }

    fn learn(&self, others: Vec<String>) {
        let mut state = self.lock();
        state.is_refused = false;
        if state.others == others {
            return;
        }
        // An entry that this version cannot parse is ignored; the log line below shows it.
        let parsed: Vec<RetrySchedule> = others.iter().filter_map(|text| RetrySchedule::parse(text).ok()).collect();
        let all = || std::iter::once(&self.own).chain(&parsed);
        let effective = all().max_by(|one, other| one.length().cmp(&other.length())).expect("the own one");
        state.pause_max = all().map(RetrySchedule::pause_max).max().expect("the own one");
        state.effective = Arc::new(effective.clone());
        let (own, effective) = (self.own.to_string(), effective.to_string());
        if others.is_empty() {
            tracing::info!(own, "all servers on this database have the same webhook_retry_schedule again");
        } else {
            let others: Vec<String> = others.iter().map(|other| format!("`{other}`")).collect();
            tracing::error!(
                own,
                others = others.join(" "),
                holds = effective,
                "servers on this database have different retry schedules; the longest one applies to all of them: set \
                 MILLRACE_WEBHOOK_RETRY_SCHEDULE (webhook_retry_schedule) to the same on every one"
            );
        }
        state.others = others;
    }

    fn lock(&self) -> MutexGuard<'_, FleetState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_schedule_applies_while_its_server_runs() {
        let day = Duration::from_secs(86_400);
        let fleet_schedule = FleetSchedule::new(RetrySchedule::parse("5s,5s").unwrap());
        let current = || fleet_schedule.current().to_string();
        assert_eq!((current(), fleet_schedule.pause_max()), ("5s,5s".to_owned(), day));
        for (others, longest) in [
            (&[""][..], "5s,5s"),
            (&["", "1s,1s,1s"], "1s,1s,1s"),
            (&["5s,6s"], "5s,6s"),
            (&["4s,6s"], "5s,5s"),
            (&["1s,1s,1fortnight"], "5s,5s"),
            (&[], "5s,5s"),
        ] {
            fleet_schedule.learn(others.iter().map(|other| (*other).to_owned()).collect());
            assert_eq!(current(), longest, "{others:?}");
        }
        // Pauses of another server are not mistaken for a wrong clock.
        fleet_schedule.learn(vec!["7d".to_owned()]);
        assert_eq!((current().as_str(), fleet_schedule.pause_max()), ("5s,5s", 7 * day * 6 / 5));
    }
}
