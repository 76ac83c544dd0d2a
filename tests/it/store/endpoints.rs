//! Endpoints: what both stores must do.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use uuid::Uuid;

use millrace_base::clock::Timestamp;
use millrace_base::event::{EndpointId, OrgId};
use millrace_base::limits;
use millrace_store::webhooks::{
    DeliveryStatus, EndedStep, Endpoint, EndpointChange, KeyFingerprint, NewEndpoint, Next, Rotation, SealedSecret,
};
use millrace_store::{OrganizationChange, Rejection, Store, StoreChange, StoreError};
use support::postgres::wait_for;

use crate::store::fixture::{Fixture, event, on_both_stores, org as no_org};
use crate::store::webhooks::{
    KEY, deliveries, due_endpoints, endpoint, find, in_seconds, list, new_endpoint, organization, planned, record_all,
    result, rotation, status,
};

on_both_stores!(
    an_endpoint_comes_back_as_it_was_made,
    a_change_touches_what_it_names,
    organisations_do_not_see_each_others,
    an_organisation_has_a_bounded_number_also_from_many_threads,
    a_rotated_secret_stays_beside_the_new_one,
    disabling_says_why_and_enabling_forgets_it,
    failing_adds_up_what_was_lived_through,
    pages_of_all_endpoints_go_by_id,
    deleting_fails_what_is_pending,
    deliveries_of_a_deleted_endpoint_fail_in_steps,
    a_large_backlog_of_a_deleted_endpoint_fails_in_steps,
    other_instances_hear_of_every_change,
    a_key_that_is_not_the_stores_seals_nothing,
    of_first_endpoints_made_at_once_one_key_seals_all,
    what_cannot_be_opened_is_not_kept_as_previous,
    a_row_that_cannot_be_read_is_alone,
    what_is_due_for_a_disabled_organisation_is_nobodys,
    servers_hear_of_each_others_schedules,
);

fn is_rejected<T: std::fmt::Debug>(result: Result<T, StoreError>, with: Rejection) {
    assert_eq!(result.unwrap_err(), StoreError::Rejected(with));
}

fn an_endpoint_comes_back_as_it_was_made(fixture: &Fixture) {
    let store = fixture.migrated();
    let org = organization(&*store);
    let new = NewEndpoint {
        description: "żółw 🐢".to_owned(),
        event_types: Some(vec!["user.*".to_owned(), "order.paid".to_owned()]),
        headers: vec![("X-B".to_owned(), "\"1\"".to_owned()), ("X-A".to_owned(), String::new())],
        enabled: false,
        rate_limit_per_second: Some(u32::MAX),
        secret: SealedSecret((0..=255).collect()),
        ..new_endpoint(org)
    };
    let before = Timestamp::now();
    let made = store.create_endpoint(&new).unwrap();
    assert_eq!((made.id, made.org, &made.url, &made.description), (new.id, org, &new.url, &new.description));
    assert_eq!((&made.event_types, &made.headers, made.enabled), (&new.event_types, &new.headers, false));
    assert_eq!((made.rate_limit_per_second, &made.secret), (new.rate_limit_per_second, &new.secret));
    assert_eq!((&made.previous_secret, &made.disabled_reason, made.failing_since), (&None, &None, None));
    assert!(made.created_at >= before && made.created_at <= Timestamp::now());
    assert_eq!(store.endpoint(org, new.id), Ok(Some(made.clone())));
    let second = endpoint(&*store, org);
    assert_eq!(store.endpoints(org), Ok(vec![Ok(second), Ok(made)]));
    is_rejected(store.create_endpoint(&new), Rejection::EndpointIdTaken);
    let nobody = no_org();
    let refused = store.create_endpoint(&new_endpoint(nobody));
    is_rejected(refused, Rejection::NoSuchOrganization(nobody.to_string()));
}

fn a_change_touches_what_it_names(fixture: &Fixture) {
    let store = fixture.migrated();
    let org = organization(&*store);
    let mut expected = endpoint(&*store, org);
    let id = expected.id;
    let mut check = |change: EndpointChange, edit: &dyn Fn(&mut Endpoint)| {
        edit(&mut expected);
        let changed = store.update_endpoint(org, id, &change).unwrap().unwrap();
        if change.enabled == Some(true) {
            assert!(changed.enabled_at > expected.enabled_at, "enabling begins anew, whatever it was");
            expected.enabled_at = changed.enabled_at;
        }
        assert_eq!(changed, expected);
        assert_eq!(store.endpoint(org, id), Ok(Some(expected.clone())));
    };
    let change = EndpointChange::default;
    check(change(), &|_| {});
    check(EndpointChange { url: Some("https://b.example/".to_owned()), ..change() }, &|endpoint| {
        "https://b.example/".clone_into(&mut endpoint.url);
    });
    check(EndpointChange { description: Some("d".to_owned()), ..change() }, &|endpoint| {
        "d".clone_into(&mut endpoint.description);
    });
    for types in [Some(vec!["a".to_owned()]), Some(Vec::new()), None] {
        check(EndpointChange { event_types: Some(types.clone()), ..change() }, &|endpoint| {
            endpoint.event_types.clone_from(&types);
        });
    }
    let headers = vec![("A".to_owned(), "1".to_owned())];
    check(EndpointChange { headers: Some(headers.clone()), ..change() }, &|endpoint| {
        endpoint.headers.clone_from(&headers);
    });
    for limit in [Some(5), None] {
        check(EndpointChange { rate_limit_per_second: Some(limit), ..change() }, &|endpoint| {
            endpoint.rate_limit_per_second = limit;
        });
    }
    for enabled in [false, true, true] {
        check(EndpointChange { enabled: Some(enabled), ..change() }, &|endpoint| endpoint.enabled = enabled);
    }
    assert_eq!(store.update_endpoint(org, EndpointId(Uuid::now_v7()), &change()), Ok(None));
}

fn organisations_do_not_see_each_others(fixture: &Fixture) {
    let store = fixture.migrated();
    let (mine, theirs) = (organization(&*store), organization(&*store));
    let endpoint = endpoint(&*store, mine);
    let id = endpoint.id;
    assert_eq!(store.endpoint(theirs, id), Ok(None));
    assert_eq!(store.endpoints(theirs), Ok(Vec::new()));
    let change = EndpointChange { url: Some("https://evil.example/".to_owned()), ..EndpointChange::default() };
    assert_eq!(store.update_endpoint(theirs, id, &change), Ok(None));
    assert_eq!(store.rotate_endpoint_secret(theirs, id, rotation(&SealedSecret(vec![6]), Timestamp::now())), Ok(None));
    assert_eq!(store.delete_endpoint(theirs, id), Ok(false));
    assert_eq!(store.endpoint(mine, id), Ok(Some(endpoint)));
}

fn an_organisation_has_a_bounded_number_also_from_many_threads(fixture: &Fixture) {
    let store = fixture.migrated();
    let (org, other) = (organization(&*store), organization(&*store));
    let made: usize = thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    let made = (0..20).map(|_| store.create_endpoint(&new_endpoint(org)));
                    made.filter(|made| match made {
                        Ok(_) => true,
                        Err(StoreError::Rejected(Rejection::TooManyEndpoints)) => false,
                        Err(error) => panic!("{error}"),
                    })
                    .count()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(made, limits::ENDPOINTS_PER_ORG_MAX);
    let all = store.endpoints(org).unwrap();
    assert_eq!(all.len(), limits::ENDPOINTS_PER_ORG_MAX);
    endpoint(&*store, other);
    assert_eq!(store.delete_endpoint(org, all[0].as_ref().unwrap().id), Ok(true));
    endpoint(&*store, org);
    is_rejected(store.create_endpoint(&new_endpoint(org)), Rejection::TooManyEndpoints);
}

fn a_rotated_secret_stays_beside_the_new_one(fixture: &Fixture) {
    let store = fixture.migrated();
    let org = organization(&*store);
    let first = endpoint(&*store, org);
    let until = Timestamp::from_micros(4_000_000_000_000_001);
    for (n, before) in [(1, first.secret.clone()), (2, SealedSecret(vec![1; 60]))] {
        let new = SealedSecret(vec![n; 60]);
        let rotated = store.rotate_endpoint_secret(org, first.id, rotation(&new, until)).unwrap().unwrap();
        assert_eq!((&rotated.secret, &rotated.previous_secret), (&new, &Some((before, until))));
        assert_eq!(store.endpoint(org, first.id), Ok(Some(rotated)));
    }
    let missing = EndpointId(Uuid::now_v7());
    assert_eq!(store.rotate_endpoint_secret(org, missing, rotation(&first.secret, until)), Ok(None));
}

fn disabling_says_why_and_enabling_forgets_it(fixture: &Fixture) {
    let store = fixture.migrated();
    let org = organization(&*store);
    let id = endpoint(&*store, org).id;
    let since = Timestamp::from_micros(1_700_000_000_000_000);
    store.note_failing(&[(id, Some(Duration::ZERO))], since).unwrap();
    assert_eq!(store.disable_endpoint(id, "410 Gone"), Ok(true));
    assert_eq!(store.disable_endpoint(id, "another reason"), Ok(false));
    assert_eq!(store.disable_endpoint(EndpointId(Uuid::now_v7()), "why"), Ok(false));
    let disabled = store.endpoint(org, id).unwrap().unwrap();
    assert_eq!((disabled.enabled, disabled.disabled_reason.as_deref()), (false, Some("410 Gone")));
    assert_eq!(disabled.failing_since, Some(since));
    let enable = EndpointChange { enabled: Some(true), ..EndpointChange::default() };
    let enabled = store.update_endpoint(org, id, &enable).unwrap().unwrap();
    assert_eq!((enabled.enabled, enabled.disabled_reason, enabled.failing_since), (true, None, None));
    // It begins anew, and so does one that is moved.
    let five_days = since.plus(limits::ENDPOINT_DISABLE_AFTER);
    let failed = |now| store.note_failing(&[(id, Some(limits::ENDPOINT_FAILING_STEP_MAX))], now).unwrap();
    assert_eq!(failed(five_days), [(id, Duration::ZERO)]);
    assert_eq!(failed(five_days.plus(Duration::from_secs(3))), [(id, Duration::from_secs(3))]);
    let url = |url: &str| EndpointChange { url: Some(url.to_owned()), ..EndpointChange::default() };
    store.update_endpoint(org, id, &url(&enabled.url)).unwrap();
    assert_eq!(failed(five_days.plus(Duration::from_secs(4))), [(id, Duration::from_secs(4))]);
    let moved = store.update_endpoint(org, id, &url("https://elsewhere.test/")).unwrap().unwrap();
    assert_eq!(moved.failing_since, None);
    assert_eq!(failed(five_days.plus(Duration::from_secs(5))), [(id, Duration::ZERO)]);
    // The owner gives no reason.
    let disable = EndpointChange { enabled: Some(false), ..EndpointChange::default() };
    assert_eq!(store.update_endpoint(org, id, &disable).unwrap().unwrap().disabled_reason, None);
}

fn failing_adds_up_what_was_lived_through(fixture: &Fixture) {
    let store = fixture.migrated();
    let org = organization(&*store);
    let (a, b) = (endpoint(&*store, org).id, endpoint(&*store, org).id);
    let missing = EndpointId(Uuid::now_v7());
    let start = Timestamp::from_micros(1_700_000_000_000_000);
    let hour = 3600;
    let (day, year) = (24 * hour, 365 * 24 * hour);
    // When it is noted, what the server saw, what it is then in all; in seconds.
    let steps: &[(i64, Option<u64>, u64)] = &[
        (0, None, 0),
        (10, Some(4), 0),
        (20, Some(10), 10),
        // A second server, which saw the same time: no more than passed.
        (21, Some(15), 11),
        // The call was repeated, its answer lost.
        (21, Some(15), 11),
        // Set forward: no more than was lived through. Set back: nothing.
        (400 * 24 * 3600, Some(9), 20),
        (-(year as i64), Some(100), 20),
        (-(year as i64) + 5, Some(100), 25),
        // A long pause between two failures counts as a day.
        (40 * day as i64, Some(10 * day), 25 + day),
        (40 * day as i64 + 1, None, 0),
        (41 * day as i64, Some(day), 0),
        (42 * day as i64, Some(day), day),
    ];
    for (at, note, failing) in steps {
        let now = Timestamp::from_micros(start.as_micros() + at * 1_000_000);
        let note = note.map(Duration::from_secs);
        let probes = [(b, note), (missing, Some(Duration::ZERO)), (a, None)];
        let mut noted = store.note_failing(&probes, now).unwrap();
        noted.sort();
        assert_eq!(noted, [(a, Duration::ZERO), (b, Duration::from_secs(*failing))], "{at}");
        assert_eq!(store.endpoint(org, b).unwrap().unwrap().failing_since.is_some(), note.is_some());
    }
    assert_eq!(store.note_failing(&[], start), Ok(Vec::new()));
}

fn pages_of_all_endpoints_go_by_id(fixture: &Fixture) {
    let store = fixture.migrated();
    let orgs = [organization(&*store), organization(&*store)];
    let mut ids: Vec<EndpointId> = (0..7).map(|n| endpoint(&*store, orgs[n % 2]).id).collect();
    ids.sort();
    let (mut seen, mut after) = (Vec::new(), None);
    loop {
        let page = store.all_endpoints(after, 3).unwrap();
        seen.extend(page.iter().flatten().map(|endpoint| endpoint.id));
        let Some(Ok(last)) = page.last() else { break };
        after = Some(last.id);
    }
    assert_eq!(seen, ids);
}

fn deleting_fails_what_is_pending(fixture: &Fixture) {
    let store = fixture.migrated();
    let org = organization(&*store);
    let (gone, kept) = (endpoint(&*store, org).id, endpoint(&*store, org).id);
    let lease = Timestamp::from_micros(4_000_000_000_000_000);
    let delivered = deliveries(&*store, org, gone, 1, Some(lease))[0];
    assert_eq!(record_all(&*store, &[result(delivered, 1, lease, Next::Delivered)]), Ok(1));
    let due = deliveries(&*store, org, gone, 3, None);
    let claimed = deliveries(&*store, org, gone, 1, Some(lease))[0];
    let others = deliveries(&*store, org, kept, 1, None)[0];
    assert_eq!(store.delete_endpoint(org, gone), Ok(true));
    assert_eq!(store.delete_endpoint(org, gone), Ok(false));
    assert_eq!(store.endpoint(org, gone), Ok(None));
    for id in due.iter().chain([&claimed]) {
        assert_eq!(status(&*store, org, *id), DeliveryStatus::Failed);
    }
    assert_eq!(list(&*store, org, Some(DeliveryStatus::Failed)).len(), 4);
    assert_eq!(status(&*store, org, delivered), DeliveryStatus::Delivered);
    assert_eq!(status(&*store, org, others), DeliveryStatus::Pending);
    assert_eq!(due_endpoints(&*store, Timestamp::now(), None, 10), Ok(vec![kept]));
    // Whoever sent it meanwhile says so.
    assert_eq!(record_all(&*store, &[result(claimed, 1, lease, Next::Delivered)]), Ok(1));
    assert_eq!(status(&*store, org, claimed), DeliveryStatus::Delivered);
    assert_eq!(list(&*store, org, Some(DeliveryStatus::Failed)).len(), 3);
}

/// Whatever waits: due, claimed, or with attempts behind it.
fn deliveries_of_a_deleted_endpoint_fail_in_steps(fixture: &Fixture) {
    let store = fixture.migrated();
    let org = organization(&*store);
    let (gone, kept) = (endpoint(&*store, org).id, endpoint(&*store, org).id);
    let at_once = limits::ENDED_DELIVERIES_STEP as usize;
    let lease = in_seconds(600);
    let due = deliveries(&*store, org, gone, at_once + 5, None);
    let claimed = deliveries(&*store, org, gone, 3, Some(lease));
    let retried = deliveries(&*store, org, gone, 1, Some(lease))[0];
    let others = deliveries(&*store, org, kept, 1, None)[0];
    assert_eq!(record_all(&*store, &[result(retried, 1, lease, Next::RetryAt(in_seconds(900)))]), Ok(1));
    assert_eq!(store.org_of_endpoint(gone), Ok(Some(org)));
    let at = in_seconds(0);
    assert_eq!(store.end_deleted(gone, Timestamp::MIN, at), Ok(EndedStep::default()), "it is there");
    assert_eq!(store.delete_endpoint(org, gone), Ok(true));
    assert_eq!(store.org_of_endpoint(gone), Ok(None));
    assert_eq!(fixture.count("SELECT count(*) FROM deliveries WHERE status = 2"), at_once as i64);
    assert_eq!(due_endpoints(&*store, Timestamp::now(), None, 10), Ok(vec![gone, kept]));
    // From where the first step may have ended on, and from the beginning.
    let last = store.end_deleted(gone, Timestamp::MIN, at).unwrap();
    assert_eq!(last, EndedStep { ended: 9, next: None });
    assert_eq!(store.end_deleted(gone, Timestamp::MIN, at), Ok(EndedStep::default()));
    assert_eq!(store.pending_stats().unwrap().count, 1);
    assert_eq!(status(&*store, org, others), DeliveryStatus::Pending);
    for id in [due[0], due[at_once + 4], claimed[0], retried] {
        let record = find(&*store, org, id);
        let number = if id == retried { 2 } else { 1 };
        assert_eq!((record.delivery.status, record.delivery.attempts_made), (DeliveryStatus::Failed, number));
        let attempt = record.attempts.last().unwrap();
        assert_eq!((attempt.number, attempt.error.as_deref()), (number, Some("endpoint_deleted")));
    }
    assert_eq!(find(&*store, org, retried).attempts.len(), 2);
    // Whoever had sent them says so; a failure is no news.
    for (id, number) in [(claimed[0], 1), (retried, 2)] {
        assert_eq!(record_all(&*store, &[result(id, number, lease, Next::Delivered)]), Ok(1));
        let record = find(&*store, org, id);
        assert_eq!((record.delivery.status, record.attempts.len()), (DeliveryStatus::Delivered, number as usize));
        assert_eq!(record.attempts.last().unwrap().status_code, Some(204));
    }
    assert_eq!(record_all(&*store, &[result(claimed[1], 1, lease, Next::Failed)]), Ok(0));
    let reason = find(&*store, org, claimed[1]).attempts[0].error.clone();
    assert_eq!(reason.as_deref(), Some("endpoint_deleted"));
}

/// Each step goes on where the one before ended, and two that share the work do all of it.
fn a_large_backlog_of_a_deleted_endpoint_fails_in_steps(fixture: &Fixture) {
    let store = fixture.migrated();
    let org = organization(&*store);
    let gone = endpoint(&*store, org).id;
    let step = u64::from(limits::ENDED_DELIVERIES_STEP);
    let all = 4 * step + 7;
    deliveries(&*store, org, gone, all as usize, None);
    store.delete_endpoint(org, gone).unwrap();
    let ended = AtomicU64::new(step);
    thread::scope(|scope| {
        for _ in 0..2 {
            let (store, ended) = (fixture.open(), &ended);
            scope.spawn(move || {
                let mut from = Some(Timestamp::MIN);
                while let Some(at) = from {
                    let done = store.end_deleted(gone, at, Timestamp::now()).unwrap();
                    assert!(done.next.is_none_or(|next| next >= at));
                    ended.fetch_add(done.ended, Ordering::Relaxed);
                    from = done.next;
                }
            });
        }
    });
    // Where both were at the same it may be left to the next.
    ended.fetch_add(store.end_deleted(gone, Timestamp::MIN, Timestamp::now()).unwrap().ended, Ordering::Relaxed);
    assert_eq!(ended.into_inner(), all);
    assert_eq!(store.pending_stats().unwrap().count, 0);
    assert_eq!(due_endpoints(&*store, Timestamp::now(), None, 10), Ok(Vec::new()));
}

fn other_instances_hear_of_every_change(fixture: &Fixture) {
    let store = fixture.migrated();
    let org = organization(&*store);
    let (watcher, stop) = (fixture.open(), AtomicBool::new(false));
    let heard: Mutex<Vec<StoreChange>> = Mutex::default();
    thread::scope(|scope| {
        let watching = scope.spawn(|| watcher.watch_changes(&stop, &mut |change| heard.lock().unwrap().push(change)));
        wait_for("the first word", || !heard.lock().unwrap().is_empty());
        expect_changes(&*store, org, &heard);
        stop.store(true, Ordering::Relaxed);
        assert_eq!(watching.join().unwrap(), Ok(()));
    });
}

fn expect_changes(store: &dyn Store, org: OrgId, heard: &Mutex<Vec<StoreChange>>) {
    let expect = |expected: &[StoreChange], cause: &dyn Fn()| {
        heard.lock().unwrap().clear();
        cause();
        wait_for("the changes", || heard.lock().unwrap().len() >= expected.len());
        assert_eq!(*heard.lock().unwrap(), expected);
    };
    let new = new_endpoint(org);
    let id = new.id;
    let (endpoints, due) = (StoreChange::Endpoints(org), StoreChange::DeliveriesDue(id));
    expect(&[endpoints], &|| drop(store.create_endpoint(&new).unwrap()));
    let update = |enabled| EndpointChange { enabled, ..EndpointChange::default() };
    expect(&[endpoints], &|| drop(store.update_endpoint(org, id, &update(None)).unwrap()));
    expect(&[endpoints], &|| drop(store.update_endpoint(org, id, &update(Some(false))).unwrap()));
    expect(&[endpoints, due], &|| drop(store.update_endpoint(org, id, &update(Some(true))).unwrap()));
    expect(&[endpoints], &|| {
        store.rotate_endpoint_secret(org, id, rotation(&SealedSecret(vec![1]), Timestamp::now())).unwrap();
    });
    let lease = Timestamp::from_micros(4_000_000_000_000_000);
    let delivery = deliveries(store, org, id, 1, Some(lease))[0];
    assert_eq!(record_all(store, &[result(delivery, 1, lease, Next::Failed)]), Ok(1));
    let all_times = Timestamp::from_micros(0)..lease;
    expect(&[due], &|| assert_eq!(store.recover_deliveries(org, id, all_times.clone(), 9, Timestamp::now()), Ok(1)));
    expect(&[due], &|| assert!(store.retry_delivery(org, delivery, Timestamp::now()).unwrap().is_some()));
    let test = event(org, "1");
    expect(&[due], &|| store.insert_test(&test, &planned(&test, id, None)).unwrap());
    // The last of it also shows that none of these said anything.
    expect(&[endpoints], &|| {
        store.note_failing(&[(id, Some(Duration::ZERO))], Timestamp::now()).unwrap();
        assert_eq!(store.recover_deliveries(org, id, all_times.clone(), 9, Timestamp::now()), Ok(0));
        assert_eq!(store.retry_delivery(no_org(), delivery, Timestamp::now()), Ok(None));
        assert_eq!(store.delete_endpoint(no_org(), id), Ok(false));
        thread::sleep(Duration::from_millis(300));
        assert_eq!(store.disable_endpoint(id, "why"), Ok(true));
    });
    expect(&[endpoints], &|| assert_eq!(store.delete_endpoint(org, id), Ok(true)));
}

const OTHER: KeyFingerprint = KeyFingerprint([9; 8]);

fn is_misconfigured<T: std::fmt::Debug>(result: Result<T, StoreError>) {
    let error = result.unwrap_err();
    assert!(matches!(&error, StoreError::Misconfigured(why) if why.contains("webhook_secret_key")), "{error:?}");
}

fn a_key_that_is_not_the_stores_seals_nothing(fixture: &Fixture) {
    let store = fixture.migrated();
    let org = organization(&*store);
    let with = |keys: &[KeyFingerprint]| NewEndpoint { keys: keys.to_vec(), ..new_endpoint(org) };
    assert_eq!(store.sealing_key(), Ok(None));
    let first = store.create_endpoint(&with(&[KEY])).unwrap();
    assert_eq!(store.sealing_key(), Ok(Some(KEY)));
    is_misconfigured(store.create_endpoint(&with(&[OTHER])));
    let (secret, now) = (SealedSecret(vec![1]), Timestamp::now());
    let rotated = |keys: &[KeyFingerprint]| {
        store.rotate_endpoint_secret(org, first.id, Rotation { keys, ..rotation(&secret, now) })
    };
    is_misconfigured(rotated(&[OTHER]));
    assert_eq!(store.endpoints(org).unwrap(), [Ok(first.clone())], "nothing changed");
    // With the one before behind it another takes over; then that one alone does not any more.
    assert!(rotated(&[OTHER, KEY]).unwrap().is_some());
    assert_eq!(store.sealing_key(), Ok(Some(OTHER)));
    is_misconfigured(store.create_endpoint(&with(&[KEY])));
    // Neither does what could not be stored.
    let again = NewEndpoint { keys: vec![KEY, OTHER], id: first.id, ..new_endpoint(org) };
    is_rejected(store.create_endpoint(&again), Rejection::EndpointIdTaken);
    assert_eq!(store.sealing_key(), Ok(Some(OTHER)));
    // Where it is lost, somebody says so.
    store.accept_sealing_key(KEY).unwrap();
    store.create_endpoint(&with(&[KEY])).unwrap();
    is_misconfigured(store.create_endpoint(&with(&[OTHER])));
    // A version that notes no key made them.
    let secret_of = |n: u8| [vec![1], vec![n; 8], vec![0; 60]].concat();
    for row in store.endpoints(org).unwrap().into_iter().flatten() {
        let secret = SealedSecret(secret_of(9));
        store.rotate_endpoint_secret(org, row.id, rotation(&secret, now)).unwrap();
    }
    fixture.sql("DELETE FROM webhook_sealing_key", "DELETE FROM webhook_sealing_key");
    assert_eq!(store.sealing_key(), Ok(Some(OTHER)));
    is_misconfigured(store.create_endpoint(&with(&[KEY])));
    store.create_endpoint(&with(&[OTHER])).unwrap();
    // Without endpoints no key is anybody's.
    for row in store.endpoints(org).unwrap().into_iter().flatten() {
        store.delete_endpoint(org, row.id).unwrap();
    }
    assert_eq!(store.sealing_key(), Ok(None));
    store.create_endpoint(&with(&[KEY])).unwrap();
    assert_eq!(store.sealing_key(), Ok(Some(KEY)));
}

fn of_first_endpoints_made_at_once_one_key_seals_all(fixture: &Fixture) {
    let store = fixture.migrated();
    let orgs: Vec<OrgId> = (0..8).map(|_| organization(&*store)).collect();
    let made: Vec<bool> = thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|n| {
                let (store, org) = (fixture.open(), orgs[n]);
                scope.spawn(move || {
                    let keys = vec![KeyFingerprint([n as u8; 8])];
                    store.create_endpoint(&NewEndpoint { keys, ..new_endpoint(org) }).is_ok()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(made.iter().filter(|made| **made).count(), 1);
    let winner = made.iter().position(|made| *made).unwrap();
    assert_eq!(store.sealing_key(), Ok(Some(KeyFingerprint([winner as u8; 8]))));
}

fn what_cannot_be_opened_is_not_kept_as_previous(fixture: &Fixture) {
    let store = fixture.migrated();
    let org = organization(&*store);
    let id = endpoint(&*store, org).id;
    let secret = |n: u8| SealedSecret(vec![n; 30]);
    let (soon, later) = (in_seconds(60), in_seconds(120));
    let rotate = |new: u8, until, unusable: &[u8]| {
        let unusable: Vec<SealedSecret> = unusable.iter().map(|n| secret(*n)).collect();
        let new_secret = secret(new);
        let rotation = Rotation { unusable: &unusable, ..rotation(&new_secret, until) };
        let rotated = store.rotate_endpoint_secret(org, id, rotation).unwrap().unwrap();
        assert_eq!((&rotated.secret, store.endpoint(org, id)), (&secret(new), Ok(Some(rotated.clone()))));
        rotated.previous_secret
    };
    rotate(1, soon, &[]);
    assert_eq!(rotate(2, soon, &[]), Some((secret(1), soon)));
    // The present one is lost: the one before it goes on as long as it would have.
    assert_eq!(rotate(3, later, &[2]), Some((secret(1), soon)));
    assert_eq!(rotate(4, later, &[3, 1]), None);
    assert_eq!(rotate(5, later, &[4]), None);
    // Somebody rotated it meanwhile: what is not the lost one is kept.
    assert_eq!(rotate(6, later, &[4]), Some((secret(5), later)));
}

fn a_row_that_cannot_be_read_is_alone(fixture: &Fixture) {
    let store = fixture.migrated();
    let org = organization(&*store);
    let [first, broken, last] = [(); 3].map(|()| endpoint(&*store, org));
    for garbage in ["headers = '{}'", "headers = '[7]'", "event_types = '7'", "event_types = '[null]'"] {
        let breaks = |id: String| {
            format!(
                "UPDATE endpoints SET headers = '[]', event_types = NULL WHERE id = {id};
            UPDATE endpoints SET {garbage} WHERE id = {id}"
            )
        };
        fixture.sql(&breaks(format!("'{}'", broken.id)), &breaks(format!("x'{}'", broken.id.0.simple())));
        let rows = store.endpoints(org).unwrap();
        assert_eq!((&rows[0], &rows[2]), (&Ok(last.clone()), &Ok(first.clone())), "{garbage}");
        let unreadable = rows[1].as_ref().unwrap_err();
        assert_eq!((unreadable.id, unreadable.org), (broken.id, org), "{garbage}");
        assert!(!unreadable.why.is_empty());
        let all = store.all_endpoints(None, 10).unwrap();
        assert_eq!(all.iter().filter(|row| row.is_err()).count(), 1);
        assert!(store.endpoint(org, broken.id).is_err());
    }
    assert_eq!(store.delete_endpoint(org, broken.id), Ok(true));
    assert_eq!(store.endpoints(org), Ok(vec![Ok(last), Ok(first)]));
}

fn what_is_due_for_a_disabled_organisation_is_nobodys(fixture: &Fixture) {
    let store = fixture.migrated();
    let (org, other) = (organization(&*store), organization(&*store));
    let (held, theirs) = (endpoint(&*store, org).id, endpoint(&*store, other).id);
    let waits = deliveries(&*store, org, held, 1, None)[0];
    deliveries(&*store, other, theirs, 1, None);
    let disable = |disabled| {
        let change = OrganizationChange { disabled: Some(disabled), ..OrganizationChange::default() };
        store.update_organization(org, &change).unwrap();
        assert_eq!(store.endpoint(org, held).unwrap().unwrap().org_disabled, disabled);
        due_endpoints(&*store, Timestamp::now(), None, 10).unwrap()
    };
    assert_eq!(disable(true), [theirs]);
    assert_eq!(status(&*store, org, waits), DeliveryStatus::Pending);
    let oldest = store.pending_stats().unwrap();
    assert_eq!(oldest.count, 2);
    assert!(oldest.oldest.is_some_and(|oldest| oldest >= find(&*store, org, waits).delivery.created_at));
    // Deleted, it comes to an end all the same.
    assert_eq!(disable(false), [held, theirs]);
    disable(true);
    assert_eq!(store.delete_endpoint(org, held), Ok(true));
    assert_eq!(status(&*store, org, waits), DeliveryStatus::Failed);
}

fn servers_hear_of_each_others_schedules(fixture: &Fixture) {
    let store = fixture.migrated();
    if fixture.config.database_url.is_none() {
        // One server has the file.
        assert_eq!(store.note_retry_schedule("5s"), Ok(Vec::new()));
        assert_eq!(fixture.open().note_retry_schedule("6s"), Ok(Vec::new()));
        return;
    }
    let others = |schedules: &[&str]| Ok(schedules.iter().map(|one| (*one).to_owned()).collect::<Vec<_>>());
    assert_eq!(store.note_retry_schedule("5s"), others(&[]));
    assert_eq!(store.note_retry_schedule("5s"), others(&[]));
    assert_eq!(store.note_retry_schedule(""), others(&["5s"]));
    assert_eq!(store.note_retry_schedule("5s"), others(&[""]));
    store.forget_retry_schedule("").unwrap();
    assert_eq!(store.note_retry_schedule("5s"), others(&[]));
    // One that was killed is heard for a while.
    store.note_retry_schedule("7s").unwrap();
    let ago = limits::RETRY_SCHEDULE_ALIVE.as_secs() + 1;
    let age = format!("UPDATE webhook_retry_schedules SET seen_at = seen_at - interval '{ago} seconds'");
    fixture.sql(&age, "");
    assert_eq!(store.note_retry_schedule("5s"), others(&[]));
    assert_eq!(fixture.count("SELECT count(*) FROM webhook_retry_schedules"), 1);
}
