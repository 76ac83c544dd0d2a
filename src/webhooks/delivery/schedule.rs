//! The retry schedule: when a failed delivery is attempted again. Pure: the caller passes time and randomness.
//!
//! Each pause is jittered by up to a fifth in both directions, so that deliveries that failed together are not retried
//! together.
//!
//! Limits: [`limits::WEBHOOK_RETRIES_MAX`] pauses of 1 s to [`limits::WEBHOOK_RETRY_PAUSE_MAX`]; a receiver may ask for at most
//! [`limits::WEBHOOK_RETRY_AFTER_MAX`].

use std::fmt;
use std::time::Duration;

use millrace_base::clock::Timestamp;
use millrace_base::limits;
use millrace_base::quantity::Unit;

/// The pauses between the attempts of a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetrySchedule {
    /// Whole seconds.
    pauses: Vec<Duration>,
    /// 0 to 100.
    jitter_percent: u8,
}

impl RetrySchedule {
    /// Parses pauses such as `5s,5m,30m,2h`. An empty text means no retries.
    ///
    /// # Errors
    /// The rule that the text breaks.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let jitter_percent = limits::WEBHOOK_RETRY_JITTER_PERCENT;
        if text.trim().is_empty() {
            return Ok(Self { pauses: Vec::new(), jitter_percent });
        }
        if text.split(',').count() > limits::WEBHOOK_RETRIES_MAX {
            return Err("must be at most 30 pauses");
        }
        let pauses = text.split(',').map(|entry| parse_pause(entry.trim()));
        let pauses = pauses.collect::<Option<_>>().ok_or(
            "must be pauses of 1s to 7d, separated by commas, with the units s, m, h and d: 5s,5m,30m,2h; empty is no \
             retries",
        )?;
        Ok(Self { pauses, jitter_percent })
    }

    /// The same pauses with another jitter, in percent of each pause; 0 is none.
    ///
    /// # Panics
    /// If it is above 100, because a pause would be negative.
    #[must_use]
    pub fn with_jitter_percent(self, jitter_percent: u8) -> Self {
        assert!(jitter_percent <= 100, "a pause is not negative");
        Self { jitter_percent, ..self }
    }

    /// The number of attempts in a round, including the first.
    pub fn attempts_max(&self) -> u32 {
        self.pauses.len() as u32 + 1
    }

    /// The sort key of "longer": more attempts, then more time in all, then longer pauses at the beginning. Two different
    /// schedules are never equal by it.
    pub fn length(&self) -> (usize, Duration, &[Duration]) {
        (self.pauses.len(), self.pauses.iter().sum(), &self.pauses)
    }

    /// The longest time between two attempts: the longest pause with full jitter, or what a receiver may ask for.
    pub fn pause_max(&self) -> Duration {
        let longest = self.pauses.iter().map(|pause| self.spread(*pause, 1.0)).max().unwrap_or_default();
        longest.max(limits::WEBHOOK_RETRY_AFTER_MAX)
    }

    /// When the next attempt is due after `made` attempts of this round, not before `retry_after` has passed. `None` after the
    /// last attempt. `random` is in 0..1.
    pub fn next_attempt(
        &self,
        made: u32,
        now: Timestamp,
        retry_after: Option<Duration>,
        random: f64,
    ) -> Option<Timestamp> {
        let pause = match made.checked_sub(1) {
            None => Duration::ZERO,
            Some(retry) => self.spread(*self.pauses.get(retry as usize)?, random),
        };
        let asked = retry_after.unwrap_or_default().min(limits::WEBHOOK_RETRY_AFTER_MAX);
        Some(now.plus(pause.max(asked)))
    }

    fn spread(&self, pause: Duration, random: f64) -> Duration {
        let part = f64::from(self.jitter_percent) / 100.0;
        pause.mul_f64(1.0 + part * (2.0 * random.clamp(0.0, 1.0) - 1.0))
    }
}

impl Default for RetrySchedule {
    fn default() -> Self {
        Self::parse(limits::WEBHOOK_RETRY_SCHEDULE_DEFAULT).expect("a test reads the default")
    }
}

impl fmt::Display for RetrySchedule {
    /// In the syntax of [`RetrySchedule::parse`], each pause in the largest unit that divides it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, pause) in self.pauses.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            write!(f, "{comma}{}", Unit::Seconds.show(pause.as_secs()))?;
        }
        Ok(())
    }
}

/// Digits and a unit, nothing else.
fn parse_pause(text: &str) -> Option<Duration> {
    let digits = text.strip_suffix(['d', 'h', 'm', 's'])?;
    let is_plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    let pause = Duration::from_secs(Unit::Seconds.parse(text).filter(|_| is_plain)?);
    (Duration::from_secs(1)..=limits::WEBHOOK_RETRY_PAUSE_MAX).contains(&pause).then_some(pause)
}

// The error texts above contain these limits.
const _: () = assert!(limits::WEBHOOK_RETRIES_MAX == 30 && limits::WEBHOOK_RETRY_PAUSE_MAX.as_secs() == 7 * 86_400);

#[cfg(test)]
mod tests {
    use super::*;

    const START: Timestamp = Timestamp::from_micros(1_700_000_000_000_000);

    fn since_start(at: Timestamp) -> Duration {
        Duration::from_micros((at.as_micros() - START.as_micros()) as u64)
    }

    #[test]
    fn the_default_schedule_has_ten_attempts() {
        let schedule = RetrySchedule::default().with_jitter_percent(0);
        let (mut now, mut made, mut offsets) = (START, 0, Vec::new());
        while let Some(due) = schedule.next_attempt(made, now, None, 0.99) {
            (now, made) = (due, made + 1);
            offsets.push(since_start(now).as_secs());
        }
        assert_eq!(offsets, [0, 5, 305, 2105, 9305, 27_305, 63_305, 113_705, 185_705, 272_105]);
        assert_eq!(made, schedule.attempts_max());
        assert_eq!(schedule.next_attempt(u32::MAX, now, Some(Duration::from_secs(1)), 0.5), None);
    }

    #[test]
    fn pauses_are_spread_evenly_to_both_sides() {
        let schedule = RetrySchedule::parse("100s").unwrap();
        for (random, seconds) in [(0.0, 80), (0.25, 90), (0.5, 100), (0.75, 110), (1.0, 120), (-9.0, 80), (9.0, 120)] {
            let due = schedule.next_attempt(1, START, None, random).unwrap();
            assert_eq!(since_start(due).as_secs_f64().round() as u64, seconds, "{random}");
        }
        let everywhere = schedule.with_jitter_percent(100);
        assert_eq!(everywhere.next_attempt(1, START, None, 0.0), Some(START));
    }

    #[test]
    fn retry_after_is_the_shortest_pause_up_to_a_day() {
        let schedule = RetrySchedule::parse("5m").unwrap().with_jitter_percent(0);
        let day = 86_400;
        for (asked, seconds) in [(0, 300), (299, 300), (301, 301), (day, day), (day + 1, day), (u64::MAX, day)] {
            let due = schedule.next_attempt(1, START, Some(Duration::from_secs(asked)), 0.0).unwrap();
            assert_eq!(since_start(due), Duration::from_secs(seconds), "{asked}");
        }
        // `Retry-After` adds no attempts to the schedule.
        assert_eq!(schedule.next_attempt(2, START, Some(Duration::from_secs(1)), 0.0), None);
    }

    #[test]
    fn no_pause_exceeds_pause_max() {
        let day = Duration::from_secs(86_400);
        for (text, longest) in [("", day), ("5s", day), ("5s,7d,1s", 7 * day * 6 / 5)] {
            let schedule = RetrySchedule::parse(text).unwrap();
            assert_eq!(schedule.pause_max(), longest);
            for made in 0..4 {
                let due = schedule.next_attempt(made, START, Some(9 * day), 1.0);
                assert!(due.is_none_or(|due| since_start(due) <= longest));
            }
        }
    }

    #[test]
    fn texts_are_read_and_written_back() {
        for (text, shown, attempts) in [
            (limits::WEBHOOK_RETRY_SCHEDULE_DEFAULT, "5s,5m,30m,2h,5h,10h,14h,20h,1d", 10),
            ("", "", 1),
            (" ", "", 1),
            ("1s", "1s", 2),
            (" 60s , 3600s,90s,086400s ", "1m,1h,90s,1d", 5),
            ("7d,168h,604800s", "7d,7d,7d", 4),
            (&["1s"; 30].join(","), &["1s"; 30].join(","), 31),
        ] {
            let schedule = RetrySchedule::parse(text).unwrap();
            assert_eq!(schedule.to_string(), shown);
            assert_eq!(schedule.attempts_max(), attempts, "{text}");
            assert_eq!(RetrySchedule::parse(shown), Ok(schedule));
        }
    }

    #[test]
    fn refusals_say_what_would_be_right() {
        let junk = ["5", "s", "5s,", ",5s", "5s,,5s", "0s", "-5s", "+5s", "5 s", "5S", "1.5h", "5ms", "5sec", "٥s"];
        for text in junk.into_iter().chain(["8d", "604801s", "99999999999999999999d", "18446744073709551615h"]) {
            assert!(RetrySchedule::parse(text).unwrap_err().contains("1s to 7d"), "{text}");
        }
        assert!(RetrySchedule::parse(&["1s"; 31].join(",")).unwrap_err().contains("30"));
    }
}
