//! Events: what both stores must do.

use std::thread;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use uuid::Uuid;

use millrace_base::clock::Timestamp;
use millrace_base::event::{Event, EventId};
use millrace_base::limits;
use millrace_store::{EventQuery, StoreError, StoredEvent};

use crate::store::fixture::{Fixture, StorePlain, at, derived_at, event, event_at, on_both_stores, org, stored};

on_both_stores!(
    events_come_back_as_they_went_in,
    payloads_come_back_byte_for_byte,
    storing_again_stores_nothing,
    a_batch_with_a_poison_row_stores_nothing,
    quarantine_is_idempotent,
    one_row_per_derived_id_from_many_threads,
    an_event_belongs_to_its_organisation,
    lists_filter_by_type_and_time,
    pages_meet_without_overlap_where_times_are_equal,
    a_page_ends_before_it_is_too_large,
    migrating_twice_at_once_applies_each_once,
    housekeeping_can_always_run,
);

fn events_come_back_as_they_went_in(fixture: &Fixture) {
    let store = fixture.migrated();
    let org = org();
    for (dedup_id, payload) in [(None, "null"), (Some("order-7"), "{\"a\" : 1}"), (Some("żółw 🐢"), "[]")] {
        let id = dedup_id.map_or_else(|| EventId(Uuid::now_v7()), |dedup_id| EventId::derived(org, dedup_id));
        let event = Event::new(id, org, Timestamp::now(), "user.login", dedup_id, payload.as_bytes());
        assert_eq!(store.store_plain(std::slice::from_ref(&event)), Ok(1));
        let expected = StoredEvent {
            id,
            event_type: "user.login".to_owned(),
            dedup_id: dedup_id.map(str::to_owned),
            payload: payload.to_owned(),
            received_at: event.received_at,
        };
        assert_eq!(store.event(org, id), Ok(Some(expected)));
    }
    assert_eq!(store.store_plain(&[]), Ok(0));
}

/// Any JSON text, with all the freedom the grammar leaves.
fn json_text() -> impl Strategy<Value = String> {
    let space = "[ \t\n\r]{0,3}";
    let number = prop::sample::select(vec!["0", "-0", "1e400", "1E+2", "-0.0", "1.50", "10000000000000000000000001"]);
    let string = prop::collection::vec(
        prop_oneof![
            "[ !#-\\[\\]-~]{0,8}",
            "\\PC{0,4}".prop_map(|text| text.replace(['"', '\\'], "")),
            prop::sample::select(vec![
                "\\u0000",
                "\\ud800",
                "\\udc00\\ud800",
                "\\/",
                "\\\"",
                "\\\\",
                "\u{7f}",
                "\u{2028}"
            ])
            .prop_map(str::to_owned),
        ],
        0..4,
    )
    .prop_map(|parts| format!("\"{}\"", parts.concat()));
    let leaf = prop_oneof![
        prop::sample::select(vec!["true", "false", "null"]).prop_map(str::to_owned),
        number.prop_map(str::to_owned),
        string.clone(),
    ];
    leaf.prop_recursive(4, 24, 4, move |inner| {
        let pair = (space, string.clone(), space, inner.clone())
            .prop_map(|(before, key, after, value)| format!("{before}{key}{after}:{value}"));
        prop_oneof![
            (space, prop::collection::vec(inner, 0..4)).prop_map(|(space, v)| format!("[{space}{}]", v.join(","))),
            // Keys may repeat.
            (space, prop::collection::vec(pair, 0..4)).prop_map(|(space, v)| format!("{{{space}{}}}", v.join(","))),
        ]
    })
}

fn payloads_come_back_byte_for_byte(fixture: &Fixture) {
    let store = fixture.migrated();
    let org = org();
    let mut runner = TestRunner::new(Config { cases: 64, failure_persistence: None, ..Config::default() });
    let run = runner.run(&prop::collection::vec(json_text(), 1..8), |payloads| {
        let batch: Vec<Event> = payloads.iter().map(|payload| event(org, payload)).collect();
        prop_assert_eq!(store.store_plain(&batch), Ok(batch.len() as u64));
        for event in &batch {
            let stored = store.event(org, event.id).unwrap().unwrap();
            prop_assert_eq!(stored.payload.as_bytes(), event.payload());
        }
        Ok(())
    });
    run.unwrap();
}

fn storing_again_stores_nothing(fixture: &Fixture) {
    let store = fixture.migrated();
    let org = org();
    let now = Timestamp::now();
    let plain = [event(org, "1"), event(org, "2")];
    let mixed = [event(org, "3"), derived_at(org, now, "d"), derived_at(org, now, "d"), derived_at(org, now, "e")];
    assert_eq!(store.store_plain(&plain), Ok(2));
    assert_eq!(store.store_plain(&plain), Ok(0));
    assert_eq!(store.store_plain(&mixed), Ok(3));
    assert_eq!(store.store_plain(&mixed), Ok(0));
    assert_eq!(stored(&*store, org).len(), 5);
}

fn a_batch_with_a_poison_row_stores_nothing(fixture: &Fixture) {
    let store = fixture.migrated();
    fixture.sql(
        "ALTER TABLE events ADD CONSTRAINT no_poison CHECK (payload::text <> '\"poison\"')",
        "CREATE TRIGGER no_poison BEFORE INSERT ON events WHEN NEW.payload = '\"poison\"'
         BEGIN SELECT RAISE(ABORT, 'no_poison'); END",
    );
    let org = org();
    for dedup_id in [None, Some("d")] {
        let id = dedup_id.map_or_else(|| EventId(Uuid::now_v7()), |dedup_id| EventId::derived(org, dedup_id));
        let poison = Event::new(id, org, Timestamp::now(), "t", dedup_id, b"\"poison\"");
        let batch = [event(org, "1"), poison, event(org, "2")];
        let refused = store.store_plain(&batch).unwrap_err();
        let StoreError::RowRefused(millrace_store::DatabaseError { message: why, .. }) = &refused else {
            panic!("{refused}")
        };
        assert!(why.contains("no_poison"), "{why}");
        assert!(!why.contains("\"poison\""), "{why} quotes the payload");
    }
    assert_eq!(stored(&*store, org), []);
    assert_eq!(store.store_plain(&[event(org, "1"), event(org, "2")]), Ok(2));
}

fn quarantine_is_idempotent(fixture: &Fixture) {
    let store = fixture.migrated();
    let org = org();
    let event = derived_at(org, Timestamp::now(), "d");
    assert_eq!(store.quarantine(&event, "first"), Ok(true));
    assert_eq!(store.quarantine(&event, "second\0"), Ok(false));
    assert_eq!(fixture.count("SELECT count(*) FROM quarantined_events"), 1);
    let kept = "SELECT count(*) FROM quarantined_events
        WHERE reason = 'first' AND payload = '{\"n\": 1}' AND dedup_id = 'd' AND type = 'user.login'";
    assert_eq!(fixture.count(kept), 1);
    assert_eq!(stored(&*store, org), []);
}

fn one_row_per_derived_id_from_many_threads(fixture: &Fixture) {
    let store = fixture.migrated();
    let org = org();
    let new: u64 = thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|thread: usize| {
                let store = &store;
                scope.spawn(move || {
                    // The same ids in another order in each thread.
                    let ids = (0..100).map(|n| (n * 7 + thread * 13) % 100);
                    let batch: Vec<Event> = ids.map(|n| derived_at(org, Timestamp::now(), &format!("d{n}"))).collect();
                    batch.chunks(25).map(|part| store.store_plain(part).unwrap()).sum::<u64>()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(new, 100);
    assert_eq!(stored(&*store, org).len(), 100);
}

fn an_event_belongs_to_its_organisation(fixture: &Fixture) {
    let store = fixture.migrated();
    let (mine, theirs) = (org(), org());
    let event = event(mine, "1");
    store.store_plain(std::slice::from_ref(&event)).unwrap();
    assert!(store.event(mine, event.id).unwrap().is_some());
    assert_eq!(store.event(theirs, event.id), Ok(None));
    assert_eq!(stored(&*store, theirs), []);
}

fn lists_filter_by_type_and_time(fixture: &Fixture) {
    let store = fixture.migrated();
    let org = org();
    let times = ["2024-05-01T10:00:00Z", "2024-05-01T11:00:00Z", "2024-05-02T12:00:00Z"].map(at);
    let batch: Vec<Event> = times
        .iter()
        .zip(["a", "b", "a"])
        .map(|(at, kind)| Event::new(EventId(Uuid::now_v7()), org, *at, kind, None, b"1"))
        .collect();
    store.store_plain(&batch).unwrap();
    let list = |event_type: Option<&str>, after, before| {
        let query = EventQuery { event_type: event_type.map(str::to_owned), after, before, cursor: None, limit: 10 };
        let (events, next) = store.events(org, &query).unwrap();
        assert_eq!(next, None);
        events.iter().map(|event| event.received_at).collect::<Vec<_>>()
    };
    assert_eq!(list(None, None, None), [times[2], times[1], times[0]]);
    assert_eq!(list(Some("a"), None, None), [times[2], times[0]]);
    assert_eq!(list(Some("c"), None, None), []);
    // Both bounds are exclusive.
    assert_eq!(list(None, Some(times[0]), None), [times[2], times[1]]);
    assert_eq!(list(None, None, Some(times[2])), [times[1], times[0]]);
    assert_eq!(list(Some("b"), Some(times[0]), Some(times[2])), [times[1]]);
}

fn pages_meet_without_overlap_where_times_are_equal(fixture: &Fixture) {
    let store = fixture.migrated();
    let org = org();
    let times = ["2024-05-01T23:59:59.999999Z", "2024-05-02T00:00:00Z"].map(at);
    let batch: Vec<Event> = (0..300).map(|n| event_at(org, times[n % 2], "1")).collect();
    store.store_plain(&batch).unwrap();
    let mut expected: Vec<_> = batch.iter().map(|event| (event.received_at, event.id)).collect();
    expected.sort_by(|a, b| b.cmp(a));
    for limit in [1, 7, 64, 65, 150, 299, 300, 301] {
        let mut seen = Vec::new();
        let mut cursor = None;
        loop {
            let (page, next) = store.events(org, &EventQuery { cursor, limit, ..EventQuery::default() }).unwrap();
            assert_eq!(page.len(), (limit as usize).min(300 - seen.len()));
            seen.extend(page.iter().map(|event| (event.received_at, event.id)));
            if next.is_none() {
                break;
            }
            assert_eq!(next, seen.last().copied());
            cursor = next;
        }
        assert!(seen == expected, "pages of {limit}");
    }
}

fn a_page_ends_before_it_is_too_large(fixture: &Fixture) {
    let store = fixture.migrated();
    let org = org();
    let payload = format!("\"{}\"", "x".repeat(limits::PAYLOAD_BYTES_MAX - 2));
    let fitting = limits::LIST_BYTES_MAX / payload.len();
    for _ in 0..2 {
        let batch: Vec<Event> = (0..fitting).map(|_| event(org, &payload)).collect();
        assert_eq!(store.store_plain(&batch), Ok(fitting as u64));
    }
    let query = EventQuery { limit: 1000, ..EventQuery::default() };
    let (page, next) = store.events(org, &query).unwrap();
    assert_eq!((page.len(), next), (fitting, page.last().map(|event| (event.received_at, event.id))));
    let (page, next) = store.events(org, &EventQuery { cursor: next, ..query }).unwrap();
    assert_eq!((page.len(), next), (fitting, None));
}

fn migrating_twice_at_once_applies_each_once(fixture: &Fixture) {
    let applied: u32 = thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| fixture.open().migrate().unwrap())).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert!(applied > 0);
    assert_eq!(fixture.count("SELECT count(*) FROM schema_migrations"), i64::from(applied));
    assert_eq!(fixture.migrated().migrate(), Ok(0));
    // A newer version was here before.
    fixture.sql(
        "INSERT INTO schema_migrations VALUES (9999, 'from the future', now())",
        "INSERT INTO schema_migrations VALUES (9999, 'from the future', 0)",
    );
    assert_eq!(fixture.open().migrate(), Ok(0));
}

fn housekeeping_can_always_run(fixture: &Fixture) {
    let store = fixture.migrated();
    store.maintain().unwrap();
    store.maintain().unwrap();
    assert_eq!(store.store_plain(&[event(org(), "1")]), Ok(1));
}
