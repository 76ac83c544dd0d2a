//! Where requests may go.

use std::net::IpAddr;

use url::Url;

/// What is allowed.
#[derive(Clone, Debug, Default)]
pub struct TargetPolicy {
    /// Plain http and every address, for tests and private installations.
    pub allow_insecure: bool,
    /// Networks that are allowed although they are special.
    pub allowed_networks: Vec<ipnet::IpNet>,
    /// Addresses that are never allowed: the server's own and the database's.
    pub forbidden: Vec<IpAddr>,
}

impl TargetPolicy {
    /// Reads an endpoint's URL: https (http where insecure ones are allowed), a host, no credentials, no fragment; a
    /// literal address must be allowed.
    ///
    /// # Errors
    /// What is wrong with it and what would be right.
    pub fn parse_url(&self, text: &str) -> Result<Url, String> {
        let _ = text;
        todo!()
    }

    /// Whether a connection to this address may be made.
    pub fn allows(&self, address: IpAddr) -> bool {
        let _ = address;
        todo!()
    }
}
