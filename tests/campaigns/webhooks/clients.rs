//! Those who post: a client for each organisation, some by the hundred, some in batches, most one event at a time, to
//! either server in turns.
//!
//! The rate of most is fixed. Those by the hundred post as fast as the machine carries it, up to 2,000 events/s together:
//! only while what they posted arrives at their good receivers.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock, RwLockWriteGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use support::load::{Address, Connection, Ids, Log, Told};

use crate::webhooks::inbox::Inbox;
use crate::webhooks::site::Tenant;

/// What events are.
pub const TYPES: [&str; 4] = ["order.made", "order.paid", "user.new", "misc"];

/// Between two requests of a client.
const PAUSE: Duration = Duration::from_millis(100);
/// Those who post by the hundred.
const BULK: usize = 2;
/// Of their events so many may be under way.
const UNDER_WAY_MAX: usize = 2000;

pub struct Clients {
    /// Whether they do so; otherwise their rate is fixed, too.
    is_full: Arc<AtomicBool>,
    /// Held for writing, nobody posts.
    gate: Arc<RwLock<()>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Clients {
    /// `inboxes` are those of their good receivers, which get everything.
    pub fn start(tenants: &[Tenant], inboxes: &[Arc<Inbox>], addresses: &[Address; 2], log: &Arc<Log>) -> Self {
        let (gate, stop) = (Arc::<RwLock<()>>::default(), Arc::<AtomicBool>::default());
        let is_full = Arc::<AtomicBool>::default();
        let tenants_max = tenants.len();
        let threads = tenants.iter().enumerate().map(|(number, tenant)| {
            let connections = addresses.each_ref().map(|address| Connection::new(address.get(), &tenant.key));
            let (log, inbox) = (Arc::clone(log), Arc::clone(&inboxes[number]));
            let mut client = Client { number, addresses: addresses.clone(), connections, log, inbox, accepted: 0 };
            let (gate, stop, is_full) = (Arc::clone(&gate), Arc::clone(&stop), Arc::clone(&is_full));
            thread::spawn(move || {
                let mut due = Instant::now() + PAUSE.mul_f64(number as f64 / tenants_max as f64);
                for turn in 0_usize.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    thread::sleep(due.saturating_duration_since(Instant::now()));
                    // What could not be posted in time is left out: the rate is never higher than meant.
                    let is_full = is_full.load(Ordering::Relaxed);
                    due = (due + client.interval(is_full)).max(Instant::now());
                    let _open = gate.read().unwrap();
                    if !is_full || !client.is_ahead() {
                        client.post(turn);
                    }
                }
            })
        });
        let threads = threads.collect();
        Self { is_full, gate, stop, threads }
    }

    /// From now on those who can post as fast as the machine carries it.
    pub fn post_in_full(&self) {
        self.is_full.store(true, Ordering::Relaxed);
    }

    /// Waits for the answers that are under way; as long as this is held nobody posts.
    pub fn pause(&self) -> RwLockWriteGuard<'_, ()> {
        self.gate.write().unwrap()
    }

    /// Waits for the last answers.
    pub fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().expect("every answer has the right shape");
        }
    }
}

struct Client {
    number: usize,
    addresses: [Address; 2],
    connections: [Connection; 2],
    log: Arc<Log>,
    inbox: Arc<Inbox>,
    /// Of those by the hundred.
    accepted: usize,
}

impl Client {
    /// Between two requests.
    fn interval(&self, is_full: bool) -> Duration {
        if self.number < BULK && !is_full { 5 * PAUSE } else { PAUSE }
    }

    /// Whether what it posted by the hundred does not arrive as fast.
    fn is_ahead(&self) -> bool {
        self.accepted > self.inbox.events() + UNDER_WAY_MAX
    }

    /// To one of the servers, and to the other where that is not there.
    fn post(&mut self, turn: usize) {
        for which in [turn % 2, (turn + 1) % 2] {
            self.connections[which].move_to(self.addresses[which].get());
            if self.post_to(which, turn) != Told::Unsent {
                return;
            }
        }
    }

    fn post_to(&mut self, which: usize, turn: usize) -> Told {
        let (connection, log) = (&mut self.connections[which], &self.log);
        let told = |whole: Result<(), Told>| whole.err().unwrap_or(Told::Accepted(String::new()));
        match self.number {
            number if number < BULK => {
                let whole = connection.post_bulk(log, TYPES[turn % TYPES.len()], 100);
                self.accepted += if whole.is_ok() { 100 } else { 0 };
                told(whole)
            }
            2..6 if turn.is_multiple_of(10) => {
                let types: Vec<&str> = TYPES.into_iter().cycle().take(20).collect();
                told(connection.post_batch(log, &types, Ids::Both))
            }
            _ => connection.post_event(log, TYPES[turn % TYPES.len()], Ids::Both),
        }
    }
}
