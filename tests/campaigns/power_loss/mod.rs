//! Power loss: whatever a client was promised comes back, whenever the power goes and whatever the disk then makes of
//! what was not synchronised.
//!
//! `power_loss/sim_disk.rs` is the disk, `power_loss/lives.rs` one case on it with the real journal. Asserted in each:
//! LOST = promised, not stored and not replayed; ALTERED = replayed and not as it was sent; PHANTOM = refused, or never
//! sent, and replayed: all three are none. The power goes in service, while the journal is read back, and while it is
//! closed.
//!
//! `MILLRACE_POWER_LOSS_CASES` sets how many cases are run, `MILLRACE_POWER_LOSS_SEED` runs one again and again: its plan
//! is always the same, what its threads make of it is not.

mod lives;
mod random;
mod sim_disk;

use std::io::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use lives::Tally;
use sim_disk::Honesty;

const CASES: u64 = 2000;
/// Times a single seed is repeated.
const REPEATS: u64 = 50;
/// Cases at a time: most of a case is waiting for the journal's threads.
const AT_A_TIME: usize = 6;

/// Runs a case for each of `seeds`; the failed ones with what went wrong.
fn run_all(seeds: &[u64], honesty: Honesty) -> (Tally, Vec<(u64, String)>) {
    let (next, is_failed) = (AtomicU64::new(0), AtomicBool::new(false));
    let done = Mutex::new((Tally::default(), Vec::new()));
    thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                while let Some(seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed) as usize)
                    && !is_failed.load(Ordering::Relaxed)
                {
                    let result = named(*seed, || lives::run(*seed, honesty));
                    let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                    match result {
                        Ok(tally) => done.0.add(&tally),
                        Err(why) => {
                            done.1.push((*seed, why));
                            // Of an honest disk one is enough; of the others some must be found.
                            is_failed.store(honesty == Honesty::Honest, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    done.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// A panic in one of the journal's threads ends the process: the seeds that run must be known by then.
fn named<T>(seed: u64, run: impl FnOnce() -> T) -> T {
    static RUNNING: Mutex<Vec<u64>> = Mutex::new(Vec::new());
    static HOOK: std::sync::Once = std::sync::Once::new();
    let running = || RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let seeds = RUNNING.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let _ = writeln!(std::io::stderr(), "in one of the seeds {seeds:?}: {info}");
            before(info);
        }));
    });
    running().push(seed);
    let result = run();
    running().retain(|other| *other != seed);
    result
}

#[test]
fn what_was_promised_survives_every_power_loss() {
    let _alone = crate::alone();
    let seeds: Vec<u64> = match crate::number("MILLRACE_POWER_LOSS_SEED") {
        Some(seed) => vec![seed; crate::number("MILLRACE_POWER_LOSS_CASES").unwrap_or(REPEATS) as usize],
        None => (0..crate::number("MILLRACE_POWER_LOSS_CASES").unwrap_or(CASES)).collect(),
    };
    let (tally, failed) = run_all(&seeds, Honesty::Honest);
    println!("{tally:?}");
    if let Some((seed, why)) = failed.first() {
        panic!("MILLRACE_POWER_LOSS_SEED={seed} repeats this:\n{why}");
    }
    if seeds.len() as u64 >= CASES {
        let Tally { cuts_in_replay, promised, refused, unknown, replayed, .. } = tally;
        let seldom = cuts_in_replay.min(promised).min(refused).min(unknown).min(replayed);
        assert!(seldom > seeds.len() as u64 / 20, "the cases miss something: {tally:?}");
    }
}

/// The checks above can fail: they do where the disk does not do what it says.
#[test]
fn a_disk_that_lies_is_found_out() {
    let _alone = crate::alone();
    let seeds: Vec<u64> = (1_000_000..1_000_060).collect();
    for honesty in [Honesty::ForgetsData, Honesty::ForgetsNames] {
        let (_, failed) = run_all(&seeds, honesty);
        let lost = failed.iter().filter(|(_, why)| why.starts_with("LOST")).count();
        assert!(lost >= 10, "{honesty:?}: {lost} of {} cases lost something", seeds.len());
    }
}
