//! Stops the server front to back: no new connections, requests in flight answered, the journal committed, the queue drained,
//! webhook attempts in flight recorded. All of it has one deadline; a second signal ends the process at once.
//!
//! Runs on the main thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1, SIGUSR2, SIGXFSZ};
use signal_hook::iterator::Signals as SignalIterator;

use millrace_base::health::Stage;
use millrace_base::logging;
use millrace_journal::{Journal, Remaining};
use millrace_webhooks::Webhooks;
use millrace_write::Writers;

/// How long a shard that was told to leave may take, even where the grace is shorter.
const SHARD_EXIT_MAX: Duration = Duration::from_secs(2);

/// SIGTERM and SIGINT, caught before the first thread starts.
pub struct Signals(SignalIterator);

impl Signals {
    /// Catches the two signals, whose default ends the process. Ignores three others that would end it as well: SIGUSR1 and
    /// SIGUSR2, which somebody may send to the wrong process, and SIGXFSZ, which comes with a write past the limit on the
    /// length of files; that write then fails.
    ///
    /// # Errors
    /// Where the operating system refuses.
    pub fn install() -> std::io::Result<Self> {
        for signal in [SIGUSR1, SIGUSR2, SIGXFSZ] {
            signal_hook::flag::register(signal, Arc::default())?;
        }
        SignalIterator::new([SIGTERM, SIGINT]).map(Self)
    }
}

/// What has to be stopped.
pub struct Running {
    /// Tells the shards to accept no more and to finish.
    pub draining: Arc<AtomicBool>,
    /// Tells the shards to end at once.
    pub leaving: Arc<AtomicBool>,
    /// Tells the watching and maintaining threads to end.
    pub stop: Arc<AtomicBool>,
    /// What `/ready` answers.
    pub stage: Arc<Stage>,
    /// The shards' threads.
    pub shards: Vec<JoinHandle<()>>,
    /// The journal, where there is one.
    pub journal: Option<Arc<Journal>>,
    /// The writers.
    pub writers: Writers,
    /// The webhooks' threads.
    pub deliver: Webhooks,
    /// Whether every accepted event is in the journal.
    pub is_journaling: bool,
    /// How long the shutdown may take.
    pub grace: Duration,
}

/// Waits for a signal, then stops everything. Returns how many accepted events are lost.
pub fn wait_and_drain(mut signals: Signals, running: Running) -> usize {
    let signal = signals.0.forever().next();
    let begun = Instant::now();
    let deadline = begun + running.grace;
    tracing::info!(signal, grace_seconds = running.grace.as_secs(), "shutting down; a second signal ends it at once");
    let second = thread::Builder::new().name("signals".to_owned()).spawn(move || {
        if signals.0.forever().next().is_some() {
            tracing::warn!("second signal: ending at once");
            logging::flush();
            std::process::exit(130);
        }
    });
    if let Err(error) = second {
        tracing::warn!(%error, "a second signal will not be heard");
    }
    running.stage.drain();
    running.stop.store(true, Ordering::Relaxed);
    running.draining.store(true, Ordering::Relaxed);
    running.deliver.close();
    // Requests in flight get half of the grace; storing their events needs the other half.
    wait_for(&running.shards, begun + running.grace / 2);
    running.leaving.store(true, Ordering::Relaxed);
    // Shards check the flag several times a second. One that does not must not delay the others' events for ever.
    if !wait_for(&running.shards, deadline.max(Instant::now() + SHARD_EXIT_MAX)) {
        tracing::error!("a shard does not end; a bug");
    }
    // A commit that is under way takes one write of the disk.
    let commit_deadline = deadline.max(Instant::now() + SHARD_EXIT_MAX);
    if let Some(journal) = &running.journal {
        journal.close(commit_deadline);
    }
    let waiting = running.writers.drain(deadline);
    running.deliver.drain(deadline);
    let seconds = begun.elapsed().as_secs_f32();
    let left = running.journal.map_or_else(Remaining::default, |journal| journal.end());
    let Remaining { events, unread_segments, unread_bytes, unread_events, handed_over } = left;
    // A segment that was made and never used, or whose events are stored, is nothing that is left.
    if unread_segments > 0 && (events > 0 || unread_events != Some(0)) {
        tracing::info!(
            seconds,
            events,
            unread_segments,
            unread_bytes,
            unread_events,
            "what is not known to be stored is in the journal for the next start, and so are segments that earlier \
             runs left and that were not read back yet; bye"
        );
    } else if events > 0 {
        tracing::info!(seconds, events, "what is not known to be stored is in the journal for the next start; bye");
    } else if waiting == 0 {
        tracing::info!(seconds, "everything accepted is stored; bye");
    }
    // A run without a journal of its own may have replayed an earlier run's; those events are not lost.
    if running.is_journaling { 0 } else { waiting.saturating_sub(handed_over as usize) }
}

/// Waits until all of `threads` have ended, at most until `deadline`; whether they have.
fn wait_for(threads: &[JoinHandle<()>], deadline: Instant) -> bool {
    while threads.iter().any(|thread| !thread.is_finished()) {
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(5));
    }
    true
}
