//! The database stopped, crashed, frozen, or cut off in the middle of an answer, under load.

use std::thread;
use std::time::Instant;

use millrace_base::limits;
use support::load::{Connection, Ids, Load, Log, Told};
use support::oracle;
use support::postgres::{Cluster, Options as ClusterOptions};
use support::proxy::{Cut, Proxy};
use support::server::{Finally, Options, Server, eventually, sample};

use crate::faults::share;

/// A cluster, a database in it and its name.
fn own_database(options: ClusterOptions) -> (Cluster, String) {
    let cluster = Cluster::start_own(options);
    let name = cluster.new_name();
    cluster.admin("postgres").batch_execute(&format!("CREATE DATABASE {name}")).expect("a database is created");
    (cluster, name)
}

#[test]
fn while_the_database_is_down_exactly_its_share_is_accepted() {
    const CAPACITY: usize = 500;
    const SHARE: usize = share(CAPACITY);
    let (mut cluster, database) = own_database(ClusterOptions::default());
    let options = Options::postgres(&cluster.url(&database)).with(&["--queue-capacity", &CAPACITY.to_string()]);
    let server = Server::start(options);
    let key = server.key();
    let log = Log::new();
    let mut connections: Vec<_> = (0..8).map(|_| Connection::new(server.addr, &key)).collect();
    // Whatever shards they are on know the key from now on.
    for connection in &mut connections {
        assert!(matches!(connection.post_event(&log, "warm", Ids::Both), Told::Accepted(_)));
    }
    server.drained();
    let before = log.accepted();
    cluster.stop();

    thread::scope(|scope| {
        for connection in &mut connections {
            scope.spawn(|| {
                // On, until it is plain that nothing more is taken.
                let mut refused = 0;
                while refused < 50 {
                    match connection.post_event(&log, "outage", Ids::Both) {
                        Told::Accepted(_) => assert_eq!(refused, 0, "accepted after the queue was full"),
                        Told::Refused(429, code) if code == "queue_full" => refused += 1,
                        told => panic!("{told:?}"),
                    }
                }
            });
        }
    });
    assert_eq!(log.accepted() - before, SHARE);
    let batch = connections[0].post_batch(&log, &["outage"; 3], Ids::Made);
    assert_eq!(batch, Err(Told::Refused(429, "queue_full".to_owned())));
    assert_eq!(server.count("event_queue_size"), SHARE as u64);
    assert_eq!(server.count("event_queue_capacity"), CAPACITY as u64);
    assert_eq!(server.get("/health", None).status, 200);
    eventually("the outage is in the log", || server.log().contains("events cannot be stored; trying again"));

    cluster.start();
    let back = Instant::now();
    let mut admin = cluster.admin(&database);
    eventually("the first insert", || oracle::count(&mut admin, "events") > before as i64);
    println!("first insert {:?} after the database's return", back.elapsed());
    server.drained();
    println!("all drained {:?} after it", back.elapsed());
    eventually("the end of the outage is in the log", || server.log().contains("events are being stored again"));
    eventually("ingestion goes on", || {
        matches!(connections[0].post_event(&log, "after", Ids::Both), Told::Accepted(_))
    });
    server.drained();
    oracle::check(&log, &oracle::postgres_rows(&mut admin));
    assert!(server.count(r#"store_batch_retries_total{reason="unavailable"}"#) > 0);
    assert_eq!(server.count("store_events_stored_total"), log.accepted() as u64);
    assert_eq!(server.count("store_events_deduplicated_total"), 0);
    assert_eq!(server.count("store_events_quarantined_total"), 0);
}

#[test]
fn nothing_is_lost_when_the_database_stops_or_crashes() {
    let (mut cluster, database) = own_database(ClusterOptions { fsync: true });
    let options = Options::postgres(&cluster.url(&database)).with(&["--queue-capacity", "1000"]);
    let server = Server::start(options);
    let key = server.key();
    let log = Log::new();
    let load = Load::start(server.addr, &key, 6, Ids::Both, &log);
    eventually("the load runs", || log.accepted() > 200);
    for round in 0..6 {
        if round % 2 == 0 {
            cluster.crash();
        } else {
            cluster.stop();
        }
        // Alternately until the queue is full, and only for a moment.
        let accepted = log.accepted();
        if round % 3 == 0 {
            eventually("the queue is full", || server.count("event_queue_size") == share(1000) as u64);
        } else {
            let is_full = || server.count("event_queue_size") == share(1000) as u64;
            eventually("events go on being accepted", || log.accepted() > accepted + 20 || is_full());
        }
        cluster.start();
        let back = Instant::now();
        let mut admin = cluster.admin(&database);
        let stored = oracle::count(&mut admin, "events");
        eventually("the first insert", || oracle::count(&mut admin, "events") > stored);
        println!("round {round}: first insert {:?} after the database's return", back.elapsed());
        let accepted = log.accepted();
        eventually("events are accepted again", || log.accepted() > accepted + 100);
    }
    load.stop();
    server.drained();
    oracle::check(&log, &oracle::postgres_rows(&mut cluster.admin(&database)));
    assert_eq!(log.unanswered(), 0, "every request was answered");
    // Not even where the database goes away again before a shard has asked it about the keys it knew.
    assert_eq!(log.refusals().into_keys().collect::<Vec<_>>(), [(429, "queue_full".to_owned())]);
}

#[test]
fn a_frozen_database_frees_writers_and_stores_all_once_thawed() {
    const WRITERS: usize = 4;
    // More than all writers can hold, so that with the queue full none of them is idle.
    const CAPACITY: usize = (WRITERS + 1) * limits::STORE_BATCH_EVENTS_MAX;
    let (cluster, database) = own_database(ClusterOptions::default());
    let (capacity, writers) = (CAPACITY.to_string(), WRITERS.to_string());
    let options = Options::postgres(&cluster.tcp_url(&database));
    let options = options.with(&["--queue-capacity", &capacity, "--writers", &writers]);
    let server = Server::start(options);
    let key = server.key();
    let log = Log::new();
    let mut connection = Connection::new(server.addr, &key);
    let mut fill = || {
        let size = || server.count("event_queue_size");
        while size() < share(CAPACITY) as u64 {
            // What does not fit is refused one by one, or all of it.
            let _ = connection.post_batch(&log, &["fill"; 500], Ids::Both);
        }
    };
    // A lock makes every writer take a session of its own, so that every one of them is in a call in the end.
    let mut admin = cluster.admin(&database);
    let mut lock = admin.transaction().expect("a transaction");
    lock.batch_execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE").expect("the table is there");
    fill();
    let mut observer = cluster.admin(&database);
    let waiting = "pg_stat_activity WHERE wait_event_type = 'Lock'";
    eventually("every writer waits", || oracle::count(&mut observer, waiting) >= WRITERS as i64);
    lock.rollback().expect("the lock is given back");
    let load = Load::start(server.addr, &key, 4, Ids::Both, &log);
    let accepted = log.accepted();
    eventually("the load runs", || log.accepted() > accepted + 200);
    // Of all calls that have ended, how many took longer than this.
    let longer_than = |seconds: u32| {
        let scrape = server.scrape();
        let calls = |part: &str| sample(&scrape, &format!("db_operations_latency_seconds_{part}")) as usize;
        let bucket = format!(r#"bucket{{operation="store_events",le="{seconds}"}}"#);
        calls(r#"count{operation="store_events"}"#) - calls(&bucket)
    };
    let before = longer_than(10);

    cluster.freeze();
    // Where this fails, too: a client of a frozen server cannot be dropped.
    let thaw = Finally(|| cluster.thaw());
    let frozen = Instant::now();
    fill();
    eventually("every writer's call has ended", || longer_than(10) - before >= WRITERS);
    println!("every writer was free {:?} after the freeze", frozen.elapsed());
    assert!(server.count(r#"store_batch_retries_total{reason="unavailable"}"#) >= WRITERS as u64);
    assert_eq!(server.get("/health", None).status, 200);
    drop(thaw);
    let thawed = Instant::now();
    let stored = oracle::count(&mut observer, "events");
    eventually("the first insert", || oracle::count(&mut observer, "events") > stored);
    println!("first insert {:?} after the thaw", thawed.elapsed());
    load.stop();
    server.drained();
    println!("all drained {:?} after it", thawed.elapsed());
    // What the frozen server had read it has stored too: those are the copies.
    println!("{} found stored", server.count("store_events_found_total"));
    oracle::check(&log, &oracle::postgres_rows(&mut observer));
    assert_eq!(log.unanswered(), 0);
    // By the server's own clock, for this machine is busy.
    assert_eq!(longer_than(25), 0, "a call of the store took longer than 25 s");
}

#[test]
fn a_connection_cut_after_commit_stores_nothing_twice() {
    const ROUNDS: usize = 50;
    let cluster = Cluster::shared();
    let database = cluster.new_name();
    cluster.admin("postgres").batch_execute(&format!("CREATE DATABASE {database}")).expect("a database is created");
    let proxy = Proxy::start(cluster.port());
    let url = cluster.tcp_url(&database).replace(&cluster.port().to_string(), &proxy.port.to_string());
    let server = Server::start(Options::postgres(&url));
    let key = server.key();
    let log = Log::new();
    for (part, ids) in [Ids::Made, Ids::Derived].into_iter().enumerate() {
        let load = Load::start(server.addr, &key, 6, ids, &log);
        for round in part * ROUNDS / 2..(part + 1) * ROUNDS / 2 {
            assert!(proxy.arm(if round % 2 == 0 { Cut::AfterRequest } else { Cut::BeforeAnswer }));
            eventually("a connection is cut", || proxy.cuts() > round);
        }
        load.stop();
    }
    server.drained();
    oracle::check(&log, &oracle::postgres_rows(&mut cluster.admin(&database)));
    assert_eq!(log.refusals().len() + log.unanswered(), 0, "{:?}", log.refusals());
    assert_eq!(proxy.cuts(), ROUNDS);
    assert_eq!(server.count("store_events_deduplicated_total"), 0, "no client sent anything twice");
    let copies = server.count("store_events_found_total");
    let retries = server.count(r#"store_batch_retries_total{reason="unavailable"}"#);
    println!("{ROUNDS} cuts: {retries} batches stored again, {copies} found stored");
    assert!(retries >= ROUNDS as u64);
    // Every other cut came after a commit, of at least one event.
    assert!(copies >= (ROUNDS / 2) as u64);
    // A row whose first insert nobody heard of is found stored, once.
    assert_eq!(server.count("store_events_stored_total") + copies, log.accepted() as u64);
}
