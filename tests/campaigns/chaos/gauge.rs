//! What the servers use: memory and descriptors, looked at from outside while they run.

use std::fmt::Write as _;
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

const INTERVAL: Duration = Duration::from_millis(200);
/// Of a server that is not optimised: its queue (10,000 events of these tests are about 5 MB), 8 writers' batches, the
/// buffers of about a hundred connections, SQLite and Argon2 left unused. The most of 164 servers was 261.
const RESIDENT_MIB_MAX: u64 = 320;
/// The clients' connections, those to the database and the receiver, the journal.
const DESCRIPTORS_MAX: u64 = 400;
/// The same when the clients are gone.
const DESCRIPTORS_SETTLED_MAX: u64 = 200;

#[derive(Clone, Copy, Debug, Default)]
struct Use {
    resident_mib: u64,
    descriptors: u64,
}

impl Use {
    fn of(pid: u32) -> Option<Self> {
        let statm = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
        let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count() as u64;
        Some(Self { resident_mib: (pages * rustix::param::page_size() as u64) >> 20, descriptors })
    }
}

/// The most that the present server used, and before it the others.
#[derive(Default)]
struct Record {
    lives: Vec<Use>,
    settled: Option<Use>,
}

pub struct Gauge {
    pid: Arc<AtomicU32>,
    record: Arc<Mutex<Record>>,
    stop: Arc<AtomicBool>,
    watcher: Option<JoinHandle<()>>,
}

impl Gauge {
    pub fn start(pid: u32) -> Self {
        let record = Arc::new(Mutex::new(Record { lives: vec![Use::default()], settled: None }));
        let (pid, stop) = (Arc::new(AtomicU32::new(pid)), Arc::new(AtomicBool::new(false)));
        let shared = (Arc::clone(&pid), Arc::clone(&record), Arc::clone(&stop));
        let watcher = thread::spawn(move || {
            let (pid, record, stop) = shared;
            while !stop.load(Ordering::Relaxed) {
                let now = Use::of(pid.load(Ordering::Relaxed));
                if let (Some(now), Some(most)) = (now, record.lock().unwrap().lives.last_mut()) {
                    most.resident_mib = most.resident_mib.max(now.resident_mib);
                    most.descriptors = most.descriptors.max(now.descriptors);
                }
                thread::sleep(INTERVAL);
            }
        });
        Self { pid, record, stop, watcher: Some(watcher) }
    }

    /// From now on another server is watched.
    pub fn watch(&self, pid: u32) {
        let mut record = self.record.lock().unwrap();
        record.lives.push(Use::default());
        self.pid.store(pid, Ordering::Relaxed);
    }

    /// The clients are gone and everything is stored.
    pub fn settle(&self) {
        self.record.lock().unwrap().settled = Use::of(self.pid.load(Ordering::Relaxed));
    }

    /// What was used, checked against what may be.
    pub fn report(&self) -> String {
        let record = self.record.lock().unwrap();
        let most = |of: fn(&Use) -> u64| record.lives.iter().map(of).max().unwrap_or_default();
        let (resident, descriptors) = (most(|used| used.resident_mib), most(|used| used.descriptors));
        let settled = record.settled.expect("the server was there to the end");
        let mut text =
            format!("{} servers: at most {resident} MiB resident, {descriptors} descriptors", record.lives.len());
        let _ = write!(text, "; at the end {} MiB, {} descriptors", settled.resident_mib, settled.descriptors);
        assert!(resident <= RESIDENT_MIB_MAX && descriptors <= DESCRIPTORS_MAX, "{text}");
        assert!(settled.descriptors <= DESCRIPTORS_SETTLED_MAX, "{text}");
        text
    }
}

impl Drop for Gauge {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(watcher) = self.watcher.take() {
            let _ = watcher.join();
        }
    }
}
