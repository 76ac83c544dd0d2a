//! The threads of the control room and the order in which they take jobs.
//!
//! Shards submit jobs without blocking and await the answer. A dispatcher thread queues the jobs by organisation
//! ([`super::fair_queue`]) and assigns them to a few worker threads, which may block on the store (each call of the store
//! ends, see [`millrace_store`]). The routes of keys have queues of their own, go first, and have one worker that does
//! nothing else: so a leaked key can be revoked whatever its organisation or any other has running.
//!
//! Every failure has an answer. The organisation has used its share of the queue: 429. The whole queue is taken, or the job
//! waited too long: 503. A handler panics: 500, and the worker goes on. The client disconnects while its job waits: the job
//! is dropped. A job that has started is finished, whoever still listens.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, never, select};
use futures_channel::oneshot;

use millrace_base::critical_thread;
use millrace_base::event::OrgId;
use millrace_base::key::Argon2Cost;
use millrace_base::limits::{CONTROL_KEY_WORKERS, CONTROL_QUEUE_WAIT_MAX, CONTROL_REPLY_BYTES_MAX};
use millrace_base::problem::Problem;
use millrace_metrics::Metrics;
use millrace_store::Store;
use millrace_webhooks::endpoint::management::EndpointManagement;
use millrace_wire::routes::Effect;

use super::admission::{Admission, QueuePermit, ReplyPermit};
use super::failure_log::{Failure, FailureLog};
use super::fair_queue::FairQueue;
use super::metrics_page::MetricsPage;
use super::{Handlers, Job, JobClass, OwnChanges, Reply};

/// A job that waits for a worker.
struct QueuedJob {
    job: Job,
    permit: QueuePermit,
    queued_at: Instant,
    answer: oneshot::Sender<Result<Reply, Problem>>,
}

/// A job that is assigned to a worker.
struct AssignedJob {
    org: OrgId,
    class: JobClass,
    waiting: QueuedJob,
}

/// Reports that a worker has finished a job.
struct FinishedJob {
    org: OrgId,
    class: JobClass,
    time_taken: Duration,
    kind: WorkerKind,
}

/// Which jobs a worker takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WorkerKind {
    /// All jobs, those of keys first.
    Any,
    /// The jobs of keys alone.
    Keys,
}

/// Takes jobs; shared by all shards. When the last clone is dropped, the threads finish what is queued and end.
pub struct ControlPool {
    jobs: Sender<QueuedJob>,
    admission: Admission,
    metrics_page: MetricsPage,
    own_changes: OwnChanges,
}

impl ControlPool {
    /// Starts `workers` threads behind a queue of `queue_max` jobs, and the worker of keys behind a queue of the same length.
    /// New keys are hashed at `argon2` cost; endpoints are managed with `management`.
    ///
    /// # Errors
    /// Where the operating system gives no thread.
    pub fn start(
        store: Arc<dyn Store>,
        metrics: Arc<Metrics>,
        argon2: Argon2Cost,
        management: Arc<EndpointManagement>,
        workers: usize,
        queue_max: usize,
    ) -> io::Result<Self> {
        let admission = Admission::new(queue_max, CONTROL_REPLY_BYTES_MAX);
        let metrics_page = MetricsPage::start(Arc::clone(&metrics))?;
        // Every job has a permit, so the channel has room for it.
        let (jobs, submitted) = bounded(JobClass::ALL.len() * queue_max);
        let (done, ended) = bounded(workers + CONTROL_KEY_WORKERS);
        let own_changes = OwnChanges::default();
        let (own, failure_log) = (own_changes.clone(), FailureLog::default());
        let handlers = Arc::new(Handlers { store, metrics, argon2, management, own_changes: own, failure_log });
        let start = |kind: WorkerKind, number: usize| {
            let (tasks, handed) = bounded(number);
            for worker in 0..number {
                let (handlers, handed, done) = (Arc::clone(&handlers), handed.clone(), done.clone());
                let name = match kind {
                    WorkerKind::Any => format!("control-{worker}"),
                    WorkerKind::Keys => format!("control-keys-{worker}"),
                };
                thread::Builder::new().name(name).spawn(move || work(&handlers, kind, &handed, &done))?;
            }
            Ok::<_, io::Error>(Workers { tasks, idle: number })
        };
        let mut dispatcher = Dispatcher {
            queues: JobClass::ALL.map(|_| FairQueue::default()),
            any: start(WorkerKind::Any, workers)?,
            keys: start(WorkerKind::Keys, CONTROL_KEY_WORKERS)?,
        };
        critical_thread::spawn("control-queue", move || dispatcher.run(submitted, &ended))?;
        Ok(Self { jobs, admission, metrics_page, own_changes })
    }

    /// Queues a job; never blocks. Dropping the receiver before a worker takes the job cancels it.
    ///
    /// # Errors
    /// [`Problem::TooManyWaiting`] where the organisation's share of the queue is used up, [`Problem::ControlBusy`] where the
    /// whole queue is. Both can also come through the receiver, as every other answer.
    pub fn submit(&self, job: Job) -> Result<oneshot::Receiver<Result<Reply, Problem>>, Problem> {
        let permit = self.admission.queue_permit(job.caller.org, job.request.class())?;
        let (answer, answered) = oneshot::channel();
        let waiting = QueuedJob { job, permit, queued_at: Instant::now(), answer };
        self.jobs.try_send(waiting).map_err(|_| Problem::ControlBusy)?;
        Ok(answered)
    }

    /// The changes that this pool's handlers make, for the thread that hears of all changes.
    pub fn own_changes(&self) -> OwnChanges {
        self.own_changes.clone()
    }

    /// Asks for the metrics' text ([`millrace_metrics::CONTENT_TYPE`]), which counts against no organisation; never blocks.
    ///
    /// # Errors
    /// [`Problem::ControlBusy`] where too many requests wait for it.
    pub fn metrics_page(&self) -> Result<oneshot::Receiver<Arc<[u8]>>, Problem> {
        self.metrics_page.ask()
    }
}

/// The workers of one kind.
struct Workers {
    tasks: Sender<AssignedJob>,
    idle: usize,
}

/// Queues jobs and assigns them to workers. Runs on a thread of its own and shares nothing.
struct Dispatcher {
    queues: [FairQueue<QueuedJob>; JobClass::ALL.len()],
    any: Workers,
    keys: Workers,
}

impl Dispatcher {
    /// Runs until nobody can submit any more and every job is done.
    fn run(&mut self, mut submitted: Receiver<QueuedJob>, ended: &Receiver<FinishedJob>) {
        let mut is_open = true;
        loop {
            self.assign_jobs();
            if !is_open && self.queues.iter().all(FairQueue::is_idle) {
                return;
            }
            select! {
                recv(submitted) -> waiting => {
                    if let Ok(waiting) = waiting {
                        self.enqueue(waiting);
                    } else {
                        (submitted, is_open) = (never(), false);
                    }
                }
                recv(ended) -> done => self.on_finished(done.expect("a thread ends when this one has")),
            }
        }
    }

    fn enqueue(&mut self, waiting: QueuedJob) {
        let class = waiting.job.request.class();
        self.queues[class as usize].push(waiting.job.caller.org, waiting);
    }

    fn on_finished(&mut self, FinishedJob { org, class, time_taken, kind }: FinishedJob) {
        self.queues[class as usize].finish(org, time_taken);
        match kind {
            WorkerKind::Any => self.any.idle += 1,
            WorkerKind::Keys => self.keys.idle += 1,
        }
    }

    /// Assigns the next jobs to the workers that are idle.
    fn assign_jobs(&mut self) {
        while self.keys.idle > 0
            && let Some(task) = self.next(JobClass::Keys)
        {
            self.keys.assign(task);
        }
        while self.any.idle > 0
            && let Some(task) = self.next(JobClass::Keys).or_else(|| self.next(JobClass::Others))
        {
            self.any.assign(task);
        }
    }

    /// The next job that is still wanted. A cancelled or expired one costs its organisation no time.
    fn next(&mut self, class: JobClass) -> Option<AssignedJob> {
        let queue = &mut self.queues[class as usize];
        loop {
            let (org, waiting) = queue.pop()?;
            if waiting.answer.is_canceled() {
                queue.finish(org, Duration::ZERO);
            } else if waiting.queued_at.elapsed() > CONTROL_QUEUE_WAIT_MAX {
                // Fails where the client has disconnected.
                let _ = waiting.answer.send(Err(Problem::ControlBusy));
                queue.finish(org, Duration::ZERO);
            } else {
                return Some(AssignedJob { org, class, waiting });
            }
        }
    }
}

impl Workers {
    fn assign(&mut self, task: AssignedJob) {
        self.idle -= 1;
        // The channel has room for one job per worker, and the workers live as long as this sender.
        self.tasks.send(task).expect("an idle worker waits for it");
    }
}

fn work(handlers: &Handlers, kind: WorkerKind, tasks: &Receiver<AssignedJob>, done: &Sender<FinishedJob>) {
    for AssignedJob { org, class, waiting } in tasks {
        let begun = Instant::now();
        serve(handlers, waiting);
        if done.send(FinishedJob { org, class, time_taken: begun.elapsed(), kind }).is_err() {
            return;
        }
    }
}

fn serve(handlers: &Handlers, QueuedJob { job, permit, answer, .. }: QueuedJob) {
    let result = reply(handlers, &permit, job);
    drop(permit);
    // Fails where the client has disconnected.
    let _ = answer.send(result);
}

/// Answers one job. After a panic only the store could be left inconsistent, and it keeps its state behind locks and pools
/// that survive a caller's unwinding; nothing else is shared.
fn reply(handlers: &Handlers, permit: &QueuePermit, job: Job) -> Result<Reply, Problem> {
    let effect = job.request.route.row().effect;
    let answer = catch_unwind(AssertUnwindSafe(|| handlers.answer(job)));
    let ((status, body), location) = answer.unwrap_or_else(|panic| {
        let words =
            panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
        handlers.failure_log.log(Failure::Panic, &words.unwrap_or("panicked"));
        Err(Problem::Internal)
    })?;
    // The answer to a change must be sent, and is small; a read can be asked again.
    let reply_permit = match permit.reply_permit(body.capacity()) {
        Ok(reply_permit) => reply_permit,
        Err(full) if effect == Effect::Read => return Err(full),
        Err(_) => ReplyPermit::uncounted(),
    };
    Ok(Reply { status, body, location, permit: reply_permit })
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use millrace_base::key::KeyId;
    use millrace_wire::routes::ControlRoute;

    use super::*;
    use crate::Caller;

    #[test]
    fn a_job_that_waited_too_long_is_refused_and_handed_to_nobody() {
        let caller =
            Caller { org: OrgId(Uuid::nil()), key: KeyId::parse("ourOwnKey000").unwrap(), from: [127, 0, 0, 1].into() };
        let permit = Admission::new(2, 0).queue_permit(caller.org, JobClass::Others).unwrap();
        let queued_at = Instant::now().checked_sub(CONTROL_QUEUE_WAIT_MAX + Duration::from_millis(1)).unwrap();
        let (answer, mut answered) = oneshot::channel();
        let workers = || Workers { tasks: bounded(1).0, idle: 1 };
        let queues = JobClass::ALL.map(|_| FairQueue::default());
        let mut dispatcher = Dispatcher { queues, any: workers(), keys: workers() };
        let request = crate::tests::bare(ControlRoute::ListEvents);
        dispatcher.enqueue(QueuedJob { job: Job { caller, request }, permit, queued_at, answer });
        dispatcher.assign_jobs();
        assert_eq!(answered.try_recv().unwrap().unwrap().unwrap_err(), Problem::ControlBusy);
        assert!(dispatcher.queues.iter().all(FairQueue::is_idle) && dispatcher.any.idle == 1);
    }
}
