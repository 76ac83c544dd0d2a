//! How the journal's threads record.

use super::labels::JournalFailure;
pub use super::names::JournalMetrics;

impl JournalMetrics {
    /// Records an operation on the disk that failed.
    pub fn failed(&self, failure: JournalFailure) {
        self.failures.inc(failure);
    }
}
