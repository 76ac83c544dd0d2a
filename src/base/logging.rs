//! The log: lines on standard error, as text for people or as JSON for collectors, through one filter.
//!
//! Standard output belongs to the results of commands. Nothing is logged per event. Logging never waits for the reader of
//! standard error: a line goes into a bounded buffer, and the `log` thread writes it ([`lines`]). If nobody reads the pipe, its
//! reader has gone or its disk is full, lines are dropped and counted (`log_lines_dropped_total`), and the server goes on.
//! Panic messages go the same way. Only the end of the process waits for the last lines, a second at most ([`flush`],
//! [`fail`]).

mod lines;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{self, IsTerminal as _, Write};
use std::panic::{self, PanicHookInfo};
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use self::lines::Lines;
use crate::clock::Timestamp;
use crate::{critical_thread, limits};

/// The format of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One line an event, for people.
    Text,
    /// One JSON object a line, for collectors.
    Json,
}

/// The log of the process, from [`init`] on.
static LOG: OnceLock<Lines> = OnceLock::new();

/// Parses a filter such as `info` or `info,millrace_store=debug`. The error completes "it must be …".
pub fn parse_filter(text: &str) -> Result<EnvFilter, String> {
    let expected = || "error, warn, info, debug, trace, off, or a filter such as info,millrace_store=debug".to_owned();
    // A bare word that is no level would name a target and silence everything else; it is more likely a typo.
    let bare_typo = |directive: &str| !directive.contains(['=', '[']) && directive.parse::<LevelFilter>().is_err();
    if text.trim().is_empty() || text.split(',').map(str::trim).any(bare_typo) {
        return Err(expected());
    }
    // Filters written for older versions, where a room was a module of one crate, still work.
    EnvFilter::try_new(text.replace("millrace::", "millrace_")).map_err(|error| format!("{} ({error})", expected()))
}

/// Starts logging for the rest of the process. A wrong filter or a second call is refused with the reason.
pub fn init(filter: &str, format: LogFormat) -> Result<(), String> {
    let filter = parse_filter(filter)?;
    let notice = match format {
        LogFormat::Text => |dropped| notice(LogFormat::Text, dropped),
        LogFormat::Json => |dropped| notice(LogFormat::Json, dropped),
    };
    let (log, writer) = lines::lines(io::stderr(), notice);
    let log = LOG.set(log).map(|()| LOG.get().expect("set above")).map_err(|_| "logging was started before")?;
    critical_thread::spawn("log", move || writer.run()).map_err(|error| format!("no thread for the log: {error}"))?;
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(move || log)
        .with_ansi(io::stderr().is_terminal())
        .log_internal_errors(false);
    match format {
        LogFormat::Text => subscriber.try_init(),
        LogFormat::Json => subscriber.json().flatten_event(true).try_init(),
    }
    .map_err(|error| error.to_string())?;
    panic::set_hook(Box::new(move |panic| log_panic(log, format, panic)));
    Ok(())
}

/// Waits until the lines so far are written, at most [`limits::LOG_FLUSH_WAIT_MAX`]. Call it before the process ends.
pub fn flush() {
    if let Some(log) = LOG.get() {
        log.flush(limits::LOG_FLUSH_WAIT_MAX);
    }
}

/// Writes to standard error why a command failed, as its last line.
pub fn fail(message: &str) {
    let line = format!("error: {message}\n");
    if let Some(log) = LOG.get() {
        // Earlier lines first, so that this one has room.
        log.flush(limits::LOG_FLUSH_WAIT_MAX);
        log.put(line.as_bytes());
    } else {
        // If standard error is closed, the exit code still tells.
        let _ = io::stderr().write_all(line.as_bytes());
    }
}

/// Number of lines dropped so far.
pub fn lines_dropped() -> u64 {
    LOG.get().map_or(0, Lines::dropped)
}

/// The subscriber writes each line whole.
impl Write for &Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.put(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn notice(format: LogFormat, dropped: u64) -> Vec<u8> {
    let message = format!("{dropped} lines of this log were dropped: standard error did not take them");
    line(format, "WARN", &message)
}

/// Logs a panic like the standard library's hook, which could block a shard on standard error forever.
fn log_panic(log: &Lines, format: LogFormat, panic: &PanicHookInfo<'_>) {
    const WAIT_MAX: Duration = Duration::from_millis(100);
    let thread = thread::current();
    let place = panic.location().map_or_else(String::new, |place| format!(" at {place}"));
    let mut message = format!("thread '{}' panicked{place}:\n", thread.name().unwrap_or("<unnamed>"));
    let payload = panic.payload();
    let text = payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    message.push_str(text.unwrap_or("a value that is no text"));
    let backtrace = Backtrace::capture();
    if backtrace.status() == BacktraceStatus::Captured {
        message = format!("{message}\nstack backtrace:\n{backtrace}");
    }
    log.put(&line(format, "ERROR", &message));
    // A second panic while this one unwinds would end the process on the spot.
    if !log.is_stuck() {
        log.flush(WAIT_MAX);
    }
}

/// Formats a line that does not come from the subscriber.
fn line(format: LogFormat, level: &str, message: &str) -> Vec<u8> {
    #[derive(serde::Serialize)]
    struct Json<'a> {
        timestamp: &'a str,
        level: &'a str,
        message: &'a str,
        target: &'a str,
    }
    let (timestamp, target) = (&*Timestamp::now().to_rfc3339(), module_path!());
    let mut line = match format {
        LogFormat::Text => format!("{timestamp} {level:>5} {target}: {message}").into_bytes(),
        LogFormat::Json => serde_json::to_vec(&Json { timestamp, level, message, target }).expect("four strings"),
    };
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_levels_or_target_directives() {
        for text in [
            "info",
            "OFF",
            "warn,millrace=debug",
            "info,millrace_store=trace,millrace::store=trace",
            "info,[span{field=1}]=debug",
        ] {
            assert!(parse_filter(text).is_ok(), "{text:?}");
        }
        for text in ["", " ", "loud", "inf", "millrace=loud", "info,millrace", "info, millrace=debug"] {
            assert!(parse_filter(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_line_of_its_own_has_the_logs_format() {
        let text = String::from_utf8(notice(LogFormat::Text, 3)).unwrap();
        assert!(text.contains("Z  WARN millrace_base::logging: 3 lines of this log were dropped"), "{text}");
        let json = notice(LogFormat::Json, 3);
        assert_eq!(json.split(|byte| *byte == b'\n').count(), 2, "one line");
        let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
        assert_eq!((&json["level"], &json["target"]), (&"WARN".into(), &"millrace_base::logging".into()));
    }
}
