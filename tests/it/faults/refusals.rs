//! The database refuses a row for its data, or this server for its rights.

use std::path::Path;

use support::load::{Connection, Ids, Load, Log, Told};
use support::oracle;
use support::postgres::Cluster;
use support::server::{Options, Server, eventually};

const BATCHES: usize = 20;
const EVENTS: usize = 100;
/// Where in a batch the poison is: first, last, beside each other, and by a whole run.
const POISON: [&[usize]; 4] = [&[0], &[EVENTS - 1], &[41, 42], &[60, 61, 62, 63, 64, 65, 66, 67, 68, 69, 99]];

/// A database in the shared cluster: its name and its URL for `user`.
fn database(user: Option<&str>) -> (String, String) {
    let cluster = Cluster::shared();
    let name = cluster.new_name();
    let owner = user.map_or(String::new(), |user| format!(" OWNER {user}"));
    cluster.admin("postgres").batch_execute(&format!("CREATE DATABASE {name}{owner}")).expect("a database is created");
    let url = cluster.url(&name);
    (name, user.map_or(url.clone(), |user| url.replace("postgres@", &format!("{user}@"))))
}

/// Posts batches with poison among good events while others post good ones. Returns how many are poison.
fn post_poison(server: &Server, key: &str, log: &std::sync::Arc<Log>, kinds: &[&'static str]) -> usize {
    let load = Load::start(server.addr, key, 2, Ids::Both, log);
    let mut connection = Connection::new(server.addr, key);
    let mut poison = 0;
    for batch in 0..BATCHES {
        let mut types = ["good"; EVENTS];
        for at in POISON[batch % POISON.len()] {
            types[*at] = kinds[poison % kinds.len()];
            poison += 1;
        }
        // Some batches take the other way into the database.
        let ids = if batch % 2 == 0 { Ids::Made } else { Ids::Both };
        assert_eq!(connection.post_batch(log, &types, ids), Ok(()));
    }
    eventually("all poison is set aside", || server.count("store_events_quarantined_total") == poison as u64);
    let accepted = log.accepted();
    eventually("good events go on", || log.accepted() > accepted + 50);
    load.stop();
    server.drained();
    assert_eq!(log.refusals().len() + log.unanswered(), 0, "ingestion was never held up: {:?}", log.refusals());
    poison
}

/// What the metrics must say after [`post_poison`].
fn check_metrics(server: &Server, log: &Log, poison: usize) {
    assert_eq!(server.count("store_events_quarantined_total"), poison as u64);
    assert_eq!(server.count("store_events_stored_total"), (log.accepted() - poison) as u64);
    assert_eq!(server.count("store_events_deduplicated_total"), 0, "a row set aside is no copy");
    assert_eq!(server.count("store_batch_events_sum"), (log.accepted() - poison) as u64);
    assert!(server.count(r#"store_batch_retries_total{reason="row_refused"}"#) >= poison as u64);
    assert_eq!(server.count(r#"store_batch_retries_total{reason="misconfigured"}"#), 0);
    assert_eq!(server.count("event_queue_size"), 0);
}

#[test]
fn poison_rows_are_quarantined_and_the_rest_is_stored() {
    let (name, url) = database(None);
    let server = Server::start(Options::postgres(&url));
    let key = server.key();
    let mut admin = Cluster::shared().admin(&name);
    admin
        .batch_execute(
            "ALTER TABLE events ADD CONSTRAINT no_poison CHECK (type <> 'poison.check');
            CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN RAISE EXCEPTION 'not this: %', NEW.payload; END $$;
            CREATE TRIGGER refuse BEFORE INSERT ON events FOR EACH ROW
                WHEN (NEW.type = 'poison.trigger') EXECUTE FUNCTION refuse()",
        )
        .expect("the table is there");
    let log = Log::new();
    let poison = post_poison(&server, &key, &log, &["poison.check", "poison.trigger"]);
    check_metrics(&server, &log, poison);
    // Not asked of the embedded store, whose writers wait for each other.
    assert_eq!(server.count(r#"store_batch_retries_total{reason="unavailable"}"#), 0);
    oracle::check(&log, &oracle::postgres_rows(&mut admin));
    let misfiled = "events WHERE type LIKE 'poison%'";
    assert_eq!(oracle::count(&mut admin, misfiled), 0);
    let rows = admin.query("SELECT type, reason, payload FROM quarantined_events", &[]).expect("the table is there");
    assert_eq!(rows.len(), poison);
    for row in &rows {
        let (event_type, reason, payload): (&str, &str, &str) = (row.get(0), row.get(1), row.get(2));
        match event_type {
            "poison.check" => assert!(reason.contains("no_poison") && reason.contains("23514"), "{reason}"),
            "poison.trigger" => assert!(reason.contains("P0001"), "{reason}"),
            other => panic!("{other} in quarantine: {reason}"),
        }
        assert!(!reason.contains(payload) && !server.log().contains(payload), "a payload in a reason or in the log");
    }
}

#[test]
fn poison_rows_are_set_aside_by_the_embedded_store_too() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let server = Server::start(Options { data_dir: Some(dir.path().to_owned()), ..Options::default() });
    let key = server.key();
    let file = oracle::sqlite(dir.path());
    file.execute_batch(
        "CREATE TRIGGER no_poison BEFORE INSERT ON events WHEN NEW.type = 'poison.trigger'
        BEGIN SELECT RAISE(ABORT, 'no poison here'); END",
    )
    .expect("the table is there");
    let log = Log::new();
    let poison = post_poison(&server, &key, &log, &["poison.trigger"]);
    check_metrics(&server, &log, poison);
    oracle::check(&log, &oracle::sqlite_rows(&file));
    let reasons =
        "SELECT count(*) FROM quarantined_events WHERE type = 'poison.trigger' AND reason LIKE '%no poison here%'";
    let reasons: i64 = file.query_row(reasons, [], |row| row.get(0)).expect("the table is there");
    assert_eq!(reasons, poison as i64);
}

/// `break_it` takes the server's rights or tables away, `mend_it` gives them back.
fn check_misconfigured(
    server: &Server,
    key: &str,
    count: impl Fn(&str) -> i64,
    break_it: &dyn Fn(),
    mend_it: &dyn Fn(),
) {
    let log = Log::new();
    let mut connection = Connection::new(server.addr, key);
    assert!(matches!(connection.post_event(&log, "before", Ids::Both), Told::Accepted(_)));
    server.drained();
    let stored = count("events");
    let refused_before = server.count(r#"store_batch_retries_total{reason="misconfigured"}"#);
    break_it();
    for ids in [Ids::Made, Ids::Derived] {
        for _ in 0..50 {
            assert!(matches!(connection.post_event(&log, "held", ids), Told::Accepted(_)));
        }
    }
    let misconfigured = || server.count(r#"store_batch_retries_total{reason="misconfigured"}"#) - refused_before;
    eventually("the writers have tried some times", || misconfigured() >= 5);
    assert_eq!(server.count("event_queue_size"), 100, "all are held");
    assert_eq!(server.count("store_events_quarantined_total"), 0);
    let is_loud = |line: &str| line.contains("ERROR") && line.contains("events cannot be stored until this is fixed");
    eventually("an error in the log", || server.log().lines().any(is_loud));
    mend_it();
    server.drained();
    assert_eq!(count("events"), stored + 100);
    assert_eq!(count("quarantined_events"), 0);
    assert_eq!(log.accepted(), 101);
}

#[test]
fn a_server_without_the_right_to_insert_holds_its_events_loudly() {
    let cluster = Cluster::shared();
    cluster.admin("postgres").batch_execute("CREATE ROLE limited LOGIN").expect("a role is created");
    let (name, url) = database(Some("limited"));
    let server = Server::start(Options::postgres(&url));
    let key = server.key();
    let execute = |sql: &str| cluster.admin(&name).batch_execute(sql).expect(sql);
    check_misconfigured(
        &server,
        &key,
        |table| oracle::count(&mut cluster.admin(&name), table),
        &|| execute("REVOKE INSERT ON events FROM limited"),
        &|| execute("GRANT INSERT ON events TO limited"),
    );
    server.says("permission denied for table events");
}

#[test]
fn a_server_without_its_table_holds_its_events_loudly() {
    let cluster = Cluster::shared();
    let (name, url) = database(None);
    let server = Server::start(Options::postgres(&url));
    let key = server.key();
    let execute = |sql: &str| cluster.admin(&name).batch_execute(sql).expect(sql);
    check_misconfigured(
        &server,
        &key,
        |table| oracle::count(&mut cluster.admin(&name), table),
        &|| execute("ALTER TABLE events RENAME TO events_away"),
        &|| execute("ALTER TABLE events_away RENAME TO events"),
    );
}

#[test]
fn the_embedded_store_without_its_table_holds_its_events_loudly() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let server = Server::start(Options { data_dir: Some(dir.path().to_owned()), ..Options::default() });
    let key = server.key();
    let execute = |sql: &str| oracle::sqlite(dir.path()).execute_batch(sql).expect(sql);
    let count = |dir: &Path, table: &str| {
        oracle::sqlite(dir).query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).expect(table)
    };
    check_misconfigured(
        &server,
        &key,
        |table| count(dir.path(), table),
        &|| execute("ALTER TABLE events RENAME TO events_away"),
        &|| execute("ALTER TABLE events_away RENAME TO events"),
    );
}
