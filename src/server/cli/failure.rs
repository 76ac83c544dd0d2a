//! Why a command failed, and its exit code.

use std::io;
use std::process::ExitCode;

use super::{EX_DATAERR, EX_USAGE};
use crate::config::ConfigError;

/// The failure of a command.
#[derive(Debug)]
pub enum Failure {
    /// The configuration cannot be used. 64.
    Config(ConfigError),
    /// An argument is wrong in a way that only the command can check. 64.
    Argument(String),
    /// The command could not be carried out: cause and remedy. 1.
    Refused(String),
    /// The journal is damaged; with a message where the result does not say everything. 65.
    Damaged(Option<String>),
    /// The result could not be written; the command can be repeated. 1, or 0 where the reader closed the pipe (`| head`).
    Output(io::Error),
}

impl Failure {
    /// The message for standard error; `None` where there is nothing to say.
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
