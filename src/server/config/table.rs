//! The settings, one row each, and the [`Config`] that holds their values.
//!
//! A row gives a setting's key in the TOML file, its type, the values it takes with their default, the commands that
//! take its flag, the flag, the environment variable and the help text. The macro makes a field of [`Config`], a
//! [`SettingKey`] and a line of [`SETTINGS`] from it. The flags, the help texts, the reading of the file and of the
//! environment, `config check` and the settings' reference are all made from these, so they cannot disagree.
//!
//! A new setting is one new row, and its use; `docs/configuration.md` is then written again (see CONTRIBUTING.md). What
//! a rule says about several settings is in [`Config::check`](super::Config::check). This is plain data: nothing here
//! reads anything.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use millrace_base::limits;
use millrace_base::logging::LogFormat;
use millrace_base::quantity::Unit;
use millrace_ingest::shard::IoDriver;
use millrace_journal::segment::{SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN};
use millrace_webhooks::client::{ResolverFiles, TrustRoots};
use millrace_webhooks::config::SecretKey;
use millrace_webhooks::delivery::schedule::RetrySchedule;
use millrace_wire::forwarded::ForwardedField;

use super::error::ConfigError;
use super::layer::Values;
use super::read::{
    address, file, log_filter, masked_proxy, masked_url, networks, never_shown, path_of_directory, proxy_url,
    retry_schedule, secret_key, secret_url,
};
use super::secret_url::{ProxyUrl, SecretUrl};
use super::setting::{Scope, Setting};
use super::typed::{
    Durability, Overflow, ProxyProtocol, Typed, choice, count, count_per_core, days, list, seconds, secret, size,
    switch, text,
};

/// Makes [`Config`], [`SettingKey`] and [`SETTINGS`] from rows of this form:
/// `key: type = values, scope, flag, variable, help;`.
macro_rules! settings {
    ($(
        $(#[$doc:meta])*
        $key:ident: $type:ty = $values:expr,
        $scope:ident, $flag:literal, $env:literal,
        $help:literal;
    )*) => {
        /// Everything that can be configured, checked: a field for each setting.
        #[derive(Clone, Debug)]
        pub struct Config {
            $($(#[$doc])* pub $key: $type,)*
            /// The files that say how names are looked up. Not a setting: tests have files of their own.
            pub resolver_files: ResolverFiles,
        }

        impl Config {
            /// Reads each setting's value; does not yet check what a rule says about several of them.
            pub(super) fn read(values: &Values) -> Result<Self, ConfigError> {
                Ok(Self {
                    $($key: {
                        const VALUES: Typed<$type> = $values;
                        values.read(SettingKey::$key, &VALUES)?
                    },)*
                    resolver_files: ResolverFiles::default(),
                })
            }
        }

        /// Names a setting; `key as usize` is its place in [`SETTINGS`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(non_camel_case_types, reason = "a variant is spelt as the key is")]
        #[allow(dead_code, reason = "most settings are named by their field alone")]
        pub(super) enum SettingKey {
            $($key,)*
        }

        /// All settings, in the order `config check` prints them.
        pub static SETTINGS: &[Setting] = &[
            $({
                const VALUES: Typed<$type> = $values;
                Setting {
                    key: stringify!($key),
                    env: $env,
                    flag: $flag,
                    kind: VALUES.kind,
                    preset: VALUES.preset,
                    masked: VALUES.masked,
                    scope: Scope::$scope,
                    help: $help,
                }
            },)*
        ];
    };
}

settings! {
    /// Where the embedded store lives.
    data_dir: PathBuf = text("DIR", "./millrace-data", path_of_directory),
        Store, "data-dir", "MILLRACE_DATA_DIR",
        "Directory of the journal and of the embedded store; created where it is missing";

    /// The Postgres to store in; `None` is the embedded store.
    database_url: Option<SecretUrl> = secret("URL", secret_url, masked_url),
        Store, "database-url", "DATABASE_URL",
        "Postgres, as postgres://USER:PASSWORD@HOST:PORT/DATABASE; empty: the embedded store\n\
         (other users can see flags in the process list: prefer the variable)";

    /// Where events are accepted. Port 0: a free one.
    listen: SocketAddr = text("IP:PORT", "127.0.0.1:3000", address),
        Server, "listen", "MILLRACE_LISTEN",
        "Where events are accepted; port 0 takes a free one";

    /// Where the operations routes answer. Port 0: a free one.
    ops_listen: SocketAddr = text("IP:PORT", "127.0.0.1:9464", address),
        Server, "ops-listen", "MILLRACE_OPS_LISTEN",
        "Where /health, /ready and /metrics answer even under full load; keep it on loopback";

    /// Whether `/metrics` is answered at `listen` wherever that is; see [`Config::are_metrics_public`].
    public_metrics: bool = switch(false),
        Server, "public-metrics", "MILLRACE_PUBLIC_METRICS",
        "Answer /metrics where events are accepted even if that is no loopback address";

    /// Shard threads, at least 1.
    shards: usize = count_per_core(1, limits::SHARDS_MAX, 1),
        Server, "shards", "MILLRACE_SHARDS",
        "Threads that serve connections";

    /// Whether each shard is pinned to a core.
    pin: bool = switch(true),
        Server, "no-pin", "MILLRACE_PIN",
        "Do not pin shards to cores: for containers with a CPU quota and for shared machines";

    /// How shards do their I/O.
    io_driver: IoDriver = choice("auto"),
        Server, "io-driver", "MILLRACE_IO_DRIVER",
        "How shards do their I/O; auto takes io_uring where the kernel allows it";

    /// Open client connections, all shards together, at least 1.
    connections_max: usize = count(1, limits::CONNECTIONS_CONFIGURED_MAX, limits::CONNECTIONS_MAX as u64),
        Server, "connections-max", "MILLRACE_CONNECTIONS_MAX",
        "Open client connections, all shards together";

    /// Open connections of one client address, at least 1.
    connections_per_address_max: u32 =
        count(1, limits::CONNECTIONS_CONFIGURED_MAX, limits::CONNECTIONS_PER_ADDRESS_MAX as u64),
        Server, "connections-per-address-max", "MILLRACE_CONNECTIONS_PER_ADDRESS_MAX",
        "Open connections of one client address (of one /64 with IPv6)";

    /// How long a connection may be idle between requests, whole seconds, at least 1.
    keep_alive_timeout: Duration =
        seconds(1, limits::KEEP_ALIVE_TIMEOUT_MAX.as_secs(), limits::KEEP_ALIVE_TIMEOUT_DEFAULT.as_secs()),
        Server, "keep-alive-timeout", "MILLRACE_KEEP_ALIVE_TIMEOUT",
        "How long a connection may be idle between requests; longer than in the load balancer in front";

    /// The certificate chain of the public listener; set together with `tls_key_file`, see [`Config::tls`].
    tls_cert_file: Option<PathBuf> = text("FILE", "", file),
        Server, "tls-cert-file", "MILLRACE_TLS_CERT_FILE",
        "Speak TLS where events are accepted: the certificate chain (PEM); read again at SIGHUP";

    /// The private key of that certificate.
    tls_key_file: Option<PathBuf> = text("FILE", "", file),
        Server, "tls-key-file", "MILLRACE_TLS_KEY_FILE",
        "Its private key (PEM); read again with it";

    /// The proxies in front of this server, which may say who the client is.
    trusted_proxies: Vec<IpNet> = list("CIDR,…", "", networks::<{ limits::TRUSTED_PROXIES_MAX }>),
        Server, "trusted-proxies", "MILLRACE_TRUSTED_PROXIES",
        "Load balancers in front of this server, such as 10.0.0.0/24,fd00:1::7/128: limits by address do not\n\
         count them, and they may say who the client is";

    /// Whether connections of trusted proxies begin with a PROXY protocol header.
    proxy_protocol: ProxyProtocol = choice("off"),
        Server, "proxy-protocol", "MILLRACE_PROXY_PROTOCOL",
        "v2: connections of trusted proxies begin with a PROXY protocol header that names the client";

    /// The header field in which trusted proxies name the client.
    forwarded_field: ForwardedField = choice("off"),
        Server, "forwarded-field", "MILLRACE_FORWARDED_FIELD",
        "The header field that trusted proxies write and that names the client";

    /// Threads that store events, at least 1.
    writers: usize = count_per_core(1, limits::WRITERS_MAX, 4),
        Server, "writers", "MILLRACE_WRITERS",
        "Threads that store events, each with a database connection";

    /// Events accepted and not yet stored, at least 1.
    queue_capacity: usize = count(1, limits::QUEUE_EVENTS_MAX, limits::QUEUE_EVENTS_DEFAULT as u64),
        Server, "queue-capacity", "MILLRACE_QUEUE_CAPACITY",
        "Events accepted and not yet stored; over it: 429 queue_full";

    /// What a 202 promises.
    durability: Durability = choice("fsync"),
        Server, "durability", "MILLRACE_DURABILITY",
        "What a 202 promises: on disk and synchronised, written to the operating system, or in memory";

    /// What happens when the queue is full; `Spill` needs a journal.
    queue_overflow: Overflow = choice("reject"),
        Server, "queue-overflow", "MILLRACE_QUEUE_OVERFLOW",
        "With the queue full: answer 429, or go on accepting into the journal alone";

    /// Disk for the journal, in bytes.
    journal_bytes_max: u64 =
        size(
            Unit::Bytes,
            limits::JOURNAL_BYTES_CONFIGURED_MIN,
            limits::JOURNAL_BYTES_CONFIGURED_MAX,
            limits::JOURNAL_BYTES_MAX_DEFAULT,
        ),
        Server, "journal-bytes-max", "MILLRACE_JOURNAL_BYTES_MAX",
        "Disk for the journal, all shards together; over it: 429 queue_full";

    /// Length of one file of the journal, in bytes.
    journal_segment_bytes: u64 =
        size(Unit::Bytes, SEGMENT_BYTES_MIN as u64, SEGMENT_BYTES_MAX as u64, limits::JOURNAL_SEGMENT_BYTES_DEFAULT),
        Server, "journal-segment-bytes", "MILLRACE_JOURNAL_SEGMENT_BYTES",
        "Length of one file of the journal; one is in use and one prepared";

    /// Requests per minute for organisations without a limit of their own; 0 is unlimited.
    rate_limit_per_minute: u32 = count(0, limits::RATE_LIMIT_PER_MINUTE_MAX, limits::RATE_LIMIT_PER_MINUTE_DEFAULT),
        Server, "rate-limit", "MILLRACE_RATE_LIMIT_PER_MINUTE",
        "Requests per minute for organisations without a limit of their own; 0 is unlimited";

    /// How long a shutdown drains the queue.
    shutdown_grace: Duration =
        seconds(0, limits::SHUTDOWN_GRACE_MAX.as_secs(), limits::SHUTDOWN_GRACE_DEFAULT.as_secs()),
        Server, "shutdown-grace", "MILLRACE_SHUTDOWN_GRACE",
        "How long SIGTERM leaves for draining the queue";

    /// Whether a journal that belongs to another store is taken into this one.
    adopt: bool = switch(false),
        Server, "adopt", "MILLRACE_ADOPT",
        "Take the journal in the data directory into this store for good, although it belongs to another";

    /// Whether `serve` applies migrations.
    migrate: bool = switch(true),
        Server, "no-migrate", "MILLRACE_MIGRATE",
        "Do not apply migrations at the start; run `millrace migrate` yourself";

    /// Whether endpoints may be plain http and on any address.
    allow_insecure_webhooks: bool = switch(false),
        Endpoints, "allow-insecure-webhooks", "MILLRACE_ALLOW_INSECURE_WEBHOOKS",
        "Let endpoints be plain http and on private addresses: for development only";

    /// Private networks that endpoints may be in.
    webhook_allowed_networks: Vec<IpNet> = list("CIDR,…", "", networks::<{ limits::WEBHOOK_NETWORKS_MAX }>),
        Endpoints, "webhook-allowed-networks", "MILLRACE_WEBHOOK_ALLOWED_NETWORKS",
        "Networks that endpoints may be in although they are private, such as 10.20.0.0/16,fd00:1::/32";

    /// The key that encrypts endpoints' secrets; `None` is the one in the data directory.
    webhook_secret_key: Option<SecretKey> = secret("KEY,…", secret_key, never_shown),
        Endpoints, "webhook-secret-key", "MILLRACE_WEBHOOK_SECRET_KEY",
        "What endpoints' secrets are encrypted with in the database: 32 bytes in base64; further ones, after\n\
         commas, still decrypt. Without it: `webhook-secret.key` in the data directory, made when needed.\n\
         Servers and commands that share a database share it (prefer the variable to the flag)";

    /// The pauses between the attempts of a delivery.
    webhook_retry_schedule: RetrySchedule = list("PAUSES", limits::WEBHOOK_RETRY_SCHEDULE_DEFAULT, retry_schedule),
        Server, "webhook-retry-schedule", "MILLRACE_WEBHOOK_RETRY_SCHEDULE",
        "Pauses between the attempts of a delivery; when they are used up it has failed";

    /// How long an endpoint has to answer, connecting included.
    webhook_timeout: Duration =
        seconds(1, limits::WEBHOOK_TIMEOUT_MAX.as_secs(), limits::WEBHOOK_TIMEOUT_DEFAULT.as_secs()),
        Server, "webhook-timeout", "MILLRACE_WEBHOOK_TIMEOUT",
        "How long an endpoint has to answer, connecting included";

    /// How much of `webhook_timeout` connecting and TLS may take.
    webhook_connect_timeout: Duration =
        seconds(1, limits::WEBHOOK_TIMEOUT_MAX.as_secs(), limits::WEBHOOK_CONNECT_TIMEOUT_DEFAULT.as_secs()),
        Server, "webhook-connect-timeout", "MILLRACE_WEBHOOK_CONNECT_TIMEOUT",
        "How much of it connecting and TLS may take; the name is looked up before";

    /// Requests to one endpoint at a time, at least 1.
    webhook_concurrency: usize = count(1, limits::WEBHOOK_CONCURRENCY_MAX, limits::WEBHOOK_CONCURRENCY_DEFAULT),
        Server, "webhook-concurrency", "MILLRACE_WEBHOOK_CONCURRENCY",
        "Requests to one endpoint at a time";

    /// How many bytes of a receiver's answer are read.
    webhook_response_bytes_max: usize =
        size(
            Unit::Bytes,
            limits::WEBHOOK_RESPONSE_BYTES_CONFIGURED_MIN,
            limits::WEBHOOK_RESPONSE_BYTES_CONFIGURED_MAX,
            limits::WEBHOOK_RESPONSE_BYTES_MAX_DEFAULT,
        ),
        Server, "webhook-response-bytes-max", "MILLRACE_WEBHOOK_RESPONSE_BYTES_MAX",
        "How much of an answer is read, the first 1 KiB kept; past it the connection is closed";

    /// Which certificate authorities endpoints are verified with.
    webhook_roots: TrustRoots = choice("webpki"),
        Server, "webhook-roots", "MILLRACE_WEBHOOK_ROOTS",
        "Certificates endpoints are verified with: built in, or those of this machine";

    /// Further certificates (PEM) that endpoints are verified with.
    webhook_ca_file: Option<PathBuf> = text("FILE", "", file),
        Server, "webhook-ca-file", "MILLRACE_WEBHOOK_CA_FILE",
        "Further certificates (PEM) for that, such as those of a private authority";

    /// The CONNECT proxy that all webhooks go through.
    webhook_proxy: Option<ProxyUrl> = secret("URL", proxy_url, masked_proxy),
        Server, "webhook-proxy", "MILLRACE_WEBHOOK_PROXY",
        "CONNECT proxy that all webhooks go through, as http://USER:PASSWORD@HOST:PORT; empty: none\n\
         (other users can see flags in the process list: prefer the variable)";

    /// How long deliveries that have ended are kept, with their attempts.
    webhook_retention_days: Duration =
        days(1, limits::WEBHOOK_RETENTION_DAYS_MAX, limits::WEBHOOK_RETENTION_DAYS_DEFAULT),
        Server, "webhook-retention-days", "MILLRACE_WEBHOOK_RETENTION_DAYS",
        "How long deliveries which have ended are kept, with their attempts";

    /// Memory for hashing a new API key, in KiB; see [`Config::argon2`].
    argon2_memory_kib: u32 = size(Unit::Kibibytes, 0, u32::MAX as u64, 4096),
        Keys, "argon2-memory-kib", "MILLRACE_ARGON2_MEMORY_KIB",
        "Memory for hashing a new API key";

    /// Passes over that memory.
    argon2_iterations: u32 = count(0, u32::MAX as u64, 1),
        Keys, "argon2-iterations", "MILLRACE_ARGON2_ITERATIONS",
        "Passes over that memory";

    /// A filter that [`parse_filter`](millrace_base::logging::parse_filter) takes.
    log: String = text("FILTER", "info", log_filter),
        Server, "log", "MILLRACE_LOG",
        "error, warn, info, debug, trace, off, or a filter such as info,millrace_store=debug";

    /// Form of the log.
    log_format: LogFormat = choice("text"),
        Server, "log-format", "MILLRACE_LOG_FORMAT",
        "Form of the log on standard error";
}

impl SettingKey {
    /// The row of this setting.
    pub(super) fn setting(self) -> &'static Setting {
        &SETTINGS[self as usize]
    }
}
