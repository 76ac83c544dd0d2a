//! `millrace config check`: prints the configuration that `serve` would run with, and where each value is set.

use super::Invocation;
use super::failure::Failure;
use super::output::show;
use crate::config::{ConfigError, Flags};

pub const EXAMPLES: &str = "\
Examples:
  millrace config check
  millrace config check --config /etc/millrace.toml --shards 4
  millrace config check > millrace.toml      a file to start from (put the database password back in)

Exit code 64 where the configuration cannot be used.";

pub fn run(invocation: &Invocation, flags: Flags) -> Result<(), Failure> {
    let loaded = invocation.load(flags)?;
    if let Some(files) = loaded.config.tls() {
        files.load().map_err(|why| Failure::Config(ConfigError::Unusable(why)))?;
    }
    show(&loaded.to_toml())
}
