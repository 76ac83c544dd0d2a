//! The threads of the control room, and who is next.
//!
//! Shards submit without blocking and await the answer. One thread lines the jobs up by organisation ([`super::fair_queue`]) and
//! hands them to a few that may block on the store (each call of it ends, see [`millrace_store`]). The routes of keys have
//! lines of their own, go first, and one thread does nothing else: a leaked key is revoked whatever its organisation, or any
//! other, has under way.
//!
//! What can go wrong has an answer: the organisation has its share of the jobs waiting, 429; all are taken, or the job
//! waited too long, 503; a handler panics, 500 and the thread goes on; the client went away while its job waited, the job
//! is dropped undone. A job that has begun is finished, whoever still listens.

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

use super::admission::{Admission, ReplyHold, Seat};
use super::failure_log::{Complaints, Trouble};
use super::metrics_page::MetricsPage;
use super::fair_queue::Turns;
use super::{Desk, Job, Line, OwnChanges, Reply};

/// A job on its way to a thread.
struct Waiting {
    job: Job,
    seat: Seat,
    since: Instant,
    answer: oneshot::Sender<Result<Reply, Problem>>,
}

/// A job whose turn it is, and who must be told that it has ended.
struct Task {
    org: OrgId,
    line: Line,
    waiting: Waiting,
}

/// That a thread has ended its task.
struct Done {
    org: OrgId,
    line: Line,
    took: Duration,
    kind: Kind,
}

/// What a thread does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Everything, the routes of keys first.
    Any,
    /// The routes of keys.
    Keys,
}

/// The way into the control room, shared by all shards. When the last holder drops it, the threads finish what is
/// queued and end.
pub struct ControlPool {
    jobs: Sender<Waiting>,
    admission: Admission,
    metrics_page: MetricsPage,
    own_changes: OwnChanges,
}

impl ControlPool {
    /// Starts `workers` threads behind a queue of `queue_max` jobs, and those of keys behind as many; new keys are hashed
    /// at `argon2` cost, endpoints are managed with `management`.
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
        // Whoever has a seat finds room here.
        let (jobs, submitted) = bounded(Line::ALL.len() * queue_max);
        let (done, ended) = bounded(workers + CONTROL_KEY_WORKERS);
        let own_changes = OwnChanges::default();
        let (own, complaints) = (own_changes.clone(), Complaints::default());
        let desk = Arc::new(Desk { store, metrics, argon2, management, own_changes: own, complaints });
        let start = |kind: Kind, number: usize| {
            let (tasks, handed) = bounded(number);
            for worker in 0..number {
                let (desk, handed, done) = (Arc::clone(&desk), handed.clone(), done.clone());
                let name = match kind {
                    Kind::Any => format!("control-{worker}"),
                    Kind::Keys => format!("control-keys-{worker}"),
                };
                thread::Builder::new().name(name).spawn(move || work(&desk, kind, &handed, &done))?;
            }
            Ok::<_, io::Error>(Workers { tasks, idle: number })
        };
        let mut dispatcher = Dispatcher {
            lines: Line::ALL.map(|_| Turns::default()),
            any: start(Kind::Any, workers)?,
            keys: start(Kind::Keys, CONTROL_KEY_WORKERS)?,
        };
        critical_thread::spawn("control-turns", move || dispatcher.run(submitted, &ended))?;
        Ok(Self { jobs, admission, metrics_page, own_changes })
    }

    /// Queues a job; never blocks. Dropping the receiver before a thread takes the job cancels it.
    ///
    /// # Errors
    /// [`Problem::TooManyWaiting`] where the organisation's share of the queue is used up, [`Problem::ControlBusy`] where
    /// all of it is. The same can come through the receiver, with every other answer.
    pub fn submit(&self, job: Job) -> Result<oneshot::Receiver<Result<Reply, Problem>>, Problem> {
        let seat = self.admission.seat(job.caller.org, job.request.line())?;
        let (answer, answered) = oneshot::channel();
        let waiting = Waiting { job, seat, since: Instant::now(), answer };
        self.jobs.try_send(waiting).map_err(|_| Problem::ControlBusy)?;
        Ok(answered)
    }

    /// What its handlers change, for whoever hears of all changes.
    pub fn own_changes(&self) -> OwnChanges {
        self.own_changes.clone()
    }

    /// Asks for the metrics' text ([`millrace_metrics::CONTENT_TYPE`]), which is for nobody's account; never blocks.
    ///
    /// # Errors
    /// [`Problem::ControlBusy`] where too many wait for it.
    pub fn metrics_page(&self) -> Result<oneshot::Receiver<Arc<[u8]>>, Problem> {
        self.metrics_page.ask()
    }
}

/// Threads of one kind.
struct Workers {
    tasks: Sender<Task>,
    idle: usize,
}

/// Lines jobs up and hands them out; on a thread of its own, so that nothing here is shared.
struct Dispatcher {
    lines: [Turns<Waiting>; Line::ALL.len()],
    any: Workers,
    keys: Workers,
}

impl Dispatcher {
    /// Until nobody can submit any more and everything is done.
    fn run(&mut self, mut submitted: Receiver<Waiting>, ended: &Receiver<Done>) {
        let mut is_open = true;
        loop {
            self.hand_out();
            if !is_open && self.lines.iter().all(Turns::is_idle) {
                return;
            }
            select! {
                recv(submitted) -> waiting => {
                    if let Ok(waiting) = waiting {
                        self.line_up(waiting);
                    } else {
                        (submitted, is_open) = (never(), false);
                    }
                }
                recv(ended) -> done => self.note(done.expect("a thread ends when this one has")),
            }
        }
    }

    fn line_up(&mut self, waiting: Waiting) {
        let line = waiting.job.request.line();
        self.lines[line as usize].push(waiting.job.caller.org, waiting);
    }

    fn note(&mut self, Done { org, line, took, kind }: Done) {
        self.lines[line as usize].done(org, took);
        match kind {
            Kind::Any => self.any.idle += 1,
            Kind::Keys => self.keys.idle += 1,
        }
    }

    /// Gives each thread that has nothing to do the job whose turn it is.
    fn hand_out(&mut self) {
        while self.keys.idle > 0
            && let Some(task) = self.next(Line::Keys)
        {
            self.keys.hand(task);
        }
        while self.any.idle > 0
            && let Some(task) = self.next(Line::Keys).or_else(|| self.next(Line::Others))
        {
            self.any.hand(task);
        }
    }

    /// The next that is still worth doing. What is not costs its organisation no time.
    fn next(&mut self, line: Line) -> Option<Task> {
        let turns = &mut self.lines[line as usize];
        loop {
            let (org, waiting) = turns.take()?;
            if waiting.answer.is_canceled() {
                turns.done(org, Duration::ZERO);
            } else if waiting.since.elapsed() > CONTROL_QUEUE_WAIT_MAX {
                // The client may have gone meanwhile; then nobody is left to tell.
                let _ = waiting.answer.send(Err(Problem::ControlBusy));
                turns.done(org, Duration::ZERO);
            } else {
                return Some(Task { org, line, waiting });
            }
        }
    }
}

impl Workers {
    fn hand(&mut self, task: Task) {
        self.idle -= 1;
        // As much room as threads, which live as long as this sender.
        self.tasks.send(task).expect("a thread waits for it");
    }
}

fn work(desk: &Desk, kind: Kind, tasks: &Receiver<Task>, done: &Sender<Done>) {
    for Task { org, line, waiting } in tasks {
        let begun = Instant::now();
        serve(desk, waiting);
        if done.send(Done { org, line, took: begun.elapsed(), kind }).is_err() {
            return;
        }
    }
}

fn serve(desk: &Desk, Waiting { job, seat, answer, .. }: Waiting) {
    let result = reply(desk, &seat, job);
    drop(seat);
    // The client may have gone meanwhile; then nobody is left to tell.
    let _ = answer.send(result);
}

/// Answers one job. What a panic leaves behind is the store's, which keeps its own state behind locks and pools that
/// outlive a caller's unwinding; nothing else is shared.
fn reply(desk: &Desk, seat: &Seat, job: Job) -> Result<Reply, Problem> {
    let only_reads = job.request.only_reads();
    let answer = catch_unwind(AssertUnwindSafe(|| desk.answer(job)));
    let ((status, body), location) = answer.unwrap_or_else(|panic| {
        let words =
            panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
        desk.complaints.log(Trouble::Panic, &words.unwrap_or("panicked"));
        Err(Problem::Internal)
    })?;
    // What has changed something must be told, and is small; what only read can be asked again.
    let hold = match seat.hold(body.capacity()) {
        Ok(hold) => hold,
        Err(full) if only_reads => return Err(full),
        Err(_) => ReplyHold::nothing(),
    };
    Ok(Reply { status, body, location, hold })
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use millrace_base::key::KeyId;

    use super::*;
    use crate::{Caller, Request};

    #[test]
    fn a_job_that_waited_too_long_is_refused_and_handed_to_nobody() {
        let caller =
            Caller { org: OrgId(Uuid::nil()), key: KeyId::parse("ourOwnKey000").unwrap(), from: [127, 0, 0, 1].into() };
        let seat = Admission::new(2, 0).seat(caller.org, Line::Others).unwrap();
        let since = Instant::now().checked_sub(CONTROL_QUEUE_WAIT_MAX + Duration::from_millis(1)).unwrap();
        let (answer, mut answered) = oneshot::channel();
        let workers = || Workers { tasks: bounded(1).0, idle: 1 };
        let lines = Line::ALL.map(|_| Turns::default());
        let mut dispatcher = Dispatcher { lines, any: workers(), keys: workers() };
        let request = Request::ListEvents(String::new());
        dispatcher.line_up(Waiting { job: Job { caller, request }, seat, since, answer });
        dispatcher.hand_out();
        assert_eq!(answered.try_recv().unwrap().unwrap().unwrap_err(), Problem::ControlBusy);
        assert!(dispatcher.lines.iter().all(Turns::is_idle) && dispatcher.any.idle == 1);
    }
}
