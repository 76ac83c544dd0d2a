//! The `deliver-claims` thread: loads due deliveries from the database into memory, as far as the budget allows, and keeps the
//! endpoint cache current.
//!
//! Most deliveries never pass through here, because they are inserted already leased (see `planner`). The claimer loads
//! retries, deliveries that did not fit in memory, those of a crashed server, and those that a person asked to retry. It scans
//! once a second, and at once when a change is announced (`LISTEN` on Postgres) or when budget that it lacked becomes free.
//!
//! Each endpoint is claimed separately and within its own part of the budget, so the backlog of one never hides another. A
//! backlog is claimed in rounds of [`ROUNDS_TIME`]; between rounds the thread reads changes and looks for other due
//! deliveries. Deliveries to deleted endpoints are failed in such rounds, too.
//!
//! Nothing is claimed while results of this server wait to be recorded, nor for [`SETTLE`] after a database outage: the leases
//! of deliveries that were already sent may have expired meanwhile, and whichever server knows the result should record it
//! first.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Select};
use tokio::sync::mpsc::UnboundedSender;

use millrace_base::clock::Timestamp;
use millrace_base::event::{EndpointId, OrgId};
use millrace_base::limits;
use millrace_metrics::{DbOperation, Metrics};
use millrace_store::webhooks::{
    Attempt, AttemptResult, Claimed, Claims, DueEndpoint, Next, Orphan, Wanted, WebhookStore,
};
use millrace_store::{Store, StoreChange, StoreError};
use millrace_tenant::change_feed::ChangeFeed;

use crate::delivery::clock::DeliveryClock;
use crate::delivery::fleet_schedule::FleetSchedule;
use crate::delivery::lease::{ClaimInProgress, Lease, LeaseGuard, LeaseTable};
use crate::plan::budget::{DeliveryBudget, Reservation};
use crate::plan::endpoint_cache::{CachedEndpoint, EndpointCache};
use crate::plan::outgoing_delivery::{OutgoingDelivery, body};
use crate::send::due_scan::{DueScan, ScanKind};
use crate::send::recording_lag::RecordingLag;

/// The longest time between two scans.
const POLL: Duration = Duration::from_secs(1);
/// The shortest time between two scans.
const PAUSE: Duration = Duration::from_millis(20);
/// How long a backlog is claimed before the thread reads changes and scans for other due deliveries.
const ROUNDS_TIME: Duration = Duration::from_millis(100);
/// After a database outage, how long other servers have to record their results: several times the longest pause of
/// their retries.
const SETTLE: Duration = Duration::from_secs(3);
/// Endpoints per call of an incremental scan.
const DUE_SINCE_PAGE: usize = 1024;
/// How often the thread counts pending deliveries for the metrics, recalls deliveries that a wrong clock put out of reach,
/// and compares retry schedules with other servers.
const PERIODIC_INTERVAL: Duration = Duration::from_secs(10);
/// A delivery due further ahead than the longest pause plus this was scheduled by a wrong clock.
const STRANDED_MARGIN: Duration = Duration::from_secs(60);
/// How often the endpoint cache is reloaded without an announced change: changes of `failing_since` are not announced.
const RELOAD_INTERVAL: Duration = Duration::from_secs(600);

/// The state of the thread.
pub struct Claimer {
    /// Where deliveries are stored.
    pub store: Arc<dyn Store>,
    /// The enabled endpoints.
    pub endpoints: Arc<EndpointCache>,
    /// How many deliveries fit in memory.
    pub budget: Arc<DeliveryBudget>,
    /// To the sender. Bounded by the reservations of what it carries.
    pub sender: UnboundedSender<Vec<OutgoingDelivery>>,
    /// Reports which endpoints have changed.
    pub feed: Arc<ChangeFeed>,
    /// Receives when budget is free again, or when another event makes a scan worthwhile.
    pub wakeup: Receiver<()>,
    /// The clock of deliveries.
    pub clock: Arc<DeliveryClock>,
    /// Which deliveries are in memory.
    pub leases: Arc<LeaseTable>,
    /// How long a lease lasts.
    pub lease_duration: Duration,
    /// The retry schedule.
    pub fleet_schedule: Arc<FleetSchedule>,
    /// How long results have waited to be recorded.
    pub recording_lag: Arc<RecordingLag>,
    /// The server's metrics.
    pub metrics: Arc<Metrics>,
    /// Set when the server shuts down.
    pub stop: Arc<AtomicBool>,
}

impl Claimer {
    /// Runs until `stop` is set. Claims nothing until the endpoints have been read for the first time.
    pub fn run(self) {
        while !self.endpoints.is_loaded() && !self.stop.load(Ordering::Relaxed) {
            thread::sleep(limits::STOP_POLL_INTERVAL);
        }
        let mut outage = DatabaseOutage::default();
        let mut state = ScanState::default();
        // Changes announced during an outage were missed.
        let mut is_stale = true;
        let mut reloaded_at = Instant::now();
        let mut checked_at: Option<Instant> = None;
        while !self.stop.load(Ordering::Relaxed) {
            if reloaded_at.elapsed() >= RELOAD_INTERVAL {
                (is_stale, reloaded_at) = (true, Instant::now());
            }
            let mut done = self.read_changes(&mut state, is_stale);
            is_stale = done.is_err();
            if done.is_ok() && checked_at.is_none_or(|at| at.elapsed() >= PERIODIC_INTERVAL) {
                checked_at = Some(Instant::now());
                done = self.periodic_checks();
            }
            let mut there_is_more = false;
            let may_claim = outage.is_over(&done) && self.recording_lag.may_claim(Instant::now());
            if done.is_ok() && may_claim {
                done = self.claim(&mut state).and_then(|more| {
                    there_is_more = more;
                    self.end_deleted(&mut state)
                });
                there_is_more |= !state.deleted.is_empty();
            }
            outage.note(done, may_claim);
            // The sender updates this gauge while it works, but reservations are also dropped after its last update.
            self.metrics.webhook.held.set(self.budget.held() as i64);
            if !there_is_more {
                self.wait();
            }
        }
        self.fleet_schedule.withdraw(&*self.store);
    }

    /// Waits for a change or a wakeup, at most [`POLL`]. The caller then looks at everything, whatever the reason.
    fn wait(&self) {
        let mut ready = Select::new();
        ready.recv(self.feed.webhook_changes());
        ready.recv(&self.wakeup);
        let _ = ready.ready_timeout(POLL);
        let _ = self.wakeup.try_recv();
        thread::sleep(PAUSE);
    }

    /// Reloads the endpoints that have changed, or all of them.
    fn read_changes(&self, state: &mut ScanState, mut is_stale: bool) -> Result<(), StoreError> {
        self.timed(DbOperation::ClaimDeliveries, |store| self.clock.sync(store))?;
        let mut orgs = BTreeSet::new();
        let mut missed = false;
        let mut announced = Vec::new();
        is_stale |= !self.feed.drain_webhooks(|change| match change {
            StoreChange::Endpoints(org) | StoreChange::Organization(org) => {
                orgs.insert(org);
            }
            // The next scan finds it. If the endpoint was deleted, its deliveries are failed, due or not.
            StoreChange::DeliveriesDue(id) => {
                state.due_scan.rescan(id);
                announced.push(id);
            }
            StoreChange::Key(_) | StoreChange::Everything => missed = true,
        });
        if is_stale || missed {
            state.due_scan.reset();
            self.timed(DbOperation::Endpoints, |store| self.endpoints.refresh_all(store))?;
        } else if !orgs.is_empty() {
            // Deliveries that waited may be due now, from any time in the past.
            state.due_scan.reset();
            orgs.into_iter().try_for_each(|org| self.refresh(org))?;
        }
        let is_unknown = |id: &EndpointId| self.endpoints.get(*id).is_none() && !self.endpoints.is_suspended(*id);
        announced.into_iter().filter(is_unknown).try_for_each(|id| self.look_up_endpoint(state, id))
    }

    fn refresh(&self, org: OrgId) -> Result<(), StoreError> {
        self.timed(DbOperation::Endpoints, |store| self.endpoints.refresh(store, org))
    }

    /// Claims what is due, as far as the budget allows. Returns whether there may be more.
    fn claim(&self, state: &mut ScanState) -> Result<bool, StoreError> {
        let mut backlog = self.scan_once(state)?;
        let began = Instant::now();
        while !backlog.is_empty() && began.elapsed() < ROUNDS_TIME && !self.stop.load(Ordering::Relaxed) {
            backlog = self.claim_from(&backlog, &state.due_scan)?;
        }
        Ok(!backlog.is_empty())
    }

    /// Scans for due deliveries and claims once from each endpoint. Returns the endpoints that may have more.
    fn scan_once(&self, state: &mut ScanState) -> Result<Vec<Arc<CachedEndpoint>>, StoreError> {
        let time = self.clock.now();
        let kind = state.due_scan.next(Instant::now(), time);
        let mut cursor = match kind {
            ScanKind::Full => ScanCursor::Full { after: None },
            ScanKind::Incremental => ScanCursor::Incremental { left: self.endpoints.ids() },
            ScanKind::Skip => return Ok(Vec::new()),
        };
        let (mut backlog, mut all_due, mut took) = (Vec::new(), Vec::new(), Duration::ZERO);
        loop {
            let began = Instant::now();
            let page = self.next_due(&mut cursor, time, &state.due_scan)?;
            took += began.elapsed();
            let Some(due) = page else { break };
            let mut known = Vec::with_capacity(due.len());
            for due in &due {
                match self.endpoints.get(due.id) {
                    Some(endpoint) => known.push(endpoint),
                    // Left for a server that can send it, or until it can be sent.
                    None if self.endpoints.is_suspended(due.id) => {}
                    None => self.look_up_endpoint(state, due.id)?,
                }
            }
            all_due.extend(due);
            backlog.extend(self.claim_from(&known, &state.due_scan)?);
            if self.stop.load(Ordering::Relaxed) {
                return Ok(Vec::new());
            }
        }
        state.due_scan.finished(kind, Instant::now(), time, took, &all_due);
        Ok(backlog)
    }

    /// The next page of endpoints with something due; `None` after the last.
    fn next_due(
        &self,
        cursor: &mut ScanCursor,
        time: Timestamp,
        due_scan: &DueScan,
    ) -> Result<Option<Vec<DueEndpoint>>, StoreError> {
        match cursor {
            ScanCursor::Full { after } => {
                let due = self.timed(DbOperation::ClaimDeliveries, |store| {
                    store.due_endpoints(time, *after, limits::DUE_ENDPOINTS_PAGE)
                })?;
                match due.last().filter(|_| due.len() >= limits::DUE_ENDPOINTS_PAGE as usize) {
                    Some(last) => *after = Some(last.id),
                    None => *cursor = ScanCursor::Incremental { left: Vec::new() },
                }
                Ok(Some(due))
            }
            ScanCursor::Incremental { left } if left.is_empty() => Ok(None),
            ScanCursor::Incremental { left } => {
                let some = left.split_off(left.len().saturating_sub(DUE_SINCE_PAGE));
                let some: Vec<(EndpointId, Timestamp)> =
                    some.into_iter().map(|id| (id, due_scan.scan_from(id))).collect();
                self.timed(DbOperation::ClaimDeliveries, |store| store.due_since(time, &some)).map(Some)
            }
        }
    }

    /// Claims once from each endpoint. Returns those that may have more.
    fn claim_from(
        &self,
        endpoints: &[Arc<CachedEndpoint>],
        due_scan: &DueScan,
    ) -> Result<Vec<Arc<CachedEndpoint>>, StoreError> {
        let mut rest = Vec::new();
        for some in endpoints.chunks(limits::CLAIM_ENDPOINTS_MAX) {
            rest.extend(self.claim_chunk(some, due_scan)?);
        }
        Ok(rest)
    }

    /// As [`Self::claim_from`], for at most [`limits::CLAIM_ENDPOINTS_MAX`] endpoints.
    fn claim_chunk(
        &self,
        endpoints: &[Arc<CachedEndpoint>],
        due_scan: &DueScan,
    ) -> Result<Vec<Arc<CachedEndpoint>>, StoreError> {
        let now = Instant::now();
        let each = limits::CLAIM_DELIVERIES_MAX as usize / endpoints.len();
        let mut reservations: HashMap<EndpointId, (Arc<CachedEndpoint>, Vec<Reservation>)> = HashMap::new();
        for endpoint in endpoints {
            let reserve = || self.budget.reserve(&endpoint.usage, 0, now);
            let reserved: Vec<Reservation> = std::iter::from_fn(reserve).take(each).collect();
            // An endpoint at its own limit is looked at again when some of its deliveries were sent.
            if reserved.len() < each && !self.budget.is_at_own_limit(&endpoint.usage, now) {
                self.budget.request_wakeup();
            }
            if !reserved.is_empty() {
                reservations.insert(endpoint.id, (Arc::clone(endpoint), reserved));
            }
        }
        let want = |(id, (_, reservations)): (&EndpointId, &(_, Vec<Reservation>))| {
            let (endpoint, most) = (*id, reservations.len() as u32);
            Wanted { endpoint, most, from: due_scan.scan_from(endpoint) }
        };
        let wanted: Vec<Wanted> = reservations.iter().map(want).collect();
        let claim: ClaimInProgress = self.leases.begin_claim();
        let (Claims { ready, orphans }, lease) = self.claim_wanted(&wanted)?;
        let mut deliveries = Vec::with_capacity(ready.len());
        for claimed in &ready {
            let (endpoint, reserved) =
                reservations.get_mut(&claimed.endpoint).expect("only what was wanted is claimed");
            let reservation = reserved.pop().expect("no more is claimed than was wanted");
            // `None`: it is in memory already and that copy got the new lease, or its result was recorded meanwhile.
            if let Some(guard) = claim.acquire(claimed.delivery, lease) {
                deliveries.push(outgoing_delivery(claimed, endpoint, guard, reservation));
            }
        }
        drop(claim);
        if !deliveries.is_empty() {
            // The sender ends after this thread. If it is gone, the leases expire.
            let _ = self.sender.send(deliveries);
        }
        self.fail(&orphans, "event_gone")?;
        // An endpoint whose reservations were all used may have more.
        Ok(reservations.into_values().filter(|(_, left)| left.is_empty()).map(|(endpoint, _)| endpoint).collect())
    }

    /// Something is due for an endpoint that is not in the cache: it was deleted, or has just been created or enabled.
    fn look_up_endpoint(&self, state: &mut ScanState, id: EndpointId) -> Result<(), StoreError> {
        if state.deleted.contains_key(&id) {
            return Ok(());
        }
        if let Some(org) = self.timed(DbOperation::Endpoints, |store| store.org_of_endpoint(id))? {
            return self.refresh(org);
        }
        state.deleted.insert(id, Timestamp::MIN);
        Ok(())
    }

    /// Fails some deliveries of deleted endpoints, continuing for each endpoint where the last step ended.
    fn end_deleted(&self, state: &mut ScanState) -> Result<(), StoreError> {
        let began = Instant::now();
        while began.elapsed() < ROUNDS_TIME && !self.stop.load(Ordering::Relaxed) {
            let Some(mut first) = state.deleted.first_entry() else { break };
            let (id, from, at) = (*first.key(), *first.get(), self.clock.shown());
            match self.timed(DbOperation::RecordAttempts, |store| store.end_deleted(id, from, at))?.next {
                Some(next) => *first.get_mut() = next,
                None => drop(first.remove()),
            }
        }
        Ok(())
    }

    fn claim_wanted(&self, wanted: &[Wanted]) -> Result<(Claims, Lease), StoreError> {
        let (now, lease) = (self.clock.now(), Lease::begin(&self.clock, self.lease_duration));
        if wanted.is_empty() {
            return Ok((Claims::default(), lease));
        }
        let claimed = self.timed(DbOperation::ClaimDeliveries, |store| store.claim(now, lease.until, wanted))?;
        Ok((claimed, lease))
    }

    fn periodic_checks(&self) -> Result<(), StoreError> {
        self.timed(DbOperation::ClaimDeliveries, |store| self.fleet_schedule.sync(store))?;
        self.recall_stranded()?;
        self.count_pending()
    }

    /// Makes deliveries due now that are scheduled further ahead than any pause or lease can be.
    fn recall_stranded(&self) -> Result<(), StoreError> {
        let now = self.clock.now();
        let latest = now.plus(self.fleet_schedule.pause_max().max(self.lease_duration) + STRANDED_MARGIN);
        let recalled = self.timed(DbOperation::ClaimDeliveries, |store| store.recall_stranded(now, latest))?;
        if recalled > 0 {
            tracing::warn!(
                deliveries = recalled,
                "webhook deliveries were due further ahead than any retry pause, because a clock was wrong; they are due now"
            );
        }
        Ok(())
    }

    /// Fails deliveries that can no longer be sent.
    fn fail(&self, deliveries: &[Orphan], why: &str) -> Result<(), StoreError> {
        if deliveries.is_empty() {
            return Ok(());
        }
        let at = self.clock.shown();
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
        self.timed(DbOperation::RecordAttempts, |store| store.record(&results)).map(drop)
    }

    fn count_pending(&self) -> Result<(), StoreError> {
        let pending = self.timed(DbOperation::CountDeliveries, WebhookStore::pending_stats)?;
        self.metrics.webhook.set_pending(pending.count, pending.oldest);
        self.metrics.webhook.unusable_endpoints.set(self.endpoints.unusable_count() as i64);
        Ok(())
    }

    fn timed<T>(&self, operation: DbOperation, question: impl FnOnce(&dyn Store) -> T) -> T {
        self.metrics.store.timed(operation, || question(&*self.store))
    }
}

fn outgoing_delivery(
    claimed: &Claimed,
    endpoint: &CachedEndpoint,
    guard: LeaseGuard,
    mut reservation: Reservation,
) -> OutgoingDelivery {
    let body = body(&claimed.event_type, claimed.received_at, claimed.payload.as_bytes());
    reservation.add_bytes(body.len());
    OutgoingDelivery {
        guard,
        event: claimed.event,
        endpoint: claimed.endpoint,
        rate_limit_per_second: endpoint.rate_limit_per_second,
        body,
        received_at: claimed.received_at,
        attempts_made: claimed.attempts_made,
        schedule_step: claimed.schedule_step,
        reservation,
    }
}

/// What to scan next.
#[derive(Default)]
struct ScanState {
    due_scan: DueScan,
    /// Deleted endpoints with pending deliveries, and the due time at which the next step continues.
    deleted: BTreeMap<EndpointId, Timestamp>,
}

/// How far a scan has come.
enum ScanCursor {
    Full { after: Option<EndpointId> },
    Incremental { left: Vec<EndpointId> },
}

/// Tracks a database outage: one log line when it begins and one when it is over.
#[derive(Default)]
struct DatabaseOutage {
    since: Option<Instant>,
    /// Since when the database answers again.
    answers_since: Option<Instant>,
}

impl DatabaseOutage {
    /// Whether the database answers, and has answered for [`SETTLE`] after an outage.
    fn is_over(&mut self, result: &Result<(), StoreError>) -> bool {
        if result.is_err() || self.since.is_none() {
            return result.is_ok();
        }
        self.answers_since.get_or_insert_with(Instant::now).elapsed() >= SETTLE
    }

    /// Notes the result of one pass; `has_claimed` says whether it included claiming.
    fn note(&mut self, done: Result<(), StoreError>, has_claimed: bool) {
        match done {
            Ok(()) if has_claimed => {
                self.answers_since = None;
                if let Some(since) = self.since.take() {
                    let seconds = since.elapsed().as_secs_f32();
                    tracing::info!(seconds, "due webhook deliveries are claimed again");
                }
            }
            Ok(()) => {}
            Err(error) => {
                self.answers_since = None;
                if self.since.is_none() {
                    self.since = Some(Instant::now());
                    tracing::warn!(%error, "due webhook deliveries cannot be claimed; retrying");
                }
            }
        }
    }
}
