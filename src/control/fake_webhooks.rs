//! The webhook side of the store in memory.

use std::ops::Range;
use std::sync::Mutex;

use super::fake_store::FakeStore;
use crate::clock::Timestamp;
use crate::event::{DeliveryId, EndpointId, Event, EventId, OrgId};
use crate::limits::ENDPOINTS_PER_ORG_MAX;
use crate::store::webhooks::{
    AttemptResult, Claims, Delivery, DeliveryQuery, DeliveryRecord, DeliveryStatus, Endpoint, EndpointChange,
    NewEndpoint, PendingStats, PlannedDelivery, SealedSecret, WebhookStore,
};
use crate::store::{StoreError, StoredEvent};

#[derive(Default)]
pub(super) struct FakeWebhooks {
    /// In the order they were made.
    pub(super) endpoints: Mutex<Vec<Endpoint>>,
    /// In the order they were made.
    pub(super) deliveries: Mutex<Vec<DeliveryRecord>>,
}

impl WebhookStore for FakeStore {
    fn create_endpoint(&self, new: &NewEndpoint) -> Result<Endpoint, StoreError> {
        self.before_call()?;
        let mut endpoints = self.webhooks.endpoints.lock().unwrap();
        if endpoints.iter().filter(|endpoint| endpoint.org == new.org).count() >= ENDPOINTS_PER_ORG_MAX {
            return Err(StoreError::Conflict("too many".into()));
        }
        let new = new.clone();
        endpoints.push(Endpoint {
            id: new.id,
            org: new.org,
            url: new.url,
            description: new.description,
            event_types: new.event_types,
            headers: new.headers,
            enabled: new.enabled,
            disabled_reason: None,
            rate_limit_per_second: new.rate_limit_per_second,
            secret: new.secret,
            previous_secret: None,
            failing_since: None,
            created_at: Timestamp::now(),
        });
        Ok(endpoints.last().unwrap().clone())
    }

    fn endpoint(&self, org: OrgId, id: EndpointId) -> Result<Option<Endpoint>, StoreError> {
        self.before_call()?;
        let endpoints = self.webhooks.endpoints.lock().unwrap();
        Ok(endpoints.iter().find(|endpoint| (endpoint.org, endpoint.id) == (org, id)).cloned())
    }

    fn endpoints(&self, org: OrgId) -> Result<Vec<Endpoint>, StoreError> {
        self.before_call()?;
        let mut found: Vec<Endpoint> = self.webhooks.endpoints.lock().unwrap().clone();
        found.retain(|endpoint| endpoint.org == org);
        found.sort_by_key(|endpoint| std::cmp::Reverse(endpoint.id));
        Ok(found)
    }

    fn update_endpoint(
        &self,
        org: OrgId,
        id: EndpointId,
        change: &EndpointChange,
    ) -> Result<Option<Endpoint>, StoreError> {
        self.before_call()?;
        let (mut endpoints, change) = (self.webhooks.endpoints.lock().unwrap(), change.clone());
        let Some(endpoint) = endpoints.iter_mut().find(|endpoint| (endpoint.org, endpoint.id) == (org, id)) else {
            return Ok(None);
        };
        endpoint.url = change.url.unwrap_or_else(|| endpoint.url.clone());
        endpoint.description = change.description.unwrap_or_else(|| endpoint.description.clone());
        endpoint.event_types = change.event_types.unwrap_or_else(|| endpoint.event_types.clone());
        endpoint.headers = change.headers.unwrap_or_else(|| endpoint.headers.clone());
        endpoint.enabled = change.enabled.unwrap_or(endpoint.enabled);
        endpoint.rate_limit_per_second = change.rate_limit_per_second.unwrap_or(endpoint.rate_limit_per_second);
        Ok(Some(endpoint.clone()))
    }

    fn delete_endpoint(&self, org: OrgId, id: EndpointId) -> Result<bool, StoreError> {
        self.before_call()?;
        let mut endpoints = self.webhooks.endpoints.lock().unwrap();
        let before = endpoints.len();
        endpoints.retain(|endpoint| (endpoint.org, endpoint.id) != (org, id));
        Ok(endpoints.len() < before)
    }

    fn rotate_endpoint_secret(
        &self,
        org: OrgId,
        id: EndpointId,
        new: &SealedSecret,
        previous_until: Timestamp,
    ) -> Result<Option<Endpoint>, StoreError> {
        self.before_call()?;
        let mut endpoints = self.webhooks.endpoints.lock().unwrap();
        let found = endpoints.iter_mut().find(|endpoint| (endpoint.org, endpoint.id) == (org, id));
        Ok(found.map(|endpoint| {
            endpoint.previous_secret = Some((std::mem::replace(&mut endpoint.secret, new.clone()), previous_until));
            endpoint.clone()
        }))
    }

    fn delivery(&self, org: OrgId, id: DeliveryId) -> Result<Option<DeliveryRecord>, StoreError> {
        self.before_call()?;
        let deliveries = self.webhooks.deliveries.lock().unwrap();
        Ok(deliveries.iter().find(|record| (record.delivery.org, record.delivery.id) == (org, id)).cloned())
    }

    fn deliveries_of_event(&self, org: OrgId, event: EventId) -> Result<Vec<DeliveryRecord>, StoreError> {
        self.before_call()?;
        let deliveries = self.webhooks.deliveries.lock().unwrap();
        let of_event = |record: &&DeliveryRecord| (record.delivery.org, record.delivery.event) == (org, event);
        Ok(deliveries.iter().rev().filter(of_event).cloned().collect())
    }

    fn deliveries(&self, org: OrgId, query: &DeliveryQuery) -> Result<(Vec<DeliveryRecord>, bool), StoreError> {
        self.before_call()?;
        let mut found: Vec<DeliveryRecord> = self.webhooks.deliveries.lock().unwrap().clone();
        found.retain(|DeliveryRecord { delivery, .. }| {
            delivery.org == org
                && query.status.is_none_or(|status| status == delivery.status)
                && query.endpoint.is_none_or(|endpoint| endpoint == delivery.endpoint)
                && query.cursor.is_none_or(|last| delivery.id < last)
        });
        found.sort_by_key(|record| std::cmp::Reverse(record.delivery.id));
        let more = found.len() > query.limit as usize;
        found.truncate(query.limit as usize);
        Ok((found, more))
    }

    fn retry_delivery(&self, org: OrgId, id: DeliveryId, now: Timestamp) -> Result<Option<Delivery>, StoreError> {
        self.before_call()?;
        let mut deliveries = self.webhooks.deliveries.lock().unwrap();
        let found = deliveries.iter_mut().find(|record| (record.delivery.org, record.delivery.id) == (org, id));
        Ok(found.map(|DeliveryRecord { delivery, .. }| {
            (delivery.status, delivery.next_attempt_at) = (DeliveryStatus::Pending, Some(now));
            delivery.clone()
        }))
    }

    fn recover_deliveries(
        &self,
        org: OrgId,
        endpoint: EndpointId,
        created: Range<Timestamp>,
        limit: u32,
        now: Timestamp,
    ) -> Result<u64, StoreError> {
        self.before_call()?;
        let mut recovered = 0;
        for DeliveryRecord { delivery, .. } in self.webhooks.deliveries.lock().unwrap().iter_mut() {
            let is_wanted = (delivery.org, delivery.endpoint) == (org, endpoint)
                && matches!(delivery.status, DeliveryStatus::Failed | DeliveryStatus::Blocked)
                && created.contains(&delivery.created_at);
            if is_wanted && recovered < u64::from(limit) {
                (delivery.status, delivery.next_attempt_at) = (DeliveryStatus::Pending, Some(now));
                recovered += 1;
            }
        }
        Ok(recovered)
    }

    fn delete_old_deliveries(&self, _: Timestamp, _: Option<DeliveryId>) -> Result<Option<DeliveryId>, StoreError> {
        unreachable!("no route to it")
    }

    fn insert_test(&self, event: &Event, planned: &PlannedDelivery) -> Result<(), StoreError> {
        self.before_call()?;
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let stored = StoredEvent {
            id: event.id,
            event_type: text(event.event_type()),
            dedup_id: None,
            payload: text(event.payload()),
            received_at: event.received_at,
        };
        self.events.lock().unwrap().push((event.org, stored));
        self.webhooks.deliveries.lock().unwrap().push(pending(planned));
        Ok(())
    }

    fn all_endpoints(&self, _: Option<EndpointId>, _: u32) -> Result<Vec<Endpoint>, StoreError> {
        unreachable!("control asks for one organisation's")
    }

    fn disable_endpoint(&self, _: EndpointId, _: &str) -> Result<bool, StoreError> {
        unreachable!("control sends nothing")
    }

    fn note_failing(
        &self,
        _: &[(EndpointId, Option<Timestamp>)],
    ) -> Result<Vec<(EndpointId, Option<Timestamp>)>, StoreError> {
        unreachable!("control sends nothing")
    }

    fn due_endpoints(&self, _: Timestamp, _: Option<EndpointId>, _: u32) -> Result<Vec<EndpointId>, StoreError> {
        unreachable!("control sends nothing")
    }

    fn claim(&self, _: Timestamp, _: Timestamp, _: &[(EndpointId, u32)]) -> Result<Claims, StoreError> {
        unreachable!("control sends nothing")
    }

    fn record(&self, _: &[AttemptResult]) -> Result<u64, StoreError> {
        unreachable!("control sends nothing")
    }

    fn release(&self, _: &[(DeliveryId, Timestamp)], _: Timestamp) -> Result<(), StoreError> {
        unreachable!("control sends nothing")
    }

    fn pending_stats(&self) -> Result<PendingStats, StoreError> {
        unreachable!("control counts nothing")
    }
}

/// A planned delivery as it is stored.
pub(super) fn pending(planned: &PlannedDelivery) -> DeliveryRecord {
    let created_at = Timestamp::now();
    let delivery = Delivery {
        id: planned.id,
        event: planned.event,
        endpoint: planned.endpoint,
        org: planned.org,
        status: DeliveryStatus::Pending,
        attempts_made: 0,
        created_at,
        next_attempt_at: Some(created_at),
    };
    DeliveryRecord { delivery, attempts: Vec::new() }
}
