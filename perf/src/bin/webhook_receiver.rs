//! A webhook receiver for measurements: as fast as one thread can, and it counts. It verifies nothing.
//!
//!     webhook_receiver PORTS [--delay-ms N] [--status N] [--hole PATH]
//!
//! Listens on so many free ports of 127.0.0.1, prints `ready PORT,PORT,…` and runs until it is stopped. Every POST is
//! answered with 204, or the given status, after the given delay; those to PATH never are. `POST /reset` forgets what was
//! counted; `GET /stats` is one JSON object:
//!
//! - `received`, `distinct`: requests, and different `webhook-id`s among them, in all and by path
//! - `per_second`: requests received in each second since the reset, `first_seconds` and `last_seconds` when
//! - `p50_ms` …: from the event's acceptance, which the body's `timestamp` is, to its arrival here; PATH aside. Buckets
//!   are 3 % wide.
//! - `malformed`: requests that are not what Millrace sends
//!
//! The parser knows what Millrace's client writes, and no more: lower-case field names and a `content-length`.
//! Memory: 16 bytes or so for each different id.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::error::Error;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use memchr::memmem;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{LocalSet, spawn_local};
use uuid::Uuid;

/// A head and the largest payload with what stands around it.
const REQUEST_BYTES_MAX: usize = 300 * 1024;
const SECONDS_MAX: usize = 24 * 3600;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

struct Options {
    delay: Duration,
    answer: String,
    hole: String,
}

#[allow(clippy::print_stdout, reason = "says where it listens")]
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    const USAGE: &str = "usage: webhook_receiver PORTS [--delay-ms N] [--status N] [--hole PATH]";
    let mut args = std::env::args().skip(1);
    let ports: usize = args.next().ok_or(USAGE)?.parse().map_err(|_| USAGE)?;
    let (mut delay, mut status, mut hole) = (Duration::ZERO, 204, String::new());
    while let Some(option) = args.next() {
        let value = args.next().ok_or(USAGE)?;
        match option.as_str() {
            "--delay-ms" => delay = Duration::from_millis(value.parse()?),
            "--status" => status = value.parse::<u16>()?,
            "--hole" => hole = value,
            _ => return Err(USAGE.into()),
        }
    }
    // A 204 has no length.
    let length = if status == 204 { "" } else { "content-length: 0\r\n" };
    let answer = format!("HTTP/1.1 {status} OK\r\n{length}\r\n");
    let (options, book) = (Rc::new(Options { delay, answer, hole }), Rc::new(RefCell::new(Book::new())));
    let local = LocalSet::new();
    let mut numbers = Vec::new();
    for _ in 0..ports {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        numbers.push(listener.local_addr()?.port().to_string());
        local.spawn_local(accept(listener, Rc::clone(&options), Rc::clone(&book)));
    }
    println!("ready {}", numbers.join(","));
    local.run_until(std::future::pending::<()>()).await;
    Ok(())
}

async fn accept(listener: TcpListener, options: Rc<Options>, book: Rc<RefCell<Book>>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let (options, book) = (Rc::clone(&options), Rc::clone(&book));
                // A connection that breaks has been counted as far as it came.
                spawn_local(async move { drop(serve(stream, &options, &book).await) });
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

/// One connection, one request at a time.
async fn serve(stream: TcpStream, options: &Options, book: &RefCell<Book>) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let (mut buffer, mut filled) = (vec![0; 4096], 0);
    loop {
        let request = loop {
            match Request::parse(&buffer[..filled]) {
                Ok(Some(request)) => break request,
                Ok(None) if buffer.len() < REQUEST_BYTES_MAX => {}
                Ok(None) | Err(Malformed) => {
                    book.borrow_mut().malformed += 1;
                    return Ok(());
                }
            }
            if filled == buffer.len() {
                buffer.resize(filled * 2, 0);
            }
            match read(&stream, &mut buffer[filled..]).await? {
                0 => return Ok(()),
                read => filled += read,
            }
        };
        let length = request.length;
        let answer = match request.path {
            "/stats" => Some(with_body(&book.borrow().stats().to_string())),
            "/reset" => {
                *book.borrow_mut() = Book::new();
                Some(with_body("{}"))
            }
            path => {
                let is_hole = path == options.hole;
                book.borrow_mut().count(&request, !is_hole);
                (!is_hole).then(|| options.answer.clone())
            }
        };
        buffer.copy_within(length..filled, 0);
        filled -= length;
        let Some(answer) = answer else {
            // Held until the other side gives up.
            while read(&stream, &mut buffer).await? > 0 {}
            return Ok(());
        };
        if !options.delay.is_zero() {
            tokio::time::sleep(options.delay).await;
        }
        write(&stream, answer.as_bytes()).await?;
    }
}

fn with_body(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

async fn read(stream: &TcpStream, buffer: &mut [u8]) -> std::io::Result<usize> {
    loop {
        stream.readable().await?;
        match stream.try_read(buffer) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            done => return done,
        }
    }
}

async fn write(stream: &TcpStream, mut rest: &[u8]) -> std::io::Result<()> {
    while !rest.is_empty() {
        stream.writable().await?;
        match stream.try_write(rest) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            written => rest = &rest[written?..],
        }
    }
    Ok(())
}

struct Request<'a> {
    path: &'a str,
    id: Option<Uuid>,
    /// When its event was accepted, as text.
    timestamp: Option<&'a str>,
    /// Bytes, head and body.
    length: usize,
}

struct Malformed;

impl<'a> Request<'a> {
    /// The first request in `bytes`; `None` until it is complete.
    fn parse(bytes: &'a [u8]) -> Result<Option<Self>, Malformed> {
        let Some(head_len) = memmem::find(bytes, b"\r\n\r\n").map(|at| at + 4) else { return Ok(None) };
        let head = std::str::from_utf8(&bytes[..head_len]).map_err(|_| Malformed)?;
        let path = head.split(' ').nth(1).ok_or(Malformed)?;
        let body_len = field(head, "\r\ncontent-length: ").map_or(Ok(0), str::parse::<usize>).map_err(|_| Malformed)?;
        let length = head_len + body_len;
        let Some(body) = bytes.get(head_len..length) else { return Ok(None) };
        let id = field(head, "\r\nwebhook-id: ").and_then(|text| Uuid::try_parse(text).ok());
        Ok(Some(Self { path, id, timestamp: timestamp(body), length }))
    }
}

fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let at = memmem::find(head.as_bytes(), name.as_bytes())? + name.len();
    head[at..].split('\r').next()
}

/// It stands before the payload, and no type contains a quotation mark.
fn timestamp(body: &[u8]) -> Option<&str> {
    const NAME: &[u8] = br#","timestamp":""#;
    let at = memmem::find(body, NAME)? + NAME.len();
    std::str::from_utf8(&body[at..]).ok()?.split('"').next()
}

/// What was counted since the reset.
struct Book {
    since: Instant,
    paths: HashMap<String, OnePath>,
    per_second: Vec<u64>,
    first: Option<Duration>,
    last: Duration,
    latencies: Latencies,
    malformed: u64,
}

#[derive(Default)]
struct OnePath {
    received: u64,
    ids: HashSet<Uuid>,
}

impl Book {
    fn new() -> Self {
        let (paths, per_second, first, last, latencies, malformed) = Default::default();
        Self { since: Instant::now(), paths, per_second, first, last, latencies, malformed }
    }

    fn count(&mut self, request: &Request<'_>, is_timed: bool) {
        let (Some(id), Some(timestamp)) = (request.id, request.timestamp) else {
            self.malformed += 1;
            return;
        };
        if !self.paths.contains_key(request.path) {
            self.paths.insert(request.path.to_owned(), OnePath::default());
        }
        let path = self.paths.get_mut(request.path).expect("inserted above");
        path.received += 1;
        path.ids.insert(id);
        self.last = self.since.elapsed();
        self.first.get_or_insert(self.last);
        let second = self.last.as_secs() as usize;
        if second < SECONDS_MAX {
            self.per_second.resize(self.per_second.len().max(second + 1), 0);
            self.per_second[second] += 1;
        }
        if is_timed {
            match age(timestamp) {
                Some(age) => self.latencies.add(age),
                None => self.malformed += 1,
            }
        }
    }

    fn stats(&self) -> Value {
        let paths: HashMap<&str, Value> = self
            .paths
            .iter()
            .map(|(path, one)| (path.as_str(), json!({"received": one.received, "distinct": one.ids.len()})))
            .collect();
        let sum = |of: fn(&OnePath) -> usize| self.paths.values().map(of).sum::<usize>();
        json!({
            "received": sum(|path| path.received as usize),
            "distinct": sum(|path| path.ids.len()),
            "malformed": self.malformed,
            "seconds": self.since.elapsed().as_secs_f64(),
            "first_seconds": self.first.map(|first| first.as_secs_f64()),
            "last_seconds": self.last.as_secs_f64(),
            "per_second": self.per_second,
            "timed": self.latencies.total,
            "p50_ms": self.latencies.quantile_ms(0.5),
            "p90_ms": self.latencies.quantile_ms(0.9),
            "p99_ms": self.latencies.quantile_ms(0.99),
            "p999_ms": self.latencies.quantile_ms(0.999),
            "max_ms": self.latencies.quantile_ms(1.0),
            "paths": paths,
        })
    }
}

/// How long ago that was.
fn age(timestamp: &str) -> Option<Duration> {
    let accepted = OffsetDateTime::parse(timestamp, &Rfc3339).ok()?;
    // Both are one machine's clock; what it was set back by counts as nothing.
    Some(SystemTime::from(accepted).elapsed().unwrap_or_default())
}

/// Counts by latency in microseconds: 32 buckets to each power of two.
#[derive(Default)]
struct Latencies {
    buckets: Vec<u64>,
    total: u64,
}

impl Latencies {
    fn add(&mut self, latency: Duration) {
        let bucket = Self::bucket(latency.as_micros() as u64);
        self.buckets.resize(self.buckets.len().max(bucket + 1), 0);
        self.buckets[bucket] += 1;
        self.total += 1;
    }

    fn bucket(micros: u64) -> usize {
        let shift = micros.max(32).ilog2() - 5;
        (shift as usize) * 32 + (micros >> shift) as usize
    }

    /// The middle of the bucket that this part of all latencies does not exceed.
    fn quantile_ms(&self, part: f64) -> Option<f64> {
        let rank = (self.total as f64 * part).ceil().max(1.0) as u64;
        let mut below = 0;
        let bucket = self.buckets.iter().position(|count| {
            below += count;
            below >= rank
        })?;
        let shift = (bucket / 32).saturating_sub(1) as u32;
        let lowest = ((bucket - shift as usize * 32) as u64) << shift;
        Some((lowest as f64 + 2f64.powi(shift as i32) / 2.0) / 1000.0)
    }
}
