//! Organisations whose endpoints have names, on the running server, with a real name server on loopback that answers for
//! some of them. The server runs in this process, because the place of the system's name servers is no setting.
//!
//! A binary of its own, because a server sets its process's signal handlers, limits and panic hook.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;

use serde_json::{Value, json};
use tempfile::TempDir;

use millrace_server::boot;
use millrace_server::config::{self, Flags};
use millrace_webhooks::client::ResolverFiles;
use support::name_server::{NameServer, Said, address};
use support::receiver::{Receiver, answer, answer_with};
use support::server::{Client, Options, PATIENCE, eventually};

/// Where the server that is starting says who it is.
static WELCOME: Mutex<Option<mpsc::Sender<(SocketAddr, String)>>> = Mutex::new(None);

/// One starts at a time.
static STARTING: Mutex<()> = Mutex::new(());

/// A server in this process, with its own store, until the process ends.
struct InProcessServer {
    addr: SocketAddr,
    first_key: String,
    dir: TempDir,
}

impl InProcessServer {
    fn start(resolver_files: ResolverFiles) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("millrace.toml");
        let text = format!(
            "listen = \"127.0.0.1:0\"\nops_listen = \"127.0.0.1:0\"\ndata_dir = '{}'\nshards = 1\npin = false\n\
             allow_insecure_webhooks = true\nwebhook_retry_schedule = \"30m\"\nargon2_memory_kib = 8\nrate_limit_per_minute = 0\n",
            dir.path().join("data").display()
        );
        std::fs::write(&file, text).unwrap();
        let mut config =
            config::load(Some(&file), &Flags::default(), 1).unwrap_or_else(|error| panic!("{error}")).config;
        config.deliver.resolver_files = resolver_files;
        let _starting = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
        let (welcome, welcomed) = mpsc::channel();
        *WELCOME.lock().unwrap() = Some(welcome);
        thread::spawn(move || {
            boot::serve(config, None, &[], |addr, _, key| {
                let welcome = WELCOME.lock().unwrap().take().expect("one starts at a time");
                welcome.send((addr, key.to_owned())).map_err(std::io::Error::other)
            })
        });
        let (addr, first_key) = welcomed.recv_timeout(PATIENCE).expect("it starts");
        let server = Self { addr, first_key, dir };
        eventually("the server is ready", || Client::connect(addr).request("GET", "/ready", None, None).status == 200);
        server
    }

    /// Another organisation's key.
    fn organization(&self, name: &str) -> String {
        let made = Options::default().cli(&self.data_dir(), &["org", "create", name, "--rate-limit", "0", "--json"]);
        let made: Value = serde_json::from_str(&made).unwrap();
        made["api_key"].as_str().unwrap_or_else(|| panic!("{made}")).to_owned()
    }

    fn data_dir(&self) -> std::path::PathBuf {
        Path::new(self.dir.path()).join("data")
    }

    fn request(&self, method: &str, path: &str, key: &str, body: Option<&Value>) -> Value {
        let body = body.map(Value::to_string);
        let answer = Client::connect(self.addr).request(method, path, Some(key), body.as_deref().map(str::as_bytes));
        assert!((200..300).contains(&answer.status), "{method} {path}: {}", answer.json());
        answer.json()
    }

    fn endpoint(&self, key: &str, url: &str) -> String {
        let made = self.request("POST", "/api/endpoints", key, Some(&json!({ "url": url })));
        made["id"].as_str().unwrap().to_owned()
    }

    fn post(&self, key: &str, count: usize) {
        let events: Vec<Value> = (0..count).map(|n| json!({ "type": "t", "payload": n })).collect();
        self.request("POST", "/api/events/batch", key, Some(&Value::from(events)));
    }

    fn deliveries(&self, key: &str, status: &str) -> Vec<Value> {
        let page = self.request("GET", &format!("/api/deliveries?limit=1000&status={status}"), key, None);
        page["data"].as_array().unwrap().clone()
    }

    /// How many circuits are open.
    fn open_circuits(&self) -> f64 {
        let scrape = Client::connect(self.addr).request("GET", "/metrics", None, None);
        support::server::sample(&String::from_utf8(scrape.body).unwrap(), "webhook_open_circuits")
    }
}

#[test]
fn unanswered_names_delay_only_their_own_organisation() {
    const DEAD: usize = 100;
    const HEALTHY: usize = 60;
    let server = NameServer::start(|name| match name {
        "" => Said::Addresses(Vec::new(), 0),
        // Not remembered, and the receiver keeps no connection: each delivery needs a lookup of its own.
        "healthy.test" => address("127.0.0.1"),
        _ => Said::Nothing,
    });
    let dir = tempfile::tempdir().unwrap();
    let millrace = InProcessServer::start(server.files(dir.path(), "", ""));
    let receiver = Receiver::start(|_| answer_with(200, "Connection: close\r\n", ""));
    let (dead, healthy) = (millrace.first_key.clone(), millrace.organization("healthy"));
    for n in 0..DEAD {
        millrace.endpoint(&dead, &format!("http://dead{n}.test/"));
    }
    millrace.endpoint(&healthy, &receiver.url_of("healthy.test", "/"));
    millrace.post(&dead, 4);
    eventually("the dead names are being looked up", || server.asked().len() >= 32);
    for _ in 0..HEALTHY {
        millrace.post(&healthy, 1);
    }
    eventually("all of the healthy one arrive", || millrace.deliveries(&healthy, "delivered").len() == HEALTHY);
    let delivered = millrace.deliveries(&healthy, "delivered");
    assert!(delivered.iter().all(|delivery| delivery["attempts"].as_array().unwrap().len() == 1));
    assert_eq!(receiver.count(), HEALTHY);
    // The dead ones fail, each by an attempt that says why.
    let mut failed = Vec::new();
    eventually("the dead ones fail", || {
        failed = millrace.deliveries(&dead, "pending");
        failed.retain(|delivery| !delivery["attempts"].as_array().unwrap().is_empty());
        failed.len() == 4 * DEAD
    });
    for delivery in &failed {
        assert_eq!(delivery["attempts"][0]["error"], "dns_failed");
        assert_eq!(delivery["attempts"][0]["error_detail"], "the name servers give no answer for this name");
    }
}

#[test]
fn deliveries_wait_while_the_name_servers_are_away() {
    let answers = Arc::new(AtomicBool::new(false));
    let server = NameServer::start({
        let answers = Arc::clone(&answers);
        move |_| if answers.load(Ordering::SeqCst) { address("127.0.0.1") } else { Said::Nothing }
    });
    let dir = tempfile::tempdir().unwrap();
    let millrace = InProcessServer::start(server.files(dir.path(), "", ""));
    let receiver = Receiver::start(|_| answer(200, ""));
    let key = millrace.first_key.clone();
    let endpoint = millrace.endpoint(&key, &receiver.url_of("receiver.test", "/"));
    millrace.post(&key, 30);
    // One lookup asks eight times at most: it has been put off, and is looked up again.
    eventually("it is asked for again and again", || server.count("receiver.test") > 8);
    let waiting = millrace.deliveries(&key, "pending");
    assert_eq!(waiting.len(), 30);
    assert!(waiting.iter().all(|delivery| delivery["attempts"] == json!([])));
    assert!(millrace.open_circuits() < 1.0);
    answers.store(true, Ordering::SeqCst);
    eventually("all arrive", || millrace.deliveries(&key, "delivered").len() == 30);
    let delivered = millrace.deliveries(&key, "delivered");
    assert!(delivered.iter().all(|delivery| delivery["attempts"].as_array().unwrap().len() == 1));
    let endpoint = millrace.request("GET", &format!("/api/endpoints/{endpoint}"), &key, None);
    assert_eq!(endpoint["enabled"], true);
}
