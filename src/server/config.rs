//! CONFIG: turns the file, the environment and the flags into one typed [`Config`], once, before anything starts.
//!
//! This room is the only reader of the environment. Precedence: defaults < TOML file (`--config` or `MILLRACE_CONFIG`) <
//! environment < flags. A `Config` is always checked: ranges, addresses, the log filter, and the rules about several
//! settings. Nothing is corrected in silence; a value that does not fit is a [`ConfigError`] that names its place and
//! what would be right there. The settings themselves are one table (`table.rs`).
//!
//! Runs on the main thread only. Never shows a secret: not in an error, not in [`Loaded::to_toml`].

mod environment;
mod error;
mod flags;
mod layer;
mod read;
mod secret_url;
pub mod setting;
mod table;
mod typed;

use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

pub use error::ConfigError;
pub use flags::{COMMON_FLAGS_HEADING, EndpointFlags, Flags, KeyFlags, ServerFlags, StoreFlags};
pub use layer::Origin;
pub use secret_url::{ProxyUrl, SecretUrl};
pub use table::Config;
pub use typed::{Durability, Overflow, ProxyProtocol};

use zeroize::Zeroizing;

use millrace_base::key::Argon2Cost;
use millrace_base::limits;
use millrace_ingest::certificates::CertificateFiles;
use millrace_store::open::{StoreConfig, check_database_url};
use millrace_webhooks::config::WebhookConfig;
use millrace_wire::forwarded::{ForwardedField, Trust};

use environment::Environment;
use layer::Values;
use setting::Kind;
use table::SettingKey;

/// The environment variable that names the configuration file where `--config` does not.
pub const CONFIG_FILE_ENV: &str = "MILLRACE_CONFIG";

/// The environment variable with the API key, or several after commas, that `millrace bench` sends with.
pub const API_KEY_ENV: &str = "MILLRACE_API_KEY";

/// What [`API_KEY_ENV`] holds, if it is text.
pub fn api_key_from_environment() -> Option<Zeroizing<String>> {
    std::env::var(API_KEY_ENV).ok().map(Zeroizing::new)
}

/// A checked configuration that knows where each of its values came from.
pub struct Loaded {
    /// The values.
    pub config: Config,
    values: Values,
}

/// Loads the configuration of this process. `file` is what `--config` says; `cores` is what "per core" counts.
pub fn load(file: Option<&Path>, flags: &Flags, cores: usize) -> Result<Loaded, ConfigError> {
    load_from(file, &Environment::new(std::env::vars_os()), flags, cores)
}

fn load_from(
    file: Option<&Path>,
    environment: &Environment,
    flags: &Flags,
    cores: usize,
) -> Result<Loaded, ConfigError> {
    let mut values = Values::defaults(cores);
    let named = environment.get(CONFIG_FILE_ENV).filter(|path| !path.is_empty()).map(PathBuf::from);
    if let Some(path) = file.map(Path::to_owned).or(named) {
        values.lay_file(&path, &read_file(&path)?)?;
    }
    values.lay_environment(environment)?;
    values.lay_flags(flags)?;
    let config = Config::read(&values)?;
    config.check(&values)?;
    Ok(Loaded { config, values })
}

fn read_file(path: &Path) -> Result<String, ConfigError> {
    let refuse = |why: String| ConfigError::File { path: path.to_owned(), why };
    let file = File::open(path).map_err(|error| refuse(error.to_string()))?;
    let mut text = String::new();
    let read = file.take(limits::CONFIG_FILE_BYTES_MAX + 1).read_to_string(&mut text);
    match read.map_err(|error| refuse(error.to_string()))? as u64 {
        0..=limits::CONFIG_FILE_BYTES_MAX => Ok(text),
        _ => Err(refuse(format!("it is larger than {} bytes", limits::CONFIG_FILE_BYTES_MAX))),
    }
}

impl Config {
    /// Checks what a rule says about several settings, or needs more than a setting's text.
    fn check(&self, values: &Values) -> Result<(), ConfigError> {
        self.check_addresses()?;
        self.check_database_url(values)?;
        self.check_trust(values)?;
        self.check_tls()?;
        self.check_webhook_timeouts()?;
        if self.durability == Durability::Memory && self.queue_overflow == Overflow::Spill {
            return Err(values.refuse(
                SettingKey::queue_overflow,
                "\"reject\" where durability is \"memory\": there is no journal to spill into",
            ));
        }
        self.argon2().validate().map(drop).map_err(|why| {
            ConfigError::Unusable(format!(
                "{why}\n  fix: set argon2_memory_kib and argon2_iterations, or leave them out"
            ))
        })
    }

    fn check_addresses(&self) -> Result<(), ConfigError> {
        if !overlap(self.listen, self.ops_listen) {
            return Ok(());
        }
        Err(ConfigError::Unusable(format!(
            "listen ({}) and ops_listen ({}) are the same address\n  fix: give one of them another port, with --listen or \
             --ops-listen",
            self.listen, self.ops_listen
        )))
    }

    fn check_database_url(&self, values: &Values) -> Result<(), ConfigError> {
        let Some(url) = &self.database_url else { return Ok(()) };
        check_database_url(url.reveal()).map_err(|why| {
            let place = values.place(SettingKey::database_url);
            ConfigError::Unusable(format!(
                "{place} cannot be used: {why}\n  fix: docs/configuration.md has the options of a URL"
            ))
        })
    }

    fn check_trust(&self, values: &Values) -> Result<(), ConfigError> {
        let names_client = [
            (SettingKey::proxy_protocol, self.proxy_protocol != ProxyProtocol::Off),
            (SettingKey::forwarded_field, self.forwarded_field != ForwardedField::Off),
        ];
        let Some((key, _)) = names_client.into_iter().find(|(_, is_on)| *is_on && self.trusted_proxies.is_empty())
        else {
            return Ok(());
        };
        let name = key.setting().key;
        Err(ConfigError::Unusable(format!(
            "{name} is {:?} and trusted_proxies is empty: nobody would be believed\n  fix: name the proxies with \
             --trusted-proxies, or leave {name} off",
            values.text(key)
        )))
    }

    fn check_tls(&self) -> Result<(), ConfigError> {
        let (set, missing) = match (&self.tls_cert_file, &self.tls_key_file) {
            (Some(_), None) => ("cert", "key"),
            (None, Some(_)) => ("key", "cert"),
            (Some(_), Some(_)) | (None, None) => return Ok(()),
        };
        Err(ConfigError::Unusable(format!(
            "tls_{set}_file is set and tls_{missing}_file is not: TLS needs both\n  fix: set --tls-{missing}-file too, or \
             leave both out for plain HTTP"
        )))
    }

    fn check_webhook_timeouts(&self) -> Result<(), ConfigError> {
        let [connect_timeout, timeout] =
            [self.webhook_connect_timeout, self.webhook_timeout].map(|time| time.as_secs());
        if connect_timeout <= timeout {
            return Ok(());
        }
        Err(ConfigError::Unusable(format!(
            "webhook_connect_timeout ({connect_timeout} s) is longer than webhook_timeout ({timeout} s), which it is a part \
             of\n  fix: set --webhook-connect-timeout to at most {timeout}, or --webhook-timeout to at least \
             {connect_timeout}"
        )))
    }

    /// The cost of hashing a new key.
    pub fn argon2(&self) -> Argon2Cost {
        Argon2Cost { memory_kib: self.argon2_memory_kib, iterations: self.argon2_iterations }
    }

    /// The proxies that are believed, and what they are believed in.
    pub fn trust(&self) -> Trust {
        Trust {
            proxies: self.trusted_proxies.clone(),
            proxy_protocol: self.proxy_protocol == ProxyProtocol::V2,
            field: self.forwarded_field,
        }
    }

    /// The public listener's certificate; `None`: the listener speaks plain HTTP.
    pub fn tls(&self) -> Option<CertificateFiles> {
        let (certificates, key) = (self.tls_cert_file.clone()?, self.tls_key_file.clone()?);
        Some(CertificateFiles { certificates, key })
    }

    /// How webhooks are kept and sent.
    pub fn webhooks(&self) -> WebhookConfig {
        WebhookConfig {
            allow_insecure: self.allow_insecure_webhooks,
            allowed_networks: self.webhook_allowed_networks.clone(),
            secret_key: self.webhook_secret_key.clone(),
            schedule: self.webhook_retry_schedule.clone(),
            timeout: self.webhook_timeout,
            connect_timeout: self.webhook_connect_timeout,
            concurrency: self.webhook_concurrency,
            response_bytes_max: self.webhook_response_bytes_max,
            ca_file: self.webhook_ca_file.clone(),
            roots: self.webhook_roots,
            proxy: self.webhook_proxy.as_ref().map(|proxy| proxy.reveal().clone()),
            retention: self.webhook_retention_days,
            resolver_files: self.resolver_files.clone(),
        }
    }

    /// The store in words; without a password.
    pub fn store_in_words(&self) -> String {
        if let Some(url) = &self.database_url {
            return url.to_string();
        }
        let directory = std::path::absolute(&self.data_dir).unwrap_or_else(|_| self.data_dir.clone());
        format!("the embedded store in {}", directory.display())
    }

    /// Whether the listener for events answers `/metrics`: to its own machine, or to everybody where that is wanted.
    pub fn are_metrics_public(&self) -> bool {
        self.public_metrics || self.listen.ip().to_canonical().is_loopback()
    }

    /// What the store needs to know, with at most this many connections to the database.
    pub fn store(&self, connections_max: u32) -> StoreConfig {
        StoreConfig {
            database_url: self.database_url.as_ref().map(|url| url.reveal().to_owned()),
            data_dir: self.data_dir.clone(),
            connections_max,
        }
    }
}

impl Loaded {
    /// The values in force as TOML, secrets masked, each line with the place its value came from.
    pub fn to_toml(&self) -> String {
        let mut lines = Vec::new();
        for slot in self.values.slots() {
            let key = slot.setting.key;
            let text = slot.text.as_deref();
            let line = match (text, slot.setting.kind) {
                (Some(text), Kind::Secret(_)) if !text.is_empty() => match (slot.setting.masked)(text) {
                    Some(masked) => format!("{key} = {}", quoted(&masked)),
                    None => format!("# {key} is set, and not shown"),
                },
                (None, _) | (_, Kind::Secret(_)) => format!("# {key} is not set"),
                (Some(text), Kind::Count(..) | Kind::Switch { .. }) => format!("{key} = {text}"),
                (Some(text), Kind::Text(_) | Kind::Listed(_) | Kind::Choice(_) | Kind::Quantity(..)) => {
                    format!("{key} = {}", quoted(text))
                }
            };
            let origin = match &slot.origin {
                Origin::Default => "default".to_owned(),
                origin => origin.place(slot.setting),
            };
            lines.push((line, origin));
        }
        let width = lines.iter().map(|(line, _)| line.chars().count()).max().unwrap_or(0);
        lines.iter().fold(String::new(), |mut text, (line, origin)| {
            writeln!(text, "{line:width$}  # {origin}").expect("writing to a String cannot fail");
            text
        })
    }
}

impl fmt::Debug for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.config.fmt(f)
    }
}

/// Whether the kernel would give both to one listener, or refuse the second.
fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let any = a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() != 0 && a.port() == b.port() && (any || a.ip() == b.ip())
}

/// A TOML basic string. JSON's escapes are a subset of TOML's, which also wants DEL escaped.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string().replace('\x7f', "\\u007F")
}

#[cfg(test)]
mod tests;
