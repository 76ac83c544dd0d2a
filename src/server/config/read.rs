//! Reads the text of a setting into its type, and masks the secrets of one that is shown.
//!
//! A reader gets the text that is in force, after all layers: a text that another layer replaces is not read. What it
//! refuses it refuses with the words that complete "it must be …", and without quoting the text.

use std::fmt::Display;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use ipnet::IpNet;

use millrace_base::logging;
use millrace_webhooks::config::SecretKey;
use millrace_webhooks::delivery::schedule::RetrySchedule;

use super::secret_url::{ProxyUrl, SecretUrl};
use super::typed::Expected;

/// An address to listen at.
pub(super) fn address(text: &str) -> Result<SocketAddr, Expected> {
    let localhost = || text.strip_prefix("localhost:")?.parse().ok().map(|port| (Ipv4Addr::LOCALHOST, port).into());
    text.parse().ok().or_else(localhost).ok_or_else(|| {
        "an IP address and a port, such as 127.0.0.1:3000, 0.0.0.0:3000, [::1]:3000 or localhost:3000".into()
    })
}

/// The path of a directory.
pub(super) fn path_of_directory(text: &str) -> Result<PathBuf, Expected> {
    given(text).map(PathBuf::from).ok_or_else(|| "the path of a directory".into())
}

/// The path of a file, or none.
#[allow(clippy::unnecessary_wraps, reason = "every reader has this form")]
pub(super) fn file(text: &str) -> Result<Option<PathBuf>, Expected> {
    Ok(given(text).map(PathBuf::from))
}

/// At most `MAX` networks, or none.
pub(super) fn networks<const MAX: usize>(text: &str) -> Result<Vec<IpNet>, Expected> {
    let Some(text) = given(text) else { return Ok(Vec::new()) };
    let networks: Result<Vec<IpNet>, _> = text.split(',').map(|network| network.trim().parse()).collect();
    networks
        .ok()
        .filter(|networks| networks.len() <= MAX)
        .ok_or_else(|| format!("at most {MAX} networks, separated by commas, such as 10.20.0.0/16,fd00:1::/32").into())
}

/// A filter of the log.
pub(super) fn log_filter(text: &str) -> Result<String, Expected> {
    logging::parse_filter(text).map(|_| text.to_owned()).map_err(Expected::from)
}

/// The URL of a database, or none.
pub(super) fn secret_url(text: &str) -> Result<Option<SecretUrl>, Expected> {
    let Some(text) = given(text) else { return Ok(None) };
    SecretUrl::parse(text).map(Some).ok_or_else(|| {
        "postgres://USER:PASSWORD@HOST:PORT/DATABASE without quotes, or empty for the embedded store".into()
    })
}

/// That URL as it is shown.
pub(super) fn masked_url(text: &str) -> Option<String> {
    SecretUrl::parse(text).map(|url| url.to_string())
}

/// The URL of a proxy, or none.
pub(super) fn proxy_url(text: &str) -> Result<Option<ProxyUrl>, Expected> {
    let Some(text) = given(text) else { return Ok(None) };
    ProxyUrl::parse(text).map(Some).ok_or_else(|| "http://HOST:PORT or http://USER:PASSWORD@HOST:PORT".into())
}

/// That URL as it is shown.
pub(super) fn masked_proxy(text: &str) -> Option<String> {
    ProxyUrl::parse(text).map(|url| url.to_string())
}

/// The keys that encrypt secrets, or none.
pub(super) fn secret_key(text: &str) -> Result<Option<SecretKey>, Expected> {
    given(text).map(SecretKey::parse).transpose().map_err(|rule| expected(&rule))
}

/// For a secret that is not shown even in part.
pub(super) fn never_shown(_text: &str) -> Option<String> {
    None
}

/// The pauses between the attempts of a delivery.
pub(super) fn retry_schedule(text: &str) -> Result<RetrySchedule, Expected> {
    RetrySchedule::parse(text).map_err(|rule| expected(&rule))
}

/// The text of a setting that may be empty.
fn given(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

/// A rule of another room, "must be …", as it completes a sentence here.
fn expected(rule: &impl Display) -> Expected {
    let rule = rule.to_string();
    match rule.strip_prefix("must be ") {
        Some(rest) => rest.to_owned().into(),
        None => rule.into(),
    }
}
