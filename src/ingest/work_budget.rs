//! How much work a connection may do before it yields to the other tasks of its shard.
//!
//! A client that never lets the server wait (it pipelines, or asks for large documents) could keep a shard busy with a
//! handful of connections, even without a key. So each connection counts its work: requests that were already buffered,
//! reads that did not have to wait, and bytes. A connection that spends [`limits::WORK_BUDGET_MAX`] within
//! [`limits::WORK_BUDGET_TIME_MIN`] sleeps until the next tick of the runtime's clock. It is throttled, not rejected. A
//! client that waits for each response before it sends the next request spends almost nothing, however fast it is.

use std::future::{Future, poll_fn};
use std::mem::take;
use std::pin::pin;
use std::time::{Duration, Instant};

use millrace_base::limits;

/// Lets other tasks and the runtime's timers run, until the next tick of the runtime's clock: a millisecond at most.
///
/// A task that just wakes itself does not do: the runtime puts it at the head of its queue, and looks at its timers and
/// at ready I/O only when the queue is empty.
pub(super) async fn yield_now() {
    monoio::time::sleep(Duration::ZERO).await;
}

/// The output of a future, and whether it was ever pending.
pub(super) async fn track_wait<T>(future: impl Future<Output = T>) -> (T, bool) {
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

/// The budget of one connection.
#[derive(Debug)]
pub(super) struct WorkBudget {
    /// Work done so far; [`limits::WORK_BUDGET_MAX`] is the whole budget.
    work: u32,
    began_at: Instant,
    /// Whether other tasks could run since.
    has_waited: bool,
    /// Whether the next request costs nothing: it is the first of a read that had to wait, so its client waits for
    /// responses, or other tasks have just run.
    is_next_free: bool,
}

impl WorkBudget {
    pub(super) fn begin() -> Self {
        Self { work: 0, began_at: Instant::now(), has_waited: false, is_next_free: false }
    }

    /// Counts a read of so many bytes. A read that had to wait costs only its bytes, because other tasks ran meanwhile.
    pub(super) fn read(&mut self, bytes: usize, has_waited: bool) {
        self.has_waited |= has_waited;
        self.is_next_free = has_waited;
        self.work(u32::from(!has_waited), bytes);
    }

    /// Counts a request and the bytes of its response.
    pub(super) fn answer(&mut self, bytes: usize) {
        let one = u32::from(!take(&mut self.is_next_free));
        self.work(one, bytes);
    }

    fn work(&mut self, one: u32, bytes: usize) {
        let pages = u32::try_from(bytes / limits::WORK_UNIT_BYTES).unwrap_or(u32::MAX);
        self.work = self.work.saturating_add(one).saturating_add(pages);
    }

    /// Yields if the budget is spent, and starts a new one.
    pub(super) async fn yield_if_spent(&mut self) {
        if self.work >= limits::WORK_BUDGET_MAX {
            if !self.is_slow(Instant::now()) {
                // Boxed: few connections ever get here, and each would carry the state of the sleep.
                Box::pin(yield_now()).await;
            }
            *self = Self::begin();
        }
    }

    /// Whether the work was spread over enough time, with other tasks running in between.
    fn is_slow(&self, now: Instant) -> bool {
        self.has_waited && now.saturating_duration_since(self.began_at) >= limits::WORK_BUDGET_TIME_MIN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_spread_over_time_does_not_yield() {
        let (short, long) = (limits::WORK_BUDGET_TIME_MIN / 2, limits::WORK_BUDGET_TIME_MIN);
        for (has_waited, took, is_slow) in
            [(false, short, false), (false, long, false), (true, short, false), (true, long, true)]
        {
            let mut budget = WorkBudget::begin();
            budget.read(1, has_waited);
            assert_eq!(budget.is_slow(budget.began_at + took), is_slow, "{has_waited} {took:?}");
        }
    }

    #[test]
    fn only_work_that_did_not_wait_is_counted() {
        const PAGE: usize = limits::WORK_UNIT_BYTES;
        let mut budget = WorkBudget::begin();
        for (bytes, has_waited, expected) in [(9, true, 0), (9, false, 1), (PAGE, true, 2), (PAGE * 3 - 1, false, 5)] {
            budget.read(bytes, has_waited);
            assert_eq!(budget.work, expected, "a read of {bytes}");
        }
        for (bytes, expected) in [(0, 6), (PAGE - 1, 7), (PAGE, 9)] {
            budget.answer(bytes);
            assert_eq!(budget.work, expected, "an answer of {bytes}");
        }
        budget.read(9, true);
        for (bytes, expected) in [(0, 9), (0, 10), (PAGE, 12), (usize::MAX, u32::MAX)] {
            budget.answer(bytes);
            assert_eq!(budget.work, expected, "the first that was waited for is free, and {bytes}");
        }
    }
}
