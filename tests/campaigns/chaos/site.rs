//! What the faults happen to: a Postgres and a proxy before it, one server after the other on one data directory, and
//! two organisations, of which one has its events delivered to a receiver.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use tempfile::TempDir;

use support::database::Database;
use support::draws::Draws;
use support::load::{Address, Log};
use support::oracle;
use support::paths::Paths;
use support::postgres::{Cluster, Options as ClusterOptions};
use support::proxy::Proxy;
use support::sentences::{self, Bye};
use support::server::{Options, Server, eventually};

use crate::chaos::gauge::Gauge;
use crate::chaos::inbox::Inbox;

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
    pub database: Database,
    pub paths: Paths,
    /// How the present server is set up.
    setup: String,
    /// What had been done to the database when it was started.
    blows: usize,
    log: Arc<Log>,
    address: Address,
    server: Server,
    options: Options,
    dir: TempDir,
}

impl Site {
    pub fn open(draws: &mut Draws, log: &Arc<Log>) -> Self {
        let cluster = Cluster::start_own(ClusterOptions { fsync: true });
        let proxy = Proxy::start(cluster.port());
        let database = Database::create(&cluster);
        let url = database.url(proxy.port);
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
        let (first, setup) = with_draws(&options, draws);
        let server = Server::start(first);
        database.refuse_poison(&cluster);
        let [hooked, plain] = ["hooked", "plain"].map(|name| {
            let (id, key) = server.organization(name, "0");
            Tenant { id, key }
        });
        let inbox = Inbox::start(draws.fork(2));
        let made = server.post("/api/endpoints", &hooked.key, &json!({ "url": inbox.url() }).to_string());
        assert_eq!(made.status, 201, "{}", made.json());
        let address = Address::new(server.addr);
        let gauge = Gauge::start(server.pid());
        let (log, paths) = (Arc::clone(log), Paths::default());
        Self {
            cluster,
            proxy,
            inbox,
            hooked,
            plain,
            gauge,
            lives: 1,
            database,
            paths,
            setup,
            blows: 0,
            log,
            address,
            server,
            options,
            dir,
        }
    }

    pub fn address(&self) -> Address {
        self.address.clone()
    }

    /// A connection to the database that no fault is in the way of.
    pub fn admin(&self) -> postgres::Client {
        self.database.admin(&self.cluster)
    }

    /// The server is still the one that was started.
    pub fn assert_running(&self) {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.server.pid())).unwrap_or_default();
        let is_alive = stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'));
        assert!(is_alive, "the server ended by itself:\n{}", self.server.log());
        assert!(!self.server.log().contains("panicked"), "{}", self.server.log());
    }

    /// A fault happens to the present server.
    pub fn struck(&mut self, fault: &str) {
        self.paths.struck(fault, &self.setup);
    }

    pub fn kill_server(&mut self) {
        self.paths.add(&self.server.scrape());
        self.server.signal("KILL");
        self.server.wait();
        self.check_sentences(false);
    }

    /// As an operator stops it, with what it cannot store left in the journal. What it says last must be so: what is not
    /// in the database is in the journal.
    pub fn stop_server(&mut self) {
        self.paths.add(&self.server.scrape());
        assert_eq!(self.server.stop(), 0, "{}", self.server.log());
        self.check_sentences(false);
        eventually("the last word", || sentences::bye(&self.server.log()) != Bye::Silence);
        let accepted = self.log.accepted() as i64;
        let mut admin = self.admin();
        let rows: i64 = ["events", "quarantined_events"].map(|table| oracle::count(&mut admin, table)).iter().sum();
        let bye = sentences::bye(&self.server.log());
        let missing = (accepted - rows).max(0) as u64;
        assert!(bye.may_hold(missing), "accepted {accepted}, {rows} rows, and yet: {bye:?}\n{}", self.server.log());
    }

    fn check_sentences(&self, is_everything_stored: bool) {
        let blows = self.database.blows - self.blows;
        sentences::check(&self.server.log(), &self.database.away, blows, is_everything_stored);
    }

    /// Lets the server do nothing for a while.
    pub fn suspend_server(&mut self, pause: Duration) {
        self.server.signal("STOP");
        std::thread::sleep(pause);
        self.server.signal("CONT");
    }

    /// A new server where the one before has ended, set up in another way. Returns when it listens.
    pub fn start_server(&mut self, draws: &mut Draws) {
        let (options, setup) = with_draws(&self.options, draws);
        self.server = Server::start_unready(options);
        (self.setup, self.blows) = (setup, self.database.blows);
        self.lives += 1;
        self.address.set(self.server.addr);
        self.gauge.watch(self.server.pid());
    }

    /// Waits until the server is ready and what the one before left is being read back. With a small queue, beside new
    /// events, that takes minutes, and the next fault may come meanwhile; what must not happen is that it stops.
    pub fn ready(&self) {
        eventually("the server is ready", || self.server.get("/ready", None).status == 200);
        let replayed = || self.server.metric("journal_replayed_total");
        let before = replayed();
        eventually("the replay goes on", || {
            self.server.metric("journal_unread_segments") == 0.0 || replayed() > before
        });
        assert_eq!(self.server.count("journal_damaged_records_total"), 0);
        eventually("and says so", || self.server.log().contains(" ready store="));
    }

    /// After the last fault: waits until everything is stored, gives deliveries some time or, where `to_the_end`, all
    /// they need, and stops the server.
    pub fn settle(&mut self, to_the_end: bool) {
        self.ready();
        self.server.everything_stored();
        let mut admin = self.admin();
        let mut pending = || oracle::count(&mut admin, "delivery_queue");
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
        self.check_sentences(true);
        assert_eq!(sentences::bye(&self.server.log()), Bye::Stored, "{}", self.server.log());
        let kept: Vec<_> = std::fs::read_dir(self.dir.path().join("journal")).unwrap().collect();
        assert!(kept.is_empty(), "everything is stored, so the journal keeps nothing: {kept:?}");
    }
}

/// Another set-up for each life of the server; what holds does not depend on it.
fn with_draws(options: &Options, draws: &mut Draws) -> (Options, String) {
    let shards = (1 + draws.below(3)).to_string();
    let durability = draws.one_of(&["fsync", "fsync", "os"]);
    let overflow = draws.one_of(&["reject", "spill"]);
    let options = options.clone().with(&[
        "--shards",
        &shards,
        "--io-driver",
        draws.one_of(&["auto", "epoll"]),
        "--durability",
        durability,
        "--queue-overflow",
        overflow,
        "--queue-capacity",
        draws.one_of(&["200", "1000", "10000"]),
        "--journal-segment-bytes",
        draws.one_of(&["524288", "16777216"]),
    ]);
    (options, format!("{durability} {overflow}"))
}
