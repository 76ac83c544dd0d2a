//! When a failed delivery is tried again.

use std::time::Duration;

use crate::clock::Timestamp;

/// The pauses between attempts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetrySchedule(Vec<Duration>);

impl RetrySchedule {
    /// Reads pauses such as `5s,5m,30m,2h`.
    ///
    /// # Errors
    /// What would be right.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let _ = text;
        todo!()
    }

    /// When the attempt after `made` attempts of this round is due, at the earliest after what the receiver asked for;
    /// `None` where there is none any more. `random` is in 0..1.
    pub fn next_attempt(
        &self,
        made: u32,
        now: Timestamp,
        retry_after: Option<Duration>,
        random: f64,
    ) -> Option<Timestamp> {
        let _ = (made, now, retry_after, random);
        todo!()
    }
}
