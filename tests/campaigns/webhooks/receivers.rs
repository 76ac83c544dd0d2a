//! The receivers: good ones, and everything that a receiver can do wrong.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use uuid::Uuid;

use support::certificates::Authority;
use support::receiver::{self, Receiver, Step, answer, answer_with};
use support::sentences::Moment;

use crate::webhooks::inbox::Inbox;

/// A kind of receiver, or of what happens to its endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Good,
    /// Takes its time.
    Slow,
    /// Wants no more than [`PACE`].
    Paced,
    /// Fails at times, in every way.
    Flaky,
    /// Sends 429 with `Retry-After` at times.
    Busy,
    /// Fails for a while, then takes everything.
    Moody,
    /// Refuses some events, always, and takes the others.
    Picky,
    /// Its answer's body has no end.
    EndlessBody,
    /// Gets another URL.
    Moved,
    /// Is disabled and enabled.
    Switched,
    /// Gets other secrets.
    Rotated,
    /// Wants other types.
    Filtered,
    /// Is deleted, and another takes its place.
    Deleted,
    /// Nobody listens.
    Refused,
    /// Never answers.
    Silent,
    /// Answers byte by byte.
    Trickle,
    /// 1xx without end.
    Interim,
    /// Headers without end.
    EndlessHeader,
    BadStatus,
    /// Frames of HTTP/2 without end.
    Flood,
    Redirect,
    /// Answers 410.
    Gone,
}

/// All but the good ones: one for each of the campaign's organisations, and what is more for the last.
pub const OTHERS: [Kind; 21] = [
    Kind::Refused,
    Kind::Silent,
    Kind::Flaky,
    Kind::Busy,
    Kind::Moody,
    Kind::Moved,
    Kind::Switched,
    Kind::Rotated,
    Kind::Filtered,
    Kind::Deleted,
    Kind::Paced,
    Kind::Slow,
    Kind::EndlessBody,
    Kind::Trickle,
    Kind::Interim,
    Kind::EndlessHeader,
    Kind::BadStatus,
    Kind::Flood,
    Kind::Redirect,
    Kind::Gone,
    Kind::Picky,
];

/// Requests a second.
pub const PACE: u64 = 12;
const SLOW: Duration = Duration::from_millis(800);
/// What a busy one asks for.
const RETRY_AFTER: Duration = Duration::from_secs(2);
/// After so many bad answers to one event the next is good: no delivery runs out of attempts.
const BAD_ANSWERS_MAX: u32 = 3;

impl Kind {
    pub fn name(self) -> String {
        format!("{self:?}")
    }

    /// Whether it takes this event in the end; `None` where that depends.
    pub fn takes(self, id: Uuid) -> Option<bool> {
        match self {
            Self::Moody | Self::Deleted => None,
            Self::Picky => Some(!is_refused(id)),
            _ => Some(self < Self::Refused),
        }
    }

    /// Whether it never takes anything.
    pub fn takes_nothing(self) -> bool {
        self >= Self::Refused
    }

    /// Whether it costs a sender more than a good one does: slow, failing, dead, hostile.
    pub fn is_bad(self) -> bool {
        self.takes_nothing()
            || matches!(self, Self::Slow | Self::Flaky | Self::Busy | Self::Moody | Self::Picky | Self::EndlessBody)
    }

    /// Why most of its attempts fail: an error, or a status.
    pub fn reason(self) -> Option<&'static str> {
        match self {
            Self::Refused => Some("connection_refused"),
            Self::Silent | Self::Trickle => Some("timeout"),
            Self::Interim | Self::EndlessHeader | Self::BadStatus | Self::Flood => Some("invalid_response"),
            Self::Redirect => Some("302"),
            Self::Gone => Some("410"),
            _ => None,
        }
    }

    /// Further fields of its endpoint.
    pub fn fields(self) -> Value {
        match self {
            Self::Paced => json!({ "rate_limit_per_second": PACE }),
            _ => json!({}),
        }
    }
}

/// One of them, listening.
pub struct Listener {
    pub inbox: Arc<Inbox>,
    /// Of [`Kind::Moody`]: whether it fails at present.
    pub is_sick: Arc<AtomicBool>,
    url: String,
    _receiver: Option<Receiver>,
    /// Bound, and never listened on: connections are refused, and nobody else gets the port.
    _bound: Option<Socket>,
}

impl Listener {
    /// `trap` is where redirects lead.
    pub fn start(kind: Kind, authority: &Authority, is_tls: bool, trap: &str) -> Self {
        let inbox = Arc::<Inbox>::default();
        let is_sick = Arc::<AtomicBool>::default();
        if kind == Kind::Refused {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
            let port = socket.local_addr().unwrap().as_socket().unwrap().port();
            let url = format!("http://127.0.0.1:{port}");
            return Self { inbox, is_sick, url, _receiver: None, _bound: Some(socket) };
        }
        let (books, sick, trap) = (Arc::clone(&inbox), Arc::clone(&is_sick), trap.to_owned());
        let script = move |seen: &receiver::Seen| {
            // The connection preface of HTTP/2 looks like a request.
            if seen.method == "PRI" {
                return flood();
            }
            let Some((id, before)) = books.enter(seen) else { return answer(400, "wrong") };
            let now = Moment::now().micros();
            let yes = |after: Duration| {
                books.accept(id, now + after.as_micros() as u64);
                let mut steps = vec![Step::Pause(after)];
                steps.extend(answer(200, ""));
                steps
            };
            // As good as drawn: the low bits of an id are random, and each request of an event has others.
            let roll = (id.as_u128() as u64 >> (4 * before.requests.min(8))) % 100;
            let is_patient = before.requests < BAD_ANSWERS_MAX;
            match kind {
                Kind::Slow => yes(SLOW),
                Kind::Moody if sick.load(Ordering::Relaxed) => answer(503, "not today"),
                Kind::Picky if is_refused(id) => answer(422, "not this one"),
                Kind::Busy if roll < 10 && before.requests == 0 => {
                    books.postpone(id, now + RETRY_AFTER.as_micros() as u64);
                    answer_with(429, &format!("Retry-After: {}\r\n", RETRY_AFTER.as_secs()), "")
                }
                Kind::Flaky if roll < 12 && is_patient => match roll {
                    0 => vec![Step::Hold],
                    1 | 2 => vec![Step::Reset],
                    3 | 4 => vec![Step::Pause(Duration::from_millis(300)), Step::Close],
                    5 | 6 => {
                        let cut = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nbroken".to_vec();
                        vec![Step::Send(cut), Step::Close]
                    }
                    _ => answer(503, "busy"),
                },
                Kind::EndlessBody => {
                    books.accept(id, now);
                    let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
                    vec![
                        Step::Send(head),
                        Step::Endless(b"400\r\n".iter().chain(&[b'x'; 1024]).chain(b"\r\n").copied().collect()),
                    ]
                }
                Kind::Silent => vec![Step::Hold],
                Kind::Trickle => {
                    let head = "HTTP/1.1 200 OK\r\nX-Slow: ".bytes().chain([b'z'; 100]);
                    head.flat_map(|byte| [Step::Send(vec![byte]), Step::Pause(Duration::from_millis(100))]).collect()
                }
                Kind::Interim => vec![Step::Endless(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n".repeat(20))],
                Kind::EndlessHeader => {
                    let first = b"HTTP/1.1 200 OK\r\n".to_vec();
                    vec![Step::Send(first), Step::Endless(b"X-More: and more, and more, and more\r\n".repeat(20))]
                }
                Kind::BadStatus => vec![Step::Send(b"HTTP/1.1 banana split\r\n\r\n".to_vec()), Step::Close],
                Kind::Redirect => answer_with(302, &format!("Location: {trap}\r\n"), ""),
                Kind::Gone => answer(410, "gone"),
                _ => yes(Duration::ZERO),
            }
        };
        let receiver = if kind == Kind::Flood || is_tls {
            let mut tls = authority.server(&["127.0.0.1"]);
            let protocol: &[u8] = if kind == Kind::Flood { b"h2" } else { b"http/1.1" };
            tls.alpn_protocols = vec![protocol.to_vec()];
            Receiver::forgetful_tls(tls, script)
        } else {
            Receiver::forgetful(script)
        };
        let url = receiver.url("");
        Self { inbox, is_sick, url, _receiver: Some(receiver), _bound: None }
    }

    /// Its URL with a path for each version.
    pub fn url(&self, version: u32) -> String {
        format!("{}/v{version}", self.url)
    }
}

/// Whether a picky one never takes it: one of 32.
fn is_refused(id: Uuid) -> bool {
    id.as_u128().is_multiple_of(32)
}

/// SETTINGS, as a server of HTTP/2 begins with, and then PING without end.
fn flood() -> Vec<Step> {
    const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    const PING: [u8; 17] = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
    vec![Step::Send(SETTINGS.to_vec()), Step::Endless(PING.repeat(1000))]
}
