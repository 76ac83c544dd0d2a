//! Writes one INFO line to the log for each change of an endpoint, a key or an organisation.
//!
//! The line of a request says who asked, with which key and from where. A change made by a command or another server is heard
//! of from the database (the tenants' `change_feed`), which says what changed but not who changed it. This server's own
//! changes come back that way too. So they are noted here before they are made, and each change has one line.

use std::collections::VecDeque;
use std::fmt::Display;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use millrace_base::limits::{OWN_CHANGES_KEPT, OWN_CHANGES_MAX};
use millrace_store::{Store, StoreChange};
use millrace_wire::routes::ControlRoute;

use super::Caller;

/// Logs a change that a request made.
pub(super) fn log(by: &Caller, change: &'static str, id: &dyn Display) {
    tracing::info!(change, %id, org = %by.org, by_key = %by.key, from = %by.from, "changed by a request");
}

/// Logs a change that no request to this server made. An organisation is looked up, so that the line shows its new state.
pub fn log_heard(change: StoreChange, store: &dyn Store) {
    match change {
        StoreChange::Key(key) => tracing::info!(%key, "an API key was replaced or revoked elsewhere"),
        StoreChange::Endpoints(org) => tracing::info!(%org, "an organisation's endpoints were changed elsewhere"),
        StoreChange::Organization(id) => {
            let is = store.organization(&id.to_string()).ok();
            let (name, disabled) = (is.as_ref().map(|org| &*org.name), is.as_ref().map(|org| org.disabled));
            let rate_limit = is.as_ref().and_then(|org| org.rate_limit_per_minute);
            tracing::info!(org = %id, name, disabled, rate_limit, "an organisation was changed");
        }
        StoreChange::DeliveriesDue(_) | StoreChange::Everything => {}
    }
}

/// The changes this server has made and not heard of yet. Cheap to clone.
#[derive(Clone, Default)]
pub struct OwnChanges(Arc<Mutex<VecDeque<(StoreChange, Instant)>>>);

impl OwnChanges {
    /// Notes a change before it is made. Where too many are noted, or were not heard of for long, the oldest are dropped.
    pub(super) fn note(&self, change: StoreChange) {
        let mut noted = self.noted();
        let is_old = |(_, at): &(_, Instant)| at.elapsed() > OWN_CHANGES_KEPT;
        while noted.len() >= OWN_CHANGES_MAX || noted.front().is_some_and(is_old) {
            noted.pop_front();
        }
        noted.push_back((change, Instant::now()));
    }

    /// Whether this server made the change; each noted change counts once.
    pub fn take(&self, change: StoreChange) -> bool {
        let mut noted = self.noted();
        let at = noted.iter().position(|(noted, at)| *noted == change && at.elapsed() <= OWN_CHANGES_KEPT);
        at.and_then(|at| noted.remove(at)).is_some()
    }

    fn noted(&self) -> MutexGuard<'_, VecDeque<(StoreChange, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The change that the database will report to all servers when this request is done, if it reports one.
pub(super) const fn announced(route: ControlRoute, by: &Caller) -> Option<StoreChange> {
    match route {
        ControlRoute::CreateEndpoint
        | ControlRoute::UpdateEndpoint(_)
        | ControlRoute::DeleteEndpoint(_)
        | ControlRoute::RotateEndpointSecret(_) => Some(StoreChange::Endpoints(by.org)),
        ControlRoute::RotateKey => Some(StoreChange::Key(by.key)),
        ControlRoute::DeleteKey(id) => Some(StoreChange::Key(id)),
        // A change that is missing here is logged twice, the second time as one made elsewhere.
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use millrace_base::event::OrgId;

    use super::*;

    #[test]
    fn a_change_of_ours_is_taken_once_and_what_is_kept_is_bounded() {
        let change = |n| StoreChange::Organization(OrgId(Uuid::from_u128(n)));
        let own = OwnChanges::default();
        assert!(!own.take(change(0)));
        own.note(change(0));
        own.note(change(0));
        assert!(own.take(change(0)) && own.take(change(0)) && !own.take(change(0)));
        for n in 0..=OWN_CHANGES_MAX as u128 {
            own.note(change(n));
        }
        assert!(!own.take(change(0)), "the oldest went");
        assert!(own.take(change(1)));
        assert_eq!(own.noted().len(), OWN_CHANGES_MAX - 1);
    }
}
