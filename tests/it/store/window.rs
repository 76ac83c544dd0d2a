//! The deduplication window, on both stores; on Postgres, whose unique indexes end at midnight, from many writers at once,
//! and the partitions themselves.

use std::thread;
use std::time::{Duration, Instant};

use millrace_base::clock::Timestamp;
use millrace_base::event::{Event, OrgId};
use millrace_store::StoreError;
use support::postgres::wait_for;

use crate::store::fixture::{Fixture, StorePlain, admin, at, derived_at, event_at, on_both_stores, org, stored};
use crate::store::webhooks::{claim, endpoint, in_seconds, organization, planned};

const BEFORE: &str = "2024-05-01T23:59:59.999999Z";
const AFTER: &str = "2024-05-02T00:00:00Z";

on_both_stores!(a_retry_after_midnight_stores_nothing, a_dedup_id_used_again_after_its_window_names_a_new_event);

fn a_retry_after_midnight_stores_nothing(fixture: &Fixture) {
    let store = fixture.migrated();
    let org = org();
    for (first, retry) in [
        (BEFORE, AFTER),
        // Late copies: what came first was received last.
        (AFTER, BEFORE),
        // The ends of a window of 24 hours.
        ("2024-05-10T00:00:00Z", "2024-05-11T00:00:00Z"),
        ("2024-05-12T23:59:59.999999Z", "2024-05-13T23:59:59.999999Z"),
    ] {
        let dedup_id = format!("{first}, {retry}");
        assert_eq!(store.store_plain(&[derived_at(org, at(first), &dedup_id)]), Ok(1), "{dedup_id}");
        let retry = derived_at(org, at(retry), &dedup_id);
        assert_eq!(store.store_plain(std::slice::from_ref(&retry)), Ok(0), "{dedup_id}");
        // Among others, of that day and of another.
        let others =
            [retry, derived_at(org, at(AFTER), &format!("other of {dedup_id}")), event_at(org, at(BEFORE), "1")];
        assert_eq!(store.store_plain(&others), Ok(2), "{dedup_id}");
    }
    let both = [derived_at(org, at(BEFORE), "both"), derived_at(org, at(AFTER), "both")];
    assert_eq!(store.store_plain(&both), Ok(1));
}

fn a_dedup_id_used_again_after_its_window_names_a_new_event(fixture: &Fixture) {
    let store = fixture.migrated();
    let org = organization(&*store);
    let to = endpoint(&*store, org).id;
    let day = |day: u32| {
        let payload = format!("{{\"day\": {day}}}");
        let like = derived_at(org, at(&format!("2024-05-{day:02}T12:00:00Z")), "d");
        Event::new(like.id, org, like.received_at, "user.login", Some("d"), payload.as_bytes())
    };
    let store_day = |n| {
        let event = day(n);
        let planned = [planned(&event, to, None)];
        let stored = store.store_events(&[event], &planned).unwrap();
        assert_eq!(stored.new_events as usize, stored.deliveries.len());
        stored.new_events
    };
    let newest = || store.event(org, day(1).id).unwrap().expect("it is stored").payload;
    assert_eq!(store_day(10), 1);
    assert_eq!((store_day(11), store_day(9)), (0, 0), "copies");
    assert_eq!((store_day(12), newest()), (1, r#"{"day": 12}"#.to_owned()));
    assert_eq!((store_day(10), store_day(11), store_day(12), store_day(13)), (0, 0, 0, 0), "copies of either");
    // One that was received before the others and comes last.
    assert_eq!((store_day(5), newest()), (1, r#"{"day": 12}"#.to_owned()));
    assert_eq!((store_day(4), store_day(6)), (0, 0), "its copies");
    let listed: Vec<String> = stored(&*store, org).into_iter().map(|event| event.payload).collect();
    assert_eq!(listed, [r#"{"day": 12}"#, r#"{"day": 10}"#, r#"{"day": 5}"#]);
    // Each delivery has the payload of its own event.
    let mut sent: Vec<String> =
        claim(&*store, to, 9, in_seconds(60)).into_iter().map(|claimed| claimed.payload).collect();
    sent.sort();
    assert_eq!(sent, [r#"{"day": 10}"#, r#"{"day": 12}"#, r#"{"day": 5}"#]);
}

#[test]
fn concurrent_retries_across_midnight_store_one_row() {
    let fixture = Fixture::postgres();
    let store = fixture.migrated();
    let org = org();
    let (threads, rounds, ids) = (8, 40, 20);
    let new: u64 = thread::scope(|scope| {
        let threads: Vec<_> = (0..threads)
            .map(|thread: usize| {
                let store = &store;
                scope.spawn(move || {
                    let mut new = 0;
                    for round in 0..rounds as usize {
                        // Some threads' batches are of one day, some of the other, some of both.
                        let batch: Vec<Event> = (0..ids)
                            .map(|n| {
                                let day =
                                    [BEFORE, AFTER, if n % 2 == 0 { BEFORE } else { AFTER }][(thread + round) % 3];
                                derived_at(org, at(day), &format!("{round}-{n}"))
                            })
                            .collect();
                        new += store.store_plain(&batch).unwrap();
                    }
                    new
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(new, rounds * ids);
    assert_eq!(fixture.count("SELECT count(*) FROM events"), (rounds * ids) as i64);
    assert_eq!(fixture.count("SELECT count(DISTINCT id) FROM events"), (rounds * ids) as i64);
    assert!(fixture.count("SELECT count(*) FROM events_p20240501") > 0);
    assert!(fixture.count("SELECT count(*) FROM events_p20240502") > 0);
}

/// Stores one derived event in a transaction left open.
fn store_and_hold(session: &mut postgres::Client, org: OrgId, event: &Event, received_at: &str) {
    session.batch_execute("BEGIN").unwrap();
    let sql = format!(
        "SELECT store_events_v1(ARRAY['{}']::uuid[], ARRAY['{org}']::uuid[], ARRAY['{received_at}']::timestamptz[],
            ARRAY['t'], ARRAY['d'], ARRAY['1']::json[])",
        event.id
    );
    let stored: i64 = session.query_one(&sql, &[]).unwrap().get(0);
    assert_eq!(stored, 1);
}

#[test]
fn batches_of_a_day_run_together_and_wait_for_adjacent_days() {
    let fixture = Fixture::postgres();
    let store = fixture.migrated();
    let org = org();
    assert_eq!(store.store_plain(&[event_at(org, at(BEFORE), "1"), event_at(org, at(AFTER), "1")]), Ok(2));
    let url = fixture.config.database_url.as_deref().unwrap();
    let mut session = admin(url);
    store_and_hold(&mut session, org, &derived_at(org, at(BEFORE), "held"), BEFORE);

    // The same day, and events without a dedup_id of any day: at once.
    let began = Instant::now();
    assert_eq!(store.store_plain(&[derived_at(org, at(BEFORE), "free")]), Ok(1));
    assert_eq!(store.store_plain(&[event_at(org, at(AFTER), "1")]), Ok(1));
    assert!(began.elapsed() < Duration::from_secs(5));

    // The same id on the next day: only when it is decided whether the first copy stays.
    thread::scope(|scope| {
        let waiting = scope.spawn(|| store.store_plain(&[derived_at(org, at(AFTER), "held")]));
        wait_for("the neighbour's batch to wait", || {
            fixture.count(
                "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'events_day_lock_0'::regclass
                OR NOT granted AND relation = 'events_day_lock_1'::regclass
                OR NOT granted AND relation = 'events_day_lock_2'::regclass",
            ) > 0
        });
        assert!(!waiting.is_finished());
        session.batch_execute("COMMIT").unwrap();
        assert_eq!(waiting.join().unwrap(), Ok(0));
    });
}

#[test]
fn a_retry_is_stored_where_the_first_copy_was_rolled_back() {
    let fixture = Fixture::postgres();
    let store = fixture.migrated();
    let org = org();
    let mut session = admin(fixture.config.database_url.as_deref().unwrap());
    assert_eq!(store.store_plain(&[event_at(org, at(BEFORE), "1")]), Ok(1));
    store_and_hold(&mut session, org, &derived_at(org, at(BEFORE), "held"), BEFORE);
    session.batch_execute("ROLLBACK").unwrap();
    assert_eq!(store.store_plain(&[derived_at(org, at(AFTER), "held")]), Ok(1));
}

#[test]
fn the_dedup_window_holds_under_other_default_isolation() {
    let fixture = Fixture::postgres();
    let mut session = admin(fixture.config.database_url.as_deref().unwrap());
    session
        .batch_execute(
            "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_isolation = %L', current_database(),
                'repeatable read'); END $$",
        )
        .unwrap();
    let store = fixture.migrated();
    let org = org();
    store_and_hold(&mut session, org, &derived_at(org, at(AFTER), "d"), &Timestamp::now().to_rfc3339());
    let tomorrow = Timestamp::now().plus(Duration::from_secs(86_400));
    thread::scope(|scope| {
        let waiting = scope.spawn(|| store.store_plain(&[derived_at(org, tomorrow, "d")]));
        wait_for("the batch to wait", || fixture.count("SELECT count(*) FROM pg_locks WHERE NOT granted") > 0);
        session.batch_execute("COMMIT").unwrap();
        assert_eq!(waiting.join().unwrap(), Ok(0));
    });
}

#[test]
fn a_day_without_partition_gets_one() {
    let fixture = Fixture::postgres();
    let store = fixture.migrated();
    let org = org();
    let late = ["1969-12-31T23:59:59Z", "1999-12-31T00:00:00Z", "2024-02-29T12:00:00Z", "2199-01-01T00:00:00Z"].map(at);
    let batch: Vec<Event> = late.iter().map(|at| event_at(org, *at, "1")).collect();
    assert_eq!(store.store_plain(&batch), Ok(4));
    let batch: Vec<Event> = late.iter().map(|at| derived_at(org, *at, "d")).collect();
    assert_eq!(store.store_plain(&batch), Ok(4));
    let times: Vec<Timestamp> = stored(&*store, org).iter().map(|event| event.received_at).collect();
    assert_eq!(times, [late[3], late[3], late[2], late[2], late[1], late[1], late[0], late[0]]);
}

#[test]
fn a_dropped_partition_is_made_again_and_nothing_is_refused() {
    let fixture = Fixture::postgres();
    let store = fixture.migrated();
    let org = org();
    for _ in 0..3 {
        assert_eq!(store.store_plain(&[event_at(org, at(BEFORE), "1")]), Ok(1));
        assert_eq!(store.store_plain(&[derived_at(org, at(BEFORE), "d")]), Ok(1));
        fixture.sql("DROP TABLE events_p20240501", "");
    }
    assert_eq!(stored(&*store, org), []);
}

#[test]
fn instances_may_make_the_same_partition_at_once() {
    let fixture = Fixture::postgres();
    fixture.migrated();
    let org = org();
    for day in 1..=9 {
        let day = at(&format!("2024-07-0{day}T12:00:00Z"));
        thread::scope(|scope| {
            let threads: Vec<_> =
                (0..4).map(|_| scope.spawn(|| fixture.open().store_plain(&[event_at(org, day, "1")]))).collect();
            for thread in threads {
                assert_eq!(thread.join().unwrap(), Ok(1));
            }
        });
    }
    assert_eq!(fixture.count("SELECT count(*) FROM events"), 36);
}

#[test]
fn partitions_are_made_ahead() {
    let fixture = Fixture::postgres();
    let store = fixture.migrated();
    let ahead = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'events'::regclass";
    assert_eq!(fixture.count(ahead), 1, "today's is all that a start waits for");
    store.maintain().unwrap();
    assert_eq!(fixture.count(ahead), 9);
    let tomorrow = format!("DROP TABLE events_p{}", Timestamp::now().day().offset(3).compact());
    fixture.sql(&tomorrow, "");
    store.maintain().unwrap();
    assert_eq!(fixture.count(ahead), 9);
}

#[test]
fn the_days_that_had_a_partition_are_remembered() {
    let fixture = Fixture::postgres();
    let store = fixture.migrated();
    let day = at(BEFORE).day();
    assert_eq!(store.dropped_until(day), Ok(None), "it never was there");
    let org = org();
    assert_eq!(store.store_plain(&[event_at(org, at(BEFORE), "1")]), Ok(1));
    assert_eq!(store.dropped_until(day), Ok(None), "it is there");
    fixture.sql("ALTER TABLE events DETACH PARTITION events_p20240501", "");
    assert_eq!(store.dropped_until(day), Ok(None), "it is kept");
    fixture.sql("DROP TABLE events_p20240501", "");
    assert_eq!(store.dropped_until(day), Ok(Some(day.offset(1).start())));
    // A fresh event of that day, of a clock that is wrong: it is stored, and what came before this server's start is not.
    assert_eq!(store.store_plain(&[event_at(org, at(BEFORE), "1")]), Ok(1));
    let remade_at = store.dropped_until(day).unwrap().unwrap();
    assert!(remade_at > at(BEFORE) && remade_at <= Timestamp::now(), "{remade_at:?}");
    // By hand, and by the version before.
    let sql =
        "CREATE TABLE by_hand PARTITION OF events FOR VALUES FROM ('2024-08-01 00:00+00') TO ('2024-08-02 00:00+00');
        ALTER TABLE by_hand RENAME TO events_p20240801; SELECT events_ensure_day_v1('2024-08-02 00:00+00');
        DROP TABLE events_p20240801, events_p20240802";
    fixture.sql(sql, "");
    for day in ["2024-08-01T00:00:00Z", "2024-08-02T00:00:00Z"].map(|text| at(text).day()) {
        assert_eq!(store.dropped_until(day), Ok(Some(day.offset(1).start())));
    }
}

#[test]
fn a_kept_day_refuses_its_own_events_and_no_others() {
    let fixture = Fixture::postgres();
    let store = fixture.migrated();
    let org = org();
    assert_eq!(store.store_plain(&[event_at(org, at(BEFORE), "1")]), Ok(1));
    fixture.sql("ALTER TABLE events DETACH PARTITION events_p20240501", "");
    let late = event_at(org, at(BEFORE), "1");
    for other in [Timestamp::now(), at(AFTER)] {
        let error = store.store_plain(&[late.clone(), event_at(org, other, "1")]).unwrap_err();
        let StoreError::Misconfigured(why) = &error else { panic!("{error}") };
        for part in ["42P07", "the partition of 2024-05-01 is missing", "attach it to events again"] {
            assert!(why.contains(part), "{why}");
        }
        assert_eq!(store.store_plain(&[event_at(org, other, "1"), derived_at(org, other, "d")]), Ok(2));
    }
    fixture.sql(
        "ALTER TABLE events ATTACH PARTITION events_p20240501 FOR VALUES FROM ('2024-05-01 00:00+00') TO ('2024-05-02 00:00+00')",
        "",
    );
    wait_for("the day to be asked for again", || store.store_plain(std::slice::from_ref(&late)) == Ok(1));
}
