//! Verifies presented keys off the shards: one lookup, a digest, one Argon2id.
//!
//! Jobs go to the worker their key id hashes to, through a bounded queue: concurrent first uses of one key meet
//! at one worker, which remembers the verdicts of the last second, so Argon2 runs once for all shards; and an
//! organisation that floods the pool with first uses delays one worker's queue, not all.
//!
//! When a key was last used is noted by a thread of its own: that is a write, which can wait for a disk or a lock,
//! and nobody's first request should wait for it. What it cannot keep up with is not noted.
//!
//! With the database away every job is answered `Unavailable` at once for a second after each failed attempt,
//! instead of waiting in line for its own timeout.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use futures_channel::oneshot;
use zeroize::Zeroizing;

use crate::auth::feed::Feed;
use crate::auth::windows::Windows;
use crate::auth::{Grant, Verdict};
use crate::clock::Timestamp;
use crate::critical_thread;
use crate::key::{self, KeyId};
use crate::limits;
use crate::metrics::{DbOperation, Metrics};
use crate::problem::Problem;
use crate::store::{KeyRecord, Store};

/// A key as a client presented it; wiped when dropped. On the heap: moved on its way it would leave a copy behind at
/// every step, in a stack and in a slot of the queue.
pub type Presented = Zeroizing<Vec<u8>>;

struct Job {
    key: KeyId,
    presented: Presented,
    reply: oneshot::Sender<Verdict>,
}

/// The pool's entrance, shared by all shards.
#[derive(Clone)]
pub struct Verifier {
    queues: Arc<[Sender<Job>]>,
    hasher: Arc<RandomState>,
    started: Instant,
}

impl Verifier {
    /// Starts [`limits::AUTH_WORKERS`] threads and the one that notes uses. They end when the last `Verifier` is dropped.
    ///
    /// # Errors
    /// Where the operating system refuses a thread.
    pub fn start(
        store: &Arc<dyn Store>,
        feed: &Arc<Feed>,
        default_limit: u32,
        metrics: &Arc<Metrics>,
    ) -> std::io::Result<Self> {
        let started = Instant::now();
        let (used_keys, to_note) = bounded(limits::AUTH_NOTES_MAX);
        let noting_store = Arc::clone(store);
        critical_thread::spawn("auth-notes", move || note_uses(&*noting_store, &to_note))?;
        let shared = Arc::new(Shared {
            store: Arc::clone(store),
            used_keys,
            feed: Arc::clone(feed),
            metrics: Arc::clone(metrics),
            default_limit,
            started,
            windows: Windows::default(),
            store_down_until_ms: AtomicU64::new(0),
        });
        let mut queues = Vec::with_capacity(limits::AUTH_WORKERS);
        for worker in 0..limits::AUTH_WORKERS {
            let (sender, receiver) = bounded(limits::AUTH_QUEUE_MAX);
            let shared = Arc::clone(&shared);
            critical_thread::spawn(&format!("auth-{worker}"), move || shared.work(&receiver))?;
            queues.push(sender);
        }
        Ok(Self { queues: queues.into(), hasher: Arc::default(), started })
    }

    /// The zero of the rate limiter's clock.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Asks about a key. `AuthBusy` where the worker's queue is full.
    pub fn submit(&self, key: KeyId, presented: Presented) -> Result<oneshot::Receiver<Verdict>, Problem> {
        let worker = self.hasher.hash_one(key) as usize % self.queues.len();
        let (reply, verdict) = oneshot::channel();
        self.queues[worker].try_send(Job { key, presented, reply }).map_err(|_| Problem::AuthBusy)?;
        Ok(verdict)
    }
}

/// Notes that keys were used, until the last worker is gone.
fn note_uses(store: &dyn Store, used_keys: &Receiver<KeyId>) {
    for key in used_keys {
        if let Err(error) = store.touch_key(key) {
            tracing::debug!(%error, "the last use of a key could not be noted");
        }
    }
}

struct Shared {
    store: Arc<dyn Store>,
    used_keys: Sender<KeyId>,
    feed: Arc<Feed>,
    metrics: Arc<Metrics>,
    default_limit: u32,
    started: Instant,
    windows: Windows,
    store_down_until_ms: AtomicU64,
}

/// How long a worker remembers a verdict for the other shards that ask about the same key.
const RECENT_TTL: Duration = Duration::from_secs(1);
const RECENT_MAX: usize = 256;
const STORE_DOWN_PAUSE: Duration = Duration::from_secs(1);

struct Recent {
    verdict: Verdict,
    at: Instant,
    epoch: u64,
}

impl Shared {
    fn work(&self, jobs: &Receiver<Job>) {
        let mut recent: HashMap<[u8; 32], Recent> = HashMap::new();
        while let Ok(job) = jobs.recv() {
            let digest = key::digest(&job.presented);
            let now = Instant::now();
            recent.retain(|_, known| now.duration_since(known.at) < RECENT_TTL);
            if let Some(known) = recent.get(&digest).filter(|known| known.epoch == self.feed.epoch()) {
                let _ = job.reply.send(known.verdict.clone());
                continue;
            }
            let epoch = self.feed.epoch();
            let verdict = self.verify(&job);
            if recent.len() < RECENT_MAX && !matches!(verdict, Verdict::Unavailable) {
                recent.insert(digest, Recent { verdict: verdict.clone(), at: now, epoch });
            }
            if matches!(verdict, Verdict::Valid(_)) {
                // Full: not noted this time.
                let _ = self.used_keys.try_send(job.key);
            }
            // The shard may have given up waiting; the verdict stays in `recent` for the next.
            let _ = job.reply.send(verdict);
        }
    }

    fn verify(&self, job: &Job) -> Verdict {
        let now_ms = self.started.elapsed().as_millis() as u64;
        if now_ms < self.store_down_until_ms.load(Ordering::Relaxed) {
            return Verdict::Unavailable;
        }
        let found = self.metrics.store.timed(DbOperation::FindKey, || self.store.find_key(job.key));
        match found {
            Ok(Some(record)) => self.judge(&record, &job.presented),
            Ok(None) => Verdict::Invalid,
            Err(error) => {
                tracing::debug!(%error, "a key could not be looked up");
                let until = self.started.elapsed() + STORE_DOWN_PAUSE;
                self.store_down_until_ms.store(until.as_millis() as u64, Ordering::Relaxed);
                Verdict::Unavailable
            }
        }
    }

    fn judge(&self, record: &KeyRecord, presented: &Presented) -> Verdict {
        let is_over = |at: Option<Timestamp>| at.is_some_and(|at| at <= Timestamp::now());
        if record.info.revoked_at.is_some() || is_over(record.info.expires_at) {
            return Verdict::Invalid;
        }
        if !key::verify(presented, &record.verifier) {
            return Verdict::Invalid;
        }
        Verdict::Valid(Arc::new(Grant {
            key: record.info.id,
            org: record.info.org,
            is_org_disabled: record.org_disabled,
            rate_limit_per_minute: record.rate_limit_per_minute.unwrap_or(self.default_limit),
            window: self.windows.get(record.info.org, self.started.elapsed().as_secs()),
            expires_at: record.info.expires_at,
        }))
    }
}
