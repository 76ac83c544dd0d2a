//! Every setting of the program, one row each: its name in the TOML file, the environment and the flags, the
//! values it takes, its default and its help text.
//!
//! This table is the only place a setting is named. The flags, the help texts, the list of valid keys, the
//! reading of the environment and `config check` are all made from it, so they cannot disagree. It is plain
//! data: nothing here reads anything.

use std::fmt;

use millrace_base::limits;
use millrace_base::quantity::Unit;
use millrace_journal::segment::{SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN};

/// What values a setting takes.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// Any text; the word stands for the value in help texts.
    Text(&'static str),
    /// Values separated by commas, of which there may be none: empty is a value, in a variable too.
    Listed(&'static str),
    /// Text that is never shown.
    Secret(&'static str),
    /// One of these words, written `a|b|c`.
    Choice(&'static str),
    /// A whole number in this inclusive range; the word stands for the value in help texts.
    Count(&'static str, u64, u64),
    /// A size or a time in this inclusive range.
    Quantity(Unit, u64, u64),
    /// True or false. A flag takes no value: the row says what giving it means.
    Switch {
        /// What the flag sets.
        flag_means: bool,
    },
}

impl fmt::Display for Kind {
    /// Completes the sentence "it must be …".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(_) | Self::Listed(_) | Self::Secret(_) => f.write_str("text"),
            Self::Choice(words) => write!(f, "one of {}", words.replace('|', ", ")),
            Self::Count(_, min, max) => write!(f, "a whole number from {min} to {max}"),
            Self::Quantity(unit, min, max) => {
                let [least, most] = [min, max].map(|count| unit.show(*count));
                let what = if unit.word() == "SIZE" { "a size" } else { "a time" };
                write!(f, "{what} from {least} to {most}, or a whole number of {}", unit.name())
            }
            Self::Switch { .. } => f.write_str("true or false"),
        }
    }
}

/// What holds where nothing is configured.
#[derive(Clone, Copy, Debug)]
pub enum Preset {
    /// Nothing.
    Unset,
    /// This text or choice.
    Text(&'static str),
    /// This number.
    Count(u64),
    /// This many for each core.
    PerCore(u64),
    /// This switch.
    Switch(bool),
}

/// Which commands take the flag. The file and the environment are read by all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Every command: where the data is.
    Store,
    /// The commands that make keys, and the server.
    Keys,
    /// The commands that make endpoints, and the server.
    Endpoints,
    /// The server.
    Server,
}

/// One setting.
#[derive(Debug)]
pub struct Setting {
    /// Its key in the TOML file, which identifies it everywhere.
    pub key: &'static str,
    /// Its environment variable.
    pub env: &'static str,
    /// Its flag, without the dashes.
    pub flag: &'static str,
    /// The values it takes.
    pub kind: Kind,
    /// What holds where it is not configured.
    pub preset: Preset,
    /// The commands that take the flag.
    pub scope: Scope,
    /// What it does, for `--help`; a line of it is at most 100 characters.
    pub help: &'static str,
}

impl Setting {
    /// What holds where it is not configured, as one would write it.
    pub fn default_in_words(&self) -> String {
        match (self.preset, self.kind) {
            (Preset::Unset, _) => "none".to_owned(),
            (Preset::Text(text), _) => text.to_owned(),
            (Preset::Count(count), Kind::Quantity(unit, ..)) => unit.show(count),
            (Preset::Count(count), _) => count.to_string(),
            (Preset::PerCore(1), _) => "one per core".to_owned(),
            (Preset::PerCore(each), _) => format!("{each} per core"),
            (Preset::Switch(on), _) => on.to_string(),
        }
    }
}

/// The setting with this TOML key.
pub fn find(key: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.key == key)
}

/// All of them, in the order `config check` prints them.
pub static SETTINGS: &[Setting] = &[
    Setting {
        key: "data_dir",
        env: "MILLRACE_DATA_DIR",
        flag: "data-dir",
        kind: Kind::Text("DIR"),
        preset: Preset::Text("./millrace-data"),
        scope: Scope::Store,
        help: "Directory of the journal and of the embedded store; created where it is missing",
    },
    Setting {
        key: "database_url",
        env: "DATABASE_URL",
        flag: "database-url",
        kind: Kind::Secret("URL"),
        preset: Preset::Unset,
        scope: Scope::Store,
        help: "Postgres, as postgres://USER:PASSWORD@HOST:PORT/DATABASE; empty: the embedded store\n\
               (other users can see flags in the process list: prefer the variable)",
    },
    Setting {
        key: "listen",
        env: "MILLRACE_LISTEN",
        flag: "listen",
        kind: Kind::Text("IP:PORT"),
        preset: Preset::Text("127.0.0.1:3000"),
        scope: Scope::Server,
        help: "Where events are accepted; port 0 takes a free one",
    },
    Setting {
        key: "ops_listen",
        env: "MILLRACE_OPS_LISTEN",
        flag: "ops-listen",
        kind: Kind::Text("IP:PORT"),
        preset: Preset::Text("127.0.0.1:9464"),
        scope: Scope::Server,
        help: "Where /health, /ready and /metrics answer even under full load; keep it on loopback",
    },
    Setting {
        key: "public_metrics",
        env: "MILLRACE_PUBLIC_METRICS",
        flag: "public-metrics",
        kind: Kind::Switch { flag_means: true },
        preset: Preset::Switch(false),
        scope: Scope::Server,
        help: "Answer /metrics where events are accepted even if that is no loopback address",
    },
    Setting {
        key: "shards",
        env: "MILLRACE_SHARDS",
        flag: "shards",
        kind: Kind::Count("N", 1, limits::SHARDS_MAX),
        preset: Preset::PerCore(1),
        scope: Scope::Server,
        help: "Threads that serve connections",
    },
    Setting {
        key: "pin",
        env: "MILLRACE_PIN",
        flag: "no-pin",
        kind: Kind::Switch { flag_means: false },
        preset: Preset::Switch(true),
        scope: Scope::Server,
        help: "Do not pin shards to cores: for containers with a CPU quota and for shared machines",
    },
    Setting {
        key: "io_driver",
        env: "MILLRACE_IO_DRIVER",
        flag: "io-driver",
        kind: Kind::Choice("auto|uring|epoll"),
        preset: Preset::Text("auto"),
        scope: Scope::Server,
        help: "How shards do their I/O; auto takes io_uring where the kernel allows it",
    },
    Setting {
        key: "connections_max",
        env: "MILLRACE_CONNECTIONS_MAX",
        flag: "connections-max",
        kind: Kind::Count("N", 1, limits::CONNECTIONS_CONFIGURED_MAX),
        preset: Preset::Count(limits::CONNECTIONS_MAX as u64),
        scope: Scope::Server,
        help: "Open client connections, all shards together",
    },
    Setting {
        key: "connections_per_address_max",
        env: "MILLRACE_CONNECTIONS_PER_ADDRESS_MAX",
        flag: "connections-per-address-max",
        kind: Kind::Count("N", 1, limits::CONNECTIONS_CONFIGURED_MAX),
        preset: Preset::Count(limits::CONNECTIONS_PER_ADDRESS_MAX as u64),
        scope: Scope::Server,
        help: "Open connections of one client address (of one /64 with IPv6)",
    },
    Setting {
        key: "keep_alive_timeout",
        env: "MILLRACE_KEEP_ALIVE_TIMEOUT",
        flag: "keep-alive-timeout",
        kind: Kind::Quantity(Unit::Seconds, 1, limits::KEEP_ALIVE_TIMEOUT_MAX.as_secs()),
        preset: Preset::Count(limits::KEEP_ALIVE_TIMEOUT_DEFAULT.as_secs()),
        scope: Scope::Server,
        help: "How long a connection may be idle between requests; longer than in the load balancer in front",
    },
    Setting {
        key: "tls_cert_file",
        env: "MILLRACE_TLS_CERT_FILE",
        flag: "tls-cert-file",
        kind: Kind::Text("FILE"),
        preset: Preset::Unset,
        scope: Scope::Server,
        help: "Speak TLS where events are accepted: the certificate chain (PEM); read again at SIGHUP",
    },
    Setting {
        key: "tls_key_file",
        env: "MILLRACE_TLS_KEY_FILE",
        flag: "tls-key-file",
        kind: Kind::Text("FILE"),
        preset: Preset::Unset,
        scope: Scope::Server,
        help: "Its private key (PEM); read again with it",
    },
    Setting {
        key: "trusted_proxies",
        env: "MILLRACE_TRUSTED_PROXIES",
        flag: "trusted-proxies",
        kind: Kind::Listed("CIDR,…"),
        preset: Preset::Unset,
        scope: Scope::Server,
        help: "Load balancers in front of this server, such as 10.0.0.0/24,fd00:1::7/128: limits by address do not\n\
               count them, and they may say who the client is",
    },
    Setting {
        key: "proxy_protocol",
        env: "MILLRACE_PROXY_PROTOCOL",
        flag: "proxy-protocol",
        kind: Kind::Choice("off|v2"),
        preset: Preset::Text("off"),
        scope: Scope::Server,
        help: "v2: connections of trusted proxies begin with a PROXY protocol header that names the client",
    },
    Setting {
        key: "forwarded_field",
        env: "MILLRACE_FORWARDED_FIELD",
        flag: "forwarded-field",
        kind: Kind::Choice("off|forwarded|x-forwarded-for"),
        preset: Preset::Text("off"),
        scope: Scope::Server,
        help: "The header field that trusted proxies write and that names the client",
    },
    Setting {
        key: "writers",
        env: "MILLRACE_WRITERS",
        flag: "writers",
        kind: Kind::Count("N", 1, limits::WRITERS_MAX),
        preset: Preset::PerCore(4),
        scope: Scope::Server,
        help: "Threads that store events, each with a database connection",
    },
    Setting {
        key: "queue_capacity",
        env: "MILLRACE_QUEUE_CAPACITY",
        flag: "queue-capacity",
        kind: Kind::Count("N", 1, limits::QUEUE_EVENTS_MAX),
        preset: Preset::Count(limits::QUEUE_EVENTS_DEFAULT as u64),
        scope: Scope::Server,
        help: "Events accepted and not yet stored; over it: 429 queue_full",
    },
    Setting {
        key: "durability",
        env: "MILLRACE_DURABILITY",
        flag: "durability",
        kind: Kind::Choice("fsync|os|memory"),
        preset: Preset::Text("fsync"),
        scope: Scope::Server,
        help: "What a 202 promises: on disk and synchronised, written to the operating system, or in memory",
    },
    Setting {
        key: "queue_overflow",
        env: "MILLRACE_QUEUE_OVERFLOW",
        flag: "queue-overflow",
        kind: Kind::Choice("reject|spill"),
        preset: Preset::Text("reject"),
        scope: Scope::Server,
        help: "With the queue full: answer 429, or go on accepting into the journal alone",
    },
    Setting {
        key: "journal_bytes_max",
        env: "MILLRACE_JOURNAL_BYTES_MAX",
        flag: "journal-bytes-max",
        kind: Kind::Quantity(Unit::Bytes, limits::JOURNAL_BYTES_CONFIGURED_MIN, limits::JOURNAL_BYTES_CONFIGURED_MAX),
        preset: Preset::Count(limits::JOURNAL_BYTES_MAX_DEFAULT),
        scope: Scope::Server,
        help: "Disk for the journal, all shards together; over it: 429 queue_full",
    },
    Setting {
        key: "journal_segment_bytes",
        env: "MILLRACE_JOURNAL_SEGMENT_BYTES",
        flag: "journal-segment-bytes",
        kind: Kind::Quantity(Unit::Bytes, SEGMENT_BYTES_MIN as u64, SEGMENT_BYTES_MAX as u64),
        preset: Preset::Count(limits::JOURNAL_SEGMENT_BYTES_DEFAULT),
        scope: Scope::Server,
        help: "Length of one file of the journal; one is in use and one prepared",
    },
    Setting {
        key: "rate_limit_per_minute",
        env: "MILLRACE_RATE_LIMIT_PER_MINUTE",
        flag: "rate-limit",
        kind: Kind::Count("N", 0, limits::RATE_LIMIT_PER_MINUTE_MAX),
        preset: Preset::Count(limits::RATE_LIMIT_PER_MINUTE_DEFAULT),
        scope: Scope::Server,
        help: "Requests per minute for organisations without a limit of their own; 0 is unlimited",
    },
    Setting {
        key: "shutdown_grace",
        env: "MILLRACE_SHUTDOWN_GRACE",
        flag: "shutdown-grace",
        kind: Kind::Quantity(Unit::Seconds, 0, limits::SHUTDOWN_GRACE_MAX.as_secs()),
        preset: Preset::Count(limits::SHUTDOWN_GRACE_DEFAULT.as_secs()),
        scope: Scope::Server,
        help: "How long SIGTERM leaves for draining the queue",
    },
    Setting {
        key: "adopt",
        env: "MILLRACE_ADOPT",
        flag: "adopt",
        kind: Kind::Switch { flag_means: true },
        preset: Preset::Switch(false),
        scope: Scope::Server,
        help: "Take the journal in the data directory into this store for good, although it belongs to another",
    },
    Setting {
        key: "migrate",
        env: "MILLRACE_MIGRATE",
        flag: "no-migrate",
        kind: Kind::Switch { flag_means: false },
        preset: Preset::Switch(true),
        scope: Scope::Server,
        help: "Do not apply migrations at the start; run `millrace migrate` yourself",
    },
    Setting {
        key: "allow_insecure_webhooks",
        env: "MILLRACE_ALLOW_INSECURE_WEBHOOKS",
        flag: "allow-insecure-webhooks",
        kind: Kind::Switch { flag_means: true },
        preset: Preset::Switch(false),
        scope: Scope::Endpoints,
        help: "Let endpoints be plain http and on private addresses: for development only",
    },
    Setting {
        key: "webhook_allowed_networks",
        env: "MILLRACE_WEBHOOK_ALLOWED_NETWORKS",
        flag: "webhook-allowed-networks",
        kind: Kind::Listed("CIDR,…"),
        preset: Preset::Unset,
        scope: Scope::Endpoints,
        help: "Networks that endpoints may be in although they are private, such as 10.20.0.0/16,fd00:1::/32",
    },
    Setting {
        key: "webhook_secret_key",
        env: "MILLRACE_WEBHOOK_SECRET_KEY",
        flag: "webhook-secret-key",
        kind: Kind::Secret("KEY,…"),
        preset: Preset::Unset,
        scope: Scope::Endpoints,
        help: "What endpoints' secrets are encrypted with in the database: 32 bytes in base64; further ones, after\n\
               commas, still decrypt. Without it: `webhook-secret.key` in the data directory, made when needed.\n\
               Servers and commands that share a database share it (prefer the variable to the flag)",
    },
    Setting {
        key: "webhook_retry_schedule",
        env: "MILLRACE_WEBHOOK_RETRY_SCHEDULE",
        flag: "webhook-retry-schedule",
        kind: Kind::Listed("PAUSES"),
        preset: Preset::Text(limits::WEBHOOK_RETRY_SCHEDULE_DEFAULT),
        scope: Scope::Server,
        help: "Pauses between the attempts of a delivery; when they are used up it has failed",
    },
    Setting {
        key: "webhook_timeout",
        env: "MILLRACE_WEBHOOK_TIMEOUT",
        flag: "webhook-timeout",
        kind: Kind::Quantity(Unit::Seconds, 1, limits::WEBHOOK_TIMEOUT_MAX.as_secs()),
        preset: Preset::Count(limits::WEBHOOK_TIMEOUT_DEFAULT.as_secs()),
        scope: Scope::Server,
        help: "How long an endpoint has to answer, connecting included",
    },
    Setting {
        key: "webhook_connect_timeout",
        env: "MILLRACE_WEBHOOK_CONNECT_TIMEOUT",
        flag: "webhook-connect-timeout",
        kind: Kind::Quantity(Unit::Seconds, 1, limits::WEBHOOK_TIMEOUT_MAX.as_secs()),
        preset: Preset::Count(limits::WEBHOOK_CONNECT_TIMEOUT_DEFAULT.as_secs()),
        scope: Scope::Server,
        help: "How much of it connecting and TLS may take; the name is looked up before",
    },
    Setting {
        key: "webhook_concurrency",
        env: "MILLRACE_WEBHOOK_CONCURRENCY",
        flag: "webhook-concurrency",
        kind: Kind::Count("N", 1, limits::WEBHOOK_CONCURRENCY_MAX),
        preset: Preset::Count(limits::WEBHOOK_CONCURRENCY_DEFAULT),
        scope: Scope::Server,
        help: "Requests to one endpoint at a time",
    },
    Setting {
        key: "webhook_response_bytes_max",
        env: "MILLRACE_WEBHOOK_RESPONSE_BYTES_MAX",
        flag: "webhook-response-bytes-max",
        kind: Kind::Quantity(
            Unit::Bytes,
            limits::WEBHOOK_RESPONSE_BYTES_CONFIGURED_MIN,
            limits::WEBHOOK_RESPONSE_BYTES_CONFIGURED_MAX,
        ),
        preset: Preset::Count(limits::WEBHOOK_RESPONSE_BYTES_MAX_DEFAULT),
        scope: Scope::Server,
        help: "How much of an answer is read, the first 1 KiB kept; past it the connection is closed",
    },
    Setting {
        key: "webhook_roots",
        env: "MILLRACE_WEBHOOK_ROOTS",
        flag: "webhook-roots",
        kind: Kind::Choice("webpki|system"),
        preset: Preset::Text("webpki"),
        scope: Scope::Server,
        help: "Certificates endpoints are verified with: built in, or those of this machine",
    },
    Setting {
        key: "webhook_ca_file",
        env: "MILLRACE_WEBHOOK_CA_FILE",
        flag: "webhook-ca-file",
        kind: Kind::Text("FILE"),
        preset: Preset::Unset,
        scope: Scope::Server,
        help: "Further certificates (PEM) for that, such as those of a private authority",
    },
    Setting {
        key: "webhook_proxy",
        env: "MILLRACE_WEBHOOK_PROXY",
        flag: "webhook-proxy",
        kind: Kind::Secret("URL"),
        preset: Preset::Unset,
        scope: Scope::Server,
        help: "CONNECT proxy that all webhooks go through, as http://USER:PASSWORD@HOST:PORT; empty: none\n\
               (other users can see flags in the process list: prefer the variable)",
    },
    Setting {
        key: "webhook_retention_days",
        env: "MILLRACE_WEBHOOK_RETENTION_DAYS",
        flag: "webhook-retention-days",
        kind: Kind::Quantity(Unit::Days, 1, limits::WEBHOOK_RETENTION_DAYS_MAX),
        preset: Preset::Count(limits::WEBHOOK_RETENTION_DAYS_DEFAULT),
        scope: Scope::Server,
        help: "How long deliveries which have ended are kept, with their attempts",
    },
    Setting {
        key: "argon2_memory_kib",
        env: "MILLRACE_ARGON2_MEMORY_KIB",
        flag: "argon2-memory-kib",
        kind: Kind::Quantity(Unit::Kibibytes, 0, u32::MAX as u64),
        preset: Preset::Count(4096),
        scope: Scope::Keys,
        help: "Memory for hashing a new API key",
    },
    Setting {
        key: "argon2_iterations",
        env: "MILLRACE_ARGON2_ITERATIONS",
        flag: "argon2-iterations",
        kind: Kind::Count("N", 0, u32::MAX as u64),
        preset: Preset::Count(1),
        scope: Scope::Keys,
        help: "Passes over that memory",
    },
    Setting {
        key: "log",
        env: "MILLRACE_LOG",
        flag: "log",
        kind: Kind::Text("FILTER"),
        preset: Preset::Text("info"),
        scope: Scope::Server,
        help: "error, warn, info, debug, trace, off, or a filter such as info,millrace_store=debug",
    },
    Setting {
        key: "log_format",
        env: "MILLRACE_LOG_FORMAT",
        flag: "log-format",
        kind: Kind::Choice("text|json"),
        preset: Preset::Text("text"),
        scope: Scope::Server,
        help: "Form of the log on standard error",
    },
];
