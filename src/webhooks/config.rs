//! What can be configured about webhooks, checked: made once, at the start, by `config`.

use std::fmt;
use std::fs::DirBuilder;
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use url::Url;
use zeroize::Zeroizing;

use crate::client::{ClientConfig, NameFiles, Roots};
use crate::delivery::schedule::RetrySchedule;
use crate::endpoint::secret::SecretBox;
use crate::endpoint::target_policy::{DatabaseAddresses, TargetPolicy};

/// The file in the data directory that holds the key secrets are sealed with, where none is configured.
pub const SECRET_KEY_FILE: &str = "webhook-secret.key";

/// How webhooks are kept and sent.
#[derive(Clone)]
pub struct DeliverConfig {
    /// Whether endpoints may be plain http and on any address.
    pub allow_insecure: bool,
    /// Networks that endpoints may be in although they are special.
    pub allowed_networks: Vec<IpNet>,
    /// What endpoints' secrets are sealed with; `None` is a key of its own in the data directory.
    pub secret_key: Option<SecretKey>,
    /// When a failed delivery is tried again.
    pub schedule: RetrySchedule,
    /// Until the end of an endpoint's answer, connecting included.
    pub timeout: Duration,
    /// For connection, proxy and TLS, after the name was looked up; at most `timeout`.
    pub connect_timeout: Duration,
    /// Requests to one endpoint at a time, at least 1.
    pub concurrency: usize,
    /// Bytes of an answer's body that are read.
    pub response_bytes_max: usize,
    /// Certificates (PEM) that are trusted beside the roots.
    pub ca_file: Option<PathBuf>,
    /// Whose certificates endpoints' are verified with.
    pub roots: Roots,
    /// `http://[user:password@]host:port` of a CONNECT proxy that all requests go through.
    pub proxy: Option<Url>,
    /// How long deliveries that have ended are kept, with their attempts.
    pub retention: Duration,
    /// Where it says how names are looked up: the system's files.
    pub name_files: NameFiles,
}

/// The configured key or keys, as text that [`SecretBox::from_config`] takes. Wiped when dropped.
#[derive(Clone)]
pub struct SecretKey(Zeroizing<String>);

impl SecretKey {
    /// Checks the text and keeps it.
    ///
    /// # Errors
    /// What would be right; never quotes the text.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        SecretBox::from_config(text)?;
        Ok(Self(Zeroizing::new(text.to_owned())))
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(..)")
    }
}

impl DeliverConfig {
    /// Where requests may go: not to where the server listens or the database is, except where everything is allowed.
    pub fn policy(&self, listens: &[IpAddr], database: &DatabaseAddresses) -> TargetPolicy {
        let mut policy = TargetPolicy {
            allow_insecure: self.allow_insecure,
            allowed_networks: self.allowed_networks.clone(),
            ..TargetPolicy::default()
        };
        if !self.allow_insecure {
            policy.forbidden = listens.iter().copied().filter(|address| !address.is_unspecified()).collect();
            policy.forbids_machine = listens.iter().any(IpAddr::is_unspecified);
            policy.database = database.clone();
        }
        policy
    }

    /// How requests are made under that policy.
    pub fn client(&self, policy: TargetPolicy) -> ClientConfig {
        ClientConfig {
            policy,
            timeout: self.timeout,
            connect_timeout: self.connect_timeout,
            response_bytes_max: self.response_bytes_max,
            roots: self.roots,
            ca_file: self.ca_file.clone(),
            proxy: self.proxy.clone(),
            name_files: self.name_files.clone(),
        }
    }

    /// Whether [`Self::open_secrets`] finds a key, and need not make one.
    pub fn has_secret_key(&self, data_dir: &Path) -> bool {
        self.secret_key.is_some() || data_dir.join(SECRET_KEY_FILE).exists()
    }

    /// What seals endpoints' secrets: the configured key, else the one in the data directory, which is made where there
    /// is none.
    ///
    /// # Errors
    /// What is wrong with the file, and what mends it.
    pub fn open_secrets(&self, data_dir: &Path) -> Result<SecretBox, String> {
        if let Some(SecretKey(text)) = &self.secret_key {
            return SecretBox::from_config(text).map_err(|rule| format!("webhook_secret_key {rule}"));
        }
        let path = data_dir.join(SECRET_KEY_FILE);
        // With Postgres and nothing to keep but this, nobody has made the directory yet.
        let made = DirBuilder::new().recursive(true).mode(0o700).create(data_dir);
        made.and_then(|()| SecretBox::load_or_create(&path)).map_err(|error| {
            format!(
                "the key that webhook secrets are sealed with, {}, cannot be used: {error}\n  fix: make the file \
                 readable, put it back from a backup, or set MILLRACE_WEBHOOK_SECRET_KEY to what it held",
                path.display()
            )
        })
    }

    /// The proxy with its password masked.
    pub fn shown_proxy(&self) -> Option<String> {
        let mut proxy = self.proxy.clone()?;
        if proxy.password().is_some() {
            proxy.set_password(Some("***")).expect("a proxy's URL has a host");
        }
        Some(proxy.as_str().trim_end_matches('/').to_owned())
    }
}

impl fmt::Debug for DeliverConfig {
    /// With its secrets masked.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeliverConfig")
            .field("allow_insecure", &self.allow_insecure)
            .field("allowed_networks", &self.allowed_networks)
            .field("secret_key", &self.secret_key)
            .field("schedule", &self.schedule)
            .field("timeout", &self.timeout)
            .field("connect_timeout", &self.connect_timeout)
            .field("concurrency", &self.concurrency)
            .field("response_bytes_max", &self.response_bytes_max)
            .field("ca_file", &self.ca_file)
            .field("roots", &self.roots)
            .field("proxy", &self.shown_proxy())
            .field("retention", &self.retention)
            .field("name_files", &self.name_files)
            .finish()
    }
}
