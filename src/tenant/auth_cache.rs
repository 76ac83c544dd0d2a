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
//!
//! Over 500 lines: half of them are tests.

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
mod tests {
    use uuid::Uuid;

    use millrace_base::event::OrgId;

    use super::*;

    /// What is found of a key; [`verified`] says when.
    fn grant(key: &str, org: u128, expires_at: Option<Timestamp>) -> impl FnOnce(Instant) -> Verdict {
        let key = KeyId::parse(key).unwrap();
        move |verified_at| {
            Verdict::Valid(Arc::new(Grant {
                key,
                org: OrgId(Uuid::from_u128(org)),
                is_org_disabled: false,
                rate_limit_per_minute: 10,
                windows: Arc::default(),
                expires_at,
                verified_at,
            }))
        }
    }

    fn invalid(_: Instant) -> Verdict {
        Verdict::Invalid
    }

    fn away(_: Instant) -> Verdict {
        Verdict::Unavailable(None)
    }

    const KEY: &str = "abcdefghijkl";

    fn verified(
        cache: &mut AuthCache,
        presented: &[u8],
        found: impl FnOnce(Instant) -> Verdict,
        now: Instant,
    ) -> Result<Rc<Tenant>, Problem> {
        let hash = cache.hash(presented);
        let mut answer = cache.begin(hash, KeyId::parse(KEY).unwrap());
        cache.complete(hash, found(now), now);
        answer.try_recv().unwrap().expect("completed")
    }

    fn kind(lookup: &Lookup) -> &'static str {
        match lookup {
            Lookup::Hit(_) => "hit",
            Lookup::Aging(_) => "aging",
            Lookup::Refused => "refused",
            Lookup::Miss => "miss",
        }
    }

    fn look(cache: &mut AuthCache, presented: &[u8], now: Instant) -> &'static str {
        let hash = cache.hash(presented);
        kind(&cache.lookup(hash, now))
    }

    #[test]
    fn valid_and_refused_keys_live_their_own_time() {
        let mut cache = AuthCache::new(0, ChangeFeed::new(1)).unwrap();
        let now = Instant::now();
        assert_eq!(look(&mut cache, b"good", now), "miss");
        assert!(verified(&mut cache, b"good", grant(KEY, 1, None), now).is_ok());
        assert_eq!(verified(&mut cache, b"bad", invalid, now).unwrap_err(), Problem::InvalidApiKey);
        assert_eq!((look(&mut cache, b"good", now), look(&mut cache, b"bad", now)), ("hit", "refused"));
        let later = now + limits::AUTH_CACHE_NEGATIVE_TTL;
        assert_eq!((look(&mut cache, b"good", later), look(&mut cache, b"bad", later)), ("hit", "miss"));
        assert_eq!(look(&mut cache, b"good", now + limits::AUTH_CACHE_TTL), "miss");
    }

    #[test]
    fn a_key_in_use_is_verified_again_before_it_expires() {
        let mut cache = AuthCache::new(0, ChangeFeed::new(1)).unwrap();
        let now = Instant::now();
        verified(&mut cache, b"k", grant(KEY, 1, None), now).unwrap();
        let aged = now + limits::AUTH_CACHE_REFRESH_AGE;
        assert_eq!([look(&mut cache, b"k", aged), look(&mut cache, b"k", aged)], ["aging", "hit"], "asked once");
        assert_eq!(look(&mut cache, b"k", aged + REFRESH_INTERVAL), "aging", "and again where nothing came of it");
        // An attempt that fails takes nothing of the entry's life.
        verified(&mut cache, b"k", away, aged).unwrap();
        assert_eq!(look(&mut cache, b"k", aged + 2 * REFRESH_INTERVAL), "aging");
        // One that succeeds gives it a new one; one that is refused ends it.
        verified(&mut cache, b"k", grant(KEY, 1, None), aged).unwrap();
        assert_eq!(look(&mut cache, b"k", now + limits::AUTH_CACHE_TTL), "hit");
        assert!(verified(&mut cache, b"k", invalid, aged).is_err());
        assert_eq!(look(&mut cache, b"k", aged), "refused");
    }

    #[test]
    fn a_key_that_expires_is_refused_from_the_cache() {
        let mut cache = AuthCache::new(0, ChangeFeed::new(1)).unwrap();
        let now = Instant::now();
        let soon = Timestamp::now().plus(Duration::from_secs(10));
        assert!(verified(&mut cache, b"k", grant(KEY, 1, Some(soon)), now).is_ok());
        assert_eq!(look(&mut cache, b"k", now + Duration::from_secs(9)), "hit");
        assert_eq!(look(&mut cache, b"k", now + Duration::from_secs(11)), "refused");
    }

    #[test]
    fn changes_drop_exactly_what_they_concern() {
        for (change, hits) in [
            (StoreChange::Key(KeyId::parse(KEY).unwrap()), ["miss", "hit"]),
            (StoreChange::Organization(OrgId(Uuid::from_u128(2))), ["hit", "miss"]),
            (StoreChange::Everything, ["miss", "miss"]),
        ] {
            let feed = ChangeFeed::new(1);
            let mut cache = AuthCache::new(0, Arc::clone(&feed)).unwrap();
            let now = Instant::now();
            verified(&mut cache, b"a", grant(KEY, 1, None), now).unwrap();
            verified(&mut cache, b"b", grant("bbbbbbbbbbbb", 2, None), now).unwrap();
            feed.publish_for_test(change);
            assert_eq!([look(&mut cache, b"a", now), look(&mut cache, b"b", now)], hits, "{change:?}");
        }
    }

    #[test]
    fn where_changes_may_have_been_missed_keys_are_asked_about_and_served_if_nobody_answers() {
        let feed = ChangeFeed::new(1);
        let mut cache = AuthCache::new(0, Arc::clone(&feed)).unwrap();
        let now = Instant::now();
        verified(&mut cache, b"k", grant(KEY, 1, None), now).unwrap();
        feed.publish_for_test(StoreChange::Everything);
        assert_eq!(look(&mut cache, b"k", now), "miss");
        assert!(verified(&mut cache, b"k", away, now).is_ok(), "the database is away again");
        assert_eq!(look(&mut cache, b"k", now), "hit");
        feed.publish_for_test(StoreChange::Everything);
        assert!(verified(&mut cache, b"k", invalid, now).is_err(), "it was revoked meanwhile");
        // Changes that were received and did not fit are another matter.
        verified(&mut cache, b"k", grant(KEY, 1, None), now).unwrap();
        for _ in 0..=limits::STORE_CHANGES_MAX {
            feed.publish_for_test(StoreChange::Key(KeyId::parse("bbbbbbbbbbbb").unwrap()));
        }
        assert_eq!(look(&mut cache, b"k", now), "miss");
        assert!(verified(&mut cache, b"k", away, now).is_err());
    }

    #[test]
    fn a_verdict_overtaken_by_a_change_is_not_kept() {
        let feed = ChangeFeed::new(1);
        let mut cache = AuthCache::new(0, Arc::clone(&feed)).unwrap();
        let now = Instant::now();
        let hash = cache.hash(b"k");
        let _answer = cache.begin(hash, KeyId::parse(KEY).unwrap());
        feed.publish_for_test(StoreChange::Key(KeyId::parse(KEY).unwrap()));
        cache.complete(hash, grant(KEY, 1, None)(now), now);
        assert_eq!(look(&mut cache, b"k", now), "miss");
    }

    #[test]
    fn with_every_place_taken_a_new_key_still_gets_its_verdict() {
        let mut cache = AuthCache::new(0, ChangeFeed::new(1)).unwrap();
        let now = Instant::now();
        let (crowded, new) = (cache.hash(b"crowded"), cache.hash(b"new"));
        let mut answers = vec![cache.begin(crowded, KeyId::parse(KEY).unwrap())];
        while let Some(Ok(answer)) = cache.join(crowded) {
            answers.push(answer);
        }
        assert_eq!(answers.len(), limits::AUTH_WAITERS_MAX);
        let mut first = cache.begin(new, KeyId::parse(KEY).unwrap());
        assert_eq!(cache.join(new).unwrap().unwrap_err(), Problem::AuthBusy);
        cache.complete(new, Verdict::Invalid, now);
        assert_eq!(first.try_recv().unwrap().unwrap().unwrap_err(), Problem::InvalidApiKey);
        cache.complete(crowded, grant(KEY, 1, None)(now), now);
        assert!(answers.iter_mut().all(|answer| answer.try_recv().unwrap().unwrap().is_ok()));
        assert!(cache.join(new).is_none() && cache.join(crowded).is_none());
        assert_eq!(cache.waiting, 0);
    }

    #[test]
    fn with_the_database_away_an_expired_key_is_served_for_a_bounded_time() {
        let mut cache = AuthCache::new(0, ChangeFeed::new(1)).unwrap();
        let now = Instant::now();
        verified(&mut cache, b"k", grant(KEY, 1, None), now).unwrap();
        let expired = now + limits::AUTH_CACHE_TTL;
        cache.sweep(expired);
        assert!(verified(&mut cache, b"k", away, expired).is_ok());
        assert_eq!(look(&mut cache, b"k", expired), "hit");
        let too_late = now + limits::AUTH_CACHE_STALE_MAX;
        assert_eq!(verified(&mut cache, b"k", away, too_late).unwrap_err(), Problem::StoreUnavailable);
        assert_eq!(verified(&mut cache, b"new", away, now).unwrap_err(), Problem::StoreUnavailable);
    }

    #[test]
    fn what_another_shard_had_verified_counts_from_then() {
        let mut cache = AuthCache::new(0, ChangeFeed::new(1)).unwrap();
        let start = Instant::now();
        let known = grant(KEY, 1, None)(start);
        let now = start + Duration::from_secs(200);
        assert!(verified(&mut cache, b"k", |_| known.clone(), now).is_ok());
        assert_eq!(look(&mut cache, b"k", start + limits::AUTH_CACHE_REFRESH_AGE), "aging");
        assert_eq!(look(&mut cache, b"k", start + limits::AUTH_CACHE_TTL), "miss");
        // And with the database away.
        let Verdict::Valid(known) = known else { unreachable!("made above") };
        let late = start + limits::AUTH_CACHE_STALE_MAX;
        let earlier = start + limits::AUTH_CACHE_STALE_MAX.saturating_sub(STALE_EXTENSION);
        let from_others = |_| Verdict::Unavailable(Some(Arc::clone(&known)));
        assert!(verified(&mut cache, b"other", from_others, earlier).is_ok());
        assert_eq!(look(&mut cache, b"other", earlier), "hit");
        assert_eq!(look(&mut cache, b"other", late), "miss");
        assert_eq!(verified(&mut cache, b"other", from_others, late).unwrap_err(), Problem::StoreUnavailable);
        assert_eq!(verified(&mut cache, b"third", from_others, late).unwrap_err(), Problem::StoreUnavailable);
    }

    #[test]
    fn a_flood_of_refused_keys_leaves_valid_ones_alone_and_is_bounded() {
        let mut cache = AuthCache::new(0, ChangeFeed::new(1)).unwrap();
        let now = Instant::now();
        verified(&mut cache, b"good", grant(KEY, 1, None), now).unwrap();
        for n in 0..(REFUSED_ENTRIES_MAX as u32 * 3) {
            let _ = verified(&mut cache, &n.to_le_bytes(), invalid, now);
        }
        assert!(cache.refused.len() <= REFUSED_ENTRIES_MAX);
        assert_eq!(look(&mut cache, b"good", now), "hit");
    }
}
