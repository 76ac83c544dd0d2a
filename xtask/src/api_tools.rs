//! The tools of `tests/campaigns/api_tools`, which work with API documents.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::{Failure, section, succeeds};

const FROM: &str = "tests/campaigns/api_tools";
const INTO: &str = "target/api-tools";
const LOCKS: [&str; 2] = ["requirements.txt", "package-lock.json"];

/// Installs them under `target/`, in the versions that the repository names; again only when these change. Returns where
/// they are.
pub fn install() -> Result<String, Failure> {
    let into = std::env::current_dir().map_err(|error| format!("the working directory: {error}"))?.join(INTO);
    let versions = LOCKS.map(|file| fs::read_to_string(Path::new(FROM).join(file)).unwrap_or_default()).concat();
    let stamp = into.join("versions");
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == versions) {
        return Ok(into.to_string_lossy().into_owned());
    }
    section("Installing what works with API documents (PyPI, npm)");
    let failed = |what: &'static str| move |error: std::io::Error| format!("{what}: {error}");
    if into.exists() {
        fs::remove_dir_all(&into).map_err(failed(INTO))?;
    }
    let (python, npm) = (into.join("python"), into.join("npm"));
    fs::create_dir_all(&npm).map_err(failed(INTO))?;
    must("python3 -m venv failed", Command::new("python3").args(["-m", "venv"]).arg(&python))?;
    must(
        "pip could not install requirements.txt; is PyPI there?",
        Command::new(python.join("bin/pip"))
            .args(["install", "-q", "--disable-pip-version-check", "--only-binary", ":all:", "-r"])
            .arg(Path::new(FROM).join("requirements.txt")),
    )?;
    for file in ["package.json", "package-lock.json"] {
        fs::copy(Path::new(FROM).join(file), npm.join(file)).map_err(failed(file))?;
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths([python.join("bin")].into_iter().chain(std::env::split_paths(&path)));
    must(
        "npm could not install package-lock.json; is the registry of npm there?",
        Command::new(python.join("bin/npm"))
            .arg("ci")
            .arg("--prefix")
            .arg(&npm)
            .args(["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel", "error"])
            .env("PATH", path.map_err(|error| format!("PATH: {error}"))?),
    )?;
    fs::write(stamp, versions).map_err(failed(INTO))?;
    Ok(into.to_string_lossy().into_owned())
}

fn must(failure: &str, command: &mut Command) -> Result<(), Failure> {
    if succeeds(command)? { Ok(()) } else { Err(failure.to_owned()) }
}
