//! The crash campaign: load, a kill at a random moment, a restart, and every event that got a 202 is stored once.
//!
//!     ./test crash [--rounds N] [--seed S] [--store sqlite|postgres|both]
//!
//! A round has a database and a data directory of its own, and draws what is killed, when, and how the server is set
//! up. Draws depend on seed and round alone; what else happens in between is the machine's. The short run of the
//! ordinary tests has a new seed each time and prints it.

#![allow(clippy::print_stdout, reason = "the campaign says what it does, round by round")]

mod common;
#[path = "common/draws.rs"]
mod draws;
#[path = "common/load.rs"]
mod load;
#[path = "common/oracle.rs"]
mod oracle;

use std::path::Path;

use common::postgres::{Cluster, Options as ClusterOptions};
use common::server::{Options, Server};
use draws::Draws;
use load::{Load, Log};
use oracle::{Row, Verdict, verdict};

const ROUNDS_DEFAULT: u64 = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Store {
    Sqlite,
    Postgres,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Killed {
    Server,
    /// And once more while it recovers.
    ServerTwice,
    Postgres,
    /// The database first.
    Both,
}

/// What all rounds of a campaign came to.
#[derive(Debug, Default)]
struct Totals {
    rounds: u64,
    accepted: usize,
    unanswered: usize,
    refused: usize,
    replayed: u64,
    lost: usize,
    duplicated: usize,
    altered: usize,
    phantom: usize,
}

fn setting(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

#[test]
fn what_got_a_202_is_stored_once_whatever_was_killed() {
    let number = |name: &str| setting(name).map(|value| value.parse::<u64>().expect("a whole number"));
    let rounds = number("MILLRACE_CRASH_ROUNDS").unwrap_or(ROUNDS_DEFAULT);
    let seed = number("MILLRACE_CRASH_SEED").unwrap_or_else(|| u64::from(std::process::id()) << 32 | rounds);
    let stores: &[Store] = match setting("MILLRACE_CRASH_STORE").as_deref() {
        Some("sqlite") => &[Store::Sqlite],
        Some("postgres") => &[Store::Postgres],
        None | Some("both") => &[Store::Sqlite, Store::Postgres],
        Some(other) => panic!("MILLRACE_CRASH_STORE is {other:?}; it must be sqlite, postgres or both"),
    };
    println!("seed {seed}");
    let mut cluster = stores.contains(&Store::Postgres).then(|| Cluster::start_own(ClusterOptions { fsync: true }));
    let mut totals = Totals::default();
    for round in 0..rounds {
        let mut draws = Draws::new(seed).fork(round);
        let store = stores[(round % stores.len() as u64) as usize];
        play(round, store, &mut draws, cluster.as_mut(), &mut totals);
    }
    println!("{totals:#?}");
    assert!(totals.accepted > 0 && totals.replayed > 0, "the campaign killed nothing that mattered");
}

/// One round.
fn play(round: u64, store: Store, draws: &mut Draws, cluster: Option<&mut Cluster>, totals: &mut Totals) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut options = Options { data_dir: Some(dir.path().to_owned()), ..Options::default() };
    let cluster = cluster.filter(|_| store == Store::Postgres);
    let database = cluster.as_ref().map(|cluster| {
        let name = cluster.new_name();
        cluster.admin("postgres").batch_execute(&format!("CREATE DATABASE {name}")).expect("a database is created");
        options.database_url = Some(cluster.tcp_url(&name));
        name
    });
    let killed = match (store, draws.below(6)) {
        (_, 0) => Killed::ServerTwice,
        (Store::Postgres, 1 | 2) => Killed::Postgres,
        (Store::Postgres, 3) => Killed::Both,
        _ => Killed::Server,
    };
    let durability = draws.one_of(&["fsync", "fsync", "os"]);
    let overflow = draws.one_of(&["reject", "spill"]);
    let capacity = draws.one_of(&["16", "50", "10000"]);
    let segment = draws.one_of(&["524288", "16777216"]);
    let args = |shards: u64| {
        let shards = shards.to_string();
        let args = ["--shards", &shards, "--durability", durability, "--queue-overflow", overflow];
        options.clone().with(&args).with(&["--queue-capacity", capacity, "--journal-segment-bytes", segment])
    };
    println!("round {round}: {store:?}, {killed:?} killed, {durability}, {overflow}, queue {capacity}, {segment}");

    let mut server = Server::start(args(1 + draws.below(4)));
    let key = server.key();
    let log = Log::new();
    let load = Load::start_mixed(server.addr, &key, 4 + draws.below(8) as usize, &log);
    draws.pause(400);
    let mut replayed = 0;
    let mut cluster = cluster;
    if let (Killed::Postgres | Killed::Both, Some(cluster)) = (killed, cluster.as_mut()) {
        cluster.kill();
        draws.pause(400);
        if killed == Killed::Postgres {
            cluster.start();
            draws.pause(400);
        }
    }
    if killed == Killed::Postgres {
        load.stop();
    } else {
        server.signal("KILL");
        server.wait();
        load.stop();
        if let (Killed::Both, Some(cluster)) = (killed, cluster.as_mut()) {
            cluster.start();
        }
        if killed == Killed::ServerTwice {
            let mut again = Server::start_unready(args(1 + draws.below(4)));
            draws.pause(80);
            again.signal("KILL");
            again.wait();
        }
        server = Server::start(args(1 + draws.below(4)));
        replayed = server.count("journal_replayed_total");
        assert_eq!(server.count("journal_damaged_records_total"), 0);
    }
    server.everything_stored();
    assert_eq!(server.stop(), 0);
    assert_eq!(segments_in(dir.path()), [""; 0], "everything is stored, so nothing is kept");

    let rows = rows(dir.path(), database.as_deref(), cluster.as_deref());
    let Verdict { stored, lost, dup, phantom, changed } = verdict(&log, &rows);
    let refused: usize = log.refusals().values().sum();
    println!(
        "round {round}: accepted {}, unanswered {}, refused {refused}, stored {stored}, replayed {replayed}, lost {}, \
         duplicated {}, altered {}, phantom {}",
        log.accepted(),
        log.unanswered(),
        lost.len(),
        dup.len(),
        changed.len(),
        phantom.len()
    );
    totals.rounds += 1;
    totals.accepted += log.accepted();
    totals.unanswered += log.unanswered();
    totals.refused += refused;
    totals.replayed += replayed;
    totals.lost += lost.len();
    totals.duplicated += dup.len();
    totals.altered += changed.len();
    totals.phantom += phantom.len();
    assert!(lost.is_empty() && dup.is_empty() && phantom.is_empty() && changed.is_empty(), "see the seed above");
}

fn segments_in(data_dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(data_dir.join("journal")).expect("a journal");
    entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8")).collect()
}

fn rows(data_dir: &Path, database: Option<&str>, cluster: Option<&Cluster>) -> Vec<Row> {
    match (database, cluster) {
        (Some(database), Some(cluster)) => oracle::postgres_rows(&mut cluster.admin(database)),
        _ => oracle::sqlite_rows(&oracle::sqlite(data_dir)),
    }
}
