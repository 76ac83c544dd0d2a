//! Chaos: a random fault every few seconds under a mix of good and bad clients, and at the end the books balance.
//!
//!     ./test chaos [--minutes N] [--seed S]
//!
//! One site (`chaos/site.rs`): a Postgres of its own, a proxy before it, a server that comes and goes, a receiver of
//! webhooks. `chaos/faults.rs` and `support/database.rs` are what happens to it, `chaos/clients.rs` posts what is counted,
//! `chaos/mischief.rs` is everybody else, `chaos/books.rs` is what must hold in the end. Which faults come, in which
//! order and how the server is set up follows from the seed; what else happens in between is the machine's. The short
//! run of the ordinary tests has a new seed each time and prints it.

mod books;
mod clients;
mod faults;
mod gauge;
mod inbox;
mod mischief;
mod site;

use std::time::{Duration, Instant};

use support::draws::Draws;
use support::load::Log;
use support::paths;

use clients::Clients;
use mischief::Mischief;
use site::Site;

const SHORT_RUN: Duration = Duration::from_secs(30);
/// From so long a run on, every delivery must have arrived in the end: that takes the lease of a killed server's.
const LONG_RUN: Duration = Duration::from_secs(120);

#[test]
fn the_books_balance_whatever_happens() {
    let _alone = crate::alone();
    let duration =
        crate::number("MILLRACE_CHAOS_MINUTES").map_or(SHORT_RUN, |minutes| Duration::from_secs(minutes * 60));
    let seed = crate::number("MILLRACE_CHAOS_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    println!("seed {seed}, {duration:?}");
    let mut draws = Draws::new(seed);
    let log = Log::new();
    let mut site = Site::open(&mut draws, &log);
    let clients = Clients::start(&site, &log);
    let mischief = Mischief::start(&site, &draws.fork(1));

    let began = Instant::now();
    let mut deck: Vec<usize> = Vec::new();
    while began.elapsed() < duration {
        std::thread::sleep(draws.millis(300, 2500));
        // Every fault once before any comes again.
        if deck.is_empty() {
            deck = (0..faults::count()).collect();
        }
        let which = deck.swap_remove(draws.below(deck.len() as u64) as usize);
        site.assert_running();
        let (struck, accepted) = (Instant::now(), log.accepted());
        let name = faults::strike(which, &mut site, &mut draws);
        println!(
            "{:7.1} s  {name}, for {:.1} s; {} accepted meanwhile",
            struck.duration_since(began).as_secs_f64(),
            struck.elapsed().as_secs_f64(),
            log.accepted() - accepted
        );
    }
    clients.stop();
    let mischief = mischief.stop();
    site.settle(duration >= LONG_RUN);
    println!("{mischief}\n{}", site.paths);
    assert_eq!(mischief.admitted, 0, "what nobody could have meant was accepted");
    books::balance(&mut site, &log);
    println!("{}", site.gauge.report());
    println!("{:.0} accepted a second", log.accepted() as f64 / began.elapsed().as_secs_f64());
    if duration >= LONG_RUN {
        assert_eq!(site.paths.untaken(paths::OF_EVENTS), [""; 0], "the campaign did not go these ways");
    }
}
