//! The log's buffer in front of standard error.

use std::time::Duration;

/// Lines that wait to be written to standard error. 40 bytes each without their text: 160 KiB. Beyond it a line is dropped
/// and counted.
pub const LOG_LINES_MAX: usize = 4096;
/// The text of those lines, in bytes: 256 for each.
pub const LOG_BYTES_MAX: usize = 1024 * 1024;
/// How long the process waits at its end for standard error to take the last lines.
pub const LOG_FLUSH_WAIT_MAX: Duration = Duration::from_secs(1);
