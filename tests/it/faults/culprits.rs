//! One event that cannot be stored, whatever the database says of it, and a database that refuses them all.

use serde_json::Value;

use support::load::{Connection, Ids, Load, Log, Told};
use support::oracle;
use support::postgres::Cluster;
use support::server::{Options, Server, eventually};

/// A server of four writers on a database of its own; the database's name.
fn start(args: &[&str]) -> (String, Server, String) {
    let cluster = Cluster::shared();
    let name = cluster.new_name();
    cluster.admin("postgres").batch_execute(&format!("CREATE DATABASE {name}")).expect("a database is created");
    let server = Server::start(Options::postgres(&cluster.url(&name)).with(&["--writers", "4"]).with(args));
    let key = server.key();
    (name, server, key)
}

fn execute(name: &str, sql: &str) {
    Cluster::shared().admin(name).batch_execute(sql).expect(sql);
}

/// Refuses events of type `poison.CODE` with that SQLSTATE.
const RAISE: &str = "
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF NEW.type LIKE 'poison.%' THEN
            RAISE EXCEPTION 'not this' USING ERRCODE = split_part(NEW.type, '.', 2);
        END IF;
        RETURN NEW;
    END $$;
    CREATE TRIGGER refuse BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION refuse()";

fn held(server: &Server, reason: &str) -> u64 {
    server.count(&format!(r#"store_events_held{{reason="{reason}"}}"#))
}

#[test]
fn one_event_is_held_alone_whatever_code_its_refusal_has() {
    const CODES: [&str; 8] = ["P0002", "42501", "XX001", "42P07", "0A000", "58030", "38001", "P0004"];
    let (name, server, key) = start(&[]);
    execute(&name, RAISE);
    let log = Log::new();
    let load = Load::start(server.addr, &key, 2, Ids::Both, &log);
    let mut connection = Connection::new(server.addr, &key);
    let kinds: Vec<String> = CODES.iter().map(|code| format!("poison.{code}")).collect();
    for round in 0..2 {
        for (n, kind) in kinds.iter().enumerate() {
            let mut types = ["good"; 100];
            types[(n * 13 + round * 7) % 100] = kind;
            assert_eq!(connection.post_batch(&log, &types, if n % 2 == 0 { Ids::Made } else { Ids::Both }), Ok(()));
        }
    }
    let culprits = 2 * CODES.len();
    eventually("each culprit is held alone", || {
        held(&server, "unexplained") == culprits as u64
            && oracle::count(&mut Cluster::shared().admin(&name), "events") as usize + culprits >= log.accepted() - 20
    });
    let inspected = || {
        let directory = server.data_dir().to_str().expect("a temporary directory").to_owned();
        let inspected: Value =
            serde_json::from_str(&server.cli(&["journal", "inspect", "--json", &directory])).expect("JSON");
        inspected["held"]["events"].as_array().expect("a list").clone()
    };
    eventually("the journal shows them", || inspected().len() == culprits);
    for held in inspected() {
        let sqlstate = held["type"].as_str().and_then(|kind| kind.strip_prefix("poison.")).expect("a culprit");
        assert!(held["reason"].as_str().is_some_and(|reason| reason.contains(sqlstate)), "{held}");
    }
    let accepted = log.accepted();
    eventually("all writers go on", || log.accepted() > accepted + 200);
    load.stop();
    eventually("all but the culprits are stored", || server.count("event_queue_size") == culprits as u64);
    assert_eq!(server.count("store_events_quarantined_total"), 0);
    server.says("events cannot be stored while others are; they are held and tried again");
    assert!(!server.log().contains("events are being stored again"), "they always were: {}", server.log());
    execute(&name, "DROP TRIGGER refuse ON events");
    server.drained();
    assert_eq!(held(&server, "unexplained"), 0);
    eventually("the journal shows none any more", || inspected().is_empty());
    oracle::check(&log, &oracle::postgres_rows(&mut Cluster::shared().admin(&name)));
    assert_eq!(log.refusals().len() + log.unanswered(), 0, "{:?}", log.refusals());
}

#[test]
fn an_event_that_the_database_is_away_for_holds_up_nobody() {
    let (name, server, key) = start(&[]);
    execute(&name, RAISE);
    let log = Log::new();
    let load = Load::start(server.addr, &key, 2, Ids::Both, &log);
    let mut connection = Connection::new(server.addr, &key);
    let mut types = ["good"; 50];
    types[20] = "poison.40001";
    assert_eq!(connection.post_batch(&log, &types, Ids::Made), Ok(()));
    eventually("the culprit is held", || held(&server, "unexplained") == 1);
    let accepted = log.accepted();
    eventually("the others go on", || log.accepted() > accepted + 200);
    load.stop();
    eventually("all but the culprit are stored", || server.count("event_queue_size") == 1);
    // The store took events all the time, and so said of some alone that it does not.
    let said = |words: &str| server.log().matches(words).count();
    assert_eq!(said("events are being stored again"), 0, "{}", server.log());
    assert_eq!(said("events cannot be stored; trying again"), 0, "{}", server.log());
    assert!((1..=6).contains(&said("some events cannot be stored, others are")), "{}", server.log());
    execute(&name, "DROP TRIGGER refuse ON events");
    server.drained();
    oracle::check(&log, &oracle::postgres_rows(&mut Cluster::shared().admin(&name)));
}

#[test]
fn a_quarantine_that_takes_nothing_keeps_no_writer() {
    const POISON: usize = 12;
    let (name, server, key) = start(&[]);
    execute(&name, RAISE);
    execute(&name, "ALTER TABLE quarantined_events RENAME TO quarantine_away");
    let log = Log::new();
    let load = Load::start(server.addr, &key, 2, Ids::Both, &log);
    let mut connection = Connection::new(server.addr, &key);
    for _ in 0..POISON {
        assert_eq!(connection.post_batch(&log, &["good", "poison.P0001", "good"], Ids::Made), Ok(()));
    }
    eventually("the poison is held", || held(&server, "refused") == POISON as u64);
    let accepted = log.accepted();
    eventually("all writers go on", || log.accepted() > accepted + 200);
    load.stop();
    eventually("all but the poison is stored", || server.count("event_queue_size") == POISON as u64);
    server.says("the table quarantined_events does not take a refused event");
    execute(&name, "ALTER TABLE quarantine_away RENAME TO quarantined_events");
    server.drained();
    assert_eq!(server.count("store_events_quarantined_total"), POISON as u64);
    assert_eq!(held(&server, "refused"), 0);
    oracle::check(&log, &oracle::postgres_rows(&mut Cluster::shared().admin(&name)));
}

/// `break_it` makes `events` refuse every row for its data; nothing of it goes to quarantine.
fn check_held(server: &Server, keys: &[String], break_it: &dyn Fn(), mend_it: &dyn Fn()) -> std::sync::Arc<Log> {
    let log = Log::new();
    let load: Vec<Load> = keys.iter().map(|key| Load::start(server.addr, key, 2, Ids::Both, &log)).collect();
    eventually("the load runs", || server.count("store_events_stored_total") > 100);
    // From here on: by the time it is said the queue may be full.
    let accepted = log.accepted();
    break_it();
    let mut connection = Connection::new(server.addr, &keys[0]);
    for _ in 0..4 {
        let _ = connection.post_batch(&log, &["many"; 500], Ids::Both);
    }
    eventually("it is said", || server.log().contains("every event is refused"));
    eventually("events are held", || log.accepted() > accepted + 500);
    assert_eq!(server.count("store_events_quarantined_total"), 0, "nothing is set aside");
    assert!(server.log().lines().any(|line| line.contains("ERROR") && line.contains("every event is refused")));
    mend_it();
    load.into_iter().for_each(Load::stop);
    server.drained();
    assert_eq!(server.count("store_events_quarantined_total"), 0);
    server.says("events are being stored again");
    log
}

#[test]
fn a_table_that_refuses_every_row_sends_none_to_quarantine() {
    let (name, server, key) = start(&[]);
    let keys = [key, server.organization("two", "0").1, server.organization("three", "0").1];
    let log = check_held(
        &server,
        &keys,
        &|| execute(&name, "ALTER TABLE events ADD CONSTRAINT nothing CHECK (false) NOT VALID"),
        &|| execute(&name, "ALTER TABLE events DROP CONSTRAINT nothing"),
    );
    oracle::check(&log, &oracle::postgres_rows(&mut Cluster::shared().admin(&name)));
}

#[test]
fn a_sqlite_table_that_refuses_all_rows_quarantines_none() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let server = Server::start(Options { data_dir: Some(dir.path().to_owned()), ..Options::default() });
    let keys = [server.key(), server.organization("two", "0").1];
    let execute = |sql: &str| oracle::sqlite(dir.path()).execute_batch(sql).expect(sql);
    let log = check_held(
        &server,
        &keys,
        &|| {
            execute(
                "CREATE TRIGGER mistake BEFORE INSERT ON events
                BEGIN SELECT RAISE(ABORT, 'a mistake'); END",
            );
        },
        &|| execute("DROP TRIGGER mistake"),
    );
    oracle::check(&log, &oracle::sqlite_rows(&oracle::sqlite(dir.path())));
}

#[test]
fn a_few_bad_events_on_an_idle_server_are_set_aside_soon() {
    let (name, server, key) = start(&[]);
    execute(&name, RAISE);
    let log = Log::new();
    let mut connection = Connection::new(server.addr, &key);
    for n in 1..=5 {
        assert!(matches!(connection.post_event(&log, "poison.23514", Ids::Made), Told::Accepted(_)));
        eventually("it is set aside", || server.count("store_events_quarantined_total") == n);
    }
    server.drained();
    assert!(matches!(connection.post_event(&log, "good", Ids::Made), Told::Accepted(_)));
    server.drained();
    oracle::check(&log, &oracle::postgres_rows(&mut Cluster::shared().admin(&name)));
}

#[test]
fn held_events_keep_no_segments_of_the_journal() {
    const EVENTS: usize = 150;
    let cluster = Cluster::shared();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let name = cluster.new_name();
    cluster.admin("postgres").batch_execute(&format!("CREATE DATABASE {name}")).expect("a database is created");
    let options = Options { data_dir: Some(dir.path().to_owned()), ..Options::postgres(&cluster.url(&name)) };
    let options = options.with(&["--journal-bytes-max", "4194304"]);
    let mut server = Server::start(options.clone());
    let key = server.key();
    execute(&name, RAISE);
    let event = |kind: &str, dedup_id: Option<&str>| support::server::event(kind, dedup_id, "1");
    assert_eq!(server.post("/api/events", &key, &event("poison.P0002", None)).status, 202);
    assert_eq!(server.post("/api/events", &key, &event("poison.XX001", Some("d"))).status, 202);
    eventually("both are held", || held(&server, "unexplained") == 2);
    // Several times what the journal may have.
    let payload = format!(r#""{}""#, "x".repeat(100_000));
    let large = support::server::event("good", None, &payload);
    for _ in 0..EVENTS {
        // Its disk may be slower than the client for a moment.
        eventually("it is accepted", || server.post("/api/events", &key, &large).status == 202);
    }
    eventually("the others are stored", || server.count("event_queue_size") == 2);
    assert!(server.count("journal_rewritten_total") >= 2);
    assert!(server.count("journal_bytes") <= 6 * 1024 * 1024);
    // Whichever records of them there are now, they come back.
    server.signal("KILL");
    server.wait();
    let mut server = Server::start(options);
    eventually("both are held again", || held(&server, "unexplained") == 2);
    let stored = |what: &str| oracle::count(&mut cluster.admin(&name), what);
    assert_eq!(stored("events"), EVENTS as i64);
    execute(&name, "DROP TRIGGER refuse ON events");
    server.drained();
    assert_eq!(stored("events WHERE type LIKE 'poison%'"), 2);
    assert_eq!((stored("events"), stored("quarantined_events")), (EVENTS as i64 + 2, 0));
    assert_eq!(server.stop(), 0);
}
