//! The crash campaign: load, a fault at a random moment, a restart where one is needed, and every event that got a 202 is
//! stored once.
//!
//!     ./test crash [--rounds N] [--seed S] [--store sqlite|postgres|both] [--fault WORDS]
//!
//! A round (`crash/round.rs`) has a database and a data directory of its own. What happens to it (`crash/faults.rs`) and
//! how the server is set up goes by the round's number, so that even a short run meets the worst; when it happens, and
//! all else, is drawn. Draws depend on seed and round alone; what else happens in between is the machine's. The short run
//! of the ordinary tests has a new seed each time and prints it.

mod faults;
mod round;

use support::draws::Draws;
use support::paths::{self, Paths};
use support::postgres::{Cluster, Options as ClusterOptions};

use round::{Outcome, Round, Store};

/// Four on each store: the first four faults of each.
const ROUNDS_DEFAULT: u64 = 8;

/// What all rounds of a campaign came to.
#[derive(Debug, Default)]
struct Totals {
    rounds: u64,
    seconds_of_load: f64,
    accepted: usize,
    unanswered: usize,
    refused: usize,
    lost: usize,
    rounds_with_losses: u64,
    duplicated: usize,
    altered: usize,
    phantom: usize,
}

#[test]
fn what_got_a_202_is_stored_once_whatever_was_killed() {
    let _alone = crate::alone();
    let rounds = crate::number("MILLRACE_CRASH_ROUNDS").unwrap_or(ROUNDS_DEFAULT);
    let seed = crate::number("MILLRACE_CRASH_SEED").unwrap_or_else(|| u64::from(std::process::id()) << 32 | rounds);
    let stores: &[Store] = match crate::setting("MILLRACE_CRASH_STORE").as_deref() {
        Some("sqlite") => &[Store::Sqlite],
        Some("postgres") => &[Store::Postgres],
        None | Some("both") => &[Store::Postgres, Store::Sqlite],
        Some(other) => panic!("MILLRACE_CRASH_STORE is {other:?}; it must be sqlite, postgres or both"),
    };
    let words = crate::setting("MILLRACE_CRASH_FAULT").unwrap_or_default();
    println!("seed {seed}");
    let mut cluster = stores.contains(&Store::Postgres).then(|| Cluster::start_own(ClusterOptions { fsync: true }));
    let (mut totals, mut paths) = (Totals::default(), Paths::default());
    for number in 0..rounds {
        let mut draws = Draws::new(seed).fork(number);
        let store = stores[(number % stores.len() as u64) as usize];
        let cluster = cluster.as_mut().filter(|_| store == Store::Postgres);
        let mut faults = if cluster.is_some() { faults::on_postgres() } else { faults::on_sqlite() };
        faults.retain(|fault| fault.name.contains(&words));
        if faults.is_empty() {
            continue;
        }
        let round = Round::open(number / stores.len() as u64, faults, cluster, &mut draws, &mut paths);
        println!("round {number}: {}", round.title());
        let outcome = round.play(&mut draws);
        println!("round {number}: {outcome}");
        totals.add(&outcome);
    }
    println!("{totals:#?}\n{paths}");
    assert_eq!((totals.lost, totals.duplicated, totals.altered, totals.phantom), (0, 0, 0, 0), "see the seed above");
    assert!(totals.accepted > 0);
    if rounds >= ROUNDS_DEFAULT && stores.len() == 2 && words.is_empty() {
        assert_eq!(paths.untaken(paths::OF_EVENTS), [""; 0], "the campaign did not go these ways");
    }
}

impl Totals {
    fn add(&mut self, outcome: &Outcome) {
        self.rounds += 1;
        self.seconds_of_load += outcome.load_time.as_secs_f64();
        self.accepted += outcome.accepted;
        self.unanswered += outcome.unanswered;
        self.refused += outcome.refused;
        self.lost += outcome.verdict.lost.len();
        self.rounds_with_losses += u64::from(!outcome.verdict.lost.is_empty());
        self.duplicated += outcome.verdict.dup.len();
        self.altered += outcome.verdict.changed.len();
        self.phantom += outcome.verdict.phantom.len();
    }
}
