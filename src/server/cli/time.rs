//! Times on the command line, in the form of the settings: `90s`, `24h`; a bare number counts seconds.

use std::fmt;
use std::time::Duration;

use millrace_base::quantity::Unit;

use super::bad_argument::BadArgument;

/// A time that prints itself in that form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Time(pub Duration);

impl fmt::Display for Time {
    /// In whole seconds.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&Unit::Seconds.show(self.0.as_secs()))
    }
}

/// Reads a time of at most `max`.
pub fn up_to(max: Duration) -> impl Fn(&str) -> Result<Time, BadArgument> + Clone + Send + Sync + 'static {
    move |text| {
        let time = Unit::Seconds.parse(text).map(Duration::from_secs).filter(|time| *time <= max);
        time.map(Time).ok_or(BadArgument::TimeAtMost(max))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_a_unit_or_is_in_seconds() {
        let read = up_to(Duration::from_secs(86_400));
        for (text, seconds) in [("0", 0), ("90", 90), ("90s", 90), ("24h", 86_400), ("1d", 86_400)] {
            assert_eq!(read(text), Ok(Time(Duration::from_secs(seconds))));
        }
        for text in ["", "soon", "-1", "1.5h", "25h", "86401"] {
            assert!(read(text).unwrap_err().to_string().contains("at most 1d"), "{text:?}");
        }
    }
}
