//! What one shard counts. Written by the shard's thread, read by scrapes; see [`cells`](super::cells).

use std::cell::Cell;
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use millrace_base::problem::{Code, Problem};

use super::cells::{Count, Counts, Latency};
use super::labels::{
    AUTH_BOUNDS, CacheLookup, INGESTION_BOUNDS, Label, OTHER_STATUS, RATE_LIMIT_BOUNDS, Route, STATUSES, TimeoutPhase,
    TlsHandshake, ValidationErrorKind,
};

/// The counters of one shard, named as the metrics are. Two cache lines of alignment: neighbouring shards
/// share neither a line nor the pair that the prefetcher fetches together.
#[derive(Debug)]
#[repr(align(128))]
pub struct ShardMetrics {
    /// From the last byte of an ingest request to its answer.
    pub event_ingestion_latency_seconds: Latency<23>,
    /// Finding out whose a key is.
    pub auth_latency_seconds: Latency<26>,
    /// One rate limit decision.
    pub rate_limit_check_latency_seconds: Latency<15>,
    /// Events answered with 202.
    pub events_ingested_total: Count,
    /// Bytes of request bodies read, without framing.
    pub request_body_bytes_total: Count,
    /// Lookups in the cache of verified keys.
    pub cache_lookups_total: Counts<CacheLookup, 2>,
    /// Requests answered.
    pub http_requests_total: HttpRequests,
    /// Refusals by code.
    pub rejected_total: Rejections,
    /// Events refused for their content.
    pub validation_errors_total: Counts<ValidationErrorKind, 11>,
    /// Connections taken into service.
    pub connections_accepted_total: Count,
    /// Connections that were in service and are closed; accepted − closed are open.
    pub connections_closed_total: Count,
    /// Connections turned away at the limit; they count as neither accepted nor closed.
    pub connections_refused_total: Count,
    /// Connections closed for taking too long.
    pub connection_timeouts_total: Counts<TimeoutPhase, 5>,
    /// TLS handshakes that are over.
    pub tls_handshakes_total: Counts<TlsHandshake, 3>,
    /// Whether a [`ShardHandle`] to these counters exists.
    claimed: AtomicBool,
}

impl ShardMetrics {
    pub(super) fn new() -> Self {
        Self {
            event_ingestion_latency_seconds: Latency::new(&INGESTION_BOUNDS),
            auth_latency_seconds: Latency::new(&AUTH_BOUNDS),
            rate_limit_check_latency_seconds: Latency::new(&RATE_LIMIT_BOUNDS),
            events_ingested_total: Count::default(),
            request_body_bytes_total: Count::default(),
            cache_lookups_total: Counts::new(),
            http_requests_total: HttpRequests::new(),
            rejected_total: Rejections::new(),
            validation_errors_total: Counts::new(),
            connections_accepted_total: Count::default(),
            connections_closed_total: Count::default(),
            connections_refused_total: Count::default(),
            connection_timeouts_total: Counts::new(),
            tls_handshakes_total: Counts::new(),
            claimed: AtomicBool::new(false),
        }
    }
}

/// The right to write one shard's counters: there is one handle per shard, and it can move to the shard's
/// thread but not be shared with another (`Send`, not `Sync`, not `Clone`). Dropping it gives the right back.
#[derive(Debug)]
pub struct ShardHandle {
    metrics: Arc<ShardMetrics>,
    not_sync: PhantomData<Cell<()>>,
}

impl ShardHandle {
    /// `None` where another handle exists.
    pub(super) fn claim(metrics: &Arc<ShardMetrics>) -> Option<Self> {
        // Acquire and Release: the last writer's counts are there before the next one goes on from them.
        let taken = metrics.claimed.swap(true, Ordering::Acquire);
        (!taken).then(|| Self { metrics: Arc::clone(metrics), not_sync: PhantomData })
    }
}

impl Deref for ShardHandle {
    type Target = ShardMetrics;

    #[inline]
    fn deref(&self) -> &ShardMetrics {
        &self.metrics
    }
}

impl Drop for ShardHandle {
    fn drop(&mut self) {
        self.metrics.claimed.store(false, Ordering::Release);
    }
}

/// `http_requests_total`: one count per route and status.
#[derive(Debug)]
pub struct HttpRequests {
    cells: [[Count; STATUSES.len()]; Route::ALL.len()],
}

impl HttpRequests {
    fn new() -> Self {
        Self { cells: std::array::from_fn(|_| std::array::from_fn(|_| Count::default())) }
    }

    /// Counts one answer. A status that the contract does not name is counted as `other`.
    #[inline]
    pub fn inc(&self, route: Route, status: u16) {
        self.add(route, status, 1);
    }

    /// Counts `n` answers.
    #[inline]
    pub fn add(&self, route: Route, status: u16, n: u64) {
        self.cells[route.index()][status_index(status)].add(n);
    }

    /// The value now.
    pub fn get(&self, route: Route, status: u16) -> u64 {
        self.cells[route.index()][status_index(status)].get()
    }
}

/// Position of a status in [`STATUSES`].
#[inline]
fn status_index(status: u16) -> usize {
    // By status − 100, so that the table is small and the lookup one load.
    static INDEX: [u8; 500] = {
        let mut index = [0; 500];
        let mut at = 0;
        while at < index.len() {
            let mut slot = 0;
            while STATUSES[slot] != OTHER_STATUS && STATUSES[slot] as usize != at + 100 {
                slot += 1;
            }
            index[at] = slot as u8;
            at += 1;
        }
        index
    };
    let at = usize::from(status).wrapping_sub(100);
    INDEX.get(at).map_or(STATUSES.len() - 1, |slot| usize::from(*slot))
}

/// `rejected_total`: one count per code.
#[derive(Debug)]
pub struct Rejections {
    cells: [Count; Code::ALL.len()],
}

impl Rejections {
    fn new() -> Self {
        Self { cells: std::array::from_fn(|_| Count::default()) }
    }

    /// Counts one refusal.
    pub fn inc(&self, problem: &Problem) {
        self.cells[problem.code() as usize].inc();
    }

    /// The value of a code now.
    pub fn get(&self, code: Code) -> u64 {
        self.cells[code as usize].get()
    }
}

#[cfg(test)]
mod tests {
    use millrace_base::problem::reason_phrase;

    use super::*;

    #[test]
    fn a_shard_has_one_writer_at_a_time() {
        let shard = Arc::new(ShardMetrics::new());
        let handle = ShardHandle::claim(&shard).unwrap();
        assert!(ShardHandle::claim(&shard).is_none());
        drop(handle);
        assert!(ShardHandle::claim(&shard).is_some());
    }

    #[test]
    fn shards_share_no_cache_line() {
        assert_eq!(align_of::<ShardMetrics>(), 128);
        assert_eq!(size_of::<ShardMetrics>() % 128, 0);
    }

    #[test]
    fn a_status_is_counted_under_itself_or_other() {
        let requests = HttpRequests::new();
        for status in (0..=600).chain([u16::MAX]) {
            let index = status_index(status);
            let shown = STATUSES[index];
            assert!(shown == status || (shown == OTHER_STATUS && !STATUSES.contains(&status)), "{status}: {shown}");
        }
        for status in 200..600 {
            let known = reason_phrase(status) != "Unknown";
            assert_eq!(known, STATUSES.contains(&status), "{status} is in problem.rs or in STATUSES, not in both");
        }
        requests.inc(Route::EventsPost, 202);
        requests.inc(Route::EventsPost, 299);
        assert_eq!(requests.get(Route::EventsPost, 202), 1);
        assert_eq!(requests.get(Route::EventsPost, 298), 1, "both are `other`");
        assert_eq!(requests.get(Route::EventsBatch, 202), 0);
    }

    /// One of every variant. The match has no `_` arm: a new variant does not compile until it is here too.
    fn every_problem() -> Vec<Problem> {
        use Problem as P;
        let every = vec![
            P::BadRequest(""),
            P::BadQuery("".into()),
            P::InvalidJson { offset: None, detail: "".into() },
            P::MissingApiKey,
            P::InvalidApiKey,
            P::OrgDisabled,
            P::NotFound,
            P::MethodNotAllowed(""),
            P::RequestTimeout,
            P::LengthRequired,
            P::PayloadTooLarge(1),
            P::UriTooLong,
            P::UnsupportedMediaType(""),
            P::ExpectationFailed,
            P::HeadersTooLarge,
            P::UnsupportedTransferCoding,
            P::UnknownMethod,
            P::HttpVersionNotSupported,
            P::InvalidEvent(Vec::new()),
            P::RateLimited { retry_after: 1 },
            P::QueueFull,
            P::AuthBusy,
            P::ShuttingDown,
            P::StoreUnavailable,
            P::TooManyConnections,
            P::Internal,
            P::JournalUnavailable(""),
            P::InvalidEndpoint(Vec::new()),
            P::TooManyEndpoints,
            P::AuthThrottled { retry_after: 1 },
            P::TooManyKeys,
            P::SecretUnavailable,
            P::TooManyWaiting,
            P::ControlBusy,
            P::BadHead(String::new()),
            P::MalformedApiKey,
            P::NoSuch(""),
            P::UnsupportedContentCoding,
            P::ControlLimited { limit: 1, retry_after: 1 },
            P::EndpointDisabled,
        ];
        for (position, problem) in every.iter().enumerate() {
            let expected = match problem {
                P::BadRequest(_) => 0,
                P::BadQuery(_) => 1,
                P::InvalidJson { .. } => 2,
                P::MissingApiKey => 3,
                P::InvalidApiKey => 4,
                P::OrgDisabled => 5,
                P::NotFound => 6,
                P::MethodNotAllowed(_) => 7,
                P::RequestTimeout => 8,
                P::LengthRequired => 9,
                P::PayloadTooLarge(_) => 10,
                P::UriTooLong => 11,
                P::UnsupportedMediaType(_) => 12,
                P::ExpectationFailed => 13,
                P::HeadersTooLarge => 14,
                P::UnsupportedTransferCoding => 15,
                P::UnknownMethod => 16,
                P::HttpVersionNotSupported => 17,
                P::InvalidEvent(_) => 18,
                P::RateLimited { .. } => 19,
                P::QueueFull => 20,
                P::AuthBusy => 21,
                P::ShuttingDown => 22,
                P::StoreUnavailable => 23,
                P::TooManyConnections => 24,
                P::Internal => 25,
                P::JournalUnavailable(_) => 26,
                P::InvalidEndpoint(_) => 27,
                P::TooManyEndpoints => 28,
                P::AuthThrottled { .. } => 29,
                P::TooManyKeys => 30,
                P::SecretUnavailable => 31,
                P::TooManyWaiting => 32,
                P::ControlBusy => 33,
                P::BadHead(_) => 34,
                P::MalformedApiKey => 35,
                P::NoSuch(_) => 36,
                P::UnsupportedContentCoding => 37,
                P::ControlLimited { .. } => 38,
                P::EndpointDisabled => 39,
            };
            assert_eq!(position, expected);
        }
        every
    }

    #[test]
    fn every_problem_has_its_code_and_status_in_the_tables() {
        let rejections = Rejections::new();
        let every = every_problem();
        for problem in &every {
            let row = problem.row();
            let before = rejections.get(row.code);
            rejections.inc(problem);
            assert_eq!(rejections.get(row.code), before + 1, "{:?}", row.code);
            assert!(STATUSES.contains(&row.status), "{}", row.status);
        }
        for code in Code::ALL {
            assert!(every.iter().any(|problem| problem.code() == code), "{code:?} belongs to no problem");
        }
    }
}
