//! The webhook settings, checked. The server's configuration fills in a [`WebhookConfig`] once, at start.

use std::fmt;
use std::fs::DirBuilder;
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use url::Url;
use zeroize::Zeroizing;

use crate::client::{ClientConfig, ResolverFiles, TrustRoots};
use crate::delivery::schedule::RetrySchedule;
use crate::endpoint::secret::SecretBox;
use crate::endpoint::target_policy::{DatabaseAddresses, TargetPolicy};

/// The file in the data directory with the key that seals secrets, used when no key is configured.
pub const SECRET_KEY_FILE: &str = "webhook-secret.key";

/// The webhook settings.
#[derive(Clone)]
pub struct WebhookConfig {
    /// Whether endpoints may use plain http and any address.
    pub allow_insecure: bool,
    /// Special-purpose networks that endpoints may nevertheless be in.
    pub allowed_networks: Vec<IpNet>,
    /// The key that seals endpoint secrets; `None` uses [`SECRET_KEY_FILE`] in the data directory.
    pub secret_key: Option<SecretKey>,
    /// When a failed delivery is retried.
    pub schedule: RetrySchedule,
    /// The longest duration of an attempt, from connecting to the end of the response.
    pub timeout: Duration,
    /// The longest time for TCP, proxy and TLS, after the name lookup; at most `timeout`.
    pub connect_timeout: Duration,
    /// The most requests in flight to one endpoint, at least 1.
    pub concurrency: usize,
    /// The most bytes read of a response body.
    pub response_bytes_max: usize,
    /// A PEM file of certificates that are trusted in addition to the roots.
    pub ca_file: Option<PathBuf>,
    /// The root certificates that endpoints are verified with.
    pub roots: TrustRoots,
    /// `http://[user:password@]host:port` of a CONNECT proxy for all requests.
    pub proxy: Option<Url>,
    /// How long ended deliveries are kept, with their attempts.
    pub retention: Duration,
    /// The system files that configure name resolution.
    pub resolver_files: ResolverFiles,
}

/// The configured key or keys, as text that [`SecretBox::from_config`] takes. Wiped when dropped.
#[derive(Clone)]
pub struct SecretKey(Zeroizing<String>);

impl SecretKey {
    /// Checks the text and keeps it.
    ///
    /// # Errors
    /// The rule that the text breaks; never quotes the text.
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

impl WebhookConfig {
    /// The target policy. It refuses the addresses of this server and of its database, except where everything is allowed.
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

    /// The client settings under that policy.
    pub fn client(&self, policy: TargetPolicy) -> ClientConfig {
        ClientConfig {
            policy,
            timeout: self.timeout,
            connect_timeout: self.connect_timeout,
            response_bytes_max: self.response_bytes_max,
            roots: self.roots,
            ca_file: self.ca_file.clone(),
            proxy: self.proxy.clone(),
            resolver_files: self.resolver_files.clone(),
        }
    }

    /// Whether [`Self::open_secrets`] finds a key and need not create one.
    pub fn has_secret_key(&self, data_dir: &Path) -> bool {
        self.secret_key.is_some() || data_dir.join(SECRET_KEY_FILE).exists()
    }

    /// Opens the keys that seal endpoint secrets: the configured ones, or else the file in the data directory, which is created
    /// if it does not exist.
    ///
    /// # Errors
    /// What is wrong with the file and how to fix it.
    pub fn open_secrets(&self, data_dir: &Path) -> Result<SecretBox, String> {
        if let Some(SecretKey(text)) = &self.secret_key {
            return SecretBox::from_config(text).map_err(|rule| format!("webhook_secret_key {rule}"));
        }
        let path = data_dir.join(SECRET_KEY_FILE);
        // With Postgres and no journal the data directory may not exist yet.
        let made = DirBuilder::new().recursive(true).mode(0o700).create(data_dir);
        made.and_then(|()| SecretBox::load_or_create(&path)).map_err(|error| {
            format!(
                "the key that webhook secrets are sealed with, {}, cannot be used: {error}\n  fix: make the file \
                 readable, restore it from a backup, or set MILLRACE_WEBHOOK_SECRET_KEY to what it held",
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

impl fmt::Debug for WebhookConfig {
    /// With its secrets masked.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebhookConfig")
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
            .field("resolver_files", &self.resolver_files)
            .finish()
    }
}
