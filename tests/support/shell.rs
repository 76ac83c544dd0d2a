//! The program as a shell runs it: in a directory of its own, from an empty environment.

use std::fs;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use millrace_store::open::StoreConfig;

use crate::program::program;

/// A directory to run the program in, and the environment it gets.
pub struct Shell {
    pub dir: TempDir,
    environment: Vec<(&'static str, String)>,
}

/// What a run said and how it ended.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    /// Without the line that says which store was used.
    pub fn without_store(mut self) -> Self {
        if let Some(rest) = self.stderr.strip_prefix("store: ").and_then(|text| text.split_once('\n')) {
            self.stderr = rest.1.to_owned();
        }
        self
    }
}

impl Shell {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), environment: Vec::new() }
    }

    /// With an embedded store where the commands look for one: they make none.
    pub fn with_store() -> Self {
        let shell = Self::new();
        let config =
            StoreConfig { database_url: None, data_dir: shell.dir.path().join("millrace-data"), connections_max: 1 };
        millrace_store::open::open(&config).unwrap().migrate().unwrap();
        shell
    }

    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.environment.push((name, value.into()));
        self
    }

    pub fn file(&self, name: &str, text: &str) {
        fs::write(self.dir.path().join(name), text).unwrap();
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(program());
        command.args(args).current_dir(self.dir.path()).stdin(Stdio::null());
        command.env_clear().envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    pub fn run(&self, args: &[&str]) -> Ended {
        let Output { status, stdout, stderr } = self.command(args).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Ended { code: status.code(), stdout: text(stdout), stderr: text(stderr) }
    }

    /// Runs a command that must succeed and say nothing on standard error but which store it used; returns its standard
    /// output.
    pub fn ok(&self, args: &[&str]) -> String {
        let ended = self.run(args).without_store();
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{args:?}: {ended:?}");
        ended.stdout
    }

    /// The same with `--json`, parsed.
    pub fn json(&self, args: &[&str]) -> Value {
        let text = self.ok(&[args, &["--json"]].concat());
        assert_eq!(text.lines().count(), 1, "one line of JSON: {text:?}");
        serde_json::from_str(&text).unwrap()
    }

    /// Runs a command that must fail with `code`, explain itself on standard error only, and not panic.
    pub fn refused(&self, code: i32, args: &[&str]) -> String {
        let ended = self.run(args).without_store();
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(code), ""), "{args:?}: {ended:?}");
        assert!(ended.stderr.starts_with("error: ") && !ended.stderr.contains("panicked"), "{args:?}: {ended:?}");
        ended.stderr
    }
}

pub fn keys_of(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[track_caller]
pub fn assert_has(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "{text:?} lacks {word:?}");
    }
}
