//! Latency at a fixed rate: single events are due at fixed moments, whatever became of those before, and a latency
//! counts from the moment its request was due (no coordinated omission).
//!
//!     MILLRACE_API_KEY=mr_… cargo run --release --example open_loop -- ADDRESS:PORT RATE SECONDS [CONNECTIONS]
//!
//! One thread for each connection (64 by default), one request at a time on each: a request that is due while the one
//! before it is under way waits, and its waiting counts. Prints one JSON object, times in milliseconds; the first
//! second warms up and is not counted.

use std::error::Error;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

struct Outcome {
    latencies: Vec<Duration>,
    refused: u64,
}

#[allow(clippy::print_stdout, reason = "the result")]
fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let mut next = || args.next().ok_or("usage: open_loop ADDRESS:PORT RATE SECONDS [CONNECTIONS]");
    let (addr, rate, seconds) = (next()?, next()?.parse::<f64>()?, next()?.parse::<f64>()?);
    let connections = next().ok().map_or(Ok(64), |text| text.parse::<u32>())?;
    let key = std::env::var("MILLRACE_API_KEY").map_err(|_| "set MILLRACE_API_KEY to a key without rate limit")?;
    let body = format!(r#"{{"type":"user.login","payload":{{"user":"u-1","note":"{}"}}}}"#, "x".repeat(160));
    let request = format!(
        "POST /api/events HTTP/1.1\r\nHost: {addr}\r\nX-API-Key: {key}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let interval = Duration::from_secs_f64(f64::from(connections) / rate);
    let begin = Instant::now() + Duration::from_millis(100);
    let counted_from = begin + Duration::from_secs(1);
    let end = counted_from + Duration::from_secs_f64(seconds);
    let clients: Vec<_> = (0..connections)
        .map(|n| {
            let (addr, request) = (addr.clone(), request.clone());
            let first = begin + interval.mul_f64(f64::from(n) / f64::from(connections));
            thread::spawn(move || client(&addr, request.as_bytes(), first, interval, counted_from, end))
        })
        .collect();
    let mut all = Outcome { latencies: Vec::new(), refused: 0 };
    for client in clients {
        let outcome = client.join().map_err(|_| "a client panicked")?.map_err(|error| format!("a client: {error}"))?;
        all.latencies.extend(outcome.latencies);
        all.refused += outcome.refused;
    }
    all.latencies.sort_unstable();
    let quantile = |q: f64| {
        let at = ((all.latencies.len() as f64 * q) as usize).min(all.latencies.len().saturating_sub(1));
        all.latencies.get(at).copied().unwrap_or_default().as_secs_f64() * 1e3
    };
    println!(
        r#"{{"rate":{rate},"answered":{},"refused":{},"p50_ms":{:.3},"p90_ms":{:.3},"p99_ms":{:.3},"p999_ms":{:.3},"max_ms":{:.3}}}"#,
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

fn client(
    addr: &str,
    request: &[u8],
    first: Instant,
    interval: Duration,
    counted_from: Instant,
    end: Instant,
) -> std::io::Result<Outcome> {
    let mut stream = TcpStream::connect(addr)?;
    stream.set_nodelay(true)?;
    let mut outcome = Outcome { latencies: Vec::new(), refused: 0 };
    let mut due = first;
    let mut answer = [0; 4096];
    while due < end {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        stream.write_all(request)?;
        // An answer is one small message: complete when its body's last brace is there.
        let mut read = 0;
        while read == 0 || answer[read - 1] != b'}' {
            match stream.read(&mut answer[read..])? {
                0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                n => read += n,
            }
        }
        if !answer.starts_with(b"HTTP/1.1 202") {
            outcome.refused += 1;
        } else if due >= counted_from {
            outcome.latencies.push(due.elapsed());
        }
        due += interval;
    }
    Ok(outcome)
}
