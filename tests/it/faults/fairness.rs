//! One organisation sends all it can to a database that does not keep up; another sends ten events a second.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use support::load::{Connection, Ids, Log, Told};
use support::oracle;
use support::postgres::{Cluster, Options as ClusterOptions};
use support::server::{Options, Server, eventually};

/// A hundred rows a second and writer.
const SLOW_DOWN: &str = "
    CREATE FUNCTION slow_down() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN PERFORM pg_sleep(0.01); RETURN NEW; END $$;
    CREATE TRIGGER slow_down BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION slow_down();";

/// Without a lock on the table, which many wait for.
const SPEED_UP: &str = "
    CREATE OR REPLACE FUNCTION slow_down() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;";

const FULL: &str = "queue_full";

/// What the modest organisation is told about a hundred events while the other floods; how many are accepted.
fn accepted_beside_a_flood(args: &[&str]) -> usize {
    let cluster = Cluster::start_own(ClusterOptions::default());
    let database = cluster.new_name();
    cluster.admin("postgres").batch_execute(&format!("CREATE DATABASE {database}")).expect("a database is created");
    let server = Server::start(Options::postgres(&cluster.url(&database)).with(args));
    let (greedy, modest) = (server.organization("greedy", "0").1, server.organization("modest", "0").1);
    let mut admin = cluster.admin(&database);
    admin.batch_execute(SLOW_DOWN).expect("a trigger");

    let log = Log::new();
    let stop = Arc::new(AtomicBool::new(false));
    let flood: Vec<_> = (0..8)
        .map(|_| {
            let (mut connection, log, stop) =
                (Connection::new(server.addr, &greedy), Arc::clone(&log), Arc::clone(&stop));
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let _ = connection.post_batch(&log, &["flood"; 50], Ids::Made);
                    thread::sleep(Duration::from_millis(2));
                }
            })
        })
        .collect();
    let is_full = || log.refusals().keys().any(|(_, code)| code == FULL);
    eventually("the greedy one is refused", is_full);
    let mut connection = Connection::new(server.addr, &modest);
    let told: Vec<Told> = (0..100)
        .map(|_| {
            thread::sleep(Duration::from_millis(100));
            connection.post_event(&log, "modest", Ids::Both)
        })
        .collect();
    let refused_before = log.refusals();
    eventually("the greedy one is refused until the end", || log.refusals() != refused_before);
    stop.store(true, Ordering::Relaxed);
    for client in flood {
        client.join().expect("a client's answers have the right shape");
    }

    assert_eq!(log.refusals().into_keys().filter(|(_, code)| code != FULL).collect::<Vec<_>>(), []);
    admin.batch_execute(SPEED_UP).expect("another function");
    eventually("everything accepted is stored", || oracle::count(&mut admin, "events") >= log.accepted() as i64);
    server.drained();
    oracle::check(&log, &oracle::postgres_rows(&mut admin));
    told.iter().filter(|told| matches!(told, Told::Accepted(_))).count()
}

#[test]
fn who_fills_the_queue_does_not_take_the_others_slots() {
    let accepted = accepted_beside_a_flood(&["--queue-capacity", "1000"]);
    assert!(accepted >= 99, "{accepted} of 100");
}

#[test]
fn who_fills_the_journal_does_not_take_the_others_room() {
    let spilling = ["--queue-overflow", "spill", "--queue-capacity", "500"];
    let small = ["--journal-segment-bytes", "524288", "--journal-bytes-max", "4194304"];
    let accepted = accepted_beside_a_flood(&[spilling, small].concat());
    assert!(accepted >= 99, "{accepted} of 100");
}
