//! Why a configuration is refused: the boundary between configuring and running. The program exits with 64.
//!
//! Each variant names the place that holds the fault and says what would be right there. The value of a
//! secret setting appears in none of them.

use std::fmt;
use std::path::PathBuf;

use super::layer::Origin;
use super::setting::{SETTINGS, Setting};

/// A configuration that cannot be used.
#[derive(Debug)]
pub enum ConfigError {
    /// The file named by `--config` or `MILLRACE_CONFIG` cannot be read.
    File {
        /// The file.
        path: PathBuf,
        /// What the operating system says, or that it is too large.
        why: String,
    },
    /// The file is not TOML.
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line and column of the fault, counted from 1.
        position: Option<(usize, usize)>,
        /// The parser's words; never the line itself, which may hold a password.
        why: String,
    },
    /// The file holds a key that is no setting.
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
    },
    /// A variable with this program's prefix that is no setting's.
    UnknownVariable {
        /// Its name.
        name: String,
        /// The known one it is most like, where one is alike.
        nearest: Option<String>,
    },
    /// A value that its setting does not take.
    Value {
        /// The setting.
        setting: &'static Setting,
        /// Where the value stands.
        origin: Origin,
        /// The value as written, where it may be shown.
        found: Option<String>,
        /// Completes "it must be …".
        expected: String,
    },
    /// Values that are right by themselves and wrong together, or not available in this version.
    Unusable(String),
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, why } => write!(
                f,
                "the configuration file {} cannot be read: {why}\n  fix: correct --config or MILLRACE_CONFIG, or leave \
                 both out",
                path.display()
            ),
            Self::Syntax { path, position, why } => {
                write!(f, "the configuration file {}", path.display())?;
                if let Some((line, column)) = position {
                    write!(f, ", line {line}, column {column},")?;
                }
                write!(f, " is not TOML: {why}")
            }
            Self::UnknownKey { path, key } => {
                let known: Vec<&str> = SETTINGS.iter().map(|setting| setting.key).collect();
                write!(f, "{} sets `{key}`, which is no setting\n  fix: ", path.display())?;
                if let Some(nearest) = nearest(key, known.iter().copied()) {
                    write!(f, "did you mean `{nearest}`? Else ")?;
                }
                write!(f, "the settings are {}", known.join(", "))
            }
            Self::UnknownVariable { name, nearest } => {
                write!(f, "the environment sets {name}, which is no setting\n  fix: ")?;
                match nearest {
                    Some(nearest) => write!(f, "did you mean {nearest}? Else unset it"),
                    None => f.write_str("unset it"),
                }?;
                f.write_str("; `millrace serve --help` lists all settings")
            }
            Self::Value { setting, origin, found, expected } => {
                let place = origin.place(setting);
                match found {
                    Some(found) => write!(f, "{place} is {found}; it must be {expected}"),
                    None => write!(f, "the value of {place} cannot be used; it must be {expected}"),
                }?;
                write!(
                    f,
                    "\n  fix: set {}, {} or `{}` in the configuration file",
                    setting.flag_usage(),
                    setting.env,
                    setting.key
                )
            }
            Self::Unusable(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for ConfigError {}

/// The name among `known` that `name` was probably meant to be: a few letters off, or one of the two within the other.
pub(super) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    /// From 0, nothing in common, to 1.
    const ALIKE: f64 = 0.7;
    known
        .map(|known| (strsim::normalized_damerau_levenshtein(name, known), known))
        .filter(|(likeness, _)| *likeness >= ALIKE)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, known)| known)
}
