//! Sizes and times in settings: a number with its unit (`16MiB`, `30s`), or a bare number in the unit of the setting.

/// The unit of a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// A size, in bytes.
    Bytes,
    /// A size, in KiB.
    Kibibytes,
    /// A time, in seconds.
    Seconds,
    /// A time, in days.
    Days,
}

/// Units of size in bytes, largest first.
const SIZES: [(&str, u64); 5] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];
/// Units of time in seconds, largest first.
const TIMES: [(&str, u64); 4] = [("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)];

impl Unit {
    /// Parses a quantity; `None` if it is none, or not a whole number of this unit.
    pub fn parse(self, text: &str) -> Option<u64> {
        let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = &text[number.len()..];
        // `parse` would also accept a sign.
        let count: u64 = number.trim_end().parse().ok().filter(|_| number.starts_with(|c: char| c.is_ascii_digit()))?;
        if unit.is_empty() {
            return Some(count);
        }
        let (_, length) = self.units().iter().find(|(name, _)| name.eq_ignore_ascii_case(unit))?;
        let base = count.checked_mul(*length)?;
        base.is_multiple_of(self.length()).then(|| base / self.length())
    }

    /// Formats a count in the largest unit that divides it, as [`Self::parse`] reads it.
    pub fn show(self, count: u64) -> String {
        let Some(base) = count.checked_mul(self.length()) else { return count.to_string() };
        let divides = |(_, length): &&(&str, u64)| *length <= self.length().max(base) && base.is_multiple_of(*length);
        let (name, length) = self.units().iter().find(divides).expect("1 divides it");
        format!("{}{name}", base / length)
    }

    /// The placeholder for a value in help texts.
    pub fn word(self) -> &'static str {
        match self {
            Self::Bytes | Self::Kibibytes => "SIZE",
            Self::Seconds | Self::Days => "TIME",
        }
    }

    /// The name of the unit of a bare number.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::Kibibytes => "KiB",
            Self::Seconds => "seconds",
            Self::Days => "days",
        }
    }

    fn length(self) -> u64 {
        match self {
            Self::Bytes | Self::Seconds => 1,
            Self::Kibibytes => 1 << 10,
            Self::Days => 86_400,
        }
    }

    fn units(self) -> &'static [(&'static str, u64)] {
        match self {
            Self::Bytes | Self::Kibibytes => &SIZES,
            Self::Seconds | Self::Days => &TIMES,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantity_is_a_number_with_its_unit_or_a_bare_one() {
        for (unit, text, count) in [
            (Unit::Bytes, "16777216", Some(16 << 20)),
            (Unit::Bytes, "16MiB", Some(16 << 20)),
            (Unit::Bytes, "16 mib", Some(16 << 20)),
            (Unit::Bytes, "0B", Some(0)),
            (Unit::Kibibytes, "4096", Some(4096)),
            (Unit::Kibibytes, "4MiB", Some(4096)),
            (Unit::Kibibytes, "512B", None),
            (Unit::Seconds, "30", Some(30)),
            (Unit::Seconds, "30s", Some(30)),
            (Unit::Seconds, "2m", Some(120)),
            (Unit::Seconds, "1d", Some(86_400)),
            (Unit::Days, "30d", Some(30)),
            (Unit::Days, "48h", Some(2)),
            (Unit::Days, "36h", None),
            (Unit::Bytes, "16MB", None),
            (Unit::Bytes, "16 s", None),
            (Unit::Seconds, "1.5h", None),
            (Unit::Seconds, "-1s", None),
            (Unit::Seconds, "+1s", None),
            (Unit::Seconds, "s", None),
            (Unit::Seconds, "", None),
            (Unit::Bytes, "99999999999TiB", None),
        ] {
            assert_eq!(unit.parse(text), count, "{unit:?} {text:?}");
        }
    }

    #[test]
    fn what_is_shown_is_read_again() {
        for (unit, count, shown) in [
            (Unit::Bytes, 8 << 30, "8GiB"),
            (Unit::Bytes, 1000, "1000B"),
            (Unit::Bytes, 0, "0B"),
            (Unit::Kibibytes, 4096, "4MiB"),
            (Unit::Kibibytes, 8, "8KiB"),
            (Unit::Kibibytes, 0, "0KiB"),
            (Unit::Seconds, 0, "0s"),
            (Unit::Seconds, 90, "90s"),
            (Unit::Seconds, 7200, "2h"),
            (Unit::Days, 30, "30d"),
        ] {
            assert_eq!(unit.show(count), shown);
            assert_eq!(unit.parse(shown), Some(count), "{shown}");
        }
    }
}
