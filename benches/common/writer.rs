//! The other end of the queue: gathers batches exactly as a writer does, and forgets them.

use std::sync::Arc;
use std::thread::{self, JoinHandle};

use millrace_base::limits;
use millrace_journal::queue::{Accepted, Slots};
use millrace_write::gather::Gatherer;

/// One writer thread without a database.
pub struct Writer {
    gatherer: Arc<Gatherer>,
    slots: Arc<Slots>,
    thread: JoinHandle<usize>,
}

impl Writer {
    /// Starts taking events.
    pub fn start(accepted: Accepted) -> Self {
        let gatherer = Arc::new(Gatherer::new(accepted.receiver));
        let (gathering, slots) = (Arc::clone(&gatherer), Arc::clone(&accepted.slots));
        let thread = thread::spawn(move || {
            let mut taken = 0;
            while let Some(batch) = gathering.gather() {
                taken += batch.events.len();
                slots.release(&batch.events, batch.bytes);
            }
            taken
        });
        Self { gatherer, slots: accepted.slots, thread }
    }

    /// Waits until `events` more will not fill one organisation's share of the queue, whatever the scheduler does meanwhile.
    pub fn wait_for_room(&self, events: usize) {
        while self.slots.events() + events > limits::QUEUE_EVENTS_DEFAULT * 8 / 9 {
            thread::yield_now();
        }
    }

    /// Takes the rest and ends. Returns how many events there were in all.
    pub fn finish(self) -> usize {
        self.gatherer.close();
        self.thread.join().expect("a thread that only counts")
    }
}
