//! CLAIMS: the `deliver-claims` thread. Brings due deliveries from the database into memory, as far as there is room, and
//! keeps the directory current.
//!
//! Most deliveries never pass through here: they are born claimed (see `outbox`). What does: retries whose time has come,
//! what found no room, what a crashed server left, and what a person asked to be sent again. It looks once a second, and
//! at once when a change is announced (`LISTEN` on Postgres) or when room comes free that was missed.
//!
//! Every endpoint is asked for on its own and gets its part of the room, so that a backlog of one never hides another's.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Select};
use tokio::sync::mpsc::UnboundedSender;

use super::directory::{Directory, LiveEndpoint};
use super::outgoing::{Outgoing, body};
use super::room::{Reservation, Room};
use crate::auth::feed::Feed;
use crate::clock::Timestamp;
use crate::event::{DeliveryId, EndpointId, OrgId};
use crate::limits;
use crate::metrics::{DbOperation, Metrics};
use crate::store::webhooks::{Attempt, AttemptResult, Claimed, Claims as Claimable, Next, Orphan, WebhookStore};
use crate::store::{CredentialChange, Store, StoreError};

/// How often it looks for due deliveries whatever happens.
const POLL: Duration = Duration::from_secs(1);
/// How long it leaves the database alone between two looks.
const PAUSE: Duration = Duration::from_millis(20);
/// How often pending deliveries are counted for the metrics.
const COUNT: Duration = Duration::from_secs(10);
/// How often the whole directory is read again though no change was announced: since when an endpoint fails is not.
const REREAD: Duration = Duration::from_secs(600);

/// The thread's state.
pub struct Claims {
    /// Where deliveries are.
    pub store: Arc<dyn Store>,
    /// Which endpoints there are.
    pub directory: Arc<Directory>,
    /// How much fits in memory.
    pub room: Arc<Room>,
    /// To the sender; bounded by reservations.
    pub sender: UnboundedSender<Vec<Outgoing>>,
    /// Says which endpoints have changed.
    pub feed: Arc<Feed>,
    /// Rings when there is room again, or something else makes a look worthwhile.
    pub bell: Receiver<()>,
    /// How long a lease lasts.
    pub lease: Duration,
    /// Shown to operators.
    pub metrics: Arc<Metrics>,
    /// Set when the server goes down.
    pub stop: Arc<AtomicBool>,
}

impl Claims {
    /// Runs until `stop` is set. Until the endpoints could be read for the first time nothing is claimed.
    pub fn run(self) {
        while !self.directory.is_loaded() && !self.stop.load(Ordering::Relaxed) {
            thread::sleep(limits::STOP_POLL_INTERVAL);
        }
        let mut trouble = Trouble::default();
        // What was announced while the database could not be asked is not known.
        let mut is_stale = true;
        let mut reread_at = Instant::now();
        let mut counted_at: Option<Instant> = None;
        while !self.stop.load(Ordering::Relaxed) {
            if reread_at.elapsed() >= REREAD {
                (is_stale, reread_at) = (true, Instant::now());
            }
            let mut done = self.follow(is_stale);
            is_stale = done.is_err();
            if done.is_ok() {
                done = self.claim();
            }
            if done.is_ok() && counted_at.is_none_or(|at| at.elapsed() >= COUNT) {
                counted_at = Some(Instant::now());
                done = self.count();
            }
            trouble.note(done);
            // The sender shows it while it works; places are given back behind it.
            self.metrics.webhook.held.set(self.room.held() as i64);
            self.wait();
        }
    }

    /// Until something has happened, a second at most. Whatever it is, everything is looked at.
    fn wait(&self) {
        let mut ready = Select::new();
        ready.recv(self.feed.webhook_changes());
        ready.recv(&self.bell);
        let _ = ready.ready_timeout(POLL);
        let _ = self.bell.try_recv();
        thread::sleep(PAUSE);
    }

    /// Reads the endpoints again that have changed, or all of them.
    fn follow(&self, mut is_stale: bool) -> Result<(), StoreError> {
        let mut orgs = BTreeSet::new();
        let mut missed = false;
        is_stale |= !self.feed.drain_webhooks(|change| match change {
            CredentialChange::Endpoints(org) => {
                orgs.insert(org);
            }
            // The look that follows finds it.
            CredentialChange::Due(_) => {}
            CredentialChange::Key(_) | CredentialChange::Org(_) | CredentialChange::All => missed = true,
        });
        if is_stale || missed {
            return self.ask(DbOperation::Endpoints, |store| self.directory.refresh_all(store));
        }
        orgs.into_iter().try_for_each(|org| self.refresh(org))
    }

    fn refresh(&self, org: OrgId) -> Result<(), StoreError> {
        self.ask(DbOperation::Endpoints, |store| self.directory.refresh(store, org))
    }

    /// Claims what is due, as far as there is room.
    fn claim(&self) -> Result<(), StoreError> {
        let mut after = None;
        loop {
            let due = self.ask(DbOperation::ClaimDeliveries, |store| {
                store.due_endpoints(Timestamp::now(), after, limits::DUE_ENDPOINTS_PAGE)
            })?;
            after = due.last().copied();
            let mut known = Vec::with_capacity(due.len());
            for &id in &due {
                match self.directory.get(id) {
                    Some(endpoint) => known.push(endpoint),
                    None => self.claim_of_unknown(id)?,
                }
            }
            self.claim_of(known)?;
            if due.len() < limits::DUE_ENDPOINTS_PAGE as usize || self.stop.load(Ordering::Relaxed) {
                return Ok(());
            }
        }
    }

    /// Claims what is due of these endpoints, a few of each in turn, until nothing is due or there is no room.
    fn claim_of(&self, mut endpoints: Vec<Arc<LiveEndpoint>>) -> Result<(), StoreError> {
        while !endpoints.is_empty() && !self.stop.load(Ordering::Relaxed) {
            let mut rest = Vec::new();
            for some in endpoints.chunks(limits::CLAIM_ENDPOINTS_MAX) {
                rest.extend(self.claim_a_few(some)?);
            }
            endpoints = rest;
        }
        Ok(())
    }

    /// Claims once from each; returns those of which there may be more.
    fn claim_a_few(&self, endpoints: &[Arc<LiveEndpoint>]) -> Result<Vec<Arc<LiveEndpoint>>, StoreError> {
        let now = Timestamp::now();
        let each = limits::CLAIM_DELIVERIES_MAX as usize / endpoints.len();
        let mut places: HashMap<EndpointId, (Arc<LiveEndpoint>, Vec<Reservation>)> = HashMap::new();
        for endpoint in endpoints {
            let reserve = || self.room.reserve(&endpoint.share, 0, now);
            let reserved: Vec<Reservation> = std::iter::from_fn(reserve).take(each).collect();
            if reserved.len() < each && !endpoint.share.is_resting() {
                self.room.want();
            }
            if !reserved.is_empty() {
                places.insert(endpoint.id, (Arc::clone(endpoint), reserved));
            }
        }
        let wanted: Vec<(EndpointId, u32)> =
            places.iter().map(|(id, (_, places))| (*id, places.len() as u32)).collect();
        let Claimable { ready, orphans } = self.claim_wanted(&wanted)?;
        self.fail(&orphans, "event_gone")?;
        let mut claims = Vec::with_capacity(ready.len());
        for claimed in &ready {
            let (endpoint, reserved) = places.get_mut(&claimed.endpoint).expect("only what was wanted is claimed");
            let reservation = reserved.pop().expect("no more is claimed than was wanted");
            claims.push(outgoing(claimed, endpoint, reservation));
        }
        if !claims.is_empty() {
            // The sender ends after this thread; if it is gone, the leases run out.
            let _ = self.sender.send(claims);
        }
        // Where every place was taken there may be more.
        Ok(places.into_values().filter(|(_, left)| left.is_empty()).map(|(endpoint, _)| endpoint).collect())
    }

    /// Something is due for an endpoint that is not in the directory: it was deleted, or has just been made or enabled.
    fn claim_of_unknown(&self, id: EndpointId) -> Result<(), StoreError> {
        let Claimable { ready, orphans } = self.claim_wanted(&[(id, limits::CLAIM_DELIVERIES_MAX)])?;
        self.fail(&orphans, "event_gone")?;
        let Some(org) = ready.first().map(|claimed| claimed.org) else { return Ok(()) };
        if self.ask(DbOperation::Endpoints, |store| store.endpoint(org, id))?.is_none() {
            let deliveries: Vec<Orphan> = ready.iter().map(orphan).collect();
            return self.fail(&deliveries, "endpoint_deleted");
        }
        let held: Vec<(DeliveryId, Timestamp)> = ready.iter().map(|held| (held.delivery, held.lease)).collect();
        self.ask(DbOperation::ClaimDeliveries, |store| store.release(&held, Timestamp::now()))?;
        self.refresh(org)
    }

    fn claim_wanted(&self, wanted: &[(EndpointId, u32)]) -> Result<Claimable, StoreError> {
        if wanted.is_empty() {
            return Ok(Claimable::default());
        }
        let now = Timestamp::now();
        self.ask(DbOperation::ClaimDeliveries, |store| store.claim(now, now.plus(self.lease), wanted))
    }

    /// Deliveries that nothing can be sent of any more.
    fn fail(&self, deliveries: &[Orphan], why: &str) -> Result<(), StoreError> {
        if deliveries.is_empty() {
            return Ok(());
        }
        let at = Timestamp::now();
        let result = |orphan: &Orphan| AttemptResult {
            attempt: Attempt {
                delivery: orphan.delivery,
                number: orphan.attempts_made + 1,
                at,
                status_code: None,
                error: Some(why.to_owned()),
                latency: Duration::ZERO,
                response_body: None,
            },
            lease: orphan.lease,
            next: Next::Failed,
        };
        let results: Vec<AttemptResult> = deliveries.iter().map(result).collect();
        self.ask(DbOperation::RecordAttempts, |store| store.record(&results)).map(drop)
    }

    fn count(&self) -> Result<(), StoreError> {
        let pending = self.ask(DbOperation::CountDeliveries, WebhookStore::pending_stats)?;
        self.metrics.webhook.set_pending(pending.count, pending.oldest);
        Ok(())
    }

    fn ask<T>(&self, operation: DbOperation, question: impl FnOnce(&dyn Store) -> T) -> T {
        self.metrics.store.timed(operation, || question(&*self.store))
    }
}

fn outgoing(claimed: &Claimed, endpoint: &LiveEndpoint, mut reservation: Reservation) -> Outgoing {
    let body = body(&claimed.event_type, claimed.received_at, claimed.payload.as_bytes());
    reservation.weigh(body.len());
    Outgoing {
        delivery: claimed.delivery,
        event: claimed.event,
        endpoint: claimed.endpoint,
        rate_limit_per_second: endpoint.rate_limit_per_second,
        body,
        received_at: claimed.received_at,
        attempts_made: claimed.attempts_made,
        schedule_step: claimed.schedule_step,
        lease: claimed.lease,
        reservation,
    }
}

fn orphan(claimed: &Claimed) -> Orphan {
    Orphan {
        delivery: claimed.delivery,
        endpoint: claimed.endpoint,
        org: claimed.org,
        event: claimed.event,
        attempts_made: claimed.attempts_made,
        lease: claimed.lease,
    }
}

/// One log line when the database stops answering, and one when it answers again.
#[derive(Default)]
struct Trouble {
    since: Option<Instant>,
}

impl Trouble {
    fn note(&mut self, done: Result<(), StoreError>) {
        match done {
            Ok(()) => {
                if let Some(since) = self.since.take() {
                    let seconds = since.elapsed().as_secs_f32();
                    tracing::info!(seconds, "due webhook deliveries are being claimed again");
                }
            }
            Err(error) if self.since.is_none() => {
                self.since = Some(Instant::now());
                tracing::warn!(%error, "due webhook deliveries cannot be claimed; trying again");
            }
            Err(_) => {}
        }
    }
}
