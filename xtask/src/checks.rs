//! What is checked beside the tests: the alert rules, the instructions of the ingest path, the scripts.

use std::fmt::{self, Display, Formatter};
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Failure, section, succeeds};

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckResult {
    /// As it must.
    Ok,
    /// Otherwise.
    Failed,
    /// Its program is too much to install for this.
    Skipped,
}

/// One check.
pub struct Check {
    name: String,
    /// See there.
    pub result: CheckResult,
}

impl Display for Check {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let result = match self.result {
            CheckResult::Ok => "ok     ",
            CheckResult::Failed => "FAILED ",
            CheckResult::Skipped => "skipped",
        };
        write!(f, "{result} {}", self.name)
    }
}

impl Check {
    fn run(name: String, command: &mut Command) -> Result<Self, Failure> {
        let result = if succeeds(command)? { CheckResult::Ok } else { CheckResult::Failed };
        Ok(Self { name, result })
    }
}

/// All of them.
pub fn all() -> Result<Vec<Check>, Failure> {
    section("Alert rules and scripts");
    let mut checks = Vec::new();
    for words in [
        &["promtool", "check", "rules", "tuning/alerts.yml"][..],
        &["promtool", "test", "rules", "tuning/alerts_test.yml"],
        &["perf/guard"],
    ] {
        checks.push(Check::run(words.join(" "), Command::new(words[0]).args(&words[1..]))?);
    }
    let unit = "tuning/check_unit";
    checks.push(if is_installed("systemd-analyze") {
        Check::run(unit.to_owned(), &mut Command::new(unit))?
    } else {
        Check { name: format!("{unit}: there is no systemd-analyze here"), result: CheckResult::Skipped }
    });
    for script in executables(Path::new(".")).map_err(|error| format!("the scripts: {error}"))? {
        if let Some((name, mut command)) = syntax_check(&script) {
            checks.push(Check::run(name, &mut command)?);
        }
    }
    Ok(checks)
}

fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

/// Executable files in the working tree, in the order of their names.
fn executables(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        if kind.is_dir() && !["./target", "./.git"].iter().any(|left_out| path == Path::new(left_out)) {
            found.extend(executables(&path)?);
        } else if kind.is_file() && entry.metadata()?.permissions().mode() & 0o100 != 0 {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// How a script's syntax is checked, by its first line.
fn syntax_check(script: &Path) -> Option<(String, Command)> {
    const PARSES: &str = "import ast, sys; ast.parse(open(sys.argv[1]).read(), sys.argv[1])";
    let mut begin = Vec::new();
    fs::File::open(script).ok()?.take(64).read_to_end(&mut begin).ok()?;
    let first = begin.split(|byte| *byte == b'\n').next()?.strip_prefix(b"#!")?;
    let (name, program, arguments) = if first.ends_with(b"bash") {
        ("bash -n", "bash", ["-n"].as_slice())
    } else if first.ends_with(b"/sh") {
        ("sh -n", "sh", &["-n"][..])
    } else if first.ends_with(b"python3") {
        ("python3 syntax", "python3", &["-c", PARSES][..])
    } else {
        return None;
    };
    let mut command = Command::new(program);
    command.args(arguments).arg(script);
    Some((format!("{name} {}", script.display()), command))
}
