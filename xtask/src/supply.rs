//! Licences, sources, duplicates and advisories of all dependencies, as `deny.toml` says.

use std::process::{Command, ExitCode, Stdio};

use crate::{Failure, section, succeeds};

/// Runs cargo-deny, installed first where it is not.
pub fn check() -> Result<ExitCode, Failure> {
    if !succeeds(quiet(&mut cargo(&["deny", "--version"])))? {
        section("Installing cargo-deny");
        if !succeeds(&mut cargo(&["install", "--locked", "cargo-deny"]))? {
            return Err("cargo-deny could not be installed; is crates.io there?".to_owned());
        }
    }
    section("cargo deny check (deny.toml)");
    if !succeeds(&mut deny(&["-D", "unmatched-skip", "licenses", "bans", "sources"]))? {
        return Err("the dependencies are not what deny.toml says".to_owned());
    }
    // The database is fetched by itself: that it cannot be had is told apart from an advisory.
    if !succeeds(quiet(&mut cargo(&["deny", "fetch", "db"])))? {
        let database = "github.com/RustSec/advisory-db";
        println!("\ntest: ok, but the advisories were NOT CHECKED: their database ({database}) is out of reach");
    } else if succeeds(&mut deny(&["--disable-fetch", "advisories"]))? {
        println!("\ntest: ok");
    } else {
        return Err("a dependency has an advisory".to_owned());
    }
    Ok(ExitCode::SUCCESS)
}

fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new("cargo");
    command.args(arguments);
    command
}

fn deny(arguments: &[&str]) -> Command {
    let mut command = cargo(&["deny", "--locked", "check", "--hide-inclusion-graph"]);
    command.args(arguments);
    command
}

fn quiet(command: &mut Command) -> &mut Command {
    command.stdout(Stdio::null()).stderr(Stdio::null())
}
