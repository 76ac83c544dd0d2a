//! A database that is slow, or locked in part: smaller batches, progress, and nobody waits for another's deliveries.

use std::time::Duration;

use serde_json::json;

use support::load::{Connection, Ids, Load, Log, Told};
use support::oracle;
use support::postgres::Cluster;
use support::proxy::Proxy;
use support::receiver::{Receiver, answer};
use support::server::{Options, Server, eventually};

/// A new database: its name.
fn database() -> String {
    let cluster = Cluster::shared();
    let name = cluster.new_name();
    cluster.admin("postgres").batch_execute(&format!("CREATE DATABASE {name}")).expect("a database is created");
    name
}

/// Posts `count` events of this type while nothing can be stored, so that whole batches wait.
fn gather(server: &Server, key: &str, name: &str, log: &Log, event_type: &str, count: usize) {
    let mut admin = Cluster::shared().admin(name);
    let mut lock = admin.transaction().expect("a transaction");
    lock.batch_execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE").expect("the table is there");
    let mut connection = Connection::new(server.addr, key);
    // One for each writer to wait with.
    assert!(matches!(connection.post_event(log, event_type, Ids::Made), Told::Accepted(_)));
    std::thread::sleep(Duration::from_millis(50));
    for _ in 0..count / 100 {
        assert_eq!(connection.post_batch(log, &vec![event_type; 100], Ids::Made), Ok(()));
    }
    lock.rollback().expect("the lock is given back");
}

#[test]
fn a_batch_that_takes_too_long_is_stored_in_parts() {
    let name = database();
    let server = Server::start(Options::postgres(&Cluster::shared().url(&name)).with(&["--writers", "2"]));
    let key = server.key();
    Cluster::shared()
        .admin(&name)
        .batch_execute(
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN PERFORM pg_sleep(0.025); RETURN NEW; END $$;
            CREATE TRIGGER slow BEFORE INSERT ON events FOR EACH ROW WHEN (NEW.type = 'slow') EXECUTE FUNCTION slow()",
        )
        .expect("the table is there");
    let log = Log::new();
    gather(&server, &key, &name, &log, "slow", 2000);
    server.everything_stored();
    // The size that works is remembered, so that not each batch fails first, and grows back.
    let retries = server.count(r#"store_batch_retries_total{reason="unavailable"}"#);
    assert!((1..=8).contains(&retries), "{retries}");
    gather(&server, &key, &name, &log, "quick", 4000);
    server.everything_stored();
    assert_eq!(server.count(r#"store_batch_retries_total{reason="unavailable"}"#), retries);
    oracle::check(&log, &oracle::postgres_rows(&mut Cluster::shared().admin(&name)));
    assert_eq!(server.count("store_events_quarantined_total"), 0);
}

#[test]
fn over_a_slow_link_batches_have_fewer_bytes() {
    const EVENTS: usize = 36;
    let name = database();
    let proxy = Proxy::start(Cluster::shared().port());
    let url = Cluster::shared().tcp_url(&name).replace(&Cluster::shared().port().to_string(), &proxy.port.to_string());
    let server = Server::start(Options::postgres(&url).with(&["--writers", "1"]));
    let key = server.key();
    let payload = format!(r#"{{"pad":"{}"}}"#, "x".repeat(250_000));
    let event = support::server::event("large", None, &payload);
    // 9 MB: the largest batch would take 26 seconds.
    proxy.limit(300_000);
    for _ in 0..EVENTS {
        assert_eq!(server.post("/api/events", &key, &event).status, 202);
    }
    let stored = || oracle::count(&mut Cluster::shared().admin(&name), "events") as usize;
    let mut last = 0;
    while last < EVENTS {
        eventually("there is progress", || stored() > last);
        last = stored();
    }
    eventually("all is settled", || server.count("event_queue_size") == 0);
    assert_eq!(server.count("store_events_stored_total") + server.count("store_events_found_total"), EVENTS as u64);
}

#[test]
fn a_batch_has_a_bounded_number_of_deliveries() {
    const ENDPOINTS: usize = 40;
    const DELIVERIES_MAX: i64 = 5000;
    let receiver = Receiver::start(|_| answer(200, ""));
    let name = database();
    let options = Options::postgres(&Cluster::shared().url(&name));
    let server = Server::start(options.with(&["--writers", "2", "--allow-insecure-webhooks"]));
    let key = server.key();
    for n in 0..ENDPOINTS {
        let url = receiver.url(&format!("/{n}"));
        assert_eq!(server.post("/api/endpoints", &key, &json!({ "url": url }).to_string()).status, 201);
    }
    let log = Log::new();
    gather(&server, &key, &name, &log, "t", 400);
    server.drained();
    let mut admin = Cluster::shared().admin(&name);
    assert_eq!(oracle::count(&mut admin, "deliveries"), (401 * ENDPOINTS) as i64);
    let most =
        "(SELECT count(*) AS n FROM deliveries JOIN events ON events.id = event_id GROUP BY events.xmin::text) AS t
        WHERE n > $1";
    let over: i64 = admin
        .query_one(&format!("SELECT count(*) FROM {most}"), &[&DELIVERIES_MAX])
        .expect("the tables are there")
        .get(0);
    assert_eq!(over, 0, "batches with more than {DELIVERIES_MAX} deliveries");
    oracle::check(&log, &oracle::postgres_rows(&mut admin));
}

#[test]
fn a_lock_on_deliveries_holds_up_no_one_without_endpoints() {
    let receiver = Receiver::start(|_| answer(200, ""));
    let name = database();
    let options = Options::postgres(&Cluster::shared().url(&name));
    let server = Server::start(options.with(&["--writers", "4", "--allow-insecure-webhooks"]));
    let with = server.organization("with", "0").1;
    let without = server.organization("without", "0").1;
    let url = receiver.url("/");
    assert_eq!(server.post("/api/endpoints", &with, &json!({ "url": url }).to_string()).status, 201);
    let (owing, others) = (Log::new(), Log::new());
    let mut admin = Cluster::shared().admin(&name);
    let mut lock = admin.transaction().expect("a transaction");
    lock.batch_execute("LOCK TABLE deliveries IN ACCESS EXCLUSIVE MODE").expect("the table is there");
    let load = Load::start(server.addr, &with, 4, Ids::Both, &owing);
    // Every writer has had the chance to meet the lock.
    eventually("events with deliveries wait", || owing.accepted() > 200);
    let beside = Load::start(server.addr, &without, 2, Ids::Both, &others);
    let stored = || server.count("store_events_stored_total");
    // Past the time that a statement waits for a lock, several times.
    let mut last = stored();
    for _ in 0..12 {
        std::thread::sleep(Duration::from_secs(1));
        eventually("others' events are stored", || stored() > last + 20);
        last = stored();
    }
    load.stop();
    beside.stop();
    assert_eq!(others.refusals().len() + others.unanswered(), 0, "{:?}", others.refusals());
    drop(lock);
    server.drained();
    let rows = oracle::postgres_rows(&mut admin);
    assert_eq!(rows.len(), owing.accepted() + others.accepted());
    assert_eq!(oracle::count(&mut admin, "deliveries"), owing.accepted() as i64);
}
