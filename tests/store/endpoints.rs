//! Endpoints: what both stores must do.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use millrace::clock::Timestamp;
use millrace::event::{EndpointId, OrgId};
use millrace::limits;
use millrace::store::webhooks::{DeliveryStatus, Endpoint, EndpointChange, NewEndpoint, Next, SealedSecret};
use millrace::store::{CredentialChange, Store, StoreError};
use uuid::Uuid;

use crate::common::postgres::wait_for;
use crate::fixture::{Fixture, event, on_both_stores, org as no_org};
use crate::webhooks::{
    claim, deliveries, endpoint, in_seconds, list, new_endpoint, organization, planned, result, status,
};

on_both_stores!(
    an_endpoint_comes_back_as_it_was_made,
    a_change_touches_what_it_names,
    organisations_do_not_see_each_others,
    an_organisation_has_a_bounded_number_also_from_many_threads,
    a_rotated_secret_stays_beside_the_new_one,
    disabling_says_why_and_enabling_forgets_it,
    failing_is_noted_since_the_earliest_moment,
    pages_of_all_endpoints_go_by_id,
    deleting_fails_what_is_pending,
    deleting_ends_soon_and_leaves_the_rest_to_the_sender,
    other_instances_hear_of_every_change,
);

fn is_conflict<T: std::fmt::Debug>(result: &Result<T, StoreError>) {
    assert!(matches!(result, Err(StoreError::Conflict(_))), "{result:?}");
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
    assert_eq!(store.endpoints(org), Ok(vec![second, made]));
    is_conflict(&store.create_endpoint(&new));
    is_conflict(&store.create_endpoint(&new_endpoint(no_org())));
}

fn a_change_touches_what_it_names(fixture: &Fixture) {
    let store = fixture.migrated();
    let org = organization(&*store);
    let mut expected = endpoint(&*store, org);
    let id = expected.id;
    let mut check = |change: EndpointChange, edit: &dyn Fn(&mut Endpoint)| {
        edit(&mut expected);
        assert_eq!(store.update_endpoint(org, id, &change), Ok(Some(expected.clone())));
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
    for enabled in [false, true] {
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
    assert_eq!(store.rotate_endpoint_secret(theirs, id, &SealedSecret(vec![6]), Timestamp::now()), Ok(None));
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
                        Err(StoreError::Conflict(why)) => {
                            assert!(why.contains("at most 100"), "{why}");
                            false
                        }
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
    assert_eq!(store.delete_endpoint(org, all[0].id), Ok(true));
    endpoint(&*store, org);
    is_conflict(&store.create_endpoint(&new_endpoint(org)));
}

fn a_rotated_secret_stays_beside_the_new_one(fixture: &Fixture) {
    let store = fixture.migrated();
    let org = organization(&*store);
    let first = endpoint(&*store, org);
    let until = Timestamp::from_micros(4_000_000_000_000_001);
    for (n, before) in [(1, first.secret.clone()), (2, SealedSecret(vec![1; 60]))] {
        let new = SealedSecret(vec![n; 60]);
        let rotated = store.rotate_endpoint_secret(org, first.id, &new, until).unwrap().unwrap();
        assert_eq!((&rotated.secret, &rotated.previous_secret), (&new, &Some((before, until))));
        assert_eq!(store.endpoint(org, first.id), Ok(Some(rotated)));
    }
    let missing = EndpointId(Uuid::now_v7());
    assert_eq!(store.rotate_endpoint_secret(org, missing, &first.secret, until), Ok(None));
}

fn disabling_says_why_and_enabling_forgets_it(fixture: &Fixture) {
    let store = fixture.migrated();
    let org = organization(&*store);
    let id = endpoint(&*store, org).id;
    let since = Timestamp::from_micros(1_700_000_000_000_000);
    store.note_failing(&[(id, Some(since))]).unwrap();
    assert_eq!(store.disable_endpoint(id, "410 Gone"), Ok(true));
    assert_eq!(store.disable_endpoint(id, "another reason"), Ok(false));
    assert_eq!(store.disable_endpoint(EndpointId(Uuid::now_v7()), "why"), Ok(false));
    let disabled = store.endpoint(org, id).unwrap().unwrap();
    assert_eq!((disabled.enabled, disabled.disabled_reason.as_deref()), (false, Some("410 Gone")));
    assert_eq!(disabled.failing_since, Some(since));
    let enable = EndpointChange { enabled: Some(true), ..EndpointChange::default() };
    let enabled = store.update_endpoint(org, id, &enable).unwrap().unwrap();
    assert_eq!((enabled.enabled, enabled.disabled_reason, enabled.failing_since), (true, None, None));
    // The owner gives no reason.
    let disable = EndpointChange { enabled: Some(false), ..EndpointChange::default() };
    assert_eq!(store.update_endpoint(org, id, &disable).unwrap().unwrap().disabled_reason, None);
}

fn failing_is_noted_since_the_earliest_moment(fixture: &Fixture) {
    let store = fixture.migrated();
    let org = organization(&*store);
    let (a, b) = (endpoint(&*store, org).id, endpoint(&*store, org).id);
    let missing = EndpointId(Uuid::now_v7());
    let at = |n: i64| Some(Timestamp::from_micros(1_700_000_000_000_000 + n));
    for (note, noted) in [(None, None), (at(5), at(5)), (at(9), at(5)), (at(2), at(2)), (None, None), (at(7), at(7))] {
        let mut now_noted = store.note_failing(&[(b, note), (missing, at(0)), (a, None)]).unwrap();
        now_noted.sort();
        assert_eq!(now_noted, [(a, None), (b, noted)]);
        assert_eq!(store.endpoint(org, b).unwrap().unwrap().failing_since, noted);
    }
    assert_eq!(store.note_failing(&[]), Ok(Vec::new()));
}

fn pages_of_all_endpoints_go_by_id(fixture: &Fixture) {
    let store = fixture.migrated();
    let orgs = [organization(&*store), organization(&*store)];
    let mut ids: Vec<EndpointId> = (0..7).map(|n| endpoint(&*store, orgs[n % 2]).id).collect();
    ids.sort();
    let (mut seen, mut after) = (Vec::new(), None);
    loop {
        let page = store.all_endpoints(after, 3).unwrap();
        seen.extend(page.iter().map(|endpoint| endpoint.id));
        let Some(last) = page.last() else { break };
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
    assert_eq!(store.record(&[result(delivered, 1, lease, Next::Delivered)]), Ok(1));
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
    assert_eq!(store.due_endpoints(Timestamp::now(), None, 10), Ok(vec![kept]));
    // Whoever sent it meanwhile says so.
    assert_eq!(store.record(&[result(claimed, 1, lease, Next::Delivered)]), Ok(1));
    assert_eq!(status(&*store, org, claimed), DeliveryStatus::Delivered);
    assert_eq!(list(&*store, org, Some(DeliveryStatus::Failed)).len(), 3);
}

fn deleting_ends_soon_and_leaves_the_rest_to_the_sender(fixture: &Fixture) {
    let store = fixture.migrated();
    let org = organization(&*store);
    let id = endpoint(&*store, org).id;
    let at_once = limits::ENDPOINT_DELETE_DELIVERIES_MAX as usize;
    deliveries(&*store, org, id, at_once + 5, None);
    assert_eq!(store.delete_endpoint(org, id), Ok(true));
    assert_eq!(fixture.count("SELECT count(*) FROM deliveries WHERE status = 2"), at_once as i64);
    assert_eq!(store.pending_stats().unwrap().count, 5);
    assert_eq!(store.due_endpoints(Timestamp::now(), None, 10), Ok(vec![id]));
    assert_eq!(claim(&*store, id, 10, in_seconds(9)).len(), 5);
}

fn other_instances_hear_of_every_change(fixture: &Fixture) {
    let store = fixture.migrated();
    let org = organization(&*store);
    let (watcher, stop) = (fixture.open(), AtomicBool::new(false));
    let heard: Mutex<Vec<CredentialChange>> = Mutex::default();
    thread::scope(|scope| {
        let watching =
            scope.spawn(|| watcher.watch_credentials(&stop, &mut |change| heard.lock().unwrap().push(change)));
        wait_for("the first word", || !heard.lock().unwrap().is_empty());
        expect_changes(&*store, org, &heard);
        stop.store(true, Ordering::Relaxed);
        assert_eq!(watching.join().unwrap(), Ok(()));
    });
}

fn expect_changes(store: &dyn Store, org: OrgId, heard: &Mutex<Vec<CredentialChange>>) {
    let expect = |expected: &[CredentialChange], cause: &dyn Fn()| {
        heard.lock().unwrap().clear();
        cause();
        wait_for("the changes", || heard.lock().unwrap().len() >= expected.len());
        assert_eq!(*heard.lock().unwrap(), expected);
    };
    let new = new_endpoint(org);
    let id = new.id;
    let (endpoints, due) = (CredentialChange::Endpoints(org), CredentialChange::Due(id));
    expect(&[endpoints], &|| drop(store.create_endpoint(&new).unwrap()));
    let update = |enabled| EndpointChange { enabled, ..EndpointChange::default() };
    expect(&[endpoints], &|| drop(store.update_endpoint(org, id, &update(None)).unwrap()));
    expect(&[endpoints], &|| drop(store.update_endpoint(org, id, &update(Some(false))).unwrap()));
    expect(&[endpoints, due], &|| drop(store.update_endpoint(org, id, &update(Some(true))).unwrap()));
    expect(&[endpoints], &|| {
        store.rotate_endpoint_secret(org, id, &SealedSecret(vec![1]), Timestamp::now()).unwrap();
    });
    let lease = Timestamp::from_micros(4_000_000_000_000_000);
    let delivery = deliveries(store, org, id, 1, Some(lease))[0];
    assert_eq!(store.record(&[result(delivery, 1, lease, Next::Failed)]), Ok(1));
    let all_times = Timestamp::from_micros(0)..lease;
    expect(&[due], &|| assert_eq!(store.recover_deliveries(org, id, all_times.clone(), 9, Timestamp::now()), Ok(1)));
    expect(&[due], &|| assert!(store.retry_delivery(org, delivery, Timestamp::now()).unwrap().is_some()));
    let test = event(org, "1");
    expect(&[due], &|| store.insert_test(&test, &planned(&test, id, None)).unwrap());
    // The last of it also shows that none of these said anything.
    expect(&[endpoints], &|| {
        store.note_failing(&[(id, Some(Timestamp::now()))]).unwrap();
        assert_eq!(store.recover_deliveries(org, id, all_times.clone(), 9, Timestamp::now()), Ok(0));
        assert_eq!(store.retry_delivery(no_org(), delivery, Timestamp::now()), Ok(None));
        assert_eq!(store.delete_endpoint(no_org(), id), Ok(false));
        thread::sleep(Duration::from_millis(300));
        assert_eq!(store.disable_endpoint(id, "why"), Ok(true));
    });
    expect(&[endpoints], &|| assert_eq!(store.delete_endpoint(org, id), Ok(true)));
}
