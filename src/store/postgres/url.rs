//! Reads a `DATABASE_URL` as `libpq` does, and as the tools around Postgres write it.
//!
//! Every option is taken with its meaning or refused by its name: an option that is ignored would promise what does not
//! hold. Pure: no name is looked up and no file is read. No error quotes a value, because the URL holds a password. Errors
//! name options; a password with an unescaped delimiter is found before a piece of it could pass for a name.

use std::fmt;

use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode};

/// The content of the URL.
pub(super) struct DatabaseUrl {
    /// Hosts, user, database, password, and whether TLS is spoken.
    pub(super) config: Config,
    /// Whether the server's certificate is verified wherever TLS is spoken.
    pub(super) verify: bool,
    /// The file with the certificates it is verified with, where they are not the usual ones.
    pub(super) root_cert: Option<String>,
    /// The schema that the tables are in, where it is not that of the role.
    pub(super) schema: Option<String>,
}

/// Accepted without effect: timeouts and keepalives have fixed values here.
const TIMES: [&str; 7] = [
    "connect_timeout",
    "tcp_user_timeout",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_count",
    "keepalives_retries",
];
/// Passed on to the driver.
const DRIVEN: [&str; 11] = [
    "user",
    "password",
    "dbname",
    "host",
    "hostaddr",
    "port",
    "options",
    "application_name",
    "sslnegotiation",
    "channel_binding",
    "load_balance_hosts",
];
/// The names that other products have for the size of their pools.
const POOL_SIZES: [&str; 5] = ["connection_limit", "pool_timeout", "pool_size", "pool", "max_connections"];

impl DatabaseUrl {
    /// Reads a URL.
    pub(super) fn parse(url: &str) -> Result<Self, DatabaseUrlError> {
        if url.contains(char::is_control) {
            return Err(DatabaseUrlError::ControlCharacter);
        }
        // As the driver divides it: the credentials end at the first `@`.
        let credentials = url.find('@').map_or(0, |at| at + 1);
        let query_at = url[credentials..].find('?').map(|at| credentials + at);
        let base = &url[..query_at.unwrap_or(url.len())];
        if base[credentials..].contains('@') {
            return Err(DatabaseUrlError::Unescaped);
        }
        let mut options = Options::default();
        for pair in query_at.map(|at| &url[at + 1..]).into_iter().flat_map(|query| query.split('&')) {
            match pair.split_once('=') {
                Some((name, value)) => options.take(pair, &percent_decode(name), &percent_decode(value)),
                None if pair.is_empty() => Ok(()),
                None => Err(DatabaseUrlError::OptionWithoutValue),
            }
            .map_err(|error| if url[credentials..].contains('@') { DatabaseUrlError::Unescaped } else { error })?;
        }
        let separator = if options.driven.is_empty() { "" } else { "?" };
        let driven = format!("{base}{separator}{}", options.driven.join("&"));
        let mut config: Config = driven.parse().map_err(|error| form_error(&error))?;
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            return Err(DatabaseUrlError::NoHost);
        }
        config.ssl_mode(options.ssl_mode.unwrap_or(SslMode::Prefer));
        if !config.get_hosts().is_empty() && config.get_hosts().iter().all(|host| matches!(host, Host::Unix(_))) {
            config.ssl_mode(SslMode::Disable);
        }
        let verify = !options.no_verify && (options.root_cert.is_some() || config.get_ssl_mode() == SslMode::Require);
        Ok(Self { config, verify, root_cert: options.root_cert, schema: options.schema })
    }
}

/// Why a `DATABASE_URL` cannot be used. Quotes no value of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DatabaseUrlError {
    /// It holds a line break or the like.
    ControlCharacter,
    /// It holds an `@` that is not percent-encoded.
    Unescaped,
    /// One of its options has no value.
    OptionWithoutValue,
    /// It names no host.
    NoHost,
    /// An option is unknown, or its value is.
    Option {
        /// The option.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The driver refuses it; with its reason, if that quotes only options.
    Form(Option<String>),
    /// `sslrootcert` cannot be used.
    RootCertificates {
        /// The file that it names.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// The verifier of certificates cannot be built.
    Verifier(String),
}

impl fmt::Display for DatabaseUrlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ControlCharacter => f.write_str("it holds a line break or another control character"),
            Self::Unescaped => f.write_str(
                "it holds more than one `@`: in a user's name, a password or an option it is written %40, and other special \
                 characters are percent-encoded, too",
            ),
            Self::OptionWithoutValue => {
                f.write_str("an option of it has no value, or a special character is not percent-encoded")
            }
            Self::NoHost => f.write_str("it names no host"),
            Self::Option { name, why } => write!(f, "its option `{name}` {why}"),
            Self::Form(Some(why)) => f.write_str(why),
            Self::Form(None) => f.write_str(
                "it does not have the form postgres://user:password@host:port/database?option=value with known options and \
                 special characters percent-encoded",
            ),
            Self::RootCertificates { path, why } => write!(f, "its option `sslrootcert` names {path}: {why}"),
            Self::Verifier(why) => write!(f, "certificates cannot be verified: {why}"),
        }
    }
}

impl std::error::Error for DatabaseUrlError {}

#[derive(Default)]
struct Options<'a> {
    driven: Vec<&'a str>,
    ssl_mode: Option<SslMode>,
    no_verify: bool,
    root_cert: Option<String>,
    schema: Option<String>,
}

impl<'a> Options<'a> {
    fn take(&mut self, pair: &'a str, name: &str, value: &str) -> Result<(), DatabaseUrlError> {
        let refuse = |why| Err(DatabaseUrlError::Option { name: name.to_owned(), why });
        match name {
            "sslmode" => {
                self.no_verify = value == "no-verify";
                self.ssl_mode = Some(match value {
                    "disable" => SslMode::Disable,
                    // What may be encrypted and need not be.
                    "allow" | "prefer" => SslMode::Prefer,
                    "require" | "verify-ca" | "verify-full" | "no-verify" => SslMode::Require,
                    _ => return refuse("is disable, allow, prefer, require, verify-ca, verify-full or no-verify"),
                });
            }
            "ssl" => match value {
                "true" => self.ssl_mode = Some(SslMode::Require),
                "false" => self.ssl_mode = Some(SslMode::Disable),
                _ => return refuse("is true or false"),
            },
            "sslrootcert" => self.root_cert = Some(value.to_owned()),
            "schema" if is_plain_name(value) => self.schema = Some(value.to_owned()),
            "schema" => return refuse("is a name of letters, digits and underscores"),
            "target_session_attrs" => match value {
                "any" => {}
                "read-write" | "primary" => self.driven.push("target_session_attrs=read-write"),
                _ => return refuse("is any, read-write or primary: events are written"),
            },
            "gssencmode" if !matches!(value, "disable" | "prefer") => {
                return refuse("is disable or prefer: GSSAPI is not spoken");
            }
            "pgbouncer" if value != "false" => {
                return refuse(
                    "says that a pooler lends connections for a transaction: Millrace prepares statements and listens, \
                     so connect to the database itself, or let the pooler pool sessions, and leave it out",
                );
            }
            "client_encoding" if !["auto", "utf8", "utf-8"].contains(&&*value.to_ascii_lowercase()) => {
                return refuse("is UTF8: payloads are kept as they are");
            }
            "gssencmode" | "pgbouncer" | "client_encoding" => {}
            name if TIMES.contains(&name) => {
                if value.parse::<i64>().is_err() {
                    return refuse("is a whole number");
                }
            }
            name if DRIVEN.contains(&name) => self.driven.push(pair),
            name if POOL_SIZES.contains(&name) => {
                return refuse("is not known: how many connections there are follows from --writers");
            }
            _ => return refuse("is not known"),
        }
        Ok(())
    }
}

/// A name that cannot be mistaken for anything else, quoted or not.
fn is_plain_name(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    (1..=63).contains(&text.len()) && text.bytes().all(is_plain)
}

fn percent_decode(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned()
}

/// The driver's reason, unless it could quote a piece of a password that was not percent-encoded.
fn form_error(error: &tokio_postgres::Error) -> DatabaseUrlError {
    const QUOTABLE: [&str; 5] = ["host", "hostaddr", "port", "sslnegotiation", "channel_binding"];
    let text = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
    let quotes_only_options = text.split('`').skip(1).step_by(2).all(|quoted| QUOTABLE.contains(&quoted));
    DatabaseUrlError::Form((quotes_only_options && text.contains('`')).then_some(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_other_products_write_is_taken_with_its_meaning() {
        for (query, ssl_mode, verify) in [
            ("", SslMode::Prefer, false),
            ("?sslmode=disable", SslMode::Disable, false),
            ("?sslmode=allow", SslMode::Prefer, false),
            ("?sslmode=require", SslMode::Require, true),
            ("?sslmode=verify-full", SslMode::Require, true),
            ("?sslmode=verify-ca", SslMode::Require, true),
            ("?sslmode=no-verify", SslMode::Require, false),
            ("?ssl=true", SslMode::Require, true),
            ("?ssl=false&", SslMode::Disable, false),
            ("?sslrootcert=/a%20b.pem", SslMode::Prefer, true),
            ("?gssencmode=disable&target_session_attrs=primary&pgbouncer=false", SslMode::Prefer, false),
            ("?connect_timeout=10&keepalives_count=3&client_encoding=UTF8", SslMode::Prefer, false),
        ] {
            for credentials in ["", "u@", "u:p?x@", "u:p%40x@"] {
                let url = DatabaseUrl::parse(&format!("postgres://{credentials}h/d{query}")).unwrap();
                assert_eq!((url.config.get_ssl_mode(), url.verify), (ssl_mode, verify), "{credentials}h/d{query}");
                assert_eq!(url.config.get_dbname(), Some("d"));
            }
        }
        let url = DatabaseUrl::parse("postgres://u:p?x@h/d?sslrootcert=/a%20b.pem&port=1&schema=App_1").unwrap();
        assert_eq!((url.root_cert.as_deref(), url.schema.as_deref()), (Some("/a b.pem"), Some("App_1")));
        assert_eq!((url.config.get_ports(), url.config.get_password()), (&[5432, 1][..], Some(&b"p?x"[..])));
        let attributes = tokio_postgres::config::TargetSessionAttrs::ReadWrite;
        for value in ["primary", "read-write"] {
            let url = DatabaseUrl::parse(&format!("postgres://h/d?target_session_attrs={value}")).unwrap();
            assert_eq!(url.config.get_target_session_attrs(), attributes);
        }
    }

    #[test]
    fn what_is_not_taken_is_refused_by_name_and_without_a_secret() {
        for (url, part) in [
            ("postgres://u:hunter2@h/d?pgbouncer=true", "`pgbouncer`"),
            ("postgres://u:hunter2@h/d?connection_limit=5", "--writers"),
            ("postgres://u:hunter2@h/d?gssencmode=require", "`gssencmode`"),
            ("postgres://u:hunter2@h/d?target_session_attrs=standby", "`target_session_attrs`"),
            ("postgres://u:hunter2@h/d?client_encoding=LATIN1", "`client_encoding`"),
            ("postgres://u:hunter2@h/d?connect_timeout=soon", "`connect_timeout`"),
            ("postgres://u:hunter2@h/d?schema=a\"b", "`schema`"),
            ("postgres://u:hunter2@h/d?statement_timeout=5", "`statement_timeout` is not known"),
            ("postgres://u:hunter2@h/d?sslmode=hunter2", "`sslmode`"),
            ("postgres://u:hunter2@h:port/d", "`port`"),
            ("postgres://u:p@hunter2@h/d", "%40"),
            ("postgres://u:p@hunter2?hunter2=1@h/d", "%40"),
            ("postgres://me@hunter2.example:secret@h/d", "%40"),
            ("postgres://u:hunter2@h/d?hunter2", "no value"),
            ("postgres://u:hunter2@h/d\n?a=b", "line break"),
            ("host=h password=x hunter2", "percent-encoded"),
            ("hunter2", "percent-encoded"),
            ("postgres://", "no host"),
        ] {
            let why = DatabaseUrl::parse(url).map(|_| ()).unwrap_err().to_string();
            assert!(why.contains(part), "{url}: {why}");
            assert!(!why.contains("hunter2"), "{why}");
        }
    }
}
