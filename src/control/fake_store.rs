//! A store in memory for this room's tests: the part of the trait that control uses, as its contract says. The real
//! stores meet the same contract in their conformance suite.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use millrace_base::clock::{Day, Timestamp};
use millrace_base::event::{Event, EventId, OrgId};
use millrace_base::key::{KeyId, KeyVerifier};
use millrace_store::quarantine::{QuarantineId, QuarantineQuery, QuarantineStore, Quarantined, Retried};
use millrace_store::webhooks::{PlannedDelivery, StoredBatch};
use millrace_store::{
    EventPlace, EventQuery, KeyInfo, KeyRecord, Organization, OrganizationChange, Rejection, Store, StoreChange,
    StoreError, StoreId, StoredEvent,
};
use millrace_webhooks::endpoint::management::EndpointManagement;
use millrace_webhooks::endpoint::secret::SecretBox;
use millrace_webhooks::endpoint::target_policy::TargetPolicy;

use super::fake_webhooks::FakeWebhooks;

/// Runs before every call: it may wait, fail or panic.
type Hook = Box<dyn Fn() -> Result<(), StoreError> + Send + Sync>;

pub(super) struct FakeStore {
    pub(super) events: Mutex<Vec<(OrgId, StoredEvent)>>,
    pub(super) keys: Mutex<Vec<KeyInfo>>,
    pub(super) verifiers: Mutex<Vec<KeyVerifier>>,
    pub(super) webhooks: FakeWebhooks,
    hook: Hook,
}

impl FakeStore {
    pub(super) fn new() -> Self {
        Self::with_hook(|| Ok(()))
    }

    pub(super) fn with_hook(hook: impl Fn() -> Result<(), StoreError> + Send + Sync + 'static) -> Self {
        let (events, keys, verifiers) = (Mutex::default(), Mutex::default(), Mutex::default());
        Self { events, keys, verifiers, webhooks: FakeWebhooks::default(), hook: Box::new(hook) }
    }

    /// To be called first by every call.
    pub(super) fn before_call(&self) -> Result<(), StoreError> {
        (self.hook)()
    }
}

impl QuarantineStore for FakeStore {
    fn quarantined(&self, _: &QuarantineQuery) -> Result<(Vec<Quarantined>, bool), StoreError> {
        unimplemented!("control does not look there")
    }

    fn quarantined_event(&self, _: QuarantineId) -> Result<Option<(Quarantined, String)>, StoreError> {
        unimplemented!("control does not look there")
    }

    fn retry_quarantined(&self, _: QuarantineId, _: &[PlannedDelivery]) -> Result<Retried, StoreError> {
        unimplemented!("control does not look there")
    }

    fn drop_quarantined(&self, _: QuarantineId) -> Result<bool, StoreError> {
        unimplemented!("control does not look there")
    }
}

impl Store for FakeStore {
    fn kind(&self) -> &'static str {
        "fake"
    }

    fn event(&self, org: OrgId, id: EventId) -> Result<Option<StoredEvent>, StoreError> {
        self.before_call()?;
        Ok(self
            .events
            .lock()
            .unwrap()
            .iter()
            .find(|(owner, event)| (*owner, event.id) == (org, id))
            .map(|e| e.1.clone()))
    }

    fn events(&self, org: OrgId, query: &EventQuery) -> Result<(Vec<StoredEvent>, Option<EventPlace>), StoreError> {
        self.before_call()?;
        let mut found: Vec<StoredEvent> =
            self.events.lock().unwrap().iter().filter(|e| e.0 == org).map(|e| e.1.clone()).collect();
        found.retain(|event| {
            query.event_type.as_ref().is_none_or(|wanted| *wanted == event.event_type)
                && query.after.is_none_or(|after| event.received_at > after)
                && query.before.is_none_or(|before| event.received_at < before)
                && query.cursor.is_none_or(|place| (event.received_at, event.id) < place)
        });
        found.sort_by_key(|event| std::cmp::Reverse((event.received_at, event.id)));
        let more = found.len() > query.limit as usize;
        found.truncate(query.limit as usize);
        let next = found.last().filter(|_| more).map(|event| (event.received_at, event.id));
        Ok((found, next))
    }

    fn keys(&self, org: OrgId, limit: usize) -> Result<(Vec<KeyInfo>, bool), StoreError> {
        self.before_call()?;
        let mut keys: Vec<_> = self.keys.lock().unwrap().iter().filter(|key| key.org == org).rev().cloned().collect();
        let more = keys.len() > limit;
        keys.truncate(limit);
        Ok((keys, more))
    }

    fn delete_ended_keys(&self, _: Timestamp, _: Option<KeyId>) -> Result<Option<KeyId>, StoreError> {
        unreachable!("control does no housekeeping")
    }

    fn rotate_key(&self, old: KeyId, new: (KeyId, &KeyVerifier), grace: Duration) -> Result<Timestamp, StoreError> {
        self.before_call()?;
        let mut keys = self.keys.lock().unwrap();
        let now = Timestamp::now();
        let Some(previous) = keys.iter_mut().find(|key| key.id == old && key.revoked_at.is_none()) else {
            return Err(Rejection::KeyNotValid(old).into());
        };
        previous.expires_at = Some(now.plus(grace));
        let org = previous.org;
        keys.push(key_info(new.0, org, now));
        self.verifiers.lock().unwrap().push(new.1.clone());
        Ok(now.plus(grace))
    }

    fn revoke_key(&self, org: Option<OrgId>, id: KeyId) -> Result<bool, StoreError> {
        self.before_call()?;
        let mut keys = self.keys.lock().unwrap();
        let Some(key) = keys.iter_mut().find(|key| key.id == id && org.is_none_or(|org| org == key.org)) else {
            return Ok(false);
        };
        key.revoked_at.get_or_insert_with(Timestamp::now);
        Ok(true)
    }

    fn identity(&self) -> Result<Option<StoreId>, StoreError> {
        unreachable!("control does not ask which database it is")
    }

    fn migrate_until(&self, _: &AtomicBool) -> Result<u32, StoreError> {
        unreachable!("control does not migrate")
    }

    fn prepare_today(&self) -> Result<(), StoreError> {
        unreachable!("control prepares nothing")
    }

    fn dropped_until(&self, _: Day) -> Result<Option<Timestamp>, StoreError> {
        unreachable!("control stores no events")
    }

    fn maintain(&self) -> Result<(), StoreError> {
        unreachable!("control does no housekeeping")
    }

    fn store_events(&self, _: &[Event], _: &[PlannedDelivery]) -> Result<StoredBatch, StoreError> {
        unreachable!("control stores no events")
    }

    fn quarantine(&self, _: &Event, _: &str) -> Result<bool, StoreError> {
        unreachable!("control stores no events")
    }

    fn find_key(&self, _: KeyId) -> Result<Option<KeyRecord>, StoreError> {
        unreachable!("control verifies no keys")
    }

    fn touch_key(&self, _: KeyId) -> Result<(), StoreError> {
        unreachable!("control verifies no keys")
    }

    fn watch_changes(&self, _: &AtomicBool, _: &mut dyn FnMut(StoreChange)) -> Result<(), StoreError> {
        unreachable!("control watches nothing")
    }

    fn create_organization(
        &self,
        _: &str,
        _: Option<u32>,
        _: (KeyId, &KeyVerifier),
    ) -> Result<Organization, StoreError> {
        unreachable!("control manages no organisations")
    }

    fn create_first_organization(&self, _: &str, _: (KeyId, &KeyVerifier)) -> Result<Option<Organization>, StoreError> {
        unreachable!("control manages no organisations")
    }

    fn organizations(&self) -> Result<Vec<Organization>, StoreError> {
        unreachable!("control manages no organisations")
    }

    fn organization(&self, _: &str) -> Result<Organization, StoreError> {
        unreachable!("control manages no organisations")
    }

    fn update_organization(&self, _: OrgId, _: &OrganizationChange) -> Result<Organization, StoreError> {
        unreachable!("control manages no organisations")
    }

    fn create_key(&self, _: OrgId, _: (KeyId, &KeyVerifier)) -> Result<(), StoreError> {
        unreachable!("control makes keys by rotation only")
    }
}

pub(super) fn key_info(id: KeyId, org: OrgId, created_at: Timestamp) -> KeyInfo {
    KeyInfo { id, org, created_at, last_used_at: None, expires_at: None, revoked_at: None }
}

/// A key of its own, public https targets only, and nobody to tell of changes.
pub(super) fn management() -> Arc<EndpointManagement> {
    management_telling(|_| ())
}

/// The same, with somebody.
pub(super) fn management_telling(on_change: impl Fn(OrgId) + Send + Sync + 'static) -> Arc<EndpointManagement> {
    let secrets = SecretBox::from_config("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=").unwrap();
    let on_change = Box::new(move |org| {
        on_change(org);
        Ok(())
    });
    Arc::new(EndpointManagement { policy: TargetPolicy::default(), secrets: Arc::new(secrets), on_change })
}
