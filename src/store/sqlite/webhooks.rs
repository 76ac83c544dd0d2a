//! The webhook side of the embedded store: each call is one transaction or one read.

use std::ops::Range;
use std::time::Duration;

use millrace_base::clock::Timestamp;
use millrace_base::event::{DeliveryId, EndpointId, Event, EventId, OrgId};

use super::change_feed::note_change;
use super::{SqliteStore, deliveries, endpoints, events, history};
use crate::webhooks::{
    AttemptResult, Claims, Delivery, DeliveryQuery, DeliveryRecord, DueEndpoint, EndedStep, Endpoint, EndpointChange,
    EndpointRow, KeyFingerprint, NewEndpoint, PendingStats, PlannedDelivery, Recorded, Rotation, Wanted, WebhookStore,
};
use crate::{StoreChange, StoreError};

impl WebhookStore for SqliteStore {
    fn sealing_key(&self) -> Result<Option<KeyFingerprint>, StoreError> {
        self.reader()?.read(endpoints::sealing_key)
    }

    fn accept_sealing_key(&self, key: KeyFingerprint) -> Result<(), StoreError> {
        self.writer()?.write(|transaction| endpoints::accept_sealing_key(transaction, key))
    }

    fn create_endpoint(&self, new: &NewEndpoint) -> Result<Endpoint, StoreError> {
        self.writer()?.try_write(|transaction| endpoints::create(transaction, new))
    }

    fn endpoint(&self, org: OrgId, id: EndpointId) -> Result<Option<Endpoint>, StoreError> {
        self.reader()?.read(|connection| endpoints::find(connection, org, id))
    }

    fn endpoints(&self, org: OrgId) -> Result<Vec<EndpointRow>, StoreError> {
        self.reader()?.read(|connection| endpoints::of_org(connection, org))
    }

    fn all_endpoints(&self, after: Option<EndpointId>, limit: u32) -> Result<Vec<EndpointRow>, StoreError> {
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

    fn org_of_endpoint(&self, id: EndpointId) -> Result<Option<OrgId>, StoreError> {
        self.reader()?.read(|connection| endpoints::org_of(connection, id))
    }

    fn end_deleted(&self, id: EndpointId, from: Timestamp, at: Timestamp) -> Result<EndedStep, StoreError> {
        self.writer()?.write(|transaction| deliveries::end_deleted(transaction, id, from, at))
    }

    fn rotate_endpoint_secret(
        &self,
        org: OrgId,
        id: EndpointId,
        rotation: Rotation<'_>,
    ) -> Result<Option<Endpoint>, StoreError> {
        self.writer()?.try_write(|transaction| endpoints::rotate_secret(transaction, org, id, rotation))
    }

    fn disable_endpoint(&self, id: EndpointId, reason: &str) -> Result<bool, StoreError> {
        self.writer()?.write(|transaction| endpoints::disable(transaction, id, reason))
    }

    fn note_failing(
        &self,
        notes: &[(EndpointId, Option<Duration>)],
        now: Timestamp,
    ) -> Result<Vec<(EndpointId, Duration)>, StoreError> {
        self.writer()?.write(|transaction| endpoints::note_failing(transaction, notes, now))
    }

    fn recall_stranded(&self, now: Timestamp, latest: Timestamp) -> Result<u64, StoreError> {
        self.writer()?.write(|transaction| deliveries::recall_stranded(transaction, now, latest))
    }

    fn due_endpoints(
        &self,
        now: Timestamp,
        after: Option<EndpointId>,
        limit: u32,
    ) -> Result<Vec<DueEndpoint>, StoreError> {
        self.reader()?.read(|connection| deliveries::due_endpoints(connection, now, after, limit))
    }

    fn due_since(&self, now: Timestamp, endpoints: &[(EndpointId, Timestamp)]) -> Result<Vec<DueEndpoint>, StoreError> {
        self.reader()?.read(|connection| deliveries::due_since(connection, now, endpoints))
    }

    fn claim(&self, now: Timestamp, lease_until: Timestamp, wanted: &[Wanted]) -> Result<Claims, StoreError> {
        self.writer()?.write(|transaction| deliveries::claim(transaction, now, lease_until, wanted))
    }

    fn record(&self, results: &[AttemptResult]) -> Result<Recorded, StoreError> {
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

    fn deliveries(
        &self,
        org: OrgId,
        query: &DeliveryQuery,
    ) -> Result<(Vec<DeliveryRecord>, Option<DeliveryId>), StoreError> {
        self.reader()?.read(|connection| history::list(connection, org, query, self.page_until()))
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
            note_change(transaction, StoreChange::DeliveriesDue(planned[0].endpoint))
        })
    }
}
