//! The webhook side of the store in memory.

use std::ops::Range;
use std::sync::Mutex;
use std::time::Duration;

use millrace_base::clock::Timestamp;
use millrace_base::event::{DeliveryId, EndpointId, Event, EventId, OrgId};
use millrace_base::limits::ENDPOINTS_PER_ORG_MAX;
use millrace_store::webhooks::{
    AttemptResult, Claims, Delivery, DeliveryQuery, DeliveryRecord, DeliveryStatus, DueEndpoint, EndedStep, Endpoint,
    EndpointChange, EndpointRow, KeyFingerprint, NewEndpoint, PendingStats, PlannedDelivery, Recorded, Rotation,
    Wanted, WebhookStore,
};
use millrace_store::{Rejection, StoreError, StoredEvent};

use super::fake_store::FakeStore;

#[derive(Default)]
pub(super) struct FakeWebhooks {
    /// The key that secrets are sealed with, where that is known.
    pub(super) sealing_key: Mutex<Option<KeyFingerprint>>,
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
            return Err(Rejection::TooManyEndpoints.into());
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
            enabled_at: None,
            disabled_reason: None,
            org_disabled: false,
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

    fn endpoints(&self, org: OrgId) -> Result<Vec<EndpointRow>, StoreError> {
        self.before_call()?;
        let mut found: Vec<Endpoint> = self.webhooks.endpoints.lock().unwrap().clone();
        found.retain(|endpoint| endpoint.org == org);
        found.sort_by_key(|endpoint| std::cmp::Reverse(endpoint.id));
        Ok(found.into_iter().map(Ok).collect())
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
        rotation: Rotation<'_>,
    ) -> Result<Option<Endpoint>, StoreError> {
        self.before_call()?;
        let mut endpoints = self.webhooks.endpoints.lock().unwrap();
        let found = endpoints.iter_mut().find(|endpoint| (endpoint.org, endpoint.id) == (org, id));
        Ok(found.map(|endpoint| {
            let before = std::mem::replace(&mut endpoint.secret, rotation.secret.clone());
            let is_usable = !rotation.unusable.contains(&before);
            endpoint.previous_secret = is_usable.then_some((before, rotation.previous_until));
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

    fn deliveries(
        &self,
        org: OrgId,
        query: &DeliveryQuery,
    ) -> Result<(Vec<DeliveryRecord>, Option<DeliveryId>), StoreError> {
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
        let next = found.last().filter(|_| more).map(|record| record.delivery.id);
        Ok((found, next))
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

    fn sealing_key(&self) -> Result<Option<KeyFingerprint>, StoreError> {
        self.before_call()?;
        Ok(self.webhooks.sealing_key.lock().unwrap().to_owned())
    }

    fn accept_sealing_key(&self, _: KeyFingerprint) -> Result<(), StoreError> {
        unreachable!("no route to it")
    }

    fn all_endpoints(&self, _: Option<EndpointId>, _: u32) -> Result<Vec<EndpointRow>, StoreError> {
        unreachable!("control asks for one organisation's")
    }

    fn org_of_endpoint(&self, _: EndpointId) -> Result<Option<OrgId>, StoreError> {
        unreachable!("control knows whose it is")
    }

    fn end_deleted(&self, _: EndpointId, _: Timestamp, _: Timestamp) -> Result<EndedStep, StoreError> {
        unreachable!("control sends nothing")
    }

    fn disable_endpoint(&self, _: EndpointId, _: &str) -> Result<bool, StoreError> {
        unreachable!("control sends nothing")
    }

    fn note_failing(
        &self,
        _: &[(EndpointId, Option<Duration>)],
        _: Timestamp,
    ) -> Result<Vec<(EndpointId, Duration)>, StoreError> {
        unreachable!("control sends nothing")
    }

    fn recall_stranded(&self, _: Timestamp, _: Timestamp) -> Result<u64, StoreError> {
        unreachable!("control sends nothing")
    }

    fn due_endpoints(&self, _: Timestamp, _: Option<EndpointId>, _: u32) -> Result<Vec<DueEndpoint>, StoreError> {
        unreachable!("control sends nothing")
    }

    fn due_since(&self, _: Timestamp, _: &[(EndpointId, Timestamp)]) -> Result<Vec<DueEndpoint>, StoreError> {
        unreachable!("control sends nothing")
    }

    fn claim(&self, _: Timestamp, _: Timestamp, _: &[Wanted]) -> Result<Claims, StoreError> {
        unreachable!("control sends nothing")
    }

    fn record(&self, _: &[AttemptResult]) -> Result<Recorded, StoreError> {
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
