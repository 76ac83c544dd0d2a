//! What the faults happen to: a Postgres and a proxy before it, one server after the other on one data directory, and
//! two organisations, of which one has its events delivered to a receiver.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use tempfile::TempDir;

use crate::common::postgres::{Cluster, Options as ClusterOptions};
use crate::common::server::{Options, Server, eventually};
use crate::draws::Draws;
use crate::gauge::Gauge;
use crate::inbox::Inbox;
use crate::proxy::Proxy;

/// Rows of this type are refused by the database for their data.
pub const POISON: &str = "poison";

/// Where the server listens at present. It may be down.
#[derive(Clone)]
pub struct Address(Arc<AtomicU16>);

impl Address {
    pub fn get(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.0.load(Ordering::Relaxed)))
    }
}

/// An organisation without a rate limit.
pub struct Tenant {
    pub id: String,
    pub key: String,
}

pub struct Site {
    pub cluster: Cluster,
    pub proxy: Proxy,
    pub inbox: Inbox,
    /// Its events are delivered.
    pub hooked: Tenant,
    /// Its are not.
    pub plain: Tenant,
    pub gauge: Gauge,
    /// How many servers there were.
    pub lives: u32,
    database: String,
    address: Address,
    server: Server,
    options: Options,
    dir: TempDir,
}

impl Site {
    pub fn open(draws: &mut Draws) -> Self {
        let cluster = Cluster::start_own(ClusterOptions { fsync: true });
        let proxy = Proxy::start(cluster.port());
        let database = cluster.new_name();
        cluster.admin("postgres").batch_execute(&format!("CREATE DATABASE {database}")).unwrap();
        let url = cluster.tcp_url(&database).replace(&format!(":{}/", cluster.port()), &format!(":{}/", proxy.port));
        let dir = tempfile::tempdir().unwrap();
        let options = Options { data_dir: Some(dir.path().to_owned()), ..Options::postgres(&url) }.with(&[
            "--allow-insecure-webhooks",
            "--webhook-retry-schedule",
            "1s,1s,1s,1s,2s,2s,4s,4s,4s,4s,4s,4s,4s,4s,4s,4s",
            // The shortest leases there are: what a killed server held is due again within a minute.
            "--webhook-timeout",
            "2",
            "--webhook-connect-timeout",
            "1",
            "--shutdown-grace",
            "2",
        ]);
        let server = Server::start(with_draws(&options, draws));
        let refusing = format!("ALTER TABLE events ADD CONSTRAINT no_poison CHECK (type <> '{POISON}')");
        cluster.admin(&database).batch_execute(&refusing).unwrap();
        let [hooked, plain] = ["hooked", "plain"].map(|name| {
            let (id, key) = server.organization(name, "0");
            Tenant { id, key }
        });
        let inbox = Inbox::start(draws.fork(2));
        let made = server.post("/api/endpoints", &hooked.key, &json!({ "url": inbox.url() }).to_string());
        assert_eq!(made.status, 201, "{}", made.json());
        let address = Address(Arc::new(AtomicU16::new(server.addr.port())));
        let gauge = Gauge::start(server.pid());
        Self { cluster, proxy, inbox, hooked, plain, gauge, lives: 1, database, address, server, options, dir }
    }

    pub fn address(&self) -> Address {
        self.address.clone()
    }

    /// A connection to the database that no fault is in the way of.
    pub fn admin(&self) -> postgres::Client {
        self.cluster.admin(&self.database)
    }

    /// The server is still the one that was started.
    pub fn assert_running(&self) {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.server.pid())).unwrap_or_default();
        let is_alive = stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'));
        assert!(is_alive, "the server ended by itself:\n{}", self.server.log());
        assert!(!self.server.log().contains("panicked"), "{}", self.server.log());
    }

    pub fn kill_server(&mut self) {
        self.server.signal("KILL");
        self.server.wait();
    }

    /// As an operator stops it, with what it cannot store left in the journal.
    pub fn stop_server(&mut self) {
        assert_eq!(self.server.stop(), 0, "{}", self.server.log());
    }

    /// Lets the server do nothing for a while.
    pub fn suspend_server(&mut self, pause: Duration) {
        self.server.signal("STOP");
        std::thread::sleep(pause);
        self.server.signal("CONT");
    }

    /// A new server where the one before has ended, set up in another way. Returns when it listens.
    pub fn start_server(&mut self, draws: &mut Draws) {
        self.server = Server::start_unready(with_draws(&self.options, draws));
        self.lives += 1;
        self.address.0.store(self.server.addr.port(), Ordering::Relaxed);
        self.gauge.watch(self.server.pid());
    }

    /// Waits until the server has replayed what the one before left.
    pub fn ready(&self) {
        eventually("the server is ready", || self.server.get("/ready", None).status == 200);
        assert_eq!(self.server.count("journal_damaged_records_total"), 0);
    }

    /// After the last fault: waits until everything is stored, gives deliveries some time or, where `to_the_end`, all
    /// they need, and stops the server.
    pub fn settle(&mut self, to_the_end: bool) {
        self.ready();
        self.server.everything_stored();
        let mut admin = self.admin();
        let mut pending = || crate::oracle::count(&mut admin, "delivery_queue");
        if to_the_end {
            eventually("a killed server's deliveries are due again", || pending() < 5_000);
            eventually("everything is delivered", || pending() == 0);
        } else {
            let until = Instant::now() + Duration::from_secs(5);
            while pending() > 0 && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(100));
            }
        }
        self.gauge.settle();
        self.stop_server();
        let kept: Vec<_> = std::fs::read_dir(self.dir.path().join("journal")).unwrap().collect();
        assert!(kept.is_empty(), "everything is stored, so the journal keeps nothing: {kept:?}");
    }
}

/// Another set-up for each life of the server; what holds does not depend on it.
fn with_draws(options: &Options, draws: &mut Draws) -> Options {
    let shards = (1 + draws.below(3)).to_string();
    options.clone().with(&[
        "--shards",
        &shards,
        "--io-driver",
        draws.one_of(&["auto", "epoll"]),
        "--durability",
        draws.one_of(&["fsync", "fsync", "os"]),
        "--queue-overflow",
        draws.one_of(&["reject", "spill"]),
        "--queue-capacity",
        draws.one_of(&["50", "1000", "10000"]),
        "--journal-segment-bytes",
        draws.one_of(&["524288", "16777216"]),
    ])
}
