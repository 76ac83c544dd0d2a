//! What a run measured: one instance for each thread, merged when all have ended.
//!
//! Times are in nanoseconds, resolved to a microsecond and three digits, up to [`LATENCY_MAX`]. A histogram takes about
//! 180 KiB.

use std::time::Duration;

use hdrhistogram::Histogram;

use super::answer::{Answer, Verdict};
use crate::limits::{ANSWER_KINDS_MAX, LATENCY_MAX};

const LATENCY_RESOLUTION_NS: u64 = 1000;
const LATENCY_DIGITS: u8 = 3;

/// An empty histogram of times.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(LATENCY_RESOLUTION_NS, LATENCY_MAX.as_nanos() as u64, LATENCY_DIGITS)
        .expect("the bounds are constants, and fit")
}

/// Answers of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnswerKind {
    /// The status.
    pub status: u16,
    /// The `code` of a refusal; empty where there is none.
    pub code: String,
    /// How many there were.
    pub count: u64,
}

/// Requests without a proper answer, by what happened instead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Errors {
    /// A connection could not be made.
    pub connect: u64,
    /// The connection ended before the answer did.
    pub reset: u64,
    /// There was no whole answer in time.
    pub timeout: u64,
    /// The answer is not one of the contract's.
    pub wrong_answer: u64,
}

impl Errors {
    /// The sum of all kinds.
    pub fn sum(&self) -> u64 {
        self.connect + self.reset + self.timeout + self.wrong_answer
    }

    /// The sums of both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            connect: self.connect + other.connect,
            reset: self.reset + other.reset,
            timeout: self.timeout + other.timeout,
            wrong_answer: self.wrong_answer + other.wrong_answer,
        }
    }
}

/// The counts and times of one thread, or of all threads.
#[derive(Clone)]
pub struct Measurements {
    /// Events accepted that were sent before the measured time.
    pub warmup_accepted: u64,
    /// Requests sent in the measured time.
    pub requests: u64,
    /// Events of these requests that were accepted.
    pub accepted: u64,
    /// Events rejected inside a batch of which others may have been accepted.
    pub rejected: u64,
    /// Requests refused as a whole.
    pub refused: u64,
    /// Requests that were due when the load ended and had not been sent.
    pub unsent: u64,
    /// Answers by kind; at most [`ANSWER_KINDS_MAX`], the last of them `other`.
    pub answers: Vec<AnswerKind>,
    /// Errors of the whole run, the warm-up included.
    pub errors: Errors,
    /// Connections made again after the server had ended them.
    pub reconnects: u64,
    /// From the due time of a request to its answer; only of requests whose events were all accepted.
    pub latency: Histogram<u64>,
    /// From the sending of such a request to its answer.
    pub service: Histogram<u64>,
    /// CPU time of the threads in the measured time.
    pub cpu: Duration,
    /// The measured time; shorter than planned where it was stopped.
    pub measured: Duration,
    /// The last error of making a connection.
    pub connect_error: Option<String>,
}

impl Default for Measurements {
    fn default() -> Self {
        Self {
            warmup_accepted: 0,
            requests: 0,
            accepted: 0,
            rejected: 0,
            refused: 0,
            unsent: 0,
            answers: Vec::new(),
            errors: Errors::default(),
            reconnects: 0,
            latency: histogram(),
            service: histogram(),
            cpu: Duration::ZERO,
            measured: Duration::ZERO,
            connect_error: None,
        }
    }
}

impl Measurements {
    /// Counts an answer. `times` is given where the request was sent in the measured time.
    pub fn count(&mut self, answer: &Answer, verdict: &Verdict, times: Option<Times>) {
        match (verdict, times) {
            (Verdict::Accepted { accepted, .. }, None) => self.warmup_accepted += accepted,
            (Verdict::Accepted { accepted, rejected }, Some(times)) => {
                self.accepted += accepted;
                self.rejected += rejected;
                self.answered(answer.status, "", 1);
                if *rejected == 0 {
                    self.latency.saturating_record(times.latency_ns);
                    self.service.saturating_record(times.service_ns);
                }
            }
            (Verdict::Refused { code }, Some(_)) => {
                self.refused += 1;
                self.answered(answer.status, code, 1);
            }
            // A wrong answer is counted as an error when its connection is closed.
            (Verdict::Refused { .. }, None) | (Verdict::Wrong, _) => {}
        }
    }

    /// Counts `count` answers of a kind.
    pub fn answered(&mut self, status: u16, code: &str, count: u64) {
        let known = self.answers.iter().position(|kind| kind.status == status && kind.code == code);
        match known {
            Some(at) => self.answers[at].count += count,
            None if self.answers.len() < ANSWER_KINDS_MAX - 1 => {
                self.answers.push(AnswerKind { status, code: code.to_owned(), count });
            }
            // More kinds than anybody would read are counted together.
            None => match self.answers.get_mut(ANSWER_KINDS_MAX - 1) {
                Some(other) => other.count += count,
                None => self.answers.push(AnswerKind { status: 0, code: "other".to_owned(), count }),
            },
        }
    }

    /// The sums of two threads' measurements.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.warmup_accepted += other.warmup_accepted;
        self.requests += other.requests;
        self.accepted += other.accepted;
        self.rejected += other.rejected;
        self.refused += other.refused;
        self.unsent += other.unsent;
        for kind in other.answers {
            self.answered(kind.status, &kind.code, kind.count);
        }
        self.errors = self.errors.and(other.errors);
        self.reconnects += other.reconnects;
        self.latency += other.latency;
        self.service += other.service;
        self.cpu += other.cpu;
        self.measured = self.measured.max(other.measured);
        self.connect_error = self.connect_error.or(other.connect_error);
        self
    }

    /// Whether an answer of this kind was among them.
    pub fn has_code(&self, code: &str) -> bool {
        self.answers.iter().any(|kind| kind.code == code)
    }
}

/// How long an answer took.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// Since the due time of its request.
    pub latency_ns: u64,
    /// Since the sending of its request.
    pub service_ns: u64,
}

/// The result of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All its events were accepted.
    Accepted,
    /// Not all of them were.
    Refused,
    /// The answer does not say.
    Wrong,
}

impl Outcome {
    /// The outcome that a verdict stands for.
    pub fn of(verdict: &Verdict) -> Self {
        match verdict {
            Verdict::Accepted { rejected: 0, .. } => Self::Accepted,
            Verdict::Accepted { .. } | Verdict::Refused { .. } => Self::Refused,
            Verdict::Wrong => Self::Wrong,
        }
    }
}

/// Counts and latencies of a thread so far.
#[derive(Clone)]
pub struct Snapshot {
    /// Events accepted, the warm-up included.
    pub accepted: u64,
    /// Requests refused.
    pub refused: u64,
    /// Requests without a proper answer.
    pub errors: u64,
    /// Latencies in the measured time so far.
    pub latency: Histogram<u64>,
}

impl Snapshot {
    /// The state of these measurements now.
    pub fn of(measurements: &Measurements) -> Self {
        Self {
            accepted: measurements.warmup_accepted + measurements.accepted,
            refused: measurements.refused,
            errors: measurements.errors.sum(),
            latency: measurements.latency.clone(),
        }
    }

    /// The sums of two threads' snapshots.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.accepted += other.accepted;
        self.refused += other.refused;
        self.errors += other.errors;
        self.latency += other.latency;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_answers_are_bounded_and_none_is_lost() {
        let mut measurements = Measurements::default();
        for status in 0..1000 {
            measurements.answered(status, "x", 2);
        }
        measurements.answered(3, "x", 1);
        assert_eq!(measurements.answers.len(), ANSWER_KINDS_MAX);
        assert_eq!(measurements.answers.iter().map(|kind| kind.count).sum::<u64>(), 2001);
        let both = measurements.clone().and(measurements);
        assert_eq!(both.answers.len(), ANSWER_KINDS_MAX);
        assert_eq!(both.answers.iter().map(|kind| kind.count).sum::<u64>(), 4002);
        assert_eq!(both.answers[3], AnswerKind { status: 3, code: "x".to_owned(), count: 6 });
    }

    #[test]
    fn times_are_kept_to_three_digits_and_clamped() {
        let mut times = histogram();
        for (ns, kept) in [(0, 0), (1_234_567, 1_234_567), (u64::MAX, LATENCY_MAX.as_nanos() as u64)] {
            times.saturating_record(ns);
            let found = times.max();
            assert!(found.abs_diff(kept) <= kept / 1000 + LATENCY_RESOLUTION_NS, "{ns}: {found}");
        }
    }
}
