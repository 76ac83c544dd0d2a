//! Batches that go into Postgres by COPY, what stops one, and the other way they go then.

use std::thread;

use uuid::Uuid;

use millrace_base::clock::Timestamp;
use millrace_base::event::{Event, EventId, OrgId};
use millrace_base::limits;
use millrace_store::postgres::PostgresStore;
use millrace_store::{DatabaseError, Store, StoreError};
use support::postgres::{Cluster, wait_for};
use support::proxy::Cut;

use crate::store::fixture::{Fixture, StorePlain, admin, at, event, event_at, org};
use crate::store::queue::{cut_and_again, through_proxy};

const COUNT: &str = "SELECT count(*) FROM events";

/// More than COPY wants.
fn batch(org: OrgId, count: usize) -> Vec<Event> {
    assert!(count >= limits::STORE_COPY_EVENTS_MIN);
    (0..count).map(|n| event(org, &n.to_string())).collect()
}

/// Notes how each batch was stored.
fn watch_ways(fixture: &Fixture) {
    fixture.sql(
        "CREATE TABLE ways (at timestamptz DEFAULT clock_timestamp(), way text);
        CREATE FUNCTION note_way() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            INSERT INTO ways (way) VALUES (split_part(ltrim(current_query(), E' \\n'), ' ', 1));
            RETURN NULL;
        END $$;
        CREATE TRIGGER note_way AFTER INSERT ON events FOR EACH STATEMENT EXECUTE FUNCTION note_way()",
        "",
    );
}

fn ways(fixture: &Fixture) -> Vec<String> {
    let rows = admin(fixture.config.database_url.as_deref().unwrap()).query("SELECT way FROM ways ORDER BY at", &[]);
    rows.unwrap().iter().map(|row| row.get(0)).collect()
}

#[test]
fn new_events_go_by_copy_where_there_are_enough() {
    let fixture = Fixture::postgres();
    let store = fixture.migrated();
    watch_ways(&fixture);
    let org = org();
    for (count, way) in [(limits::STORE_COPY_EVENTS_MIN, "COPY"), (1, "INSERT"), (1000, "COPY")] {
        let batch: Vec<Event> = (0..count).map(|n| event(org, &n.to_string())).collect();
        assert_eq!(store.store_plain(&batch), Ok(count as u64));
        assert_eq!(ways(&fixture).last().unwrap(), way, "{count} events");
    }
}

#[test]
fn a_copy_that_meets_a_stored_event_stores_the_others_once() {
    let fixture = Fixture::postgres();
    let store = fixture.migrated();
    watch_ways(&fixture);
    let org = org();
    let old = batch(org, 10);
    assert_eq!(store.store_plain(&old), Ok(10));
    // The stored ones first, last and between.
    let mut mixed = old.clone();
    mixed.splice(5..5, batch(org, 50));
    assert_eq!(store.store_plain(&mixed), Ok(50));
    assert_eq!(store.store_plain(&mixed), Ok(0));
    assert_eq!(store.store_plain(&old), Ok(0));
    // Twice in one batch, while COPY rests, and when it is tried again.
    for pause in [false, true] {
        if pause {
            thread::sleep(limits::STORE_COPY_PAUSE);
        }
        let mut twice = batch(org, 10);
        twice.push(twice[0].clone());
        assert_eq!(store.store_plain(&twice), Ok(10));
    }
    assert_eq!(store.store_plain(&batch(org, 10)), Ok(10));
    thread::sleep(limits::STORE_COPY_PAUSE);
    assert_eq!(store.store_plain(&batch(org, 10)), Ok(10));
    assert_eq!(ways(&fixture), ["COPY", "INSERT", "INSERT", "INSERT", "INSERT", "INSERT", "INSERT", "COPY"]);
    assert_eq!(fixture.count(COUNT), 100);
}

#[test]
fn a_malformed_row_stops_its_copy_and_not_the_session() {
    let mut fixture = Fixture::postgres();
    fixture.config.connections_max = 1;
    let store = fixture.migrated();
    let org = org();
    for (payload, code) in [(&b"{\"a\": a}"[..], "22P02"), (b"\"\xff\"", "22021"), (&b"[".repeat(100_000), "54001")] {
        for position in [0, 7, 2000] {
            let mut batch = batch(org, 2000);
            let id = EventId(Uuid::now_v7());
            batch.insert(position, Event::new(id, org, Timestamp::now(), "t", None, payload));
            let refused = store.store_plain(&batch);
            let Err(StoreError::RowRefused(DatabaseError { message: why, .. })) = refused else {
                panic!("{refused:?}")
            };
            assert!(why.contains(code), "{why} names no {code}");
            assert_eq!(fixture.count(COUNT), 0);
        }
    }
    let sessions =
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'millrace' AND datname = current_database()";
    assert_eq!(fixture.count(sessions), 1);
    assert_eq!(store.store_plain(&batch(org, 100)), Ok(100));
    assert_eq!(store.organizations(), Ok(vec![]));
}

#[test]
fn a_copy_cut_midway_stores_nothing_and_its_retry_everything() {
    let (_cluster, proxy, fixture, behind) = through_proxy();
    let org = org();
    // So much that the proxy forwards a part of it before it cuts.
    let payload = format!("{{\"m\": \"{}\"}}", "x".repeat(200_000));
    let mut stored = 0;
    for cut in [Cut::AfterRequest, Cut::BeforeAnswer, Cut::BeforeCommitted].repeat(3) {
        let batch: Vec<Event> = (0..20).map(|_| event(org, &payload)).collect();
        let new = cut_and_again(&proxy, cut, || behind.store_plain(&batch));
        // Only what was committed is found by the retry. COMMIT is sent before the answer to the COPY has come.
        match cut {
            Cut::AfterRequest => assert_eq!(new, 20),
            Cut::BeforeAnswer => assert!(new == 0 || new == 20, "{new}"),
            Cut::BeforeCommitted => assert_eq!(new, 0),
        }
        stored += 20;
        assert_eq!(fixture.count(COUNT), stored);
        thread::sleep(limits::STORE_COPY_PAUSE);
    }
}

#[test]
fn a_copy_makes_the_partitions_it_finds_missing() {
    let fixture = Fixture::postgres();
    let store = fixture.migrated();
    watch_ways(&fixture);
    let org = org();
    let days = ["2024-05-01T23:59:59.999999Z", "2024-05-02T00:00:00Z", "2024-05-03T07:00:00Z"].map(at);
    let batch = || (0..30).map(|n| event_at(org, days[n % 3], "1")).collect::<Vec<Event>>();
    assert_eq!(store.store_plain(&batch()), Ok(30));
    // Retention goes on beside us.
    fixture.sql("DROP TABLE events_p20240502", "");
    assert_eq!(store.store_plain(&batch()), Ok(30));
    assert_eq!(ways(&fixture), ["COPY", "COPY"]);
    assert_eq!(fixture.count(COUNT), 50);
}

#[test]
fn a_copy_that_may_not_begin_leaves_no_session_out_of_step() {
    let fixture = Fixture::postgres();
    let store = fixture.migrated();
    let (mut admin, database) = {
        let url = fixture.config.database_url.as_deref().unwrap();
        (admin(url), url.rsplit('/').next().unwrap())
    };
    let mut read_only = |on: &str| {
        admin.batch_execute(&format!("ALTER DATABASE {database} SET default_transaction_read_only = {on}")).unwrap();
    };
    read_only("on");
    let standby = fixture.open();
    for _ in 0..3 {
        let refused = standby.store_plain(&batch(org(), 10));
        let Err(StoreError::Unavailable(why)) = refused else { panic!("{refused:?}") };
        assert!(why.contains("25006"), "{why}");
        assert_eq!(standby.organizations(), Ok(vec![]));
    }
    read_only("off");
    wait_for("a session that may write", || standby.store_plain(&batch(org(), 10)) == Ok(10));
    assert_eq!(store.store_plain(&batch(org(), 10)), Ok(10));
}

#[test]
fn where_copy_is_not_supported_events_are_inserted() {
    let fixture = Fixture::postgres();
    fixture.migrated();
    watch_ways(&fixture);
    let role = Cluster::shared().new_name();
    fixture.sql(
        &format!(
            "CREATE ROLE {role} LOGIN;
            GRANT ALL ON ALL TABLES IN SCHEMA public TO {role};
            ALTER TABLE events ENABLE ROW LEVEL SECURITY;
            CREATE POLICY everybody ON events USING (true)"
        ),
        "",
    );
    let url = fixture.config.database_url.as_deref().unwrap().replace("postgres@", &format!("{role}@"));
    let store: Box<dyn Store> = Box::new(PostgresStore::new(&url, 2).unwrap());
    let refused = store.store_plain(&batch(org(), 10));
    let Err(StoreError::Unexplained(DatabaseError { message: why, .. })) = refused else { panic!("{refused:?}") };
    assert!(why.contains("0A000"), "{why}");
    for _ in 0..3 {
        assert_eq!(store.store_plain(&batch(org(), 10)), Ok(10));
    }
    assert_eq!(ways(&fixture), ["INSERT"; 3]);
}

/// Has today's partition run `check` for each row when its transaction commits.
fn at_commit(fixture: &Fixture, check: &str) {
    fixture.sql(
        &format!(
            "CREATE FUNCTION at_commit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {check} RETURN NULL; END $$;
            DO $$ BEGIN EXECUTE format(
                'CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON %I DEFERRABLE INITIALLY DEFERRED
                 FOR EACH ROW EXECUTE FUNCTION at_commit()',
                'events_p' || to_char(now() AT TIME ZONE 'UTC', 'YYYYMMDD'));
            END $$"
        ),
        "",
    );
}

#[test]
fn a_copy_that_fails_at_its_commit_stores_nothing() {
    let mut fixture = Fixture::postgres();
    fixture.config.connections_max = 1;
    let store = fixture.migrated();
    watch_ways(&fixture);
    at_commit(&fixture, "IF NEW.type = 'refused' THEN RAISE EXCEPTION 'no' USING ERRCODE = '23001'; END IF;");
    let org = org();
    let mut ten = batch(org, 10);
    ten[4] = Event::new(EventId(Uuid::now_v7()), org, Timestamp::now(), "refused", None, b"1");
    for _ in 0..3 {
        let refused = store.store_plain(&ten);
        let Err(StoreError::RowRefused(why)) = refused else { panic!("{refused:?}") };
        assert!(why.message.contains("23001"), "{why}");
        assert_eq!(fixture.count(COUNT), 0);
        // The same session goes on.
        assert_eq!(store.organizations(), Ok(vec![]));
    }
    ten.remove(4);
    assert_eq!(store.store_plain(&ten), Ok(9));
    assert_eq!(ways(&fixture), ["COPY"]);
    assert_eq!(fixture.count(COUNT), 9);
}

#[test]
fn a_backend_that_dies_at_a_copys_commit_stored_nothing() {
    let fixture = Fixture::postgres();
    let store = fixture.migrated();
    // The rows are copied, and `COPY n` is about to be sent, when the backend is terminated.
    at_commit(&fixture, "PERFORM pg_advisory_xact_lock(4711);");
    let mut admin = admin(fixture.config.database_url.as_deref().unwrap());
    let ten = batch(org(), 10);
    for _ in 0..3 {
        admin.batch_execute("SELECT pg_advisory_lock(4711)").unwrap();
        let stored = thread::scope(|scope| {
            let storing = scope.spawn(|| store.store_plain(&ten));
            wait_for("the commit to be under way", || {
                let ended = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                    WHERE wait_event_type = 'Lock' AND wait_event = 'advisory' AND datname = current_database()";
                admin.query_one(ended, &[]).unwrap().get::<_, i64>(0) > 0
            });
            storing.join().unwrap()
        });
        let Err(StoreError::Unavailable(why)) = stored else { panic!("{stored:?}") };
        assert!(why.contains("57P01"), "{why}");
        admin.batch_execute("SELECT pg_advisory_unlock(4711)").unwrap();
        assert_eq!(fixture.count(COUNT), 0);
    }
    assert_eq!(store.store_plain(&ten), Ok(10));
    assert_eq!(fixture.count(COUNT), 10);
}
