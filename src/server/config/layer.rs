//! The layers a configuration is made of, laid over each other: defaults < file < environment < flags.
//!
//! Pure: the file's text, the environment and the flags are handed in. A value is checked against its row of
//! the settings' table as it comes in, whichever layer it comes from, so that one rule and one message serve
//! all of them, and it remembers where it came from.
//!
//! An empty environment variable counts as not set: process managers and compose files can rarely unset one. Only where
//! empty is a value of its own ([`Kind::Listed`]) it is one.

use std::path::{Path, PathBuf};

use toml::{Table, Value as Toml};

use super::environment::Environment;
use super::error::ConfigError;
use super::setting::{Kind, Preset, SETTINGS, Setting, find};

/// Where a value stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// In the settings' table.
    Default,
    /// In this file.
    File(PathBuf),
    /// In this variable of the environment.
    Environment(&'static str),
    /// On the command line.
    Flag,
}

impl Origin {
    /// What to call the place of this setting's value in a message.
    pub fn place(&self, setting: &Setting) -> String {
        match self {
            Self::Default => format!("the default of `{}`", setting.key),
            Self::File(path) => format!("`{}` in {}", setting.key, path.display()),
            Self::Environment(name) => (*name).to_owned(),
            Self::Flag => format!("--{}", setting.flag),
        }
    }
}

/// A value of the right kind for its setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// For [`Kind::Text`], [`Kind::Listed`], [`Kind::Secret`] and [`Kind::Choice`].
    Text(String),
    /// For [`Kind::Count`] and [`Kind::Quantity`]: within its range, in the setting's own unit.
    Count(u64),
    /// For [`Kind::Switch`].
    Switch(bool),
}

/// One setting as it stands with all layers laid.
pub struct Slot {
    /// The setting.
    pub setting: &'static Setting,
    /// Its value; `None` only where the default is to have none.
    pub value: Option<Value>,
    /// Where that value stands.
    pub origin: Origin,
}

/// Every setting with its value: one slot a row of [`SETTINGS`], in that order.
pub struct Values(Vec<Slot>);

impl Values {
    /// The lowest layer.
    pub fn defaults(cores: usize) -> Self {
        let slot = |setting: &'static Setting| {
            let value = match setting.preset {
                Preset::Unset => None,
                Preset::Text(text) => Some(Value::Text(text.to_owned())),
                Preset::Count(count) => Some(Value::Count(count)),
                Preset::PerCore(each) => Some(Value::Count(per_core(setting, each, cores))),
                Preset::Switch(on) => Some(Value::Switch(on)),
            };
            Slot { setting, value, origin: Origin::Default }
        };
        Self(SETTINGS.iter().map(slot).collect())
    }

    /// Lays the text of a configuration file over what is there.
    pub fn lay_file(&mut self, path: &Path, text: &str) -> Result<(), ConfigError> {
        let table: Table = toml::from_str(text).map_err(|error| ConfigError::Syntax {
            path: path.to_owned(),
            position: error.span().map(|span| position(text, span.start)),
            why: error.message().to_owned(),
        })?;
        for (key, value) in table {
            let Some(setting) = find(&key) else {
                return Err(ConfigError::UnknownKey { path: path.to_owned(), key });
            };
            let origin = Origin::File(path.to_owned());
            let value = match (setting.kind, value) {
                (Kind::Text(_) | Kind::Listed(_) | Kind::Secret(_) | Kind::Choice(_), Toml::String(text)) => {
                    read(setting, &origin, &text)?
                }
                (Kind::Quantity(..), Toml::String(text)) => read(setting, &origin, &text)?,
                (Kind::Count(..) | Kind::Quantity(..), Toml::Integer(count)) => {
                    read(setting, &origin, &count.to_string())?
                }
                (Kind::Switch { .. }, Toml::Boolean(on)) => Value::Switch(on),
                (kind, other) => {
                    let found = format!("{} {}", article(other.type_str()), other.type_str());
                    return Err(refuse(setting, origin, Some(found), kind.to_string()));
                }
            };
            self.lay(setting, value, origin);
        }
        Ok(())
    }

    /// Lays the environment over what is there. A variable of this program's that is no setting is refused: a misspelt one
    /// would leave the default in force without a word.
    pub fn lay_environment(&mut self, environment: &Environment) -> Result<(), ConfigError> {
        environment.refuse_unknown()?;
        for setting in SETTINGS {
            let Some((name, text)) = environment.of(setting)? else { continue };
            let Some(text) = text.to_str() else {
                let found = Some("not UTF-8".to_owned());
                return Err(refuse(setting, Origin::Environment(name), found, setting.kind.to_string()));
            };
            let origin = Origin::Environment(name);
            self.lay(setting, read(setting, &origin, text)?, origin);
        }
        Ok(())
    }

    /// Lays one flag over what is there.
    pub fn lay_flag(&mut self, setting: &'static Setting, text: &str) -> Result<(), ConfigError> {
        self.lay(setting, read(setting, &Origin::Flag, text)?, Origin::Flag);
        Ok(())
    }

    /// Every slot, in the table's order.
    pub fn slots(&self) -> &[Slot] {
        &self.0
    }

    /// The text of a setting with this key; empty where it has none.
    pub fn text(&self, key: &str) -> &str {
        match &self.slot(key).value {
            Some(Value::Text(text)) => text,
            _ => "",
        }
    }

    /// The number of a setting with this key.
    pub fn count(&self, key: &str) -> u64 {
        match self.slot(key).value {
            Some(Value::Count(count)) => count,
            _ => unreachable!("{key} is a count with a default"),
        }
    }

    /// The state of the switch with this key.
    pub fn switch(&self, key: &str) -> bool {
        match self.slot(key).value {
            Some(Value::Switch(on)) => on,
            _ => unreachable!("{key} is a switch with a default"),
        }
    }

    /// Refuses the text of a setting for a reason its kind does not know.
    pub fn refuse_text(&self, key: &str, expected: impl Into<String>) -> ConfigError {
        let Slot { setting, origin, .. } = self.slot(key);
        refuse(setting, origin.clone(), shown(setting, self.text(key)), expected.into())
    }

    /// What to call the place of a setting's value in a message.
    pub fn place(&self, key: &str) -> String {
        let Slot { setting, origin, .. } = self.slot(key);
        origin.place(setting)
    }

    fn slot(&self, key: &str) -> &Slot {
        self.0.iter().find(|slot| slot.setting.key == key).expect("keys are asked for by their name in the table")
    }

    fn lay(&mut self, setting: &'static Setting, value: Value, origin: Origin) {
        let slot = self.0.iter_mut().find(|slot| slot.setting.key == setting.key).expect("one slot a row");
        (slot.value, slot.origin) = (Some(value), origin);
    }
}

/// Reads a value of a setting from text, whichever layer it stands in.
fn read(setting: &'static Setting, origin: &Origin, text: &str) -> Result<Value, ConfigError> {
    let value = match setting.kind {
        Kind::Text(_) | Kind::Listed(_) | Kind::Secret(_) => Some(Value::Text(text.to_owned())),
        Kind::Choice(words) => words.split('|').any(|word| word == text).then(|| Value::Text(text.to_owned())),
        Kind::Count(_, min, max) => text.parse().ok().filter(|count| (min..=max).contains(count)).map(Value::Count),
        Kind::Quantity(unit, min, max) => {
            unit.parse(text).filter(|count| (min..=max).contains(count)).map(Value::Count)
        }
        Kind::Switch { .. } => text.parse().ok().map(Value::Switch),
    };
    value.ok_or_else(|| refuse(setting, origin.clone(), shown(setting, text), setting.kind.to_string()))
}

fn refuse(setting: &'static Setting, origin: Origin, found: Option<String>, expected: String) -> ConfigError {
    ConfigError::Value { setting, origin, found, expected }
}

fn shown(setting: &Setting, text: &str) -> Option<String> {
    match setting.kind {
        Kind::Secret(_) => None,
        Kind::Count(..) | Kind::Quantity(..) if text.parse::<i128>().is_ok() => Some(text.to_owned()),
        _ => Some(format!("{text:?}")),
    }
}

/// So many for each core, within the setting's range: a machine may have more cores than shards are allowed.
fn per_core(setting: &Setting, each: u64, cores: usize) -> u64 {
    let count = each.saturating_mul(cores as u64);
    match setting.kind {
        Kind::Count(_, min, max) => count.clamp(min, max),
        _ => count,
    }
}

/// Line and column of a byte offset, in bytes, counted from 1.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = &text.as_bytes()[..offset.min(text.len())];
    let lines = before.split(|byte| *byte == b'\n');
    let (line, last) = lines.enumerate().last().expect("a split yields at least one piece");
    (line + 1, last.len() + 1)
}

fn article(noun: &str) -> &'static str {
    if noun.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" }
}
