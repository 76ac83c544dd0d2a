//! A database of the version before: it migrates with what is in it, and the version before goes on working beside us.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use millrace_base::clock::Timestamp;
use millrace_store::{Store, StoreChange};
use support::postgres::wait_for;

use crate::store::fixture::{Fixture, event, key, on_both_stores, stored};
use crate::store::webhooks::{claim, endpoint, in_seconds, planned};

on_both_stores!(a_database_with_events_migrates, the_change_feed_goes_on_where_it_was);

/// Puts a database in the state of version 1.
fn version_1(fixture: &Fixture) -> std::sync::Arc<dyn Store> {
    let store = fixture.open();
    fixture.sql(
        &format!(
            "{}; CREATE TABLE schema_migrations (version integer PRIMARY KEY, name text NOT NULL, applied_at timestamptz NOT NULL);
            INSERT INTO schema_migrations VALUES (1, '0001_events', now())",
            include_str!("../../../migrations/postgres/0001_events.sql")
        ),
        &format!(
            "{}; CREATE TABLE schema_migrations (version INTEGER PRIMARY KEY, name TEXT NOT NULL, applied_at INTEGER NOT NULL) STRICT;
            INSERT INTO schema_migrations VALUES (1, '0001_events', 0)",
            include_str!("../../../migrations/sqlite/0001_events.sql")
        ),
    );
    store
}

/// How many migrations came after version 1.
fn later(fixture: &Fixture) -> u32 {
    let kind = if fixture.config.database_url.is_some() { "postgres" } else { "sqlite" };
    let all = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/migrations").to_owned() + "/" + kind).unwrap();
    all.count() as u32 - 1
}

fn a_database_with_events_migrates(fixture: &Fixture) {
    let store = version_1(fixture);
    let (id, verifier) = key();
    let org = store.create_organization("acme", None, (id, &verifier)).unwrap().id;
    // As version 1 stores it.
    let before = event(org, "1");
    let (id, received_at) = (before.id.0, before.received_at);
    fixture.sql(
        &format!(
            "SELECT events_ensure_day_v1('{0}'); INSERT INTO events VALUES ('{id}', '{org}', '{0}', 'user.login', NULL, '1')",
            received_at.to_rfc3339()
        ),
        &format!(
            "INSERT INTO events (id, org_id, received_at, type, dedup_id, payload)
            VALUES (x'{}', x'{}', {}, 'user.login', NULL, '1')",
            id.simple(),
            org.0.simple(),
            received_at.as_micros()
        ),
    );
    assert_eq!(store.migrate(), Ok(later(fixture)));
    assert_eq!(stored(&*store, org).len(), 1);
    // What is stored already has no deliveries and gets none.
    let to = endpoint(&*store, org).id;
    let new = event(org, "2");
    let plan = [planned(&before, to, None), planned(&new, to, None)];
    assert_eq!(store.store_events(&[before, new], &plan).unwrap().deliveries, [plan[1].id]);
    assert_eq!(claim(&*store, to, 9, in_seconds(60)).len(), 1);

    // The version before stores its events as it did.
    let at = Timestamp::now();
    let columns = "(id, org_id, received_at, type, dedup_id, payload)";
    let ids = [uuid::Uuid::now_v7(), uuid::Uuid::now_v7()];
    fixture.sql(
        &format!(
            "INSERT INTO events {columns} SELECT * FROM unnest(ARRAY['{}'::uuid], ARRAY['{}'::uuid], ARRAY[now()], ARRAY['t'],
                ARRAY[NULL::text], ARRAY['3'::json]) ON CONFLICT DO NOTHING;
            SELECT store_events_v1(ARRAY['{}'::uuid], ARRAY['{}'::uuid], ARRAY[now()], ARRAY['t'], ARRAY['d'], ARRAY['4'::json])",
            ids[0], org.0, ids[1], org.0
        ),
        &format!(
            "INSERT INTO events {columns} VALUES (x'{}', x'{}', {}, 't', NULL, '3') ON CONFLICT (id) DO NOTHING;
            INSERT INTO events {columns} VALUES (x'{}', x'{}', {}, 't', 'd', '4') ON CONFLICT (id) DO NOTHING",
            ids[0].simple(),
            org.0.simple(),
            at.as_micros(),
            ids[1].simple(),
            org.0.simple(),
            at.as_micros()
        ),
    );
    assert_eq!(stored(&*store, org).len(), 4);
    assert_eq!(fixture.count("SELECT count(*) FROM deliveries"), 1);
}

fn the_change_feed_goes_on_where_it_was(fixture: &Fixture) {
    let store = version_1(fixture);
    let keys = [key(), key()];
    let org = store.create_organization("acme", None, (keys[0].0, &keys[0].1)).unwrap().id;
    store.create_key(org, (keys[1].0, &keys[1].1)).unwrap();
    assert_eq!(store.revoke_key(None, keys[0].0), Ok(true));
    let (stop, heard) = (AtomicBool::new(false), Mutex::<Vec<StoreChange>>::default());
    thread::scope(|scope| {
        // Somebody who was watching when the schema changed.
        let watching = scope.spawn(|| store.watch_changes(&stop, &mut |change| heard.lock().unwrap().push(change)));
        wait_for("the first word", || !heard.lock().unwrap().is_empty());
        assert_eq!(fixture.open().migrate(), Ok(later(fixture)));
        heard.lock().unwrap().clear();
        assert_eq!(store.revoke_key(None, keys[1].0), Ok(true));
        wait_for("the change", || !heard.lock().unwrap().is_empty());
        assert_eq!(*heard.lock().unwrap(), [StoreChange::Key(keys[1].0)]);
        // As the version before says it.
        fixture.sql(
            &format!("SELECT pg_notify('millrace_credentials', 'org:{org}')"),
            &format!("INSERT INTO credential_changes (kind, id, changed_at) VALUES ('org', '{org}', 0)"),
        );
        wait_for("the other change", || heard.lock().unwrap().len() == 2);
        assert_eq!(heard.lock().unwrap()[1], StoreChange::Organization(org));
        stop.store(true, Ordering::Relaxed);
        assert_eq!(watching.join().unwrap(), Ok(()));
    });
}
