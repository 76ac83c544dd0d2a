//! CONFIG: turns the file, the environment and the flags into one typed [`Config`], once, before anything starts.
//!
//! The only reader of the environment. Precedence: defaults < TOML file (`--config` or `MILLRACE_CONFIG`) <
//! environment < flags. Whoever holds a `Config` holds one that was checked: ranges, addresses, the log filter
//! and what this version can do. Nothing is corrected in silence; whatever does not fit is a [`ConfigError`]
//! that names the place and what would be right there.
//!
//! Runs on the main thread only. Never shows a secret: not in an error, not in [`Loaded::to_toml`].

mod deliver;
mod environment;
mod error;
mod flags;
mod layer;
mod secret_url;
pub mod setting;

use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use error::ConfigError;
pub use flags::{COMMON_FLAGS_HEADING, EndpointFlags, Flags, KeyFlags, ServerFlags, StoreFlags};
pub use layer::Origin;
pub use secret_url::SecretUrl;

use ipnet::IpNet;
use zeroize::Zeroizing;

use millrace_base::key::Argon2Cost;
use millrace_base::limits;
use millrace_base::logging::{self, LogFormat};
use millrace_ingest::certificates::CertificateFiles;
use millrace_ingest::shard::IoDriver;
use millrace_store::open::{StoreConfig, check_database_url};
use millrace_webhooks::config::WebhookConfig;
use millrace_wire::client_address::{ForwardedField, Trust};

use environment::Environment;
use layer::{Value, Values};
use setting::Kind;

/// The environment variable that names the configuration file where `--config` does not.
pub const CONFIG_FILE_ENV: &str = "MILLRACE_CONFIG";

/// The environment variable with the API key, or several after commas, that `millrace bench` sends with.
pub const API_KEY_ENV: &str = "MILLRACE_API_KEY";

/// What [`API_KEY_ENV`] holds, if it is text.
pub fn api_key_from_environment() -> Option<Zeroizing<String>> {
    std::env::var(API_KEY_ENV).ok().map(Zeroizing::new)
}

/// Everything that can be configured, checked.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is one independent switch; no two make a state")]
pub struct Config {
    /// Where events are accepted. Port 0: a free one.
    pub listen: SocketAddr,
    /// Where the operations routes answer. Port 0: a free one.
    pub ops_listen: SocketAddr,
    /// Whether `/metrics` is answered at `listen` wherever that is; see [`Config::are_metrics_public`].
    pub public_metrics: bool,
    /// Where the embedded store lives.
    pub data_dir: PathBuf,
    /// The Postgres to store in; `None` is the embedded store.
    pub database_url: Option<SecretUrl>,
    /// Shard threads, at least 1.
    pub shards: usize,
    /// Whether each shard is pinned to a core.
    pub pin: bool,
    /// How shards do their I/O.
    pub io_driver: IoDriver,
    /// Open client connections, all shards together, at least 1.
    pub connections_max: usize,
    /// Open connections of one client address, at least 1.
    pub connections_per_address_max: u32,
    /// How long a connection may be idle between requests, whole seconds, at least 1.
    pub keep_alive_timeout: Duration,
    /// Which proxies are believed, and what.
    pub trust: Trust,
    /// The public listener's certificate; `None`: it speaks plain HTTP.
    pub tls: Option<CertificateFiles>,
    /// Threads that store events, at least 1.
    pub writers: usize,
    /// Events accepted and not yet stored, at least 1.
    pub queue_capacity: usize,
    /// What a 202 promises.
    pub durability: Durability,
    /// What happens when the queue is full; `Spill` needs a journal.
    pub queue_overflow: Overflow,
    /// Disk for the journal, in bytes.
    pub journal_bytes_max: u64,
    /// Length of one file of the journal, in bytes.
    pub journal_segment_bytes: u64,
    /// Requests per minute for organisations without a limit of their own; 0 is unlimited.
    pub rate_limit_per_minute: u32,
    /// How long a shutdown drains the queue.
    pub shutdown_grace: Duration,
    /// Whether a journal that belongs to another store is taken into this one.
    pub adopt: bool,
    /// Whether `serve` applies migrations.
    pub migrate_on_start: bool,
    /// How webhooks are kept and sent.
    pub deliver: WebhookConfig,
    /// Cost of hashing a new key.
    pub argon2: Argon2Cost,
    /// A filter that [`logging::parse_filter`] takes.
    pub log: String,
    /// Form of the log.
    pub log_format: LogFormat,
}

/// What a 202 promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// On disk, synchronised.
    Fsync,
    /// Written to the operating system.
    Os,
    /// In the queue.
    Memory,
}

/// What happens to an event when the queue is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overflow {
    /// It is refused.
    Reject,
    /// It is accepted into the journal alone and fed to the writers later.
    Spill,
}

/// A checked configuration, with where each of its values came from.
pub struct Loaded {
    /// What it says.
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
    for (setting, text) in flags.iter() {
        values.lay_flag(setting, text)?;
    }
    Ok(Loaded { config: Config::from_values(&values)?, values })
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
    fn from_values(values: &Values) -> Result<Self, ConfigError> {
        let argon2 = Argon2Cost {
            memory_kib: values.count("argon2_memory_kib") as u32,
            iterations: values.count("argon2_iterations") as u32,
        };
        let log = values.text("log");
        logging::parse_filter(log).map_err(|why| values.refuse_text("log", why))?;
        let config = Self {
            listen: address(values, "listen")?,
            ops_listen: address(values, "ops_listen")?,
            public_metrics: values.switch("public_metrics"),
            data_dir: data_dir(values)?,
            database_url: database_url(values)?,
            shards: values.count("shards") as usize,
            pin: values.switch("pin"),
            io_driver: match values.text("io_driver") {
                "uring" => IoDriver::Uring,
                "epoll" => IoDriver::Epoll,
                _ => IoDriver::Auto,
            },
            connections_max: values.count("connections_max") as usize,
            connections_per_address_max: values.count("connections_per_address_max") as u32,
            keep_alive_timeout: Duration::from_secs(values.count("keep_alive_timeout")),
            trust: trust(values)?,
            tls: tls(values)?,
            writers: values.count("writers") as usize,
            queue_capacity: values.count("queue_capacity") as usize,
            durability: match values.text("durability") {
                "fsync" => Durability::Fsync,
                "os" => Durability::Os,
                _ => Durability::Memory,
            },
            queue_overflow: if values.text("queue_overflow") == "spill" { Overflow::Spill } else { Overflow::Reject },
            journal_bytes_max: values.count("journal_bytes_max"),
            journal_segment_bytes: values.count("journal_segment_bytes"),
            rate_limit_per_minute: values.count("rate_limit_per_minute") as u32,
            shutdown_grace: Duration::from_secs(values.count("shutdown_grace")),
            adopt: values.switch("adopt"),
            migrate_on_start: values.switch("migrate"),
            deliver: deliver::deliver(values)?,
            argon2: argon2.validate().map_err(|why| refuse_argon2(&why))?,
            log: log.to_owned(),
            log_format: if values.text("log_format") == "json" { LogFormat::Json } else { LogFormat::Text },
        };
        if overlap(config.listen, config.ops_listen) {
            return Err(ConfigError::Unusable(format!(
                "listen ({}) and ops_listen ({}) are the same address\n  fix: give one of them another port, with \
                 --listen or --ops-listen",
                config.listen, config.ops_listen
            )));
        }
        config.check_journal(values)?;
        Ok(config)
    }

    fn check_journal(&self, values: &Values) -> Result<(), ConfigError> {
        if self.durability == Durability::Memory && self.queue_overflow == Overflow::Spill {
            return Err(values.refuse_text(
                "queue_overflow",
                "\"reject\" where durability is \"memory\": there is no journal to spill into",
            ));
        }
        Ok(())
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
    /// The effective configuration as TOML, secrets masked, each line with where its value came from.
    pub fn to_toml(&self) -> String {
        let mut lines = Vec::new();
        for slot in self.values.slots() {
            let key = slot.setting.key;
            let line = match (&slot.value, slot.setting.kind) {
                (Some(Value::Text(text)), Kind::Secret(_)) if !text.is_empty() => match self.masked(key) {
                    Some(masked) => format!("{key} = {}", quoted(&masked)),
                    None => format!("# {key} is set, and not shown"),
                },
                (None, _) | (_, Kind::Secret(_)) => format!("# {key} is not set"),
                (Some(Value::Text(text)), _) => format!("{key} = {}", quoted(text)),
                (Some(Value::Count(count)), Kind::Quantity(unit, ..)) => {
                    format!("{key} = {}", quoted(&unit.show(*count)))
                }
                (Some(Value::Count(count)), _) => format!("{key} = {count}"),
                (Some(Value::Switch(on)), _) => format!("{key} = {on}"),
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

    /// A secret setting with its secrets masked; `None` where that leaves nothing.
    fn masked(&self, key: &str) -> Option<String> {
        match key {
            "database_url" => self.config.database_url.as_ref().map(SecretUrl::to_string),
            "webhook_proxy" => self.config.deliver.shown_proxy(),
            _ => None,
        }
    }
}

impl fmt::Debug for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.config.fmt(f)
    }
}

fn address(values: &Values, key: &str) -> Result<SocketAddr, ConfigError> {
    let text = values.text(key);
    let localhost = || text.strip_prefix("localhost:")?.parse().ok().map(|port| (Ipv4Addr::LOCALHOST, port).into());
    text.parse().ok().or_else(localhost).ok_or_else(|| {
        values.refuse_text(
            key,
            "an IP address and a port, such as 127.0.0.1:3000, 0.0.0.0:3000, [::1]:3000 or localhost:3000",
        )
    })
}

/// Whether the kernel would give both to one listener, or refuse the second.
fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let any = a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() != 0 && a.port() == b.port() && (any || a.ip() == b.ip())
}

fn trust(values: &Values) -> Result<Trust, ConfigError> {
    let trust = Trust {
        proxies: networks(values, "trusted_proxies", limits::TRUSTED_PROXIES_MAX)?,
        proxy_protocol: values.text("proxy_protocol") == "v2",
        field: match values.text("forwarded_field") {
            "forwarded" => ForwardedField::Forwarded,
            "x-forwarded-for" => ForwardedField::XForwardedFor,
            _ => ForwardedField::Off,
        },
    };
    if trust.proxies.is_empty() && (trust.proxy_protocol || trust.field != ForwardedField::Off) {
        let setting = if trust.proxy_protocol { "proxy_protocol" } else { "forwarded_field" };
        return Err(ConfigError::Unusable(format!(
            "{setting} is {:?} and trusted_proxies is empty: nobody would be believed\n  fix: name the proxies with \
             --trusted-proxies, or leave {setting} off",
            values.text(setting)
        )));
    }
    Ok(trust)
}

/// The networks in a setting, at most `max`; none where it is empty.
fn networks(values: &Values, key: &str, max: usize) -> Result<Vec<IpNet>, ConfigError> {
    let text = values.text(key);
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let networks: Result<Vec<IpNet>, _> = text.split(',').map(|network| network.trim().parse()).collect();
    networks.ok().filter(|networks| networks.len() <= max).ok_or_else(|| {
        values
            .refuse_text(key, format!("at most {max} networks, separated by commas, such as 10.20.0.0/16,fd00:1::/32"))
    })
}

fn tls(values: &Values) -> Result<Option<CertificateFiles>, ConfigError> {
    match (values.text("tls_cert_file"), values.text("tls_key_file")) {
        ("", "") => Ok(None),
        (certificates, key) if !certificates.is_empty() && !key.is_empty() => {
            Ok(Some(CertificateFiles { certificates: certificates.into(), key: key.into() }))
        }
        (certificates, _) => {
            let (set, missing) = if certificates.is_empty() { ("key", "cert") } else { ("cert", "key") };
            Err(ConfigError::Unusable(format!(
                "tls_{set}_file is set and tls_{missing}_file is not: TLS needs both\n  fix: set --tls-{missing}-file too, \
                 or leave both out for plain HTTP"
            )))
        }
    }
}

fn data_dir(values: &Values) -> Result<PathBuf, ConfigError> {
    match values.text("data_dir") {
        "" => Err(values.refuse_text("data_dir", "the path of a directory")),
        path => Ok(path.into()),
    }
}

fn database_url(values: &Values) -> Result<Option<SecretUrl>, ConfigError> {
    match values.text("database_url") {
        "" => Ok(None),
        text => {
            let url = SecretUrl::parse(text).ok_or_else(|| {
                values.refuse_text(
                    "database_url",
                    "postgres://USER:PASSWORD@HOST:PORT/DATABASE without quotes, or empty for the embedded store",
                )
            })?;
            check_database_url(url.reveal()).map_err(|why| {
                let place = values.place("database_url");
                ConfigError::Unusable(format!(
                    "{place} cannot be used: {why}\n  fix: docs/configuration.md has the options of a URL"
                ))
            })?;
            Ok(Some(url))
        }
    }
}

fn refuse_argon2(why: &str) -> ConfigError {
    ConfigError::Unusable(format!("{why}\n  fix: set argon2_memory_kib and argon2_iterations, or leave them out"))
}

/// A TOML basic string. JSON's escapes are a subset of TOML's, which also wants DEL escaped.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string().replace('\x7f', "\\u007F")
}

#[cfg(test)]
mod tests;
