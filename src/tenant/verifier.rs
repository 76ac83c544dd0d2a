//! Verifies presented keys off the shards: asks what is known, looks the key up, compares its digest, runs Argon2id.
//!
//! Two threads look keys up and two run Argon2id, so that a lookup never waits for an Argon2id. A key that was
//! verified for one shard is known to all ([`known_keys`](super::known_keys)), and concurrent first uses of a key
//! share one verification. Only a key with the right digest goes on to Argon2id: an unknown id and a wrong secret end
//! at the lookup. In front of Argon2id the organisations take turns
//! ([`verification_queue`](super::verification_queue)): one with a hundred keys occupies one of the two threads at
//! most.
//!
//! The last use of a key is recorded by a thread of its own. That is a write, which can wait for a disk or a lock,
//! and no first request should wait for it. Uses that it cannot keep up with are not recorded.
//!
//! When the database is away, every job is answered `Unavailable` at once for a second after each failed attempt
//! instead of waiting for its own timeout. The answer carries what is known about the key, so that the shard may
//! serve it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use futures_channel::oneshot;
use zeroize::Zeroizing;

use millrace_base::clock::Timestamp;
use millrace_base::key::{self, KeyId};
use millrace_base::problem::Problem;
use millrace_base::{critical_thread, limits};
use millrace_metrics::{DbOperation, Metrics};
use millrace_store::{KeyRecord, Store, StoreError};

use crate::change_feed::ChangeFeed;
use crate::known_keys::{KnownKeys, VerificationId};
use crate::verification_queue::VerificationQueue;
use crate::window_registry::WindowRegistry;
use crate::{Grant, Verdict};

/// A key as a client presented it; wiped when dropped. On the heap, because a value that is moved leaves copies
/// behind in stacks and in the slots of queues.
pub type Presented = Zeroizing<Vec<u8>>;

struct Job {
    key: KeyId,
    presented: Presented,
    reply: oneshot::Sender<Verdict>,
}

/// A key that is in the database, with the right digest.
struct Found {
    id: VerificationId,
    record: KeyRecord,
    presented: Presented,
    looked_up_at: Instant,
}

/// The handle to the verifier's threads, shared by all shards.
#[derive(Clone)]
pub struct Verifier {
    jobs: Sender<Job>,
    started: Instant,
}

impl Verifier {
    /// Starts twice [`limits::AUTH_WORKERS`] threads and the one that records uses. They end when the last `Verifier`
    /// is dropped.
    ///
    /// # Errors
    /// Where the operating system refuses a thread.
    pub fn start(
        store: &Arc<dyn Store>,
        feed: &Arc<ChangeFeed>,
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
            known: Mutex::new(KnownKeys::new(Arc::clone(feed))),
            queue: VerificationQueue::new(limits::AUTH_VERIFICATIONS_MAX),
            metrics: Arc::clone(metrics),
            default_limit,
            started,
            windows: WindowRegistry::default(),
            store_down_until_ms: AtomicU64::new(0),
        });
        let (jobs, to_look_up) = bounded(limits::AUTH_QUEUE_MAX);
        for worker in 0..limits::AUTH_WORKERS {
            let (to_look_up, looking, verifying) = (to_look_up.clone(), Arc::clone(&shared), Arc::clone(&shared));
            critical_thread::spawn(&format!("auth-lookup-{worker}"), move || looking.look_up_all(&to_look_up))?;
            critical_thread::spawn(&format!("auth-verify-{worker}"), move || verifying.verify_all())?;
        }
        Ok(Self { jobs, started })
    }

    /// The zero of the rate limiter's clock.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Asks about a key.
    ///
    /// # Errors
    /// [`Problem::AuthBusy`] if too many are waiting.
    pub fn submit(&self, key: KeyId, presented: Presented) -> Result<oneshot::Receiver<Verdict>, Problem> {
        let (reply, verdict) = oneshot::channel();
        self.jobs.try_send(Job { key, presented, reply }).map_err(|_| Problem::AuthBusy)?;
        Ok(verdict)
    }
}

/// Records that keys were used, until the last worker is gone.
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
    known: Mutex<KnownKeys>,
    queue: VerificationQueue<Found>,
    metrics: Arc<Metrics>,
    default_limit: u32,
    started: Instant,
    windows: WindowRegistry,
    store_down_until_ms: AtomicU64,
}

const STORE_DOWN_PAUSE: Duration = Duration::from_secs(1);

impl Shared {
    fn look_up_all(&self, jobs: &Receiver<Job>) {
        for job in jobs {
            self.look_up(job);
        }
        self.queue.close();
    }

    /// Answers from what is known, or looks the key up and queues it for Argon2id.
    fn look_up(&self, Job { key, presented, reply }: Job) {
        let digest = key::digest(&presented);
        let looked_up_at = Instant::now();
        let Some(id) = self.known().ask(digest, key, reply, looked_up_at) else { return };
        let verdict = match self.find(key) {
            Ok(Some(record)) if is_usable(&record) && key::has_digest(&digest, &record.verifier) => {
                let found = Found { id, record, presented, looked_up_at };
                match self.queue.put(found.record.info.org, found) {
                    Ok(()) => return,
                    Err(_) => Verdict::Busy,
                }
            }
            Ok(_) => Verdict::Invalid,
            Err(StoreAway) => Verdict::Unavailable(None),
        };
        self.known().complete(id, verdict, Instant::now());
    }

    fn find(&self, key: KeyId) -> Result<Option<KeyRecord>, StoreAway> {
        let now_ms = self.started.elapsed().as_millis() as u64;
        if now_ms < self.store_down_until_ms.load(Ordering::Relaxed) {
            return Err(StoreAway);
        }
        let found = self.metrics.store.timed(DbOperation::FindKey, || self.store.find_key(key));
        found.map_err(|error: StoreError| {
            tracing::debug!(%error, "a key could not be looked up");
            let until = self.started.elapsed() + STORE_DOWN_PAUSE;
            self.store_down_until_ms.store(until.as_millis() as u64, Ordering::Relaxed);
            StoreAway
        })
    }

    fn verify_all(&self) {
        while let Some((org, found)) = self.queue.take() {
            let is_right = is_usable(&found.record) && key::verify(&found.presented, &found.record.verifier);
            self.queue.done(org);
            let verdict = if is_right {
                // If the queue is full, this use is not recorded.
                let _ = self.used_keys.try_send(found.record.info.id);
                Verdict::Valid(Arc::new(self.grant(&found)))
            } else {
                Verdict::Invalid
            };
            self.known().complete(found.id, verdict, Instant::now());
        }
    }

    fn grant(&self, Found { record, looked_up_at, .. }: &Found) -> Grant {
        Grant {
            key: record.info.id,
            org: record.info.org,
            is_org_disabled: record.org_disabled,
            rate_limit_per_minute: record.rate_limit_per_minute.unwrap_or(self.default_limit),
            windows: self.windows.get(record.info.org, self.started.elapsed().as_secs()),
            expires_at: record.info.expires_at,
            verified_at: *looked_up_at,
        }
    }

    fn known(&self) -> MutexGuard<'_, KnownKeys> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The database cannot be asked.
struct StoreAway;

/// Neither revoked nor expired.
fn is_usable(record: &KeyRecord) -> bool {
    record.info.revoked_at.is_none() && record.info.expires_at.is_none_or(|at| at > Timestamp::now())
}
