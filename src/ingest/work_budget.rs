//! Turns: how much a task may do in a row before the others of its shard have theirs.
//!
//! Run by the shard's tasks, each for itself. A client that never lets the server wait (it pipelines, or asks for large
//! documents) could keep a shard busy by itself, with a handful of connections and without a key. So work is counted, and
//! who has had [`limits::TURN_WORK_MAX`] of it within [`limits::TURN_TIME_MIN`] rests. One that waits for each answer before it
//! asks again has hardly any of it and does not rest, however fast it is; nobody is refused.

use std::future::{Future, poll_fn};
use std::mem::take;
use std::pin::pin;
use std::time::{Duration, Instant};

use millrace_base::limits;

/// Lets all others have their turn, other connections and the runtime's timers; until the next tick of the runtime's clock, a millisecond at most.
///
/// Not a mere yield: the runtime puts a task that wakes itself at the head of its queue, and looks at its timers, and at
/// what the kernel has ready for others, only when no task is.
pub(super) async fn rest() {
    monoio::time::sleep(Duration::ZERO).await;
}

/// What a future comes to, and whether it had to be waited for.
pub(super) async fn awaited<T>(future: impl Future<Output = T>) -> (T, bool) {
    let mut future = pin!(future);
    let mut has_waited = false;
    let output = poll_fn(|context| {
        let polled = future.as_mut().poll(context);
        has_waited |= polled.is_pending();
        polled
    })
    .await;
    (output, has_waited)
}

/// One client's turn.
#[derive(Debug)]
pub(super) struct Turn {
    /// In units of [`limits::TURN_WORK_MAX`].
    work: u32,
    began_at: Instant,
    /// Whether others could run since.
    has_waited: bool,
    /// The next request is the first that a read brought which had to be waited for: its client waits for each answer, or
    /// others had their turn just before.
    is_next_free: bool,
}

impl Turn {
    pub(super) fn begin() -> Self {
        Self { work: 0, began_at: Instant::now(), has_waited: false, is_next_free: false }
    }

    /// Counts a read of so many bytes; one that had to be waited for let others run, and is no work but its bytes.
    pub(super) fn read(&mut self, bytes: usize, has_waited: bool) {
        self.has_waited |= has_waited;
        self.is_next_free = has_waited;
        self.work(u32::from(!has_waited), bytes);
    }

    /// Counts a request and the bytes of its answer.
    pub(super) fn answer(&mut self, bytes: usize) {
        let one = u32::from(!take(&mut self.is_next_free));
        self.work(one, bytes);
    }

    fn work(&mut self, one: u32, bytes: usize) {
        let pages = u32::try_from(bytes / limits::TURN_UNIT_BYTES).unwrap_or(u32::MAX);
        self.work = self.work.saturating_add(one).saturating_add(pages);
    }

    /// Rests where the turn is over.
    pub(super) async fn rest_if_over(&mut self) {
        if self.work >= limits::TURN_WORK_MAX {
            if !self.is_slow(Instant::now()) {
                // Boxed: hardly any connection ever rests, and each would keep the room for it.
                Box::pin(rest()).await;
            }
            *self = Self::begin();
        }
    }

    /// Whether the work took its time and others had theirs in between.
    fn is_slow(&self, now: Instant) -> bool {
        self.has_waited && now.saturating_duration_since(self.began_at) >= limits::TURN_TIME_MIN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waited_and_took_long_has_not_kept_others_waiting() {
        let (short, long) = (limits::TURN_TIME_MIN / 2, limits::TURN_TIME_MIN);
        for (has_waited, took, is_slow) in
            [(false, short, false), (false, long, false), (true, short, false), (true, long, true)]
        {
            let mut turn = Turn::begin();
            turn.read(1, has_waited);
            assert_eq!(turn.is_slow(turn.began_at + took), is_slow, "{has_waited} {took:?}");
        }
    }

    #[test]
    fn work_is_what_a_client_has_without_waiting_for_it() {
        const PAGE: usize = limits::TURN_UNIT_BYTES;
        let mut turn = Turn::begin();
        for (bytes, has_waited, expected) in [(9, true, 0), (9, false, 1), (PAGE, true, 2), (PAGE * 3 - 1, false, 5)] {
            turn.read(bytes, has_waited);
            assert_eq!(turn.work, expected, "a read of {bytes}");
        }
        for (bytes, expected) in [(0, 6), (PAGE - 1, 7), (PAGE, 9)] {
            turn.answer(bytes);
            assert_eq!(turn.work, expected, "an answer of {bytes}");
        }
        turn.read(9, true);
        for (bytes, expected) in [(0, 9), (0, 10), (PAGE, 12), (usize::MAX, u32::MAX)] {
            turn.answer(bytes);
            assert_eq!(turn.work, expected, "the first that was waited for is free, and {bytes}");
        }
    }
}
