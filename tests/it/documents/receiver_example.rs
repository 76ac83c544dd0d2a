//! The receiver in `examples/`, over real sockets: what it takes, what it refuses and why, and that it does nothing
//! twice.

#[allow(dead_code, reason = "its main is another program's")]
#[path = "../../../examples/receiver.rs"]
pub mod receiver;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use receiver::Receiver;
use ring::hmac;
use tokio::runtime::Builder;

/// Published with the specification: secret, id, timestamp, body, signature.
const VECTORS: [[&str; 5]; 2] = [
    [
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "1614265330",
        r#"{"test": 2432232314}"#,
        "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    ],
    [
        "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD",
        "msg_27UH4WbU6Z5A5EzD8u03UvzRbpk",
        "1649367553",
        r#"{"email":"test@example.com","username":"test_user"}"#,
        "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw=",
    ],
];
const SECRET: &str = VECTORS[0][0];
const NO_FIT: (u16, &str) = (401, "no signature fits");
const TOO_FAR: (u16, &str) = (401, "webhook-timestamp is too far from now");

/// A receiver on a port of its own, which lives as long as the test program.
struct Running {
    addr: SocketAddr,
    handled: Arc<Mutex<Vec<String>>>,
}

impl Running {
    fn start(secret: &str) -> Self {
        let handled = Arc::new(Mutex::new(Vec::new()));
        let book = Arc::clone(&handled);
        let handle = move |id: &str, body: &[u8]| {
            book.lock().unwrap().push(format!("{id} {}", String::from_utf8_lossy(body)));
        };
        let receiver = Receiver::new(secret, handle).unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        std::thread::spawn(move || {
            let runtime = Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async { receiver.serve(tokio::net::TcpListener::from_std(listener).unwrap()).await });
        });
        Self { addr, handled }
    }

    fn handled(&self) -> Vec<String> {
        self.handled.lock().unwrap().clone()
    }

    fn connect(&self) -> BufReader<TcpStream> {
        let stream = TcpStream::connect(self.addr).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        BufReader::new(stream)
    }

    /// On a connection of its own.
    fn post(&self, fields: &[(&str, &str)], body: &str) -> (u16, String) {
        exchange(&mut self.connect(), &request("POST", fields, body))
    }

    fn deliver(&self, id: &str, timestamp: &str, signature: &str, body: &str) -> (u16, String) {
        self.post(&[("webhook-id", id), ("webhook-timestamp", timestamp), ("webhook-signature", signature)], body)
    }
}

fn request(method: &str, fields: &[(&str, &str)], body: &str) -> String {
    let fields: Vec<String> = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let fields = fields.concat();
    format!("{method} / HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n{fields}\r\n{body}", body.len())
}

/// The status and the body of the answer.
fn exchange(connection: &mut BufReader<TcpStream>, request: &str) -> (u16, String) {
    connection.get_mut().write_all(request.as_bytes()).unwrap();
    let mut line = String::new();
    connection.read_line(&mut line).unwrap();
    let status = line.split(' ').nth(1).expect("a status line").parse().unwrap();
    let mut length = 0;
    while line != "\r\n" {
        line.clear();
        connection.read_line(&mut line).unwrap();
        if let Some(value) = line.strip_prefix("content-length: ") {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    connection.read_exact(&mut body).unwrap();
    (status, String::from_utf8(body).unwrap())
}

fn sign(secret: &str, id: &str, timestamp: &str, body: &str) -> String {
    let key = STANDARD.decode(secret.strip_prefix("whsec_").unwrap()).unwrap();
    let code = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key), format!("{id}.{timestamp}.{body}").as_bytes());
    format!("v1,{}", STANDARD.encode(code))
}

fn seconds_from_now(offset: i64) -> String {
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs() as i64;
    (now + offset).to_string()
}

fn refused((status, why): (u16, &str)) -> (u16, String) {
    (status, why.to_owned())
}

#[test]
fn published_signatures_fit_and_are_too_old() {
    for [secret, id, timestamp, body, signature] in VECTORS {
        let receiver = Running::start(secret);
        assert_eq!(receiver.deliver(id, timestamp, signature, body), refused(TOO_FAR));
        assert_eq!(receiver.deliver("msg_other", timestamp, signature, body), refused(NO_FIT));
        assert_eq!(receiver.deliver(id, "1614265331", signature, body), refused(NO_FIT));
        assert_eq!(receiver.deliver(id, timestamp, signature, &format!("{body} ")), refused(NO_FIT));
        assert_eq!(receiver.deliver(id, timestamp, &signature.replace("v1,", "v2,"), body), refused(NO_FIT));
        assert!(receiver.handled().is_empty());
    }
}

#[test]
fn an_event_is_handled_once_however_often_it_comes() {
    let (receiver, body) = (Running::start(SECRET), r#"{"type":"t","data":1}"#);
    for (id, offset) in [("a", 0), ("a", -290), ("b", 290), ("a", 5)] {
        let at = seconds_from_now(offset);
        assert_eq!(receiver.deliver(id, &at, &sign(SECRET, id, &at, body), body), (204, String::new()), "{id}");
    }
    assert_eq!(receiver.handled(), [format!("a {body}"), format!("b {body}")]);
}

#[test]
fn a_signature_counts_for_its_time() {
    let receiver = Running::start(SECRET);
    for offset in [-310, 310] {
        let at = seconds_from_now(offset);
        assert_eq!(receiver.deliver("a", &at, &sign(SECRET, "a", &at, ""), ""), refused(TOO_FAR), "{offset}");
    }
}

#[test]
fn one_of_several_signatures_must_fit() {
    let (receiver, at) = (Running::start(SECRET), seconds_from_now(0));
    let (ours, other) = (sign(SECRET, "a", &at, "x"), sign(VECTORS[1][0], "a", &at, "x"));
    let cases = [
        (format!("{other} {ours}"), 204),
        (format!("{ours} v1,!!! v9,abc"), 204),
        (format!("v1a,abc  {ours}"), 204),
        (other.clone(), 401),
        (format!("{other} {other} {other} {other} {ours}"), 401),
        (ours.replace("v1,", ""), 401),
        (ours[..ours.len() - 4].to_owned(), 401),
        ("v1,".to_owned(), 401),
        (String::new(), 401),
    ];
    for (signatures, status) in cases {
        assert_eq!(receiver.deliver("a", &at, &signatures, "x").0, status, "{signatures}");
    }
    assert_eq!(receiver.handled(), ["a x"]);
}

#[test]
fn what_is_not_a_webhook_is_refused() {
    let (receiver, at) = (Running::start(SECRET), seconds_from_now(0));
    let signature = sign(SECRET, "a", &at, "x");
    let whole = [("webhook-id", "a"), ("webhook-timestamp", at.as_str()), ("webhook-signature", signature.as_str())];
    for missing in 0..whole.len() {
        let mut fields = whole.to_vec();
        fields.remove(missing);
        assert_eq!(receiver.post(&fields, "x").0, 400, "without {}", whole[missing].0);
    }
    for timestamp in ["", "now", "-1", "1e9", "99999999999999999999"] {
        let signature = sign(SECRET, "a", timestamp, "x");
        assert_eq!(receiver.deliver("a", timestamp, &signature, "x").0, 400, "{timestamp:?}");
    }
    assert_eq!(exchange(&mut receiver.connect(), &request("GET", &whole, "x")).0, 405);
    assert_eq!(receiver.post(&whole, &"x".repeat(261 * 1024)).0, 413);
    assert!(receiver.handled().is_empty());
    assert!(Receiver::new("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", |_, _| ()).is_err());
    assert!(Receiver::new("whsec_not base64", |_, _| ()).is_err());
}

#[test]
fn a_connection_takes_many_events() {
    let receiver = Running::start(SECRET);
    let mut connection = receiver.connect();
    for n in 0..100 {
        let (id, at) = (format!("event-{n}"), seconds_from_now(0));
        let signature = sign(SECRET, &id, &at, "x");
        let fields = [("webhook-id", id.as_str()), ("webhook-timestamp", &at), ("webhook-signature", &signature)];
        assert_eq!(exchange(&mut connection, &request("POST", &fields, "x")).0, 204);
    }
    assert_eq!(receiver.handled().len(), 100);
}
