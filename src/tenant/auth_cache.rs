//! The keys a shard knows: one hash and one lookup for a request whose key is cached.
//!
//! An entry is found by a 128-bit hash of the presented key under a random key of the shard, so nobody outside can
//! aim at an entry, and no API key is stored. Valid keys live [`limits::AUTH_CACHE_TTL`]. Refused keys live
//! [`limits::AUTH_CACHE_NEGATIVE_TTL`] in a cache of their own, so a flood of junk never evicts a good key.
//!
//! Runs on its shard only. Changes of credentials arrive through the [`ChangeFeed`]; one comparison per lookup shows
//! that there are none. While the database is away an expired entry is served on, for at most
//! [`limits::AUTH_CACHE_STALE_MAX`], because nobody can revoke a key in a database that is down. For that reason,
//! when changes may have been missed, entries are marked as expired and not dropped: the next outage may begin before
//! they are verified again.

use std::cell::Cell;
use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_channel::oneshot;
use quick_cache::UnitWeighter;
use quick_cache::unsync::{Cache, DefaultLifecycle};
use siphasher::sip128::{Hasher128, SipHasher24};

use millrace_base::clock::Timestamp;
use millrace_base::key::KeyId;
use millrace_base::limits;
use millrace_base::problem::Problem;
use millrace_store::StoreChange;

use crate::change_feed::ChangeFeed;
use crate::{Grant, Verdict};

/// An authenticated organisation, as a request carries it after authentication.
#[derive(Debug)]
pub struct Tenant {
    /// What the key allows.
    pub grant: Arc<Grant>,
    /// The organisation's `RateLimit-Policy` line, ready to send; empty if unlimited.
    pub policy_field: Box<[u8]>,
    expires_at: Option<Instant>,
}

impl Tenant {
    fn new(grant: Arc<Grant>, now: Instant) -> Self {
        let policy_field = match grant.rate_limit_per_minute {
            0 => String::new(),
            quota => format!("RateLimit-Policy: \"org-minute\";q={quota};w=60\r\n"),
        };
        let expires_at = grant.expires_at.map(|at| {
            let left_micros = at.as_micros().saturating_sub(Timestamp::now().as_micros()).max(0);
            now + Duration::from_micros(left_micros as u64)
        });
        Self { grant, policy_field: policy_field.into_bytes().into(), expires_at }
    }
}

/// A verdict that is being waited for.
pub type Awaited = oneshot::Receiver<Result<Rc<Tenant>, Problem>>;

/// The keyed hash of a presented key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct KeyHash(u128);

/// What the cache knows about a key.
#[derive(Debug)]
pub enum Lookup {
    /// Valid.
    Hit(Rc<Tenant>),
    /// Valid, but soon to expire: verify it again while this request goes on. Returned at most once a second.
    Aging(Rc<Tenant>),
    /// In the cache of refused keys.
    Refused,
    /// Not known, or expired.
    Miss,
}

struct Entry {
    tenant: Rc<Tenant>,
    fresh_until: Cell<Instant>,
    /// From then on a request that uses the entry starts another verification.
    refresh_at: Cell<Instant>,
}

impl Entry {
    fn verified_at(&self) -> Instant {
        self.tenant.grant.verified_at
    }
}

struct PendingKey {
    key: KeyId,
    /// A change arrived meanwhile: the verdict is given to those who wait, but not kept.
    is_outdated: bool,
    waiters: Vec<oneshot::Sender<Result<Rc<Tenant>, Problem>>>,
}

/// One shard's cache.
pub struct AuthCache {
    shard: usize,
    feed: Arc<ChangeFeed>,
    seen_epoch: u64,
    hash_key: SipHasher24,
    valid: Cache<KeyHash, Entry, UnitWeighter, IdentityHash>,
    refused: Cache<KeyHash, Instant, UnitWeighter, IdentityHash>,
    pending: HashMap<KeyHash, PendingKey>,
    waiting: usize,
}

const REFUSED_ENTRIES_MAX: usize = limits::AUTH_CACHE_ENTRIES_MAX / 8;
/// The time between two attempts to refresh an entry.
const REFRESH_INTERVAL: Duration = Duration::from_secs(1);
/// While the database is away, how much longer an entry is served after each attempt to verify it again. Longer than an
/// attempt on a hung database takes, so that requests do not wait for the attempt.
const STALE_EXTENSION: Duration = Duration::from_secs(30);
const _: () =
    assert!(STALE_EXTENSION.as_secs() > limits::STORE_CONNECT_TIMEOUT.as_secs() + limits::STORE_CALL_TIMEOUT.as_secs());

impl AuthCache {
    /// An empty cache for shard number `shard`.
    ///
    /// # Errors
    /// If the operating system gives no randomness for the hash key.
    pub fn new(shard: usize, feed: Arc<ChangeFeed>) -> Result<Self, getrandom::Error> {
        let mut seed = [0u8; 16];
        getrandom::fill(&mut seed)?;
        Ok(Self {
            shard,
            seen_epoch: feed.epoch(),
            feed,
            hash_key: SipHasher24::new_with_key(&seed),
            valid: Cache::with(
                1024,
                limits::AUTH_CACHE_ENTRIES_MAX as u64,
                UnitWeighter,
                IdentityHash,
                DefaultLifecycle::default(),
            ),
            refused: Cache::with(
                256,
                REFUSED_ENTRIES_MAX as u64,
                UnitWeighter,
                IdentityHash,
                DefaultLifecycle::default(),
            ),
            pending: HashMap::new(),
            waiting: 0,
        })
    }

    /// Hashes a presented key.
    pub fn hash(&self, presented: &[u8]) -> KeyHash {
        let mut hasher = self.hash_key;
        hasher.write(presented);
        KeyHash(hasher.finish128().as_u128())
    }

    /// Looks a key up as of `now`.
    pub fn lookup(&mut self, hash: KeyHash, now: Instant) -> Lookup {
        if self.feed.epoch() != self.seen_epoch {
            self.apply_changes();
        }
        if let Some(entry) = self.valid.get(&hash) {
            if entry.tenant.expires_at.is_some_and(|at| at <= now) {
                return Lookup::Refused;
            }
            let tenant = || Rc::clone(&entry.tenant);
            return if now >= entry.fresh_until.get() {
                Lookup::Miss
            } else if now >= entry.refresh_at.get() {
                entry.refresh_at.set(now + REFRESH_INTERVAL);
                Lookup::Aging(tenant())
            } else {
                Lookup::Hit(tenant())
            };
        }
        match self.refused.get(&hash) {
            Some(until) if now < *until => Lookup::Refused,
            _ => Lookup::Miss,
        }
    }

    /// Whether a verdict on `hash` is under way.
    pub fn is_pending(&self, hash: KeyHash) -> bool {
        self.pending.contains_key(&hash)
    }

    /// Joins the verification of a key that is under way. `None` if there is none: the caller must start one with
    /// [`Self::begin`].
    pub fn join(&mut self, hash: KeyHash) -> Option<Result<Awaited, Problem>> {
        let pending = self.pending.get_mut(&hash)?;
        if self.waiting >= limits::AUTH_WAITERS_MAX {
            return Some(Err(Problem::AuthBusy));
        }
        let (sender, receiver) = oneshot::channel();
        pending.waiters.push(sender);
        self.waiting += 1;
        Some(Ok(receiver))
    }

    /// Records that a verification of `hash` is under way, and waits for it. [`Self::complete`] must follow. The
    /// first to ask is always let in, even beyond [`limits::AUTH_WAITERS_MAX`]: verifications are bounded by the
    /// verifier's queues, and a verdict that nobody records would be waited for for ever.
    pub fn begin(&mut self, hash: KeyHash, key: KeyId) -> Awaited {
        let (sender, receiver) = oneshot::channel();
        self.pending.insert(hash, PendingKey { key, is_outdated: false, waiters: vec![sender] });
        self.waiting += 1;
        receiver
    }

    /// Records the verdict and answers all who wait.
    pub fn complete(&mut self, hash: KeyHash, verdict: Verdict, now: Instant) {
        if self.feed.epoch() != self.seen_epoch {
            self.apply_changes();
        }
        let Some(pending) = self.pending.remove(&hash) else { return };
        self.waiting -= pending.waiters.len();
        let answer = match verdict {
            Verdict::Valid(grant) => {
                // Its age counts from the verification, which may have been for another shard.
                let verified_at = grant.verified_at;
                let tenant = Rc::new(Tenant::new(grant, now));
                if !pending.is_outdated {
                    let entry = Entry {
                        tenant: Rc::clone(&tenant),
                        fresh_until: Cell::new(verified_at + limits::AUTH_CACHE_TTL),
                        refresh_at: Cell::new(verified_at + limits::AUTH_CACHE_REFRESH_AGE),
                    };
                    self.valid.insert(hash, entry);
                    self.refused.remove(&hash);
                }
                Ok(tenant)
            }
            Verdict::Invalid => {
                self.valid.remove(&hash);
                self.refused.insert(hash, now + limits::AUTH_CACHE_NEGATIVE_TTL);
                Err(Problem::InvalidApiKey)
            }
            Verdict::Busy => Err(Problem::AuthBusy),
            Verdict::Unavailable(known) => if let Some(grant) = known
                && self.valid.get(&hash).is_none()
            {
                self.take_over(hash, grant, pending.is_outdated, now)
            } else {
                self.serve_stale(hash, now)
            }
            .ok_or(Problem::StoreUnavailable),
        };
        for waiter in pending.waiters {
            // If its connection is gone, a waiter has dropped its end.
            let _ = waiter.send(answer.clone());
        }
    }

    /// Serves a key that the verifier knows from other shards, as [`Self::serve_stale`] serves one known here.
    fn take_over(&mut self, hash: KeyHash, grant: Arc<Grant>, is_outdated: bool, now: Instant) -> Option<Rc<Tenant>> {
        let tenant = Rc::new(Tenant::new(grant, now));
        if is_outdated {
            return Some(tenant);
        }
        let (fresh_until, refresh_at) = (Cell::new(now), Cell::new(now));
        self.valid.insert(hash, Entry { tenant, fresh_until, refresh_at });
        self.serve_stale(hash, now)
    }

    fn serve_stale(&mut self, hash: KeyHash, now: Instant) -> Option<Rc<Tenant>> {
        let entry = self.valid.get(&hash)?;
        if now.saturating_duration_since(entry.verified_at()) >= limits::AUTH_CACHE_STALE_MAX {
            return None;
        }
        entry.fresh_until.set(entry.fresh_until.get().max(now + STALE_EXTENSION));
        entry.refresh_at.set(now + REFRESH_INTERVAL);
        Some(Rc::clone(&entry.tenant))
    }

    /// Drops expired entries; called every [`limits::AUTH_CACHE_SWEEP_INTERVAL`].
    pub fn sweep(&mut self, now: Instant) {
        let is_connected = self.feed.is_connected();
        self.valid.retain(|_, entry| {
            now < entry.fresh_until.get()
                || (!is_connected && now.saturating_duration_since(entry.verified_at()) < limits::AUTH_CACHE_STALE_MAX)
        });
        self.refused.retain(|_, until| now < *until);
    }

    fn apply_changes(&mut self) {
        self.seen_epoch = self.feed.epoch();
        let Self { feed, valid, pending, shard, .. } = self;
        let all_are_known = feed.drain(*shard, |change| {
            if change == StoreChange::Everything {
                valid.iter().for_each(|(_, entry)| entry.fresh_until.set(entry.verified_at()));
            } else {
                valid.retain(|_, entry| !entry.tenant.grant.concerns(change));
            }
            for pending in pending.values_mut() {
                // Which organisation a pending key belongs to is not known yet.
                pending.is_outdated |= !matches!(change, StoreChange::Key(key) if key != pending.key);
            }
        });
        if !all_are_known {
            // The changes that were dropped may have concerned any key.
            valid.clear();
            for pending in pending.values_mut() {
                pending.is_outdated = true;
            }
        }
    }
}

/// Hashes nothing: the keys of the cache are hashes already.
#[derive(Clone, Copy, Default)]
struct IdentityHash;

impl BuildHasher for IdentityHash {
    type Hasher = LowHalf;
    fn build_hasher(&self) -> LowHalf {
        LowHalf(0)
    }
}

/// The low half of a uniformly distributed `u128`, as its hash.
struct LowHalf(u64);

impl Hasher for LowHalf {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }
    fn write_u128(&mut self, hash: u128) {
        self.0 = hash as u64;
    }
    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
#[path = "auth_cache_tests.rs"]
mod tests;
