//! Deliveries as their owners see them, and for how long: what both stores must do.

use uuid::Uuid;

use millrace_base::clock::Timestamp;
use millrace_base::event::{DeliveryId, EndpointId};
use millrace_base::limits;
use millrace_store::webhooks::{DeliveryQuery, DeliveryStatus, Next};

use crate::store::fixture::{Fixture, event, on_both_stores, org};
use crate::store::webhooks::{
    claim, claim_due, deliveries, endpoint, find, in_seconds, list, organization, planned, record_all, result, status,
};

on_both_stores!(
    organisations_do_not_see_each_others_deliveries,
    an_events_deliveries_are_shown_newest_first,
    pages_of_deliveries_meet_without_overlap,
    a_page_of_deliveries_ends_before_it_is_too_large,
    the_newest_attempts_are_shown,
    a_retried_delivery_begins_anew,
    recovery_takes_what_failed_in_a_time,
    recovery_goes_on_while_there_is_more,
    what_has_ended_is_kept_for_a_time,
    old_deliveries_go_chunk_by_chunk,
);

fn organisations_do_not_see_each_others_deliveries(fixture: &Fixture) {
    let store = fixture.migrated();
    let (mine, theirs) = (organization(&*store), organization(&*store));
    let id = endpoint(&*store, mine).id;
    let lease = in_seconds(60);
    let delivery = deliveries(&*store, mine, id, 1, Some(lease))[0];
    record_all(&*store, &[result(delivery, 1, lease, Next::Failed)]).unwrap();
    let before = find(&*store, mine, delivery);
    assert_eq!(store.delivery(theirs, delivery), Ok(None));
    assert_eq!(store.deliveries_of_event(theirs, before.delivery.event), Ok(Vec::new()));
    for status in [None, Some(DeliveryStatus::Failed)] {
        assert_eq!(list(&*store, theirs, status), []);
    }
    let query = DeliveryQuery { endpoint: Some(id), limit: 9, ..DeliveryQuery::default() };
    assert_eq!(store.deliveries(theirs, &query), Ok((Vec::new(), None)));
    assert_eq!(store.retry_delivery(theirs, delivery, Timestamp::now()), Ok(None));
    let all_times = Timestamp::from_micros(0)..lease;
    assert_eq!(store.recover_deliveries(theirs, id, all_times, 9, Timestamp::now()), Ok(0));
    assert_eq!(find(&*store, mine, delivery), before);
}

fn an_events_deliveries_are_shown_newest_first(fixture: &Fixture) {
    let store = fixture.migrated();
    let org = organization(&*store);
    let event = event(org, "1");
    let planned: Vec<_> = (0..3).map(|_| planned(&event, EndpointId(Uuid::now_v7()), None)).collect();
    store.store_events(std::slice::from_ref(&event), &planned).unwrap();
    deliveries(&*store, org, planned[0].endpoint, 2, None);
    let shown = store.deliveries_of_event(org, event.id).unwrap();
    let shown: Vec<DeliveryId> = shown.iter().map(|record| record.delivery.id).collect();
    assert_eq!(shown, [planned[2].id, planned[1].id, planned[0].id]);
}

fn pages_of_deliveries_meet_without_overlap(fixture: &Fixture) {
    let store = fixture.migrated();
    let org = organization(&*store);
    let endpoints = [endpoint(&*store, org).id, endpoint(&*store, org).id];
    let lease = in_seconds(60);
    let nexts = [Next::Delivered, Next::Failed, Next::Blocked, Next::RetryAt(lease)];
    let mut all = Vec::new();
    for (n, next) in nexts.into_iter().cycle().take(90).enumerate() {
        let delivery = deliveries(&*store, org, endpoints[n % 3 / 2], 1, Some(lease))[0];
        record_all(&*store, &[result(delivery, 1, lease, next)]).unwrap();
        all.push((delivery, endpoints[n % 3 / 2], next.status()));
    }
    // Somebody else's.
    deliveries(&*store, crate::store::fixture::org(), endpoints[0], 5, None);
    all.reverse();
    for status in [None].into_iter().chain(DeliveryStatus::ALL.map(Some)) {
        for endpoint in [None, Some(endpoints[1])] {
            let matching = all.iter().filter(|(_, of, came)| {
                endpoint.is_none_or(|endpoint| endpoint == *of) && status.is_none_or(|status| status == *came)
            });
            let expected: Vec<DeliveryId> = matching.map(|(delivery, _, _)| *delivery).collect();
            for limit in [1, 4, 7, 90, 2000] {
                let (mut seen, mut cursor) = (Vec::new(), None);
                loop {
                    let query = DeliveryQuery { status, endpoint, cursor, limit };
                    let (page, next) = store.deliveries(org, &query).unwrap();
                    let is_last = page.len() == expected.len() - seen.len();
                    assert!(page.len() <= limit as usize && (next.is_some() || is_last));
                    seen.extend(page.iter().map(|record| record.delivery.id));
                    assert!(page.iter().all(|record| record.attempts.len() == 1));
                    cursor = next;
                    if next.is_none() {
                        break;
                    }
                }
                assert_eq!(seen, expected, "{status:?} of {endpoint:?} in pages of {limit}");
            }
        }
    }
}

fn a_page_of_deliveries_ends_before_it_is_too_large(fixture: &Fixture) {
    let store = fixture.migrated();
    let org = organization(&*store);
    let id = endpoint(&*store, org).id;
    let lease = in_seconds(60);
    let fitting = 4;
    for delivery in deliveries(&*store, org, id, 2 * fitting, Some(lease)) {
        let mut result = result(delivery, 1, lease, Next::Delivered);
        result.attempt.response_body = Some("x".repeat(limits::LIST_BYTES_MAX / fitting));
        assert_eq!(record_all(&*store, &[result]), Ok(1));
    }
    let query = DeliveryQuery { limit: 100, ..DeliveryQuery::default() };
    let (page, next) = store.deliveries(org, &query).unwrap();
    assert_eq!((page.len(), next), (fitting, page.last().map(|record| record.delivery.id)));
    let query = DeliveryQuery { cursor: next, ..query };
    let (page, next) = store.deliveries(org, &query).unwrap();
    assert_eq!((page.len(), next), (fitting, None));
}

fn the_newest_attempts_are_shown(fixture: &Fixture) {
    let store = fixture.migrated();
    let org = organization(&*store);
    let id = endpoint(&*store, org).id;
    let mut lease = in_seconds(60);
    let delivery = deliveries(&*store, org, id, 1, Some(lease))[0];
    let most = limits::DELIVERY_ATTEMPTS_SHOWN_MAX as u32;
    for number in 1..=most + 2 {
        let next = in_seconds(100 + u64::from(number));
        assert_eq!(record_all(&*store, &[result(delivery, number, lease, Next::RetryAt(next))]), Ok(1));
        lease = next;
        if number == most || number == 3 {
            let shown: Vec<u32> = find(&*store, org, delivery).attempts.iter().map(|attempt| attempt.number).collect();
            assert_eq!(shown, (1..=number).collect::<Vec<_>>());
        }
    }
    let record = find(&*store, org, delivery);
    let shown: Vec<u32> = record.attempts.iter().map(|attempt| attempt.number).collect();
    assert_eq!((record.delivery.attempts_made, shown), (most + 2, (3..=most + 2).collect::<Vec<_>>()));
}

fn a_retried_delivery_begins_anew(fixture: &Fixture) {
    let store = fixture.migrated();
    let org = organization(&*store);
    let id = endpoint(&*store, org).id;
    let lease = in_seconds(60);
    for next in [Next::Delivered, Next::Failed, Next::Blocked, Next::RetryAt(in_seconds(900))] {
        let delivery = deliveries(&*store, org, id, 1, Some(lease))[0];
        record_all(&*store, &[result(delivery, 1, lease, next)]).unwrap();
        let now = Timestamp::now();
        let retried = store.retry_delivery(org, delivery, now).unwrap().unwrap();
        assert_eq!((retried.status, retried.next_attempt_at), (DeliveryStatus::Pending, Some(now)));
        assert_eq!((retried.attempts_made, find(&*store, org, delivery).delivery), (1, retried));
        let claimed = claim(&*store, id, 9, lease).pop().unwrap();
        assert_eq!((claimed.delivery, claimed.attempts_made, claimed.schedule_step), (delivery, 1, 0));
        let later = in_seconds(300);
        assert_eq!(record_all(&*store, &[result(delivery, 2, lease, Next::RetryAt(later))]), Ok(1));
        let claimed = &claim_due(&*store, later, in_seconds(600), &[(id, 9)]).unwrap().ready[0];
        assert_eq!((claimed.attempts_made, claimed.schedule_step), (2, 1));
        assert_eq!(record_all(&*store, &[result(delivery, 3, claimed.lease, Next::Delivered)]), Ok(1));
        assert_eq!(find(&*store, org, delivery).attempts.len(), 3);
    }
    assert_eq!(list(&*store, org, Some(DeliveryStatus::Delivered)).len(), 4);
    for status in [DeliveryStatus::Pending, DeliveryStatus::Failed, DeliveryStatus::Blocked] {
        assert_eq!(list(&*store, org, Some(status)), []);
    }
    // One that is just being attempted is made twice: whoever holds it has lost it.
    let delivery = deliveries(&*store, org, id, 1, Some(lease))[0];
    store.retry_delivery(org, delivery, Timestamp::now()).unwrap();
    assert_eq!(claim(&*store, id, 9, in_seconds(90)).len(), 1);
    assert_eq!(record_all(&*store, &[result(delivery, 1, lease, Next::Failed)]), Ok(0));
    assert_eq!(store.retry_delivery(org, DeliveryId(Uuid::now_v7()), Timestamp::now()), Ok(None));
}

fn recovery_takes_what_failed_in_a_time(fixture: &Fixture) {
    let store = fixture.migrated();
    let org = organization(&*store);
    let (id, other) = (endpoint(&*store, org).id, endpoint(&*store, org).id);
    let lease = in_seconds(60);
    let nexts = [Next::Failed, Next::Blocked, Next::Delivered, Next::RetryAt(in_seconds(900)), Next::Failed];
    let mut ids = Vec::new();
    for next in nexts {
        let delivery = deliveries(&*store, org, id, 1, Some(lease))[0];
        record_all(&*store, &[result(delivery, 1, lease, next)]).unwrap();
        ids.push(delivery);
        // Ids are of the precision of milliseconds.
        std::thread::sleep(std::time::Duration::from_millis(3));
    }
    let others = deliveries(&*store, org, other, 1, Some(lease))[0];
    record_all(&*store, &[result(others, 1, lease, Next::Failed)]).unwrap();
    let created: Vec<Timestamp> = ids.iter().map(|id| find(&*store, org, *id).delivery.created_at).collect();
    let now = Timestamp::now();
    let recover = |from: Timestamp, until: Timestamp| store.recover_deliveries(org, id, from..until, 9, now).unwrap();
    assert_eq!(recover(Timestamp::from_micros(0), created[0]), 0);
    // From its beginning on, before its end.
    assert_eq!(recover(created[0], created[1]), 1);
    let recovered = find(&*store, org, ids[0]);
    let due = (recovered.delivery.status, recovered.delivery.next_attempt_at, recovered.attempts.len());
    assert_eq!(due, (DeliveryStatus::Pending, Some(now), 1));
    assert_eq!(recover(created[0], created[4]), 1);
    assert_eq!(status(&*store, org, ids[1]), DeliveryStatus::Pending);
    assert_eq!(recover(created[4], in_seconds(60)), 1);
    assert_eq!(recover(Timestamp::from_micros(i64::MIN), Timestamp::from_micros(i64::MAX)), 0);
    assert_eq!(status(&*store, org, others), DeliveryStatus::Failed);
    let mut claimed = claim(&*store, id, 9, in_seconds(90));
    claimed.sort_by_key(|claimed| claimed.delivery);
    let claimed: Vec<_> = claimed.iter().map(|claimed| (claimed.delivery, claimed.schedule_step)).collect();
    assert_eq!(claimed, [(ids[0], 0), (ids[1], 0), (ids[4], 0)]);
}

fn recovery_goes_on_while_there_is_more(fixture: &Fixture) {
    let store = fixture.migrated();
    let org = organization(&*store);
    let id = endpoint(&*store, org).id;
    let lease = in_seconds(60);
    let ids = deliveries(&*store, org, id, 10, Some(lease));
    let results: Vec<_> = ids.iter().map(|id| result(*id, 1, lease, Next::Failed)).collect();
    assert_eq!(record_all(&*store, &results), Ok(10));
    let all_times = || Timestamp::from_micros(0)..lease;
    let mut recovered = Vec::new();
    while recovered.last().is_none_or(|last| *last == 4) {
        recovered.push(store.recover_deliveries(org, id, all_times(), 4, Timestamp::now()).unwrap());
    }
    assert_eq!(recovered, [4, 4, 2]);
    assert_eq!(list(&*store, org, Some(DeliveryStatus::Pending)).len(), 10);
    assert_eq!(list(&*store, org, Some(DeliveryStatus::Failed)), []);
}

fn what_has_ended_is_kept_for_a_time(fixture: &Fixture) {
    let store = fixture.migrated();
    let organisation = organization(&*store);
    let [kept, disabled, gone] = [(); 3].map(|()| endpoint(&*store, organisation).id);
    let lease = in_seconds(60);
    let ended = deliveries(&*store, organisation, kept, 3, Some(lease));
    let nexts = [Next::Delivered, Next::Failed, Next::Blocked];
    for (delivery, next) in ended.iter().zip(nexts) {
        assert_eq!(record_all(&*store, &[result(*delivery, 1, lease, Next::RetryAt(lease))]), Ok(1));
        assert_eq!(record_all(&*store, &[result(*delivery, 2, lease, next)]), Ok(1));
    }
    let waiting = deliveries(&*store, organisation, kept, 1, None)[0];
    for id in [disabled, gone] {
        deliveries(&*store, organisation, id, 1, None);
    }
    store.disable_endpoint(disabled, "why").unwrap();
    deliveries(&*store, org(), gone, 1, None);
    store.delete_endpoint(organisation, gone).unwrap();
    // Nothing is that old.
    let created = find(&*store, organisation, ended[0]).delivery.created_at;
    assert_eq!(store.delete_old_deliveries(created, None), Ok(None));
    assert_eq!(list(&*store, organisation, None).len(), 6);
    assert_eq!(store.delete_old_deliveries(in_seconds(1), None), Ok(None));
    assert_eq!(list(&*store, organisation, None).iter().map(|delivery| delivery.id).collect::<Vec<_>>(), [waiting]);
    assert_eq!(fixture.count("SELECT count(*) FROM deliveries"), 1);
    assert_eq!(fixture.count("SELECT count(*) FROM delivery_attempts"), 0);
    assert_eq!(store.pending_stats().unwrap().count, 1);
    for status in [DeliveryStatus::Failed, DeliveryStatus::Blocked] {
        assert_eq!(list(&*store, organisation, Some(status)), []);
    }
    // Somebody was still at it.
    assert_eq!(record_all(&*store, &[result(ended[0], 3, lease, Next::Delivered)]), Ok(0));
    assert_eq!(fixture.count("SELECT count(*) FROM delivery_attempts"), 0);
    assert_eq!(claim(&*store, kept, 9, lease).len(), 1);
}

fn old_deliveries_go_chunk_by_chunk(fixture: &Fixture) {
    let store = fixture.migrated();
    let org = organization(&*store);
    let id = endpoint(&*store, org).id;
    let lease = in_seconds(60);
    let chunk = limits::DELIVERIES_DELETED_MAX as usize;
    let waiting = deliveries(&*store, org, id, 10, None);
    let ended = deliveries(&*store, org, id, 2 * chunk + 1, Some(lease));
    for ended in ended.chunks(1000) {
        let results: Vec<_> = ended.iter().map(|id| result(*id, 1, lease, Next::Delivered)).collect();
        assert_eq!(record_all(&*store, &results), Ok(ended.len() as u64));
    }
    // What waits counts too: no step looks at more.
    let first = store.delete_old_deliveries(in_seconds(1), None).unwrap();
    assert_eq!(first, Some(ended[chunk - 11]));
    assert_eq!(fixture.count("SELECT count(*) FROM deliveries"), (chunk + 21) as i64);
    let second = store.delete_old_deliveries(in_seconds(1), first).unwrap();
    assert_eq!(second, Some(ended[2 * chunk - 11]));
    assert_eq!(store.delete_old_deliveries(in_seconds(1), second), Ok(None));
    assert_eq!(fixture.count("SELECT count(*) FROM deliveries"), waiting.len() as i64);
}
