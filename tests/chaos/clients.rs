//! Those whose events are counted: each posts one request after the other, follows the server to its new address, and
//! notes in the log what it was told.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::load::{Connection, Ids, Log};
use crate::site::{POISON, Site};

/// Clients of each organisation.
const EACH: usize = 3;
/// Between two requests of a client. Faults are what is tested here, not the rate: the whole log stays in memory.
const PAUSE: Duration = Duration::from_millis(15);

pub struct Clients {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Clients {
    pub fn start(site: &Site, log: &Arc<Log>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let tenants = [("hooked", &site.hooked.key), ("plain", &site.plain.key)];
        let threads = tenants.into_iter().flat_map(|tenant| [tenant; EACH]).map(|(kind, key)| {
            let (stop, log, address) = (Arc::clone(&stop), Arc::clone(log), site.address());
            let mut connection = Connection::new(address.get(), key);
            thread::spawn(move || {
                for turn in 0_u64.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    connection.move_to(address.get());
                    match turn % 40 {
                        // What comes of it is in the log.
                        0 => drop(connection.post_batch(&log, &[kind; 20], Ids::Both)),
                        1 => drop(connection.post_batch(&log, &[kind, kind, POISON, kind], Ids::Both)),
                        2 => drop(connection.post_event(&log, POISON, Ids::Both)),
                        _ => drop(connection.post_event(&log, kind, Ids::Both)),
                    }
                    thread::sleep(PAUSE);
                }
            })
        });
        let threads = threads.collect();
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
