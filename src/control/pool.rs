//! The threads of the control room and the bounded queue before them.
//!
//! Shards submit without blocking and await the answer; a few threads take jobs in order and may block on the store
//! (each call of it ends, see [`crate::store`]). What can go wrong has an answer: the queue or the organisation's half
//! of it is full, or the job waited too long, 503; a handler panics, 500 and the thread goes on; the client went away
//! while its job waited, the job is dropped undone. A job that has begun is finished, whoever still listens.
//!
//! First come, first served: an organisation's share bounds how many of its jobs can stand before another's.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded};
use futures_channel::oneshot;

use crate::deliver::management::Management;
use crate::key::Argon2Cost;
use crate::limits::{CONTROL_QUEUE_WAIT_MAX, CONTROL_REPLY_BYTES_MAX};
use crate::metrics::Metrics;
use crate::problem::Problem;
use crate::store::Store;

use super::admission::{Admission, ReplyHold, Seat};
use super::complaint::{Complaints, Trouble};
use super::{Desk, Job, Reply};

/// A job on its way to a thread.
struct Waiting {
    job: Job,
    seat: Seat,
    since: Instant,
    answer: oneshot::Sender<Result<Reply, Problem>>,
}

/// The way into the control room, shared by all shards. When the last holder drops it, the threads finish what is
/// queued and end.
pub struct ControlPool {
    queue: Sender<Waiting>,
    admission: Admission,
}

impl ControlPool {
    /// Starts `workers` threads behind a queue of `queue_max` jobs; new keys are hashed at `argon2` cost, endpoints
    /// are managed with `management`.
    ///
    /// # Errors
    /// Where the operating system gives no thread.
    pub fn start(
        store: Arc<dyn Store>,
        metrics: Arc<Metrics>,
        argon2: Argon2Cost,
        management: Arc<Management>,
        workers: usize,
        queue_max: usize,
    ) -> io::Result<Self> {
        let (queue, jobs) = bounded(queue_max);
        let desk = Arc::new(Desk { store, metrics, argon2, management, complaints: Complaints::default() });
        for worker in 0..workers {
            let (desk, jobs) = (Arc::clone(&desk), jobs.clone());
            thread::Builder::new().name(format!("control-{worker}")).spawn(move || work(&desk, &jobs))?;
        }
        Ok(Self { queue, admission: Admission::new(queue_max, CONTROL_REPLY_BYTES_MAX) })
    }

    /// Queues a job; never blocks. Dropping the receiver before a thread takes the job cancels it.
    ///
    /// # Errors
    /// [`Problem::StoreUnavailable`] where the queue, or the organisation's half of it, is full. The same can come
    /// through the receiver, with every other answer.
    pub fn submit(&self, job: Job) -> Result<oneshot::Receiver<Result<Reply, Problem>>, Problem> {
        let seat = self.admission.seat(job.caller.org).ok_or(Problem::StoreUnavailable)?;
        let (answer, answered) = oneshot::channel();
        let waiting = Waiting { job, seat, since: Instant::now(), answer };
        self.queue.try_send(waiting).map_err(|_full| Problem::StoreUnavailable)?;
        Ok(answered)
    }
}

fn work(desk: &Desk, jobs: &Receiver<Waiting>) {
    for waiting in jobs {
        serve(desk, waiting);
    }
}

fn serve(desk: &Desk, Waiting { job, seat, since, answer }: Waiting) {
    if answer.is_canceled() {
        return;
    }
    let result =
        if since.elapsed() > CONTROL_QUEUE_WAIT_MAX { Err(Problem::StoreUnavailable) } else { reply(desk, &seat, job) };
    drop(seat);
    // The client may have gone meanwhile; then nobody is left to tell.
    let _ = answer.send(result);
}

/// Answers one job. What a panic leaves behind is the store's, which keeps its own state behind locks and pools that
/// outlive a caller's unwinding; nothing else is shared.
fn reply(desk: &Desk, seat: &Seat, job: Job) -> Result<Reply, Problem> {
    let only_reads = job.request.only_reads();
    let answer = catch_unwind(AssertUnwindSafe(|| desk.answer(job)));
    let (status, body) = answer.unwrap_or_else(|panic| {
        let words =
            panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
        desk.complaints.log(Trouble::Panic, &words.unwrap_or("panicked"));
        Err(Problem::Internal)
    })?;
    // What has changed something must be told, and is small; what only read can be asked again.
    let hold = match seat.hold(body.capacity()) {
        Some(hold) => hold,
        None if only_reads => return Err(Problem::StoreUnavailable),
        None => ReplyHold::nothing(),
    };
    Ok(Reply { status, body, hold })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use uuid::Uuid;

    use super::*;
    use crate::control::fake_store::{FakeStore, management};
    use crate::control::{Caller, Request};
    use crate::event::OrgId;
    use crate::key::KeyId;

    #[test]
    fn a_job_that_waited_too_long_is_refused_without_asking_the_store() {
        let desk = Desk {
            store: Arc::new(FakeStore::with_hook(|| unreachable!("the store is not asked"))),
            metrics: Metrics::new(0),
            argon2: Argon2Cost { memory_kib: 8, iterations: 1 },
            management: management(),
            complaints: Complaints::default(),
        };
        let caller = Caller { org: OrgId(Uuid::nil()), key: KeyId::parse("ourOwnKey000").unwrap() };
        let seat = Admission::new(2, 0).seat(caller.org).unwrap();
        let since = Instant::now().checked_sub(CONTROL_QUEUE_WAIT_MAX + Duration::from_millis(1)).unwrap();
        let (answer, mut answered) = oneshot::channel();
        serve(&desk, Waiting { job: Job { caller, request: Request::ListKeys }, seat, since, answer });
        assert_eq!(answered.try_recv().unwrap().unwrap().unwrap_err(), Problem::StoreUnavailable);
    }
}
