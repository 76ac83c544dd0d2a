//! The counters and histograms that a shard writes and a scrape reads.
//!
//! Each cell has one writer, the shard's own thread, and any number of readers. A write is therefore a plain load and a
//! plain store (`Relaxed`, no locked instruction); the cells are atomic only for the thread that scrapes. A second writer
//! would lose counts: [`ShardHandle`](super::ShardHandle) rules one out.
//!
//! A scrape reads one cell after the other, so its values may differ by what was recorded while it ran. The count of a
//! histogram is the sum of its buckets, so these two always agree.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus::proto::Metric;

use super::labels::Label;
use super::names::{MetricKind, MetricRow};
use super::render;

/// A field of [`ShardMetrics`](super::ShardMetrics).
pub(super) trait ShardCell {
    const KIND: MetricKind;

    /// The cells of all shards added up, as the series of `row`.
    fn series<'a>(cells: impl Iterator<Item = &'a Self> + Clone, row: &MetricRow) -> Vec<Metric>
    where
        Self: 'a;
}

/// A counter with one writer.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds one.
    #[inline]
    pub fn inc(&self) {
        self.add(1);
    }

    /// Adds `n`.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// The value now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One [`Count`] for each value of a label. `N` is the label's [`Label::ALL`] count.
#[derive(Debug)]
pub struct Counts<L, const N: usize> {
    cells: [Count; N],
    label: PhantomData<fn(L)>,
}

impl ShardCell for Count {
    const KIND: MetricKind = MetricKind::Counter;

    fn series<'a>(cells: impl Iterator<Item = &'a Self> + Clone, _: &MetricRow) -> Vec<Metric> {
        vec![render::counter(cells.map(Self::get).sum())]
    }
}

impl<L: Label, const N: usize> Default for Counts<L, N> {
    fn default() -> Self {
        const { assert!(L::ALL.len() == N) };
        Self { cells: std::array::from_fn(|_| Count::default()), label: PhantomData }
    }
}

impl<L: Label, const N: usize> Counts<L, N> {
    /// Adds one for this label value.
    #[inline]
    pub fn inc(&self, label: L) {
        self.cells[label.index()].inc();
    }

    /// The value now.
    pub fn get(&self, label: L) -> u64 {
        self.cells[label.index()].get()
    }
}

impl<L: Label, const N: usize> ShardCell for Counts<L, N> {
    const KIND: MetricKind = MetricKind::Counter;

    fn series<'a>(cells: impl Iterator<Item = &'a Self> + Clone, row: &MetricRow) -> Vec<Metric>
    where
        Self: 'a,
    {
        let series = L::ALL.iter().map(|value| {
            let sum = cells.clone().map(|cell| cell.get(*value)).sum();
            render::with_labels(render::counter(sum), row, &[value.as_str()])
        });
        series.collect()
    }
}

/// The upper bounds of a histogram's buckets, in nanoseconds, with the table that finds a bucket in two loads:
/// an observation takes 1.2 ns whatever the value, where a scan takes 7 ns once values are hard to predict.
#[derive(Debug)]
pub struct Bounds<const N: usize> {
    /// Ascending; the last is `u64::MAX` and stands for `+Inf`.
    upper_nanos: [u64; N],
    /// By the bit length of a value: how many bounds are below every value of that length.
    below: [u8; 65],
}

impl<const N: usize> Bounds<N> {
    /// Checks and indexes the bounds. No two may have the same bit length: then a value's bit length leaves
    /// one bound to compare it with.
    pub(super) const fn new(upper_nanos: [u64; N]) -> Self {
        assert!(N >= 2 && N < 256 && upper_nanos[0] > 0);
        assert!(upper_nanos[N - 1] == u64::MAX);
        let mut below = [0; 65];
        let mut bound = 0;
        while bound < N - 1 {
            assert!(upper_nanos[bound].leading_zeros() > upper_nanos[bound + 1].leading_zeros());
            let mut bits = bit_length(upper_nanos[bound]) + 1;
            while bits < below.len() {
                below[bits] += 1;
                bits += 1;
            }
            bound += 1;
        }
        Self { upper_nanos, below }
    }

    /// How many buckets there are.
    pub(super) const fn len(&self) -> usize {
        self.upper_nanos.len()
    }

    /// The bucket of a value: the first whose bound is not less than it.
    #[inline]
    fn bucket(&self, nanos: u64) -> usize {
        let candidate = usize::from(self.below[bit_length(nanos)]);
        candidate + usize::from(self.upper_nanos[candidate] < nanos)
    }

    /// The bounds but the last, in seconds.
    pub(super) fn finite_seconds(&self) -> impl Iterator<Item = f64> + '_ {
        self.upper_nanos[..N - 1].iter().map(|nanos| *nanos as f64 / 1e9)
    }
}

/// Bits without leading zeros: 0 for 0, 64 for `u64::MAX`.
#[inline]
const fn bit_length(value: u64) -> usize {
    (u64::BITS - value.leading_zeros()) as usize
}

/// A histogram of durations with one writer.
#[derive(Debug)]
pub struct Latency<const N: usize> {
    bounds: &'static Bounds<N>,
    sum_nanos: Count,
    buckets: [Count; N],
}

/// What one or more [`Latency`] held when they were read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LatencySnapshot<const N: usize> {
    /// Sum of the observed values, in nanoseconds.
    pub sum_nanos: u64,
    /// Observations in each bucket alone (not cumulative).
    pub buckets: [u64; N],
}

impl<const N: usize> Latency<N> {
    pub(super) fn new(bounds: &'static Bounds<N>) -> Self {
        Self { bounds, sum_nanos: Count::default(), buckets: std::array::from_fn(|_| Count::default()) }
    }

    /// Records one duration, in nanoseconds.
    #[inline]
    pub fn observe_nanos(&self, nanos: u64) {
        self.buckets[self.bounds.bucket(nanos)].inc();
        self.sum_nanos.add(nanos);
    }

    /// Records the same duration `n` times.
    #[inline]
    pub fn observe_nanos_times(&self, nanos: u64, n: u64) {
        self.buckets[self.bounds.bucket(nanos)].add(n);
        self.sum_nanos.add(nanos * n);
    }

    /// The values of histograms with the same bounds, added up.
    pub(super) fn merged<'a>(all: impl Iterator<Item = &'a Self>) -> LatencySnapshot<N> {
        let mut merged = LatencySnapshot { sum_nanos: 0, buckets: [0; N] };
        for one in all {
            merged.sum_nanos = merged.sum_nanos.wrapping_add(one.sum_nanos.get());
            for (sum, cell) in merged.buckets.iter_mut().zip(&one.buckets) {
                *sum += cell.get();
            }
        }
        merged
    }
}

impl<const N: usize> ShardCell for Latency<N> {
    const KIND: MetricKind = MetricKind::Histogram;

    fn series<'a>(cells: impl Iterator<Item = &'a Self> + Clone, _: &MetricRow) -> Vec<Metric> {
        let Some(bounds) = cells.clone().next().map(|cell| cell.bounds) else {
            return Vec::new();
        };
        let merged = Self::merged(cells);
        vec![render::histogram(bounds.finite_seconds(), &merged.buckets, merged.sum_nanos as f64 / 1e9)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static BOUNDS: Bounds<5> = Bounds::new([100, 250, 1_000, 1_000_000, u64::MAX]);

    #[test]
    fn a_value_falls_into_the_first_bucket_whose_bound_is_not_less() {
        let edges = BOUNDS.upper_nanos.iter().flat_map(|b| [b.saturating_sub(1), *b, b.saturating_add(1)]);
        let octaves = (0..64).flat_map(|bit| [(1u64 << bit) - 1, 1 << bit, (1 << bit) + 1]);
        for nanos in edges.chain(octaves) {
            let expected = BOUNDS.upper_nanos.iter().position(|bound| nanos <= *bound).unwrap();
            assert_eq!(BOUNDS.bucket(nanos), expected, "{nanos}");
        }
    }

    #[test]
    fn bounds_are_shown_in_seconds_as_written() {
        let shown: Vec<String> = BOUNDS.finite_seconds().map(|s| s.to_string()).collect();
        assert_eq!(shown, ["0.0000001", "0.00000025", "0.000001", "0.001"]);
    }

    #[test]
    fn histograms_merge_bucket_by_bucket() {
        let (a, b) = (Latency::new(&BOUNDS), Latency::new(&BOUNDS));
        for nanos in [0, 100, 101, 2_000_000] {
            a.observe_nanos(nanos);
        }
        b.observe_nanos(250);
        let merged = Latency::merged([&a, &b].into_iter());
        assert_eq!(merged, LatencySnapshot { sum_nanos: 2_000_451, buckets: [2, 2, 0, 0, 1] });
    }
}
