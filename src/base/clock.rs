//! Wall-clock time as stored and shown: microseconds since the Unix epoch, UTC.
//!
//! Everything that measures a duration (limits, TTLs, backoff, deadlines) uses [`std::time::Instant`] instead, because the wall
//! clock may jump.

use std::sync::LazyLock;
use std::time::{Duration, Instant, SystemTime};

use serde::{Serialize, Serializer};
use time::format_description::well_known::Rfc3339;
use time::{Date, OffsetDateTime};

const MICROS_PER_DAY: i64 = 86_400_000_000;

/// Monotonic time that fits in an atomic: microseconds since the first call, 0 for anything before it.
pub fn micros_since_start(at: Instant) -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    at.saturating_duration_since(*START).as_micros() as u64
}

/// A point in time, in microseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    /// Later than any other.
    pub const MAX: Self = Self(i64::MAX);
    /// Earlier than any other.
    pub const MIN: Self = Self(i64::MIN);

    /// The current wall-clock time.
    pub fn now() -> Self {
        Self::from_system_time(SystemTime::now())
    }

    /// Converts from [`SystemTime`], at microsecond precision.
    pub fn from_system_time(at: SystemTime) -> Self {
        match at.duration_since(SystemTime::UNIX_EPOCH) {
            Ok(since) => Self(since.as_micros() as i64),
            Err(before) => Self(-(before.duration().as_micros() as i64)),
        }
    }

    /// From microseconds since the Unix epoch.
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// Microseconds since the Unix epoch.
    pub const fn as_micros(self) -> i64 {
        self.0
    }

    /// Days since the Unix epoch, in UTC: the partition the event belongs to.
    pub const fn day(self) -> Day {
        Day(self.0.div_euclid(MICROS_PER_DAY) as i32)
    }

    /// This time minus a duration.
    #[must_use]
    pub fn minus(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)))
    }

    /// This time plus a duration.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)))
    }

    /// One microsecond earlier.
    #[must_use]
    pub const fn just_before(self) -> Self {
        Self(self.0.saturating_sub(1))
    }

    /// One microsecond later.
    #[must_use]
    pub const fn just_after(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The time since `earlier`; zero if it is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// Parses an RFC 3339 date-time such as `2026-01-31T12:00:00Z`; `None` for anything else.
    pub fn parse_rfc3339(text: &str) -> Option<Self> {
        let at = OffsetDateTime::parse(text, &Rfc3339).ok()?;
        i64::try_from(at.unix_timestamp_nanos().div_euclid(1000)).ok().map(Self)
    }

    /// RFC 3339 in UTC with microseconds, such as `2026-01-31T12:00:00.000000Z`.
    pub fn to_rfc3339(self) -> String {
        let Ok(at) = OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.0) * 1000) else {
            return format!("{}us", self.0);
        };
        let (hour, minute, second, micro) = at.to_hms_micro();
        let (year, month, day) = (at.year(), u8::from(at.month()), at.day());
        format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micro:06}Z")
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_rfc3339())
    }
}

/// The clock that decides which old rows are deleted. A wrong wall clock must not delete rows, since they do not come back
/// when it is corrected. So a wall clock that is ahead of the time the process has run is believed only a day later.
#[derive(Debug)]
pub struct RetentionClock {
    believed: (Timestamp, Instant),
    /// Since when the wall clock is ahead.
    ahead_since: Option<Instant>,
}

impl RetentionClock {
    /// How far the wall clock may be ahead, as after a pause of the machine.
    const SLACK: Duration = Duration::from_secs(3600);
    /// How long it must be ahead before it is believed.
    const DOUBT: Duration = Duration::from_secs(24 * 3600);

    /// Believes the first time that it is given.
    pub fn new(now: Timestamp, at: Instant) -> Self {
        Self { believed: (now, at), ahead_since: None }
    }

    /// The time to use when the wall clock says `now`.
    pub fn time(&mut self, now: Timestamp, at: Instant) -> Timestamp {
        let (believed, since) = self.believed;
        let lived = believed.plus(at.saturating_duration_since(since));
        let is_ahead = now > lived.plus(Self::SLACK);
        if is_ahead && at.saturating_duration_since(*self.ahead_since.get_or_insert(at)) < Self::DOUBT {
            return lived;
        }
        self.ahead_since = None;
        self.believed = (now, at);
        now
    }
}

/// A UTC calendar day, counted from 1970-01-01.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Day(i32);

impl Day {
    /// The day `days` later (earlier where negative).
    #[must_use]
    pub const fn offset(self, days: i32) -> Self {
        Self(self.0 + days)
    }

    /// Midnight UTC at the start of this day.
    pub const fn start(self) -> Timestamp {
        Timestamp(self.0 as i64 * MICROS_PER_DAY)
    }

    /// `YYYYMMDD`, as partition names carry it.
    pub fn compact(self) -> String {
        let epoch = Date::from_ordinal_date(1970, 1).expect("1970-001 is a date");
        match epoch.checked_add(time::Duration::days(i64::from(self.0))) {
            Some(date) => {
                let (year, month, day) = date.to_calendar_date();
                format!("{year:04}{:02}{day:02}", u8::from(month))
            }
            None => format!("d{}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc3339_round_trips_at_microsecond_precision() {
        for text in ["2026-11-24T02:33:15.123456Z", "1970-01-01T00:00:00.000000Z", "2400-02-29T23:59:59.999999Z"] {
            assert_eq!(Timestamp::parse_rfc3339(text).unwrap().to_rfc3339(), text);
        }
        assert_eq!(
            Timestamp::parse_rfc3339("2026-01-01T01:00:00+01:00"),
            Timestamp::parse_rfc3339("2026-01-01T00:00:00Z")
        );
        for bad in ["", "yesterday", "2026-13-01T00:00:00Z", "2026-01-01"] {
            assert_eq!(Timestamp::parse_rfc3339(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_clock_that_is_set_forward_deletes_nothing_for_a_day() {
        const HOUR: u64 = 3600;
        let (begin, start) = (Timestamp::from_micros(0), Instant::now());
        let mut clock = RetentionClock::new(begin, start);
        // Hours lived, what the clock says, what is believed.
        for (lived, says, believed) in [
            (1, 1, 1),
            (2, 3, 3),
            (3, 9600, 4),
            (4, 9601, 5),
            // Set right again.
            (5, 5, 5),
            (6, 9600, 6),
            (29, 9623, 29),
            (30, 9624, 9624),
            (31, 100, 100),
            (32, 101, 101),
        ] {
            let at = start + Duration::from_secs(lived * HOUR);
            let time = clock.time(begin.plus(Duration::from_secs(says * HOUR)), at);
            assert_eq!(time.since(begin).as_secs(), believed * HOUR, "{lived}");
        }
    }

    #[test]
    fn a_day_starts_at_midnight_utc() {
        let last = Timestamp::parse_rfc3339("2026-02-28T23:59:59.999999Z").unwrap();
        assert_eq!(last.day().compact(), "20260228");
        assert_eq!(last.day().offset(1).compact(), "20260301");
        assert_eq!(last.day().offset(1).start().as_micros(), last.as_micros() + 1);
        assert_eq!(Timestamp::from_micros(-1).day().compact(), "19691231");
    }
}
