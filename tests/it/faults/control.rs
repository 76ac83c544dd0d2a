//! Neighbours on one database: a second server, and a lock that makes every query wait.

use std::thread;
use std::time::{Duration, Instant};

use support::load::{Connection, Ids, Load, Log, Told};
use support::oracle;
use support::postgres::Cluster;
use support::server::{Options, Server, eventually};

use crate::faults::share;

#[test]
fn two_servers_start_together_on_one_fresh_database() {
    let cluster = Cluster::shared();
    for _ in 0..3 {
        let database = cluster.new_name();
        cluster.admin("postgres").batch_execute(&format!("CREATE DATABASE {database}")).expect("a database is created");
        let url = cluster.url(&database);
        let servers: Vec<Server> = thread::scope(|scope| {
            let start = || Server::start(Options::postgres(&url));
            let starting: Vec<_> = (0..2).map(|_| scope.spawn(start)).collect();
            starting.into_iter().map(|server| server.join().expect("a server starts")).collect()
        });
        let has_migrated = |server: &&Server| server.log().contains("the database schema is up to date");
        eventually("one of them made the schema", || servers.iter().filter(has_migrated).count() > 0);
        assert_eq!(servers.iter().filter(has_migrated).count(), 1);
        for server in &servers {
            assert!(!server.log().contains("WARN") || server.log().contains("fsync"), "{}", server.log());
        }
        let key = servers[0].key();
        let log = Log::new();
        let loads: Vec<Load> =
            servers.iter().map(|server| Load::start(server.addr, &key, 2, Ids::Both, &log)).collect();
        for server in &servers {
            eventually("it ingests", || server.count("events_ingested_total") > 100);
        }
        loads.into_iter().for_each(Load::stop);
        servers.iter().for_each(Server::drained);
        oracle::check(&log, &oracle::postgres_rows(&mut cluster.admin(&database)));
        assert_eq!(log.refusals().len() + log.unanswered(), 0, "{:?}", log.refusals());
    }
}

#[test]
fn a_query_that_waits_holds_up_no_ingest_response() {
    const CAPACITY: usize = 500;
    let cluster = Cluster::shared();
    let database = cluster.new_name();
    cluster.admin("postgres").batch_execute(&format!("CREATE DATABASE {database}")).expect("a database is created");
    let options = Options::postgres(&cluster.url(&database)).with(&["--queue-capacity", &CAPACITY.to_string()]);
    let server = Server::start(options);
    let key = server.key();
    let log = Log::new();
    let mut connections: Vec<_> = (0..4).map(|_| Connection::new(server.addr, &key)).collect();
    for connection in &mut connections {
        assert!(matches!(connection.post_event(&log, "warm", Ids::Both), Told::Accepted(_)));
    }
    server.drained();
    let warm = log.accepted();

    let mut admin = cluster.admin(&database);
    let mut lock = admin.transaction().expect("a transaction");
    lock.batch_execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE").expect("the table is there");
    thread::scope(|scope| {
        let began = Instant::now();
        // More than there are threads that answer them, so that some wait for a thread.
        let queries: Vec<_> = (0..4).map(|_| scope.spawn(|| server.get("/api/events", Some(&key)))).collect();
        // Until the queue is full, and each of these answers comes while all of those are waited for.
        let mut refused = 0;
        while refused < 20 {
            for connection in &mut connections {
                match connection.post_event(&log, "beside", Ids::Both) {
                    Told::Accepted(_) => assert_eq!(refused, 0, "accepted after the queue was full"),
                    Told::Refused(429, code) if code == "queue_full" => refused += 1,
                    told => panic!("{told:?}"),
                }
            }
        }
        assert!(queries.iter().all(|query| !query.is_finished()), "ingestion did not wait for the queries");
        assert_eq!(log.accepted() - warm, share(CAPACITY));
        for query in queries {
            let answer = query.join().expect("an answer");
            assert_eq!((answer.status, answer.code().as_str()), (503, "store_unavailable"));
            assert!(answer.headers.contains_key("retry-after"), "{answer:?}");
        }
        println!("the last query was refused after {:?}", began.elapsed());
        assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    });
    lock.rollback().expect("the lock is given back");
    server.drained();
    assert_eq!(server.get("/api/events", Some(&key)).status, 200);
    oracle::check(&log, &oracle::postgres_rows(&mut admin));
    assert_eq!(server.count("store_events_quarantined_total"), 0);
}
