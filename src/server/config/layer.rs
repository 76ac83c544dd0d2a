//! Lays the sources of a configuration over each other: defaults < file < environment < flags.
//!
//! Pure: the file's text, the environment and the flags are handed in. Every layer checks a value against its setting's
//! kind, also a value that a later layer replaces; so one rule and one message serve all layers. Each value keeps the
//! place it came from, for messages and for `config check`.
//!
//! An empty environment variable counts as not set, because process managers and compose files can rarely unset one. Only
//! a list ([`Kind::Listed`]) takes an empty variable as a value.

use std::path::{Path, PathBuf};

use toml::{Table, Value as Toml};

use super::environment::Environment;
use super::error::ConfigError;
use super::flags::Flags;
use super::setting::{Kind, Preset, SETTINGS, Setting};
use super::table::SettingKey;
use super::typed::Typed;

/// Where a value comes from.
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

/// One setting with the value that is in force.
pub struct Slot {
    /// The setting.
    pub setting: &'static Setting,
    /// Its value in normal form; `None` only where the default is to have none.
    pub text: Option<String>,
    /// Where that value comes from.
    pub origin: Origin,
}

/// Every setting with its value: the slot at `key as usize` is that of [`SettingKey`] and of the row of [`SETTINGS`].
pub struct Values(Vec<Slot>);

impl Values {
    /// The lowest layer.
    pub fn defaults(cores: usize) -> Self {
        let slot = |setting: &'static Setting| {
            let number = |count: u64| setting.kind.normal_form(&count.to_string());
            let text = match setting.preset {
                Preset::Unset => None,
                Preset::Text(text) => Some(text.to_owned()),
                Preset::Count(count) => number(count),
                Preset::PerCore(each) => number(per_core(setting, each, cores)),
                Preset::Switch(is_on) => Some(is_on.to_string()),
            };
            Slot { setting, text, origin: Origin::Default }
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
            let Some(slot) = self.0.iter_mut().find(|slot| slot.setting.key == key) else {
                return Err(ConfigError::UnknownKey { path: path.to_owned(), key });
            };
            let origin = Origin::File(path.to_owned());
            let text = match (slot.setting.kind, value) {
                (
                    Kind::Text(_) | Kind::Listed(_) | Kind::Secret(_) | Kind::Choice(_) | Kind::Quantity(..),
                    Toml::String(text),
                ) => text,
                (Kind::Count(..) | Kind::Quantity(..), Toml::Integer(count)) => count.to_string(),
                (Kind::Switch { .. }, Toml::Boolean(is_on)) => is_on.to_string(),
                (kind, other) => {
                    let found = format!("{} {}", article(other.type_str()), other.type_str());
                    return Err(refuse(slot.setting, origin, Some(found), kind.to_string()));
                }
            };
            slot.lay(&text, origin)?;
        }
        Ok(())
    }

    /// Lays the environment over what is there. A variable with this program's prefix that sets nothing is refused: without
    /// that, a misspelt one would leave the default in force in silence.
    pub fn lay_environment(&mut self, environment: &Environment) -> Result<(), ConfigError> {
        environment.refuse_unknown()?;
        for slot in &mut self.0 {
            let Some((name, text)) = environment.of(slot.setting)? else { continue };
            let origin = Origin::Environment(name);
            let Some(text) = text.to_str() else {
                let found = Some("not UTF-8".to_owned());
                return Err(refuse(slot.setting, origin, found, slot.setting.kind.to_string()));
            };
            slot.lay(text, origin)?;
        }
        Ok(())
    }

    /// Lays the flags over what is there.
    pub fn lay_flags(&mut self, flags: &Flags) -> Result<(), ConfigError> {
        for slot in &mut self.0 {
            for text in flags.of(slot.setting) {
                slot.lay(text, Origin::Flag)?;
            }
        }
        Ok(())
    }

    /// Every slot, in the table's order.
    pub fn slots(&self) -> &[Slot] {
        &self.0
    }

    /// Reads a setting's value into its type.
    pub fn read<T>(&self, key: SettingKey, values: &Typed<T>) -> Result<T, ConfigError> {
        values.read(self.text(key)).map_err(|expected| self.refuse(key, expected))
    }

    /// A setting's value; empty where it has none.
    pub fn text(&self, key: SettingKey) -> &str {
        self.slot(key).text.as_deref().unwrap_or_default()
    }

    /// Refuses a setting's value for a reason its kind does not know.
    pub fn refuse(&self, key: SettingKey, expected: impl Into<String>) -> ConfigError {
        let Slot { setting, origin, .. } = self.slot(key);
        refuse(setting, origin.clone(), shown(setting, self.text(key)), expected.into())
    }

    /// What to call the place of a setting's value in a message.
    pub fn place(&self, key: SettingKey) -> String {
        let Slot { setting, origin, .. } = self.slot(key);
        origin.place(setting)
    }

    fn slot(&self, key: SettingKey) -> &Slot {
        &self.0[key as usize]
    }
}

impl Slot {
    /// Replaces the value, whichever layer the new one comes from.
    fn lay(&mut self, text: &str, origin: Origin) -> Result<(), ConfigError> {
        let Some(text) = self.setting.kind.normal_form(text) else {
            return Err(refuse(self.setting, origin, shown(self.setting, text), self.setting.kind.to_string()));
        };
        (self.text, self.origin) = (Some(text), origin);
        Ok(())
    }
}

fn refuse(setting: &'static Setting, origin: Origin, found: Option<String>, expected: String) -> ConfigError {
    ConfigError::Value { setting, origin, found, expected }
}

/// A refused value as a message may quote it.
fn shown(setting: &Setting, text: &str) -> Option<String> {
    match setting.kind {
        Kind::Secret(_) => None,
        Kind::Count(..) | Kind::Quantity(..) if text.parse::<i128>().is_ok() => Some(text.to_owned()),
        Kind::Count(..)
        | Kind::Quantity(..)
        | Kind::Text(_)
        | Kind::Listed(_)
        | Kind::Choice(_)
        | Kind::Switch { .. } => Some(format!("{text:?}")),
    }
}

/// So many for each core, within the setting's range: a machine may have more cores than shards are allowed.
fn per_core(setting: &Setting, each: u64, cores: usize) -> u64 {
    let count = each.saturating_mul(cores as u64);
    let Kind::Count(_, min, max) = setting.kind else { return count };
    count.clamp(min, max)
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
