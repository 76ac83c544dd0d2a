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
    assert_eq!(look(&mut cache, b"k", aged + REFRESH_INTERVAL), "aging", "and again if the refresh failed");
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
fn after_missed_changes_keys_are_checked_or_served_stale() {
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
fn an_expired_cache_entry_is_served_briefly_without_database() {
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
fn a_flood_of_refused_keys_evicts_no_valid_ones() {
    let mut cache = AuthCache::new(0, ChangeFeed::new(1)).unwrap();
    let now = Instant::now();
    verified(&mut cache, b"good", grant(KEY, 1, None), now).unwrap();
    for n in 0..(REFUSED_ENTRIES_MAX as u32 * 3) {
        let _ = verified(&mut cache, &n.to_le_bytes(), invalid, now);
    }
    assert!(cache.refused.len() <= REFUSED_ENTRIES_MAX);
    assert_eq!(look(&mut cache, b"good", now), "hit");
}
