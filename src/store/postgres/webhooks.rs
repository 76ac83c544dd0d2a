//! The webhook side of the Postgres store: each call takes one session from the pool.

use std::ops::Range;
use std::time::Duration;

use millrace_base::clock::Timestamp;
use millrace_base::event::{DeliveryId, EndpointId, Event, EventId, OrgId};

use super::error::CallError;
use super::{PostgresStore, deliveries, endpoints, events, history, retry_schedules};
use crate::StoreError;
use crate::webhooks::{
    AttemptResult, Claims, Delivery, DeliveryQuery, DeliveryRecord, DueEndpoint, EndedStep, Endpoint, EndpointChange,
    EndpointRow, KeyFingerprint, NewEndpoint, PendingStats, PlannedDelivery, Recorded, Rotation, Wanted, WebhookStore,
};

impl WebhookStore for PostgresStore {
    fn shared_clock(&self) -> Result<Option<Timestamp>, StoreError> {
        deliveries::clock(&mut *self.session()?).map(Some)
    }

    fn sealing_key(&self) -> Result<Option<KeyFingerprint>, StoreError> {
        endpoints::sealing_key(&mut *self.session()?)
    }

    fn accept_sealing_key(&self, key: KeyFingerprint) -> Result<(), StoreError> {
        endpoints::accept_sealing_key(&mut *self.session()?, key).map_err(CallError::into)
    }

    fn note_retry_schedule(&self, schedule: &str) -> Result<Vec<String>, StoreError> {
        retry_schedules::note(&mut *self.session()?, schedule)
    }

    fn forget_retry_schedule(&self, schedule: &str) -> Result<(), StoreError> {
        retry_schedules::forget(&mut *self.session()?, schedule).map_err(CallError::into)
    }

    fn create_endpoint(&self, new: &NewEndpoint) -> Result<Endpoint, StoreError> {
        endpoints::create(&mut *self.session()?, new)
    }

    fn endpoint(&self, org: OrgId, id: EndpointId) -> Result<Option<Endpoint>, StoreError> {
        endpoints::find(&mut *self.session()?, org, id)
    }

    fn endpoints(&self, org: OrgId) -> Result<Vec<EndpointRow>, StoreError> {
        endpoints::of_org(&mut *self.session()?, org)
    }

    fn all_endpoints(&self, after: Option<EndpointId>, limit: u32) -> Result<Vec<EndpointRow>, StoreError> {
        endpoints::all(&mut *self.session()?, after, limit)
    }

    fn update_endpoint(
        &self,
        org: OrgId,
        id: EndpointId,
        change: &EndpointChange,
    ) -> Result<Option<Endpoint>, StoreError> {
        endpoints::update(&mut *self.session()?, org, id, change)
    }

    fn delete_endpoint(&self, org: OrgId, id: EndpointId) -> Result<bool, StoreError> {
        endpoints::delete(&mut *self.session()?, org, id).map_err(CallError::into)
    }

    fn org_of_endpoint(&self, id: EndpointId) -> Result<Option<OrgId>, StoreError> {
        endpoints::org_of(&mut *self.session()?, id)
    }

    fn end_deleted(&self, id: EndpointId, from: Timestamp, at: Timestamp) -> Result<EndedStep, StoreError> {
        deliveries::end_deleted(&mut *self.session()?, id, from, at).map_err(CallError::into)
    }

    fn rotate_endpoint_secret(
        &self,
        org: OrgId,
        id: EndpointId,
        rotation: Rotation<'_>,
    ) -> Result<Option<Endpoint>, StoreError> {
        endpoints::rotate_secret(&mut *self.session()?, org, id, rotation)
    }

    fn disable_endpoint(&self, id: EndpointId, reason: &str) -> Result<bool, StoreError> {
        endpoints::disable(&mut *self.session()?, id, reason).map_err(CallError::into)
    }

    fn note_failing(
        &self,
        notes: &[(EndpointId, Option<Duration>)],
        now: Timestamp,
    ) -> Result<Vec<(EndpointId, Duration)>, StoreError> {
        endpoints::note_failing(&mut *self.session()?, notes, now)
    }

    fn recall_stranded(&self, now: Timestamp, latest: Timestamp) -> Result<u64, StoreError> {
        deliveries::recall_stranded(&mut *self.session()?, now, latest)
    }

    fn due_endpoints(
        &self,
        now: Timestamp,
        after: Option<EndpointId>,
        limit: u32,
    ) -> Result<Vec<DueEndpoint>, StoreError> {
        deliveries::due_endpoints(&mut *self.session()?, now, after, limit)
    }

    fn due_since(&self, now: Timestamp, endpoints: &[(EndpointId, Timestamp)]) -> Result<Vec<DueEndpoint>, StoreError> {
        deliveries::due_since(&mut *self.session()?, now, endpoints)
    }

    fn claim(&self, now: Timestamp, lease_until: Timestamp, wanted: &[Wanted]) -> Result<Claims, StoreError> {
        deliveries::claim(&mut *self.session()?, &self.partitions, now, lease_until, wanted)
    }

    fn record(&self, results: &[AttemptResult]) -> Result<Recorded, StoreError> {
        deliveries::record(&mut *self.session()?, results)
    }

    fn release(&self, held: &[(DeliveryId, Timestamp)], now: Timestamp) -> Result<(), StoreError> {
        deliveries::release(&mut *self.session()?, held, now)
    }

    fn pending_stats(&self) -> Result<PendingStats, StoreError> {
        deliveries::pending_stats(&mut *self.session()?).map_err(CallError::into)
    }

    fn delivery(&self, org: OrgId, id: DeliveryId) -> Result<Option<DeliveryRecord>, StoreError> {
        history::find(&mut *self.session()?, org, id)
    }

    fn deliveries_of_event(&self, org: OrgId, event: EventId) -> Result<Vec<DeliveryRecord>, StoreError> {
        history::of_event(&mut *self.session()?, org, event)
    }

    fn deliveries(
        &self,
        org: OrgId,
        query: &DeliveryQuery,
    ) -> Result<(Vec<DeliveryRecord>, Option<DeliveryId>), StoreError> {
        history::list(&mut *self.session()?, org, query, self.page_until())
    }

    fn retry_delivery(&self, org: OrgId, id: DeliveryId, now: Timestamp) -> Result<Option<Delivery>, StoreError> {
        history::retry(&mut *self.session()?, org, id, now)
    }

    fn recover_deliveries(
        &self,
        org: OrgId,
        endpoint: EndpointId,
        created: Range<Timestamp>,
        limit: u32,
        now: Timestamp,
    ) -> Result<u64, StoreError> {
        history::recover(&mut *self.session()?, org, endpoint, &created, limit, now)
    }

    fn delete_old_deliveries(
        &self,
        before: Timestamp,
        after: Option<DeliveryId>,
    ) -> Result<Option<DeliveryId>, StoreError> {
        history::delete_old(&mut *self.session()?, before, after)
    }

    fn insert_test(&self, event: &Event, planned: &PlannedDelivery) -> Result<(), StoreError> {
        let mut session = self.session()?;
        let (batch, planned) = (std::slice::from_ref(event), std::slice::from_ref(planned));
        events::store(&mut session, &self.partitions, &self.copy_gate, batch, planned)?;
        history::wake(&mut session, planned[0].endpoint).map_err(CallError::into)
    }
}
