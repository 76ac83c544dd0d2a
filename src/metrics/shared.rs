//! Metrics that several threads write, per call or per batch and never per event: the locked instructions of the
//! `prometheus` crate's own cells are affordable there.
//!
//! [`shared_metrics`] makes a struct and its registration from rows of `names.rs`. A metric with a label has all its
//! series from the start, because a rate needs the series at 0 before its first increment.

use std::marker::PhantomData;

use prometheus::core::Collector;
use prometheus::{
    Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry, Result,
};

use super::labels::Label;
use super::names::{MetricKind, MetricRow};

/// Rows of `field: kind(buckets, label: Values), "name", "help";`, where buckets are a histogram's and the label may be
/// absent. The field's type follows from the kind.
macro_rules! shared_metrics {
    ($($(#[$doc:meta])* $group:ident { $($field:ident: $kind:ident $args:tt, $name:literal, $help:literal;)* })*) => {$(
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $group {
            $(#[doc = $help] pub $field: $crate::shared::shared_metrics!(@type $kind $args),)*
        }

        impl $group {
            pub(super) const ROWS: &'static [MetricRow] = &[$(MetricRow {
                name: $name,
                kind: <$crate::shared::shared_metrics!(@type $kind $args) as $crate::shared::SharedCell>::KIND,
                labels: $crate::shared::shared_metrics!(@labels $args),
                help: $help,
            },)*];

            pub(super) fn register(registry: &prometheus::Registry) -> prometheus::Result<Self> {
                let mut rows = Self::ROWS.iter();
                let mut next = || rows.next().expect("there are as many rows as fields");
                Ok(Self {
                    $($field: $crate::shared::SharedCell::register(
                        next(),
                        $crate::shared::shared_metrics!(@buckets $kind $args),
                        registry,
                    )?,)*
                })
            }
        }
    )*};

    (@type counter ()) => { prometheus::IntCounter };
    (@type counter ($label:ident: $values:ty)) => { $crate::shared::CounterBy<$values> };
    (@type gauge ()) => { prometheus::IntGauge };
    (@type float_gauge ()) => { prometheus::Gauge };
    (@type histogram ($buckets:ident)) => { prometheus::Histogram };
    (@type histogram ($buckets:ident, $label:ident: $values:ty)) => { $crate::shared::HistogramBy<$values> };

    (@labels ()) => { &[] };
    (@labels ($buckets:ident)) => { &[] };
    (@labels ($label:ident: $values:ty)) => { &[stringify!($label)] };
    (@labels ($buckets:ident, $label:ident: $values:ty)) => { &[stringify!($label)] };

    (@buckets histogram ($buckets:ident $($label:tt)*)) => { $buckets };
    (@buckets $kind:ident $args:tt) => { &[] };
}
pub(super) use shared_metrics;

/// A field of a struct that [`shared_metrics`] makes.
pub(super) trait SharedCell: Sized {
    const KIND: MetricKind;

    /// Makes it as `row` says, with the buckets of a histogram, and shows it to scrapes.
    fn register(row: &MetricRow, buckets: &[f64], registry: &Registry) -> Result<Self>;
}

/// One counter for each value of a label.
#[derive(Debug)]
pub struct CounterBy<L> {
    /// By [`Label::index`].
    counters: Vec<IntCounter>,
    label: PhantomData<fn(L)>,
}

impl<L: Label> CounterBy<L> {
    /// Adds one for this label value.
    pub fn inc(&self, label: L) {
        self.counters[label.index()].inc();
    }
}

/// One histogram for each value of a label.
#[derive(Debug)]
pub struct HistogramBy<L> {
    /// By [`Label::index`].
    histograms: Vec<Histogram>,
    label: PhantomData<fn(L)>,
}

impl<L: Label> HistogramBy<L> {
    /// Records a value for this label value.
    pub fn observe(&self, label: L, value: f64) {
        self.histograms[label.index()].observe(value);
    }
}

impl SharedCell for IntCounter {
    const KIND: MetricKind = MetricKind::Counter;

    fn register(row: &MetricRow, _: &[f64], registry: &Registry) -> Result<Self> {
        registered(Self::with_opts(opts(row))?, registry)
    }
}

impl<L: Label> SharedCell for CounterBy<L> {
    const KIND: MetricKind = MetricKind::Counter;

    fn register(row: &MetricRow, _: &[f64], registry: &Registry) -> Result<Self> {
        let all = registered(IntCounterVec::new(opts(row), row.labels)?, registry)?;
        let counters = L::ALL.iter().map(|value| all.with_label_values(&[value.as_str()])).collect();
        Ok(Self { counters, label: PhantomData })
    }
}

impl SharedCell for IntGauge {
    const KIND: MetricKind = MetricKind::Gauge;

    fn register(row: &MetricRow, _: &[f64], registry: &Registry) -> Result<Self> {
        registered(Self::with_opts(opts(row))?, registry)
    }
}

impl SharedCell for Gauge {
    const KIND: MetricKind = MetricKind::Gauge;

    fn register(row: &MetricRow, _: &[f64], registry: &Registry) -> Result<Self> {
        registered(Self::with_opts(opts(row))?, registry)
    }
}

impl SharedCell for Histogram {
    const KIND: MetricKind = MetricKind::Histogram;

    fn register(row: &MetricRow, buckets: &[f64], registry: &Registry) -> Result<Self> {
        registered(Self::with_opts(histogram_opts(row, buckets))?, registry)
    }
}

impl<L: Label> SharedCell for HistogramBy<L> {
    const KIND: MetricKind = MetricKind::Histogram;

    fn register(row: &MetricRow, buckets: &[f64], registry: &Registry) -> Result<Self> {
        let all = registered(HistogramVec::new(histogram_opts(row, buckets), row.labels)?, registry)?;
        let histograms = L::ALL.iter().map(|value| all.with_label_values(&[value.as_str()])).collect();
        Ok(Self { histograms, label: PhantomData })
    }
}

fn registered<C: Collector + Clone + 'static>(cell: C, registry: &Registry) -> Result<C> {
    registry.register(Box::new(cell.clone()))?;
    Ok(cell)
}

fn opts(row: &MetricRow) -> Opts {
    Opts::new(row.name, row.help)
}

fn histogram_opts(row: &MetricRow, buckets: &[f64]) -> HistogramOpts {
    HistogramOpts::new(row.name, row.help).buckets(buckets.to_vec())
}
