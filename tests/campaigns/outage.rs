//! Riding out an outage of the database with `--queue-overflow spill`: no client notices, no event is lost.
//!
//!     ./test outage [--seconds N] [--rate R]
//!
//! An open loop: requests are due at fixed moments, whatever became of those before, and a latency counts from the
//! moment its request was due. The figures are printed; what is asserted is that nobody was refused and nothing lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use support::load::{Connection, Ids, Log};
use support::oracle;
use support::postgres::{Cluster, Options as ClusterOptions};
use support::server::{Options, Server, sample};

const CLIENTS: u64 = 16;

/// Clients that send at fixed moments, together `rate` requests a second.
struct OpenLoop {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Vec<(Instant, Duration)>>>,
}

impl OpenLoop {
    fn start(server: &Server, key: &str, rate: u64, log: &Arc<Log>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let interval = Duration::from_secs_f64(CLIENTS as f64 / rate as f64);
        let begun = Instant::now();
        let clients = (0..CLIENTS).map(|client| {
            let (stop, log, mut connection) = (Arc::clone(&stop), Arc::clone(log), Connection::new(server.addr, key));
            thread::spawn(move || {
                let mut due = begun + interval.mul_f64(client as f64 / CLIENTS as f64);
                let mut latencies = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    thread::sleep(due.saturating_duration_since(Instant::now()));
                    connection.post_event(&log, "load", Ids::Made);
                    latencies.push((due, due.elapsed()));
                    due += interval;
                }
                latencies
            })
        });
        let clients = clients.collect();
        Self { stop, clients }
    }

    /// When each request was due, and how long after that it was answered.
    fn stop(self) -> Vec<(Instant, Duration)> {
        self.stop.store(true, Ordering::Relaxed);
        self.clients.into_iter().flat_map(|client| client.join().expect("a client gets its answers")).collect()
    }
}

#[test]
fn an_outage_of_the_database_is_no_clients_business() {
    let _alone = crate::alone();
    let seconds = crate::number("MILLRACE_OUTAGE_SECONDS").unwrap_or(3);
    let rate = crate::number("MILLRACE_OUTAGE_RATE").unwrap_or(500);
    // Stopped, and hung with its connections alive.
    for freeze in [false, true] {
        ride_out(Duration::from_secs(seconds), rate, freeze);
    }
}

fn ride_out(outage: Duration, rate: u64, freeze: bool) {
    let mut cluster = Cluster::start_own(ClusterOptions { fsync: true });
    let database = cluster.new_name();
    cluster.admin("postgres").batch_execute(&format!("CREATE DATABASE {database}")).expect("a database is created");
    let options = Options::postgres(&cluster.tcp_url(&database));
    let mut server = Server::start(options.with(&["--queue-overflow", "spill", "--queue-capacity", "1000"]));
    let key = server.key();
    let log = Log::new();
    // Known to every shard before the database is gone.
    for _ in 0..32 {
        Connection::new(server.addr, &key).post_event(&log, "first", Ids::Made);
    }
    let load = OpenLoop::start(&server, &key, rate, &log);
    thread::sleep(outage / 4);
    let stopped = Instant::now();
    if freeze {
        cluster.freeze();
    } else {
        cluster.stop();
    }
    thread::sleep(outage);
    let backlog = backlog(&server);
    if freeze {
        cluster.thaw();
    } else {
        cluster.start();
    }
    let back = Instant::now();
    support::server::eventually("the backlog is stored", || self::backlog(&server) < rate as f64);
    let drained = Instant::now();
    thread::sleep(outage / 4);
    let latencies = load.stop();

    println!("outage of {outage:?} under {rate} events/s, {}", if freeze { "frozen" } else { "stopped" });
    println!("backlog {backlog} events, stored in {:?} beside new ones", drained - back);
    let phase = |name: &str, from: Option<Instant>, to: Option<Instant>| {
        let is_in = |at: Instant| from.is_none_or(|from| at >= from) && to.is_none_or(|to| at < to);
        let mut all: Vec<Duration> = latencies.iter().filter(|(at, _)| is_in(*at)).map(|(_, took)| *took).collect();
        all.sort_unstable();
        let quantile = |q: f64| all.get((all.len() as f64 * q) as usize).copied().unwrap_or_default();
        println!("{name:>9}: {} requests, p50 {:?}, p99 {:?}", all.len(), quantile(0.5), quantile(0.99));
    };
    phase("before", None, Some(stopped));
    phase("during", Some(stopped), Some(back));
    phase("draining", Some(back), Some(drained));
    phase("after", Some(drained), None);

    support::server::eventually("everything is stored", || self::backlog(&server) == 0.0);
    assert_eq!(server.stop(), 0);
    assert_eq!((log.refusals().len(), log.unanswered()), (0, 0), "{:?}", log.refusals());
    assert!(backlog > 1000.0, "the queue never was full: {backlog}");
    oracle::check(&log, &oracle::postgres_rows(&mut cluster.admin(&database)));
}

/// Events that were accepted and are not in the database.
fn backlog(server: &Server) -> f64 {
    let scrape = server.scrape();
    let stored = ["stored", "deduplicated", "found", "quarantined"].map(|how| format!("store_events_{how}_total"));
    let stored: f64 = stored.iter().map(|name| sample(&scrape, name)).sum();
    (sample(&scrape, "events_ingested_total") - stored).max(0.0)
}
