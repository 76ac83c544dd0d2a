//! Those whose events are counted: each posts one request after the other, follows the server to its new address, and
//! notes in the log what it was told.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use support::database::{LATE_POISON, POISON};
use support::load::{Connection, Ids, Log, Turn};

use crate::chaos::site::Site;

/// Clients of each organisation.
const EACH: usize = 3;
/// Between two requests of a client.
const PAUSE: Duration = Duration::from_millis(15);
/// Clients that post by the hundred, for one organisation, and their pause: 2,200 events/s, about what a debug build stores
/// with a small queue, so that what is spilled does not grow for as long as the run lasts. The whole log stays in memory.
const BULK: usize = 2;
const BULK_PAUSE: Duration = Duration::from_millis(90);

pub struct Clients {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Clients {
    pub fn start(site: &Site, log: &Arc<Log>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let tenants = [("hooked", Turn::Hooked, &site.hooked.key), ("plain", Turn::Plain, &site.plain.key)];
        let threads = tenants.into_iter().flat_map(|tenant| [tenant; EACH]).map(|(kind, whose, key)| {
            let (stop, log, address) = (Arc::clone(&stop), Arc::clone(log), site.address());
            let mut connection = Connection::new(address.get(), key);
            thread::spawn(move || {
                for turn in 0_u64.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    if !whose.is_now() {
                        thread::sleep(PAUSE);
                        continue;
                    }
                    connection.move_to(address.get());
                    match turn % 40 {
                        // What comes of it is in the log.
                        0 => drop(connection.post_batch(&log, &[kind; 20], Ids::Both)),
                        1 => drop(connection.post_batch(&log, &[kind, kind, POISON, kind], Ids::Both)),
                        2 => drop(connection.post_event(&log, POISON, Ids::Both)),
                        3 => drop(connection.post_batch(&log, &[kind, kind, LATE_POISON, kind], Ids::Made)),
                        _ => drop(connection.post_event(&log, kind, Ids::Both)),
                    }
                    thread::sleep(PAUSE);
                }
            })
        });
        let bulk = (0..BULK).map(|_| {
            let (stop, log, address) = (Arc::clone(&stop), Arc::clone(log), site.address());
            let mut connection = Connection::new(address.get(), &site.plain.key);
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    connection.move_to(address.get());
                    drop(connection.post_bulk(&log, "plain", 100));
                    thread::sleep(BULK_PAUSE);
                }
            })
        });
        let threads = threads.chain(bulk).collect();
        Self { stop, threads }
    }

    /// Waits for the last answers.
    pub fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("every answer has the right shape");
        }
    }
}
