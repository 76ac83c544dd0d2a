//! Processes that the tests started, found by a variable in their environment. It is inherited through new sessions and by
//! orphans alike.

use std::fs;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Not called `MILLRACE_…`: the server refuses variables of its own that it does not know.
pub const VARIABLE: &str = "TEST_RUN_OF_MILLRACE";

/// How often the process table is read.
const PAUSE: Duration = Duration::from_millis(500);
/// The watchdog of a test's Postgres takes its time to remove a directory of files.
const MAY_END_WITHIN: Duration = Duration::from_secs(60);
/// Between TERM and KILL.
const MAY_OBEY_WITHIN: Duration = Duration::from_secs(3);

/// The mark of one run.
pub struct Mark(String);

impl Mark {
    /// A value that no other run has.
    pub fn new() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(format!("{}.{}", std::process::id(), now.as_nanos()))
    }

    /// The variable's value.
    pub fn value(&self) -> &str {
        &self.0
    }

    /// `PID COMMAND` of every living process with the mark.
    fn living(&self) -> Vec<String> {
        let assignment = format!("{VARIABLE}={}", self.0).into_bytes();
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        let number = |name: std::ffi::OsString| name.to_str().and_then(|name| name.parse::<u32>().ok());
        processes
            .filter_map(|entry| number(entry.file_name()))
            .filter(|pid| {
                // A process that has ended has no environment left.
                let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
                environment.split(|byte| *byte == 0).any(|variable| variable == assignment)
            })
            .map(|pid| {
                let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                format!("{pid} {}", String::from_utf8_lossy(&command).replace('\0', " "))
            })
            .collect()
    }

    /// The processes that have not ended by themselves after a while.
    pub fn left_behind(&self) -> Vec<String> {
        self.living_after(MAY_END_WITHIN)
    }

    /// Ends them: TERM, time to obey, KILL, by their ids.
    pub fn sweep(&self) {
        signal("-TERM", &self.living());
        signal("-KILL", &self.living_after(MAY_OBEY_WITHIN));
    }

    fn living_after(&self, patience: Duration) -> Vec<String> {
        for _ in 0..patience.as_millis() / PAUSE.as_millis() {
            if self.living().is_empty() {
                return Vec::new();
            }
            sleep(PAUSE);
        }
        self.living()
    }
}

fn signal(signal: &str, processes: &[String]) {
    for pid in processes.iter().filter_map(|process| process.split(' ').next()) {
        // It may have ended meanwhile.
        let _ = Command::new("kill").args([signal, pid]).stderr(std::process::Stdio::null()).status();
    }
}
