//! What the faults happen to: a Postgres, and two servers on it that come and go, each with its own data directory.

use std::time::{Duration, Instant};

use tempfile::TempDir;

use support::load::Address;
use support::paths::Paths;
use support::postgres::{Cluster, Options as ClusterOptions};
use support::sentences::Moment;
use support::server::{Options, Response, Server, eventually};
use support::webhook::arguments;

use crate::webhooks::inbox::expect_silence;

/// An attempt's.
pub const TIMEOUT: Duration = Duration::from_secs(2);
/// How long a delivery is a server's: the timeout, and the margin of [`millrace_base::limits::DELIVERY_LEASE_MARGIN`].
pub const LEASE: Duration = TIMEOUT.saturating_add(millrace_base::limits::DELIVERY_LEASE_MARGIN);
/// A third of it, after an attempt that was under way, and time for a machine that has much to do.
const SILENT_AFTER: Duration = Duration::from_secs(LEASE.as_secs() / 3 + TIMEOUT.as_secs() + 3);
/// Two seconds at most between the first attempts, so that a circuit opens; the last must outlast what may go wrong.
const SCHEDULE: &str = "1s,1s,2s,2s,4s,4s,4s,8s,8s";

/// What a log says that no metric does, and what it counts as.
const SAID: &[(&str, &str)] = &[
    ("circuit opened", "a webhook endpoint keeps failing"),
    ("circuit closed", "a webhook endpoint accepts deliveries again"),
    ("endpoint disabled for 410", "a webhook endpoint is disabled"),
    ("results that had to wait", "results of webhook attempts cannot be recorded"),
    ("nothing sent for what was not recorded", "no webhooks are sent while earlier results cannot be recorded"),
    ("claims that had to wait", "due webhook deliveries cannot be claimed"),
];

/// An organisation without a rate limit.
pub struct Tenant {
    pub id: String,
    pub key: String,
}

/// One server after the other on one data directory.
struct Seat {
    server: Server,
    is_up: bool,
    options: Options,
    address: Address,
    _dir: TempDir,
}

pub struct Site {
    pub cluster: Cluster,
    pub database: String,
    pub paths: Paths,
    /// How many servers there were.
    pub lives: usize,
    /// When something was wrong, in microseconds since the epoch, and what.
    pub wrong: Vec<(u64, u64, &'static str)>,
    /// When that began which goes on.
    begun: Option<u64>,
    seats: [Seat; 2],
}

impl Site {
    pub fn open(ca_file: &str) -> Self {
        let cluster = Cluster::start_own(ClusterOptions { fsync: true });
        let database = cluster.new_name();
        cluster.admin("postgres").batch_execute(&format!("CREATE DATABASE {database}")).unwrap();
        let url = cluster.url(&database);
        let timeout = TIMEOUT.as_secs().to_string();
        let args = [
            "--shards",
            "2",
            "--webhook-retry-schedule",
            SCHEDULE,
            "--webhook-timeout",
            &timeout,
            "--webhook-connect-timeout",
            "1",
            "--webhook-ca-file",
            ca_file,
            "--queue-overflow",
            "spill",
            "--shutdown-grace",
            "5",
        ];
        let args = arguments(&args);
        let seats = [(), ()].map(|()| {
            let dir = tempfile::tempdir().unwrap();
            let options = Options { data_dir: Some(dir.path().to_owned()), ..Options::postgres(&url) }.with(&args);
            let server = Server::start(options.clone());
            Seat { address: Address::new(server.addr), server, is_up: true, options, _dir: dir }
        });
        let (paths, wrong) = (Paths::default(), Vec::new());
        Self { cluster, database, paths, lives: 2, wrong, begun: None, seats }
    }

    pub fn addresses(&self) -> [Address; 2] {
        self.seats.each_ref().map(|seat| seat.address.clone())
    }

    pub fn tenant(&self, name: &str) -> Tenant {
        let (id, key) = self.seats[0].server.organization(name, "0");
        Tenant { id, key }
    }

    pub fn admin(&self) -> postgres::Client {
        self.cluster.admin_patiently(&self.database)
    }

    /// A request to one of them, while both are well; `which` of them is for the caller to vary.
    pub fn call(&self, which: usize, method: &str, path: &str, key: &str, body: Option<&str>) -> Response {
        let server = &self.seats[which % 2].server;
        server.connect().request(method, path, Some(key), body.map(str::as_bytes))
    }

    /// Something begins to be wrong, until [`Self::right`].
    pub fn begin_wrong(&mut self) {
        self.begun.get_or_insert(Moment::now().micros());
    }

    /// Everything is as it should be: both are ready, and what they accepted is stored.
    pub fn right(&mut self, fault: &'static str) {
        self.assert_running();
        for Seat { server, .. } in &self.seats {
            eventually("a server is ready", || server.get("/ready", None).status == 200);
            server.everything_stored();
        }
        if let Some(from) = self.begun.take() {
            self.wrong.push((from, Moment::now().micros(), fault));
        }
    }

    /// They are still those that were started.
    pub fn assert_running(&self) {
        for Seat { server, is_up, .. } in &self.seats {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", server.pid())).unwrap_or_default();
            let is_alive = stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'));
            assert!(!is_up || is_alive, "a server ended by itself:\n{}", server.log());
            assert!(!server.log().contains("panicked"), "{}", server.log());
        }
    }

    /// What a server did is added up before it ends.
    fn count(&mut self, which: usize) {
        let server = &self.seats[which].server;
        self.paths.add(&server.scrape());
        for (name, said) in SAID {
            self.paths.note(name, server.log().matches(said).count() as u64);
        }
    }

    /// At the end: what those do that are there.
    pub fn count_all(&mut self) {
        self.count(0);
        self.count(1);
    }

    pub fn kill(&mut self, which: usize) {
        self.count(which);
        let seat = &mut self.seats[which];
        seat.server.signal("KILL");
        seat.server.wait();
        seat.is_up = false;
    }

    /// As an operator stops it.
    pub fn stop(&mut self, which: usize) {
        self.count(which);
        let seat = &mut self.seats[which];
        assert_eq!(seat.server.stop(), 0, "{}", seat.server.log());
        seat.is_up = false;
        let cut_off = seat.server.log().matches("webhook attempts were cut off").count() as u64;
        self.paths.note("stopped with attempts cut off", cut_off);
    }

    /// A new one where one has ended; returns when it listens.
    pub fn start(&mut self, which: usize) {
        let seat = &mut self.seats[which];
        seat.server = Server::start_unready(seat.options.clone());
        seat.is_up = true;
        seat.address.set(seat.server.addr);
        self.lives += 1;
    }

    /// It does nothing for that long; clients go to the other one.
    pub fn freeze(&mut self, which: usize, pause: Duration) {
        let seat = &self.seats[which];
        let addr = seat.server.addr;
        // Nothing listens there: whoever was answered by nobody would wait for as long.
        seat.address.set(([127, 0, 0, 1], 0).into());
        seat.server.signal("STOP");
        std::thread::sleep(pause);
        seat.server.signal("CONT");
        seat.address.set(addr);
    }

    /// Postgres is away for that long. Who cannot record what it sent for a third of a lease sends nothing more.
    pub fn take_database_away(&mut self, how: fn(&mut Cluster), pause: Duration) {
        how(&mut self.cluster);
        let until = Instant::now() + pause;
        std::thread::sleep(pause.min(SILENT_AFTER));
        if pause > SILENT_AFTER {
            expect_silence(true);
            std::thread::sleep(until.saturating_duration_since(Instant::now()));
            expect_silence(false);
        }
        self.cluster.start();
    }
}
