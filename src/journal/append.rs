//! The shard's end of its lane: appends events, and completes their acknowledgements once they are durable.
//!
//! Runs on the shard, never blocks and takes no lock. An event stays here from its append until it is durable, and only then
//! goes to the writers, so that a refused event is not stored. Bounded: a held event has a slot in the queue, and spilled
//! events stop at [`limits::JOURNAL_BATCH_BYTES_MAX`].

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};

use millrace_base::event::{Event, OrgId};
use millrace_base::limits;

use super::gate::ClosedReason;
use super::lane::{CommitBatch, Completion, Lane, Outcome, advance};
use super::record;
use crate::queue::Queue;

/// Empty batches kept for reuse: at least as many as the thread completes while the shard polls its tasks once. A batch has
/// some tens of KiB; 8 MiB a shard at worst.
const SPARE_GROUPS_MAX: usize = 8;

/// Appends one shard's events to its lane.
#[allow(clippy::vec_box, reason = "a lane carries boxes")]
pub struct Appender {
    lane: Arc<Lane>,
    queue: Queue,
    /// Whether an event without a slot is spilled: accepted into the journal only.
    may_spill: bool,
    pending: RefCell<VecDeque<Pending>>,
    /// Committed batches, to be filled again. A new one would have to grow from nothing.
    spare: RefCell<Vec<Box<CommitBatch>>>,
    /// Whether something was appended since the thread was last woken.
    is_dirty: Cell<bool>,
    task_waker: RefCell<Option<Waker>>,
}

/// A record whose outcome is not known yet. Records settle in the order of the lane.
struct Pending {
    event: Appended,
    token: Rc<AckToken>,
}

/// What remains of an event until its record is settled.
enum Appended {
    /// The event, which has a slot in the queue.
    Queued(Event),
    /// Organisation and weight. The event itself is read back from the journal later.
    Spilled(OrgId, usize),
}

/// Why an appended event gets no 202.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendError {
    /// It is not in the journal and will not be stored.
    Refused(ClosedReason),
    /// A write failed half-way: it may or may not be stored.
    Unknown,
}

/// One connection's events that wait to become durable. The connection sends their responses once all are settled.
#[derive(Default)]
pub struct AckToken {
    appended: Cell<u32>,
    settled: Cell<u32>,
    /// Events that failed, by their position since [`AckToken::clear`], in order.
    errors: RefCell<Vec<(u32, AppendError)>>,
    waker: Cell<Option<Waker>>,
}

impl AckToken {
    /// Waits until everything appended with this token is settled.
    pub async fn settled(&self) {
        poll_fn(|context| {
            if self.settled.get() == self.appended.get() {
                return Poll::Ready(());
            }
            self.waker.set(Some(context.waker().clone()));
            Poll::Pending
        })
        .await;
    }

    /// Starts again from 0. Returns the events that failed, by their position from 0.
    pub fn clear(&self) -> Vec<(u32, AppendError)> {
        debug_assert_eq!(self.settled.get(), self.appended.get());
        self.settled.set(0);
        self.appended.set(0);
        self.errors.take()
    }

    fn settle(&self, error: Option<AppendError>) {
        let position = self.settled.get();
        self.settled.set(position + 1);
        if let Some(error) = error {
            self.errors.borrow_mut().push((position, error));
        }
        if position + 1 == self.appended.get()
            && let Some(waker) = self.waker.take()
        {
            waker.wake();
        }
    }
}

impl Appender {
    /// The shard's end of `lane`. For the shard's thread only.
    pub fn new(lane: Arc<Lane>, queue: Queue, may_spill: bool) -> Self {
        Self {
            lane,
            queue,
            may_spill,
            pending: RefCell::default(),
            spare: RefCell::default(),
            is_dirty: Cell::new(false),
            task_waker: RefCell::default(),
        }
    }

    /// Whether the outcome of every appended event is known.
    pub fn is_settled(&self) -> bool {
        self.pending.borrow().is_empty()
    }

    /// Takes a slot in the queue for `event` and appends it. Without a slot the event is spilled (read back from the journal
    /// for the writers later) or refused. It is refused if its organisation has used up its share of the journal. `token`
    /// learns the outcome.
    ///
    /// # Errors
    /// Why nothing was appended.
    pub fn accept(&self, event: Event, token: &Rc<AckToken>) -> Result<(), ClosedReason> {
        if let Some(why) = self.lane.closed() {
            return Err(why);
        }
        let (org, weight) = (event.org, event.weight());
        if let Some(usage) = self.lane.crowded()
            && !self.queue.is_in_share_of_journal(org, weight, usage)
        {
            return Err(ClosedReason::Full);
        }
        let is_spilled = (self.may_spill && self.queue.is_behind(org)) || self.queue.reserve(&event).is_err();
        if is_spilled && !self.may_spill {
            return Err(ClosedReason::Full);
        }
        let mut batch = self.lane.take_batch().or_else(|| self.spare.borrow_mut().pop()).unwrap_or_default();
        if is_spilled && batch.bytes.len() >= limits::JOURNAL_BATCH_BYTES_MAX {
            self.lane.put_batch(batch);
            return Err(ClosedReason::Full);
        }
        record::frame(&mut batch.bytes, is_spilled, &event);
        batch.records += 1;
        advance(&self.lane.progress.appended, 1);
        self.lane.put_batch(batch);
        token.appended.set(token.appended.get() + 1);
        let event = if is_spilled {
            self.queue.spill(org, weight);
            Appended::Spilled(org, weight)
        } else {
            Appended::Queued(event)
        };
        self.pending.borrow_mut().push_back(Pending { event, token: Rc::clone(token) });
        if !self.is_dirty.replace(true)
            && let Some(task_waker) = &*self.task_waker.borrow()
        {
            task_waker.wake_by_ref();
        }
        Ok(())
    }

    /// The task that settles completions and wakes the thread, for as long as the shard runs. The first append wakes it, and
    /// it runs after the tasks that were ready then, so all their appends cost one wake of the thread. `count_durable` gets
    /// the number of events that became durable.
    pub async fn run(&self, count_durable: impl Fn(u32)) {
        poll_fn(|context| {
            self.lane.shard_waker.register(context.waker());
            self.task_waker.replace(Some(context.waker().clone()));
            while let Some(completion) = self.lane.next_completion() {
                if matches!(completion.outcome, Outcome::Durable(_)) {
                    count_durable(completion.records);
                }
                self.settle(completion);
            }
            if self.is_dirty.take() {
                self.lane.wake_thread();
            }
            Poll::<()>::Pending
        })
        .await;
    }

    fn settle(&self, completion: Completion) {
        let Completion { records, outcome, batch } = completion;
        self.lane.progress.check();
        let mut pending = self.pending.borrow_mut();
        for _ in 0..records {
            let Pending { event, token } = pending.pop_front().expect("a completion is for what was appended");
            match (outcome, event) {
                (Outcome::Durable(segment_ref), Appended::Queued(mut event)) => {
                    event.segment_ref = segment_ref;
                    self.queue.hand_over(event);
                }
                (_, Appended::Queued(event)) => self.queue.give_back(&event),
                (Outcome::Durable(_), Appended::Spilled(..)) => {}
                (_, Appended::Spilled(org, weight)) => self.queue.unspill(org, weight),
            }
            token.settle(match outcome {
                Outcome::Durable(_) => None,
                Outcome::Refused(why) => Some(AppendError::Refused(why)),
                Outcome::Unknown => Some(AppendError::Unknown),
            });
        }
        advance(&self.lane.progress.released, records);
        self.lane.progress.check();
        if let Some(mut batch) = batch {
            batch.reset();
            let mut spare = self.spare.borrow_mut();
            if spare.len() < SPARE_GROUPS_MAX {
                spare.push(batch);
            }
        }
    }
}

#[cfg(test)]
#[path = "append_tests.rs"]
mod tests;
