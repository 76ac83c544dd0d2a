//! A reader of the Prometheus text format (0.0.4) that accepts nothing it should not: what it returns has been
//! checked line by line, family by family, histogram by histogram.

use std::collections::{BTreeMap, BTreeSet};

/// Labels of a sample, sorted by name.
pub type Labels = BTreeMap<String, String>;

/// One `# TYPE` with its samples.
#[derive(Debug, Default)]
pub struct Family {
    pub kind: String,
    /// By full sample name (`…_bucket` and so on) and labels.
    pub samples: BTreeMap<(String, Labels), f64>,
}

/// A whole scrape, by family name.
#[derive(Debug, Default)]
pub struct Scrape(pub BTreeMap<String, Family>);

impl Scrape {
    /// Reads and checks; panics with the line at fault.
    pub fn parse(text: &str) -> Self {
        assert!(text.ends_with('\n'), "the last line ends too");
        let mut scrape = Self::default();
        let mut help: Option<String> = None;
        let mut current: Option<String> = None;
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, words) = rest.split_once(' ').unwrap_or_else(|| panic!("{line}"));
                assert!(!words.is_empty() && help.is_none(), "{line}");
                help = Some(name.to_owned());
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap_or_else(|| panic!("{line}"));
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                assert_eq!(help.take().as_deref(), Some(name), "HELP before {line}");
                let family = Family { kind: kind.to_owned(), samples: BTreeMap::new() };
                assert!(scrape.0.insert(name.to_owned(), family).is_none(), "twice: {line}");
                current = Some(name.to_owned());
            } else {
                let name = current.as_deref().unwrap_or_else(|| panic!("no TYPE before {line}"));
                scrape.0.get_mut(name).unwrap().add_sample(name, line);
            }
        }
        for (name, family) in &scrape.0 {
            assert!(!family.samples.is_empty(), "{name} has no sample");
            assert_eq!(family.kind == "counter", name.ends_with("_total"), "{name} is a {}", family.kind);
            if family.kind == "histogram" {
                family.check_histogram(name);
            }
        }
        scrape
    }

    /// The value of one sample; panics where it is not there.
    pub fn value(&self, family: &str, labels: &[(&str, &str)]) -> f64 {
        self.sample(family, family, labels)
    }

    /// Count and sum of a histogram.
    pub fn count_and_sum(&self, family: &str, labels: &[(&str, &str)]) -> (f64, f64) {
        let part = |suffix| self.sample(family, &format!("{family}{suffix}"), labels);
        (part("_count"), part("_sum"))
    }

    /// How many observations were at most `le`.
    pub fn bucket(&self, family: &str, le: &str) -> f64 {
        self.sample(family, &format!("{family}_bucket"), &[("le", le)])
    }

    fn sample(&self, family: &str, name: &str, labels: &[(&str, &str)]) -> f64 {
        let labels = labels.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        let samples = &self.0.get(family).unwrap_or_else(|| panic!("no {family}")).samples;
        *samples.get(&(name.to_owned(), labels)).unwrap_or_else(|| panic!("no such {name}: {samples:?}"))
    }
}

impl Family {
    fn add_sample(&mut self, family: &str, line: &str) {
        let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
        let (name, labels) = match series.split_once('{') {
            Some((name, rest)) => (name, parse_labels(rest.strip_suffix('}').unwrap_or_else(|| panic!("{line}")))),
            None => (series, Labels::new()),
        };
        let suffix = name.strip_prefix(family).unwrap_or_else(|| panic!("not of {family}: {line}"));
        let allowed = if self.kind == "histogram" { &["_bucket", "_sum", "_count"][..] } else { &[""] };
        assert!(allowed.contains(&suffix), "{line}");
        assert!(name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'), "{line}");
        let value: f64 = value.parse().unwrap_or_else(|_| panic!("{line}"));
        assert!(value.is_finite() && value >= 0.0, "{line}");
        assert!(self.samples.insert((name.to_owned(), labels), value).is_none(), "twice: {line}");
    }

    /// Per label set: bounds ascend to `+Inf`, counts never fall, the last is `_count`, and `_sum` lies between
    /// what the buckets' bounds allow.
    fn check_histogram(&self, name: &str) {
        let mut series: BTreeMap<Labels, Vec<(f64, f64)>> = BTreeMap::new();
        for ((sample, labels), value) in &self.samples {
            if *sample == format!("{name}_bucket") {
                let mut labels = labels.clone();
                let le = labels.remove("le").unwrap_or_else(|| panic!("{name}: a bucket without le"));
                series.entry(labels).or_default().push((le.parse().unwrap(), *value));
            }
        }
        let plain: BTreeSet<Labels> =
            self.samples.keys().filter(|(s, _)| *s == format!("{name}_sum")).map(|(_, l)| l.clone()).collect();
        assert_eq!(plain, series.keys().cloned().collect(), "{name}: sums and buckets of the same series");
        for (labels, mut buckets) in series {
            buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
            assert!(buckets.windows(2).all(|w| w[0].0 < w[1].0 && w[0].1 <= w[1].1), "{name} {labels:?}: {buckets:?}");
            let (last_bound, last_count) = *buckets.last().unwrap();
            let count = self.samples[&(format!("{name}_count"), labels.clone())];
            assert!(last_bound.is_infinite() && last_count == count, "{name} {labels:?}: {buckets:?} {count}");
        }
    }
}

fn parse_labels(text: &str) -> Labels {
    let mut labels = Labels::new();
    for pair in text.split(',') {
        let (name, value) = pair.split_once('=').unwrap_or_else(|| panic!("{text}"));
        let value = value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or_else(|| panic!("{text}"));
        assert!(!value.is_empty() && !value.contains(['"', '\\']), "{text}: our label values need no escapes");
        assert!(labels.insert(name.to_owned(), value.to_owned()).is_none(), "twice: {text}");
    }
    labels
}
