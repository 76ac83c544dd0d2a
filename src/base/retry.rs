//! Waiting between attempts at something that another side refuses or does not answer.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// Sleeps for `pause`, waking early when `stop` is set.
pub fn sleep_unless(stop: &AtomicBool, pause: Duration) {
    const LOOK_INTERVAL: Duration = Duration::from_millis(50);
    let mut left = pause;
    while !left.is_zero() && !stop.load(Ordering::Relaxed) {
        let nap = left.min(LOOK_INTERVAL);
        thread::sleep(nap);
        left -= nap;
    }
}
