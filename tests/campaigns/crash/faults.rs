//! What happens to a round, in the order in which rounds come by it. The short run of the ordinary tests gets to the
//! fourth of each store.

use std::io::Write;
use std::thread::sleep;
use std::time::Duration;

use support::database::{DATABASE_FAULTS, DatabaseFault, LATE_POISON};
use support::draws::Draws;
use support::load::{Connection, Ids};
use support::oracle;
use support::sentences::{Away, Bye, Moment};
use support::server::eventually;

use crate::crash::round::Round;

pub struct Fault {
    pub name: &'static str,
    /// Without a journal what is in memory may be lost.
    pub needs_journal: bool,
    pub needs_small_disk: bool,
    strike: Strike,
}

#[derive(Clone, Copy)]
enum Strike {
    Database(DatabaseFault),
    Round(fn(&mut Round<'_>, &mut Draws)),
}

impl Fault {
    const fn kind(name: &'static str, strike: fn(&mut Round<'_>, &mut Draws)) -> Self {
        Self { name, needs_journal: false, needs_small_disk: false, strike: Strike::Round(strike) }
    }

    const fn journaled(name: &'static str, strike: fn(&mut Round<'_>, &mut Draws)) -> Self {
        Self { name, needs_journal: true, needs_small_disk: false, strike: Strike::Round(strike) }
    }

    const fn on_small_disk(name: &'static str, strike: fn(&mut Round<'_>, &mut Draws)) -> Self {
        Self { name, needs_journal: true, needs_small_disk: true, strike: Strike::Round(strike) }
    }

    pub fn strike(&self, round: &mut Round<'_>, draws: &mut Draws) {
        match self.strike {
            Strike::Round(strike) => strike(round, draws),
            Strike::Database((_, strike)) => {
                let (cluster, database) = round.postgres();
                strike(cluster, database, draws);
            }
        }
    }
}

/// Those of a round on Postgres.
pub fn on_postgres() -> Vec<Fault> {
    let of_database = |fault: &DatabaseFault| Fault {
        name: fault.0,
        needs_journal: false,
        needs_small_disk: false,
        strike: Strike::Database(*fault),
    };
    let mut all: Vec<Fault> = DATABASE_FAULTS.iter().map(of_database).collect();
    let early = [Fault::journaled("the server is killed", kill), Fault::kind("a commit is refused", refuse_at_commit)];
    all.splice(2..2, early);
    all.extend([
        Fault::journaled("the server is killed twice", kill_twice),
        Fault::journaled("Postgres is killed, then the server", |round, draws| {
            round.postgres().0.kill();
            draws.pause(400);
            round.kill_server();
            round.stop_load();
            round.postgres().0.start();
            round.start_server(draws);
        }),
        Fault::journaled("the server is stopped without Postgres", |round, draws| {
            without_postgres(round, draws, false, |round, _| round.end_server());
        }),
        Fault::journaled("the server is killed, the next one stopped, without Postgres", |round, draws| {
            without_postgres(round, draws, true, |round, draws| {
                round.kill_server();
                round.start_unready(draws);
                draws.pause(300);
                round.end_server()
            });
        }),
        Fault::kind("the server is stopped under load", stop_under_load),
    ]);
    all
}

/// Those of a round on the embedded store.
pub fn on_sqlite() -> Vec<Fault> {
    vec![
        Fault::journaled("the server is killed", kill),
        Fault::kind("another process holds the write lock", |round, draws| {
            let lock = oracle::sqlite(round.data_dir());
            lock.execute_batch("BEGIN IMMEDIATE").expect("the lock is free in the end");
            let from = Moment::now();
            sleep(draws.millis(300, 2500));
            round.away(Away { from, until: Moment::now() });
            lock.execute_batch("ROLLBACK").expect("it is ours");
        }),
        Fault::journaled("the server is killed twice", kill_twice),
        Fault::on_small_disk("the disk is full", |round, draws| {
            let full = fill_disk(round);
            draws.pause(1000);
            std::fs::remove_file(full).expect("it is there");
            draws.pause(500);
        }),
        Fault::kind("the server is stopped under load", stop_under_load),
        Fault::on_small_disk("the disk is full, and the server is killed", |round, draws| {
            let full = fill_disk(round);
            draws.pause(500);
            round.kill_server();
            round.stop_load();
            std::fs::remove_file(full).expect("it is there");
            round.start_server(draws);
        }),
    ]
}

fn kill(round: &mut Round<'_>, draws: &mut Draws) {
    round.kill_server();
    round.stop_load();
    round.start_server(draws);
}

/// And once more while it recovers.
fn kill_twice(round: &mut Round<'_>, draws: &mut Draws) {
    round.kill_server();
    round.stop_load();
    round.start_unready(draws);
    draws.pause(80);
    round.kill_server();
    round.start_server(draws);
}

fn stop_under_load(round: &mut Round<'_>, draws: &mut Draws) {
    let bye = round.end_server();
    round.stop_load();
    let missing = round.missing();
    let is_so = match bye {
        Bye::Stored => missing == 0,
        // What was spilled is for the next start. Whoever got no answer may have an event in the journal, too.
        Bye::Journaled(events) => {
            round.spills() && (missing..=missing + round.log.unanswered()).contains(&(events as usize))
        }
        Bye::Uncounted { .. } => round.spills() && bye.may_hold(missing as u64),
        Bye::Silence => false,
    };
    assert!(
        is_so,
        "{missing} events are missing with the database there, and the server says {bye:?}: {}",
        round.server_log()
    );
    round.start_server(draws);
}

/// Ten events by COPY, one of which is refused when the transaction commits: again and again.
fn refuse_at_commit(round: &mut Round<'_>, _: &mut Draws) {
    const TIMES: usize = 20;
    round.stop_load();
    round.everything_stored();
    let mut types = ["early"; 10];
    types[4] = LATE_POISON;
    let mut connection = Connection::new(round.address(), round.plain_key());
    for _ in 0..TIMES {
        connection.post_batch(&round.log, &types, Ids::Made).expect("it is accepted");
        round.everything_stored();
    }
    let (cluster, database) = round.postgres();
    let count = |sql: &str| -> i64 { database.admin(cluster).query_one(sql, &[]).expect("an answer").get(0) };
    let stored = count("SELECT count(*) FROM events WHERE type = 'early'");
    let quarantined = count(&format!("SELECT count(*) FROM quarantined_events WHERE type = '{LATE_POISON}'"));
    println!(
        "    {TIMES} times nine good events and one that the commit refuses: {stored} stored, {quarantined} quarantined"
    );
    round.expect(stored == 9 * TIMES as i64 && quarantined == TIMES as i64);
}

/// The database is gone, with everything stored; more is accepted; then the server ends, and what it says is so.
fn without_postgres(
    round: &mut Round<'_>,
    draws: &mut Draws,
    is_killed: bool,
    end_server: impl FnOnce(&mut Round<'_>, &mut Draws) -> Bye,
) {
    round.stop_load();
    round.everything_stored();
    let stored_before = round.log.accepted();
    round.postgres().0.stop();
    round.start_load();
    draws.pause(600);
    round.stop_load();
    let missing = (round.log.accepted() - stored_before) as u64;
    let bye = end_server(round, draws);
    round.postgres().0.start();
    println!("    {missing} events are not in the database; the server ends with {bye:?}");
    assert!(missing > 0, "a journal takes something");
    // Who comes after a kill cannot know what of a segment is stored: it counts all of it.
    let most = if is_killed { round.log.accepted() as u64 } else { missing };
    let is_so = match bye {
        Bye::Journaled(events) => (missing..=most).contains(&events),
        Bye::Uncounted { .. } => bye.may_hold(missing),
        Bye::Stored | Bye::Silence => false,
    };
    assert!(is_so, "{missing} events are missing, and the server says {bye:?}:\n{}", round.server_log());
    round.start_server(draws);
}

/// Fills the disk of the data directory and waits until that hurts. Returns what takes the room.
fn fill_disk(round: &mut Round<'_>) -> std::path::PathBuf {
    let ballast = round.data_dir().parent().expect("the disk").join("ballast");
    let mut file = std::fs::File::create(&ballast).expect("a file");
    for size in [64 * 1024, 4096, 512] {
        while file.write_all(&vec![1; size]).is_ok() {}
    }
    eventually("the full disk is noticed", || {
        round.server_log().contains("is full")
            || round.log.refusals().contains_key(&(503, "journal_unavailable".to_owned()))
    });
    sleep(Duration::from_millis(200));
    ballast
}
