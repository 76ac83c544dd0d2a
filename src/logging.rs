//! The log: lines on standard error, as text for people or as JSON for collectors, through one filter.
//!
//! Standard output belongs to the results of commands. Nothing is logged per event: a line costs a lock on
//! standard error and a write(2), and it blocks where the reader of the pipe does not read. A log whose reader
//! went away is dropped in silence: the subscriber's own complaint about it would be a panic, and a panic on a
//! shard is the end of that shard.

use std::io::{self, IsTerminal as _};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::config::LogFormat;

/// Reads a filter such as `info` or `info,millrace::store=debug`. The error completes "it must be …".
pub fn parse_filter(text: &str) -> Result<EnvFilter, String> {
    let expected = || "error, warn, info, debug, trace, off, or a filter such as info,millrace::store=debug".to_owned();
    // A bare word that is no level would name a target and silence everything else: more likely a typo.
    let bare_typo = |directive: &str| !directive.contains(['=', '[']) && directive.parse::<LevelFilter>().is_err();
    if text.trim().is_empty() || text.split(',').map(str::trim).any(bare_typo) {
        return Err(expected());
    }
    EnvFilter::try_new(text).map_err(|error| format!("{} ({error})", expected()))
}

/// Starts logging for the rest of the process. Call it once; a filter or a second start is refused with the reason.
pub fn init(filter: &str, format: LogFormat) -> Result<(), String> {
    let log = tracing_subscriber::fmt()
        .with_env_filter(parse_filter(filter)?)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .log_internal_errors(false);
    match format {
        LogFormat::Text => log.try_init(),
        LogFormat::Json => log.json().flatten_event(true).try_init(),
    }
    .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_levels_or_target_directives() {
        for text in ["info", "OFF", "warn,millrace=debug", "info,millrace::store=trace", "info,[span{field=1}]=debug"] {
            assert!(parse_filter(text).is_ok(), "{text:?}");
        }
        for text in ["", " ", "loud", "inf", "millrace=loud", "info,millrace", "info, millrace=debug"] {
            assert!(parse_filter(text).is_err(), "{text:?}");
        }
    }
}
