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
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc::UnboundedSender;
use uuid::Uuid;

use super::directory::{Directory, LiveEndpoint};
use super::outgoing::{Outgoing, body, body_len};
use super::room::{Reservation, Room};
use crate::clock::Timestamp;
use crate::event::{DeliveryId, Event};
use crate::store::StoreError;
use crate::store::webhooks::PlannedDelivery;

/// What the writers need to know of webhooks.
pub struct Outbox {
    directory: Arc<Directory>,
    room: Arc<Room>,
    /// To the sender. Bounded by the reservations that travel through it.
    sender: UnboundedSender<Vec<Outgoing>>,
    lease: Duration,
    is_closed: AtomicBool,
}

/// The deliveries of one batch; dropping it gives up the places that were reserved.
#[derive(Default)]
pub struct Plan {
    /// In the order of the events; to be stored with them.
    pub deliveries: Vec<PlannedDelivery>,
    /// One for each of `deliveries`.
    kept: Vec<Option<Kept>>,
}

/// What stays in memory of a planned delivery.
struct Kept {
    /// Place of its event in the batch.
    event: usize,
    endpoint: Arc<LiveEndpoint>,
    lease: Timestamp,
    reservation: Reservation,
}

impl Outbox {
    /// Leases last for `lease`.
    pub fn new(
        directory: Arc<Directory>,
        room: Arc<Room>,
        sender: UnboundedSender<Vec<Outgoing>>,
        lease: Duration,
    ) -> Self {
        Self { directory, room, sender, lease, is_closed: AtomicBool::new(false) }
    }

    /// From now on, what is planned stays in the database.
    pub fn close(&self) {
        self.is_closed.store(true, Ordering::Relaxed);
    }

    /// The deliveries of these events, for the endpoints that are known now.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] until the endpoints have been read for the first time.
    pub fn plan(&self, events: &[Event]) -> Result<Plan, StoreError> {
        let mut plan = Plan::default();
        self.directory.for_each_wanted(events, |index, endpoint| self.add(&mut plan, events, index, endpoint))?;
        if plan.kept.iter().any(Option::is_none) {
            self.room.want();
        }
        Ok(plan)
    }

    fn add(&self, plan: &mut Plan, events: &[Event], index: usize, endpoint: &Arc<LiveEndpoint>) {
        let event = &events[index];
        let bytes = body_len(event.type_text(), event.payload().len());
        let now = Timestamp::now();
        let is_open = !self.is_closed.load(Ordering::Relaxed);
        let reservation = if is_open { self.room.reserve(&endpoint.share, bytes, now) } else { None };
        let kept = reservation.map(|reservation| Kept {
            event: index,
            endpoint: Arc::clone(endpoint),
            lease: now.plus(self.lease),
            reservation,
        });
        plan.deliveries.push(PlannedDelivery {
            id: DeliveryId(Uuid::now_v7()),
            event: event.id,
            endpoint: endpoint.id,
            org: endpoint.org,
            lease_until: kept.as_ref().map(|kept| kept.lease),
        });
        plan.kept.push(kept);
    }

    /// The events are committed, and of the planned deliveries those in `stored`: the others' events were copies.
    pub fn committed(&self, plan: Plan, events: &[Event], stored: &[DeliveryId]) {
        if plan.deliveries.is_empty() {
            return;
        }
        let stored: HashSet<DeliveryId> = stored.iter().copied().collect();
        let mut bodies = Bodies::default();
        let outgoing: Vec<Outgoing> = plan
            .deliveries
            .iter()
            .zip(plan.kept)
            .filter_map(|(planned, kept)| kept.filter(|_| stored.contains(&planned.id)).map(|kept| (planned.id, kept)))
            .map(|(delivery, Kept { event: index, endpoint, lease, reservation })| {
                let event = &events[index];
                Outgoing {
                    delivery,
                    event: event.id,
                    endpoint: endpoint.id,
                    rate_limit_per_second: endpoint.rate_limit_per_second,
                    body: bodies.of(index, event),
                    received_at: event.received_at,
                    attempts_made: 0,
                    schedule_step: 0,
                    lease,
                    reservation,
                }
            })
            .collect();
        if !outgoing.is_empty() {
            // At the end nobody takes them any more: they are due when their leases run out.
            let _ = self.sender.send(outgoing);
        }
    }
}

/// The last body that was made: deliveries of one event stand together.
#[derive(Default)]
struct Bodies(Option<(usize, Bytes)>);

impl Bodies {
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
