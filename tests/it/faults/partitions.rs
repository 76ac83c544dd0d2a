//! Migrations that take long, partitions that cannot be made, and more partitions than there are locks.

use serde_json::{Value, json};

use millrace_base::clock::Timestamp;
use support::load::{Ids, Load, Log};
use support::oracle;
use support::postgres::{Cluster, Options as ClusterOptions};
use support::receiver::{Receiver, answer};
use support::server::{Options, Server, event, eventually};

/// A new database of the shared cluster: its name and URL.
fn database() -> (String, String) {
    let url = Cluster::shared().create_database();
    (url.rsplit('/').next().expect("a URL has a path").to_owned(), url)
}

fn execute(database: &str, sql: &str) {
    Cluster::shared().admin(database).batch_execute(sql).expect(sql);
}

fn count(database: &str, sql: &str) -> i64 {
    Cluster::shared().admin(database).query_one(sql, &[]).expect(sql).get(0)
}

/// The partition of the day `offset` days from today.
fn partition(offset: i32) -> String {
    format!("events_p{}", Timestamp::now().day().offset(offset).compact())
}

/// Makes every migration that creates `delivery_attempts` last.
fn slow_migration(database: &str, seconds: u32) {
    execute(
        database,
        &format!(
            "CREATE FUNCTION be_slow() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN
                IF EXISTS (SELECT FROM pg_event_trigger_ddl_commands() WHERE object_identity LIKE '%.delivery_attempts') THEN
                    PERFORM pg_sleep({seconds});
                END IF;
            END $$;
            CREATE EVENT TRIGGER be_slow ON ddl_command_end WHEN TAG IN ('CREATE TABLE') EXECUTE FUNCTION be_slow()"
        ),
    );
}

/// Backends that are in a migration.
fn migrating(database: &str) -> i64 {
    count(
        database,
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'",
    )
}

#[test]
fn a_migration_that_takes_longer_than_any_call_ends() {
    let (database, url) = database();
    slow_migration(&database, 25);
    let server = Server::start(Options::postgres(&url));
    assert_eq!(server.post("/api/events", &server.key(), &event("t", None, "1")).status, 202);
    server.drained();
    let log = server.log();
    assert!(log.contains("a migration of the database is running") && log.contains("0002_webhooks"), "{log}");
    assert_eq!(log.matches("the database is not ready").count(), 0, "{log}");
}

#[test]
fn nobody_migrates_on_after_the_server_is_gone() {
    for signal in ["TERM", "KILL"] {
        let (database, url) = database();
        slow_migration(&database, 3000);
        let mut server = Server::start_unready(Options::postgres(&url));
        eventually("the migration runs", || migrating(&database) == 1);
        server.signal(signal);
        server.wait();
        eventually("the database has noticed", || migrating(&database) == 0);
        assert_eq!(count(&database, "SELECT count(*) FROM schema_migrations"), 1, "what was done before stays");
    }
}

/// Posts one event and waits until it is stored.
fn stores(server: &Server, key: &str) {
    let id = server.post("/api/events", key, &event("t", None, "1")).id();
    eventually("the event is stored", || server.get(&format!("/api/events/{id}"), Some(key)).status == 200);
}

/// A database with a schema and an organisation's key, its partitions made for the coming days.
fn prepared() -> (String, String, String) {
    let (database, url) = database();
    let mut server = Server::start(Options::postgres(&url));
    let key = server.key();
    eventually("the coming days are prepared", || {
        count(&database, "SELECT count(*) FROM pg_inherits WHERE inhparent = 'events'::regclass") == 9
    });
    assert_eq!(server.stop(), 0);
    (database, url, key)
}

#[test]
fn a_role_without_ddl_starts_where_todays_partition_is_there() {
    let (database, url, key) = prepared();
    execute(
        &database,
        "CREATE ROLE application LOGIN; GRANT USAGE ON SCHEMA public TO application;
        GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO application",
    );
    execute(&database, &format!("DROP TABLE {}", partition(7)));
    let url = url.replace("postgres@", "application@");
    for args in [&["--no-migrate"][..], &[]] {
        let server = Server::start(Options::postgres(&url).with(args));
        stores(&server, &key);
        let reason = "permission denied for schema public (SQLSTATE 42501); the partition of";
        eventually("the log says what could not be done", || server.log().contains(reason));
    }
}

#[test]
fn a_role_without_rights_on_webhook_tables_still_stores() {
    let (database, url, key) = prepared();
    execute(
        &database,
        "CREATE ROLE granted_before LOGIN; GRANT USAGE ON SCHEMA public TO granted_before;
        GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO granted_before;
        REVOKE ALL ON webhook_sealing_key, webhook_retry_schedules FROM granted_before",
    );
    let server = Server::start(Options::postgres(&url.replace("postgres@", "granted_before@")));
    stores(&server, &key);
    for table in ["webhook_sealing_key", "webhook_retry_schedules"] {
        let reason = format!("permission denied for table {table}");
        eventually("the log says what could not be found out", || server.log().contains(&reason));
    }
}

#[test]
fn without_todays_partition_ready_and_the_log_say_why() {
    let (database, url, key) = prepared();
    execute(
        &database,
        "CREATE ROLE no_ddl LOGIN; GRANT USAGE ON SCHEMA public TO no_ddl;
        GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO no_ddl",
    );
    execute(&database, &format!("DROP TABLE {}", partition(0)));
    let server = Server::start_unready(Options::postgres(&url.replace("postgres@", "no_ddl@")));
    let day = &Timestamp::now().to_rfc3339()[..10];
    let create = format!("SELECT events_ensure_day_v1('{day} 00:00:00+00')");
    let reason = format!(
        "permission denied for schema public (SQLSTATE 42501); the partition of {day} is missing: create it as the owner \
         with {create}"
    );
    eventually("/ready says why", || {
        let answer = server.get("/ready", None);
        answer.status == 503 && answer.json()["reason"].as_str().is_some_and(|said| said.contains(&reason))
    });
    eventually("the log says why", || server.log().contains(&reason));
    execute(&database, &create);
    eventually("it is ready", || server.get("/ready", None).status == 200);
    stores(&server, &key);
}

#[test]
fn a_lock_that_only_the_coming_days_need_holds_up_nothing() {
    let (database, url, key) = prepared();
    execute(&database, &format!("DROP TABLE {}, {}", partition(6), partition(7)));
    let mut admin = Cluster::shared().admin(&database);
    let mut analyze = admin.transaction().expect("a transaction begins");
    analyze.batch_execute("LOCK TABLE events IN SHARE UPDATE EXCLUSIVE MODE").expect("as ANALYZE takes it");
    let server = Server::start(Options::postgres(&url));
    stores(&server, &key);
    eventually("the log names the lock", || server.log().contains("another session holds a lock on events"));
    analyze.rollback().expect("the lock is given back");
    // Within the minute after which it is tried again, or two.
    let made = || count(&database, "SELECT count(*) FROM pg_inherits WHERE inhparent = 'events'::regclass") == 9;
    let begun = std::time::Instant::now();
    while !made() {
        assert!(begun.elapsed().as_secs() < 180, "the coming days are not prepared");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    eventually("the log says that it is over", || server.log().contains("the coming days' partitions are prepared"));
}

#[test]
fn a_yesterday_that_is_kept_holds_up_nothing() {
    let (database, url, key) = prepared();
    execute(&database, &format!("ALTER TABLE events DETACH PARTITION {}", partition(-1)));
    let server = Server::start(Options::postgres(&url));
    stores(&server, &key);
    eventually("the log says what is kept", || server.log().contains("a table of its name is there and not attached"));
}

#[test]
fn a_default_partition_with_todays_rows_holds_up_nothing() {
    let (database, url, key) = prepared();
    execute(
        &database,
        &format!(
            "DROP TABLE {}; CREATE TABLE events_rest PARTITION OF events DEFAULT;
            INSERT INTO events VALUES (gen_random_uuid(), gen_random_uuid(), now(), 't', NULL, '1')",
            partition(0)
        ),
    );
    let receiver = Receiver::start(|_| answer(200, ""));
    let server = Server::start(Options::postgres(&url).with(&["--allow-insecure-webhooks"]));
    stores(&server, &key);
    let endpoint = json!({ "url": receiver.url("/") }).to_string();
    assert_eq!(server.post("/api/endpoints", &key, &endpoint).status, 201);
    let derived = server.post("/api/events", &key, &event("t", Some("d"), "1")).id();
    eventually("it is stored too", || server.get(&format!("/api/events/{derived}"), Some(&key)).status == 200);
    eventually("it is delivered", || receiver.count() == 1);
    let log = server.log();
    assert!(log.contains("events_rest") && log.contains("it has no unique index on id"), "{log}");
}

#[test]
fn alter_table_beside_derived_id_writers_does_not_deadlock() {
    const CHANGES: usize = 40;
    let (database, url) = database();
    let server = Server::start(Options::postgres(&url));
    let key = server.key();
    let log = Log::new();
    let load = Load::start(server.addr, &key, 4, Ids::Derived, &log);
    let stored = || server.count("store_events_stored_total");
    for _ in 0..CHANGES {
        let before = stored();
        eventually("the load runs", || stored() > before + 20);
        execute(&database, "ALTER TABLE events ADD CONSTRAINT nothing CHECK (true) NOT VALID");
        execute(&database, "ALTER TABLE events DROP CONSTRAINT nothing");
    }
    load.stop();
    server.drained();
    let deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()";
    assert_eq!(count(&database, deadlocks), 0);
    oracle::check(&log, &oracle::postgres_rows(&mut Cluster::shared().admin(&database)));
}

#[test]
fn reads_touch_few_partitions_however_many_there_are() {
    const DAYS: i32 = 400;
    /// Of the database's locks. A read of all partitions takes 1200, of 32 of them 96.
    const FREE: i32 = 700;
    let mut cluster = Cluster::start_own(ClusterOptions::default());
    cluster.admin("postgres").batch_execute("ALTER SYSTEM SET max_locks_per_transaction = 10").expect("a setting");
    cluster.stop();
    cluster.start();
    let url = cluster.create_database();
    let name = url.rsplit('/').next().expect("a URL has a path");
    let options = Options::postgres(&url);
    let mut server = Server::start(options.clone());
    let (org, key) = server.organization("test", "0");
    assert_eq!(server.stop(), 0);
    let mut admin = cluster.admin(name);
    let today = Timestamp::now().day();
    for offset in 1..DAYS {
        let day = today.offset(-offset).start().to_rfc3339();
        admin.batch_execute(&format!("SELECT events_ensure_day_v1('{day}')")).expect("a partition");
    }
    let insert = |admin: &mut postgres::Client, id: &str, offset: i32| {
        let at = today.offset(-offset).start().to_rfc3339();
        let sql = format!("INSERT INTO events VALUES ('{id}', '{org}', '{at}', 'old', NULL, '1')");
        admin.batch_execute(&sql).expect("a row");
    };
    let made =
        uuid::Uuid::from_u128((today.offset(-200).start().as_micros() as u128 / 1000) << 80 | 7 << 76 | 2 << 62 | 5);
    let derived = millrace_base::event::EventId::derived(
        millrace_base::event::OrgId(uuid::Uuid::try_parse(&org).expect("an id")),
        "old",
    );
    insert(&mut admin, &made.to_string(), 200);
    insert(&mut admin, &derived.to_string(), DAYS - 1);
    let server = Server::start(options);
    stores(&server, &key);
    let lock = "SELECT pg_advisory_lock($1, $2)";
    let mut filler = cluster.admin(name);
    let taken = (0..1_000_000).find(|n| filler.query(lock, &[&1, n]).is_err()).expect("a lock table is full some day");
    drop(filler);
    let held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'";
    eventually("its locks are given back", || admin.query_one(held, &[]).expect("it answers").get::<_, i64>(0) == 0);
    let mut filler = cluster.admin(name);
    (0..taken - FREE).for_each(|n| drop(filler.query(lock, &[&1, &n]).expect("it was free a moment ago")));
    let (full, exhausted) = (cluster.log(), "out of shared memory");
    let exhausted = |log: &str| log.matches(exhausted).count();
    let get = |path: &str| {
        let answer = server.get(path, Some(&key));
        assert_eq!(answer.status, 200, "{path}: {}; {}", answer.json(), cluster.log());
        answer.json()
    };
    // More often than a plan is made for the values at hand.
    for _ in 0..10 {
        assert_eq!(get(&format!("/api/events/{made}"))["id"], made.to_string());
        assert_eq!(get(&format!("/api/events/{derived}"))["id"], derived.to_string());
        assert_eq!(get("/api/events")["data"].as_array().map(Vec::len), Some(3));
        let first = get("/api/events?limit=2");
        let cursor = first["next_cursor"].as_str().expect("there is one more");
        let last = get(&format!("/api/events?limit=2&cursor={cursor}"));
        assert_eq!(last["data"][0]["id"], derived.to_string());
        assert_eq!(last["next_cursor"], Value::Null);
        assert_eq!(get("/api/events?type=old")["data"].as_array().map(Vec::len), Some(2));
        let unknown = server.get(&format!("/api/events/{}", uuid::Uuid::now_v7()), Some(&key));
        assert_eq!(unknown.status, 404);
    }
    assert_eq!(exhausted(&cluster.log()), exhausted(&full), "{}", cluster.log());
}
