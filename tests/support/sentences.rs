//! What the server says in its log, held against what was so at that moment.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use millrace_journal::record::RECORD_HEADER_BYTES;

/// An outage; that some events cannot be stored while others are is said in other words.
const CANNOT: [&str; 3] = [
    ": events cannot be stored; trying again",
    ": events cannot be stored until this is fixed",
    ": every event is refused",
];
const AGAIN: &str = "events are being stored again";
/// What was stored a moment before may be said a moment later: nothing that is said so soon after is held against it.
const GRACE: Duration = Duration::from_secs(1);

/// Microseconds since the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(u64);

impl Moment {
    pub fn now() -> Self {
        Self(SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_micros() as u64)
    }

    /// So many microseconds since the epoch.
    pub fn micros(self) -> u64 {
        self.0
    }

    /// When a line was written: it begins with `2026-11-29T10:35:10.123456Z`.
    pub fn of(line: &str) -> Option<Self> {
        let part = |from: usize, to: usize| line.get(from..to)?.parse::<u64>().ok();
        let (year, month, day) = (part(0, 4)?, part(5, 7)?, part(8, 10)?);
        // Days since 1970 of a date of the Gregorian calendar, its years begun in March.
        let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
        let days = year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day - 1 - 719_468;
        let seconds = (part(11, 13)? * 60 + part(14, 16)?) * 60 + part(17, 19)?;
        Some(Self((days * 86_400 + seconds) * 1_000_000 + part(20, 26)?))
    }
}

/// When nothing could be stored.
#[derive(Clone, Copy, Debug)]
pub struct Away {
    pub from: Moment,
    pub until: Moment,
}

/// What a server says last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bye {
    /// Everything accepted is stored.
    Stored,
    /// So many events are in the journal for the next start.
    Journaled(u64),
    /// Events are there, in segments of so many bytes that were not read back; there was no time to count them.
    Uncounted { unread_bytes: u64 },
    /// Nothing of this.
    Silence,
}

impl Bye {
    /// Whether what it says leaves room for so many events that are not in the database.
    pub fn may_hold(&self, missing: u64) -> bool {
        match self {
            Bye::Stored | Bye::Silence => missing == 0,
            Bye::Journaled(events) => missing <= *events,
            Bye::Uncounted { unread_bytes } => missing <= unread_bytes / RECORD_HEADER_BYTES as u64,
        }
    }
}

/// The last words in a log.
pub fn bye(log: &str) -> Bye {
    let Some(line) = log.lines().rev().find(|line| line.ends_with("bye") || line.contains("bye seconds=")) else {
        return Bye::Silence;
    };
    if line.contains("everything accepted is stored") {
        return Bye::Stored;
    }
    assert!(line.contains("in the journal for the next start"), "{line}");
    let count = |name| line.split_whitespace().find_map(|word| word.strip_prefix(name)?.parse::<u64>().ok());
    // Of those that were not read back some may be stored.
    match (count("unread_bytes="), count("unread_events=")) {
        (Some(unread_bytes), None) => Bye::Uncounted { unread_bytes },
        (_, unread) => Bye::Journaled(count("events=").expect("a count") + unread.unwrap_or(0)),
    }
}

fn says_cannot(line: &str) -> bool {
    CANNOT.iter().any(|words| line.contains(words))
}

/// How often it was said that events cannot be stored, and that they are stored again.
pub fn outage_lines(log: &str) -> (usize, usize) {
    (log.lines().filter(|line| says_cannot(line)).count(), log.matches(AGAIN).count())
}

/// Panics where what was said about storing events was not so: "stored again" while nothing could be stored; "cannot be
/// stored" as the last word, with everything stored; either much more often than there was a reason.
pub fn check(log: &str, away: &[Away], blows: usize, is_everything_stored: bool) {
    let said = |line: &str| says_cannot(line) || line.contains(AGAIN);
    for line in log.lines().filter(|line| line.contains(AGAIN)) {
        let at = Moment::of(line).expect("lines begin with the time");
        let lie = away.iter().find(|away| at.0 > away.from.0 + GRACE.as_micros() as u64 && at < away.until);
        assert!(lie.is_none(), "nothing could be stored from {lie:?}, and yet: {line}\n{log}");
    }
    if let Some(last) = log.lines().rev().find(|line| is_everything_stored && said(line)) {
        assert!(last.contains(AGAIN), "everything is stored, and the last that was said is: {last}");
    }
    let (cannot, again) = outage_lines(log);
    let most = 4 + 2 * blows;
    assert!(again <= most, "{blows} blows, and {cannot} times events could not be stored, {again} times again:\n{log}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_line_is_read() {
        let at = |line| Moment::of(line).map(|moment| moment.0);
        assert_eq!(at("1970-01-01T00:00:00.000001Z  INFO x"), Some(1));
        assert_eq!(at("2026-11-29T10:35:10.123456Z  INFO x"), Some(1_795_948_510_123_456));
        assert_eq!(at("2024-02-29T23:59:59.999999Z  INFO x"), Some(1_709_251_199_999_999));
        assert_eq!(at("thread panicked"), None);
    }
}
