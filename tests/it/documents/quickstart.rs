//! What the README and docs/deployment.md promise a stranger: the commands and the lines they say to paste.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use regex::Regex;
use serde_json::Value;
use tokio::runtime::Builder;

use support::postgres::Cluster;
use support::server::{Options, Server, collect, eventually};

use super::receiver_example::receiver::Receiver;

const README: &str = include_str!("../../../README.md");
const DEPLOYMENT: &str = include_str!("../../../docs/deployment.md");

/// As a user starts it: shards pinned, keys hashed at the default cost.
fn as_shipped(mut options: Options) -> Options {
    options.env.push(("MILLRACE_PIN".to_owned(), "true".to_owned()));
    options.env.push(("MILLRACE_ARGON2_MEMORY_KIB".to_owned(), "4096".to_owned()));
    options
}

/// Pastes a line into a shell; what it prints.
fn paste(line: &str) -> String {
    let output = Command::new("sh").args(["-c", line]).output().expect("sh runs");
    assert!(
        output.status.success(),
        "this test needs curl: install the package `curl`, or run ./test; {line}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("text")
}

/// The lines of what the server printed that are to be pasted.
fn curl_lines(printed: &str) -> Vec<String> {
    printed.lines().map(str::trim).filter(|line| line.starts_with("curl ")).map(str::to_owned).collect()
}

#[test]
fn a_first_start_in_a_terminal_prints_a_key_and_curl_lines() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let data_dir = dir.path().join("millrace-data");
    let mut options = as_shipped(Options { data_dir: Some(data_dir.clone()), ..Options::default() });
    // A terminal for its standard output; standard error stays what it is.
    let log = dir.path().join("log");
    let pid = dir.path().join("pid");
    let script = format!(
        r#"exec script -qefc "echo \$\$ > '{}'; exec '$0' $* 2> '{}'" /dev/null"#,
        pid.display(),
        log.display()
    );
    options.through = ["sh", "-c", &script].map(str::to_owned).to_vec();
    let mut command = options.serve(&data_dir, &["--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0"]);
    let child = command.stdout(Stdio::piped()).spawn().expect("`script` runs: it is in the package `bsdutils`");
    // With its terminal the server ends, too.
    let mut child = Terminal(child);
    let printed = collect(child.0.stdout.take().expect("piped"));
    let printed = || printed.lock().expect("no reader panics").clone();
    eventually("two lines to paste are printed", || {
        let ended = child.0.try_wait().expect("a child");
        assert_eq!(ended, None, "{}{}", printed(), std::fs::read_to_string(&log).unwrap_or_default());
        curl_lines(&printed()).len() == 2
    });
    let lines = curl_lines(&printed());
    assert!(lines[0].contains("-H 'X-API-Key: mr_"), "{lines:?}");
    let said = || std::fs::read_to_string(&log).unwrap_or_default();
    eventually("the server is ready", || said().contains(" ready "));
    assert!(paste(&lines[0]).starts_with("HTTP/1.1 202 Accepted\r\n"));
    assert!(!data_dir.join("first-api-key").exists(), "shown, and kept nowhere");
    let key = lines[0].split("X-API-Key: ").nth(1).and_then(|rest| rest.split('\'').next()).expect("a key");
    assert!(!said().contains(key));
    let pid = std::fs::read_to_string(pid).expect("the shell wrote it");
    paste(&format!("kill -TERM {pid}"));
    eventually("the server has stopped", || child.0.try_wait().expect("a child").is_some());
    assert!(said().contains("; bye"), "{}", said());
}

/// Closed when it is dropped.
struct Terminal(Child);

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_first_start_without_terminal_keeps_the_key_in_a_file() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let data_dir = dir.path().join("millrace-data");
    let options = as_shipped(Options { data_dir: Some(data_dir.clone()), ..Options::default() });
    let mut server = Server::start(options.clone());
    let printed = || server.stdout.lock().expect("no reader panics").clone();
    eventually("two lines to paste are printed", || curl_lines(&printed()).len() == 2);
    let kept = data_dir.join("first-api-key");
    assert!(printed().contains(&kept.display().to_string()) && !printed().contains("mr_"), "{}", printed());
    assert_eq!(kept.metadata().expect("it is there").permissions().mode() & 0o777, 0o600);
    let lines = curl_lines(&printed());

    // As in the README.
    let answer = paste(&lines[0]);
    let (head, body) = answer.split_once("\r\n\r\n").expect("curl -i shows the head");
    assert!(head.starts_with("HTTP/1.1 202 Accepted\r\n"), "{head}");
    assert!(head.contains("\r\nRateLimit-Policy: \"org-minute\";q=1000;w=60"), "{head}");
    assert!(head.contains("\r\nRateLimit: \"org-minute\";r=999;t="), "{head}");
    let accepted: Value = serde_json::from_str(body).expect("JSON");
    assert_eq!(accepted["status"], "accepted");
    let id = accepted["id"].as_str().expect("an id");
    server.drained();
    let page: Value = serde_json::from_str(&paste(&lines[1])).expect("JSON");
    assert_eq!(page["data"][0]["id"], id);
    assert_eq!(page["data"][0]["payload"]["user"], "ada");
    let key = &server.take_first_key();
    let one = server.get(&format!("/api/events/{id}"), Some(key));
    let sent = r#"{"user":"ada"}"#;
    assert!(String::from_utf8_lossy(&one.body).contains(&format!(r#""payload":{sent}"#)), "byte for byte");

    // The key was in that file, and only there.
    let file = data_dir.join("millrace.db");
    let is_private = |path: &Path| path.metadata().expect("it is there").permissions().mode().trailing_zeros() >= 6;
    assert!(is_private(&data_dir) && is_private(&file), "for this user only");
    assert!(!server.log().contains(key));
    assert_eq!(server.stop(), 0);
    let secret = key.as_bytes();
    let entries = [&data_dir, &data_dir.join("journal")].map(|dir| dir.read_dir().expect("a directory"));
    let paths = entries.into_iter().flatten().map(|entry| entry.expect("an entry").path());
    for path in paths.filter(|path| path.is_file()) {
        let bytes = std::fs::read(path).expect("a file");
        assert!(!bytes.windows(secret.len()).any(|window| window == secret), "the key is stored in clear");
    }
    let server = Server::start(options);
    assert_eq!(server.get(&format!("/api/events/{id}"), Some(key)).body, one.body);
    assert_eq!(server.stdout.lock().expect("no reader panics").as_str(), "");
    assert!(!kept.exists());
}

#[test]
fn on_a_fresh_postgres_org_create_works_before_serve() {
    let cluster = Cluster::shared();
    let database = cluster.new_name();
    cluster.admin("postgres").batch_execute(&format!("CREATE DATABASE {database}")).expect("a database is created");
    let options = as_shipped(Options::postgres(&cluster.url(&database)));
    let dir = tempfile::tempdir().expect("a temporary directory");
    assert!(DEPLOYMENT.contains("org create acme --rate-limit 0"), "the page still says so");
    let printed = options.cli(dir.path(), &["org", "create", "acme", "--rate-limit", "0"]);
    let key = printed.split_whitespace().find(|word| word.starts_with("mr_")).expect("the key is printed").to_owned();
    let server = Server::start(options);
    let line = format!(
        "curl -s -i http://{}/api/events -H 'X-API-Key: {key}' -H 'Content-Type: application/json' \
         -d '{{\"type\":\"user.login\",\"payload\":{{\"b\": 1.50, \"a\":\"\\u00e9\"}}}}'",
        server.addr
    );
    let answer = paste(&line);
    assert!(answer.starts_with("HTTP/1.1 202 Accepted\r\n"), "{answer}");
    assert!(!answer.contains("RateLimit"), "an unlimited organisation has no limit to speak of");
    server.drained();
    let rows =
        cluster.admin(&database).query("SELECT type, payload::text FROM events", &[]).expect("the table is there");
    let rows: Vec<(&str, &str)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    assert_eq!(rows, [("user.login", r#"{"b": 1.50, "a":"\u00e9"}"#)]);
}

/// The commands of the README's transcript, each with what it is said to print.
fn transcript() -> Vec<(&'static str, String)> {
    let mut commands: Vec<(&str, String)> = Vec::new();
    for block in README.split("```console\n").skip(1) {
        for line in block.split("```").next().expect("a first part").lines() {
            match (line.strip_prefix("$ "), commands.last_mut()) {
                (Some(command), _) => commands.push((command, String::new())),
                (None, Some((_, printed))) => printed.extend([line, "\n"]),
                (None, None) => panic!("{line}: a block begins with a command"),
            }
        }
    }
    commands
}

/// What is printed, without what differs from run to run.
fn shape(printed: &str) -> String {
    let varying = [
        ("[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "ID"),
        ("[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]+Z", "TIME"),
        ("Date: [^\n]+", "Date: TIME"),
        ("t=[0-9]+", "t=SECONDS"),
        ("\"latency_ms\":[0-9]+", "\"latency_ms\":N"),
        ("whsec_[^\"]+", "SECRET"),
        ("127.0.0.1:[0-9]+", "ADDRESS"),
    ];
    let replace = |text: String, (pattern, word): &(&str, &str)| {
        Regex::new(pattern).expect("a pattern").replace_all(&text, *word).into_owned()
    };
    varying.iter().fold(printed.replace('\r', "").trim().to_owned(), replace)
}

#[test]
fn the_transcript_of_the_readme_is_what_happens() {
    let server = Server::start(as_shipped(Options::default()).with(&["--allow-insecure-webhooks"]));
    let key = server.take_first_key();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let listens_at = listener.local_addr().expect("an address");
    let mut listener = Some(listener);
    let printed_there = Arc::new(Mutex::new(format!("receiving webhooks on http://{listens_at}/\n")));
    let (mut secret, mut said_of_receiver) = (None, None);
    let shown_secret = Regex::new("whsec_[^\"]+").expect("a pattern");
    for (command, said) in transcript() {
        if command.starts_with("cargo run --release -- serve --allow-insecure-webhooks") {
            assert!(said.contains(r#"made the organisation "default" with this API key"#), "{said}");
        } else if command.ends_with("cargo run --example receiver") {
            let printed_there = Arc::clone(&printed_there);
            let handle = move |id: &str, body: &[u8]| {
                let text = String::from_utf8_lossy(body);
                printed_there.lock().expect("nobody panics").extend([id, " ", &*text, "\n"]);
            };
            let secret: String = secret.take().expect("the endpoint was made before");
            let receiver = Receiver::new(&secret, handle).expect("a secret");
            let listener = listener.take().expect("one receiver");
            listener.set_nonblocking(true).expect("a socket");
            std::thread::spawn(move || {
                let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
                let accept =
                    async { receiver.serve(tokio::net::TcpListener::from_std(listener).expect("a socket")).await };
                runtime.block_on(accept);
            });
            said_of_receiver = Some(said);
        } else if command.starts_with("curl ") {
            let line = command.replace("127.0.0.1:3000", &server.addr.to_string());
            let line = line.replace("127.0.0.1:4000", &listens_at.to_string());
            let line = line.replace("\"X-API-Key: $KEY\"", &format!("'X-API-Key: {key}'"));
            if line.contains(" -d ") {
                let printed = paste(&line);
                assert_eq!(shape(&printed), shape(&said), "{command}");
                let found = shown_secret.find(&printed).map(|found| found.as_str().to_owned());
                secret = found.or(secret);
            } else {
                eventually(command, || shape(&paste(&line)) == shape(&said));
            }
        } else {
            assert!(command.starts_with("KEY=mr_"), "{command}: this test does not know it");
        }
    }
    let said = said_of_receiver.expect("a receiver is started");
    assert_eq!(shape(&printed_there.lock().expect("nobody panics")), shape(&said));
}
