//! Every operation of the journal fails once, one after the other.
//!
//! A case is one run of a journal: it reads back what the case before left, stores it, and takes events on both lanes
//! through several segments. Cases go on until there was no operation of the kind left to fail.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use libc::{EIO, ENOSPC};
use tempfile::TempDir;
use uuid::Uuid;

use millrace_base::clock::Timestamp;
use millrace_base::event::{Event, EventId, OrgId};
use millrace_base::limits;
use millrace_journal::queue::queue;
use millrace_journal::segment::SEGMENT_BYTES_MIN;
use millrace_journal::{AppendError, Journal};
use millrace_metrics::Metrics;
use support::lanes::{Lanes, PATIENCE};
use support::server::sample;

use crate::journal::errors::faulty_disk::{Fault, FaultyDisk, Kind, Of};
use crate::journal::errors::fixture::{SHARDS, config, replay};

const CASES_MAX: u64 = 60;
const ROUNDS: usize = 18;

/// What is known of all events of a sweep.
#[derive(Default)]
struct Log {
    sent: u64,
    /// Payloads of what is promised and not stored.
    promised: HashMap<EventId, String>,
    refused: HashSet<EventId>,
}

impl Log {
    fn event(&mut self, len: usize) -> Event {
        self.sent += 1;
        let (id, org) = (EventId(Uuid::from_u128(self.sent.into())), OrgId(Uuid::from_u128(7)));
        Event::new(id, org, Timestamp::now(), "sweep", None, payload(id, len).as_bytes())
    }
}

fn payload(id: EventId, len: usize) -> String {
    format!("{id}{}", "x".repeat(len))
}

/// Takes an event on `shard` and waits for what becomes of it.
fn take(log: &mut Log, lanes: &mut Lanes, shard: usize, len: usize) -> Option<AppendError> {
    let event = log.event(len);
    let (id, payload) = (event.id, payload(event.id, len));
    let mut outcome = lanes.accept(shard, event).err().map(AppendError::Refused);
    lanes.settle(|_, trouble| outcome = trouble).expect("everything is settled");
    match outcome {
        None => drop(log.promised.insert(id, payload)),
        Some(AppendError::Refused(_)) => drop(log.refused.insert(id)),
        Some(AppendError::Unknown) => {}
    }
    outcome
}

/// One run. Returns whether the fault came to be.
fn case(directory: &TempDir, log: &mut Log, fault: Fault) -> bool {
    let disk = FaultyDisk::new(directory.path(), Some(fault));
    let metrics = Metrics::new(SHARDS);
    let Ok(journal) = Journal::start(Arc::new(disk.clone()), config(), &metrics) else {
        assert_eq!(disk.failed(), 1, "{fault:?}");
        return true;
    };
    let (queue, accepted) = queue(limits::QUEUE_EVENTS_DEFAULT);
    let is_replayed = journal.replay(&queue, &AtomicBool::new(false)).is_ok();
    assert!(is_replayed || disk.failed() == 1, "{fault:?}");
    if is_replayed {
        let replayed: Vec<Event> = accepted.receiver.try_iter().collect();
        journal.segment_refs().commit(&replayed);
        for event in &replayed {
            log.promised.remove(&event.id);
        }
        assert!(log.promised.is_empty(), "{fault:?}: lost {:?}", log.promised.keys());
        journal.open();
        work(&journal, &disk, log, &mut Lanes::new(&journal, SHARDS, &queue, false), fault);
    }
    journal.close(Instant::now() + PATIENCE);
    journal.end();
    let failures = ["io", "no_space"].map(|reason| format!("journal_failures_total{{reason=\"{reason}\"}}"));
    let scrape = String::from_utf8(metrics.render()).unwrap();
    let counted = failures.map(|name| sample(&scrape, &name) as u64);
    let expected = if fault.errno == EIO { [disk.failed(), 0] } else { [0, disk.failed()] };
    // A segment that is not needed any more and stays is no failure; it is renamed, too.
    let is_always_counted = matches!(fault.kind, Kind::Create | Kind::Allocate | Kind::Write | Kind::Sync)
        || fault.kind == Kind::Rename && fault.of == Of::Making;
    assert!(counted == expected || !is_always_counted, "{fault:?}: {counted:?}");
    assert_eq!(disk.retried(), 0, "{fault:?}: a file was used after it had failed");
    disk.failed() > 0
}

fn work(journal: &Journal, disk: &FaultyDisk, log: &mut Log, lanes: &mut Lanes, fault: Fault) {
    // Whether an event came to nothing known.
    let mut is_unknown = false;
    for round in 0..ROUNDS {
        for shard in 0..SHARDS {
            let len = if round % 4 == 3 { SEGMENT_BYTES_MIN * 2 / 5 } else { 10 + round * 400 };
            let outcome = take(log, lanes, shard, len);
            if is_unknown && fault.errno == EIO {
                assert!(matches!(outcome, Some(AppendError::Refused(_))), "{fault:?}: {outcome:?} after a failure");
            }
            if outcome == Some(AppendError::Unknown) {
                assert!(!is_unknown && disk.failed() == 1, "{fault:?}");
                is_unknown = true;
            }
        }
    }
    let begun = Instant::now();
    for shard in 0..SHARDS {
        while fault.errno == ENOSPC || !is_unknown {
            match take(log, lanes, shard, 10) {
                None => break,
                Some(AppendError::Unknown) => is_unknown = true,
                Some(AppendError::Refused(_)) => std::thread::sleep(Duration::from_millis(5)),
            }
            assert!(begun.elapsed() < PATIENCE, "{fault:?}: shard {shard} does not recover");
        }
    }
    assert_eq!(journal.has_failed(), is_unknown && fault.errno == EIO, "{fault:?}");
}

fn sweep(kind: Kind, of: Of, errno: i32) {
    let directory = tempfile::tempdir().unwrap();
    let mut log = Log::default();
    let fault = |nth| Fault { kind, of, nth, lasts: false, errno };
    // Leaves something to be read and removed.
    assert!(!case(&directory, &mut log, fault(u64::MAX)));
    for nth in 1..=CASES_MAX {
        let fault = fault(nth);
        let has_failed = case(&directory, &mut log, fault);
        let (replayed, found) = replay(&directory);
        assert_eq!(replayed.lost, 0, "{fault:?}: what nobody was promised is not missing");
        for (id, payload) in &log.promised {
            assert_eq!(found.get(&id.to_string()), Some(payload), "{fault:?}: {id} was promised");
        }
        for id in &log.refused {
            assert!(!found.contains_key(&id.to_string()), "{fault:?}: {id} was refused");
        }
        log.refused.clear();
        if !has_failed {
            assert!(nth > 1, "{fault:?} never came to be");
            return;
        }
    }
}

#[test]
fn any_operation_may_fail_with_an_input_output_error() {
    sweep_all(EIO);
}

#[test]
fn any_operation_may_find_the_disk_full() {
    sweep_all(ENOSPC);
}

fn sweep_all(errno: i32) {
    use Kind::{Allocate, Create, List, Read, Remove, Rename, Sync, SyncDirectory, Write};
    let kinds = [List, Create, Allocate, Write, Sync, Read, Rename, Remove, SyncDirectory];
    let sweeps = kinds.map(|kind| (kind, Of::Any)).into_iter().chain([(Rename, Of::Making)]);
    // Most of a case is waiting for the disk, or for the journal's next attempt.
    std::thread::scope(|scope| sweeps.for_each(|(kind, of)| drop(scope.spawn(move || sweep(kind, of, errno)))));
}
