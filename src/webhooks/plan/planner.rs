//! OUTBOX: the writers' side. Plans the deliveries of a batch before it is stored, and hands those of new events to the
//! sender once they are committed.
//!
//! A delivery is *born claimed* where there is room for it in memory: its row is inserted with the lease of this server
//! and sent from memory, so in the usual case the database is asked for nothing between an event and its attempt. Where
//! there is no room, or this server dies, the row is due in the database like any other.
//!
//! Runs on the `writer-N` threads. A batch in which nobody has an endpoint costs one lookup an event and no allocation.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::mpsc::UnboundedSender;
use uuid::Uuid;

use millrace_base::event::{DeliveryId, Event, EventId, OrgId};
use millrace_store::webhooks::{Endpoint, PlannedDelivery};
use millrace_store::{Store, StoreError};

use crate::delivery::clock::DeliveryClock;
use crate::delivery::lease::{Lease, LeaseTable};
use crate::endpoint::filter::EventTypeFilter;
use crate::plan::budget::{DeliveryBudget, Reservation};
use crate::plan::endpoint_cache::{CachedEndpoint, EndpointCache};
use crate::plan::outgoing_delivery::{OutgoingDelivery, body, body_len};

/// What the writers need to know of webhooks.
pub struct DeliveryPlanner {
    pub(crate) endpoints: Arc<EndpointCache>,
    pub(crate) budget: Arc<DeliveryBudget>,
    /// To the sender. Bounded by the reservations that travel through it.
    pub(crate) sender: UnboundedSender<Vec<OutgoingDelivery>>,
    pub(crate) clock: Arc<DeliveryClock>,
    pub(crate) leases: Arc<LeaseTable>,
    /// How long a lease lasts.
    pub(crate) lease_duration: Duration,
    pub(crate) is_closed: AtomicBool,
}

/// The deliveries of one batch; dropping it gives up the places that were reserved.
#[derive(Default)]
pub struct DeliveryPlan {
    /// In the order of the events; to be stored with them.
    pub deliveries: Vec<PlannedDelivery>,
    /// One for each of `deliveries`.
    kept: Vec<Option<LeasedDelivery>>,
}

/// What stays in memory of a planned delivery.
struct LeasedDelivery {
    /// Place of its event in the batch.
    event: usize,
    endpoint: Arc<CachedEndpoint>,
    lease: Lease,
    reservation: Reservation,
}

impl DeliveryPlanner {
    /// From now on, what is planned stays in the database.
    pub fn close(&self) {
        self.is_closed.store(true, Ordering::Relaxed);
    }

    /// How many deliveries each of these events owes, as far as endpoints are known now; empty where none owes any.
    ///
    /// # Errors
    /// As [`Self::plan`].
    pub fn deliveries_per_event(&self, events: &[Event]) -> Result<Vec<u32>, StoreError> {
        let mut counts = Vec::new();
        self.endpoints.for_each_wanted(events, |index, _| {
            if counts.is_empty() {
                counts.resize(events.len(), 0);
            }
            counts[index] += 1;
        })?;
        Ok(counts)
    }

    /// The deliveries of these events, for the endpoints that are known now.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] until the endpoints have been read for the first time.
    pub fn plan(&self, events: &[Event]) -> Result<DeliveryPlan, StoreError> {
        let mut plan = DeliveryPlan::default();
        self.endpoints.for_each_wanted(events, |index, endpoint| self.add(&mut plan, events, index, endpoint))?;
        Ok(plan)
    }

    fn add(&self, plan: &mut DeliveryPlan, events: &[Event], index: usize, endpoint: &Arc<CachedEndpoint>) {
        let event = &events[index];
        let bytes = body_len(event.type_text(), event.payload().len());
        let (now, is_closed) = (Instant::now(), self.is_closed.load(Ordering::Relaxed));
        let is_kept = !is_closed && !endpoint.is_suspended();
        let reservation = if is_kept { self.budget.reserve(&endpoint.usage, bytes, now) } else { None };
        if reservation.is_none() && !endpoint.is_suspended() && !self.budget.is_at_own_limit(&endpoint.usage, now) {
            self.budget.request_wakeup();
        }
        let kept = reservation.map(|reservation| LeasedDelivery {
            event: index,
            endpoint: Arc::clone(endpoint),
            lease: Lease::begin(&self.clock, self.lease_duration),
            reservation,
        });
        plan.deliveries.push(PlannedDelivery {
            id: DeliveryId(Uuid::now_v7()),
            event: event.id,
            endpoint: endpoint.id,
            org: endpoint.org,
            // What is not kept is due at once, by the clock that whoever claims it goes by.
            lease_until: Some(kept.as_ref().map_or_else(|| self.clock.now(), |kept| kept.lease.until)),
        });
        plan.kept.push(kept);
    }

    /// The events are committed, and of the planned deliveries those in `stored`: the others' events were copies.
    pub fn committed(&self, plan: DeliveryPlan, events: &[Event], stored: &[DeliveryId]) {
        if plan.deliveries.is_empty() {
            return;
        }
        let stored: HashSet<DeliveryId> = stored.iter().copied().collect();
        let mut last_body = LastBody::default();
        let deliveries: Vec<OutgoingDelivery> = plan
            .deliveries
            .iter()
            .zip(plan.kept)
            .filter_map(|(planned, kept)| kept.filter(|_| stored.contains(&planned.id)).map(|kept| (planned.id, kept)))
            .filter_map(|(delivery, LeasedDelivery { event: index, endpoint, lease, reservation })| {
                let event = &events[index];
                Some(OutgoingDelivery {
                    // Whoever claimed it already, because a clock was stepped, has it.
                    guard: self.leases.acquire(delivery, lease)?,
                    event: event.id,
                    endpoint: endpoint.id,
                    rate_limit_per_second: endpoint.rate_limit_per_second,
                    body: last_body.of(index, event),
                    received_at: event.received_at,
                    attempts_made: 0,
                    schedule_step: 0,
                    reservation,
                })
            })
            .collect();
        if !deliveries.is_empty() {
            // At the end nobody takes them any more: they are due when their leases run out.
            let _ = self.sender.send(deliveries);
        }
    }
}

/// The deliveries of one event of `org` for its endpoints as they are in the store now, due at once for any server: for who
/// has no directory, as the command line.
pub fn plan_for_any_server(
    store: &dyn Store,
    org: OrgId,
    event: EventId,
    event_type: &str,
) -> Result<Vec<PlannedDelivery>, StoreError> {
    let wants = |types: &Vec<String>| {
        types.iter().filter_map(|text| EventTypeFilter::parse(text).ok()).any(|filter| filter.matches(event_type))
    };
    let wanted =
        store.endpoints(org)?.into_iter().flatten().filter(|e| e.enabled && e.event_types.as_ref().is_none_or(wants));
    let plan = |endpoint: Endpoint| PlannedDelivery {
        id: DeliveryId(Uuid::now_v7()),
        event,
        endpoint: endpoint.id,
        org,
        lease_until: None,
    };
    Ok(wanted.map(plan).collect())
}

/// The last body that was made: deliveries of one event stand together.
#[derive(Default)]
struct LastBody(Option<(usize, Bytes)>);

impl LastBody {
    fn of(&mut self, index: usize, event: &Event) -> Bytes {
        match &self.0 {
            Some((made_for, made)) if *made_for == index => made.clone(),
            _ => {
                let made = body(event.type_text(), event.received_at, event.payload());
                self.0.insert((index, made)).1.clone()
            }
        }
    }
}
