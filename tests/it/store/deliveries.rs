//! Deliveries as their senders use them: what both stores must do.

use std::collections::HashSet;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use uuid::Uuid;

use millrace_base::clock::Timestamp;
use millrace_base::event::{DeliveryId, EndpointId, Event, EventId, OrgId};
use millrace_base::limits;
use millrace_store::StoreError;
use millrace_store::webhooks::{
    DeliveryStatus, EndpointChange, Next, PendingStats, PlannedDelivery, Recorded, StoredBatch, Wanted,
};

use crate::store::fixture::{Fixture, at, derived_at, event, event_at, on_both_stores, stored};
use crate::store::webhooks::{
    claim, claim_due, deliveries, due_endpoints, endpoint, find, in_seconds, list, organization, planned, record_all,
    result, status,
};

on_both_stores!(
    deliveries_are_stored_with_their_events,
    copies_of_an_event_bring_no_deliveries,
    a_copy_after_midnight_brings_no_deliveries,
    writers_of_one_event_store_its_deliveries_once,
    a_poison_row_keeps_the_deliveries_of_its_batch_out,
    what_is_born_claimed_is_due_when_its_lease_ends,
    claims_are_bounded_per_endpoint_and_take_the_oldest_first,
    instances_never_claim_the_same,
    a_claimed_event_comes_verbatim,
    what_is_recorded_is_what_follows,
    recording_again_changes_nothing,
    a_lost_lease_changes_nothing_but_what_was_delivered,
    only_what_somebody_else_has_taken_is_lost,
    an_attempt_of_a_number_is_recorded_once,
    what_nobody_knows_is_not_recorded,
    a_lease_is_given_back_by_its_holder,
    a_delivery_without_its_event_is_an_orphan,
    due_endpoints_are_found_page_by_page,
    what_is_due_is_looked_for_from_a_moment_on,
    what_a_wrong_clock_put_out_of_reach_is_made_due,
    what_waits_is_counted,
);

fn deliveries_are_stored_with_their_events(fixture: &Fixture) {
    let store = fixture.migrated();
    let org = organization(&*store);
    let (a, b) = (endpoint(&*store, org).id, endpoint(&*store, org).id);
    let events = [event(org, "1"), derived_at(org, Timestamp::now(), "d"), event(org, "3")];
    for events in [&events[..1], &events[1..]] {
        let lease = in_seconds(60);
        let first = &events[0];
        let planned = [planned(first, a, None), planned(first, b, Some(lease))];
        let before = Timestamp::now();
        let batch = store.store_events(events, &planned).unwrap();
        assert_eq!(batch.new_events, events.len() as u64);
        assert_eq!(
            batch.deliveries.iter().collect::<HashSet<_>>(),
            planned.iter().map(|planned| &planned.id).collect()
        );
        for (planned, next_attempt_at) in planned.iter().zip([first.received_at, lease]) {
            let record = find(&*store, org, planned.id);
            assert_eq!(record.attempts, []);
            let delivery = record.delivery;
            assert_eq!((delivery.id, delivery.event, delivery.endpoint), (planned.id, first.id, planned.endpoint));
            assert_eq!((delivery.org, delivery.status, delivery.attempts_made), (org, DeliveryStatus::Pending, 0));
            assert_eq!(delivery.next_attempt_at, Some(next_attempt_at));
            assert!(delivery.created_at <= before && delivery.created_at.plus(Duration::from_secs(5)) > before);
        }
    }
    assert_eq!(store.deliveries_of_event(org, events[2].id), Ok(Vec::new()));
    assert!(brought_nothing(store.store_events(&[], &[])));
}

fn brought_nothing(stored: Result<StoredBatch, StoreError>) -> bool {
    let stored = stored.expect("it is stored");
    stored.new_events == 0 && stored.deliveries.is_empty()
}

fn copies_of_an_event_bring_no_deliveries(fixture: &Fixture) {
    let store = fixture.migrated();
    let org = organization(&*store);
    let id = endpoint(&*store, org).id;
    for event in [event(org, "1"), derived_at(org, Timestamp::now(), "d")] {
        // Two copies in one batch, each with a delivery planned, and the other one planned for an event elsewhere.
        let batch = [event.clone(), event.clone()];
        let twice = [
            planned(&event, id, None),
            planned(&event, id, None),
            planned(&crate::store::fixture::event(org, "2"), id, None),
        ];
        let first = store.store_events(&batch, &twice).unwrap();
        assert_eq!((first.new_events, first.deliveries.len()), (1, 1));
        // The same once more, as after a lost answer; then planned anew; then for an endpoint made since.
        let later = endpoint(&*store, org).id;
        for planned in [twice[0], planned(&event, id, None), planned(&event, later, None)] {
            assert!(brought_nothing(store.store_events(&batch, &[planned])));
        }
        assert_eq!(store.deliveries_of_event(org, event.id).unwrap().len(), 1);
        // Beside something new.
        let new = crate::store::fixture::event(org, "3");
        let both = [planned(&event, id, None), planned(&new, id, None)];
        let stored = store.store_events(&[event, new], &both).unwrap();
        assert_eq!((stored.new_events, stored.deliveries), (1, vec![both[1].id]));
    }
    assert_eq!(list(&*store, org, None).len(), 4);
}

fn a_copy_after_midnight_brings_no_deliveries(fixture: &Fixture) {
    let store = fixture.migrated();
    let org = organization(&*store);
    let id = endpoint(&*store, org).id;
    let (before, after) = (at("2024-05-01T23:59:59.999999Z"), at("2024-05-02T00:00:00Z"));
    let copies = |name| [derived_at(org, before, name), derived_at(org, after, name)];
    for (name, order) in [("a", [0, 1]), ("b", [1, 0])] {
        let [first, second] = order.map(|n| copies(name)[n].clone());
        let new = store.store_events(std::slice::from_ref(&first), &[planned(&first, id, None)]).unwrap();
        assert_eq!((new.new_events, new.deliveries.len()), (1, 1));
        let copy = store.store_events(std::slice::from_ref(&second), &[planned(&second, id, None)]);
        assert!(brought_nothing(copy), "{name}");
        assert_eq!(store.deliveries_of_event(org, first.id).unwrap().len(), 1);
    }
    // Both in one batch, in both orders, among plain ones of both days.
    for (name, order) in [("c", [0, 1]), ("d", [1, 0])] {
        let plain = [event_at(org, before, "1"), event_at(org, after, "2")];
        let mut batch = order.map(|n| copies(name)[n].clone()).to_vec();
        batch.extend(plain.iter().cloned());
        let mut all: Vec<PlannedDelivery> = batch.iter().map(|event| planned(event, id, None)).collect();
        let stored = store.store_events(&batch, &all).unwrap();
        assert_eq!((stored.new_events, stored.deliveries.len()), (3, 3), "{name}");
        for planned in &mut all {
            planned.id = DeliveryId(Uuid::now_v7());
        }
        assert!(brought_nothing(store.store_events(&batch, &all)));
    }
    // All of them find their events.
    assert_eq!(claim(&*store, id, 100, in_seconds(60)).len(), 8);
}

fn writers_of_one_event_store_its_deliveries_once(fixture: &Fixture) {
    let store = fixture.migrated();
    let org = organization(&*store);
    let id = endpoint(&*store, org).id;
    let plain: Vec<Event> = (0..100).map(|n| event(org, &n.to_string())).collect();
    let planned_by: Mutex<Vec<DeliveryId>> = Mutex::default();
    thread::scope(|scope| {
        for thread in 0..8 {
            let (store, plain, planned_by) = (&store, &plain, &planned_by);
            scope.spawn(move || {
                let derived =
                    (0..100).map(|n| derived_at(org, Timestamp::now(), &format!("d{}", (n * 7 + thread) % 100)));
                let derived: Vec<Event> = derived.collect();
                for batch in plain.chunks(20).chain(derived.chunks(20)) {
                    let planned: Vec<_> = batch.iter().map(|event| planned(event, id, None)).collect();
                    let stored = store.store_events(batch, &planned).unwrap();
                    assert_eq!(stored.new_events, stored.deliveries.len() as u64);
                    planned_by.lock().unwrap().extend(stored.deliveries);
                }
            });
        }
    });
    let told: HashSet<DeliveryId> = planned_by.into_inner().unwrap().into_iter().collect();
    let kept: HashSet<DeliveryId> = list(&*store, org, None).iter().map(|delivery| delivery.id).collect();
    assert_eq!((told.len(), told == kept), (200, true));
    assert_eq!(fixture.count("SELECT count(DISTINCT event_id) FROM deliveries"), 200);
}

fn a_poison_row_keeps_the_deliveries_of_its_batch_out(fixture: &Fixture) {
    let store = fixture.migrated();
    fixture.sql(
        "ALTER TABLE events ADD CONSTRAINT no_poison CHECK (payload::text <> '\"poison\"')",
        "CREATE TRIGGER no_poison BEFORE INSERT ON events WHEN NEW.payload = '\"poison\"'
         BEGIN SELECT RAISE(ABORT, 'no_poison'); END",
    );
    let org = organization(&*store);
    let id = endpoint(&*store, org).id;
    for dedup_id in [None, Some("d")] {
        let event_id = dedup_id.map_or_else(|| EventId(Uuid::now_v7()), |dedup_id| EventId::derived(org, dedup_id));
        let poison = Event::new(event_id, org, Timestamp::now(), "t", dedup_id, b"\"poison\"");
        let batch = [event(org, "1"), poison, event(org, "2")];
        let planned: Vec<_> = batch.iter().map(|event| planned(event, id, None)).collect();
        let refused = store.store_events(&batch, &planned);
        assert!(matches!(refused, Err(StoreError::RowRefused(_))), "{refused:?}");
        assert_eq!((stored(&*store, org).len(), list(&*store, org, None).len()), (0, 0));
        // By halves, as a writer goes on: the plan of the whole batch comes with each.
        let good = [&batch[..1], &batch[2..]].map(|half| store.store_events(half, &planned).unwrap().deliveries);
        assert_eq!(good, [vec![planned[0].id], vec![planned[2].id]]);
        assert!(store.store_events(&batch[1..2], &planned).is_err());
        assert_eq!(list(&*store, org, None).len(), 2);
        fixture.sql(
            "DELETE FROM events; DELETE FROM deliveries; DELETE FROM delivery_queue",
            "DELETE FROM events; DELETE FROM deliveries",
        );
    }
}

fn what_is_born_claimed_is_due_when_its_lease_ends(fixture: &Fixture) {
    let store = fixture.migrated();
    let org = organization(&*store);
    let id = endpoint(&*store, org).id;
    let (now, lease) = (Timestamp::now(), in_seconds(60));
    let delivery = deliveries(&*store, org, id, 1, Some(lease))[0];
    let before = Timestamp::from_micros(lease.as_micros() - 1);
    for at in [now, before] {
        assert_eq!(due_endpoints(&*store, at, None, 9), Ok(Vec::new()));
        assert_eq!(claim_due(&*store, at, in_seconds(120), &[(id, 9)]).unwrap().ready, []);
    }
    assert_eq!(due_endpoints(&*store, lease, None, 9), Ok(vec![id]));
    let claims = claim_due(&*store, lease, in_seconds(120), &[(id, 9)]).unwrap().ready;
    assert_eq!(claims.iter().map(|claimed| claimed.delivery).collect::<Vec<_>>(), [delivery]);
}

fn claims_are_bounded_per_endpoint_and_take_the_oldest_first(fixture: &Fixture) {
    let store = fixture.migrated();
    let org = organization(&*store);
    let ids = [(); 3].map(|()| endpoint(&*store, org).id);
    let start = Timestamp::now();
    let mut due: Vec<Vec<(Timestamp, DeliveryId)>> = vec![Vec::new(); 3];
    for n in [3, 1, 4, 0, 2] {
        // Received in another order than stored.
        let event = event_at(org, start.plus(Duration::from_millis(n)), "1");
        let planned = ids.map(|id| planned(&event, id, None));
        store.store_events(std::slice::from_ref(&event), &planned).unwrap();
        for (due, planned) in due.iter_mut().zip(planned) {
            due.push((event.received_at, planned.id));
        }
    }
    for due in &mut due {
        due.sort();
    }
    let longest_due = |which: usize, count: usize| -> HashSet<DeliveryId> {
        due[which][..count].iter().map(|(_, delivery)| *delivery).collect()
    };
    let now = start.plus(Duration::from_secs(1));
    let lease = start.plus(Duration::from_secs(60));
    let claims = claim_due(&*store, now, lease, &[(ids[0], 2), (ids[1], 0), (ids[2], 4)]).unwrap().ready;
    let claimed = |id: EndpointId| -> HashSet<DeliveryId> {
        claims.iter().filter(|claimed| claimed.endpoint == id).map(|claimed| claimed.delivery).collect()
    };
    assert_eq!(claimed(ids[0]), longest_due(0, 2));
    assert_eq!(claimed(ids[1]), HashSet::new());
    assert_eq!(claimed(ids[2]), longest_due(2, 4));
    assert!(claims.iter().all(|claimed| claimed.lease == lease && claimed.attempts_made == 0));
    // Not yet due: what was received after `now`.
    let claims = claim_due(&*store, start, lease, &[(ids[1], 9)]).unwrap().ready;
    assert_eq!(claims.iter().map(|claimed| claimed.delivery).collect::<HashSet<_>>(), longest_due(1, 1));
    // All calls have a bound of their own.
    deliveries(&*store, org, ids[0], 300, None);
    let most = limits::CLAIM_DELIVERIES_MAX;
    assert_eq!(claim(&*store, ids[0], u32::MAX, in_seconds(60)).len(), most as usize);
    assert_eq!(claim_due(&*store, now, lease, &[]).unwrap().ready, []);
}

fn instances_never_claim_the_same(fixture: &Fixture) {
    const COUNT: usize = 600;
    let store = fixture.migrated();
    let org = organization(&*store);
    let ids = [(); 2].map(|()| endpoint(&*store, org).id);
    for id in ids {
        deliveries(&*store, org, id, COUNT / 2, None);
    }
    let claimed: Mutex<Vec<DeliveryId>> = Mutex::default();
    thread::scope(|scope| {
        for n in 0..4 {
            let (claimed, ids) = (&claimed, if n % 2 == 0 { ids } else { [ids[1], ids[0]] });
            let store = fixture.open();
            scope.spawn(move || {
                while claimed.lock().unwrap().len() < COUNT {
                    let claims = claim_due(&*store, Timestamp::now(), in_seconds(600), &ids.map(|id| (id, 7))).unwrap();
                    claimed.lock().unwrap().extend(claims.ready.iter().map(|claimed| claimed.delivery));
                }
            });
        }
    });
    let claimed = claimed.into_inner().unwrap();
    assert_eq!((claimed.len(), claimed.iter().collect::<HashSet<_>>().len()), (COUNT, COUNT));
}

fn a_claimed_event_comes_verbatim(fixture: &Fixture) {
    let store = fixture.migrated();
    let org = organization(&*store);
    let id = endpoint(&*store, org).id;
    let payload = "{ \"b\": 1e400, \"a\" : \"\\u0000\\ud800\", \"b\":[ ] }";
    let event = Event::new(EventId(Uuid::now_v7()), org, Timestamp::now(), "order.paid", None, payload.as_bytes());
    let planned = planned(&event, id, None);
    store.insert_test(&event, &planned).unwrap();
    let lease = in_seconds(60);
    let claimed = claim(&*store, id, 1, lease).pop().unwrap();
    assert_eq!((claimed.delivery, claimed.endpoint, claimed.org, claimed.event), (planned.id, id, org, event.id));
    assert_eq!((claimed.event_type.as_str(), claimed.payload.as_str()), ("order.paid", payload));
    assert_eq!((claimed.received_at, claimed.lease), (event.received_at, lease));
    assert_eq!((claimed.attempts_made, claimed.schedule_step), (0, 0));
}

fn what_is_recorded_is_what_follows(fixture: &Fixture) {
    let store = fixture.migrated();
    let org = organization(&*store);
    let id = endpoint(&*store, org).id;
    let lease = in_seconds(60);
    let retry_at = Timestamp::from_micros(in_seconds(300).as_micros() / 1000 * 1000 + 7);
    let all = [
        (Next::Delivered, DeliveryStatus::Delivered),
        (Next::RetryAt(retry_at), DeliveryStatus::Pending),
        (Next::Failed, DeliveryStatus::Failed),
        (Next::Blocked, DeliveryStatus::Blocked),
    ];
    let ids = deliveries(&*store, org, id, all.len(), Some(lease));
    let mut results: Vec<_> = ids.iter().zip(all).map(|(id, (next, _))| result(*id, 1, lease, next)).collect();
    // A long answer, and one that a text of the database does not take.
    results[0].attempt.response_body = Some("x".repeat(1024));
    results[1].attempt.error = Some("reset\0".to_owned());
    assert_eq!(record_all(&*store, &results), Ok(all.len() as u64));
    results[1].attempt.error = Some(if store.kind() == "postgres" { "reset" } else { "reset\0" }.to_owned());
    for ((id, result), (next, status)) in ids.iter().zip(&results).zip(all) {
        let record = find(&*store, org, *id);
        assert_eq!(record.attempts, std::slice::from_ref(&result.attempt));
        assert_eq!((record.delivery.status, record.delivery.attempts_made), (status, 1));
        assert_eq!(record.delivery.next_attempt_at, next.attempt_at());
        assert_eq!(list(&*store, org, Some(status)), [record.delivery]);
    }
    assert_eq!(claim_due(&*store, retry_at, in_seconds(600), &[(id, 9)]).unwrap().ready[0].attempts_made, 1);
    assert_eq!(record_all(&*store, &[]), Ok(0));
}

fn recording_again_changes_nothing(fixture: &Fixture) {
    let store = fixture.migrated();
    let org = organization(&*store);
    let id = endpoint(&*store, org).id;
    let lease = in_seconds(60);
    let ids = deliveries(&*store, org, id, 4, Some(lease));
    let next = [Next::Delivered, Next::RetryAt(in_seconds(300)), Next::Failed, Next::Blocked];
    let results: Vec<_> = ids.iter().zip(next).map(|(id, next)| result(*id, 1, lease, next)).collect();
    assert_eq!(record_all(&*store, &results), Ok(4));
    let before: Vec<_> = ids.iter().map(|id| find(&*store, org, *id)).collect();
    assert_eq!(record_all(&*store, &results), Ok(0));
    assert_eq!(ids.iter().map(|id| find(&*store, org, *id)).collect::<Vec<_>>(), before);
    // The whole batch once more beside one that is new, as after a connection was cut.
    let new = deliveries(&*store, org, id, 1, Some(lease))[0];
    let mut again = results.clone();
    again.insert(2, result(new, 1, lease, Next::Delivered));
    assert_eq!(record_all(&*store, &again), Ok(1));
    assert_eq!(status(&*store, org, new), DeliveryStatus::Delivered);
}

fn a_lost_lease_changes_nothing_but_what_was_delivered(fixture: &Fixture) {
    let store = fixture.migrated();
    let org = organization(&*store);
    let id = endpoint(&*store, org).id;
    let (first, second) = (in_seconds(1), in_seconds(60));
    for late in [Next::RetryAt(in_seconds(300)), Next::Failed, Next::Blocked, Next::Delivered] {
        let delivery = deliveries(&*store, org, id, 1, Some(first))[0];
        let claims = claim_due(&*store, first, second, &[(id, 1)]).unwrap().ready;
        assert_eq!((claims[0].delivery, claims[0].attempts_made), (delivery, 0));
        // Whoever had it before comes back.
        let changed = record_all(&*store, &[result(delivery, 1, first, late)]).unwrap();
        let record = find(&*store, org, delivery);
        assert_eq!((record.attempts.len(), record.delivery.attempts_made), (1, 1));
        if late == Next::Delivered {
            assert_eq!((changed, record.delivery.status), (1, DeliveryStatus::Delivered));
            // What the new holder has to say changes nothing any more, but is shown.
            assert_eq!(record_all(&*store, &[result(delivery, 2, second, Next::Failed)]), Ok(0));
            assert_eq!(record_all(&*store, &[result(delivery, 3, second, Next::Delivered)]), Ok(0));
            let record = find(&*store, org, delivery);
            assert_eq!((record.delivery.status, record.delivery.attempts_made), (DeliveryStatus::Delivered, 3));
            assert_eq!(record.attempts.iter().map(|attempt| attempt.number).collect::<Vec<_>>(), [1, 2, 3]);
        } else {
            assert_eq!(changed, 0);
            let held = (record.delivery.status, record.delivery.next_attempt_at);
            assert_eq!(held, (DeliveryStatus::Pending, Some(second)));
            assert_eq!(record_all(&*store, &[result(delivery, 2, second, Next::Failed)]), Ok(1));
            assert_eq!(status(&*store, org, delivery), DeliveryStatus::Failed);
            // Delivered after all, by somebody long gone.
            assert_eq!(record_all(&*store, &[result(delivery, 1, first, Next::Delivered)]), Ok(1));
            assert_eq!(status(&*store, org, delivery), DeliveryStatus::Delivered);
        }
    }
    assert_eq!(list(&*store, org, Some(DeliveryStatus::Failed)), []);
    assert_eq!(store.pending_stats().unwrap().count, 0);
    assert_eq!(due_endpoints(&*store, in_seconds(9999), None, 9), Ok(Vec::new()));
}

/// A lease that ended and that nobody else took is not lost, nor is what was recorded by a call whose answer was.
fn only_what_somebody_else_has_taken_is_lost(fixture: &Fixture) {
    let store = fixture.migrated();
    let org = organization(&*store);
    let id = endpoint(&*store, org).id;
    let long = Some("x".repeat(500));
    for body in [None, long] {
        for next in [Next::Delivered, Next::RetryAt(in_seconds(300)), Next::Failed, Next::Blocked] {
            let over = Timestamp::now();
            let ids = deliveries(&*store, org, id, 2, Some(over));
            let mut results: Vec<_> = ids.iter().map(|id| result(*id, 1, over, next)).collect();
            for result in &mut results {
                result.attempt.response_body.clone_from(&body);
            }
            assert_eq!(store.record(&results[..1]), Ok(Recorded { changed: 1, lost: 0 }), "{next:?}");
            assert_eq!(store.record(&results[..1]), Ok(Recorded::default()), "{next:?} once more");
            let other = in_seconds(60);
            assert_eq!(claim(&*store, id, 9, other).len(), 1);
            let changed = u64::from(next == Next::Delivered);
            assert_eq!(store.record(&results), Ok(Recorded { changed, lost: 1 }), "{next:?} taken");
            // The other has made the same attempt at another moment.
            let mut same = result(ids[1], 1, other, next);
            same.attempt.at = Timestamp::now();
            same.attempt.response_body.clone_from(&body);
            let lost = Recorded { changed: 1 - changed, lost: changed };
            assert_eq!(store.record(&[same]), Ok(lost), "{next:?} by the other");
        }
    }
}

fn what_is_due_is_looked_for_from_a_moment_on(fixture: &Fixture) {
    let store = fixture.migrated();
    let org = organization(&*store);
    let ids = [(); 3].map(|()| endpoint(&*store, org).id);
    let (early, late) = (in_seconds(10), in_seconds(20));
    let first = deliveries(&*store, org, ids[0], 1, Some(early))[0];
    let second = deliveries(&*store, org, ids[0], 1, Some(late))[0];
    deliveries(&*store, org, ids[1], 1, Some(late));
    let since = |now, from: Timestamp| {
        let mut due = store.due_since(now, &ids.map(|id| (id, from))).unwrap();
        due.sort_by_key(|due| due.id);
        due.into_iter().map(|due| (due.id, due.since)).collect::<Vec<_>>()
    };
    assert_eq!(since(early.just_before(), Timestamp::MIN), []);
    assert_eq!(since(early, Timestamp::MIN), [(ids[0], early)]);
    assert_eq!(since(late, early), [(ids[0], early), (ids[1], late)]);
    assert_eq!(since(late, early.just_after()), [(ids[0], late), (ids[1], late)]);
    assert_eq!(since(late, late.just_after()), []);
    assert_eq!(store.due_since(late, &[]), Ok(Vec::new()));
    let claimed = |from| {
        let wanted = [Wanted { endpoint: ids[0], most: 9, from }];
        let ready = store.claim(late, in_seconds(60), &wanted).unwrap().ready;
        ready.iter().map(|claimed| claimed.delivery).collect::<Vec<_>>()
    };
    assert_eq!(claimed(late.just_after()), []);
    assert_eq!(claimed(late), [second]);
    assert_eq!(claimed(Timestamp::MIN), [first]);
    store.disable_endpoint(ids[1], "why").unwrap();
    assert_eq!(since(late, Timestamp::MIN), []);
}

fn an_attempt_of_a_number_is_recorded_once(fixture: &Fixture) {
    let store = fixture.migrated();
    let org = organization(&*store);
    let id = endpoint(&*store, org).id;
    let long = Some("x".repeat(500));
    for (body, another) in [(None, None), (None, long.clone()), (long.clone(), None), (long.clone(), long)] {
        let (first, second) = (in_seconds(1), in_seconds(60));
        let delivery = deliveries(&*store, org, id, 1, Some(first))[0];
        claim_due(&*store, first, second, &[(id, 1)]).unwrap();
        for (lease, body) in [(second, &body), (first, &another)] {
            let mut result = result(delivery, 1, lease, Next::RetryAt(in_seconds(300)));
            result.attempt.response_body.clone_from(body);
            record_all(&*store, &[result]).unwrap();
        }
        assert_eq!(find(&*store, org, delivery).attempts.len(), 1);
    }
}

fn what_nobody_knows_is_not_recorded(fixture: &Fixture) {
    let store = fixture.migrated();
    let org = organization(&*store);
    let lease = in_seconds(60);
    let unknown = DeliveryId(Uuid::now_v7());
    for number in [1, 2] {
        for next in [Next::Delivered, Next::Failed, Next::RetryAt(lease)] {
            assert_eq!(record_all(&*store, &[result(unknown, number, lease, next)]), Ok(0));
        }
    }
    assert_eq!(store.delivery(org, unknown), Ok(None));
    assert_eq!(store.release(&[(unknown, lease)], Timestamp::now()), Ok(()));
    assert_eq!(fixture.count("SELECT (SELECT count(*) FROM delivery_attempts) + (SELECT count(*) FROM deliveries)"), 0);
}

fn a_lease_is_given_back_by_its_holder(fixture: &Fixture) {
    let store = fixture.migrated();
    let org = organization(&*store);
    let id = endpoint(&*store, org).id;
    let (first, second) = (in_seconds(60), in_seconds(120));
    let ids = deliveries(&*store, org, id, 3, Some(first));
    assert_eq!(record_all(&*store, &[result(ids[2], 1, first, Next::Delivered)]), Ok(1));
    let held: Vec<_> = ids.iter().map(|id| (*id, first)).collect();
    // Another has claimed them since: it is not theirs to give back any more.
    assert_eq!(claim_due(&*store, first, second, &[(id, 9)]).unwrap().ready.len(), 2);
    store.release(&held, Timestamp::now()).unwrap();
    assert_eq!(claim_due(&*store, first, in_seconds(600), &[(id, 9)]).unwrap().ready, []);
    assert_eq!(record_all(&*store, &[result(ids[0], 1, first, Next::Failed)]), Ok(0));
    let now = Timestamp::now();
    store.release(&[(ids[0], second), (ids[1], second)], now).unwrap();
    let due = find(&*store, org, ids[1]).delivery;
    assert_eq!((due.next_attempt_at, due.attempts_made, due.status), (Some(now), 0, DeliveryStatus::Pending));
    assert_eq!(claim(&*store, id, 9, second).len(), 2);
    assert_eq!(store.release(&[], second), Ok(()));
}

fn a_delivery_without_its_event_is_an_orphan(fixture: &Fixture) {
    let store = fixture.migrated();
    let org = organization(&*store);
    let id = endpoint(&*store, org).id;
    let old = event_at(org, at("2024-05-01T10:00:00Z"), "1");
    let new = event(org, "2");
    let planned = [planned(&old, id, None), planned(&new, id, None)];
    store.store_events(&[old.clone(), new], &planned).unwrap();
    fixture.sql("DROP TABLE events_p20240501", "DELETE FROM events WHERE received_at < 1720000000000000");
    let lease = in_seconds(60);
    let claims = claim_due(&*store, Timestamp::now(), lease, &[(id, 9)]).unwrap();
    assert_eq!(claims.ready.iter().map(|claimed| claimed.delivery).collect::<Vec<_>>(), [planned[1].id]);
    let orphan = &claims.orphans[0];
    assert_eq!((claims.orphans.len(), orphan.delivery, orphan.endpoint), (1, planned[0].id, id));
    assert_eq!((orphan.org, orphan.event, orphan.attempts_made, orphan.lease), (org, old.id, 0, lease));
    assert_eq!(record_all(&*store, &[result(orphan.delivery, 1, lease, Next::Failed)]), Ok(1));
    assert_eq!(store.deliveries_of_event(org, old.id).unwrap().len(), 1);
}

fn due_endpoints_are_found_page_by_page(fixture: &Fixture) {
    let store = fixture.migrated();
    let org = organization(&*store);
    let mut ids: Vec<EndpointId> = (0..8).map(|_| endpoint(&*store, org).id).collect();
    ids.sort();
    for id in &ids[..7] {
        deliveries(&*store, org, *id, 2, None);
    }
    let now = Timestamp::now();
    // One with nothing due any more, one disabled, one gone but for what it cannot fail at once.
    let held = claim(&*store, ids[1], 9, in_seconds(60));
    assert_eq!(store.disable_endpoint(ids[3], "why"), Ok(true));
    fixture.sql(&format!("DELETE FROM endpoints WHERE id = '{}'", ids[5].0), "DELETE FROM endpoints WHERE false");
    let expected = [ids[0], ids[2], ids[4], ids[5], ids[6]];
    for page in [1, 2, 5, 100] {
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let due = due_endpoints(&*store, now, after, page).unwrap();
            assert!(due.len() <= page as usize);
            let Some(last) = due.last() else { break };
            after = Some(*last);
            seen.extend(due);
        }
        assert_eq!(seen, expected, "pages of {page}");
    }
    assert_eq!(due_endpoints(&*store, Timestamp::from_micros(0), None, 9), Ok(Vec::new()));
    let enable = EndpointChange { enabled: Some(true), ..EndpointChange::default() };
    store.update_endpoint(org, ids[3], &enable).unwrap();
    let held: Vec<_> = held.iter().map(|claimed| (claimed.delivery, claimed.lease)).collect();
    store.release(&held, now).unwrap();
    assert_eq!(due_endpoints(&*store, now, None, 9), Ok(ids[..7].to_vec()));
}

fn what_a_wrong_clock_put_out_of_reach_is_made_due(fixture: &Fixture) {
    let store = fixture.migrated();
    let org = organization(&*store);
    let ids = [endpoint(&*store, org).id, endpoint(&*store, org).id];
    let (now, latest, year) = (Timestamp::now(), in_seconds(3600), in_seconds(365 * 24 * 3600));
    let near = deliveries(&*store, org, ids[0], 3, Some(latest));
    let far: Vec<DeliveryId> = ids.iter().flat_map(|id| deliveries(&*store, org, *id, 2, Some(year))).collect();
    let ended = deliveries(&*store, org, ids[1], 1, Some(year))[0];
    assert_eq!(record_all(&*store, &[result(ended, 1, year, Next::Delivered)]), Ok(1));
    assert_eq!(due_endpoints(&*store, now, None, 9), Ok(Vec::new()));
    assert_eq!(store.recall_stranded(now, latest), Ok(4));
    assert_eq!(store.recall_stranded(now, latest), Ok(0));
    for id in &far {
        assert_eq!(find(&*store, org, *id).delivery.next_attempt_at.map(|at| at.since(now)), Some(Duration::ZERO));
    }
    let claimed = claim_due(&*store, now, in_seconds(60), &ids.map(|id| (id, 9))).unwrap().ready;
    let mut claimed: Vec<DeliveryId> = claimed.iter().map(|claimed| claimed.delivery).collect();
    claimed.sort();
    assert_eq!(claimed, far);
    assert!(near.iter().all(|id| find(&*store, org, *id).delivery.next_attempt_at == Some(latest)));
    assert_eq!(status(&*store, org, ended), DeliveryStatus::Delivered);
    // Bounded, and the rest the next time.
    let most = limits::RECALL_DELIVERIES_MAX as usize;
    deliveries(&*store, org, ids[0], most + 5, Some(year));
    let recalled: Vec<u64> = (0..3).map(|_| store.recall_stranded(now, latest).unwrap()).collect();
    assert_eq!(recalled, [most as u64, 5, 0]);
}

fn what_waits_is_counted(fixture: &Fixture) {
    let store = fixture.migrated();
    let (org, other) = (organization(&*store), organization(&*store));
    let id = endpoint(&*store, org).id;
    assert_eq!(store.pending_stats(), Ok(PendingStats::default()));
    let lease = in_seconds(60);
    let mut ids = deliveries(&*store, org, id, 3, Some(lease));
    ids.extend(deliveries(&*store, other, endpoint(&*store, other).id, 1, None));
    let created = |id| find(&*store, org, id).delivery.created_at;
    assert_eq!(store.pending_stats(), Ok(PendingStats { count: 4, oldest: Some(created(ids[0])) }));
    let oldest = created(ids[1]);
    assert_eq!(record_all(&*store, &[result(ids[0], 1, lease, Next::Failed)]), Ok(1));
    assert_eq!(store.pending_stats(), Ok(PendingStats { count: 3, oldest: Some(oldest) }));
    let delivered: Vec<_> = ids[1..3].iter().map(|id| result(*id, 1, lease, Next::Delivered)).collect();
    record_all(&*store, &delivered).unwrap();
    let stats = store.pending_stats().unwrap();
    assert_eq!((stats.count, stats.oldest.is_some()), (1, true));
    // Nobody is left to whom it could be delivered.
    store.delete_endpoint(other, store.endpoints(other).unwrap()[0].as_ref().unwrap().id).unwrap();
    assert_eq!(store.pending_stats(), Ok(PendingStats::default()));
    // Nor to whom this one could.
    deliveries(&*store, OrgId(Uuid::now_v7()), EndpointId(Uuid::now_v7()), 1, None);
    assert_eq!(store.pending_stats(), Ok(PendingStats { count: 1, oldest: None }));
}
