//! A Prometheus server of the test's own, on the loopback, with the project's alert rules.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use support::server::{PATIENCE, eventually};

/// Runs its arguments until standard input ends, however the test does.
const WATCHDOG: &str = r#""$@" < /dev/null & pid=$!; cat > /dev/null; kill -KILL "$pid"; wait"#;

/// A running server; gone when dropped.
pub struct Prometheus {
    port: u16,
    watchdog: Child,
    _dir: TempDir,
}

/// An alert rule as the server loaded it.
#[derive(Debug)]
pub struct Rule {
    /// The alert.
    pub name: String,
    /// Its expression.
    pub expression: String,
    /// `unknown` until it was evaluated, then `ok` or `err`.
    pub health: String,
    /// What the last evaluation said.
    pub error: String,
    /// `inactive`, `pending` or `firing`.
    pub state: String,
}

impl Prometheus {
    /// Scrapes `targets` every second and evaluates `tuning/alerts.yml` as often.
    pub fn start(targets: &[SocketAddr]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let targets: Vec<String> = targets.iter().map(ToString::to_string).collect();
        let config = serde_json::json!({
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [concat!(env!("CARGO_MANIFEST_DIR"), "/tuning/alerts.yml")],
            "scrape_configs": [{"job_name": "millrace", "static_configs": [{"targets": targets}]}],
        });
        // JSON is YAML.
        let file = dir.path().join("prometheus.yml");
        std::fs::write(&file, config.to_string()).expect("a file is written");
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|l| l.local_addr()).expect("a port").port();
        let watchdog = Command::new("sh")
            .args(["-c", WATCHDOG, "watchdog", "prometheus"])
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .arg("--log.level=warn")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("sh runs");
        let prometheus = Self { port, watchdog, _dir: dir };
        eventually("Prometheus (the package `prometheus`; ./test installs it) is ready", || {
            prometheus.get("/-/ready").is_some_and(|(status, _)| status == 200)
        });
        prometheus
    }

    /// `data` of a successful answer.
    pub fn api(&self, path: &str, parameters: &[(&str, &str)]) -> Value {
        let parameters: Vec<String> =
            parameters.iter().map(|(name, value)| format!("{name}={}", escape(value))).collect();
        let (status, body) = self.get(&format!("/api/v1/{path}?{}", parameters.join("&"))).expect("an answer");
        let mut answer: Value = serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body}"));
        assert_eq!((status, answer["status"].as_str()), (200, Some("success")), "{path} {parameters:?}: {answer}");
        answer["data"].take()
    }

    /// The samples an expression selects now.
    pub fn query(&self, expression: &str) -> Vec<Value> {
        self.api("query", &[("query", expression)])["result"].as_array().expect("a vector").clone()
    }

    /// The value of the one sample an expression selects now; `None` where it selects none.
    pub fn value(&self, expression: &str) -> Option<f64> {
        let samples = self.query(expression);
        assert!(samples.len() <= 1, "{samples:?}");
        let value = samples.first()?["value"][1].as_str()?.parse();
        Some(value.expect("a number"))
    }

    /// All alert rules.
    pub fn rules(&self) -> Vec<Rule> {
        let groups = self.api("rules", &[]);
        let groups = groups["groups"].as_array().expect("groups").iter();
        let rules = groups.flat_map(|group| group["rules"].as_array().expect("rules"));
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        rules
            .map(|rule| Rule {
                name: text(&rule["name"]),
                expression: text(&rule["query"]),
                health: text(&rule["health"]),
                error: text(&rule["lastError"]),
                state: text(&rule["state"]),
            })
            .collect()
    }

    /// The state of one alert.
    pub fn state(&self, alert: &str) -> String {
        let rule = self.rules().into_iter().find(|rule| rule.name == alert);
        rule.unwrap_or_else(|| panic!("no alert {alert}")).state
    }

    /// One GET: status and body. HTTP/1.0, so that the body ends with the connection.
    fn get(&self, target: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        write!(stream, "GET {target} HTTP/1.0\r\nHost: localhost\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.get(9..12)?.parse().ok()?, body.to_owned()))
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        drop(self.watchdog.stdin.take());
        let _ = self.watchdog.wait();
    }
}

/// As the value of a query parameter.
fn escape(text: &str) -> String {
    text.bytes().fold(String::new(), |escaped, byte| escaped + &format!("%{byte:02X}"))
}
