//! Plans the deliveries of a batch of events before it is stored, and hands those of new events to the sender after the commit.
//!
//! Where the budget allows, a delivery is inserted already leased to this server and sent from memory: in the usual case no
//! query runs between an event and its first attempt. If the budget is full, or this server dies, the row is due in the
//! database like any other.
//!
//! Runs on the `writer-N` threads. A batch whose organisations have no endpoints costs one look-up per event and no
//! allocation.

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

/// Plans deliveries for the writers. Shared by all writer threads.
pub struct DeliveryPlanner {
    pub(crate) endpoints: Arc<EndpointCache>,
    pub(crate) budget: Arc<DeliveryBudget>,
    /// To the sender. Bounded by the reservations of what it carries.
    pub(crate) sender: UnboundedSender<Vec<OutgoingDelivery>>,
    pub(crate) clock: Arc<DeliveryClock>,
    pub(crate) leases: Arc<LeaseTable>,
    /// The duration of a lease.
    pub(crate) lease_duration: Duration,
    pub(crate) is_closed: AtomicBool,
}

/// The deliveries of one batch. Dropping it frees their reservations.
#[derive(Default)]
pub struct DeliveryPlan {
    /// In the order of the events; stored in the same transaction.
    pub deliveries: Vec<PlannedDelivery>,
    /// For each of `deliveries`, what stays in memory of it.
    kept: Vec<Option<LeasedDelivery>>,
}

/// A planned delivery that is leased to this server and stays in memory.
struct LeasedDelivery {
    /// The index of its event in the batch.
    event: usize,
    endpoint: Arc<CachedEndpoint>,
    lease: Lease,
    reservation: Reservation,
}

impl DeliveryPlanner {
    /// From now on no planned delivery is kept in memory.
    pub fn close(&self) {
        self.is_closed.store(true, Ordering::Relaxed);
    }

    /// The number of deliveries of each event, for the endpoints that are known now; empty if there are none at all.
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

    /// Plans the deliveries of these events, for the endpoints that are known now.
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
            // A delivery that is not kept is due at once, by the clock that the claiming server uses.
            lease_until: Some(kept.as_ref().map_or_else(|| self.clock.now(), |kept| kept.lease.until)),
        });
        plan.kept.push(kept);
    }

    /// The batch is committed, with the deliveries in `stored`; the events of the others were duplicates.
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
                    // `None`: the claimer has loaded it already, because a clock was stepped.
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
            // During shutdown the receiver may be gone: the deliveries are due when their leases expire.
            let _ = self.sender.send(deliveries);
        }
    }
}

/// Plans the deliveries of one event of `org` for the endpoints that are in the store now, due at once for any server. For
/// callers without an endpoint cache, such as the command line.
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

/// The last body that was built; the deliveries of one event follow each other.
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
