//! Loading, with the file on disk and the environment and flags handed in.

use clap::{Command, FromArgMatches as _};

use std::time::Duration;

use millrace_base::logging::LogFormat;
use millrace_ingest::shard::IoDriver;
use millrace_webhooks::client::TrustRoots;
use millrace_webhooks::delivery::schedule::RetrySchedule;

use super::setting::{Preset, SETTINGS};
use super::*;

/// Loads from the text of a file, variables and flags, on a machine of 3 cores.
fn load_layers(file: Option<&str>, environment: &[(&str, &str)], flags: &[&str]) -> Result<Loaded, ConfigError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("millrace.toml");
    if let Some(text) = file {
        std::fs::write(&path, text).unwrap();
    }
    let environment = Environment::new(environment.iter().map(|(name, value)| (name.into(), value.into())));
    load_from(file.map(|_| path.as_path()), &environment, &parse_flags(flags), 3)
}

fn parse_flags(flags: &[&str]) -> Flags {
    let command = <ServerFlags as clap::Args>::augment_args(Command::new("test").no_binary_name(true));
    let command = <StoreFlags as clap::Args>::augment_args(command);
    let matches = command.get_matches_from(flags);
    let server = ServerFlags::from_arg_matches(&matches).unwrap().0;
    StoreFlags::from_arg_matches(&matches).unwrap().0.and(server)
}

fn refusal(file: Option<&str>, environment: &[(&str, &str)], flags: &[&str]) -> String {
    load_layers(file, environment, flags).unwrap_err().to_string()
}

/// Two values for each setting, other than each other and than the default where its kind allows it.
fn samples(setting: &setting::Setting) -> [&'static str; 2] {
    match setting.key {
        "data_dir" => ["/one", "/two"],
        "database_url" => ["postgres://one/x", "postgres://two/x"],
        "listen" | "ops_listen" => ["127.0.0.1:11", "127.0.0.1:12"],
        "io_driver" => ["uring", "epoll"],
        "durability" => ["os", "memory"],
        "queue_overflow" => ["reject", "spill"],
        "journal_bytes_max" | "journal_segment_bytes" => ["8MiB", "16MiB"],
        "shutdown_grace" | "keep_alive_timeout" | "webhook_timeout" | "webhook_connect_timeout" => ["9s", "10s"],
        "webhook_retention_days" => ["9d", "10d"],
        "argon2_memory_kib" => ["9KiB", "10KiB"],
        "log" => ["warn", "millrace=debug"],
        "log_format" => ["json", "text"],
        "trusted_proxies" | "webhook_allowed_networks" => ["10.0.0.0/8", "192.168.0.0/16,fd00::/8"],
        "tls_cert_file" | "tls_key_file" | "webhook_ca_file" => ["/one.pem", "/two.pem"],
        "proxy_protocol" => ["v2", "off"],
        "forwarded_field" => ["forwarded", "x-forwarded-for"],
        "webhook_proxy" => ["http://one:1", "http://two:2"],
        "webhook_response_bytes_max" => ["1KiB", "2KiB"],
        "webhook_retry_schedule" => ["1s,2m", "3h"],
        "webhook_roots" => ["system", "webpki"],
        "webhook_secret_key" => {
            ["AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="]
        }
        _ => match setting.kind {
            Kind::Switch { .. } => ["true", "false"],
            _ => ["9", "10"],
        },
    }
}

/// What a setting cannot do without.
fn companion(setting: &setting::Setting) -> &'static [(&'static str, &'static str)] {
    match setting.key {
        "tls_cert_file" => &[("MILLRACE_TLS_KEY_FILE", "/key.pem")],
        "tls_key_file" => &[("MILLRACE_TLS_CERT_FILE", "/cert.pem")],
        "proxy_protocol" | "forwarded_field" => &[("MILLRACE_TRUSTED_PROXIES", "10.0.0.0/8")],
        _ => &[],
    }
}

fn in_toml(setting: &setting::Setting, value: &str) -> String {
    match setting.kind {
        Kind::Count(..) | Kind::Switch { .. } => format!("{} = {value}\n", setting.key),
        Kind::Text(_) | Kind::Listed(_) | Kind::Secret(_) | Kind::Choice(_) | Kind::Quantity(..) => {
            format!("{} = {value:?}\n", setting.key)
        }
    }
}

/// What `to_toml` says of a setting that has this value.
fn as_printed(setting: &setting::Setting, value: &str) -> String {
    match setting.key {
        "webhook_secret_key" => "# webhook_secret_key is set, and not shown".to_owned(),
        _ => in_toml(setting, value).trim_end().to_owned(),
    }
}

/// What `to_toml` says of a setting: its value and its origin.
fn effective(loaded: &Loaded, key: &str) -> (String, String) {
    let text = loaded.to_toml();
    let line = text.lines().find(|line| line.trim_start_matches("# ").starts_with(&format!("{key} "))).unwrap();
    let (value, origin) = line.rsplit_once("  # ").unwrap();
    (value.trim_end().to_owned(), origin.to_owned())
}

#[test]
fn the_contract_s_defaults_hold() {
    let config = load_layers(None, &[], &[]).unwrap().config;
    assert_eq!(config.listen, "127.0.0.1:3000".parse().unwrap());
    assert_eq!(config.ops_listen, "127.0.0.1:9464".parse().unwrap());
    assert_eq!(config.data_dir, Path::new("./millrace-data"));
    assert_eq!(config.database_url, None);
    assert_eq!((config.shards, config.writers, config.queue_capacity), (3, 12, 10_000));
    assert_eq!((config.connections_max, config.connections_per_address_max), (limits::CONNECTIONS_MAX, 4096));
    assert_eq!((config.pin, config.io_driver, config.durability), (true, IoDriver::Auto, Durability::Fsync));
    assert_eq!((config.queue_overflow, config.journal_bytes_max), (Overflow::Reject, 8 << 30));
    assert_eq!((config.rate_limit_per_minute, config.shutdown_grace), (1000, Duration::from_secs(30)));
    assert_eq!((config.migrate, config.adopt, config.allow_insecure_webhooks), (true, false, false));
    assert_eq!((config.log.as_str(), config.log_format), ("info", LogFormat::Text));
    assert_eq!(config.argon2(), Argon2Cost::default());
    let deliver = config.webhooks();
    assert_eq!(deliver.schedule, RetrySchedule::parse("5s,5m,30m,2h,5h,10h,14h,20h,24h").unwrap());
    assert_eq!((deliver.timeout, deliver.connect_timeout), (Duration::from_secs(15), Duration::from_secs(5)));
    assert_eq!((deliver.concurrency, deliver.response_bytes_max, deliver.roots), (32, 65_536, TrustRoots::Webpki));
    assert_eq!((deliver.allowed_networks, deliver.ca_file, deliver.proxy), (vec![], None, None));
    assert!(deliver.secret_key.is_none());
    assert_eq!(deliver.retention, Duration::from_secs(30 * 24 * 3600));
}

#[test]
fn every_setting_is_laid_file_then_environment_then_flag() {
    for setting in SETTINGS {
        let [one, two] = samples(setting);
        let file_one = in_toml(setting, one);
        let (printed_one, printed_two) = (as_printed(setting, one), as_printed(setting, two));

        let defaults = load_layers(None, &[], &[]).unwrap();
        assert_eq!(effective(&defaults, setting.key).1, "default", "{}", setting.key);

        let load_layers = |file: Option<&str>, environment: &[(&str, &str)], flags: &[&str]| {
            load_layers(file, &[environment, companion(setting)].concat(), flags)
        };
        let file = load_layers(Some(&file_one), &[], &[]).unwrap();
        let (value, origin) = effective(&file, setting.key);
        assert_eq!(value, printed_one, "{}", setting.key);
        assert!(origin.ends_with("millrace.toml"), "{origin}");

        let over_file = load_layers(Some(&file_one), &[(setting.env, two)], &[]).unwrap();
        assert_eq!(effective(&over_file, setting.key), (printed_two.clone(), setting.env.to_owned()));
        let empty = load_layers(Some(&file_one), &[(setting.env, "")], &[]).unwrap();
        let is_value = matches!(setting.kind, Kind::Listed(_));
        let expected = if is_value { as_printed(setting, "") } else { printed_one.clone() };
        assert_eq!(effective(&empty, setting.key).0, expected, "an empty variable is not set, or it is none of a list");

        let flag = format!("--{}", setting.flag);
        let (flags, under) = match setting.kind {
            Kind::Switch { flag_means: true } => (vec![flag.as_str()], two),
            Kind::Switch { flag_means: false } => (vec![flag.as_str()], one),
            _ => (vec![flag.as_str(), one], two),
        };
        let over = if under == one { printed_two } else { printed_one };
        let over_all = load_layers(Some(&in_toml(setting, under)), &[(setting.env, under)], &flags).unwrap();
        assert_eq!(effective(&over_all, setting.key), (over, flag.clone()));
    }
}

#[test]
fn what_config_check_prints_can_be_loaded_again() {
    let file = "data_dir = 'a \"b\" \\ ü'\nlog = 'millrace=debug'\nshards = 7\npin = false\nshutdown_grace = 0\n";
    let first = load_layers(Some(file), &[("DATABASE_URL", "postgres://h/db?sslmode=require")], &[]).unwrap();
    let again = load_layers(Some(&first.to_toml()), &[], &[]).unwrap();
    assert_eq!(format!("{:?}", first.config), format!("{:?}", again.config));
    assert_eq!(again.config.data_dir, Path::new("a \"b\" \\ ü"));
}

#[test]
fn a_refusal_names_the_place_and_what_would_be_right() {
    for (file, environment, flags, words) in [
        (None, [("MILLRACE_SHARDS", "0")].as_slice(), [].as_slice(), ["MILLRACE_SHARDS is 0", "from 1 to 1024"]),
        (None, &[("MILLRACE_SHARDS", "two")], &[], ["MILLRACE_SHARDS is \"two\"", "a whole number"]),
        (None, &[], &["--writers", "1025"], ["--writers is 1025", "from 1 to 1024"]),
        (None, &[], &["--writers=-1"], ["--writers is -1", "from 1 to 1024"]),
        (None, &[], &["--queue-capacity", "10000001"], ["--queue-capacity", "from 1 to 10000000"]),
        (
            None,
            &[("MILLRACE_RATE_LIMIT_PER_MINUTE", "1000000001")],
            &[],
            ["MILLRACE_RATE_LIMIT_PER_MINUTE", "1000000000"],
        ),
        (None, &[("MILLRACE_MIGRATE", "maybe")], &[], ["MILLRACE_MIGRATE is \"maybe\"", "true or false"]),
        (None, &[], &["--io-driver", "iocp"], ["--io-driver is \"iocp\"", "auto, uring, epoll"]),
        (None, &[], &["--listen", "3000"], ["--listen is \"3000\"", "127.0.0.1:3000"]),
        (None, &[], &["--listen", "example.org:80"], ["--listen", "an IP address"]),
        (None, &[("MILLRACE_DATA_DIR", " ")], &["--data-dir", ""], ["--data-dir is \"\"", "directory"]),
        (None, &[], &["--argon2-memory-kib", "7"], ["7 KiB", "8 to 65536"]),
        (None, &[], &["--log", "loud"], ["--log is \"loud\"", "error, warn, info"]),
        (
            None,
            &[],
            &["--durability", "memory", "--queue-overflow", "spill"],
            ["--queue-overflow is \"spill\"", "no journal to spill into"],
        ),
        (None, &[("MILLRACE_DURABILITY", "disk")], &[], ["MILLRACE_DURABILITY is \"disk\"", "fsync, os, memory"]),
        (
            None,
            &[("MILLRACE_WEBHOOK_TIMEOUT", "4")],
            &[],
            [
                "webhook_connect_timeout (5 s) is longer than webhook_timeout (4 s)",
                "--webhook-connect-timeout to at most 4",
            ],
        ),
        (
            None,
            &[],
            &["--webhook-timeout", "0"],
            ["--webhook-timeout is 0", "a time from 1s to 2m, or a whole number of seconds"],
        ),
        (None, &[], &["--webhook-retry-schedule", "soon"], ["--webhook-retry-schedule is \"soon\"", "it must be"]),
        (
            None,
            &[("MILLRACE_WEBHOOK_ALLOWED_NETWORKS", "10.0.0.0/8,")],
            &[],
            ["MILLRACE_WEBHOOK_ALLOWED_NETWORKS is \"10.0.0.0/8,\"", "10.20.0.0/16"],
        ),
        (
            None,
            &[],
            &["--webhook-allowed-networks", "10.0.0.0/33"],
            ["--webhook-allowed-networks", "separated by commas"],
        ),
        (None, &[("MILLRACE_WEBHOOK_PROXY", "proxy:3128")], &[], ["MILLRACE_WEBHOOK_PROXY", "http://HOST:PORT"]),
        (None, &[], &["--webhook-proxy", "https://proxy:3128"], ["--webhook-proxy", "http://HOST:PORT"]),
        (None, &[], &["--webhook-proxy", "http://proxy/path"], ["--webhook-proxy", "http://HOST:PORT"]),
        (Some("webhook_secret_key = 'short'"), &[], &[], ["`webhook_secret_key` in ", "it must be 1 to 8 keys"]),
        (Some("webhook_roots = 'none'"), &[], &[], ["`webhook_roots` in ", "webpki, system"]),
        (Some("shards = '4'"), &[], &[], ["`shards` in ", "is a string; it must be a whole number"]),
        (Some("shards = 0"), &[], &[], ["`shards` in ", "is 0"]),
        (Some("listen = 3000"), &[], &[], ["`listen` in ", "is an integer; it must be text"]),
        (Some("pin = 'no'"), &[], &[], ["`pin` in ", "true or false"]),
        (Some("\nshard = 4"), &[], &[], ["sets `shard`", "data_dir, database_url, listen"]),
        (Some("[server]\nshards = 4"), &[], &[], ["sets `server`", "shards"]),
        (Some("shards = 4\nshards = 5"), &[], &[], ["line 2, column 1", "duplicate key"]),
        (Some("shards 4"), &[], &[], ["line 1", "is not TOML"]),
        (None, &[], &["--trusted-proxies", "10.0.0.0/33"], ["--trusted-proxies", "separated by commas"]),
        (None, &[], &["--proxy-protocol", "v1"], ["--proxy-protocol", "off, v2"]),
        (None, &[], &["--proxy-protocol", "v2"], ["trusted_proxies is empty", "--trusted-proxies"]),
        (None, &[], &["--forwarded-field", "forwarded"], ["forwarded_field", "trusted_proxies is empty"]),
        (None, &[], &["--tls-cert-file", "/c.pem"], ["tls_key_file is not", "--tls-key-file"]),
        (Some("tls_key_file = '/k.pem'"), &[], &[], ["tls_cert_file is not", "--tls-cert-file"]),
        (None, &[], &["--listen", "0.0.0.0:9464"], ["listen (0.0.0.0:9464)", "--ops-listen"]),
    ] {
        let message = refusal(file, environment, flags);
        for word in words {
            assert!(message.contains(word), "{message:?} lacks {word:?}");
        }
    }
}

#[test]
fn no_refusal_shows_a_database_password() {
    for (file, environment, flags) in [
        (None, [("DATABASE_URL", "mysql://u:hunter2@h/db")].as_slice(), [].as_slice()),
        (None, &[], ["--database-url", "u:hunter2@h/db"].as_slice()),
        (Some("database_url = 'host=h password=hunter2'"), &[], &[]),
        (Some("database_url = 'postgres://u:hunter2@h/db"), &[], &[]),
        (Some("database_url = postgres://u:hunter2@h/db"), &[], &[]),
        (Some("database_url = ['postgres://u:hunter2@h/db']"), &[], &[]),
    ] {
        let message = refusal(file, environment, flags);
        assert!(!message.contains("hunter2"), "{message}");
    }
    let loaded = load_layers(None, &[("DATABASE_URL", "postgres://u:hunter2@h/db")], &[]).unwrap();
    assert!(!format!("{loaded:?} {}", loaded.to_toml()).contains("hunter2"));
    assert_eq!(loaded.config.store(1).database_url.as_deref(), Some("postgres://u:hunter2@h/db"));
}

#[test]
fn no_refusal_and_no_listing_shows_a_webhook_s_secrets() {
    let key = "AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA=";
    for (environment, flags) in [
        ([("MILLRACE_WEBHOOK_PROXY", "https://u:hunter2@h:1")].as_slice(), [].as_slice()),
        (&[("MILLRACE_WEBHOOK_SECRET_KEY", "hunter2")], &[]),
        (&[], &["--webhook-proxy", "u:hunter2@h", "--webhook-secret-key", key]),
        (&[], &["--webhook-secret-key", "hunter2"]),
    ] {
        let message = refusal(None, environment, flags);
        assert!(!message.contains("hunter2") && !message.contains(key), "{message}");
    }
    let proxy = "http://u:hunter2@h:3128";
    let loaded = load_layers(None, &[], &["--webhook-proxy", proxy, "--webhook-secret-key", key]).unwrap();
    let shown = format!("{loaded:?} {}", loaded.to_toml());
    assert!(!shown.contains("hunter2") && !shown.contains(key), "{shown}");
    assert_eq!(effective(&loaded, "webhook_proxy").0, "webhook_proxy = \"http://u:***@h:3128\"");
    assert_eq!(loaded.config.webhook_proxy.unwrap().reveal().password(), Some("hunter2"));
}

#[test]
fn an_empty_url_flag_returns_to_the_embedded_store() {
    let environment = [("DATABASE_URL", "postgres://h/db")];
    assert_eq!(load_layers(None, &environment, &["--database-url", ""]).unwrap().config.database_url, None);
}

#[test]
fn trusted_proxies_are_believed_in_what_is_configured() {
    let trust = |flags: &[&str]| load_layers(None, &[], flags).unwrap().config.trust();
    assert_eq!(trust(&[]), Trust::default());
    let proxies = ["--trusted-proxies", "10.0.0.0/8, ::1/128"];
    let both = trust(&[&proxies[..], &["--proxy-protocol", "v2", "--forwarded-field", "x-forwarded-for"]].concat());
    assert_eq!((both.proxies.len(), both.proxy_protocol, both.field), (2, true, ForwardedField::XForwardedFor));
    let one = trust(&[&proxies[..], &["--forwarded-field", "forwarded"]].concat());
    assert_eq!((one.proxy_protocol, one.field), (false, ForwardedField::Forwarded));
}

#[test]
fn addresses_are_apart() {
    let at = |text: &str| text.parse::<SocketAddr>().unwrap();
    for (a, b, same) in [
        ("127.0.0.1:1", "127.0.0.1:1", true),
        ("127.0.0.1:1", "127.0.0.1:2", false),
        ("127.0.0.1:1", "127.0.0.2:1", false),
        ("0.0.0.0:1", "127.0.0.1:1", true),
        ("[::]:1", "127.0.0.1:1", true),
        ("127.0.0.1:0", "127.0.0.1:0", false),
    ] {
        assert_eq!(overlap(at(a), at(b)), same, "{a} {b}");
    }
    let localhost = load_layers(None, &[], &["--listen", "localhost:80"]).unwrap();
    assert_eq!(localhost.config.listen, at("127.0.0.1:80"));
}

#[test]
fn the_file_is_named_by_flag_or_variable_and_must_be_readable() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (dir.path().join("1.toml"), dir.path().join("2.toml"));
    std::fs::write(&first, "shards = 1").unwrap();
    std::fs::write(&second, "shards = 2").unwrap();
    let shards = |flag: Option<&Path>, variable: Option<&Path>| {
        let environment = Environment::new(variable.map(|path| (CONFIG_FILE_ENV.into(), path.into())));
        load_from(flag, &environment, &Flags::default(), 3).map(|loaded| loaded.config.shards)
    };
    assert_eq!(shards(None, None).unwrap(), 3);
    assert_eq!(shards(None, Some(&first)).unwrap(), 1);
    assert_eq!(shards(Some(&second), Some(&first)).unwrap(), 2);
    let message = shards(Some(&dir.path().join("absent.toml")), None).unwrap_err().to_string();
    assert!(message.contains("absent.toml cannot be read") && message.contains("--config"), "{message}");

    std::fs::write(&first, "#".repeat(limits::CONFIG_FILE_BYTES_MAX as usize + 1)).unwrap();
    assert!(shards(Some(&first), None).unwrap_err().to_string().contains("larger than"));
}

#[test]
fn more_cores_than_shards_are_allowed_is_no_error() {
    let loaded = load_from(None, &Environment::new([]), &Flags::default(), 2000).unwrap();
    assert_eq!((loaded.config.shards, loaded.config.writers), (1024, 1024));
}

#[test]
fn the_table_is_consistent() {
    for (at, setting) in SETTINGS.iter().enumerate() {
        let others = &SETTINGS[at + 1..];
        assert!(others.iter().all(|o| o.key != setting.key && o.env != setting.env && o.flag != setting.flag));
        if setting.key != "database_url" {
            assert_eq!(setting.env, format!("MILLRACE_{}", setting.key.to_uppercase()));
        }
        let fits = matches!(
            (setting.kind, setting.preset),
            (Kind::Text(_) | Kind::Listed(_) | Kind::Choice(_), Preset::Text(_))
                | (Kind::Text(_) | Kind::Listed(_) | Kind::Secret(_), Preset::Unset)
                | (Kind::Count(..), Preset::Count(_) | Preset::PerCore(_))
                | (Kind::Quantity(..), Preset::Count(_))
                | (Kind::Switch { .. }, Preset::Switch(_))
        );
        assert!(setting.help.lines().all(|line| line.len() <= 100), "the help of {} is too long", setting.key);
        assert!(fits, "the default of {} is of another kind", setting.key);
    }
}

#[test]
fn a_misspelt_variable_is_refused_with_the_nearest_name() {
    for (name, nearest) in [
        ("MILLRACE_LISTN", "MILLRACE_LISTEN"),
        ("MILLRACE_DATABSE_URL", "MILLRACE_DATABASE_URL"),
        ("MILLRACE_QUEUE_CAPACTIY", "MILLRACE_QUEUE_CAPACITY"),
        ("MILLRACE_LOGFORMAT", "MILLRACE_LOG_FORMAT"),
    ] {
        let why = refusal(None, &[(name, "x")], &[]);
        assert!(why.contains(&format!("sets {name},")) && why.contains(&format!("did you mean {nearest}?")), "{why}");
    }
    let why = refusal(None, &[("MILLRACE_FROBNICATE", "")], &[]);
    assert!(why.contains("MILLRACE_FROBNICATE") && !why.contains("did you mean"), "{why}");
    let why = refusal(Some("qeue_capacity = 1"), &[], &[]);
    assert!(why.contains("did you mean `queue_capacity`?"), "{why}");
}

#[test]
fn other_peoples_variables_are_left_alone() {
    let links = [
        ("MILLRACE_SERVICE_HOST", "10.0.0.1"),
        ("MILLRACE_SERVICE_PORT_HTTP", "3000"),
        ("MILLRACE_PORT", "tcp://10.0.0.1:3000"),
        ("MILLRACE_PORT_3000_TCP_ADDR", "10.0.0.1"),
        ("MILLRACE_API_KEY", "mr_x"),
        ("MILLRACER", "x"),
        ("LISTEN", "x"),
    ];
    load_layers(None, &links, &[]).unwrap();
    let why = refusal(None, &[("MILLRACE_PORT", "3000")], &[]);
    assert!(why.contains("MILLRACE_PORT"), "{why}");
}

#[test]
fn the_database_is_found_under_both_names() {
    let (url, other) = ("postgres://u@h/one", "postgres://u@h/two");
    for name in ["DATABASE_URL", "MILLRACE_DATABASE_URL"] {
        let loaded = load_layers(None, &[(name, url)], &[]).unwrap();
        assert!(loaded.config.database_url.is_some());
        assert!(loaded.to_toml().contains(name), "{}", loaded.to_toml());
    }
    load_layers(None, &[("DATABASE_URL", url), ("MILLRACE_DATABASE_URL", url)], &[]).unwrap();
    let why = refusal(None, &[("DATABASE_URL", url), ("MILLRACE_DATABASE_URL", other)], &[]);
    assert!(why.contains("MILLRACE_DATABASE_URL") && !why.contains("postgres://"), "{why}");
}

#[test]
fn sizes_and_times_take_units_in_flags_env_and_file() {
    let env = [("MILLRACE_WEBHOOK_TIMEOUT", "1m"), ("MILLRACE_JOURNAL_SEGMENT_BYTES", "8MiB")];
    let file = "journal_bytes_max = '2GiB'\nwebhook_retention_days = '48h'\nargon2_memory_kib = '8MiB'";
    let config = load_layers(Some(file), &env, &["--shutdown-grace", "2m"]).unwrap().config;
    let bare = [("MILLRACE_WEBHOOK_TIMEOUT", "60"), ("MILLRACE_JOURNAL_SEGMENT_BYTES", "8388608")];
    let file = "journal_bytes_max = 2147483648\nwebhook_retention_days = 2\nargon2_memory_kib = 8192";
    let same = load_layers(Some(file), &bare, &["--shutdown-grace", "120"]).unwrap().config;
    assert_eq!(format!("{config:?}"), format!("{same:?}"));
    assert_eq!((config.journal_bytes_max, config.shutdown_grace), (2 << 30, Duration::from_secs(120)));
    for (environment, words) in [
        ([("MILLRACE_JOURNAL_BYTES_MAX", "16MB")], ["is \"16MB\"", "a size from 1MiB"]),
        ([("MILLRACE_SHUTDOWN_GRACE", "soon")], ["is \"soon\"", "a time from 0s"]),
        ([("MILLRACE_WEBHOOK_RETENTION_DAYS", "36h")], ["is \"36h\"", "a whole number of days"]),
    ] {
        let why = refusal(None, &environment, &[]);
        assert!(words.iter().all(|word| why.contains(word)), "{why}");
    }
}

#[test]
fn an_empty_variable_is_an_empty_list() {
    let file = "trusted_proxies = '10.0.0.0/8'\nwebhook_allowed_networks = '10.0.0.0/8'";
    let empty = [("MILLRACE_TRUSTED_PROXIES", ""), ("MILLRACE_WEBHOOK_ALLOWED_NETWORKS", "")];
    let config = load_layers(Some(file), &empty, &[]).unwrap().config;
    assert_eq!((config.trusted_proxies, config.webhook_allowed_networks), (vec![], vec![]));
}

#[test]
fn no_retries_can_be_said_by_every_means() {
    let none = RetrySchedule::parse("").unwrap();
    let key = "MILLRACE_WEBHOOK_RETRY_SCHEDULE";
    for loaded in [
        load_layers(Some("webhook_retry_schedule = \"\""), &[], &[]),
        load_layers(None, &[(key, "")], &[]),
        load_layers(None, &[], &["--webhook-retry-schedule", ""]),
        load_layers(None, &[(key, "5s")], &["--webhook-retry-schedule="]),
    ] {
        assert_eq!(loaded.unwrap().config.webhook_retry_schedule, none);
    }
}
