//! `millrace bench`: measures how much a running server takes and how fast it answers.
//!
//! A client: it reads no configuration, no data directory and no database. The keys come from a file or the environment, never
//! from the command line, which other users of the machine can read.

mod keys;
mod report;

use std::io::{IsTerminal as _, Write as _};
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use signal_hook::consts::{SIGINT, SIGTERM};

use millrace_base::event::is_event_type;
use millrace_base::limits;
use millrace_bench::limits as bench_limits;
use millrace_bench::{Measurements, Pace, Plan, Recipe, Requests, Snapshot, Target, TargetError};

use super::Invocation;
use super::bad_argument::BadArgument;
use super::failure::Failure;
use super::output::{show, show_json};
use crate::boot::raise_descriptor_limit;
use report::{Report, Run, RunSettings};

/// Descriptors other than the connections: standard streams, an epoll instance for each thread, those of the runtime.
const DESCRIPTORS_BESIDE: usize = 32 + bench_limits::THREADS_MAX as usize;

pub const EXAMPLES: &str = "\
Examples:
  export MILLRACE_API_KEY=$(millrace org create bench --rate-limit 0 --json | grep -o 'mr_\\w*')
  millrace bench                                    as fast as 64 connections get their answers
  millrace bench --rate 10000 --duration 60s        10,000 events/s, and the latency at that rate
  millrace bench --rate 1000,5000,10000,max --json  a series, for a plot of latency against load
  millrace bench https://events.example.com --api-key-file key.txt --batch 100

The events are real: they are stored, counted and delivered. Use an organisation of its own.

With --rate N events are due at fixed times, whatever became of those before, and a latency counts from the time its
request was due: a server that stalls pays for all that was due meanwhile (coordinated omission is corrected). What is
due while every connection waits for an answer waits, too; what had not been sent in the end is `unsent`. `service` is
the time from sending alone. Percentiles are of requests whose events were all accepted.

Fields of --json, one object: version, url, connections, threads, events_per_request, request_bytes, warmup_seconds,
runs: [{rate (events/s, null: max), seconds, requests, accepted, rejected (events), accepted_per_second, refused, unsent
(requests), warmup_accepted (events, the first trial included), answers: [{status, code, count}], errors: {connect, reset,
timeout, wrong_answer}, reconnects, latency_ms and service_ms: {mean, p50, p90, p99, p999, p9999, max}, cpu_us_per_request
(what the load itself took)}].

Exit code 0 where every rate had an event accepted and no connection failed, else 1.";

#[derive(Args)]
#[command(after_help = EXAMPLES)]
#[allow(clippy::struct_excessive_bools, reason = "four flags of a command line, each a question of its own")]
pub struct Bench {
    /// The server
    #[arg(value_name = "URL", default_value = "http://127.0.0.1:3000")]
    url: String,
    /// Events a second, or `max`: the next one after the answer; several after commas are run one after the other
    #[arg(long, value_name = "N|max[,…]", value_delimiter = ',', default_value = "max", value_parser = pace)]
    rate: Vec<Pace>,
    /// Connections, each with one request at a time
    #[arg(long, value_name = "N", default_value_t = 64,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(bench_limits::CONNECTIONS_MAX)))]
    connections: u32,
    /// How long each rate is measured, such as `10s` or `5m`
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    duration: Duration,
    /// How long it is kept before that
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = warmup)]
    warmup: Duration,
    /// Of each event's payload
    #[arg(long, value_name = "BYTES", default_value_t = 200,
        value_parser = clap::value_parser!(u32).range(1..=limits::PAYLOAD_BYTES_MAX as i64))]
    payload_bytes: u32,
    /// Events in a request; above 1 they go to the batch route
    #[arg(long, value_name = "N", default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=limits::BATCH_EVENTS_MAX as i64))]
    batch: u32,
    /// Event types, in turns
    #[arg(long, value_name = "TYPE[,…]", value_delimiter = ',', default_value = "user.login", value_parser = event_type)]
    types: Vec<String>,
    /// Give each event a `dedup_id` of its own
    #[arg(long)]
    dedup: bool,
    /// File with API keys, one a line; connections have them in turns
    #[arg(long, value_name = "FILE", help = keys::FILE_HELP)]
    api_key_file: Option<PathBuf>,
    /// Certificate authorities (PEM) to trust beside the public ones, for https
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// How long an answer may take
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = timeout)]
    timeout: Duration,
    /// Threads of the load; by default half of the cores, as the server may need the others
    #[arg(long, value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=i64::from(bench_limits::THREADS_MAX)))]
    threads: Option<u32>,
    /// Count any 2xx as acceptance, whatever its body: for other servers with the same routes
    #[arg(long)]
    any_2xx: bool,
    /// Say each second how it goes, also where standard error is not a terminal
    #[arg(long)]
    progress: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(invocation: &Invocation, bench: &Bench) -> Result<(), Failure> {
    let keys = keys::read(bench.api_key_file.as_deref())?;
    if bench.rate.len() > bench_limits::RATES_MAX || bench.types.len() > bench_limits::TYPES_MAX {
        return Err(Failure::Argument(format!(
            "a series has at most {} rates, and events at most {} types",
            bench_limits::RATES_MAX,
            bench_limits::TYPES_MAX
        )));
    }
    let target = Target::find(&bench.url, bench.ca_file.as_deref(), bench.timeout).map_err(|error| match error {
        TargetError::Url { .. } | TargetError::CaFile { .. } => Failure::Argument(error.to_string()),
        TargetError::Unreachable { .. } => Failure::Refused(format!("{error}\n  {}", report::START_A_SERVER)),
    })?;
    let threads = bench.threads(invocation);
    let requests = bench.requests(&keys, &target, threads)?;
    let descriptors = raise_descriptor_limit();
    if bench.connections as usize + DESCRIPTORS_BESIDE > descriptors {
        return Err(Failure::Refused(format!(
            "at most {descriptors} files may be open, too few for {} connections\n  fix: raise the limit (ulimit -n), or \
             take fewer --connections",
            bench.connections
        )));
    }
    let stop = stop_on_signal()?;

    let trial = bench.plan(&target, &requests, Pace::Closed, 1);
    let trial = Plan { is_trial: true, connections: 1, warmup: Duration::ZERO, ..trial };
    let tried = millrace_bench::run(&trial, &stop, None).map_err(|error| no_threads(&error))?;
    if tried.accepted == 0 {
        return Err(Failure::Refused(report::explain_trial(&target.url, &tried)));
    }

    let setting = RunSettings {
        url: target.url.clone(),
        connections: bench.connections,
        threads,
        events_per_request: bench.batch,
        request_bytes: requests.longest(),
        warmup_seconds: bench.warmup.as_secs_f64(),
    };
    let mut runs = Vec::new();
    for (nth, pace) in (1..).zip(&bench.rate) {
        let plan = Plan { nth, ..bench.plan(&target, &requests, *pace, threads) };
        let mut measurements = bench.load(&plan, &stop).map_err(|error| no_threads(&error))?;
        if runs.is_empty() {
            measurements.warmup_accepted += tried.accepted;
        }
        runs.push(Run::new(*pace, measurements));
        if stop.load(Ordering::Relaxed) {
            break;
        }
    }
    let report = Report { setting, runs };
    if bench.json {
        show_json(&report.to_json())?;
    } else {
        show(&report.to_text())?;
    }
    report.failure().map_or(Ok(()), |why| Err(Failure::Refused(why)))
}

impl Bench {
    /// The threads that are asked for, else half of the cores: a server on this machine needs the others.
    fn threads(&self, invocation: &Invocation) -> usize {
        let threads = self.threads.map_or(invocation.core_count().div_ceil(2), |threads| threads as usize);
        threads.min(self.connections as usize).min(bench_limits::THREADS_MAX as usize)
    }

    fn requests(&self, keys: &keys::Keys, target: &Target, threads: usize) -> Result<Requests, Failure> {
        let dedup_tag = self.dedup.then(getrandom::u32).transpose();
        let recipe = Recipe {
            host: &target.host,
            base_path: &target.base_path,
            keys,
            types: &self.types,
            payload_bytes: self.payload_bytes as usize,
            events_per_request: self.batch as usize,
            dedup_tag: dedup_tag
                .map_err(|error| Failure::Refused(format!("the operating system gives no random bytes: {error}")))?,
        };
        if recipe.body_bytes() > limits::BATCH_BODY_BYTES_MAX {
            return Err(Failure::Argument(format!(
                "a batch may have at most {} bytes: take a smaller --batch or --payload-bytes",
                limits::BATCH_BODY_BYTES_MAX
            )));
        }
        if recipe.bytes().saturating_mul(threads) > bench_limits::REQUESTS_BYTES_MAX {
            return Err(Failure::Argument(format!(
                "requests of all keys and types would take more than {} MiB: take fewer, or smaller payloads",
                bench_limits::REQUESTS_BYTES_MAX / (1024 * 1024)
            )));
        }
        Ok(Requests::new(&recipe))
    }

    fn plan<'a>(&self, target: &'a Target, requests: &'a Requests, pace: Pace, threads: usize) -> Plan<'a> {
        Plan {
            nth: 0,
            target,
            requests,
            pace,
            connections: self.connections as usize,
            threads,
            warmup: self.warmup,
            duration: self.duration,
            timeout: self.timeout,
            is_trial: false,
            takes_any_2xx: self.any_2xx,
        }
    }

    /// One run; prints a line each second where somebody watches.
    fn load(&self, plan: &Plan, stop: &AtomicBool) -> std::io::Result<Measurements> {
        let is_watched = self.progress || std::io::stderr().is_terminal();
        let mut before = (Instant::now(), 0);
        let mut tell = |now: &Snapshot| {
            let seconds = before.0.elapsed().as_secs_f64();
            let line = report::progress(plan.pace, now, (now.accepted - before.1) as f64 / seconds);
            before = (Instant::now(), now.accepted);
            // A failure to write it does not change the run.
            let _ = writeln!(std::io::stderr(), "{line}");
        };
        millrace_bench::run(plan, stop, is_watched.then_some(&mut tell))
    }
}

/// The first SIGINT or SIGTERM ends the load, and the measurements are reported; the second ends the program.
fn stop_on_signal() -> Result<Arc<AtomicBool>, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&stop))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&stop)))
            .map_err(|error| Failure::Refused(format!("signals cannot be caught: {error}")))?;
    }
    Ok(stop)
}

fn no_threads(error: &std::io::Error) -> Failure {
    Failure::Refused(format!("the load cannot be started: {error}\n  fix: take fewer --threads"))
}

// ---- arguments ---------------------------------------------------------------------------------------------

fn pace(text: &str) -> Result<Pace, BadArgument> {
    if text == "max" {
        return Ok(Pace::Closed);
    }
    let rate = text.parse().ok().and_then(NonZeroU64::new).filter(|rate| rate.get() <= bench_limits::RATE_MAX);
    rate.map(Pace::Open).ok_or(BadArgument::Pace)
}

fn duration(text: &str) -> Result<Duration, BadArgument> {
    time(text, Duration::from_millis(100), bench_limits::DURATION_MAX)
}

fn warmup(text: &str) -> Result<Duration, BadArgument> {
    time(text, Duration::ZERO, bench_limits::WARMUP_MAX)
}

fn timeout(text: &str) -> Result<Duration, BadArgument> {
    time(text, Duration::from_millis(10), bench_limits::TIMEOUT_MAX)
}

/// Reads `500ms`, `10s`, `5m`; a bare number counts seconds.
fn time(text: &str, min: Duration, max: Duration) -> Result<Duration, BadArgument> {
    let (number, unit_ms) = [("ms", 1.0), ("s", 1000.0), ("m", 60_000.0)]
        .iter()
        .find_map(|(unit, ms)| Some((text.strip_suffix(unit)?, *ms)))
        .unwrap_or((text, 1000.0));
    let time = number.parse::<f64>().ok().map(|number| Duration::try_from_secs_f64(number * unit_ms / 1000.0));
    match time {
        Some(Ok(time)) if (min..=max).contains(&time) => Ok(time),
        Some(Ok(_) | Err(_)) | None => Err(BadArgument::TimeBetween(min, max)),
    }
}

fn event_type(text: &str) -> Result<String, BadArgument> {
    if is_event_type(text) { Ok(text.to_owned()) } else { Err(BadArgument::EventType) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (text, expected) in [
            ("10s", Some(10_000)),
            ("500ms", Some(500)),
            ("1.5s", Some(1500)),
            ("2m", Some(120_000)),
            ("3", Some(3000)),
            ("", None),
            ("s", None),
            ("-1s", None),
            ("NaN", None),
            ("infs", None),
            ("1e300s", None),
            ("61m", None),
            ("99ms", None),
        ] {
            let time = duration(text).ok().map(|time| time.as_millis());
            assert_eq!(time, expected, "{text}");
        }
    }

    #[test]
    fn rates() {
        for (text, expected) in [
            ("max", Some(Pace::Closed)),
            ("1", Some(Pace::Open(NonZeroU64::MIN))),
            ("0", None),
            ("-1", None),
            ("1.5", None),
            ("100000001", None),
        ] {
            assert_eq!(pace(text).ok(), expected, "{text}");
        }
    }
}
