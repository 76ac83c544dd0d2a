//! Which ways events took, as the server's own counters have it, and what happened to which set-up.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::server::sample;

/// The ways by name, and the metric of each.
const PATHS: &[(&str, &str)] = &[
    ("by COPY", r#"store_batches_total{way="copy"}"#),
    ("by INSERT", r#"store_batches_total{way="insert"}"#),
    ("derived", r#"store_batches_total{way="insert_derived"}"#),
    ("with deliveries", r#"store_batches_total{way="insert_with_deliveries"}"#),
    ("derived, with deliveries", r#"store_batches_total{way="insert_derived_with_deliveries"}"#),
    ("found stored", "store_events_found_total"),
    ("quarantined", "store_events_quarantined_total"),
    ("replayed", "journal_replayed_total"),
    ("spilled", "journal_spilled_total"),
    ("attempt delivered", r#"webhook_deliveries_total{status="delivered"}"#),
    ("attempt failed, another follows", r#"webhook_deliveries_total{status="retried"}"#),
    ("last attempt failed", r#"webhook_deliveries_total{status="failed"}"#),
    ("lease lost", "webhook_leases_lost_total"),
];

/// What a campaign of events must have gone by, if it is long and on Postgres.
pub const OF_EVENTS: &[&str] = &[
    "by COPY",
    "by INSERT",
    "derived",
    "with deliveries",
    "derived, with deliveries",
    "quarantined",
    "replayed",
    "spilled",
];

/// How often each was taken, by all servers together.
#[derive(Default)]
pub struct Paths {
    taken: BTreeMap<&'static str, u64>,
    /// By fault and set-up.
    struck: BTreeMap<(String, String), u64>,
}

impl Paths {
    /// Counts what a server has done, before it ends.
    pub fn add(&mut self, scrape: &str) {
        for (name, metric) in PATHS {
            *self.taken.entry(name).or_default() += sample(scrape, metric) as u64;
        }
    }

    /// Counts what has no metric.
    pub fn note(&mut self, name: &'static str, times: u64) {
        *self.taken.entry(name).or_default() += times;
    }

    /// Counts a fault, and how the server was set up that it happened to.
    pub fn struck(&mut self, fault: &str, setup: &str) {
        self.struck_often(fault, setup, 1);
    }

    /// The same, so many times.
    pub fn struck_often(&mut self, fault: &str, setup: &str, times: u64) {
        *self.struck.entry((fault.to_owned(), setup.to_owned())).or_default() += times;
    }

    /// The pairs of these that did not meet.
    pub fn unstruck<'a>(&self, faults: &[&'a str], setups: &[&'a str]) -> Vec<(&'a str, &'a str)> {
        let pairs = faults.iter().flat_map(|fault| setups.iter().map(|setup| (*fault, *setup)));
        let met =
            |pair: &(&str, &str)| self.struck.get(&(pair.0.to_owned(), pair.1.to_owned())).is_some_and(|n| *n > 0);
        pairs.filter(|pair| !met(pair)).collect()
    }

    /// Those of `names` that nothing went.
    pub fn untaken<'a>(&self, names: &[&'a str]) -> Vec<&'a str> {
        names.iter().copied().filter(|name| self.taken.get(name).is_none_or(|times| *times == 0)).collect()
    }
}

impl fmt::Display for Paths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "paths (batches, or events):")?;
        let noted = self.taken.keys().filter(|name| PATHS.iter().all(|(known, _)| known != *name));
        for name in PATHS.iter().map(|(name, _)| name).chain(noted) {
            writeln!(f, "  {name:<52}{:>9}", self.taken.get(name).copied().unwrap_or_default())?;
        }
        let setups: BTreeSet<&String> = self.struck.keys().map(|(_, setup)| setup).collect();
        writeln!(f, "faults by set-up:")?;
        for (n, setup) in setups.iter().enumerate() {
            writeln!(f, "  {:<50}{:>width$}", "", setup, width = 7 * n + setup.len() + 3)?;
        }
        let faults: BTreeSet<&String> = self.struck.keys().map(|(fault, _)| fault).collect();
        for fault in faults {
            write!(f, "  {fault:<50}")?;
            for setup in &setups {
                match self.struck.get(&(fault.clone(), (*setup).clone())) {
                    Some(times) => write!(f, "{times:>7}")?,
                    None => write!(f, "{:>7}", ".")?,
                }
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
