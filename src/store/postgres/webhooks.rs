//! The webhook side of the Postgres store: each call is one loan of a session.

use std::ops::Range;

use super::error::CallError;
use super::{PostgresStore, deliveries, endpoints, events, history};
use crate::clock::Timestamp;
use crate::event::{DeliveryId, EndpointId, Event, EventId, OrgId};
use crate::store::StoreError;
use crate::store::webhooks::{
    AttemptResult, Claims, Delivery, DeliveryQuery, DeliveryRecord, Endpoint, EndpointChange, NewEndpoint,
    PendingStats, PlannedDelivery, SealedSecret, WebhookStore,
};

impl WebhookStore for PostgresStore {
    fn create_endpoint(&self, new: &NewEndpoint) -> Result<Endpoint, StoreError> {
        endpoints::create(&mut *self.session()?, new)
    }

    fn endpoint(&self, org: OrgId, id: EndpointId) -> Result<Option<Endpoint>, StoreError> {
        endpoints::find(&mut *self.session()?, org, id)
    }

    fn endpoints(&self, org: OrgId) -> Result<Vec<Endpoint>, StoreError> {
        endpoints::of_org(&mut *self.session()?, org)
    }

    fn all_endpoints(&self, after: Option<EndpointId>, limit: u32) -> Result<Vec<Endpoint>, StoreError> {
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

    fn rotate_endpoint_secret(
        &self,
        org: OrgId,
        id: EndpointId,
        new: &SealedSecret,
        previous_until: Timestamp,
    ) -> Result<Option<Endpoint>, StoreError> {
        endpoints::rotate_secret(&mut *self.session()?, org, id, new, previous_until)
    }

    fn disable_endpoint(&self, id: EndpointId, reason: &str) -> Result<bool, StoreError> {
        endpoints::disable(&mut *self.session()?, id, reason).map_err(CallError::into)
    }

    fn note_failing(
        &self,
        notes: &[(EndpointId, Option<Timestamp>)],
    ) -> Result<Vec<(EndpointId, Option<Timestamp>)>, StoreError> {
        endpoints::note_failing(&mut *self.session()?, notes)
    }

    fn due_endpoints(
        &self,
        now: Timestamp,
        after: Option<EndpointId>,
        limit: u32,
    ) -> Result<Vec<EndpointId>, StoreError> {
        deliveries::due_endpoints(&mut *self.session()?, now, after, limit)
    }

    fn claim(
        &self,
        now: Timestamp,
        lease_until: Timestamp,
        wanted: &[(EndpointId, u32)],
    ) -> Result<Claims, StoreError> {
        deliveries::claim(&mut *self.session()?, now, lease_until, wanted)
    }

    fn record(&self, results: &[AttemptResult]) -> Result<u64, StoreError> {
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

    fn deliveries(&self, org: OrgId, query: &DeliveryQuery) -> Result<(Vec<DeliveryRecord>, bool), StoreError> {
        history::list(&mut *self.session()?, org, query)
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
