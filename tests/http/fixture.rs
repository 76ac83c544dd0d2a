//! A server on each I/O driver, and what the modules say to it.

use crate::common::server::{Client, Options, Response, Server, event, request};

/// What every test sends where it matters only that the event is good.
pub const EVENT: &str = r#"{"type":"user.login","payload":{"user":"ada"}}"#;

/// A server on the embedded store and the key of its first organisation, which has no rate limit.
pub struct Fixture {
    pub server: Server,
    pub key: String,
    /// `"uring"` or `"epoll"`.
    pub driver: &'static str,
}

impl Fixture {
    pub fn start(driver: &'static str, args: &[&str]) -> Self {
        let options = Options::default().with(&["--rate-limit", "0", "--io-driver", driver]).with(args);
        let server = Server::start(options);
        let key = server.first_key();
        Self { server, key, driver }
    }

    pub fn connect(&self) -> Client {
        self.server.connect()
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

    /// Events accepted so far.
    pub fn accepted(&self) -> u64 {
        self.server.metric("events_ingested_total") as u64
    }
}

/// Runs a test against a server on `io_uring` and against one on epoll, side by side, and looks for panics in their logs.
/// Where the kernel forbids `io_uring` (containers often do), `auto` takes its place, which must then find epoll.
pub fn on_both_drivers(args: &[&str], test: impl Fn(&Fixture) + Sync) {
    let first = if io_uring::IoUring::new(2).is_ok() { "uring" } else { "auto" };
    std::thread::scope(|scope| {
        let runs = [first, "epoll"].map(|driver| {
            let test = &test;
            scope.spawn(move || {
                let fixture = Fixture::start(driver, args);
                test(&fixture);
                let log = fixture.server.log();
                assert!(!log.contains("panicked") && !log.contains("a bug ended"), "{driver}:\n{log}");
                driver
            })
        });
        for run in runs {
            run.join().unwrap_or_else(|_| panic!("failed on one driver; see above"));
        }
    });
}

/// Checks a refusal: a problem document with this status and code.
#[track_caller]
pub fn assert_refused(what: &str, answer: &Response, status: u16, code: &str) {
    let body = String::from_utf8_lossy(&answer.body);
    assert_eq!((answer.status, answer.code().as_str()), (status, code), "{what}: {body}");
    let problem = answer.json();
    assert_eq!(problem["type"], "about:blank", "{what}");
    assert!(!problem["detail"].as_str().unwrap_or_default().is_empty(), "{what}: {body}");
}

/// Checks that the answer says the connection closes, that it does, and that nothing more came.
#[track_caller]
pub fn assert_closed(what: &str, answer: &Response, client: &mut Client) {
    assert_eq!(answer.headers.get("connection").map(String::as_str), Some("close"), "{what}");
    assert!(client.is_closed(), "{what}: more than one answer, or still open");
}
