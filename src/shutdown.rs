//! The way down, front to back: no new connections, requests in flight answered, the queue drained, with a
//! deadline; a second signal ends the process at once.
//!
//! Runs on the main thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals as SignalIterator;

use crate::boot::Stage;
use crate::metrics::Metrics;
use crate::store::writer::Writers;

/// SIGTERM and SIGINT, from before the first thread on.
pub struct Signals(SignalIterator);

impl Signals {
    /// Takes the two signals over from their default, which ends the process.
    ///
    /// # Errors
    /// Where the operating system refuses.
    pub fn install() -> std::io::Result<Self> {
        SignalIterator::new([SIGTERM, SIGINT]).map(Self)
    }
}

/// What has to be brought down.
pub struct Running {
    /// Tells the shards to accept no more and to finish.
    pub draining: Arc<AtomicBool>,
    /// Tells them to leave as they are.
    pub leaving: Arc<AtomicBool>,
    /// Tells the watching and maintaining threads to end.
    pub stop: Arc<AtomicBool>,
    /// What `/ready` says.
    pub stage: Arc<Stage>,
    /// Whose gauge says the same.
    pub metrics: Arc<Metrics>,
    /// The shards' threads.
    pub shards: Vec<JoinHandle<()>>,
    /// The writers.
    pub writers: Writers,
    /// How long all of it may take.
    pub grace: Duration,
}

/// Waits for a signal, then brings everything down. Returns how many accepted events could not be stored.
pub fn wait_and_drain(mut signals: Signals, running: Running) -> usize {
    let signal = signals.0.forever().next();
    let begun = Instant::now();
    let deadline = begun + running.grace;
    tracing::info!(signal, grace_seconds = running.grace.as_secs(), "shutting down; a second signal ends it at once");
    thread::spawn(move || {
        if signals.0.forever().next().is_some() {
            tracing::warn!("second signal: ending at once");
            std::process::exit(130);
        }
    });
    running.stage.drain();
    running.metrics.set_ready(false);
    running.stop.store(true, Ordering::Relaxed);
    running.draining.store(true, Ordering::Relaxed);
    // Requests in flight get half of the grace; what they were promised needs the other half.
    let connections_deadline = begun + running.grace / 2;
    while Instant::now() < connections_deadline && running.shards.iter().any(|shard| !shard.is_finished()) {
        thread::sleep(Duration::from_millis(5));
    }
    running.leaving.store(true, Ordering::Relaxed);
    for shard in running.shards {
        // A shard's panic has already ended the process.
        let _ = shard.join();
    }
    let lost = running.writers.drain(deadline);
    if lost == 0 {
        tracing::info!(seconds = begun.elapsed().as_secs_f32(), "everything accepted is stored; bye");
    }
    lost
}
