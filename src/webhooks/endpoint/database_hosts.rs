//! Keeps it known where the database is, so that no webhook goes there.
//!
//! Names are looked up by the C library, as the driver does it, when the sender starts (before anything is sent) and every
//! [`DATABASE_NAMES_INTERVAL`] from then on. What a name had counts until it has something else. Runs on the sender's
//! runtime; one lookup at a time, on a thread of its own.

use std::net::{IpAddr, ToSocketAddrs as _};
use std::sync::Arc;

use millrace_base::limits::DATABASE_NAMES_INTERVAL;

use crate::endpoint::target_policy::DatabaseAddresses;

/// The hosts of `DATABASE_URL`, and what is known of them.
pub struct DatabaseHosts {
    hosts: Arc<[String]>,
    known: Vec<Vec<IpAddr>>,
    addresses: DatabaseAddresses,
}

impl DatabaseHosts {
    /// Names and literal addresses; the latter are known from here on.
    pub fn new(hosts: Vec<String>, addresses: DatabaseAddresses) -> Self {
        let literal = |host: &String| host.parse().into_iter().collect();
        let names = Self { known: hosts.iter().map(literal).collect(), hosts: hosts.into(), addresses };
        names.publish();
        names
    }

    /// Looks all names up once.
    pub async fn resolve(&mut self) {
        for (at, known) in self.known.iter_mut().enumerate() {
            let hosts = Arc::clone(&self.hosts);
            let found = tokio::task::spawn_blocking(move || {
                // Any port will do.
                let found = (hosts[at].as_str(), 0).to_socket_addrs().into_iter().flatten();
                found.map(|address| address.ip()).collect::<Vec<IpAddr>>()
            });
            // Nothing found, or the runtime goes away.
            if let Ok(found) = found.await
                && !found.is_empty()
            {
                *known = found;
            }
        }
        self.publish();
    }

    /// The same for ever; ends at once where there is nothing to look up.
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
    fn addresses_are_known_at_once_and_names_once_they_are_looked_up() {
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
