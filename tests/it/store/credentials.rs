//! Organisations and keys: what both stores must do.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use uuid::Uuid;

use millrace_base::clock::Timestamp;
use millrace_base::event::OrgId;
use millrace_base::key::KeyId;
use millrace_base::limits;
use millrace_store::{OrganizationChange, Rejection, Store, StoreChange, StoreError};
use support::postgres::wait_for;

use crate::store::fixture::{Fixture, key, on_both_stores};

on_both_stores!(
    an_organisation_is_made_with_its_key,
    names_are_unique_and_sensible,
    only_one_first_organisation,
    an_organisation_changes_field_by_field,
    keys_are_added_listed_and_touched,
    live_keys_are_counted_by_whoever_makes_one,
    keys_that_ended_go_in_the_end,
    rotation_leaves_the_old_key_its_grace,
    revocation_is_final,
    a_taken_key_id_changes_nothing,
    other_instances_hear_of_changes_within_a_second,
    watching_ends_soon_after_stop,
);

fn is_rejected<T: std::fmt::Debug>(result: Result<T, StoreError>, with: Rejection) {
    assert_eq!(result.unwrap_err(), StoreError::Rejected(with));
}

fn an_organisation_is_made_with_its_key(fixture: &Fixture) {
    let store = fixture.migrated();
    let (id, verifier) = key();
    let before = Timestamp::now();
    let made = store.create_organization("acme", Some(0), (id, &verifier)).unwrap();
    assert_eq!((made.name.as_str(), made.rate_limit_per_minute, made.disabled), ("acme", Some(0), false));
    assert!(made.created_at >= before && made.created_at <= Timestamp::now());
    let found = store.find_key(id).unwrap().unwrap();
    assert_eq!((found.info.id, found.info.org), (id, made.id));
    assert_eq!(found.verifier, verifier);
    assert_eq!((found.org_disabled, found.rate_limit_per_minute), (false, Some(0)));
    assert_eq!((found.info.last_used_at, found.info.expires_at, found.info.revoked_at), (None, None, None));
    assert!(store.find_key(key().0).unwrap().is_none());
}

fn names_are_unique_and_sensible(fixture: &Fixture) {
    let store = fixture.migrated();
    let create = |name: &str| {
        let (id, verifier) = key();
        store.create_organization(name, None, (id, &verifier))
    };
    let beta = create("beta").unwrap();
    let alpha = create("alpha").unwrap();
    is_rejected(create("beta"), Rejection::NameTaken("beta".to_owned()));
    for name in ["", "a\nb", "a\0b", &"x".repeat(129), &Uuid::now_v7().to_string()] {
        let refused = create(name);
        assert!(matches!(refused, Err(StoreError::Rejected(Rejection::InvalidName(_)))), "{refused:?}");
    }
    let longest = create(&"ż".repeat(128)).unwrap();
    assert_eq!(store.organizations().unwrap(), [alpha.clone(), beta.clone(), longest]);
    assert_eq!(store.organization("alpha"), Ok(alpha.clone()));
    assert_eq!(store.organization(&alpha.id.to_string()), Ok(alpha));
    for unknown in ["gamma".to_owned(), Uuid::now_v7().to_string()] {
        is_rejected(store.organization(&unknown), Rejection::NoSuchOrganization(unknown));
    }
    let rename = OrganizationChange { name: Some("alpha".to_owned()), ..OrganizationChange::default() };
    is_rejected(store.update_organization(beta.id, &rename), Rejection::NameTaken("alpha".to_owned()));
}

fn only_one_first_organisation(fixture: &Fixture) {
    fixture.migrated();
    let made: usize = thread::scope(|scope| {
        let threads: Vec<_> = (0..6)
            .map(|n| {
                scope.spawn(move || {
                    let (id, verifier) = key();
                    fixture.open().create_first_organization(&format!("first-{n}"), (id, &verifier)).unwrap()
                })
            })
            .collect();
        threads.into_iter().filter_map(|thread| thread.join().unwrap()).count()
    });
    assert_eq!(made, 1);
    assert_eq!(fixture.count("SELECT count(*) FROM organizations"), 1);
    assert_eq!(fixture.count("SELECT count(*) FROM api_keys"), 1);
}

fn an_organisation_changes_field_by_field(fixture: &Fixture) {
    let store = fixture.migrated();
    let (id, verifier) = key();
    let made = store.create_organization("acme", Some(5), (id, &verifier)).unwrap();
    let unchanged = store.update_organization(made.id, &OrganizationChange::default()).unwrap();
    assert_eq!(unchanged, made);
    let change = OrganizationChange { disabled: Some(true), ..OrganizationChange::default() };
    assert!(store.update_organization(made.id, &change).unwrap().disabled);
    let change = OrganizationChange { rate_limit_per_minute: Some(None), ..OrganizationChange::default() };
    assert_eq!(store.update_organization(made.id, &change).unwrap().rate_limit_per_minute, None);
    let change = OrganizationChange {
        name: Some("acme 2".to_owned()),
        rate_limit_per_minute: Some(Some(u32::MAX)),
        disabled: Some(false),
    };
    let changed = store.update_organization(made.id, &change).unwrap();
    assert_eq!((changed.name.as_str(), changed.rate_limit_per_minute), ("acme 2", Some(u32::MAX)));
    assert_eq!(store.find_key(id).unwrap().unwrap().rate_limit_per_minute, Some(u32::MAX));
    let unknown = OrgId(Uuid::now_v7());
    is_rejected(store.update_organization(unknown, &change), Rejection::NoSuchOrganization(unknown.to_string()));
}

fn keys_are_added_listed_and_touched(fixture: &Fixture) {
    let store = fixture.migrated();
    let (first, verifier) = key();
    let org = store.create_organization("acme", None, (first, &verifier)).unwrap().id;
    let (second, verifier) = key();
    store.create_key(org, (second, &verifier)).unwrap();
    let unknown = OrgId(Uuid::now_v7());
    let refused = store.create_key(unknown, (key().0, &verifier));
    is_rejected(refused, Rejection::NoSuchOrganization(unknown.to_string()));
    store.touch_key(second).unwrap();
    store.touch_key(key().0).unwrap();
    let (keys, more) = store.keys(org, 2).unwrap();
    assert!(!more);
    assert_eq!(keys.iter().map(|key| key.id).collect::<Vec<_>>(), [second, first]);
    assert!(keys[0].last_used_at.is_some_and(|at| at >= keys[0].created_at));
    assert_eq!(keys[1].last_used_at, None);
    assert_eq!(store.keys(OrgId(Uuid::now_v7()), 2), Ok((vec![], false)));
}

fn live_keys_are_counted_by_whoever_makes_one(fixture: &Fixture) {
    let store = fixture.migrated();
    let (first, verifier) = key();
    let org = store.create_organization("acme", None, (first, &verifier)).unwrap().id;
    let create = || match store.create_key(org, (key().0, &verifier)) {
        Ok(()) => true,
        Err(StoreError::Rejected(Rejection::TooManyKeys)) => false,
        Err(error) => panic!("{error}"),
    };
    let made: usize = thread::scope(|scope| {
        let makers = [(); 4].map(|()| scope.spawn(|| (0..40).filter(|_| create()).count()));
        makers.into_iter().map(|maker| maker.join().unwrap()).sum()
    });
    assert_eq!(made, limits::LIVE_KEYS_PER_ORG_MAX - 1);
    // Another organisation's are another matter.
    let other = store.create_organization("other", None, (key().0, &verifier)).unwrap().id;
    store.create_key(other, (key().0, &verifier)).unwrap();
    // A rotation that would make one more for a while changes nothing; one that does not is taken.
    let refused = store.rotate_key(first, (key().0, &verifier), Duration::from_secs(1));
    assert!(matches!(refused, Err(StoreError::Rejected(Rejection::TooManyKeys))), "{refused:?}");
    assert_eq!(store.find_key(first).unwrap().unwrap().info.expires_at, None);
    let second = key().0;
    store.rotate_key(first, (second, &verifier), Duration::ZERO).unwrap();
    assert!(!create());
    store.revoke_key(None, second).unwrap();
    assert!(create() && !create());
    // Cut, a list shows the live ones.
    let (shown, more) = store.keys(org, limits::LIVE_KEYS_PER_ORG_MAX).unwrap();
    assert!(more && shown.iter().all(|key| key.revoked_at.is_none() && key.expires_at.is_none()));
    assert!(shown.is_sorted_by_key(|key| std::cmp::Reverse(key.created_at)));
    assert_eq!(shown.len(), limits::LIVE_KEYS_PER_ORG_MAX);
    assert!(!store.keys(org, limits::LIVE_KEYS_PER_ORG_MAX + 2).unwrap().1);
}

fn keys_that_ended_go_in_the_end(fixture: &Fixture) {
    let store = fixture.migrated();
    let (first, verifier) = key();
    let org = store.create_organization("acme", None, (first, &verifier)).unwrap().id;
    let mut last = first;
    for _ in 0..limits::ENDED_KEYS_PER_ORG_MAX + 10 {
        let next = key().0;
        store.rotate_key(last, (next, &verifier), Duration::ZERO).unwrap();
        last = next;
    }
    // Those that ended last are kept, and the live one.
    let (kept, more) = store.keys(org, 10_000).unwrap();
    assert_eq!((kept.len(), more), (limits::ENDED_KEYS_PER_ORG_MAX + 1, false));
    assert!(kept[0].id == last && store.find_key(first).unwrap().is_none());
    // Housekeeping takes them in pages, and none that ended later.
    let sweep = |ended_before| {
        let (mut after, mut calls) = (None, 0);
        while let Some(next) = store.delete_ended_keys(ended_before, after).unwrap() {
            (after, calls) = (Some(next), calls + 1);
        }
        (calls, store.keys(org, 10_000).unwrap().0.len())
    };
    assert_eq!(sweep(kept[0].created_at.plus(Duration::from_secs(1))), (1, 1));
    store.revoke_key(None, last).unwrap();
    assert_eq!(sweep(kept[0].created_at), (1, 1), "revoked after that");
    assert_eq!(store.delete_ended_keys(Timestamp::now().plus(Duration::from_secs(1)), None), Ok(Some(last)));
    assert_eq!(store.delete_ended_keys(Timestamp::now(), None), Ok(None));
}

fn rotation_leaves_the_old_key_its_grace(fixture: &Fixture) {
    let store = fixture.migrated();
    let (old, verifier) = key();
    let org = store.create_organization("acme", None, (old, &verifier)).unwrap().id;
    let rotate = |old: KeyId, grace| {
        let (new, verifier) = key();
        store.rotate_key(old, (new, &verifier), grace).map(|expires_at| (new, expires_at))
    };
    let hour = Duration::from_secs(3600);
    let before = Timestamp::now();
    let (new, expires_at) = rotate(old, hour).unwrap();
    assert!(expires_at >= before.plus(hour) && expires_at <= Timestamp::now().plus(hour));
    assert_eq!(store.find_key(old).unwrap().unwrap().info.expires_at, Some(expires_at));
    let new_info = store.find_key(new).unwrap().unwrap().info;
    assert_eq!((new_info.org, new_info.expires_at), (org, None));
    // A second rotation never gives an old key more time, and may take some.
    assert_eq!(rotate(old, 2 * hour).unwrap().1, expires_at);
    assert!(rotate(old, Duration::ZERO).unwrap().1 <= Timestamp::now());
    is_rejected(rotate(old, hour), Rejection::KeyNotValid(old));
    let unknown = key().0;
    is_rejected(rotate(unknown, hour), Rejection::KeyNotValid(unknown));
    store.revoke_key(None, new).unwrap();
    is_rejected(rotate(new, hour), Rejection::KeyNotValid(new));
}

fn revocation_is_final(fixture: &Fixture) {
    let store = fixture.migrated();
    let (mine, verifier) = key();
    let org = store.create_organization("acme", None, (mine, &verifier)).unwrap().id;
    assert_eq!(store.revoke_key(Some(OrgId(Uuid::now_v7())), mine), Ok(false));
    assert_eq!(store.revoke_key(None, key().0), Ok(false));
    assert_eq!(store.find_key(mine).unwrap().unwrap().info.revoked_at, None);
    assert_eq!(store.revoke_key(Some(org), mine), Ok(true));
    let revoked_at = store.find_key(mine).unwrap().unwrap().info.revoked_at;
    assert!(revoked_at.is_some());
    assert_eq!(store.revoke_key(None, mine), Ok(true));
    assert_eq!(store.find_key(mine).unwrap().unwrap().info.revoked_at, revoked_at);
}

fn a_taken_key_id_changes_nothing(fixture: &Fixture) {
    let store = fixture.migrated();
    let (id, verifier) = key();
    let org = store.create_organization("acme", None, (id, &verifier)).unwrap().id;
    is_rejected(store.create_organization("other", None, (id, &verifier)), Rejection::KeyIdTaken);
    is_rejected(store.create_key(org, (id, &verifier)), Rejection::KeyIdTaken);
    is_rejected(store.rotate_key(id, (id, &verifier), Duration::ZERO), Rejection::KeyIdTaken);
    assert_eq!(store.organizations().unwrap().len(), 1);
    assert_eq!(store.find_key(id).unwrap().unwrap().info.expires_at, None);
}

/// What a watching instance was told, and when.
type Heard = Mutex<Vec<(StoreChange, Instant)>>;

fn watching(store: &dyn Store, then: impl FnOnce(&Heard)) {
    let stop = AtomicBool::new(false);
    let heard = Heard::default();
    thread::scope(|scope| {
        let watcher = scope
            .spawn(|| store.watch_changes(&stop, &mut |change| heard.lock().unwrap().push((change, Instant::now()))));
        wait_for("the first word", || !heard.lock().unwrap().is_empty());
        assert_eq!(heard.lock().unwrap()[0].0, StoreChange::Everything);
        then(&heard);
        stop.store(true, Ordering::Relaxed);
        assert_eq!(watcher.join().unwrap(), Ok(()));
    });
}

fn other_instances_hear_of_changes_within_a_second(fixture: &Fixture) {
    let store = fixture.migrated();
    let (old, verifier) = key();
    let org = store.create_organization("acme", None, (old, &verifier)).unwrap().id;
    watching(&*fixture.open(), |heard| {
        let (new, verifier) = key();
        let expect = |change: StoreChange, cause: &dyn Fn()| {
            heard.lock().unwrap().clear();
            cause();
            let caused = Instant::now();
            wait_for("the change", || !heard.lock().unwrap().is_empty());
            let (told, at) = heard.lock().unwrap()[0];
            assert_eq!(told, change);
            assert!(at.saturating_duration_since(caused) < Duration::from_secs(1));
        };
        expect(StoreChange::Key(old), &|| {
            store.rotate_key(old, (new, &verifier), Duration::from_secs(60)).unwrap();
        });
        expect(StoreChange::Key(new), &|| assert!(store.revoke_key(None, new).unwrap()));
        let change = OrganizationChange { disabled: Some(true), ..OrganizationChange::default() };
        expect(StoreChange::Organization(org), &|| {
            store.update_organization(org, &change).unwrap();
        });
    });
}

fn watching_ends_soon_after_stop(fixture: &Fixture) {
    let store = fixture.migrated();
    let stopped = Mutex::new(None);
    watching(&*store, |_| *stopped.lock().unwrap() = Some(Instant::now()));
    let took = stopped.lock().unwrap().unwrap().elapsed();
    assert!(took < Duration::from_secs(1), "{took:?}");
}
