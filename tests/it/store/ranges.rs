//! Reads on Postgres where partitions are so many that they are read range by range.

use std::collections::HashSet;
use std::time::Duration;

use uuid::Uuid;

use millrace_base::clock::Timestamp;
use millrace_base::event::{Event, EventId};
use millrace_store::{EventQuery, StoredEvent};

use crate::store::fixture::{Fixture, StorePlain, at, derived_at, event_at, key, org};
use crate::store::webhooks::{claim, claim_due, endpoint, planned};

/// Of days in three clusters, more than one statement reads.
fn days() -> Vec<Timestamp> {
    let first = at("2024-01-01T00:00:00Z").day();
    (0..40).chain(50..70).chain(200..210).map(|n| first.offset(n).start()).collect()
}

/// Every event of the store's list, page by page.
fn walked(store: &dyn millrace_store::Store, org: millrace_base::event::OrgId, query: &EventQuery) -> Vec<StoredEvent> {
    let (mut all, mut query) = (Vec::new(), query.clone());
    loop {
        let (page, next) = store.events(org, &query).unwrap();
        assert!(page.len() <= query.limit as usize && (next.is_none() || page.len() == query.limit as usize));
        query.cursor = next;
        all.extend(page);
        if next.is_none() {
            return all;
        }
    }
}

#[test]
fn a_list_over_many_partitions_is_the_same_list() {
    let fixture = Fixture::postgres();
    let store = fixture.migrated();
    let (org, other) = (org(), org());
    let mut batch = Vec::new();
    for (n, day) in days().into_iter().enumerate() {
        // At both ends of a day and between, some at the same time; some days have none.
        let last = day.plus(Duration::from_micros(86_399_999_999));
        let noon = day.plus(Duration::from_secs(43_200));
        batch.push(event_at(other, noon, "0"));
        if n % 3 > 0 {
            batch.extend([day, last, noon, noon].map(|at| event_at(org, at, "1")));
            batch.push(derived_at(org, noon, &format!("d-{n}")));
        }
    }
    for events in batch.chunks(100) {
        assert_eq!(store.store_plain(events), Ok(events.len() as u64));
    }
    let mut expected: Vec<(Timestamp, EventId)> =
        batch.iter().filter(|event| event.org == org).map(|event| (event.received_at, event.id)).collect();
    expected.sort_unstable_by(|a, b| b.cmp(a));
    let bounds =
        [None, Some(days()[0]), Some(days()[33]), Some(days()[45].plus(Duration::from_micros(1))), Some(days()[69])];
    for limit in [1, 7, 1000] {
        for (after, before) in bounds.iter().flat_map(|after| bounds.iter().map(move |before| (*after, *before))) {
            let query = EventQuery { after, before, limit, ..EventQuery::default() };
            let found: Vec<_> =
                walked(&*store, org, &query).iter().map(|event| (event.received_at, event.id)).collect();
            let is_within =
                |at: Timestamp| after.is_none_or(|after| at > after) && before.is_none_or(|before| at < before);
            let expected: Vec<_> = expected.iter().copied().filter(|(at, _)| is_within(*at)).collect();
            assert_eq!(found, expected, "{after:?} {before:?} {limit}");
        }
    }
    let query = EventQuery { event_type: Some("user.login".to_owned()), limit: 50, ..EventQuery::default() };
    assert_eq!(walked(&*store, org, &query).len(), expected.len());
    let none = EventQuery { event_type: Some("no.such".to_owned()), limit: 50, ..EventQuery::default() };
    assert_eq!(walked(&*store, org, &none).len(), 0);
    for (_, id) in &expected {
        assert_eq!(store.event(org, *id).unwrap().unwrap().id, *id);
        assert_eq!(store.event(other, *id), Ok(None));
    }
    assert_eq!(store.event(org, EventId(Uuid::now_v7())), Ok(None));
}

#[test]
fn an_event_is_found_whatever_day_its_id_names() {
    let fixture = Fixture::postgres();
    let store = fixture.migrated();
    let org = org();
    let filler: Vec<Event> = days().into_iter().map(|day| event_at(org, day, "0")).collect();
    assert_eq!(store.store_plain(&filler), Ok(filler.len() as u64));
    let id_of = |at: Timestamp| EventId(Uuid::from_u128((at.as_micros() as u128 / 1000) << 80 | 7 << 76 | 2 << 62 | 1));
    let named = days()[45];
    for received_at in [named, days()[44], days()[46], days()[0], days()[69], Timestamp::now()] {
        let id = id_of(named);
        let stored = Event::new(id, org, received_at, "t", None, b"1");
        assert_eq!(store.store_plain(std::slice::from_ref(&stored)), Ok(1));
        assert_eq!(store.event(org, id).unwrap().unwrap().received_at, received_at);
        fixture.sql(&format!("DELETE FROM events WHERE id = '{id}'"), "");
    }
    // Of two copies the newer is shown, as ever.
    for day in [days()[3], days()[60]] {
        assert_eq!(store.store_plain(&[derived_at(org, day, "twice")]), Ok(1));
    }
    assert_eq!(store.event(org, EventId::derived(org, "twice")).unwrap().unwrap().received_at, days()[60]);
}

#[test]
fn deliveries_of_many_days_are_claimed_with_their_events() {
    let fixture = Fixture::postgres();
    let store = fixture.migrated();
    let (id, verifier) = key();
    let org = store.create_organization("acme", None, (id, &verifier)).unwrap().id;
    let (to, also) = (endpoint(&*store, org).id, endpoint(&*store, org).id);
    let events: Vec<Event> = days().iter().enumerate().map(|(n, day)| event_at(org, *day, &n.to_string())).collect();
    let plan: Vec<_> = events.iter().flat_map(|event| [planned(event, to, None), planned(event, also, None)]).collect();
    assert_eq!(store.store_events(&events, &plan).unwrap().deliveries.len(), plan.len());
    // One day is dropped: its delivery is an orphan, the others are whole.
    fixture.sql("DROP TABLE events_p20240105", "");
    let mut seen = HashSet::new();
    loop {
        let now = Timestamp::now();
        let claims = claim_due(&*store, now, now.plus(Duration::from_secs(60)), &[(to, 50)]).unwrap();
        if claims.ready.is_empty() && claims.orphans.is_empty() {
            break;
        }
        for claimed in claims.ready {
            let event = events.iter().find(|event| event.id == claimed.event).unwrap();
            assert_eq!(claimed.payload.as_bytes(), event.payload());
            assert_eq!((claimed.event_type.as_str(), claimed.received_at), (event.type_text(), event.received_at));
            assert!(seen.insert(claimed.event));
        }
        for orphan in claims.orphans {
            assert_eq!(orphan.event, events[4].id);
        }
    }
    assert_eq!(seen.len(), events.len() - 1);
    assert_eq!(claim(&*store, also, 1, Timestamp::now().plus(Duration::from_secs(60))).len(), 1);
}
