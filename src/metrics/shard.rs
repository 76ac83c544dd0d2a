//! What one shard counts: its thread writes, scrapes read (see [`cells`](super::cells)).
//!
//! [`shard_metrics`] makes [`ShardMetrics`] from rows of `names.rs`. [`ShardHandle`] is the right to write it.

use std::cell::Cell;
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use prometheus::proto::Metric;

use millrace_base::problem::{Code, Problem};
use millrace_wire::routes::RouteName;

use super::cells::{Count, ShardCell};
use super::labels::{OTHER_STATUS, STATUSES};
pub use super::names::ShardMetrics;
use super::names::{MetricKind, MetricRow};
use super::render;

/// Rows of `name: kind(label: Values), "help";` for counters, of `name: histogram(BUCKETS), "help";` for histograms, and of
/// `name: Type(labels), "help";` for what has a type of its own below. The fields are named as the metrics are.
macro_rules! shard_metrics {
    ($($name:ident: $kind:ident $args:tt, $help:literal;)*) => {
        /// The counters of one shard. Two cache lines of alignment: neighbouring shards share neither a line nor the pair
        /// that the prefetcher fetches together.
        #[derive(Debug)]
        #[repr(align(128))]
        pub struct ShardMetrics {
            $(#[doc = $help] pub $name: $crate::shard::shard_metrics!(@type $kind $args),)*
            /// Whether a [`ShardHandle`](super::ShardHandle) to these counters exists.
            pub(super) claimed: std::sync::atomic::AtomicBool,
        }

        impl ShardMetrics {
            pub(super) const ROWS: &'static [MetricRow] = &[$(MetricRow {
                name: stringify!($name),
                kind: <$crate::shard::shard_metrics!(@type $kind $args) as $crate::cells::ShardCell>::KIND,
                labels: $crate::shard::shard_metrics!(@labels $kind $args),
                help: $help,
            },)*];

            pub(super) fn new() -> Self {
                Self {
                    $($name: $crate::shard::shard_metrics!(@new $kind $args),)*
                    claimed: std::sync::atomic::AtomicBool::new(false),
                }
            }

            /// The families of all shards together, in the order of the rows.
            pub(super) fn families(shards: &[std::sync::Arc<Self>]) -> Vec<prometheus::proto::MetricFamily> {
                let mut rows = Self::ROWS.iter();
                let mut next = || rows.next().expect("there are as many rows as fields");
                vec![$({
                    let row = next();
                    let cells = shards.iter().map(|shard| &shard.$name);
                    $crate::render::family(row, $crate::cells::ShardCell::series(cells, row))
                }),*]
            }
        }
    };

    (@type counter ()) => { $crate::cells::Count };
    (@type counter ($label:ident: $values:ty)) => {
        $crate::cells::Counts<$values, { <$values as Label>::ALL.len() }>
    };
    (@type histogram ($bounds:ident)) => { $crate::cells::Latency<{ $bounds.len() }> };
    (@type $own:ident $labels:tt) => { $crate::shard::$own };

    (@new histogram ($bounds:ident)) => { $crate::cells::Latency::new(&$bounds) };
    (@new $kind:ident $labels:tt) => { Default::default() };

    (@labels histogram ($bounds:ident)) => { &[] };
    (@labels $kind:ident ($($label:ident $(: $values:ty)?),*)) => { &[$(stringify!($label)),*] };
}
pub(super) use shard_metrics;

/// The right to write one shard's counters. There is one handle a shard; it can move to the shard's thread but not be shared
/// with another (`Send`, not `Sync`, not `Clone`). Dropping it gives the right back.
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
    cells: [[Count; STATUSES.len()]; RouteName::INDEX_END],
}

impl Default for HttpRequests {
    fn default() -> Self {
        Self { cells: std::array::from_fn(|_| std::array::from_fn(|_| Count::default())) }
    }
}

impl HttpRequests {
    /// Counts one answer. A status that the contract does not name is counted as `other`.
    #[inline]
    pub fn inc(&self, route: RouteName, status: u16) {
        self.add(route, status, 1);
    }

    /// Counts `n` answers.
    #[inline]
    pub fn add(&self, route: RouteName, status: u16, n: u64) {
        self.cells[route.index()][status_index(status)].add(n);
    }

    /// The value now.
    pub fn get(&self, route: RouteName, status: u16) -> u64 {
        self.cells[route.index()][status_index(status)].get()
    }
}

impl ShardCell for HttpRequests {
    const KIND: MetricKind = MetricKind::Counter;

    /// Only what was seen, and each route's usual answer, which is there at 0 from the start: most of the 504 series can
    /// never occur and would hide the others.
    fn series<'a>(cells: impl Iterator<Item = &'a Self> + Clone, row: &MetricRow) -> Vec<Metric> {
        let mut series = Vec::new();
        for route in RouteName::all() {
            for status in STATUSES {
                let value = cells.clone().map(|cell| cell.get(route, status)).sum();
                if value > 0 || status == route.usual_status() {
                    let status = if status == OTHER_STATUS { "other".to_owned() } else { status.to_string() };
                    series.push(render::with_labels(render::counter(value), row, &[route.as_str(), &status]));
                }
            }
        }
        series
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

impl Default for Rejections {
    fn default() -> Self {
        Self { cells: std::array::from_fn(|_| Count::default()) }
    }
}

impl Rejections {
    /// Counts one refusal.
    pub fn inc(&self, problem: &Problem) {
        self.cells[problem.code() as usize].inc();
    }

    /// The value of a code now.
    pub fn get(&self, code: Code) -> u64 {
        self.cells[code as usize].get()
    }
}

impl ShardCell for Rejections {
    const KIND: MetricKind = MetricKind::Counter;

    fn series<'a>(cells: impl Iterator<Item = &'a Self> + Clone, row: &MetricRow) -> Vec<Metric> {
        let series = Code::ALL.iter().map(|code| {
            let value = cells.clone().map(|cell| cell.get(*code)).sum();
            render::with_labels(render::counter(value), row, &[code.as_str()])
        });
        series.collect()
    }
}

#[cfg(test)]
mod tests {
    use millrace_base::problem::reason_phrase;
    use millrace_wire::routes::ShardRoute;

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
        let requests = HttpRequests::default();
        for status in (0..=600).chain([u16::MAX]) {
            let index = status_index(status);
            let shown = STATUSES[index];
            assert!(shown == status || (shown == OTHER_STATUS && !STATUSES.contains(&status)), "{status}: {shown}");
        }
        for status in 200..600 {
            let known = reason_phrase(status) != "Unknown";
            assert_eq!(known, STATUSES.contains(&status), "{status} is in problem.rs or in STATUSES, not in both");
        }
        let (event, batch) = (ShardRoute::PostEvent.name(), ShardRoute::PostEventBatch.name());
        requests.inc(event, 202);
        requests.inc(event, 299);
        assert_eq!(requests.get(event, 202), 1);
        assert_eq!(requests.get(event, 298), 1, "both are `other`");
        assert_eq!(requests.get(batch, 202), 0);
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
        let rejections = Rejections::default();
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
