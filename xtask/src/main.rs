//! `./test` once its packages are installed: `cargo run -p xtask -- test …`.
//!
//! Runs the tests or one campaign with cargo, checks the alert rules and the scripts, and prints what was run. A test that
//! fails, is ignored or is filtered out without a filter is a failure, and so is a process that a test leaves behind.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for a terminal")]

mod api_tools;
mod checks;
mod marked;
mod plan;
mod run;
mod summary;
mod supply;

use std::process::{Command, ExitCode};
use std::time::Instant;

use plan::Plan;
use run::{Run, Stop};

/// What went wrong, for standard error.
type Failure = String;

/// Exit code for a command line that means nothing.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let plan = match arguments.split_first() {
        Some((first, rest)) if first == "test" => Plan::parse(rest),
        _ => Err("the one command is `test`".to_owned()),
    };
    let plan = match plan {
        Ok(plan) => plan,
        Err(why) => {
            eprintln!("test: {why}; `./test --help` shows what there is");
            return ExitCode::from(USAGE);
        }
    };
    match carry_out(plan) {
        Ok(code) => code,
        Err(why) => {
            eprintln!("test: {why}");
            ExitCode::FAILURE
        }
    }
}

fn carry_out(plan: Plan) -> Result<ExitCode, Failure> {
    match plan {
        Plan::Supply => supply::check(),
        Plan::Instructions { accept } => {
            let mut guard = Command::new("perf/guard");
            guard.args(accept.then_some("--accept"));
            Ok(if succeeds(&mut guard)? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Plan::Tests(tests) => test(tests),
    }
}

fn test(mut tests: plan::Tests) -> Result<ExitCode, Failure> {
    if tests.needs_api_tools {
        tests.environment.push(("MILLRACE_API_TOOLS", api_tools::install()?));
    }
    let stop = Stop::on_signals()?;
    let began = Instant::now();
    section(&format!("cargo test {}", tests.cargo_arguments().join(" ")));
    let run = match run::cargo_test(&tests, &stop)? {
        Run::Ended(run) => run,
        Run::Stopped(signal) => return Ok(ExitCode::from(128 + signal)),
    };
    let checks = if tests.is_everything() { checks::all()? } else { Vec::new() };
    section(&format!("What was run ({} s)", began.elapsed().as_secs()));
    let summary = summary::Summary::of(&run.log, tests.is_filtered());
    print!("{summary}");
    for check in &checks {
        println!("{check}");
    }
    for process in &run.left_behind {
        println!("PROBLEM: left behind, now stopped: {process}");
    }
    let is_good = run.is_success
        && summary.problems.is_empty()
        && run.left_behind.is_empty()
        && checks.iter().all(|check| check.result != checks::CheckResult::Failed);
    println!("\ntest: {}", if is_good { "ok" } else { "FAILED" });
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn section(title: &str) {
    println!("\n== {title}");
}

/// Runs a command to its end, with its output shown.
fn succeeds(command: &mut Command) -> Result<bool, Failure> {
    let name = command.get_program().to_string_lossy().into_owned();
    command.status().map(|status| status.success()).map_err(|error| format!("{name} cannot be run: {error}"))
}
