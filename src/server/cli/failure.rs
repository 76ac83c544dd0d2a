//! Why a command did not do what it was asked, and what that means for the exit code.

use std::io;
use std::process::ExitCode;

use super::{EX_DATAERR, EX_USAGE};
use crate::config::ConfigError;

/// A command that did not succeed.
#[derive(Debug)]
pub enum Failure {
    /// The configuration cannot be used. 64.
    Config(ConfigError),
    /// An argument is wrong in a way only the command can see. 64.
    Argument(String),
    /// The command could not be carried out: cause and remedy. 1.
    Refused(String),
    /// The journal is damaged; what more there is to say than the result did. 65.
    Damaged(Option<String>),
    /// The result could not be written; it can be asked for again. 1, or 0 where its reader went away (`| head`).
    Output(io::Error),
}

impl Failure {
    /// What to say on standard error; `None` where nobody wants to know.
    pub fn message(&self) -> Option<String> {
        match self {
            Self::Config(error) => Some(error.to_string()),
            Self::Argument(why) | Self::Refused(why) => Some(why.clone()),
            Self::Damaged(why) => why.clone(),
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => None,
            Self::Output(error) => Some(format!("the result cannot be written: {error}")),
        }
    }

    /// How the process ends.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Config(_) | Self::Argument(_) => ExitCode::from(EX_USAGE),
            Self::Damaged(_) => ExitCode::from(EX_DATAERR),
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
            Self::Refused(_) | Self::Output(_) => ExitCode::FAILURE,
        }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::Config(error)
    }
}
