//! Everybody else: clients that send garbage, trickle, break off, come and go, guess keys, send too much or never read.
//!
//! What they send carries numbers that are in no log, so a single row of it in the database is a PHANTOM. They come
//! from an address of their own, 127.0.0.2, as strangers do.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use millrace_base::limits;
use support::draws::Draws;
use support::forged::{unknown_key, with_wrong_secret};
use support::load::{Address, Ids, event, next_number};
use support::receiver;

use crate::chaos::site::Site;

const CLIENTS: u64 = 4;
const FROM: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
/// No answer by then is none.
const PATIENCE: Duration = Duration::from_secs(2);
const TRICKLING: usize = 16;
/// How long answers are not read.
const UNREAD: Duration = Duration::from_secs(1);

/// A kind of mischief by its name. An error is the end of a connection, which is what most of it asks for.
type Kind = (&'static str, fn(&mut Client) -> io::Result<Option<u16>>);

const KINDS: &[Kind] = &[
    ("garbage", Client::garbage),
    ("trickled header", Client::trickle),
    ("broken body", Client::broken_body),
    ("broken chunks", Client::broken_chunks),
    ("churn", Client::churn),
    ("unknown key", Client::unknown_key),
    ("wrong secret", Client::wrong_secret),
    ("oversized body", Client::oversized),
    ("oversized payload", Client::oversized_payload),
    ("invalid event", Client::invalid),
    ("unread answers", Client::unread),
];

/// What came of it: how often each kind was answered with which status.
#[derive(Debug, Default)]
pub struct Outcome {
    answers: BTreeMap<(&'static str, Option<u16>), u64>,
    /// How often with 202.
    pub admitted: u64,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bad clients:")?;
        let mut last = "";
        for ((kind, status), times) in &self.answers {
            if *kind != last {
                write!(f, "\n  {kind:<18}")?;
                last = kind;
            }
            match status {
                Some(status) => write!(f, " {status}: {times}")?,
                None => write!(f, " no answer: {times}")?,
            }
        }
        Ok(())
    }
}

pub struct Mischief {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Outcome>>,
}

impl Mischief {
    pub fn start(site: &Site, draws: &Draws) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (0..CLIENTS).map(|number| {
            let client = Client {
                address: site.address(),
                key: site.plain.key.clone(),
                draws: draws.fork(number),
                stop: Arc::clone(&stop),
            };
            thread::spawn(move || client.run())
        });
        let threads = threads.collect();
        Self { stop, threads }
    }

    pub fn stop(self) -> Outcome {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Outcome::default();
        for thread in self.threads {
            let outcome = thread.join().expect("mischief does not panic");
            all.admitted += outcome.admitted;
            for (kind, times) in outcome.answers {
                *all.answers.entry(kind).or_default() += times;
            }
        }
        all
    }
}

struct Client {
    address: Address,
    /// A good one, for what is wrong in another way.
    key: String,
    draws: Draws,
    stop: Arc<AtomicBool>,
}

impl Client {
    fn run(mut self) -> Outcome {
        let mut outcome = Outcome::default();
        while !self.stop.load(Ordering::Relaxed) {
            let (name, act) = KINDS[self.draws.below(KINDS.len() as u64) as usize];
            let status = act(&mut self).ok().flatten();
            outcome.admitted += u64::from(status == Some(202));
            *outcome.answers.entry((name, status)).or_default() += 1;
            self.draws.pause(60);
        }
        outcome
    }

    fn connect(&self) -> io::Result<TcpStream> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&SocketAddr::from((FROM, 0)).into())?;
        socket.connect_timeout(&self.address.get().into(), PATIENCE)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(socket.into())
    }

    /// Sends a request of its own kind and reads the status of the answer.
    fn send(&self, request: &[u8]) -> io::Result<Option<u16>> {
        let mut stream = self.connect()?;
        // What refuses early may close before all of it is sent; the answer is there all the same.
        let _ = stream.write_all(request);
        answer(&mut stream)
    }

    fn post(&self, key: &str, body: &str) -> io::Result<Option<u16>> {
        self.send((head(key, &format!("Content-Length: {}\r\n", body.len())) + body).as_bytes())
    }

    fn garbage(&mut self) -> io::Result<Option<u16>> {
        let mut bytes: Vec<u8> = (0..self.draws.below(2000)).map(|_| self.draws.below(256) as u8).collect();
        // Half of it begins like a request.
        if self.draws.below(2) == 0 {
            bytes.splice(0..0, head(&self.key, "Content-Length: 40\r\n").bytes().take(60));
        }
        bytes.extend_from_slice(b"\r\n\r\n");
        self.send(&bytes)
    }

    /// Many connections whose headers arrive byte by byte, until the server has enough of them.
    fn trickle(&mut self) -> io::Result<Option<u16>> {
        let head = head(&self.key, "Content-Length: 2\r\n");
        let mut streams = (0..TRICKLING).map(|_| self.connect()).collect::<io::Result<Vec<_>>>()?;
        let until = Instant::now() + limits::HEADER_TIMEOUT + PATIENCE;
        for byte in head.bytes().take(head.len() - 1).cycle() {
            if self.stop.load(Ordering::Relaxed) || Instant::now() > until {
                break;
            }
            // Tired of one, the server is tired of all.
            if streams.iter_mut().any(|stream| stream.write_all(&[byte]).is_err()) {
                break;
            }
            thread::sleep(Duration::from_millis(150));
        }
        answer(&mut streams[0])
    }

    fn broken_body(&mut self) -> io::Result<Option<u16>> {
        let body = event(next_number(), "broken", Ids::Both);
        let mut stream = self.connect()?;
        let sent = self.draws.below(body.len() as u64) as usize;
        let head = head(&self.key, &format!("Content-Length: {}\r\n", body.len()));
        stream.write_all((head + &body[..sent]).as_bytes())?;
        self.end(&stream)
    }

    fn broken_chunks(&mut self) -> io::Result<Option<u16>> {
        let body = event(next_number(), "broken", Ids::Both);
        let mut stream = self.connect()?;
        // The whole event, and no last chunk.
        let head = head(&self.key, "Transfer-Encoding: chunked\r\n");
        stream.write_all(format!("{head}{:x}\r\n{body}\r\n", body.len()).as_bytes())?;
        self.end(&stream)
    }

    fn churn(&mut self) -> io::Result<Option<u16>> {
        for _ in 0..self.draws.below(40) {
            let stream = self.connect()?;
            self.end(&stream)?;
        }
        Ok(None)
    }

    /// Ends a connection one way or the other.
    fn end(&mut self, stream: &TcpStream) -> io::Result<Option<u16>> {
        if self.draws.below(2) == 0 {
            receiver::reset(stream)?;
        }
        Ok(None)
    }

    fn unknown_key(&mut self) -> io::Result<Option<u16>> {
        self.post(&unknown_key(), &event(next_number(), "forged", Ids::Both))
    }

    fn wrong_secret(&mut self) -> io::Result<Option<u16>> {
        self.post(&with_wrong_secret(&self.key), &event(next_number(), "forged", Ids::Both))
    }

    fn oversized(&mut self) -> io::Result<Option<u16>> {
        let length = limits::EVENT_BODY_BYTES_MAX + 1 + self.draws.below(1_000_000) as usize;
        let event = event(next_number(), "large", Ids::Both);
        self.post(&self.key, &(" ".repeat(length) + &event))
    }

    fn oversized_payload(&mut self) -> io::Result<Option<u16>> {
        let pad = "x".repeat(limits::PAYLOAD_BYTES_MAX);
        let event = format!(r#"{{"type":"large","payload":{{"m":{},"pad":"{pad}"}}}}"#, next_number());
        self.post(&self.key, &event)
    }

    fn invalid(&mut self) -> io::Result<Option<u16>> {
        let event = event(next_number(), "invalid", Ids::Made);
        let broken = match self.draws.below(4) {
            0 => event.replacen("\"type\"", "\"typo\"", 1),
            1 => event.replacen(':', "", 1),
            2 => event[..event.len() - 1].to_owned(),
            _ => format!("[{event}]"),
        };
        self.post(&self.key, &broken)
    }

    /// Asks again and again and reads nothing.
    fn unread(&mut self) -> io::Result<Option<u16>> {
        let mut stream = self.connect()?;
        let requests = "GET /openapi.json HTTP/1.1\r\nHost: test\r\n\r\n".repeat(50);
        stream.write_all(requests.as_bytes())?;
        thread::sleep(UNREAD);
        Ok(None)
    }
}

/// The head of a POST of an event.
fn head(key: &str, fields: &str) -> String {
    format!("POST /api/events HTTP/1.1\r\nHost: test\r\nX-API-Key: {key}\r\n{fields}\r\n")
}

fn answer(stream: &mut TcpStream) -> io::Result<Option<u16>> {
    let mut start = [0; 12];
    stream.read_exact(&mut start)?;
    Ok(std::str::from_utf8(&start[9..]).ok().and_then(|status| status.parse().ok()))
}
