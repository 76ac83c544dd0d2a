//! The settings as command-line flags, made from their table.
//!
//! Clap takes every value as text and shows none of them. All layers check values in one place (`layer.rs`), and a refused
//! `DATABASE_URL` must not reach the terminal.

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

use super::setting::{Kind, SETTINGS, Scope, Setting};

/// The heading in help texts of the flags that every command takes.
pub const COMMON_FLAGS_HEADING: &str = "Common settings";

/// The flags that were given, each with its value as text.
#[derive(Clone, Default)]
pub struct Flags(Vec<(&'static Setting, String)>);

impl Flags {
    /// These flags and those of `more`.
    #[must_use]
    pub fn and(mut self, more: Self) -> Self {
        self.0.extend(more.0);
        self
    }

    /// The values that a setting's flag was given.
    pub(super) fn of(&self, setting: &'static Setting) -> impl Iterator<Item = &str> {
        self.0.iter().filter(|(given, _)| given.key == setting.key).map(|(_, text)| text.as_str())
    }

    fn augment(command: Command, scopes: &[Scope]) -> Command {
        in_scope(scopes).fold(command, |command, setting| command.arg(arg(setting)))
    }

    fn collect(matches: &ArgMatches, scopes: &[Scope]) -> Self {
        let given = |setting: &'static Setting| {
            let text = match setting.kind {
                Kind::Switch { flag_means } => matches.get_flag(setting.key).then(|| flag_means.to_string()),
                Kind::Text(_)
                | Kind::Listed(_)
                | Kind::Secret(_)
                | Kind::Choice(_)
                | Kind::Count(..)
                | Kind::Quantity(..) => matches.get_one::<String>(setting.key).cloned(),
            };
            text.map(|text| (setting, text))
        };
        Self(in_scope(scopes).filter_map(given).collect())
    }
}

impl Setting {
    /// The flag as one would type it, such as `--shards N`.
    pub fn flag_usage(&self) -> String {
        match self.kind {
            Kind::Text(word) | Kind::Listed(word) | Kind::Secret(word) | Kind::Choice(word) | Kind::Count(word, ..) => {
                format!("--{} {word}", self.flag)
            }
            Kind::Quantity(unit, ..) => format!("--{} {}", self.flag, unit.word()),
            Kind::Switch { .. } => format!("--{}", self.flag),
        }
    }
}

fn in_scope(scopes: &[Scope]) -> impl Iterator<Item = &'static Setting> {
    SETTINGS.iter().filter(|setting| scopes.contains(&setting.scope))
}

fn arg(setting: &'static Setting) -> Arg {
    let help = match setting.kind {
        Kind::Switch { flag_means } => format!("{}\n[env: {}={flag_means}]", setting.help, setting.env),
        _ => format!("{}\n[env: {}] [default: {}]", setting.help, setting.env, setting.default_in_words()),
    };
    let heading = if setting.scope == Scope::Store { COMMON_FLAGS_HEADING } else { "Settings" };
    let arg = Arg::new(setting.key).long(setting.flag).global(setting.scope == Scope::Store).help_heading(heading);
    match setting.kind {
        Kind::Switch { .. } => arg.action(ArgAction::SetTrue),
        Kind::Text(word) | Kind::Listed(word) | Kind::Secret(word) | Kind::Choice(word) | Kind::Count(word, ..) => {
            arg.value_name(word)
        }
        Kind::Quantity(unit, ..) => arg.value_name(unit.word()),
    }
    .help(help)
}

macro_rules! flag_group {
    ($(#[$doc:meta])* $name:ident, $scopes:expr) => {
        $(#[$doc])*
        #[derive(Clone, Default)]
        pub struct $name(pub Flags);

        impl Args for $name {
            fn augment_args(command: Command) -> Command {
                Flags::augment(command, $scopes)
            }
            fn augment_args_for_update(command: Command) -> Command {
                Flags::augment(command, $scopes)
            }
        }

        impl FromArgMatches for $name {
            fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
                Ok(Self(Flags::collect(matches, $scopes)))
            }
            fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
                self.0 = Flags::collect(matches, $scopes);
                Ok(())
            }
        }
    };
}

flag_group! {
    /// The flags of every command.
    StoreFlags, &[Scope::Store]
}
flag_group! {
    /// The flags of the commands that make keys.
    KeyFlags, &[Scope::Keys]
}
flag_group! {
    /// The flags of the commands that make endpoints.
    EndpointFlags, &[Scope::Endpoints]
}
flag_group! {
    /// The flags of the server.
    ServerFlags, &[Scope::Server, Scope::Keys, Scope::Endpoints]
}
