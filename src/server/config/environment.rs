//! The environment: finds the variable of a setting, and refuses variables with this program's prefix that set nothing.
//!
//! Pure: the variables are handed in.

use std::ffi::{OsStr, OsString};

use super::error::{ConfigError, nearest};
use super::setting::{Kind, SETTINGS, Setting};
use super::table::SettingKey;
use super::{API_KEY_ENV, CONFIG_FILE_ENV};

/// The prefix of this program's variables.
const PREFIX: &str = "MILLRACE_";
/// Further variables of settings: `DATABASE_URL` is a name by custom, and this one is what the others' names suggest.
const ALIASES: [(&str, SettingKey); 1] = [("MILLRACE_DATABASE_URL", SettingKey::database_url)];

/// The variables of a process.
pub struct Environment(Vec<(OsString, OsString)>);

impl Environment {
    /// An environment of these variables.
    pub fn new(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        Self(variables.into_iter().collect())
    }

    /// A variable's value, where it is set.
    pub fn get(&self, name: &str) -> Option<&OsStr> {
        self.0.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_os_str())
    }

    /// The variable that sets a setting, and its value.
    ///
    /// # Errors
    /// Where two variables set it to different values.
    pub(super) fn of(&self, setting: &'static Setting) -> Result<Option<(&'static str, &OsStr)>, ConfigError> {
        let is_value = |text: &&OsStr| !text.is_empty() || matches!(setting.kind, Kind::Listed(_));
        let aliases = ALIASES.iter().filter(|(_, key)| key.setting().key == setting.key).map(|(name, _)| *name);
        let names = std::iter::once(setting.env).chain(aliases);
        let found: Vec<_> = names.filter_map(|name| Some((name, self.get(name).filter(is_value)?))).collect();
        if let [(name, value), (other, other_value)] = found[..]
            && value != other_value
        {
            return Err(ConfigError::Unusable(format!(
                "{name} and {other} hold different values, and both set `{}`\n  fix: unset one of them",
                setting.key
            )));
        }
        Ok(found.first().copied())
    }

    /// Refuses a variable with this program's prefix that sets nothing.
    pub(super) fn refuse_unknown(&self) -> Result<(), ConfigError> {
        let known: Vec<&str> = SETTINGS
            .iter()
            .map(|setting| setting.env)
            .chain(ALIASES.map(|(name, _)| name))
            .chain([CONFIG_FILE_ENV, API_KEY_ENV])
            .collect();
        let unknown = self.0.iter().find_map(|(name, value)| {
            let name = name.to_str()?;
            let is_ours = name.starts_with(PREFIX) && !known.contains(&name) && !is_service_link(name, value);
            is_ours.then_some(name)
        });
        match unknown {
            None => Ok(()),
            Some(name) => Err(ConfigError::UnknownVariable {
                name: name.to_owned(),
                nearest: nearest(name, known.iter().copied()).map(str::to_owned),
            }),
        }
    }
}

/// Whether it is a variable that Kubernetes sets in every container for a service called `millrace`.
fn is_service_link(name: &str, value: &OsStr) -> bool {
    let rest = name.strip_prefix(PREFIX).unwrap_or_default();
    let is_address = value.to_str().is_some_and(|value| value.starts_with("tcp://") || value.starts_with("udp://"));
    rest == "SERVICE_HOST"
        || rest.starts_with("SERVICE_PORT")
        || rest == "PORT" && is_address
        || rest.strip_prefix("PORT_").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}
