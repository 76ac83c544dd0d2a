//! URLs that cannot be shown by accident, of the database and of a proxy: both `Display` and `Debug` mask the secrets.
//!
//! For the database's URL the parts that may be shown are listed and everything else is masked, so that an unforeseen
//! parameter stays hidden.

use std::fmt;

use url::Url;

const SCHEMES: [&str; 2] = ["postgres://", "postgresql://"];
const SHOWN_PARAMETERS: [&str; 13] = [
    "application_name",
    "connect_timeout",
    "dbname",
    "gssencmode",
    "host",
    "hostaddr",
    "port",
    "schema",
    "ssl",
    "sslmode",
    "sslrootcert",
    "target_session_attrs",
    "user",
];

/// A Postgres URL with the credentials in it.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretUrl(String);

impl SecretUrl {
    /// Takes a URL with a Postgres scheme; `None` for anything else. White space around it is dropped, because text from a file
    /// ends with a line break.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim_ascii();
        SCHEMES.iter().any(|scheme| text.starts_with(scheme)).then(|| Self(text.to_owned()))
    }

    /// The URL with its secrets, for the driver only.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, rest) = self.0.split_once("://").expect("parse takes only URLs with a scheme");
        write!(f, "{scheme}://")?;
        // The last '@': a password may hold one of its own.
        let place = match rest.rsplit_once('@') {
            // A password with an unescaped delimiter, or a parameter with an '@': it cannot be told which.
            Some((credentials, _)) if credentials.contains(['/', '?', '#']) => return f.write_str("***"),
            Some((credentials, place)) => {
                let (user, password) = credentials.split_once(':').map_or((credentials, None), |(u, p)| (u, Some(p)));
                write!(f, "{user}{}@", if password.is_some() { ":***" } else { "" })?;
                place
            }
            None => rest,
        };
        let (place, parameters) = place.split_once('?').map_or((place, None), |(p, q)| (p, Some(q)));
        f.write_str(place)?;
        for (at, parameter) in parameters.into_iter().flat_map(|all| all.split('&')).enumerate() {
            let separator = if at == 0 { '?' } else { '&' };
            match parameter.split_once('=') {
                Some((name, _)) if SHOWN_PARAMETERS.contains(&name) => write!(f, "{separator}{parameter}")?,
                Some((name, _)) => write!(f, "{separator}{name}=***")?,
                None => write!(f, "{separator}***")?,
            }
        }
        Ok(())
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The URL of a CONNECT proxy: `http://[user:password@]host:port`.
#[derive(Clone, PartialEq, Eq)]
pub struct ProxyUrl(Url);

impl ProxyUrl {
    /// Takes an `http` URL of a host and nothing behind it; `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let is_proxy = |url: &Url| {
            url.scheme() == "http"
                && url.has_host()
                && url.path() == "/"
                && url.query().is_none()
                && url.fragment().is_none()
        };
        Url::parse(text).ok().filter(is_proxy).map(Self)
    }

    /// The URL with its password, for the client only.
    pub fn reveal(&self) -> &Url {
        &self.0
    }
}

impl fmt::Display for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut masked = self.0.clone();
        if masked.password().is_some() {
            masked.set_password(Some("***")).expect("a proxy's URL has a host");
        }
        f.write_str(masked.as_str().trim_end_matches('/'))
    }
}

impl fmt::Debug for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_masked_and_the_rest_is_shown() {
        for (url, shown) in [
            ("postgres://u:hunter2@db:5432/x?sslmode=require", "postgres://u:***@db:5432/x?sslmode=require"),
            ("postgresql://u:hun@ter2@db/x", "postgresql://u:***@db/x"),
            ("postgres://u:hun/ter?2@db/x", "postgres://***"),
            ("postgres://db/x?password=hun@ter2", "postgres://***"),
            ("postgres://u@db/x", "postgres://u@db/x"),
            ("postgres://db/x", "postgres://db/x"),
            ("postgres:///x?host=/run/pg&password=hunter2", "postgres:///x?host=/run/pg&password=***"),
            ("postgres://db/x?p%61ssword=hunter2&user=u", "postgres://db/x?p%61ssword=***&user=u"),
            ("postgres://u:hunter2@h/x?hunter2&sslmode=disable", "postgres://u:***@h/x?***&sslmode=disable"),
            ("postgres://u:hunter2@", "postgres://u:***@"),
        ] {
            let url = SecretUrl::parse(url).unwrap();
            assert_eq!(format!("{url}"), shown);
            assert_eq!(format!("{url:?}"), shown);
        }
    }

    #[test]
    fn only_postgres_urls_are_taken() {
        for text in ["", "db", "mysql://db/x", "host=db user=u", "postgres:db", "\"postgres://db\""] {
            assert_eq!(SecretUrl::parse(text), None, "{text:?}");
        }
        assert_eq!(SecretUrl::parse(" postgres://db/x\r\n").unwrap().reveal(), "postgres://db/x");
    }
}
