//! The shards' part of the journal without shards: an appender for each lane, whose tasks the calling thread polls.

use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use millrace_base::event::{Event, EventId};
use millrace_journal::queue::Queue;
use millrace_journal::{AckToken, AppendError, Appender, ClosedReason, Journal};

/// Something hangs where nothing happens for so long.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// See the module.
pub struct Lanes {
    appenders: Vec<Rc<Appender>>,
    tasks: Vec<Pin<Box<dyn Future<Output = ()>>>>,
    waker: Waker,
    /// Appended, and nobody was told yet what became of it.
    waiting: Vec<(EventId, Rc<AckToken>)>,
}

impl Lanes {
    /// Of the first `shards` lanes.
    pub fn new(journal: &Journal, shards: usize, queue: &Queue, may_spill: bool) -> Self {
        let appender = |shard| Rc::new(Appender::new(journal.lane(shard), queue.clone(), may_spill));
        let appenders: Vec<_> = (0..shards).map(appender).collect();
        let task = |appender: &Rc<Appender>| {
            let appender = Rc::clone(appender);
            Box::pin(async move { appender.run(|_| ()).await }) as Pin<Box<dyn Future<Output = ()>>>
        };
        let tasks = appenders.iter().map(task).collect();
        Self { appenders, tasks, waker: Waker::from(Arc::new(Unpark(thread::current()))), waiting: Vec::new() }
    }

    /// Appends an event to the lane of `shard`.
    pub fn accept(&mut self, shard: usize, event: Event) -> Result<(), ClosedReason> {
        let (id, token) = (event.id, Rc::new(AckToken::default()));
        self.appenders[shard].accept(event, &token)?;
        self.waiting.push((id, token));
        Ok(())
    }

    /// Has the lanes' threads see what is appended; does not wait for them.
    pub fn tend(&mut self) {
        for task in &mut self.tasks {
            let _ = task.as_mut().poll(&mut Context::from_waker(&self.waker));
        }
    }

    /// Waits until everything appended is settled. `told` hears of each: `None` is a promise.
    ///
    /// # Errors
    /// How many never are.
    pub fn settle(&mut self, mut told: impl FnMut(EventId, Option<AppendError>)) -> Result<(), usize> {
        let begun = Instant::now();
        loop {
            self.tend();
            let mut context = Context::from_waker(&self.waker);
            self.waiting.retain(|(id, token)| {
                if pin!(token.settled()).as_mut().poll(&mut context).is_pending() {
                    return true;
                }
                told(*id, token.clear().first().map(|(_, trouble)| *trouble));
                false
            });
            if self.waiting.is_empty() {
                return Ok(());
            }
            if begun.elapsed() > PATIENCE {
                return Err(self.waiting.len());
            }
            thread::park_timeout(PATIENCE);
        }
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}
