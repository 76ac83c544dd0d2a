//! From cells to the text of a scrape: adds the shards up, takes a sample, and hands the families to the `prometheus`
//! crate, which sorts and encodes them.

use std::collections::HashMap;
use std::sync::Arc;

use prometheus::core::{Collector, Desc};
use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType};

use super::Shared;
use super::names::{MetricKind, MetricRow, SAMPLED_ROWS, ShardMetrics, sampled_families};
use super::sampled::Sample;

/// Collects every metric that is not one of the `prometheus` crate's own cells.
pub(super) struct OwnMetrics {
    shared: Arc<Shared>,
    descriptions: Vec<Desc>,
}

impl OwnMetrics {
    pub(super) fn new(shared: Arc<Shared>) -> prometheus::Result<Self> {
        let descriptions = ShardMetrics::ROWS.iter().chain(SAMPLED_ROWS).map(|row| {
            let labels = row.labels.iter().map(|label| (*label).to_owned()).collect();
            Desc::new(row.name.to_owned(), row.help.to_owned(), labels, HashMap::new())
        });
        Ok(Self { descriptions: descriptions.collect::<Result<_, _>>()?, shared })
    }
}

impl Collector for OwnMetrics {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut families = ShardMetrics::families(&self.shared.shards);
        families.extend(sampled_families(&Sample::take(&self.shared)));
        // Without series: what the kernel does not tell.
        families.retain(|family| !family.get_metric().is_empty());
        families
    }
}

// ---- the prometheus crate's model, one constructor a kind ---------------------------------------------------------

pub(super) fn family(row: &MetricRow, series: Vec<Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(row.name.to_owned());
    family.set_help(row.help.to_owned());
    family.set_field_type(match row.kind {
        MetricKind::Counter => MetricType::COUNTER,
        MetricKind::Gauge => MetricType::GAUGE,
        MetricKind::Histogram => MetricType::HISTOGRAM,
    });
    family.set_metric(series);
    family
}

pub(super) fn counter(value: u64) -> Metric {
    simple(MetricKind::Counter, value as f64)
}

/// A counter, or else a gauge.
pub(super) fn simple(kind: MetricKind, value: f64) -> Metric {
    if kind == MetricKind::Counter {
        let mut counter = Counter::default();
        counter.set_value(value);
        let mut metric = Metric::default();
        metric.set_counter(counter);
        metric
    } else {
        let mut gauge = Gauge::default();
        gauge.set_value(value);
        Metric::from_gauge(gauge)
    }
}

/// Of upper bounds without `+Inf`, and of the observations in each bucket alone, that of `+Inf` among them.
pub(super) fn histogram(upper_bounds: impl Iterator<Item = f64>, buckets: &[u64], sum: f64) -> Metric {
    let mut cumulative = 0;
    let shown = upper_bounds.zip(buckets).map(|(upper_bound, in_bucket)| {
        cumulative += in_bucket;
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(upper_bound);
        bucket.set_cumulative_count(cumulative);
        bucket
    });
    let mut histogram = Histogram::default();
    histogram.set_bucket(shown.collect());
    histogram.set_sample_count(buckets.iter().sum());
    histogram.set_sample_sum(sum);
    let mut metric = Metric::default();
    metric.set_histogram(histogram);
    metric
}

/// `metric` with values for the labels of `row`.
pub(super) fn with_labels(mut metric: Metric, row: &MetricRow, values: &[&str]) -> Metric {
    let pairs = row.labels.iter().zip(values).map(|(name, value)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    });
    metric.set_label(pairs.collect());
    metric
}
