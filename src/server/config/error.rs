//! Why a configuration is refused. The program then exits with 64.
//!
//! Each error names the place of the fault and what would be right there. No error shows the value of a secret setting.

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
        /// The operating system's error, or that the file is too large.
        why: String,
    },
    /// The file is not TOML.
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line and column of the fault, counted from 1.
        position: Option<(usize, usize)>,
        /// The parser's message; never the line itself, which may hold a password.
        why: String,
    },
    /// The file has a key that is not a setting's.
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
    },
    /// A variable with this program's prefix that sets nothing.
    UnknownVariable {
        /// Its name.
        name: String,
        /// The known variable with the most similar name, where one is similar.
        nearest: Option<String>,
    },
    /// A value that its setting does not take.
    Value {
        /// The setting.
        setting: &'static Setting,
        /// Where the value comes from.
        origin: Origin,
        /// The value as it is written, where it may be shown.
        found: Option<String>,
        /// Completes "it must be …".
        expected: String,
    },
    /// Values that are right by themselves and wrong together.
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

/// The name among `known` that is most similar to `name`, where one is similar enough.
pub(super) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    /// The least similarity, from 0 (nothing in common) to 1 (equal).
    const ALIKE: f64 = 0.7;
    known
        .map(|known| (strsim::normalized_damerau_levenshtein(name, known), known))
        .filter(|(likeness, _)| *likeness >= ALIKE)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, known)| known)
}
