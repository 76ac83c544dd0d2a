//! Keeps the database's addresses current, so that the target policy can refuse them.
//!
//! Host names are resolved by the C library, as the database driver does: when the sender starts (before it sends anything)
//! and then every [`DATABASE_NAMES_INTERVAL`]. The last known addresses stay valid until a lookup finds others. Runs on the
//! sender's runtime; one lookup at a time, on a blocking thread.

use std::net::{IpAddr, ToSocketAddrs as _};
use std::sync::Arc;

use millrace_base::limits::DATABASE_NAMES_INTERVAL;

use crate::endpoint::target_policy::DatabaseAddresses;

/// The hosts of `DATABASE_URL` and their known addresses.
pub struct DatabaseHosts {
    hosts: Arc<[String]>,
    known: Vec<Vec<IpAddr>>,
    addresses: DatabaseAddresses,
}

impl DatabaseHosts {
    /// `hosts` are names and literal addresses. Literal addresses are published at once.
    pub fn new(hosts: Vec<String>, addresses: DatabaseAddresses) -> Self {
        let literal = |host: &String| host.parse().into_iter().collect();
        let names = Self { known: hosts.iter().map(literal).collect(), hosts: hosts.into(), addresses };
        names.publish();
        names
    }

    /// Resolves all names once.
    pub async fn resolve(&mut self) {
        for (at, known) in self.known.iter_mut().enumerate() {
            let hosts = Arc::clone(&self.hosts);
            let found = tokio::task::spawn_blocking(move || {
                // The port does not matter.
                let found = (hosts[at].as_str(), 0).to_socket_addrs().into_iter().flatten();
                found.map(|address| address.ip()).collect::<Vec<IpAddr>>()
            });
            // The name was not found, or the runtime shuts down: keep the known addresses.
            if let Ok(found) = found.await
                && !found.is_empty()
            {
                *known = found;
            }
        }
        self.publish();
    }

    /// Repeats this for ever. Ends at once if there are only literal addresses.
    pub async fn resolve_periodically(mut self) {
        while self.hosts.iter().any(|host| host.parse::<IpAddr>().is_err()) {
            tokio::time::sleep(DATABASE_NAMES_INTERVAL).await;
            self.resolve().await;
        }
    }

    fn publish(&self) {
        self.addresses.set(self.known.concat());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::target_policy::TargetPolicy;

    #[test]
    fn literal_addresses_are_known_at_once_names_when_resolved() {
        let addresses = DatabaseAddresses::default();
        let hosts = ["10.0.0.5", "localhost", "nowhere.invalid", "fd00::5"].map(str::to_owned).to_vec();
        let mut names = DatabaseHosts::new(hosts, addresses.clone());
        let allowed_networks = vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()];
        let policy = TargetPolicy { allowed_networks, database: addresses, ..TargetPolicy::default() };
        let allows = |text: &str| policy.allows(text.parse().unwrap());
        assert!(!allows("10.0.0.5") && !allows("fd00::5") && allows("127.0.0.1"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(names.resolve());
        assert!(!allows("10.0.0.5") && !allows("fd00::5") && !allows("127.0.0.1") && allows("10.0.0.6"));
    }
}
