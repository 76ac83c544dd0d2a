//! Two shards in this process, each behind a port of its own, with a journal on a disk that fails as it is told.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use crossbeam_channel::bounded;
use tempfile::TempDir;

use millrace_base::limits;
use millrace_ingest::shard::{self, IoDriver, SharedState};
use millrace_journal::disk::Disk;
use millrace_journal::queue::{Accepted, queue};
use millrace_journal::segment::SEGMENT_BYTES_MIN;
use millrace_journal::{Journal, JournalConfig, Replayed};
use millrace_metrics::Metrics;
use support::in_process::InProcess;
use support::lanes::PATIENCE;
use support::server::{Client, Response, event, request, sample};

use crate::journal::errors::faulty_disk::{Fault, FaultyDisk};

pub const SHARDS: usize = 2;

/// Of a journal whose segments are small.
pub fn config() -> JournalConfig {
    JournalConfig {
        shards: SHARDS,
        is_synchronised: true,
        segment_bytes: SEGMENT_BYTES_MIN as u64,
        bytes_max: limits::JOURNAL_BYTES_MAX_DEFAULT,
        is_store_here: false,
    }
}

/// Everything that a server started on this directory reads back: payloads by event id.
pub fn replay(directory: &TempDir) -> (Replayed, BTreeMap<String, String>) {
    let disk = Disk::open(directory.path()).unwrap();
    let journal = Journal::start(Arc::new(disk), JournalConfig { shards: 0, ..config() }, &Metrics::new(1)).unwrap();
    let (queue, accepted) = queue(limits::QUEUE_EVENTS_DEFAULT);
    let replayed = journal.replay(&queue, &AtomicBool::new(false)).unwrap();
    let found = accepted.receiver.try_iter();
    let found = found.map(|event| (event.id.to_string(), String::from_utf8(event.payload().to_vec()).unwrap()));
    let found = found.collect();
    journal.end();
    (replayed, found)
}

/// What was sent and what was answered.
#[derive(Default)]
pub struct Told {
    sent: u64,
    /// Payloads by id.
    pub accepted: BTreeMap<String, String>,
    /// Payloads.
    pub refused: Vec<String>,
}

impl Told {
    /// A payload that nothing else has, of at least `len` bytes.
    pub fn payload(&mut self, len: usize) -> String {
        self.sent += 1;
        format!("\"{:06}{}\"", self.sent, "x".repeat(len))
    }

    /// Notes an answer to `payload` and returns its status, or 0 where there was none.
    pub fn note(&mut self, payload: String, answer: Option<&Response>) -> u16 {
        match answer {
            None => 0,
            Some(answer) if answer.status == 202 => {
                self.accepted.insert(answer.id(), payload);
                202
            }
            Some(answer) => {
                self.refused.push(payload);
                answer.status
            }
        }
    }
}

/// See the module.
pub struct Shards {
    pub disk: FaultyDisk,
    pub journal: Arc<Journal>,
    pub accepted: Accepted,
    pub told: Told,
    addrs: Vec<SocketAddr>,
    key: String,
    metrics: Arc<Metrics>,
    draining: Arc<AtomicBool>,
    directory: TempDir,
}

impl Shards {
    pub fn start(surroundings: &InProcess, fault: Option<Fault>) -> Self {
        Self::start_with(surroundings, fault, config(), limits::QUEUE_EVENTS_DEFAULT)
    }

    pub fn start_with(
        surroundings: &InProcess,
        fault: Option<Fault>,
        config: JournalConfig,
        queue_capacity: usize,
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let disk = FaultyDisk::new(directory.path(), fault);
        let metrics = Metrics::new(SHARDS);
        let journal = Journal::start(Arc::new(disk.clone()), config, &metrics).unwrap();
        let (queue, accepted) = queue(queue_capacity);
        journal.open();
        let draining = Arc::new(AtomicBool::new(false));
        let state = SharedState {
            batch_keys: Arc::default(),
            queue,
            journal: Some(Arc::clone(&journal)),
            metrics: Arc::clone(&metrics),
            draining: Arc::clone(&draining),
            ..surroundings.shared.clone()
        };
        let addrs = (0..SHARDS).map(|index| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let addr = listener.local_addr().unwrap();
            let (state, (started, report)) = (state.clone(), bounded(1));
            thread::spawn(move || shard::run(index, listener, state, IoDriver::Auto, &started));
            report.recv().unwrap().unwrap();
            addr
        });
        let addrs = addrs.collect();
        let key = surroundings.key.reveal().to_owned();
        Self { disk, journal, accepted, told: Told::default(), addrs, key, metrics, draining, directory }
    }

    pub fn connect(&self, shard: usize) -> Client {
        Client::connect(self.addrs[shard])
    }

    /// The bytes of a request to post an event with this payload.
    pub fn request(&self, payload: &str) -> Vec<u8> {
        request("POST", "/api/events", Some(&self.key), Some(event("t", None, payload).as_bytes()))
    }

    /// Plays the writers: stores everything that is in the queue.
    pub fn store(&mut self) {
        for event in self.accepted.receiver.try_iter() {
            self.journal.segment_refs().commit(std::slice::from_ref(&event));
            self.accepted.slots.release(std::slice::from_ref(&event), event.weight());
            self.told.accepted.remove(&event.id.to_string());
        }
    }

    /// The bytes of a request to post a batch.
    pub fn batch(&self, payloads: &[&str]) -> Vec<u8> {
        let events: Vec<String> = payloads.iter().map(|payload| event("t", None, payload)).collect();
        request("POST", "/api/events/batch", Some(&self.key), Some(format!("[{}]", events.join(",")).as_bytes()))
    }

    /// Posts an event of at least `len` bytes through a connection of its own; the answer, if there was one.
    pub fn try_post(&mut self, shard: usize, len: usize) -> Option<Response> {
        let mut client = self.connect(shard);
        let payload = self.told.payload(len);
        client.send(&self.request(&payload));
        let answer = client.try_receive(false);
        self.told.note(payload, answer.as_ref());
        answer
    }

    /// The same, of which only the status matters; 0 where the connection was closed without a word.
    pub fn post(&mut self, shard: usize, len: usize) -> u16 {
        self.try_post(shard, len).map_or(0, |answer| answer.status)
    }

    pub fn metric(&self, name: &str) -> f64 {
        sample(std::str::from_utf8(&self.metrics.render()).unwrap(), name)
    }

    /// How many segments there are on disk.
    pub fn segments(&self) -> usize {
        let names = std::fs::read_dir(&self.directory).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name.to_str().unwrap().ends_with(".segment")).count()
    }

    /// Ends the journal; what a start on its directory finds must be what clients were told.
    pub fn check(self) -> Replayed {
        self.draining.store(true, Ordering::Relaxed);
        self.disk.let_go();
        self.journal.close(Instant::now() + PATIENCE);
        self.journal.end();
        let (replayed, found) = replay(&self.directory);
        for (id, payload) in &self.told.accepted {
            assert_eq!(found.get(id), Some(payload), "{id} was accepted");
        }
        for payload in &self.told.refused {
            assert!(found.values().all(|found| found != payload), "{payload} was refused");
        }
        assert_eq!(self.disk.retried(), 0, "a file was used after it had failed");
        replayed
    }
}
