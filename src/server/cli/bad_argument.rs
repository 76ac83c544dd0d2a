//! Why the text of an argument is refused. Clap prints the argument, the text and this.

use std::fmt;
use std::time::Duration;

use millrace_base::limits;
use millrace_bench::limits as bench_limits;

use super::time::Time;

/// A text that its argument does not take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadArgument {
    /// The name of an organisation is empty or too long.
    NameLength,
    /// The name of an organisation has characters that are not allowed.
    NameCharacters,
    /// The name of an organisation could be taken for an id.
    NameLikeId,
    /// Not a limit of requests per minute.
    RateLimit,
    /// Neither such a limit nor `default`.
    RateLimitOrDefault,
    /// Not a time of at most this.
    TimeAtMost(Duration),
    /// Not a time between these two.
    TimeBetween(Duration, Duration),
    /// Not a rate of events.
    Pace,
    /// Not an event type.
    EventType,
    /// Not a status of deliveries.
    DeliveryStatus,
    /// Not a date and time.
    Timestamp,
}

impl fmt::Display for BadArgument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const PER_MINUTE: &str = "it must be a whole number of requests per minute, at most";
        let rate_limit_max = limits::RATE_LIMIT_PER_MINUTE_MAX;
        match self {
            Self::NameLength => write!(f, "it must have 1 to {} characters", limits::ORGANIZATION_NAME_CHARS_MAX),
            Self::NameCharacters => {
                f.write_str("it must not hold control characters, nor begin or end with white space")
            }
            Self::NameLikeId => f.write_str("it must not look like an id"),
            Self::RateLimit => write!(f, "{PER_MINUTE} {rate_limit_max}; 0 is unlimited"),
            Self::RateLimitOrDefault => {
                write!(f, "{PER_MINUTE} {rate_limit_max}; 0 is unlimited; `default` is the server's")
            }
            Self::TimeAtMost(max) => write!(f, "it must be a time of at most {}, such as 90s or 24h", Time(*max)),
            Self::TimeBetween(min, max) => write!(f, "a time from {min:?} to {max:?}, such as 500ms, 10s or 5m"),
            Self::Pace => write!(f, "events per second, 1 to {}, or max", bench_limits::RATE_MAX),
            Self::EventType => f.write_str("1-128 of A-Z a-z 0-9 _ . : / -"),
            Self::DeliveryStatus => f.write_str("it must be pending, delivered, failed or blocked"),
            Self::Timestamp => f.write_str("it must be an RFC 3339 time such as 2026-01-31T12:00:00Z"),
        }
    }
}

impl std::error::Error for BadArgument {}
