//! The trace that changes leave in the log: one INFO line each.
//!
//! A request's says who asked, with which key and from where. What a command or another server has changed is heard of
//! from the database ([`millrace_tenant::feed`]), which says what, and not who. This server's own changes come back that way,
//! too: they are noted here before they are made, so that each has one line.

use std::collections::VecDeque;
use std::fmt::Display;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use millrace_base::limits::{OWN_CHANGES_KEPT, OWN_CHANGES_MAX};
use millrace_store::{Store, StoreChange};

use super::{Caller, Request};

/// Says that a request has made a change.
pub(super) fn log(by: &Caller, change: &'static str, id: &dyn Display) {
    tracing::info!(change, %id, org = %by.org, by_key = %by.key, from = %by.from, "changed by a request");
}

/// Says what was heard of a change that no request to this server made. An organisation is looked up: what it is now says
/// what was done.
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

/// What this server has changed and not heard of yet. Cheap to clone.
#[derive(Clone, Default)]
pub struct OwnChanges(Arc<Mutex<VecDeque<(StoreChange, Instant)>>>);

impl OwnChanges {
    /// Before it is made. Where too many are noted, or not heard of for long, the oldest are forgotten.
    pub(super) fn note(&self, change: StoreChange) {
        let mut noted = self.noted();
        let is_old = |(_, at): &(_, Instant)| at.elapsed() > OWN_CHANGES_KEPT;
        while noted.len() >= OWN_CHANGES_MAX || noted.front().is_some_and(is_old) {
            noted.pop_front();
        }
        noted.push_back((change, Instant::now()));
    }

    /// Whether it is one of ours; each counts once.
    pub fn take(&self, change: StoreChange) -> bool {
        let mut noted = self.noted();
        let at = noted.iter().position(|(noted, at)| *noted == change && at.elapsed() <= OWN_CHANGES_KEPT);
        at.and_then(|at| noted.remove(at)).is_some()
    }

    fn noted(&self) -> MutexGuard<'_, VecDeque<(StoreChange, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the servers will be told when this request is done, if it changes something that they are told of.
pub(super) fn announced(request: &Request, by: &Caller) -> Option<StoreChange> {
    match request {
        Request::CreateEndpoint(_)
        | Request::UpdateEndpoint(..)
        | Request::DeleteEndpoint(_)
        | Request::RotateEndpointSecret(..) => Some(StoreChange::Endpoints(by.org)),
        Request::RotateKey(_) => Some(StoreChange::Key(by.key)),
        Request::DeleteKey(id) => Some(StoreChange::Key(*id)),
        Request::GetEvent(_)
        | Request::ListEvents(_)
        | Request::ListEventDeliveries(..)
        | Request::ListDeliveries(_)
        | Request::RetryDelivery(_)
        | Request::ListEndpoints(_)
        | Request::GetEndpoint(_)
        | Request::TestEndpoint(_)
        | Request::RecoverEndpoint(..)
        | Request::ListKeys => None,
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
