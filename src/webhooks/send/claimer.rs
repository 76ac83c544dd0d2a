//! CLAIMS: the `deliver-claims` thread. Brings due deliveries from the database into memory, as far as there is room, and
//! keeps the directory current.
//!
//! Most deliveries never pass through here: they are born claimed (see `outbox`). What does: retries whose time has come,
//! what found no room, what a crashed server left, and what a person asked to be sent again. It looks once a second, and
//! at once when a change is announced (`LISTEN` on Postgres) or when room comes free that was missed.
//!
//! Every endpoint is asked for on its own and gets its part of the room, so that a backlog of one never hides another's.
//! A backlog is claimed in rounds of [`ROUNDS_TIME`]: between two of them what changed is read, and what has come due of the
//! others is looked for. What waits for an endpoint that was deleted is failed in such rounds too.
//!
//! Nothing is claimed while results of this server wait to be recorded, nor for [`SETTLE`] after the database was away:
//! leases may have ended meanwhile of what was sent and answered, by this server or another, and whoever knows the answer
//! is to come first.

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
    Attempt, AttemptResult, Claimed, Claims as Claimable, DueEndpoint, Next, Orphan, Wanted, WebhookStore,
};
use millrace_store::{Store, StoreChange, StoreError};
use millrace_tenant::feed::Feed;

use crate::delivery::clock::DeliveryClock;
use crate::delivery::fleet_schedule::Schedules;
use crate::delivery::lease::{Claiming, Hold, Lease, Leases};
use crate::plan::budget::{Reservation, Room};
use crate::plan::endpoint_cache::{Directory, LiveEndpoint};
use crate::plan::outgoing_delivery::{Outgoing, body};
use crate::send::due_scan::{Look, Lookout};
use crate::send::recording_lag::Unrecorded;

/// How often it looks for due deliveries whatever happens.
const POLL: Duration = Duration::from_secs(1);
/// How long it leaves the database alone between two looks.
const PAUSE: Duration = Duration::from_millis(20);
/// How long it claims of endpoints with a backlog before it looks for changes and for what else is due.
const ROUNDS_TIME: Duration = Duration::from_millis(100);
/// How long after the database was away others have time to record what came of their attempts: several times what they
/// wait at most before they try again.
const SETTLE: Duration = Duration::from_secs(3);
/// Endpoints that are asked for in one call, of which it is known where to look.
const DUE_SINCE_PAGE: usize = 1024;
/// How often pending deliveries are counted for the metrics, those looked for that a wrong clock has put out of reach, and
/// schedules of retries compared with other servers'.
const COUNT: Duration = Duration::from_secs(10);
/// How much further ahead than the longest pause a delivery may be due before that is taken for a wrong clock.
const STRANDED_MARGIN: Duration = Duration::from_secs(60);
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
    /// What time it is for deliveries.
    pub clock: Arc<DeliveryClock>,
    /// Which deliveries are in memory.
    pub leases: Arc<Leases>,
    /// How long a lease lasts.
    pub lease: Duration,
    /// Which pauses there are between attempts.
    pub schedules: Arc<Schedules>,
    /// Whether results wait to be recorded.
    pub unrecorded: Arc<Unrecorded>,
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
        let mut looks = Looks::default();
        // What was announced while the database could not be asked is not known.
        let mut is_stale = true;
        let mut reread_at = Instant::now();
        let mut counted_at: Option<Instant> = None;
        while !self.stop.load(Ordering::Relaxed) {
            if reread_at.elapsed() >= REREAD {
                (is_stale, reread_at) = (true, Instant::now());
            }
            let mut done = self.follow(&mut looks, is_stale);
            is_stale = done.is_err();
            if done.is_ok() && counted_at.is_none_or(|at| at.elapsed() >= COUNT) {
                counted_at = Some(Instant::now());
                done = self.look_around();
            }
            let mut there_is_more = false;
            let may_claim = trouble.is_over(&done) && self.unrecorded.may_claim(Instant::now());
            if done.is_ok() && may_claim {
                done = self.claim(&mut looks).and_then(|more| {
                    there_is_more = more;
                    self.end_deleted(&mut looks)
                });
                there_is_more |= !looks.deleted.is_empty();
            }
            trouble.note(done, may_claim);
            // The sender shows it while it works; places are given back behind it.
            self.metrics.webhook.held.set(self.room.held() as i64);
            if !there_is_more {
                self.wait();
            }
        }
        self.schedules.leave(&*self.store);
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
    fn follow(&self, looks: &mut Looks, mut is_stale: bool) -> Result<(), StoreError> {
        self.ask(DbOperation::ClaimDeliveries, |store| self.clock.follow(store))?;
        let mut orgs = BTreeSet::new();
        let mut missed = false;
        let mut announced = Vec::new();
        is_stale |= !self.feed.drain_webhooks(|change| match change {
            StoreChange::Endpoints(org) | StoreChange::Organization(org) => {
                orgs.insert(org);
            }
            // The look that follows finds it. Of an endpoint that is not there any more what waits fails, due or not.
            StoreChange::DeliveriesDue(id) => {
                looks.lookout.forget(id);
                announced.push(id);
            }
            StoreChange::Key(_) | StoreChange::Everything => missed = true,
        });
        if is_stale || missed {
            looks.lookout.forget_all();
            self.ask(DbOperation::Endpoints, |store| self.directory.refresh_all(store))?;
        } else if !orgs.is_empty() {
            // What waited may be due now, since whenever.
            looks.lookout.forget_all();
            orgs.into_iter().try_for_each(|org| self.refresh(org))?;
        }
        let is_unknown = |id: &EndpointId| self.directory.get(*id).is_none() && !self.directory.is_held(*id);
        announced.into_iter().filter(is_unknown).try_for_each(|id| self.look_up(looks, id))
    }

    fn refresh(&self, org: OrgId) -> Result<(), StoreError> {
        self.ask(DbOperation::Endpoints, |store| self.directory.refresh(store, org))
    }

    /// Claims what is due, as far as there is room; whether there may be more.
    fn claim(&self, looks: &mut Looks) -> Result<bool, StoreError> {
        let mut backlog = self.look(looks)?;
        let began = Instant::now();
        while !backlog.is_empty() && began.elapsed() < ROUNDS_TIME && !self.stop.load(Ordering::Relaxed) {
            backlog = self.claim_of(&backlog, &looks.lookout)?;
        }
        Ok(!backlog.is_empty())
    }

    /// Looks for what is due and claims once from each endpoint; returns those of which there may be more.
    fn look(&self, looks: &mut Looks) -> Result<Vec<Arc<LiveEndpoint>>, StoreError> {
        let time = self.clock.now();
        let look = looks.lookout.next(Instant::now(), time);
        let mut asked = match look {
            Look::All => Asked::All { after: None },
            Look::Known => Asked::Known { left: self.directory.ids() },
            Look::Nothing => return Ok(Vec::new()),
        };
        let (mut backlog, mut all_due, mut took) = (Vec::new(), Vec::new(), Duration::ZERO);
        loop {
            let began = Instant::now();
            let page = self.next_due(&mut asked, time, &looks.lookout)?;
            took += began.elapsed();
            let Some(due) = page else { break };
            let mut known = Vec::with_capacity(due.len());
            for due in &due {
                match self.directory.get(due.id) {
                    Some(endpoint) => known.push(endpoint),
                    // Due for a server that can send it, or once it can be sent.
                    None if self.directory.is_held(due.id) => {}
                    None => self.look_up(looks, due.id)?,
                }
            }
            all_due.extend(due);
            backlog.extend(self.claim_of(&known, &looks.lookout)?);
            if self.stop.load(Ordering::Relaxed) {
                return Ok(Vec::new());
            }
        }
        looks.lookout.looked(look, Instant::now(), time, took, &all_due);
        Ok(backlog)
    }

    /// The next page of endpoints with something due; `None` after the last.
    fn next_due(
        &self,
        asked: &mut Asked,
        time: Timestamp,
        lookout: &Lookout,
    ) -> Result<Option<Vec<DueEndpoint>>, StoreError> {
        match asked {
            Asked::All { after } => {
                let due = self.ask(DbOperation::ClaimDeliveries, |store| {
                    store.due_endpoints(time, *after, limits::DUE_ENDPOINTS_PAGE)
                })?;
                match due.last().filter(|_| due.len() >= limits::DUE_ENDPOINTS_PAGE as usize) {
                    Some(last) => *after = Some(last.id),
                    None => *asked = Asked::Known { left: Vec::new() },
                }
                Ok(Some(due))
            }
            Asked::Known { left } if left.is_empty() => Ok(None),
            Asked::Known { left } => {
                let some = left.split_off(left.len().saturating_sub(DUE_SINCE_PAGE));
                let some: Vec<(EndpointId, Timestamp)> = some.into_iter().map(|id| (id, lookout.from(id))).collect();
                self.ask(DbOperation::ClaimDeliveries, |store| store.due_since(time, &some)).map(Some)
            }
        }
    }

    /// Claims once from each; returns those of which there may be more.
    fn claim_of(
        &self,
        endpoints: &[Arc<LiveEndpoint>],
        lookout: &Lookout,
    ) -> Result<Vec<Arc<LiveEndpoint>>, StoreError> {
        let mut rest = Vec::new();
        for some in endpoints.chunks(limits::CLAIM_ENDPOINTS_MAX) {
            rest.extend(self.claim_a_few(some, lookout)?);
        }
        Ok(rest)
    }

    /// Claims once from each; returns those of which there may be more.
    fn claim_a_few(
        &self,
        endpoints: &[Arc<LiveEndpoint>],
        lookout: &Lookout,
    ) -> Result<Vec<Arc<LiveEndpoint>>, StoreError> {
        let now = Instant::now();
        let each = limits::CLAIM_DELIVERIES_MAX as usize / endpoints.len();
        let mut places: HashMap<EndpointId, (Arc<LiveEndpoint>, Vec<Reservation>)> = HashMap::new();
        for endpoint in endpoints {
            let reserve = || self.room.reserve(&endpoint.share, 0, now);
            let reserved: Vec<Reservation> = std::iter::from_fn(reserve).take(each).collect();
            // One that holds all it may is looked at again when it has sent some.
            if reserved.len() < each && !self.room.is_sated(&endpoint.share, now) {
                self.room.want();
            }
            if !reserved.is_empty() {
                places.insert(endpoint.id, (Arc::clone(endpoint), reserved));
            }
        }
        let want = |(id, (_, places)): (&EndpointId, &(_, Vec<Reservation>))| {
            let (endpoint, most) = (*id, places.len() as u32);
            Wanted { endpoint, most, from: lookout.from(endpoint) }
        };
        let wanted: Vec<Wanted> = places.iter().map(want).collect();
        let claiming: Claiming = self.leases.begin_claim();
        let (Claimable { ready, orphans }, lease) = self.claim_wanted(&wanted)?;
        let mut claims = Vec::with_capacity(ready.len());
        for claimed in &ready {
            let (endpoint, reserved) = places.get_mut(&claimed.endpoint).expect("only what was wanted is claimed");
            let reservation = reserved.pop().expect("no more is claimed than was wanted");
            // Where it is in memory already, that copy has the lease now; where it was recorded meanwhile, it is over.
            if let Some(hold) = claiming.hold(claimed.delivery, lease) {
                claims.push(outgoing(claimed, endpoint, hold, reservation));
            }
        }
        drop(claiming);
        if !claims.is_empty() {
            // The sender ends after this thread; if it is gone, the leases run out.
            let _ = self.sender.send(claims);
        }
        self.fail(&orphans, "event_gone")?;
        // Where every place was taken there may be more.
        Ok(places.into_values().filter(|(_, left)| left.is_empty()).map(|(endpoint, _)| endpoint).collect())
    }

    /// Something is due for an endpoint that is not in the directory: it was deleted, or has just been made or enabled.
    fn look_up(&self, looks: &mut Looks, id: EndpointId) -> Result<(), StoreError> {
        if looks.deleted.contains_key(&id) {
            return Ok(());
        }
        if let Some(org) = self.ask(DbOperation::Endpoints, |store| store.org_of_endpoint(id))? {
            return self.refresh(org);
        }
        looks.deleted.insert(id, Timestamp::MIN);
        Ok(())
    }

    /// Fails some of what waits for endpoints that were deleted, each endpoint's from where the last step ended.
    fn end_deleted(&self, looks: &mut Looks) -> Result<(), StoreError> {
        let began = Instant::now();
        while began.elapsed() < ROUNDS_TIME && !self.stop.load(Ordering::Relaxed) {
            let Some(mut first) = looks.deleted.first_entry() else { break };
            let (id, from, at) = (*first.key(), *first.get(), self.clock.shown());
            match self.ask(DbOperation::RecordAttempts, |store| store.end_deleted(id, from, at))?.next {
                Some(next) => *first.get_mut() = next,
                None => drop(first.remove()),
            }
        }
        Ok(())
    }

    fn claim_wanted(&self, wanted: &[Wanted]) -> Result<(Claimable, Lease), StoreError> {
        let (now, lease) = (self.clock.now(), Lease::begin(&self.clock, self.lease));
        if wanted.is_empty() {
            return Ok((Claimable::default(), lease));
        }
        let claimed = self.ask(DbOperation::ClaimDeliveries, |store| store.claim(now, lease.until, wanted))?;
        Ok((claimed, lease))
    }

    fn look_around(&self) -> Result<(), StoreError> {
        self.ask(DbOperation::ClaimDeliveries, |store| self.schedules.follow(store))?;
        self.recall_stranded()?;
        self.count()
    }

    /// Makes due what lies further ahead than any pause or lease can have put it.
    fn recall_stranded(&self) -> Result<(), StoreError> {
        let now = self.clock.now();
        let latest = now.plus(self.schedules.pause_max().max(self.lease) + STRANDED_MARGIN);
        let recalled = self.ask(DbOperation::ClaimDeliveries, |store| store.recall_stranded(now, latest))?;
        if recalled > 0 {
            tracing::warn!(
                deliveries = recalled,
                "webhook deliveries were due further ahead than any pause is long, as a clock that was wrong leaves them; they are due now"
            );
        }
        Ok(())
    }

    /// Deliveries that nothing can be sent of any more.
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
        self.ask(DbOperation::RecordAttempts, |store| store.record(&results)).map(drop)
    }

    fn count(&self) -> Result<(), StoreError> {
        let pending = self.ask(DbOperation::CountDeliveries, WebhookStore::pending_stats)?;
        self.metrics.webhook.set_pending(pending.count, pending.oldest);
        self.metrics.webhook.unusable_endpoints.set(self.directory.unusable() as i64);
        Ok(())
    }

    fn ask<T>(&self, operation: DbOperation, question: impl FnOnce(&dyn Store) -> T) -> T {
        self.metrics.store.timed(operation, || question(&*self.store))
    }
}

fn outgoing(claimed: &Claimed, endpoint: &LiveEndpoint, hold: Hold, mut reservation: Reservation) -> Outgoing {
    let body = body(&claimed.event_type, claimed.received_at, claimed.payload.as_bytes());
    reservation.weigh(body.len());
    Outgoing {
        hold,
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

/// Where to look.
#[derive(Default)]
struct Looks {
    lookout: Lookout,
    /// Endpoints that were deleted while something waited for them, and from which moment on the next step goes.
    deleted: BTreeMap<EndpointId, Timestamp>,
}

/// How far a look has come.
enum Asked {
    All { after: Option<EndpointId> },
    Known { left: Vec<EndpointId> },
}

/// One log line when the database stops answering, and one when it answers again.
#[derive(Default)]
struct Trouble {
    since: Option<Instant>,
    /// Since when it answers again.
    answers_since: Option<Instant>,
}

impl Trouble {
    /// Whether the database answers, and has done so for long enough after it did not.
    fn is_over(&mut self, asked: &Result<(), StoreError>) -> bool {
        if asked.is_err() || self.since.is_none() {
            return asked.is_ok();
        }
        self.answers_since.get_or_insert_with(Instant::now).elapsed() >= SETTLE
    }

    /// Everything was asked that was to be asked; `has_claimed`: what is due, too.
    fn note(&mut self, done: Result<(), StoreError>, has_claimed: bool) {
        match done {
            Ok(()) if has_claimed => {
                self.answers_since = None;
                if let Some(since) = self.since.take() {
                    let seconds = since.elapsed().as_secs_f32();
                    tracing::info!(seconds, "due webhook deliveries are being claimed again");
                }
            }
            Ok(()) => {}
            Err(error) => {
                self.answers_since = None;
                if self.since.is_none() {
                    self.since = Some(Instant::now());
                    tracing::warn!(%error, "due webhook deliveries cannot be claimed; trying again");
                }
            }
        }
    }
}
