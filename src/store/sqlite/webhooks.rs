//! The webhook side of the embedded store.

use std::ops::Range;

use super::watch::note_change;
use super::{SqliteStore, deliveries, endpoints, events, history};
use crate::clock::Timestamp;
use crate::event::{DeliveryId, EndpointId, Event, EventId, OrgId};
use crate::store::webhooks::{
    AttemptResult, Claims, Delivery, DeliveryQuery, DeliveryRecord, Endpoint, EndpointChange, NewEndpoint,
    PendingStats, PlannedDelivery, SealedSecret, WebhookStore,
};
use crate::store::{CredentialChange, StoreError};

impl WebhookStore for SqliteStore {
    fn create_endpoint(&self, new: &NewEndpoint) -> Result<Endpoint, StoreError> {
        self.writer()?.decide(|transaction| endpoints::create(transaction, new))
    }

    fn endpoint(&self, org: OrgId, id: EndpointId) -> Result<Option<Endpoint>, StoreError> {
        self.reader()?.read(|connection| endpoints::find(connection, org, id))
    }

    fn endpoints(&self, org: OrgId) -> Result<Vec<Endpoint>, StoreError> {
        self.reader()?.read(|connection| endpoints::of_org(connection, org))
    }

    fn all_endpoints(&self, after: Option<EndpointId>, limit: u32) -> Result<Vec<Endpoint>, StoreError> {
        self.reader()?.read(|connection| endpoints::all(connection, after, limit))
    }

    fn update_endpoint(
        &self,
        org: OrgId,
        id: EndpointId,
        change: &EndpointChange,
    ) -> Result<Option<Endpoint>, StoreError> {
        self.writer()?.write(|transaction| endpoints::update(transaction, org, id, change))
    }

    fn delete_endpoint(&self, org: OrgId, id: EndpointId) -> Result<bool, StoreError> {
        self.writer()?.write(|transaction| endpoints::delete(transaction, org, id))
    }

    fn rotate_endpoint_secret(
        &self,
        org: OrgId,
        id: EndpointId,
        new: &SealedSecret,
        previous_until: Timestamp,
    ) -> Result<Option<Endpoint>, StoreError> {
        self.writer()?.write(|transaction| endpoints::rotate_secret(transaction, org, id, new, previous_until))
    }

    fn disable_endpoint(&self, id: EndpointId, reason: &str) -> Result<bool, StoreError> {
        self.writer()?.write(|transaction| endpoints::disable(transaction, id, reason))
    }

    fn note_failing(
        &self,
        notes: &[(EndpointId, Option<Timestamp>)],
    ) -> Result<Vec<(EndpointId, Option<Timestamp>)>, StoreError> {
        self.writer()?.write(|transaction| endpoints::note_failing(transaction, notes))
    }

    fn due_endpoints(
        &self,
        now: Timestamp,
        after: Option<EndpointId>,
        limit: u32,
    ) -> Result<Vec<EndpointId>, StoreError> {
        self.reader()?.read(|connection| deliveries::due_endpoints(connection, now, after, limit))
    }

    fn claim(
        &self,
        now: Timestamp,
        lease_until: Timestamp,
        wanted: &[(EndpointId, u32)],
    ) -> Result<Claims, StoreError> {
        self.writer()?.write(|transaction| deliveries::claim(transaction, now, lease_until, wanted))
    }

    fn record(&self, results: &[AttemptResult]) -> Result<u64, StoreError> {
        self.writer()?.write(|transaction| deliveries::record(transaction, results))
    }

    fn release(&self, held: &[(DeliveryId, Timestamp)], now: Timestamp) -> Result<(), StoreError> {
        self.writer()?.write(|transaction| deliveries::release(transaction, held, now))
    }

    fn pending_stats(&self) -> Result<PendingStats, StoreError> {
        self.reader()?.read(deliveries::pending_stats)
    }

    fn delivery(&self, org: OrgId, id: DeliveryId) -> Result<Option<DeliveryRecord>, StoreError> {
        self.reader()?.read(|connection| history::find(connection, org, id))
    }

    fn deliveries_of_event(&self, org: OrgId, event: EventId) -> Result<Vec<DeliveryRecord>, StoreError> {
        self.reader()?.read(|connection| history::of_event(connection, org, event))
    }

    fn deliveries(&self, org: OrgId, query: &DeliveryQuery) -> Result<(Vec<DeliveryRecord>, bool), StoreError> {
        self.reader()?.read(|connection| history::list(connection, org, query))
    }

    fn retry_delivery(&self, org: OrgId, id: DeliveryId, now: Timestamp) -> Result<Option<Delivery>, StoreError> {
        self.writer()?.write(|transaction| history::retry(transaction, org, id, now))
    }

    fn recover_deliveries(
        &self,
        org: OrgId,
        endpoint: EndpointId,
        created: Range<Timestamp>,
        limit: u32,
        now: Timestamp,
    ) -> Result<u64, StoreError> {
        self.writer()?.write(|transaction| history::recover(transaction, org, endpoint, &created, limit, now))
    }

    fn delete_old_deliveries(
        &self,
        before: Timestamp,
        after: Option<DeliveryId>,
    ) -> Result<Option<DeliveryId>, StoreError> {
        self.writer()?.write(|transaction| history::delete_old(transaction, before, after))
    }

    fn insert_test(&self, event: &Event, planned: &PlannedDelivery) -> Result<(), StoreError> {
        let (batch, planned) = (std::slice::from_ref(event), std::slice::from_ref(planned));
        self.writer()?.write(|transaction| {
            events::store(transaction, batch, planned)?;
            note_change(transaction, CredentialChange::Due(planned[0].endpoint))
        })
    }
}
