//! A server on each I/O driver, and what the modules say to it.

use support::server::{Client, Options, Response, Server, event, request};

/// What every test sends where it matters only that the event is good.
pub const EVENT: &str = r#"{"type":"user.login","payload":{"user":"ada"}}"#;

/// A server on the embedded store and the key of its first organisation, which has no rate limit.
pub struct Fixture {
    pub server: Server,
    pub key: String,
}

impl Fixture {
    pub fn start(driver: &'static str, args: &[&str]) -> Self {
        Self::start_with(driver, Options::default().with(args))
    }

    pub fn start_with(driver: &'static str, options: Options) -> Self {
        let server = Server::start(options.with(&["--rate-limit", "0", "--io-driver", driver]));
        let key = server.first_key();
        Self { server, key }
    }

    pub fn connect(&self) -> Client {
        self.server.connect()
    }

    /// The key with another last character, so that its checksum is wrong.
    pub fn wrong_key(&self) -> String {
        let (rest, last) = self.key.split_at(self.key.len() - 1);
        [rest, if last == "0" { "1" } else { "0" }].concat()
    }

    /// A good event.
    pub fn good(&self) -> Vec<u8> {
        self.post(EVENT)
    }

    /// `POST /api/events` with this body.
    pub fn post(&self, body: &str) -> Vec<u8> {
        request("POST", "/api/events", Some(&self.key), Some(body.as_bytes()))
    }

    /// A good event whose `dedup_id` nothing else has: none may be stored.
    pub fn smuggled(&self) -> Vec<u8> {
        self.post(&event("smuggled", None, "1"))
    }

    /// `POST /api/events` with the key, these fields (each ending in CR LF) and then these bytes.
    pub fn raw(&self, fields: &str, rest: &str) -> Vec<u8> {
        format!("POST /api/events HTTP/1.1\r\nHost: t\r\nX-API-Key: {}\r\n{fields}\r\n{rest}", self.key).into_bytes()
    }

    /// `POST /api/events` with a chunked body of exactly these bytes.
    pub fn chunked(&self, body: &str) -> Vec<u8> {
        self.raw("Transfer-Encoding: chunked\r\n", body)
    }

    /// A good event through a new connection: the server is well.
    pub fn is_well(&self) {
        assert_eq!(self.send_one(&self.good()).status, 202);
    }

    /// Sends `bytes` on a connection of their own; the first answer.
    pub fn send_one(&self, bytes: &[u8]) -> Response {
        let mut client = self.connect();
        client.send(bytes);
        client.response()
    }

    /// The value of a metric that counts, by its name and labels.
    pub fn count(&self, name: &str) -> u64 {
        self.server.metric(name) as u64
    }

    /// Events accepted so far.
    pub fn accepted(&self) -> u64 {
        self.count("events_ingested_total")
    }
}

/// What `--io-driver` is tested with. Where the kernel forbids `io_uring` (containers often do), `auto` takes its
/// place, which must then find epoll.
pub fn drivers() -> [&'static str; 2] {
    [if io_uring::IoUring::new(2).is_ok() { "uring" } else { "auto" }, "epoll"]
}

/// Runs a test against a server on each driver, side by side, and looks for panics in their logs.
pub fn on_both_drivers(args: &[&str], test: impl Fn(&Fixture) + Sync) {
    on_each_driver(|driver| {
        let fixture = Fixture::start(driver, args);
        test(&fixture);
        assert_no_panic(&fixture.server);
    });
}

/// Runs a test that starts its own servers once for each driver, side by side.
pub fn on_each_driver(test: impl Fn(&'static str) + Sync) {
    std::thread::scope(|scope| {
        let test = &test;
        let runs = drivers().map(|driver| (driver, scope.spawn(move || test(driver))));
        for (driver, run) in runs {
            assert!(run.join().is_ok(), "failed on {driver}; see above");
        }
    });
}

pub fn assert_no_panic(server: &Server) {
    let log = server.log();
    assert!(!log.contains("panicked") && !log.contains("a bug ended"), "{log}");
}

/// Checks a refusal: a problem document with this status and code.
#[track_caller]
pub fn assert_refused(what: &str, answer: &Response, status: u16, code: &str) {
    let body = String::from_utf8_lossy(&answer.body);
    assert_eq!((answer.status, answer.code().as_str()), (status, code), "{what}: {body}");
    let problem = answer.json();
    assert_eq!(problem["type"], "about:blank", "{what}");
    assert_eq!(answer.headers.get("cache-control").map(String::as_str), Some("no-store"), "{what}");
    assert!(!problem["detail"].as_str().unwrap_or_default().is_empty(), "{what}: {body}");
}

/// Checks that the answer says the connection closes, that it does, and that nothing more came.
#[track_caller]
pub fn assert_closed(what: &str, answer: &Response, client: &mut Client) {
    assert_eq!(answer.headers.get("connection").map(String::as_str), Some("close"), "{what}");
    assert!(client.is_closed(), "{what}: more than one answer, or still open");
}
