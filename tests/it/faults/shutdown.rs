//! SIGTERM under load, with the database there and with it away.

use std::thread;
use std::time::{Duration, Instant};

use support::load::{Connection, Ids, Load, Log, Told};
use support::oracle;
use support::postgres::{Cluster, Options as ClusterOptions};
use support::server::{Options, Server, eventually};

#[test]
fn sigterm_under_load_loses_nothing() {
    const CLIENTS: usize = 6;
    let cluster = Cluster::shared();
    let database = cluster.new_name();
    cluster.admin("postgres").batch_execute(&format!("CREATE DATABASE {database}")).expect("a database is created");
    let log = Log::new();
    let mut key = None;
    for round in 0..10 {
        let mut server = Server::start(Options::postgres(&cluster.url(&database)));
        let key = key.get_or_insert_with(|| server.key());
        let accepted = log.accepted();
        let unanswered = log.unanswered();
        let load = Load::start(server.addr, key, CLIENTS, Ids::Both, &log);
        eventually("the load runs", || log.accepted() > accepted + 50);
        // Not always at the same moment.
        thread::sleep(Duration::from_millis(round * 13));
        let told = Instant::now();
        server.signal("TERM");
        eventually("the listener is gone", || std::net::TcpStream::connect(server.addr).is_err());
        load.stop();
        let status = server.wait();
        println!("round {round}: {status} after {:?}, {} unanswered", told.elapsed(), log.unanswered() - unanswered);
        assert_eq!(status.code(), Some(0), "{}", server.log());
        // A request may have met the door as it closed; whatever came before was answered.
        assert!(log.unanswered() - unanswered <= CLIENTS, "{} unanswered", log.unanswered() - unanswered);
        eventually("the last word", || server.log().contains("everything accepted is stored; bye"));
    }
    oracle::check(&log, &oracle::postgres_rows(&mut cluster.admin(&database)));
    assert!(log.refusals().keys().all(|(_, code)| code == "shutting_down"), "{:?}", log.refusals());
}

#[test]
fn sigterm_without_database_or_journal_reports_the_loss() {
    // Gone, and hung with its connections alive.
    for freeze in [false, true] {
        let mut cluster = Cluster::start_own(ClusterOptions { fsync: true });
        let database = cluster.new_name();
        cluster.admin("postgres").batch_execute(&format!("CREATE DATABASE {database}")).expect("a database is created");
        let options =
            Options::postgres(&cluster.tcp_url(&database)).with(&["--durability", "memory", "--shutdown-grace", "2"]);
        let mut server = Server::start(options);
        let key = server.key();
        let log = Log::new();
        let mut connection = Connection::new(server.addr, &key);
        let mut post = |count: usize| {
            for _ in 0..count {
                assert!(matches!(connection.post_event(&log, "e", Ids::Both), Told::Accepted(_)));
            }
        };
        post(100);
        server.drained();
        if freeze {
            cluster.freeze();
        } else {
            cluster.stop();
        }
        post(234);
        let told = Instant::now();
        let code = server.stop();
        println!("freeze {freeze}: ended after {:?}", told.elapsed());
        assert!(told.elapsed() < Duration::from_secs(2 + 5), "{:?}", told.elapsed());
        assert_eq!(code, 1);
        eventually("the loss is stated", || server.log().contains("234 accepted events could not be stored"));
        if freeze {
            cluster.thaw();
        } else {
            cluster.start();
        }
        let mut admin = cluster.admin(&database);
        if freeze {
            // What a hung server had already read it may still store: no more than was stated is lost.
            assert!(oracle::count(&mut admin, "events") >= 100);
        } else {
            assert_eq!(oracle::count(&mut admin, "events"), log.accepted() as i64 - 234);
        }
        oracle::check_after_kill(&log, &oracle::postgres_rows(&mut admin));
    }
}
