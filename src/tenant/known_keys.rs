//! The keys that were verified for any shard: asked before the database and Argon2id, and instead of them while the
//! database is away.
//!
//! The rules are those of the shards' caches ([`auth_cache`](super::auth_cache)). A verified key is good for four
//! minutes and then verified again. When changes may have been missed, it is verified again at once. While the
//! database is away it is served on, for at most [`limits::AUTH_CACHE_STALE_MAX`] after its verification. The age of
//! a verdict goes with it to the shards, so a key is not served longer because it passed through here. Changes are
//! taken from the [`ChangeFeed`] before each answer.
//!
//! Verifications under way are here too: a second question about the same key waits for the first one's verdict,
//! unless a change came in between. The verifier's threads use this behind a mutex. Keys are held as the SHA-256
//! digests that are in the database as well.

use std::cell::Cell;
use std::collections::HashMap;
use std::hash::RandomState;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_channel::oneshot;
use quick_cache::UnitWeighter;
use quick_cache::unsync::{Cache, DefaultLifecycle};

use millrace_base::clock::Timestamp;
use millrace_base::key::KeyId;
use millrace_base::limits;
use millrace_store::StoreChange;

use super::change_feed::ChangeFeed;
use super::{Grant, Verdict};

/// SHA-256 of a presented key.
pub(super) type Digest = [u8; 32];

/// Identifies a verification that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct VerificationId(u64);

/// How long a refusal is remembered for the other shards that ask about the same key.
const REFUSED_TTL: Duration = Duration::from_secs(1);
const REFUSED_MAX: usize = 256;
/// How long a key is served without another attempt after one that found the database away, because an attempt on a
/// hung database takes seconds. When the database is back, the changes that it sends end this early.
const AWAY_PAUSE: Duration = Duration::from_secs(30);

struct Known {
    grant: Arc<Grant>,
    good_until: Cell<Instant>,
    /// Until then the database is assumed to be away.
    away_until: Cell<Option<Instant>>,
}

impl Known {
    fn is_expired(&self) -> bool {
        self.grant.expires_at.is_some_and(|at| at <= Timestamp::now())
    }

    fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.grant.verified_at)
    }
}

struct Pending {
    key: KeyId,
    digest: Digest,
    /// A change arrived meanwhile: the verdict is given to those who wait, but not kept.
    is_outdated: bool,
    replies: Vec<oneshot::Sender<Verdict>>,
}

/// The keys, and the verifications under way.
pub(super) struct KnownKeys {
    feed: Arc<ChangeFeed>,
    valid: Cache<Digest, Known, UnitWeighter, RandomState>,
    refused: HashMap<Digest, Instant>,
    /// Bounded by the verifier's queues; each has at most one reply per shard, because a shard asks once.
    pending: HashMap<VerificationId, Pending>,
    /// The verifications that may be joined.
    under_way: HashMap<Digest, VerificationId>,
    next_id: u64,
    swept_at: Instant,
}

impl KnownKeys {
    /// No keys yet.
    pub(super) fn new(feed: Arc<ChangeFeed>) -> Self {
        Self {
            feed,
            valid: Cache::with(
                1024,
                limits::AUTH_CACHE_ENTRIES_MAX as u64,
                UnitWeighter,
                RandomState::new(),
                DefaultLifecycle::default(),
            ),
            refused: HashMap::new(),
            pending: HashMap::new(),
            under_way: HashMap::new(),
            next_id: 0,
            swept_at: Instant::now(),
        }
    }

    /// Answers `reply` if the key is known, or adds it to the verification under way. Otherwise the caller must
    /// verify the key and call [`Self::complete`] with the id returned.
    pub(super) fn ask(
        &mut self,
        digest: Digest,
        key: KeyId,
        reply: oneshot::Sender<Verdict>,
        now: Instant,
    ) -> Option<VerificationId> {
        self.apply_changes();
        self.sweep(now);
        if let Some(verdict) = self.verdict(&digest, now) {
            // The shard may be gone.
            let _ = reply.send(verdict);
            return None;
        }
        if let Some(pending) = self.under_way.get(&digest).and_then(|id| self.pending.get_mut(id)) {
            pending.replies.push(reply);
            return None;
        }
        let id = VerificationId(self.next_id);
        self.next_id += 1;
        self.under_way.insert(digest, id);
        self.pending.insert(id, Pending { key, digest, is_outdated: false, replies: vec![reply] });
        Some(id)
    }

    /// Records the verdict and answers all who wait for it.
    pub(super) fn complete(&mut self, id: VerificationId, verdict: Verdict, now: Instant) {
        self.apply_changes();
        let Some(Pending { digest, is_outdated, replies, .. }) = self.pending.remove(&id) else { return };
        if !is_outdated {
            self.under_way.remove(&digest);
        }
        let verdict = match verdict {
            Verdict::Valid(grant) if !is_outdated => {
                let good_until = Cell::new(grant.verified_at + limits::AUTH_CACHE_REFRESH_AGE);
                let known = Known { grant: Arc::clone(&grant), good_until, away_until: Cell::new(None) };
                self.valid.insert(digest, known);
                Verdict::Valid(grant)
            }
            Verdict::Invalid => {
                self.valid.remove(&digest);
                if !is_outdated && self.refused.len() < REFUSED_MAX {
                    self.refused.insert(digest, now + REFUSED_TTL);
                }
                Verdict::Invalid
            }
            Verdict::Unavailable(_) => Verdict::Unavailable(self.serve_stale(&digest, now)),
            verdict => verdict,
        };
        for reply in replies {
            let _ = reply.send(verdict.clone());
        }
    }

    fn verdict(&self, digest: &Digest, now: Instant) -> Option<Verdict> {
        if let Some(known) = self.valid.get(digest) {
            if known.is_expired() {
                return Some(Verdict::Invalid);
            }
            if now < known.good_until.get() {
                return Some(Verdict::Valid(Arc::clone(&known.grant)));
            }
            let is_away = known.away_until.get().is_some_and(|until| now < until);
            return (is_away && known.age(now) < limits::AUTH_CACHE_STALE_MAX)
                .then(|| Verdict::Unavailable(Some(Arc::clone(&known.grant))));
        }
        self.refused.get(digest).filter(|until| now < **until).map(|_| Verdict::Invalid)
    }

    fn serve_stale(&self, digest: &Digest, now: Instant) -> Option<Arc<Grant>> {
        let known = self.valid.get(digest)?;
        if known.is_expired() || known.age(now) >= limits::AUTH_CACHE_STALE_MAX {
            return None;
        }
        known.away_until.set(Some(now + AWAY_PAUSE));
        Some(Arc::clone(&known.grant))
    }

    /// Drops what will not be served any more.
    fn sweep(&mut self, now: Instant) {
        self.refused.retain(|_, until| now < *until);
        if now.saturating_duration_since(self.swept_at) < limits::AUTH_CACHE_SWEEP_INTERVAL {
            return;
        }
        self.swept_at = now;
        let age_max = if self.feed.is_connected() { limits::AUTH_CACHE_TTL } else { limits::AUTH_CACHE_STALE_MAX };
        self.valid.retain(|_, known| known.age(now) < age_max && !known.is_expired());
    }

    fn apply_changes(&mut self) {
        let Self { feed, valid, refused, pending, under_way, .. } = self;
        let mut outdate = |concerned: &dyn Fn(&Pending) -> bool| {
            for pending in pending.values_mut().filter(|pending| !pending.is_outdated && concerned(pending)) {
                pending.is_outdated = true;
                under_way.remove(&pending.digest);
            }
            refused.clear();
        };
        let all_are_known = feed.drain_verifier(|change| {
            if change == StoreChange::Everything {
                for (_, known) in valid.iter() {
                    known.good_until.set(known.grant.verified_at);
                    known.away_until.set(None);
                }
            } else {
                valid.retain(|_, known| !known.grant.concerns(change));
            }
            // Which organisation a pending key belongs to is not known yet.
            outdate(&|pending| !matches!(change, StoreChange::Key(key) if key != pending.key));
        });
        if !all_are_known {
            // The changes that were dropped may have concerned any key.
            valid.clear();
            outdate(&|_| true);
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use millrace_base::event::OrgId;

    use super::*;

    const DIGEST: Digest = [1; 32];

    fn key() -> KeyId {
        KeyId::parse("abcdefghijkl").unwrap()
    }

    fn grant(verified_at: Instant) -> Arc<Grant> {
        Arc::new(Grant {
            key: key(),
            org: OrgId(Uuid::from_u128(1)),
            is_org_disabled: false,
            rate_limit_per_minute: 0,
            windows: Arc::default(),
            expires_at: None,
            verified_at,
        })
    }

    struct Shard {
        known: KnownKeys,
        feed: Arc<ChangeFeed>,
        now: Instant,
    }

    impl Shard {
        fn new() -> Self {
            let feed = ChangeFeed::new(0);
            Self { known: KnownKeys::new(Arc::clone(&feed)), feed, now: Instant::now() }
        }

        /// Asks; returns the id of a verification to run, or none if the key is answered at once or already under way.
        fn ask(&mut self) -> (Option<VerificationId>, oneshot::Receiver<Verdict>) {
            let (reply, verdict) = oneshot::channel();
            (self.known.ask(DIGEST, key(), reply, self.now), verdict)
        }

        /// Asks, and answers with `found` if the key has to be verified.
        fn verdict(&mut self, found: Verdict) -> &'static str {
            let (id, mut verdict) = self.ask();
            let is_asked = id.is_some();
            if let Some(id) = id {
                self.known.complete(id, found, self.now);
            }
            match (is_asked, verdict.try_recv().unwrap().expect("answered")) {
                (true, Verdict::Valid(_)) => "verified",
                (false, Verdict::Valid(_)) => "known",
                (true, Verdict::Unavailable(Some(_))) => "asked in vain, known",
                (false, Verdict::Unavailable(Some(_))) => "known to be away, known",
                (_, Verdict::Unavailable(None)) => "away",
                (true, Verdict::Invalid) => "refused",
                (false, Verdict::Invalid) => "known to be refused",
                (_, Verdict::Busy) => "busy",
            }
        }

        fn valid(&self) -> Verdict {
            Verdict::Valid(grant(self.now))
        }
    }

    const AWAY: Verdict = Verdict::Unavailable(None);

    #[test]
    fn a_verified_key_is_known_until_it_has_to_be_verified_again() {
        let mut shard = Shard::new();
        assert_eq!(shard.verdict(AWAY), "away");
        assert_eq!(shard.verdict(shard.valid()), "verified");
        assert_eq!(shard.verdict(AWAY), "known");
        shard.now += limits::AUTH_CACHE_REFRESH_AGE;
        assert_eq!(shard.verdict(shard.valid()), "verified");
        assert_eq!(shard.verdict(AWAY), "known");
    }

    #[test]
    fn with_the_database_away_a_key_is_served_for_a_bounded_time() {
        let mut shard = Shard::new();
        let start = shard.now;
        shard.verdict(shard.valid());
        shard.now += limits::AUTH_CACHE_REFRESH_AGE;
        assert_eq!(shard.verdict(AWAY), "asked in vain, known");
        assert_eq!(shard.verdict(AWAY), "known to be away, known");
        shard.now += AWAY_PAUSE;
        assert_eq!(shard.verdict(AWAY), "asked in vain, known");
        shard.feed.publish_for_test(StoreChange::Everything);
        assert_eq!(shard.verdict(AWAY), "asked in vain, known", "it is back, or not for long");
        shard.feed.publish_for_test(StoreChange::Everything);
        assert_eq!(shard.verdict(Verdict::Invalid), "refused", "revoked meanwhile");
        shard.now += REFUSED_TTL;
        assert_eq!(shard.verdict(AWAY), "away");
        shard.verdict(Verdict::Valid(grant(start)));
        shard.now = start + limits::AUTH_CACHE_STALE_MAX;
        assert_eq!(shard.verdict(AWAY), "away");
    }

    #[test]
    fn a_change_drops_what_it_concerns() {
        let other = KeyId::parse("bbbbbbbbbbbb").unwrap();
        for (change, then) in [
            (StoreChange::Key(key()), "away"),
            (StoreChange::Key(other), "known"),
            (StoreChange::Organization(OrgId(Uuid::from_u128(1))), "away"),
            (StoreChange::Organization(OrgId(Uuid::from_u128(2))), "known"),
        ] {
            let mut shard = Shard::new();
            shard.verdict(shard.valid());
            shard.feed.publish_for_test(change);
            assert_eq!(shard.verdict(AWAY), then, "{change:?}");
        }
        let mut shard = Shard::new();
        shard.verdict(shard.valid());
        for _ in 0..=limits::STORE_CHANGES_MAX {
            shard.feed.publish_for_test(StoreChange::Key(other));
        }
        assert_eq!(shard.verdict(AWAY), "away", "one did not fit, and may have been this key's");
    }

    #[test]
    fn a_verification_is_joined_until_a_change_overtakes_it() {
        let mut shard = Shard::new();
        let (first, mut one) = shard.ask();
        let (joined, mut two) = shard.ask();
        assert!(first.is_some() && joined.is_none() && two.try_recv().unwrap().is_none());
        shard.feed.publish_for_test(StoreChange::Key(key()));
        let (second, mut three) = shard.ask();
        assert!(second.is_some() && second != first, "the first one's verdict is of before the change");
        let valid = shard.valid();
        shard.known.complete(first.unwrap(), valid, shard.now);
        for early in [&mut one, &mut two] {
            assert!(matches!(early.try_recv().unwrap(), Some(Verdict::Valid(_))));
        }
        assert!(three.try_recv().unwrap().is_none());
        shard.known.complete(second.unwrap(), Verdict::Invalid, shard.now);
        assert!(matches!(three.try_recv().unwrap(), Some(Verdict::Invalid)));
        assert_eq!(shard.verdict(shard.valid()), "known to be refused");
        shard.now += REFUSED_TTL;
        assert_eq!(shard.verdict(AWAY), "away", "what was overtaken is not kept");
        assert!(shard.known.pending.is_empty() && shard.known.under_way.is_empty());
    }
}
