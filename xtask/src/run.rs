//! Runs cargo with its output shown and kept, and ends whatever it leaves behind.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::sleep;
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::Failure;
use crate::marked::{self, Mark};
use crate::plan::Tests;

/// Tests at a time for each core: most of them wait for a server or a database.
const THREADS_PER_CORE: usize = 2;

/// The signal that asks for an early end; 0 while there is none.
pub struct Stop(Arc<AtomicUsize>);

impl Stop {
    /// From now on, SIGINT, SIGTERM and SIGHUP only ask for the end.
    pub fn on_signals() -> Result<Self, Failure> {
        let stop = Arc::new(AtomicUsize::new(0));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register_usize(signal, Arc::clone(&stop), signal.unsigned_abs() as usize)
                .map_err(|error| format!("signal {signal} cannot be handled: {error}"))?;
        }
        Ok(Self(stop))
    }

    fn signal(&self) -> Option<u8> {
        u8::try_from(self.0.load(Ordering::Relaxed)).ok().filter(|signal| *signal > 0)
    }
}

/// What became of a run.
pub enum Run {
    /// Cargo ended.
    Ended(Ended),
    /// A signal ended it.
    Stopped(u8),
}

/// A run that ended by itself.
pub struct Ended {
    /// Whether cargo says so.
    pub is_success: bool,
    /// What it printed.
    pub log: String,
    /// `PID COMMAND` of the processes that were still there, and now are not.
    pub left_behind: Vec<String>,
}

/// Runs the tests.
pub fn cargo_test(tests: &Tests, stop: &Stop) -> Result<Run, Failure> {
    let mark = Mark::new();
    let path = std::env::temp_dir().join(format!("millrace-test.{}", mark.value()));
    // To a file, not through a pipe, which a process left behind would hold open.
    let written = File::create(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let mut shown = File::open(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    // It lasts as long as it is open.
    std::fs::remove_file(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let copy = |file: &File| file.try_clone().map(Stdio::from).map_err(|error| format!("{}: {error}", path.display()));

    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.arg("test").args(tests.cargo_arguments()).envs(tests.environment.iter().cloned());
    cargo.env(marked::VARIABLE, mark.value()).env("CARGO_TERM_COLOR", "never");
    if std::env::var_os("RUST_TEST_THREADS").is_none() {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        cargo.env("RUST_TEST_THREADS", (cores * THREADS_PER_CORE).to_string());
    }
    let mut cargo = cargo
        .stdout(copy(&written)?)
        .stderr(copy(&written)?)
        .spawn()
        .map_err(|error| format!("cargo cannot be run: {error}"))?;

    let mut log = Vec::new();
    let status = loop {
        if let Some(signal) = stop.signal() {
            mark.sweep();
            let _ = cargo.wait();
            return Ok(Run::Stopped(signal));
        }
        let status = cargo.try_wait().map_err(|error| format!("cargo: {error}"))?;
        show(&mut shown, &mut log).map_err(|error| format!("{}: {error}", path.display()))?;
        match status {
            Some(status) => break status,
            None => sleep(Duration::from_millis(100)),
        }
    };
    let left_behind = mark.left_behind();
    mark.sweep();
    let log = String::from_utf8_lossy(&log).into_owned();
    Ok(Run::Ended(Ended { is_success: status.success(), log, left_behind }))
}

/// Shows what is new in the file.
fn show(file: &mut File, log: &mut Vec<u8>) -> io::Result<()> {
    let before = log.len();
    file.read_to_end(log)?;
    let mut terminal = io::stdout().lock();
    terminal.write_all(&log[before..])?;
    terminal.flush()
}
