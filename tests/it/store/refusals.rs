//! What the databases refuse, and whose fault the store says it is; no word of it may quote a payload or a secret.

use std::thread;
use std::time::Duration;

use uuid::Uuid;

use millrace_base::clock::Timestamp;
use millrace_base::event::{Event, EventId};
use millrace_store::postgres::PostgresStore;
use millrace_store::sqlite::SqliteStore;
use millrace_store::{DatabaseError, Store, StoreError};
use support::postgres::{Cluster, PASSWORD_ROLE, wait_for};

use crate::store::fixture::{Fixture, StorePlain, admin, derived_at, event, org, stored};

/// Stands in for what a client entrusts to us.
const SECRET: &str = "hunter2";

fn row_refused(result: Result<u64, StoreError>, code: &str) {
    let Err(StoreError::RowRefused(DatabaseError { message: why, .. })) = result else { panic!("{code}: {result:?}") };
    assert!(why.contains(code), "{why} names no {code}");
    assert!(!why.contains(SECRET), "{why}");
}

fn misconfigured<T: std::fmt::Debug>(result: Result<T, StoreError>, part: &str) {
    let Err(StoreError::Misconfigured(why)) = result else { panic!("{part}: {result:?}") };
    assert!(why.contains(part), "{why} says nothing of {part}");
    assert!(!why.contains(SECRET), "{why}");
}

fn unavailable<T: std::fmt::Debug>(result: Result<T, StoreError>, part: &str) {
    let Err(StoreError::Unavailable(why) | StoreError::Locked(why) | StoreError::TooMuch(why)) = result else {
        panic!("{part}: {result:?}")
    };
    assert!(why.contains(part), "{why} says nothing of {part}");
    assert!(!why.contains(SECRET), "{why}");
}

#[test]
fn postgres_refuses_rows_by_their_data() {
    let fixture = Fixture::postgres();
    let store = fixture.migrated();
    let org = org();
    let payload = |payload: &[u8]| Event::new(EventId(Uuid::now_v7()), org, Timestamp::now(), "t", None, payload);
    row_refused(store.store_plain(&[payload(b"{\"hunter2\": hunter2}")]), "22P02");
    row_refused(store.store_plain(&[payload(b"\"hunter2 \xff\"")]), "22021");
    row_refused(store.store_plain(&[payload("[".repeat(100_000).as_bytes())]), "54001");
    fixture.sql("ALTER TABLE events ADD CONSTRAINT short CHECK (length(payload::text) < 99)", "");
    row_refused(store.store_plain(&[event(org, &format!("\"{}\"", SECRET.repeat(20)))]), "constraint short");
    fixture.sql(
        "CREATE FUNCTION picky() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF NEW.type = 'cast' THEN PERFORM (NEW.payload #>> '{}')::integer; END IF;
            IF NEW.type = 'raise' THEN RAISE EXCEPTION 'I do not like %', NEW.payload; END IF;
            RETURN NEW;
        END $$;
        CREATE TRIGGER picky BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION picky()",
        "",
    );
    for (event_type, code) in [("cast", "22P02"), ("raise", "P0001")] {
        for dedup_id in [None, Some(SECRET)] {
            let event =
                Event::new(EventId(Uuid::now_v7()), org, Timestamp::now(), event_type, dedup_id, b"\"hunter2\"");
            row_refused(store.store_plain(&[event]), code);
        }
    }
    assert_eq!(stored(&*store, org), []);
    assert_eq!(store.store_plain(&[event(org, "1")]), Ok(1));
}

#[test]
fn postgres_refuses_this_server_as_configured() {
    let cluster = Cluster::shared();
    let fixture = Fixture::on(Some(cluster.create_database()));
    let url = fixture.config.database_url.clone().unwrap();
    let store = fixture.open();
    misconfigured(store.store_plain(&[event(org(), "1")]), "42P01");
    misconfigured(store.organizations(), "42P01");
    let open = |url: &str| PostgresStore::new(url, 2).unwrap();
    misconfigured(open(&cluster.url("nowhere")).organizations(), "3D000");
    misconfigured(open(&url.replace("postgres@", "nobody@")).organizations(), "28000");

    let mut admin = admin(&url);
    admin.batch_execute(&format!("CREATE ROLE {PASSWORD_ROLE} LOGIN PASSWORD 'right'")).unwrap();
    fixture.migrated();
    let with_password =
        |password: &str| open(&url.replace("postgres@", &format!("{PASSWORD_ROLE}:{password}@"))).organizations();
    misconfigured(with_password(SECRET), "28P01");
    misconfigured(with_password("right"), "42501");

    let latin1 = cluster.new_name();
    admin.batch_execute(&format!("CREATE DATABASE {latin1} ENCODING 'LATIN1' TEMPLATE template0")).unwrap();
    misconfigured(open(&cluster.url(&latin1)).organizations(), "LATIN1");
}

#[test]
fn postgres_is_unavailable_for_a_while() {
    let fixture = Fixture::postgres();
    let url = fixture.config.database_url.clone().unwrap();
    let store = fixture.migrated();
    let mut admin = admin(&url);

    // 57P01: an operator ends the session in the middle of a call.
    admin.batch_execute("BEGIN; LOCK TABLE organizations").unwrap();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| store.organizations());
        wait_for("the call to wait", || {
            let ended = "SELECT count(pg_terminate_backend(pid)) FROM pg_locks
                WHERE relation = 'organizations'::regclass AND NOT granted";
            admin.query_one(ended, &[]).unwrap().get::<_, i64>(0) > 0
        });
        unavailable(waiting.join().unwrap(), "57P01");
    });
    // 55P03: somebody keeps a table locked.
    unavailable(store.organizations(), "55P03");
    admin.batch_execute("ROLLBACK").unwrap();
    assert_eq!(store.organizations(), Ok(vec![]));

    // 53300: the role's connections are used up.
    let role = Cluster::shared().new_name();
    admin.batch_execute(&format!("CREATE ROLE {role} LOGIN CONNECTION LIMIT 0")).unwrap();
    let limited = PostgresStore::new(&url.replace("postgres@", &format!("{role}@")), 2).unwrap();
    unavailable(limited.organizations(), "53300");

    // 25006: the server became a standby. Sessions are renewed, so that its return is noticed.
    let read_only = |on: &str| {
        let database = url.rsplit('/').next().unwrap();
        format!("ALTER DATABASE {database} SET default_transaction_read_only = {on}")
    };
    admin.batch_execute(&read_only("on")).unwrap();
    let store = fixture.open();
    unavailable(store.store_plain(&[event(org(), "1")]), "25006");
    unavailable(store.store_plain(&[derived_at(org(), Timestamp::now(), "d")]), "25006");
    admin.batch_execute("SET default_transaction_read_only = off").unwrap();
    admin.batch_execute(&read_only("off")).unwrap();
    // A busy machine's pool may have made more than one of those sessions; each is renewed at its first refusal.
    wait_for("a session that may write", || store.store_plain(&[event(org(), "1")]) == Ok(1));
}

#[test]
fn sqlite_waits_for_others_and_explains_a_bad_file() {
    let fixture = Fixture::sqlite();
    let path = fixture.config.data_dir.join("millrace.db");
    misconfigured(fixture.open().organizations(), "millrace serve");
    let store = fixture.migrated();

    // Another process writes for a moment.
    let other = rusqlite::Connection::open(&path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| store.store_plain(&[event(org(), "1")]));
        thread::sleep(Duration::from_millis(300));
        assert!(!waiting.is_finished());
        other.execute_batch("COMMIT").unwrap();
        assert_eq!(waiting.join().unwrap(), Ok(1));
    });
    drop((store, other));

    std::fs::write(&path, SECRET.repeat(1000)).unwrap();
    for rest in ["millrace.db-wal", "millrace.db-shm"] {
        let _ = std::fs::remove_file(path.with_file_name(rest));
    }
    misconfigured(fixture.open().organizations(), "millrace.db is damaged");

    let file = path.join("below a file");
    let refused = SqliteStore::new(&file, 1).map(|_| ());
    misconfigured(refused, "below a file");
}

#[test]
fn the_data_directory_is_private() {
    use std::os::unix::fs::PermissionsExt;
    let fixture = Fixture::sqlite();
    fixture.migrated().store_plain(&[event(org(), "1")]).unwrap();
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&fixture.config.data_dir), 0o700);
    for file in std::fs::read_dir(&fixture.config.data_dir).unwrap() {
        let path = file.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
}
