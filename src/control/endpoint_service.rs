//! Creates, changes, tests and recovers endpoints: the one service under the API's routes and `millrace endpoint`.
//!
//! It asks the store and seals secrets. Whoever calls it has checked what is given, says whose endpoint it is, and shows
//! the result. A secret is returned by the call that makes it and by no other.

use std::fmt;
use std::ops::Range;
use std::time::Duration;

use uuid::Uuid;

use millrace_base::clock::Timestamp;
use millrace_base::event::{DeliveryId, EndpointId, Event, EventId, OrgId};
use millrace_base::limits::RECOVER_CHUNK;
use millrace_metrics::{DbOperation, Metrics};
use millrace_store::webhooks::{
    Endpoint, EndpointChange, KeyFingerprint, NewEndpoint, PlannedDelivery, Rotation, WebhookStore,
};
use millrace_store::{Store, StoreError};
use millrace_webhooks::endpoint::secret::{SecretBox, WebhookSecret};

use super::documents::{TestDocument, TestPayload, to_json};

/// The type of the event that a test sends.
pub const TEST_EVENT_TYPE: &str = "millrace.test";

/// Manages endpoints in a store.
pub struct EndpointService<'a> {
    /// The store.
    pub store: &'a dyn Store,
    /// Where the duration of the store's calls is recorded; a command records none.
    pub metrics: Option<&'a Metrics>,
}

/// Why something could not be done.
#[derive(Debug)]
pub enum EndpointError {
    /// There is no such endpoint in the organisation.
    NotFound,
    /// The endpoint is disabled, so nothing is sent to it.
    Disabled,
    /// The secret would be sealed with another key than the servers have, so they could not sign with it.
    ForeignKey,
    /// The operating system gave no random bytes.
    Randomness(getrandom::Error),
    /// The store refused or failed.
    Store(StoreError),
}

impl fmt::Display for EndpointError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound => f.write_str("there is no such endpoint"),
            Self::Disabled => f.write_str("the endpoint is disabled, so nothing is sent to it"),
            Self::ForeignKey => f.write_str(
                "the servers could not sign for the endpoint: its secret would be sealed with another key than theirs",
            ),
            Self::Randomness(error) => write!(f, "the operating system gives no random bytes: {error}"),
            Self::Store(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for EndpointError {}

impl From<StoreError> for EndpointError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<getrandom::Error> for EndpointError {
    fn from(error: getrandom::Error) -> Self {
        Self::Randomness(error)
    }
}

impl EndpointService<'_> {
    /// Creates an endpoint of what is given, which has a URL; without a secret one is generated.
    pub fn create(
        &self,
        org: OrgId,
        given: EndpointChange,
        secret: Option<WebhookSecret>,
        secrets: &SecretBox,
    ) -> Result<(Endpoint, WebhookSecret), EndpointError> {
        let keys = self.sealing_keys(secrets)?;
        let id = EndpointId(Uuid::now_v7());
        let secret = secret.map_or_else(WebhookSecret::generate, Ok)?;
        let new = NewEndpoint {
            id,
            org,
            url: given.url.unwrap_or_default(),
            description: given.description.unwrap_or_default(),
            event_types: given.event_types.flatten(),
            headers: given.headers.unwrap_or_default(),
            enabled: given.enabled.unwrap_or(true),
            rate_limit_per_second: given.rate_limit_per_second.flatten(),
            secret: secrets.seal(id, &secret)?,
            keys,
        };
        let endpoint = self.ask(DbOperation::Endpoints, |store| store.create_endpoint(&new))?;
        Ok((endpoint, secret))
    }

    /// One endpoint.
    pub fn get(&self, org: OrgId, id: EndpointId) -> Result<Endpoint, EndpointError> {
        self.ask(DbOperation::Endpoints, |store| store.endpoint(org, id))?.ok_or(EndpointError::NotFound)
    }

    /// Changes what is given and leaves the rest.
    pub fn update(&self, org: OrgId, id: EndpointId, change: &EndpointChange) -> Result<Endpoint, EndpointError> {
        let updated = self.ask(DbOperation::Endpoints, |store| store.update_endpoint(org, id, change))?;
        updated.ok_or(EndpointError::NotFound)
    }

    /// Deletes an endpoint.
    pub fn delete(&self, org: OrgId, id: EndpointId) -> Result<(), EndpointError> {
        let is_deleted = self.ask(DbOperation::Endpoints, |store| store.delete_endpoint(org, id))?;
        if is_deleted { Ok(()) } else { Err(EndpointError::NotFound) }
    }

    /// Replaces the secret by one that is given or generated. The old one signs as well for the overlap, unless it cannot be
    /// opened. Of two rotations within that time only the last two secrets sign.
    pub fn rotate_secret(
        &self,
        (org, id): (OrgId, EndpointId),
        secret: Option<WebhookSecret>,
        overlap: Duration,
        secrets: &SecretBox,
    ) -> Result<(Endpoint, WebhookSecret), EndpointError> {
        let keys = self.sealing_keys(secrets)?;
        let unusable = secrets.unusable(&self.get(org, id)?);
        let secret = secret.map_or_else(WebhookSecret::generate, Ok)?;
        let sealed = secrets.seal(id, &secret)?;
        let previous_until = Timestamp::now().plus(overlap);
        let rotation = Rotation { secret: &sealed, keys: &keys, previous_until, unusable: &unusable };
        let rotated = self.ask(DbOperation::Endpoints, |store| store.rotate_endpoint_secret(org, id, rotation))?;
        Ok((rotated.ok_or(EndpointError::NotFound)?, secret))
    }

    /// Stores a test event for this endpoint alone, whatever its filter.
    pub fn test(&self, endpoint: &Endpoint) -> Result<TestDocument, EndpointError> {
        if !endpoint.enabled {
            return Err(EndpointError::Disabled);
        }
        let due = self.ask(DbOperation::Deliveries, WebhookStore::time)?;
        let (event, planned) = test_event(endpoint.org, endpoint.id, due);
        self.ask(DbOperation::Deliveries, |store| store.insert_test(&event, &planned))?;
        Ok(TestDocument { event_id: event.id, delivery_id: planned.id })
    }

    /// Makes failed and blocked deliveries that were created in this time due now, chunk by chunk until `is_enough` says so
    /// of their number. Returns the number, and whether there may be more.
    pub fn recover(
        &self,
        (org, id): (OrgId, EndpointId),
        created: &Range<Timestamp>,
        is_enough: impl Fn(u64) -> bool,
    ) -> Result<(u64, bool), EndpointError> {
        let now = self.ask(DbOperation::Deliveries, WebhookStore::time)?;
        let mut recovered = 0;
        // Ends without `is_enough` too: a recovered delivery is neither failed nor blocked, and what fails again is due later.
        loop {
            let chunk = self.ask(DbOperation::Deliveries, |store| {
                store.recover_deliveries(org, id, created.clone(), RECOVER_CHUNK, now)
            })?;
            recovered += chunk;
            if chunk < u64::from(RECOVER_CHUNK) {
                return Ok((recovered, false));
            }
            if is_enough(recovered) {
                return Ok((recovered, true));
            }
        }
    }

    /// The keys to seal with, if the servers have them too.
    fn sealing_keys(&self, secrets: &SecretBox) -> Result<Vec<KeyFingerprint>, EndpointError> {
        let keys = secrets.fingerprints();
        match self.ask(DbOperation::Endpoints, WebhookStore::sealing_key)? {
            Some(key) if !keys.contains(&key) => Err(EndpointError::ForeignKey),
            Some(_) | None => Ok(keys),
        }
    }

    fn ask<T>(&self, operation: DbOperation, question: impl FnOnce(&dyn Store) -> T) -> T {
        match self.metrics {
            Some(metrics) => metrics.store.timed(operation, || question(self.store)),
            None => question(self.store),
        }
    }
}

/// A test event and its one delivery, due at that time.
fn test_event(org: OrgId, endpoint: EndpointId, due: Timestamp) -> (Event, PlannedDelivery) {
    let id = EventId(Uuid::now_v7());
    let payload = TestPayload { message: "A test event of Millrace.", endpoint_id: endpoint };
    let event = Event::new(id, org, Timestamp::now(), TEST_EVENT_TYPE, None, &to_json(&payload));
    let delivery = DeliveryId(Uuid::now_v7());
    (event, PlannedDelivery { id: delivery, event: id, endpoint, org, lease_until: Some(due) })
}
