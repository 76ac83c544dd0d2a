//! WRITERS: threads that take batches off the queue and store them, whatever it takes.
//!
//! A batch leaves a writer's hands in parts: stored ([`bisect`]); refused for their data and quarantined; held beside the
//! writers where they alone cannot be stored ([`held_events`]); left for a permit where they owe deliveries that cannot be stored
//! now ([`delivery_permits`]); or given up at the deadline of a shutdown. While the database is away, or refuses everything
//! ([`refusals`]), each writer keeps its batch and tries again, with backoff and jitter; the queue fills behind it and the
//! shards answer 429.
//!
//! Of two copies of an event in one batch the first goes on; the other is one once the first is stored.
//!
//! Invariant: a slot is released, and the event counted in its journal segment, when the event is committed, to
//! `events` or to `quarantined_events`, and never otherwise. So what the slots count when the writers have ended is
//! exactly what only the journal has; without a journal, what is lost.
//!
//! Runs on the `writer-N`, `holder` and `holder-journal` threads only; may block; knows no HTTP.

pub mod batch_size;
mod bisect;
mod delivery_permits;
pub mod gather;
mod held_events;
mod outage;
mod refusals;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use millrace_base::event::{Event, EventId};
use millrace_base::retry::Backoff;
use millrace_base::{critical_thread, limits};
use millrace_journal::queue::{Accepted, Slots};
use millrace_journal::{Rewriter, SegmentRefs};
use millrace_metrics::{CommittedBatch, DbOperation, HeldReason, Metrics, RetryReason, StoreWay};
use millrace_store::webhooks::StoringStatement;
use millrace_store::{Store, StoreError};
use millrace_webhooks::plan::planner::DeliveryPlanner;

use self::batch_size::Load;
use self::bisect::{Bisection, Unstored};
use self::delivery_permits::{DeliveryPermit, DeliveryPermits};
use self::held_events::{Cause, HeldEvents};
use self::outage::Outage;
use self::refusals::Refusals;
use crate::gather::{Gathered, Gatherer};

/// The running writers.
pub struct Writers {
    threads: Vec<JoinHandle<()>>,
    holder: JoinHandle<()>,
    holder_journal: Option<JoinHandle<()>>,
    shared: Arc<Shared>,
}

struct Shared {
    store: Arc<dyn Store>,
    metrics: Arc<Metrics>,
    gatherer: Gatherer,
    slots: Arc<Slots>,
    /// What the events owe their organisations' endpoints.
    planner: Arc<DeliveryPlanner>,
    /// The journal's, where there is one.
    segment_refs: Option<Arc<SegmentRefs>>,
    outage: Outage,
    refusals: Refusals,
    held_events: Arc<HeldEvents>,
    permits: DeliveryPermits,
    /// Set when a shutdown's grace is over: stop retrying, leave what is left.
    give_up: AtomicBool,
}

/// What came of trying one event by itself.
enum Attempt {
    /// It is in `events` or in `quarantined_events`.
    Settled,
    /// It is not.
    Failed {
        /// Why, as of now.
        cause: Cause,
        /// Whether it may be stored all the same.
        is_unknown: bool,
    },
}

impl Writers {
    /// Starts `count` writers. They run until [`Self::drain`].
    ///
    /// # Errors
    /// Where the operating system refuses a thread.
    pub fn start(
        count: usize,
        store: &Arc<dyn Store>,
        accepted: Accepted,
        segment_refs: Option<Arc<SegmentRefs>>,
        rewriter: Option<Rewriter>,
        planner: Arc<DeliveryPlanner>,
        metrics: &Arc<Metrics>,
    ) -> std::io::Result<Self> {
        let held_events = Arc::new(HeldEvents::new(accepted.slots.events_max()));
        metrics.set_held({
            let held_events = Arc::clone(&held_events);
            move |reason| held_events.count(reason)
        });
        let shared = Arc::new(Shared {
            store: Arc::clone(store),
            metrics: Arc::clone(metrics),
            gatherer: Gatherer::new(accepted.receiver),
            slots: accepted.slots,
            planner,
            segment_refs,
            outage: Outage::default(),
            refusals: Refusals::default(),
            held_events,
            permits: DeliveryPermits::new(count),
            give_up: AtomicBool::new(false),
        });
        let threads = (0..count)
            .map(|n| {
                let shared = Arc::clone(&shared);
                critical_thread::spawn(&format!("writer-{n}"), move || shared.run())
            })
            .collect::<std::io::Result<_>>()?;
        let holder = {
            let shared = Arc::clone(&shared);
            critical_thread::spawn("holder", move || held_events::run(&shared))?
        };
        let holder_journal = rewriter
            .map(|rewriter| {
                let shared = Arc::clone(&shared);
                critical_thread::spawn("holder-journal", move || held_events::free_segments(&shared, &rewriter))
            })
            .transpose()?;
        Ok(Self { threads, holder, holder_journal, shared })
    }

    /// Waits until everything accepted is stored, at most until `deadline`; nothing may be offered any more.
    /// Returns how many events were not stored.
    pub fn drain(self, deadline: Instant) -> usize {
        self.shared.gatherer.close();
        while Instant::now() < deadline && self.threads.iter().any(|thread| !thread.is_finished()) {
            thread::sleep(Duration::from_millis(10));
        }
        self.shared.held_events.end();
        while Instant::now() < deadline && !self.holder.is_finished() {
            thread::sleep(Duration::from_millis(10));
        }
        self.shared.give_up.store(true, Ordering::Relaxed);
        // A writer inside a database call returns within the call's own deadline; the process need not wait.
        let last_call = Instant::now() + Duration::from_millis(500);
        // What the last of them leaves in an old segment is as safe there.
        let all = || self.threads.iter().chain([&self.holder]).chain(&self.holder_journal);
        while Instant::now() < last_call && all().any(|thread| !thread.is_finished()) {
            thread::sleep(Duration::from_millis(10));
        }
        self.shared.slots.events()
    }
}

impl Shared {
    fn run(&self) {
        while !self.is_given_up() {
            if let Some((permit, events)) = self.permits.next(self.gatherer.size().most().events) {
                self.store_batch(events, Instant::now(), Some(permit));
                continue;
            }
            match self.gatherer.gather_unless(|| self.permits.has_next()) {
                Gathered::Batch(batch) => self.store_batch(batch.events, batch.opened_at, None),
                Gathered::Interrupted => {}
                Gathered::Ended if self.permits.waiting() == 0 => return,
                Gathered::Ended => thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    /// Brings a batch to an end: of two copies the first, and the other where that was not stored.
    fn store_batch(&self, mut events: Vec<Event>, opened_at: Instant, mut permit: Option<DeliveryPermit<'_>>) {
        while !events.is_empty() && !self.is_given_up() {
            let copies = take_copies(&mut events);
            let Some(unsettled) = self.store_originals(events, &copies, opened_at, permit.take()) else { return };
            let (rest, done): (Vec<_>, Vec<_>) = copies.into_iter().partition(|copy| unsettled.contains(&copy.id));
            if !done.is_empty() {
                let sent_again = done.iter().filter(|copy| copy.has_derived_id() && !copy.may_be_stored()).count();
                self.metrics.store.copies_skipped(sent_again as u64, (done.len() - sent_again) as u64);
                self.settle(&done);
            }
            events = rest;
        }
    }

    /// Stores events of which none is another's copy. Returns the ids of those that are not stored and whose copies are to
    /// be tried; `None` where time is up.
    fn store_originals(
        &self,
        events: Vec<Event>,
        copies: &[Event],
        opened_at: Instant,
        permit: Option<DeliveryPermit<'_>>,
    ) -> Option<HashSet<EventId>> {
        let owed = self.owed(&events)?;
        let mut unsettled = HashSet::new();
        if !owed.iter().any(|owed| *owed > 0) {
            return self.store_in_parts(events, Vec::new(), opened_at, copies, &mut unsettled).then_some(unsettled);
        }
        let permit = permit.or_else(|| self.permits.take());
        if permit.is_some() && !self.permits.is_troubled() {
            return self.store_in_parts(events, owed, opened_at, copies, &mut unsettled).then_some(unsettled);
        }
        let (owing, others): (Vec<_>, Vec<_>) = events.into_iter().zip(owed).partition(|(_, owed)| *owed > 0);
        let others = others.into_iter().map(|(event, _)| event).collect();
        if !self.store_in_parts(others, Vec::new(), opened_at, copies, &mut unsettled) {
            return None;
        }
        let (owing, owed): (Vec<_>, Vec<_>) = owing.into_iter().unzip();
        if permit.is_none() {
            self.leave(owing, copies, Duration::ZERO);
            return Some(unsettled);
        }
        self.store_in_parts(owing, owed, opened_at, copies, &mut unsettled).then_some(unsettled)
    }

    /// Puts events, and their copies behind them, where they wait for a permit.
    fn leave(&self, events: Vec<Event>, copies: &[Event], pause: Duration) {
        let ids: HashSet<EventId> = events.iter().map(|event| event.id).collect();
        let behind: Vec<Event> = copies.iter().filter(|copy| ids.contains(&copy.id)).cloned().collect();
        self.permits.leave(events.into_iter().chain(behind), pause);
    }

    /// Deliveries of each event, once the endpoints are known; `None` where time is up.
    fn owed(&self, events: &[Event]) -> Option<Vec<u32>> {
        let mut backoff = Backoff::for_store().with_jitter();
        while !self.is_given_up() {
            let began = Instant::now();
            match self.planner.deliveries_per_event(events) {
                Ok(owed) => return Some(owed),
                Err(error) => self.outage.note(&error, began, self.slots.events()),
            }
            self.metrics.store.batch_retried(RetryReason::Unavailable);
            backoff.wait(&self.give_up);
        }
        None
    }

    /// Stores what can be stored and finds a place for the rest; the ids of what is held go to `unsettled`. `false` where
    /// time is up.
    fn store_in_parts(
        &self,
        events: Vec<Event>,
        owed: Vec<u32>,
        opened_at: Instant,
        copies: &[Event],
        unsettled: &mut HashSet<EventId>,
    ) -> bool {
        if events.is_empty() {
            return true;
        }
        let Unstored { suspects, put_off, pause, is_given_up } = Bisection::new(self, events, owed, opened_at).run();
        if !put_off.is_empty() {
            self.leave(put_off, copies, pause);
        }
        for (event, cause, are_others_stored) in suspects {
            let id = event.id;
            unsettled.insert(id);
            self.place(event, cause, are_others_stored);
        }
        !is_given_up
    }

    /// Sets a refused event aside, or gives it to the holder; where there is no room, keeps at it here.
    fn place(&self, mut event: Event, mut cause: Cause, are_others_stored: bool) {
        let pause = match cause.reason {
            HeldReason::Refused if are_others_stored => {
                // It may have been refused before what kept everybody was over.
                if self.settle_one(&mut event, &mut cause) {
                    return;
                }
                limits::STORE_HELD_PAUSE_MIN
            }
            HeldReason::Refused => limits::STORE_REFUSED_GRACE,
            HeldReason::Unexplained | HeldReason::TooMuch => limits::STORE_HELD_PAUSE_MIN,
        };
        let mut backoff = Backoff::for_store().with_jitter();
        while let Err(back) = self.held_events.put(event, &cause, pause) {
            event = back;
            self.held_events.log_full(&cause);
            backoff.wait(&self.give_up);
            if self.is_given_up() {
                return;
            }
            if self.settle_one(&mut event, &mut cause) {
                return;
            }
        }
    }

    /// Tries an event once more by itself. Whether it is settled; if not, the cause is the latest.
    fn settle_one(&self, event: &mut Event, cause: &mut Cause) -> bool {
        match self.try_one(event, cause) {
            Attempt::Settled => {
                self.settle(std::slice::from_ref(event));
                true
            }
            Attempt::Failed { cause: now, is_unknown } => {
                *cause = now;
                if is_unknown {
                    event.note_may_be_stored();
                }
                false
            }
        }
    }

    /// Stores one event by itself, or sets it aside where its data is refused while others are stored.
    fn try_one(&self, event: &Event, before: &Cause) -> Attempt {
        let cause = |reason, code: &str, why: String| Cause { reason, code: code.to_owned(), why };
        let (cause, is_unknown) = match self.store(std::slice::from_ref(event), Instant::now()) {
            Ok(()) => return Attempt::Settled,
            Err(StoreError::RowRefused(refusal)) => {
                let cause = cause(HeldReason::Refused, &refusal.code, refusal.message);
                if !self.refusals.is_everything(&cause.code) && self.quarantine(event, &cause) {
                    return Attempt::Settled;
                }
                (cause, false)
            }
            // The database is away: it says nothing about the event.
            Err(StoreError::Unavailable(_) | StoreError::Rejected(_)) => (before.clone(), true),
            Err(StoreError::Locked(_)) => (before.clone(), false),
            Err(StoreError::TooMuch(why)) => (cause(HeldReason::TooMuch, "too_much", why), true),
            Err(StoreError::Unexplained(refusal)) => {
                (cause(HeldReason::Unexplained, &refusal.code, refusal.message), false)
            }
            Err(StoreError::Misconfigured(why)) => (cause(HeldReason::Unexplained, "misconfigured", why), false),
        };
        Attempt::Failed { cause, is_unknown }
    }

    /// Makes one attempt to store `events` with what they owe, and hands their deliveries to the sender. The caller settles.
    fn store(&self, events: &[Event], opened_at: Instant) -> Result<(), StoreError> {
        let began = Instant::now();
        // Anew for each attempt: leases and places in memory are not held through an outage.
        let plan = self.planner.plan(events)?;
        let load = Load {
            events: events.len(),
            bytes: events.iter().map(Event::weight).sum(),
            deliveries: plan.deliveries.len(),
        };
        let store = || self.store.store_events(events, &plan.deliveries);
        match self.metrics.store.timed(DbOperation::StoreEvents, store) {
            Ok(stored) => {
                self.gatherer.size().stored(load, began.elapsed());
                if stored.new_events > 0 {
                    self.refusals.stored(began);
                }
                if self.outage.stored(began) {
                    self.held_events.retry_all();
                }
                self.metrics.store.stored_by(way(stored.statement));
                self.count(events, stored.new_events, opened_at);
                self.planner.committed(plan, events, &stored.deliveries);
                Ok(())
            }
            Err(error) => {
                if matches!(error, StoreError::TooMuch(_)) {
                    self.gatherer.size().failed(load);
                }
                self.metrics.store.batch_retried(match error {
                    StoreError::RowRefused(_) => RetryReason::RowRefused,
                    StoreError::Misconfigured(_) | StoreError::Rejected(_) => RetryReason::Misconfigured,
                    StoreError::Unavailable(_)
                    | StoreError::TooMuch(_)
                    | StoreError::Locked(_)
                    | StoreError::Unexplained(_) => RetryReason::Unavailable,
                });
                Err(error)
            }
        }
    }

    /// Counts a committed batch of which `stored` rows are new. A copy is what a client sent again: not an id the server
    /// made, and not what the database may have for other reasons.
    fn count(&self, events: &[Event], stored: u64, opened_at: Instant) {
        let found = (events.len() as u64).saturating_sub(stored);
        let copies = if found == 0 {
            0
        } else {
            let suspects = events.iter().filter(|event| event.may_be_stored()).count() as u64;
            let derived = events.iter().filter(|event| event.has_derived_id() && !event.may_be_stored()).count() as u64;
            found.saturating_sub(suspects).min(derived)
        };
        self.metrics.store.batch_committed(CommittedBatch {
            events: events.len(),
            stored,
            copies,
            bytes: events.iter().map(Event::weight).sum(),
            age: opened_at.elapsed(),
        });
    }

    /// The database has `events`.
    fn settle(&self, events: &[Event]) {
        if let Some(segment_refs) = &self.segment_refs {
            segment_refs.commit(events);
        }
        self.slots.release(events, events.iter().map(Event::weight).sum());
    }

    /// Makes one attempt to set `event` aside; whether it is. The caller settles.
    fn quarantine(&self, event: &Event, cause: &Cause) -> bool {
        let kept = self.metrics.store.timed(DbOperation::Quarantine, || self.store.quarantine(event, &cause.why));
        match kept {
            Ok(is_new) => {
                if is_new {
                    self.metrics.store.event_quarantined();
                    self.held_events.log_set_aside(event, &cause.why);
                } else {
                    // By a replay, or an attempt after a lost answer.
                    self.metrics.store.copies_skipped(0, 1);
                }
                true
            }
            // The database is away; that is said elsewhere.
            Err(StoreError::Unavailable(_)) => false,
            Err(error) => {
                self.held_events.log_not_quarantined(event, &error.to_string());
                false
            }
        }
    }

    fn is_given_up(&self) -> bool {
        self.give_up.load(Ordering::Relaxed)
    }
}

/// Takes the events out that have the id of one before them.
fn take_copies(events: &mut Vec<Event>) -> Vec<Event> {
    // Ids the server made come twice only from a journal.
    if !events.iter().any(|event| event.has_derived_id() || event.may_be_stored()) {
        return Vec::new();
    }
    let mut seen = HashSet::with_capacity(events.len());
    if events.iter().all(|event| seen.insert(event.id)) {
        return Vec::new();
    }
    seen.clear();
    let (originals, copies) = std::mem::take(events).into_iter().partition(|event| seen.insert(event.id));
    *events = originals;
    copies
}

/// The label of the metric for a statement.
const fn way(statement: StoringStatement) -> StoreWay {
    match statement {
        StoringStatement::Copy => StoreWay::Copy,
        StoringStatement::Insert => StoreWay::Insert,
        StoringStatement::InsertDerived => StoreWay::InsertDerived,
        StoringStatement::InsertWithDeliveries => StoreWay::InsertWithDeliveries,
        StoringStatement::InsertDerivedWithDeliveries => StoreWay::InsertDerivedWithDeliveries,
    }
}
