//! Gathers events into batches, closed by count, by bytes, or by the age of the first event.
//!
//! One writer gathers at a time and holds the leader lock; the others wait for it, or store. While a batch gathers, its writer
//! sleeps in short naps instead of waiting inside the channel, so the shards' sends find nobody to wake and cost no system call.
//! Under load a batch fills before it ages; when idle, one writer waits in the channel and the rest stay asleep.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};

use millrace_base::event::Event;
use millrace_base::limits;

use super::batch_size::BatchSize;

/// How long the gathering writer sleeps between looks at the channel.
const NAP: Duration = Duration::from_millis(1);
/// How often the idle writer checks whether the gatherer was closed.
const CLOSE_CHECK_INTERVAL: Duration = Duration::from_millis(50);
const _: () = assert!(NAP.as_nanos() < limits::STORE_BATCH_AGE_MAX.as_nanos());

/// Events to be stored together.
#[derive(Debug)]
pub struct Batch {
    /// The events, oldest first.
    pub events: Vec<Event>,
    /// Their weight in bytes.
    pub bytes: usize,
    /// When the first was taken off the queue.
    pub opened_at: Instant,
}

impl Batch {
    fn open(first: Event) -> Self {
        let mut batch = Self { events: Vec::new(), bytes: 0, opened_at: Instant::now() };
        batch.push(first);
        batch
    }

    fn push(&mut self, event: Event) {
        self.bytes += event.weight();
        self.events.push(event);
    }

    fn is_full(&self, size: &BatchSize) -> bool {
        let most = size.most();
        self.events.len() >= most.events || self.bytes >= most.bytes
    }
}

/// The result of waiting for a batch.
#[derive(Debug)]
pub enum Gathered {
    /// A batch.
    Batch(Batch),
    /// Other work wants the writer.
    Interrupted,
    /// The gatherer is closed and the queue is empty.
    Ended,
}

/// The writers' shared end of the queue.
pub struct Gatherer {
    /// Held by the writer that gathers.
    leader_lock: Mutex<Receiver<Event>>,
    /// Set by the main thread once no shard offers any more.
    is_closed: AtomicBool,
    size: BatchSize,
}

impl Gatherer {
    /// Gathers from `receiver`.
    pub fn new(receiver: Receiver<Event>) -> Self {
        Self { leader_lock: Mutex::new(receiver), is_closed: AtomicBool::new(false), size: BatchSize::default() }
    }

    /// No more events will be offered: [`Self::gather`] ends when the queue is empty.
    pub fn close(&self) {
        self.is_closed.store(true, Ordering::Release);
    }

    /// The bounds of a batch.
    pub fn size(&self) -> &BatchSize {
        &self.size
    }

    /// Blocks until there is a batch; `None` once the gatherer is closed and the queue is empty.
    pub fn gather(&self) -> Option<Batch> {
        match self.gather_unless(|| false) {
            Gathered::Batch(batch) => Some(batch),
            Gathered::Interrupted | Gathered::Ended => None,
        }
    }

    /// Like [`Self::gather`], but returns soon without a batch if there is none and the writer `is_wanted` elsewhere.
    pub fn gather_unless(&self, is_wanted: impl Fn() -> bool) -> Gathered {
        let receiver = self.leader_lock.lock().unwrap_or_else(PoisonError::into_inner);
        let mut batch = match self.first(&receiver, is_wanted) {
            Ok(first) => Batch::open(first),
            Err(other) => return other,
        };
        let deadline = batch.opened_at + limits::STORE_BATCH_AGE_MAX;
        loop {
            while !batch.is_full(&self.size) {
                match receiver.try_recv() {
                    Ok(event) => batch.push(event),
                    Err(_) => break,
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if batch.is_full(&self.size) || left.is_zero() {
                return Gathered::Batch(batch);
            }
            thread::sleep(left.min(NAP));
        }
    }

    fn first(&self, receiver: &Receiver<Event>, is_wanted: impl Fn() -> bool) -> Result<Event, Gathered> {
        loop {
            if is_wanted() {
                return Err(Gathered::Interrupted);
            }
            // Read before the channel, so that everything offered before the close is still found. Once closed there is
            // nothing to wait for: every writer comes here once more, one after the other.
            if self.is_closed.load(Ordering::Acquire) {
                return receiver.try_recv().map_err(|_| Gathered::Ended);
            }
            match receiver.recv_timeout(CLOSE_CHECK_INTERVAL) {
                Ok(event) => return Ok(event),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(Gathered::Ended),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use millrace_base::clock::Timestamp;
    use millrace_base::event::{EventId, OrgId};

    use super::*;

    fn event(n: u128, payload_bytes: usize) -> Event {
        let id = EventId(Uuid::from_u128(n));
        Event::new(id, OrgId(Uuid::nil()), Timestamp::from_micros(0), "t", None, &vec![b'1'; payload_bytes])
    }

    #[test]
    fn batches_close_by_count_by_bytes_and_by_age_in_order() {
        let (sender, receiver) = crossbeam_channel::unbounded();
        let count = limits::STORE_BATCH_EVENTS_MAX as u128 + 5;
        (0..count).for_each(|n| sender.send(event(n, 1)).unwrap());
        (0..40).for_each(|n| sender.send(event(n, limits::PAYLOAD_BYTES_MAX)).unwrap());
        let gatherer = Gatherer::new(receiver);
        gatherer.close();
        let by_count = gatherer.gather().unwrap();
        assert_eq!(by_count.events.len(), limits::STORE_BATCH_EVENTS_MAX);
        assert!(by_count.events.iter().enumerate().all(|(n, e)| e.id.0.as_u128() == n as u128));
        let by_bytes = gatherer.gather().unwrap();
        assert!(by_bytes.bytes >= limits::STORE_BATCH_BYTES_MAX);
        assert!(by_bytes.bytes < limits::STORE_BATCH_BYTES_MAX + limits::EVENT_BODY_BYTES_MAX);
        let by_age = gatherer.gather().unwrap();
        assert_eq!(by_bytes.events.len() + by_age.events.len(), 45);
        assert!(gatherer.gather().is_none());
    }
}
