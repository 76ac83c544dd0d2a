//! The report of `millrace bench`: a table for people, an object for programs, and advice on what went wrong.

use std::fmt::Write as _;

use hdrhistogram::Histogram;
use serde::Serialize;

use millrace_bench::{AnswerKind, Errors, Measurements, Pace, Snapshot};

use super::super::output::table;
use super::keys::NEW_KEY;

/// The advice where no server answers.
pub const START_A_SERVER: &str =
    "fix: start it with `millrace serve`, or name where it listens: `millrace bench http://HOST:PORT`";

/// What the runs of a series have in common.
#[derive(Serialize)]
pub struct RunSettings {
    pub url: String,
    pub connections: u32,
    pub threads: usize,
    pub events_per_request: u32,
    pub request_bytes: usize,
    pub warmup_seconds: f64,
}

/// One rate and its measurements.
pub struct Run {
    pace: Pace,
    measurements: Measurements,
}

/// A series of runs.
pub struct Report {
    pub setting: RunSettings,
    pub runs: Vec<Run>,
}

#[derive(Serialize)]
pub struct ReportJson<'a> {
    version: &'static str,
    #[serde(flatten)]
    setting: &'a RunSettings,
    runs: Vec<RunJson<'a>>,
}

#[derive(Serialize)]
struct RunJson<'a> {
    rate: Option<u64>,
    seconds: f64,
    requests: u64,
    accepted: u64,
    rejected: u64,
    accepted_per_second: f64,
    refused: u64,
    unsent: u64,
    warmup_accepted: u64,
    answers: Vec<AnswerJson<'a>>,
    errors: ErrorsJson,
    reconnects: u64,
    latency_ms: TimesJson,
    service_ms: TimesJson,
    cpu_us_per_request: f64,
}

#[derive(Serialize)]
struct AnswerJson<'a> {
    status: u16,
    code: Option<&'a str>,
    count: u64,
}

#[derive(Serialize)]
struct ErrorsJson {
    connect: u64,
    reset: u64,
    timeout: u64,
    wrong_answer: u64,
}

/// Milliseconds.
#[derive(Serialize)]
struct TimesJson {
    mean: f64,
    p50: f64,
    p90: f64,
    p99: f64,
    p999: f64,
    p9999: f64,
    max: f64,
}

impl Run {
    /// The run of these measurements.
    pub fn new(pace: Pace, measurements: Measurements) -> Self {
        Self { pace, measurements }
    }

    fn to_json(&self) -> RunJson<'_> {
        let measurements = &self.measurements;
        let Errors { connect, reset, timeout, wrong_answer } = measurements.errors;
        RunJson {
            rate: match self.pace {
                Pace::Open(rate) => Some(rate.get()),
                Pace::Closed => None,
            },
            seconds: rounded(measurements.measured.as_secs_f64(), 1000.0),
            requests: measurements.requests,
            accepted: measurements.accepted,
            rejected: measurements.rejected,
            accepted_per_second: self.accepted_per_second(),
            refused: measurements.refused,
            unsent: measurements.unsent,
            warmup_accepted: measurements.warmup_accepted,
            answers: measurements.answers.iter().map(answer).collect(),
            errors: ErrorsJson { connect, reset, timeout, wrong_answer },
            reconnects: measurements.reconnects,
            latency_ms: times(&measurements.latency),
            service_ms: times(&measurements.service),
            cpu_us_per_request: self.cpu_us_per_request(),
        }
    }

    fn accepted_per_second(&self) -> f64 {
        rounded(self.measurements.accepted as f64 / self.measurements.measured.as_secs_f64().max(1e-3), 1.0)
    }

    fn cpu_us_per_request(&self) -> f64 {
        rounded(self.measurements.cpu.as_secs_f64() * 1e6 / self.measurements.requests.max(1) as f64, 100.0)
    }
}

impl Report {
    /// The report for programs.
    pub fn to_json(&self) -> ReportJson<'_> {
        let runs = self.runs.iter().map(Run::to_json).collect();
        ReportJson { version: env!("CARGO_PKG_VERSION"), setting: &self.setting, runs }
    }

    /// The report for people.
    pub fn to_text(&self) -> String {
        let RunSettings { url, connections, threads, events_per_request, request_bytes, warmup_seconds } =
            &self.setting;
        let of = if *events_per_request == 1 { "one event".to_owned() } else { format!("{events_per_request} events") };
        let mut text = format!(
            "{url}: {connections} connections, requests of {of} and {request_bytes} bytes; {warmup_seconds} s of warming \
             up before each rate; threads: {threads}\nLatencies in ms, from when a request was due; CPU is the load's \
             own, in µs a request.\n\n"
        );
        let rows: Vec<_> = self.runs.iter().map(row).collect();
        let headings =
            ["RATE", "SECONDS", "ACCEPTED/S", "P50", "P90", "P99", "P99.9", "P99.99", "MAX", "SERVICE P99", "CPU"];
        text.push_str(&table(headings, &rows));
        for run in &self.runs {
            details(&mut text, run);
        }
        text
    }

    /// Why the command fails, if it does.
    pub fn failure(&self) -> Option<String> {
        let mut why = Vec::new();
        let errors = self.runs.iter().map(|run| run.measurements.errors).fold(Errors::default(), Errors::and);
        for (count, what) in [
            (errors.connect, "could not be made"),
            (errors.reset, "ended before the answer"),
            (errors.timeout, "had no answer in time"),
            (errors.wrong_answer, "had an answer that no Millrace gives"),
        ] {
            if count > 0 {
                why.push(format!("{count} × a connection {what}"));
            }
        }
        let cause = self.runs.iter().find_map(|run| run.measurements.connect_error.clone());
        why.extend(cause.map(|cause| format!("the last that could not be made: {cause}")));
        if self.runs.iter().any(|run| run.measurements.accepted == 0) {
            why.push("at one rate no event was accepted".to_owned());
        }
        let remedies = self.runs.iter().map(|run| remedy(&run.measurements));
        let remedy = remedies.flatten().next().map(|remedy| format!("\n  fix: {remedy}")).unwrap_or_default();
        (!why.is_empty()).then(|| format!("{}{remedy}", why.join("; ")))
    }
}

fn answer(kind: &AnswerKind) -> AnswerJson<'_> {
    AnswerJson { status: kind.status, code: (!kind.code.is_empty()).then_some(&kind.code), count: kind.count }
}

fn row(run: &Run) -> [String; 11] {
    let TimesJson { p50, p90, p99, p999, p9999, max, .. } = times(&run.measurements.latency);
    let ms = |ms: f64| format!("{ms:.3}");
    [
        name(run.pace),
        format!("{:.1}", run.measurements.measured.as_secs_f64()),
        format!("{:.0}", run.accepted_per_second()),
        ms(p50),
        ms(p90),
        ms(p99),
        ms(p999),
        ms(p9999),
        ms(max),
        ms(times(&run.measurements.service).p99),
        format!("{:.2}", run.cpu_us_per_request()),
    ]
}

/// Adds what is not in the table and needs attention.
fn details(text: &mut String, run: &Run) {
    let measurements = &run.measurements;
    let mut notes = Vec::new();
    for AnswerKind { status, code, count } in &measurements.answers {
        if !(200..300).contains(status) {
            notes.push(format!("{count} × {status} {code}"));
        }
    }
    if measurements.rejected > 0 {
        notes.push(format!("{} events rejected inside batches", measurements.rejected));
    }
    if measurements.unsent > 0 {
        notes.push(format!(
            "{} requests were due and not sent in the end: more was offered than was taken",
            measurements.unsent
        ));
    }
    if measurements.reconnects > 0 {
        notes.push(format!("{} connections made again", measurements.reconnects));
    }
    if notes.is_empty() {
        return;
    }
    write!(text, "\nat {}: {}", name(run.pace), notes.join("; ")).expect("a String takes everything");
    if let Some(remedy) = remedy(measurements) {
        write!(text, "\n  {remedy}").expect("a String takes everything");
    }
    text.push('\n');
}

fn name(pace: Pace) -> String {
    match pace {
        Pace::Open(rate) => rate.to_string(),
        Pace::Closed => "max".to_owned(),
    }
}

/// The line that is printed each second.
pub fn progress(pace: Pace, now: &Snapshot, accepted_per_second: f64) -> String {
    let p99 = times(&now.latency).p99;
    let so_far = if now.latency.is_empty() { "warming up".to_owned() } else { format!("p99 {p99:.3} ms so far") };
    let Snapshot { refused, errors, .. } = now;
    format!("rate {}: {accepted_per_second:.0} accepted/s, {so_far}, {refused} refused, {errors} errors", name(pace))
}

/// Why the first request was not accepted, and what to do.
pub fn explain_trial(url: &str, tried: &Measurements) -> String {
    let Errors { connect, reset, timeout, wrong_answer } = tried.errors;
    let cause = match tried.answers.first() {
        Some(AnswerKind { status, code, .. }) => format!("it was refused: {status} {code}"),
        None if connect > 0 => {
            format!("no connection: {}", tried.connect_error.as_deref().unwrap_or("it takes too long"))
        }
        None if reset > 0 => "the server closed the connection".to_owned(),
        None if timeout > 0 => "it had no answer in time".to_owned(),
        None if wrong_answer > 0 => {
            "the answer is none that Millrace gives; for other servers there is --any-2xx".to_owned()
        }
        None => "it was interrupted".to_owned(),
    };
    let remedy = remedy(tried).map(|remedy| format!("\n  fix: {remedy}")).unwrap_or_default();
    format!("{url} did not accept the first event: {cause}{remedy}")
}

fn remedy(measurements: &Measurements) -> Option<String> {
    const REMEDIES: [(&str, &str); 7] = [
        ("rate_limited", "the organisation has a limit; make one that has none: "),
        ("invalid_api_key", "the server does not know this key; make an organisation on the server's database: "),
        ("missing_api_key", "the key is empty; make an organisation on the server's database: "),
        ("org_disabled", "the organisation is disabled; make another: "),
        ("too_many_connections", "take fewer --connections, or `millrace serve --connections-per-address-max N`"),
        ("queue_full", "the database does not keep up; that is what was to be found out, or take a lower --rate"),
        ("payload_too_large", "take a smaller --payload-bytes"),
    ];
    REMEDIES
        .iter()
        .find(|(code, _)| measurements.has_code(code))
        .map(|(_, remedy)| if remedy.ends_with(": ") { format!("{remedy}{NEW_KEY}") } else { (*remedy).to_owned() })
}

fn times(histogram: &Histogram<u64>) -> TimesJson {
    let ms = |ns: f64| rounded(ns / 1e6, 1000.0);
    let at = |quantile: f64| ms(histogram.value_at_quantile(quantile) as f64);
    TimesJson {
        mean: ms(histogram.mean()),
        p50: at(0.5),
        p90: at(0.9),
        p99: at(0.99),
        p999: at(0.999),
        p9999: at(0.9999),
        max: ms(histogram.max() as f64),
    }
}

/// Rounds to this many parts of one.
fn rounded(value: f64, parts: f64) -> f64 {
    (value * parts).round() / parts
}
