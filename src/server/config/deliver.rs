//! The webhooks' settings as one checked [`WebhookConfig`].

use std::time::Duration;

use url::Url;

use millrace_base::limits;
use millrace_webhooks::client::{ResolverFiles, TrustRoots};
use millrace_webhooks::config::{SecretKey, WebhookConfig};
use millrace_webhooks::delivery::schedule::RetrySchedule;

use super::error::ConfigError;
use super::layer::Values;

const DAY: Duration = Duration::from_secs(24 * 3600);

pub(super) fn deliver(values: &Values) -> Result<WebhookConfig, ConfigError> {
    let key = "webhook_secret_key";
    let secret_key = given(values, key).map(SecretKey::parse).transpose().map_err(|rule| refuse(values, key, rule))?;
    let key = "webhook_retry_schedule";
    let schedule = RetrySchedule::parse(values.text(key)).map_err(|rule| refuse(values, key, rule))?;
    let [timeout, connect_timeout] =
        ["webhook_timeout", "webhook_connect_timeout"].map(|key| Duration::from_secs(values.count(key)));
    if connect_timeout > timeout {
        return Err(ConfigError::Unusable(format!(
            "webhook_connect_timeout ({} s) is longer than webhook_timeout ({} s), which it is a part of\n  fix: set \
             --webhook-connect-timeout to at most {1}, or --webhook-timeout to at least {0}",
            connect_timeout.as_secs(),
            timeout.as_secs()
        )));
    }
    Ok(WebhookConfig {
        allow_insecure: values.switch("allow_insecure_webhooks"),
        allowed_networks: super::networks(values, "webhook_allowed_networks", limits::WEBHOOK_NETWORKS_MAX)?,
        secret_key,
        schedule,
        timeout,
        connect_timeout,
        concurrency: values.count("webhook_concurrency") as usize,
        response_bytes_max: values.count("webhook_response_bytes_max") as usize,
        ca_file: given(values, "webhook_ca_file").map(Into::into),
        roots: if values.text("webhook_roots") == "system" { TrustRoots::System } else { TrustRoots::Webpki },
        proxy: proxy(values)?,
        retention: DAY * values.count("webhook_retention_days") as u32,
        resolver_files: ResolverFiles::default(),
    })
}

/// Refuses a setting for a rule of this room's, "must be …".
fn refuse(values: &Values, key: &str, rule: &str) -> ConfigError {
    values.refuse_text(key, rule.strip_prefix("must be ").unwrap_or(rule))
}

/// The text of a setting that may be empty.
fn given<'a>(values: &'a Values, key: &str) -> Option<&'a str> {
    Some(values.text(key)).filter(|text| !text.is_empty())
}

fn proxy(values: &Values) -> Result<Option<Url>, ConfigError> {
    let key = "webhook_proxy";
    let Some(text) = given(values, key) else { return Ok(None) };
    let is_proxy = |url: &Url| {
        url.scheme() == "http"
            && url.has_host()
            && url.path() == "/"
            && url.query().is_none()
            && url.fragment().is_none()
    };
    let proxy = Url::parse(text).ok().filter(is_proxy);
    proxy.map(Some).ok_or_else(|| values.refuse_text(key, "http://HOST:PORT or http://USER:PASSWORD@HOST:PORT"))
}
