//! One round: a server and its database, two organisations, the load, and the books in the end.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use tempfile::TempDir;

use support::database::{Database, POISON};
use support::draws::Draws;
use support::load::{Connection, Ids, Load, Log, Told, Turn};
use support::oracle::{self, Verdict};
use support::paths::Paths;
use support::postgres::Cluster;
use support::sentences::{self, Away, Bye};
use support::server::{Options, Server, eventually};
use support::small_disk::SmallDisk;

use crate::crash::faults::{self, Fault};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    Sqlite,
    Postgres,
}

pub struct Round<'a> {
    pub log: Arc<Log>,
    fault: Fault,
    database: Option<(&'a mut Cluster, Database)>,
    paths: &'a mut Paths,
    setup: String,
    options: Options,
    server: Server,
    /// Whether the server has ended.
    is_down: bool,
    /// Nobody's events but the first one's are delivered.
    hooked_key: String,
    plain_key: String,
    /// Whether only batches of events with ids of the server's own are posted.
    is_bulk_only: bool,
    load: Vec<Load>,
    load_began: Option<Instant>,
    load_time: Duration,
    away: Vec<Away>,
    blows: usize,
    is_as_expected: bool,
    data_dir: PathBuf,
    _dir: TempDir,
    _disk: Option<SmallDisk>,
}

/// What became of it.
pub struct Outcome {
    pub load_time: Duration,
    pub accepted: usize,
    pub unanswered: usize,
    pub refused: usize,
    pub verdict: Verdict,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Verdict { stored, lost, dup, phantom, changed } = &self.verdict;
        let rate = self.accepted as f64 / self.load_time.as_secs_f64();
        write!(
            f,
            "accepted {} ({rate:.0}/s), unanswered {}, refused {}, stored {stored}, LOST {}, DUP {}, ALTERED {}, PHANTOM {}",
            self.accepted,
            self.unanswered,
            self.refused,
            lost.len(),
            dup.len(),
            changed.len(),
            phantom.len()
        )
    }
}

impl<'a> Round<'a> {
    /// The round `number` of its store: Postgres where there is a cluster. One of `faults` is its own.
    pub fn open(
        number: u64,
        mut faults: Vec<Fault>,
        cluster: Option<&'a mut Cluster>,
        draws: &mut Draws,
        paths: &'a mut Paths,
    ) -> Self {
        let (cycle, which) = (number / faults.len() as u64, number % faults.len() as u64);
        let fault = faults.swap_remove(which as usize);
        let pick = |all: &[&'static str], n: u64| all[(n % all.len() as u64) as usize];
        let durability = match pick(&["fsync", "os", "fsync", "memory"], number + cycle) {
            "memory" if fault.needs_journal => "fsync",
            durability => durability,
        };
        let overflow = if durability == "memory" { "reject" } else { pick(&["reject", "spill"], number / 2 + cycle) };
        // A queue that is always full leaves little to lose, unless it spills.
        let capacities: &[&str] = if overflow == "spill" { &["200", "1000", "10000"] } else { &["1000", "10000"] };
        // The third round of each store spills, whatever is drawn.
        let capacity = if number == 2 { "200" } else { draws.one_of(capacities) };
        let segment = if fault.needs_small_disk { "524288" } else { draws.one_of(&["524288", "16777216"]) };

        let dir = tempfile::tempdir().expect("a temporary directory");
        let disk = fault.needs_small_disk.then(|| SmallDisk::mount("64m"));
        let data_dir = disk.as_ref().map_or(dir.path(), SmallDisk::path).join("data");
        let database = cluster.map(|cluster| {
            let database = Database::create(cluster);
            (cluster, database)
        });
        let database_url = database.as_ref().map(|(cluster, database)| database.url(cluster.port()));
        let options = Options { data_dir: Some(data_dir.clone()), database_url, ..Options::default() }
            .with(&["--durability", durability, "--queue-overflow", overflow, "--queue-capacity", capacity])
            .with(&["--journal-segment-bytes", segment, "--allow-insecure-webhooks"]);
        let server = Server::start(with_shards(&options, draws));
        match &database {
            Some((cluster, database)) => database.refuse_poison(cluster),
            None => oracle::sqlite(&data_dir)
                .execute_batch(&format!(
                    "CREATE TRIGGER no_poison BEFORE INSERT ON events WHEN NEW.type = '{POISON}'
                    BEGIN SELECT RAISE(ABORT, 'not this one'); END"
                ))
                .expect("the tables are there"),
        }
        let [hooked_key, plain_key] = ["hooked", "plain"].map(|name| server.organization(name, "0").1);
        // Nobody listens there: what is owed is planned and stored, and stays owed.
        let endpoint = json!({ "url": "http://127.0.0.1:9/" }).to_string();
        let made = server.post("/api/endpoints", &hooked_key, &endpoint);
        assert_eq!(made.status, 201, "{}", made.json());
        let store = if database.is_some() { Store::Postgres } else { Store::Sqlite };
        let setup = format!("{store:?} {durability} {overflow}").to_lowercase();
        paths.struck(fault.name, &setup);
        Self {
            log: Log::new(),
            fault,
            database,
            paths,
            setup: format!("{setup}, queue {capacity}, segments {segment}"),
            options,
            server,
            is_down: false,
            hooked_key,
            plain_key,
            is_bulk_only: (number + cycle).is_multiple_of(3),
            load: Vec::new(),
            load_began: None,
            load_time: Duration::ZERO,
            away: Vec::new(),
            blows: 0,
            is_as_expected: true,
            data_dir,
            _dir: dir,
            _disk: disk,
        }
    }

    pub fn title(&self) -> String {
        let load = if self.is_bulk_only { "batches alone" } else { "batches and others" };
        format!("{}; {}, {load}", self.fault.name, self.setup)
    }

    /// All of it.
    pub fn play(mut self, draws: &mut Draws) -> Outcome {
        self.start_load();
        std::thread::sleep(draws.millis(600, 1400));
        let fault = std::mem::replace(&mut self.fault, faults::on_sqlite().swap_remove(0));
        fault.strike(&mut self, draws);
        if !self.load.is_empty() {
            std::thread::sleep(draws.millis(100, 500));
        }
        self.settle()
    }

    /// Posts from now on.
    pub fn start_load(&mut self) {
        let (addr, log) = (self.server.addr, &self.log);
        self.load.push(Load::start_bulk(addr, &self.plain_key, 3, log));
        if !self.is_bulk_only {
            self.load.push(Load::start_in_turns(addr, &self.plain_key, 2, &["plain", POISON], Turn::Plain, log));
            self.load.push(Load::start_in_turns(addr, &self.hooked_key, 2, &["hooked"], Turn::Hooked, log));
        }
        self.load_began = Some(Instant::now());
    }

    pub fn stop_load(&mut self) {
        for load in self.load.drain(..) {
            load.stop();
        }
        self.load_time += self.load_began.take().map_or(Duration::ZERO, |began| began.elapsed());
    }

    pub fn everything_stored(&self) {
        self.server.everything_stored();
    }

    pub fn postgres(&mut self) -> (&mut Cluster, &mut Database) {
        let (cluster, database) = self.database.as_mut().expect("a round on Postgres");
        (cluster, database)
    }

    pub fn address(&self) -> SocketAddr {
        self.server.addr
    }

    pub fn plain_key(&self) -> &str {
        &self.plain_key
    }

    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    pub fn server_log(&self) -> String {
        self.server.log()
    }

    /// Nothing could be stored meanwhile.
    pub fn away(&mut self, away: Away) {
        self.away.push(away);
        self.blows += 1;
    }

    /// Where it is not so the campaign fails, once the books are there.
    pub fn expect(&mut self, is_so: bool) {
        self.is_as_expected &= is_so;
    }

    pub fn kill_server(&mut self) {
        // One that does not answer yet has stored nothing either.
        if self.server.get("/ready", None).status == 200 {
            self.paths.add(&self.server.scrape());
        }
        self.server.signal("KILL");
        self.server.wait();
        self.is_down = true;
        self.check_sentences(false);
    }

    /// SIGTERM; what it says last.
    pub fn end_server(&mut self) -> Bye {
        self.paths.add(&self.server.scrape());
        assert_eq!(self.server.stop(), 0, "{}", self.server.log());
        self.is_down = true;
        eventually("the last word", || sentences::bye(&self.server.log()) != Bye::Silence);
        sentences::bye(&self.server.log())
    }

    /// Accepted events that the database does not have now.
    pub fn missing(&self) -> usize {
        self.books().1.lost.len()
    }

    /// Whether the server accepts into the journal what the queue has no slot for.
    pub fn spills(&self) -> bool {
        self.setup.contains(" spill,")
    }

    /// Another one, listening.
    pub fn start_unready(&mut self, draws: &mut Draws) {
        assert!(self.is_down);
        self.server = Server::start_unready(with_shards(&self.options, draws));
        self.is_down = false;
    }

    /// Another one, ready: it reads back what the one before left.
    pub fn start_server(&mut self, draws: &mut Draws) {
        self.start_unready(draws);
        self.ready();
    }

    fn ready(&self) {
        eventually("the server is ready", || self.server.get("/ready", None).status == 200);
        assert_eq!(self.server.count("journal_damaged_records_total"), 0);
        eventually("and says so", || self.server.log().contains(" ready store="));
    }

    fn check_sentences(&self, is_everything_stored: bool) {
        let (mut away, mut blows) = (self.away.clone(), self.blows);
        if let Some((_, database)) = &self.database {
            away.extend(&database.away);
            blows += database.blows;
        }
        sentences::check(&self.server.log(), &away, blows, is_everything_stored);
    }

    /// The load ends, everything is stored, the server goes on and is stopped, and the books are drawn up.
    fn settle(mut self) -> Outcome {
        self.stop_load();
        self.ready();
        self.everything_stored();
        let mut connection = Connection::new(self.address(), &self.plain_key);
        eventually("the server goes on", || {
            matches!(connection.post_event(&self.log, "after", Ids::Made), Told::Accepted(_))
        });
        self.everything_stored();
        assert_eq!(self.server.count("journal_damaged_records_total"), 0);
        let bye = self.end_server();
        self.check_sentences(true);
        let left = std::fs::read_dir(self.data_dir.join("journal")).map_or(0, Iterator::count);
        assert_eq!((bye, left), (Bye::Stored, 0), "everything is stored, so nothing is kept");

        let (wrong, verdict) = self.books();
        assert_eq!(wrong, 0, "events of the organisation with an endpoint with no delivery, or several");
        if let Some((cluster, database)) = &self.database {
            database.drop(cluster);
        }
        assert!(self.is_as_expected || !verdict.lost.is_empty(), "see above:\n{}", self.server.log());
        Outcome {
            load_time: self.load_time,
            accepted: self.log.accepted(),
            unanswered: self.log.unanswered(),
            refused: self.log.refusals().values().sum(),
            verdict,
        }
    }

    /// Events with the wrong number of deliveries, and what the rows say.
    fn books(&self) -> (i64, Verdict) {
        let Some((cluster, database)) = &self.database else {
            let file = oracle::sqlite(&self.data_dir);
            let wrong = file.query_row(oracle::NOT_ONE_DELIVERY, [], |row| row.get(0)).expect("an answer");
            return (wrong, oracle::verdict(&self.log, &oracle::sqlite_rows(&file)));
        };
        let mut admin = database.admin(cluster);
        let wrong = admin.query_one(oracle::NOT_ONE_DELIVERY, &[]).expect("an answer").get(0);
        (wrong, oracle::postgres_verdict(&mut admin, &self.log))
    }
}

fn with_shards(options: &Options, draws: &mut Draws) -> Options {
    options.clone().with(&["--shards", &(1 + draws.below(4)).to_string()])
}
