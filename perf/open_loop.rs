//! Latency at a fixed rate: requests are due at fixed moments, whatever became of those before, and a latency counts
//! from the moment its request was due (no coordinated omission).
//!
//!     MILLRACE_API_KEY=mr_… cargo run --release --example open_loop -- ADDRESS:PORT RATE SECONDS [CONNECTIONS [BATCH]]
//!
//! With `MILLRACE_CA_FILE` it speaks TLS to `localhost`, and trusts that authority.
//!
//! RATE is in events a second, 0 as fast as answers come. With BATCH above 1 so many events are one request to the batch
//! route. Of several keys in `MILLRACE_API_KEY`, separated by commas, each connection has one, in turns.
//!
//! One thread for each connection (64 by default), one request at a time on each: a request that is due while the one
//! before it is under way waits, and its waiting counts. Prints one JSON object, times in milliseconds. `accepted` counts
//! events; latencies are those of requests, and the first second warms up and is in no latency.

use std::error::Error;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

/// Where nothing is due, this is waited after a refusal: a full queue empties in a moment.
const PAUSE: Duration = Duration::from_millis(20);
/// An answer to the largest batch.
const ANSWER_BYTES_MAX: usize = 256 * 1024;

#[derive(Default)]
struct Outcome {
    latencies: Vec<Duration>,
    /// Events, warming up included.
    accepted: u64,
    /// Requests of which not all events were.
    refused: u64,
}

/// When requests are due.
#[derive(Clone, Copy)]
struct Pace {
    /// `None`: when the one before is answered.
    interval: Option<Duration>,
    counted_from: Instant,
    end: Instant,
}

#[allow(clippy::print_stdout, reason = "the result")]
fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let mut next = || args.next().ok_or("usage: open_loop ADDRESS:PORT RATE SECONDS [CONNECTIONS [BATCH]]");
    let (addr, rate, seconds) = (next()?, next()?.parse::<f64>()?, next()?.parse::<f64>()?);
    let connections = next().ok().map_or(Ok(64), |text| text.parse::<u32>())?;
    let batch = next().ok().map_or(Ok(1), |text| text.parse::<u32>())?.max(1);
    let keys = std::env::var("MILLRACE_API_KEY").map_err(|_| "set MILLRACE_API_KEY to a key without rate limit")?;
    let requests: Vec<String> = keys.split(',').map(|key| request(&addr, key, batch)).collect();
    let interval = (rate > 0.0).then(|| Duration::from_secs_f64(f64::from(connections * batch) / rate));
    let begin = Instant::now() + Duration::from_millis(100);
    let counted_from = begin + Duration::from_secs(1);
    let pace = Pace { interval, counted_from, end: counted_from + Duration::from_secs_f64(seconds) };
    let tls = std::env::var("MILLRACE_CA_FILE").ok().map(|file| tls_config(&file)).transpose()?;
    let clients: Vec<_> = (0..connections)
        .map(|n| {
            let tls = tls.clone();
            let (addr, request) = (addr.clone(), requests[n as usize % requests.len()].clone());
            let first = begin + interval.unwrap_or_default().mul_f64(f64::from(n) / f64::from(connections));
            thread::spawn(move || client(connect(&addr, tls)?, request.as_bytes(), u64::from(batch), first, pace))
        })
        .collect();
    let mut all = Outcome::default();
    for client in clients {
        let outcome = client.join().map_err(|_| "a client panicked")?.map_err(|error| format!("a client: {error}"))?;
        all.latencies.extend(outcome.latencies);
        all.accepted += outcome.accepted;
        all.refused += outcome.refused;
    }
    let seconds = begin.elapsed().as_secs_f64();
    all.latencies.sort_unstable();
    let quantile = |q: f64| {
        let at = ((all.latencies.len() as f64 * q) as usize).min(all.latencies.len().saturating_sub(1));
        all.latencies.get(at).copied().unwrap_or_default().as_secs_f64() * 1e3
    };
    println!(
        r#"{{"rate":{rate},"seconds":{seconds:.3},"accepted":{},"answered":{},"refused":{},"p50_ms":{:.3},"p90_ms":{:.3},"p99_ms":{:.3},"p999_ms":{:.3},"max_ms":{:.3}}}"#,
        all.accepted,
        all.latencies.len(),
        all.refused,
        quantile(0.5),
        quantile(0.9),
        quantile(0.99),
        quantile(0.999),
        quantile(1.0)
    );
    Ok(())
}

fn request(addr: &str, key: &str, batch: u32) -> String {
    let event = format!(r#"{{"type":"user.login","payload":{{"user":"u-1","note":"{}"}}}}"#, "x".repeat(160));
    let (path, body) = match batch {
        1 => ("/api/events", event),
        _ => ("/api/events/batch", format!("[{}]", vec![event; batch as usize].join(","))),
    };
    format!(
        "POST {path} HTTP/1.1\r\nHost: {addr}\r\nX-API-Key: {key}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

trait Duplex: Read + Write {}

impl<T: Read + Write> Duplex for T {}

fn connect(addr: &str, tls: Option<Arc<ClientConfig>>) -> std::io::Result<Box<dyn Duplex>> {
    let stream = TcpStream::connect(addr)?;
    stream.set_nodelay(true)?;
    let Some(config) = tls else { return Ok(Box::new(stream)) };
    let name = ServerName::try_from("localhost").map_err(std::io::Error::other)?;
    let session = ClientConnection::new(config, name).map_err(std::io::Error::other)?;
    Ok(Box::new(StreamOwned::new(session, stream)))
}

fn tls_config(ca_file: &str) -> Result<Arc<ClientConfig>, Box<dyn Error>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca_file)?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(Arc::new(config.with_root_certificates(roots).with_no_client_auth()))
}

fn client(
    mut stream: Box<dyn Duplex>,
    request: &[u8],
    batch: u64,
    first: Instant,
    pace: Pace,
) -> std::io::Result<Outcome> {
    let mut outcome = Outcome::default();
    let mut due = first;
    let mut answer = vec![0; ANSWER_BYTES_MAX];
    while due < pace.end {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        stream.write_all(request)?;
        stream.flush()?;
        let accepted = accepted(read_answer(&mut stream, &mut answer)?, batch);
        outcome.accepted += accepted;
        if accepted < batch {
            outcome.refused += 1;
            if pace.interval.is_none() {
                thread::sleep(PAUSE);
            }
        } else if due >= pace.counted_from {
            outcome.latencies.push(due.elapsed());
        }
        due = pace.interval.map_or_else(Instant::now, |interval| due + interval);
    }
    Ok(outcome)
}

/// How many events an answer accepts.
fn accepted(answer: &str, batch: u64) -> u64 {
    if !answer.starts_with("HTTP/1.1 202") {
        return 0;
    }
    match answer.split_once(r#""accepted":"#) {
        Some((_, count)) => count.split(',').next().and_then(|count| count.parse().ok()).unwrap_or(0),
        None => batch,
    }
}

/// One answer, head and body; Millrace gives every answer a length.
fn read_answer<'a>(stream: &mut impl Read, buffer: &'a mut [u8]) -> std::io::Result<&'a str> {
    let broken = || std::io::Error::from(std::io::ErrorKind::InvalidData);
    let mut filled = 0;
    loop {
        let read = stream.read(&mut buffer[filled..])?;
        if read == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        filled += read;
        let Some(head) = memchr::memmem::find(&buffer[..filled], b"\r\n\r\n").map(|at| at + 4) else { continue };
        let text = std::str::from_utf8(&buffer[..head]).map_err(|_| broken())?;
        let length = text.split("\r\nContent-Length: ").nth(1).and_then(|rest| rest.split('\r').next());
        let length: usize = length.and_then(|length| length.parse().ok()).ok_or_else(broken)?;
        if filled >= head + length {
            return std::str::from_utf8(&buffer[..head + length]).map_err(|_| broken());
        }
    }
}
