//! What is known of a setting without its type: names, kind of values, default, help text.
//!
//! [`SETTINGS`] lists all of them and is made by the table (`table.rs`). The flags, the environment, the file,
//! `config check` and the settings' reference go by that list.

use std::fmt;

use millrace_base::quantity::Unit;

pub use super::table::SETTINGS;

/// What values a setting takes.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// Any text; the word stands for the value in help texts.
    Text(&'static str),
    /// Values separated by commas, of which there may be none: empty is a value, in a variable too.
    Listed(&'static str),
    /// Text that is shown only as [`Setting::masked`] has it.
    Secret(&'static str),
    /// One of these words, written `a|b|c`.
    Choice(&'static str),
    /// A whole number in this inclusive range; the word stands for the value in help texts.
    Count(&'static str, u64, u64),
    /// A size or a time in this inclusive range.
    Quantity(Unit, u64, u64),
    /// True or false. A flag takes no value: the row says what giving it means.
    Switch {
        /// What the flag sets.
        flag_means: bool,
    },
}

impl Kind {
    /// The number that a text stands for, in the setting's own unit; `None` where the kind has no numbers or the text is
    /// none within the range.
    pub(super) fn number(self, text: &str) -> Option<u64> {
        let (number, min, max) = match self {
            Self::Count(_, min, max) => (text.parse().ok()?, min, max),
            Self::Quantity(unit, min, max) => (unit.parse(text)?, min, max),
            Self::Text(_) | Self::Listed(_) | Self::Secret(_) | Self::Choice(_) | Self::Switch { .. } => return None,
        };
        (min..=max).contains(&number).then_some(number)
    }

    /// The form in which a value is kept and printed; `None` where the kind does not take it.
    pub(super) fn normal_form(self, text: &str) -> Option<String> {
        match self {
            Self::Text(_) | Self::Listed(_) | Self::Secret(_) => Some(text.to_owned()),
            Self::Choice(words) => words.split('|').find(|word| *word == text).map(str::to_owned),
            Self::Count(..) => self.number(text).map(|count| count.to_string()),
            Self::Quantity(unit, ..) => self.number(text).map(|count| unit.show(count)),
            Self::Switch { .. } => text.parse::<bool>().ok().map(|is_on| is_on.to_string()),
        }
    }
}

impl fmt::Display for Kind {
    /// Completes the sentence "it must be …".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(_) | Self::Listed(_) | Self::Secret(_) => f.write_str("text"),
            Self::Choice(words) => write!(f, "one of {}", words.replace('|', ", ")),
            Self::Count(_, min, max) => write!(f, "a whole number from {min} to {max}"),
            Self::Quantity(unit, min, max) => {
                let [least, most] = [min, max].map(|count| unit.show(*count));
                let what = if unit.word() == "SIZE" { "a size" } else { "a time" };
                write!(f, "{what} from {least} to {most}, or a whole number of {}", unit.name())
            }
            Self::Switch { .. } => f.write_str("true or false"),
        }
    }
}

/// The value of a setting that is not configured.
#[derive(Clone, Copy, Debug)]
pub enum Preset {
    /// Nothing.
    Unset,
    /// This text or choice.
    Text(&'static str),
    /// This number.
    Count(u64),
    /// This many for each core.
    PerCore(u64),
    /// This switch.
    Switch(bool),
}

/// Which commands take the flag. The file and the environment are read by all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Every command: where the data is.
    Store,
    /// The commands that make keys, and the server.
    Keys,
    /// The commands that make endpoints, and the server.
    Endpoints,
    /// The server.
    Server,
}

/// One setting.
#[derive(Debug)]
pub struct Setting {
    /// Its key in the TOML file, which identifies it everywhere.
    pub key: &'static str,
    /// Its environment variable.
    pub env: &'static str,
    /// Its flag, without the dashes.
    pub flag: &'static str,
    /// The values it takes.
    pub kind: Kind,
    /// The value where it is not configured.
    pub preset: Preset,
    /// A secret value without its secrets; `None` where it is not shown at all.
    pub masked: fn(&str) -> Option<String>,
    /// The commands that take the flag.
    pub scope: Scope,
    /// What it does, for `--help`; a line of it is at most 100 characters.
    pub help: &'static str,
}

impl Setting {
    /// The default as one would write it.
    pub fn default_in_words(&self) -> String {
        match (self.preset, self.kind) {
            (Preset::Unset, _) => "none".to_owned(),
            (Preset::Text(text), _) => text.to_owned(),
            (Preset::Count(count), Kind::Quantity(unit, ..)) => unit.show(count),
            (Preset::Count(count), _) => count.to_string(),
            (Preset::PerCore(1), _) => "one per core".to_owned(),
            (Preset::PerCore(each), _) => format!("{each} per core"),
            (Preset::Switch(on), _) => on.to_string(),
        }
    }
}
