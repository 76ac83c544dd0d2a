//! The bodies of the endpoint routes: what may be said about an endpoint, field by field.

use std::time::Duration;

use serde_json::value::RawValue;
use zeroize::Zeroizing;

use millrace_base::clock::Timestamp;
use millrace_base::limits::{SECRET_OVERLAP_DEFAULT, SECRET_OVERLAP_MAX};
use millrace_base::problem::Problem;
use millrace_store::webhooks::EndpointChange;
use millrace_webhooks::endpoint::secret::WebhookSecret;
use millrace_webhooks::endpoint::target_policy::TargetPolicy;
use millrace_webhooks::endpoint::validate;

use super::body::{Body, Message, count, named_texts, or_null, switch, text, texts};

/// What `POST /api/endpoints` asks for.
pub(super) struct Draft {
    pub(super) url: String,
    pub(super) description: String,
    pub(super) event_types: Option<Vec<String>>,
    pub(super) headers: Vec<(String, String)>,
    pub(super) enabled: bool,
    pub(super) rate_limit_per_second: Option<u32>,
    /// `None`: to be generated.
    pub(super) secret: Option<WebhookSecret>,
}

/// Reads a new endpoint. `null` is the same as leaving a field out.
pub(super) fn draft(policy: &TargetPolicy, body: &[u8]) -> Result<Draft, Problem> {
    const FIELDS: [&str; 7] =
        ["url", "description", "event_types", "headers", "enabled", "rate_limit_per_second", "secret"];
    let mut body = Body::read(body, &FIELDS)?;
    let url = body.required("url", |value| url(policy, value));
    let draft = Draft {
        url: url.unwrap_or_default(),
        description: body.field("description", or_null(description)).flatten().unwrap_or_default(),
        event_types: body.field("event_types", or_null(event_types)).flatten(),
        headers: body.field("headers", or_null(headers)).flatten().unwrap_or_default(),
        enabled: body.field("enabled", or_null(switch)).flatten().unwrap_or(true),
        rate_limit_per_second: body.field("rate_limit_per_second", or_null(rate_limit)).flatten(),
        secret: body.field("secret", or_null(secret)).flatten(),
    };
    body.finish()?;
    Ok(draft)
}

/// Reads a change: what is left out stays, `null` clears what can be without.
pub(super) fn change(policy: &TargetPolicy, body: &[u8]) -> Result<EndpointChange, Problem> {
    const FIELDS: [&str; 6] = ["url", "description", "event_types", "headers", "enabled", "rate_limit_per_second"];
    let mut body = Body::read(body, &FIELDS)?;
    let change = EndpointChange {
        url: body.field("url", |value| url(policy, value)),
        description: body.field("description", or_null(description)).map(Option::unwrap_or_default),
        event_types: body.field("event_types", or_null(event_types)),
        headers: body.field("headers", or_null(headers)).map(Option::unwrap_or_default),
        enabled: body.field("enabled", switch),
        rate_limit_per_second: body.field("rate_limit_per_second", or_null(rate_limit)),
    };
    body.finish()?;
    Ok(change)
}

/// Reads a rotation: the new secret, where it is given, and how long the old one signs beside it.
pub(super) fn rotation(body: &[u8]) -> Result<(Option<WebhookSecret>, Duration), Problem> {
    let mut body = Body::read_optional(body, &["secret", "overlap_seconds"])?;
    let secret = body.field("secret", or_null(secret)).flatten();
    let overlap = body.field("overlap_seconds", |value| {
        let overlap = Duration::from_secs(count(value)?);
        if overlap > SECRET_OVERLAP_MAX {
            return Err(format!("must be from 0 to {}", SECRET_OVERLAP_MAX.as_secs()).into());
        }
        Ok(overlap)
    });
    body.finish()?;
    Ok((secret, overlap.unwrap_or(SECRET_OVERLAP_DEFAULT)))
}

/// Reads which deliveries to recover, by when they were made.
pub(super) fn recovery(body: &[u8]) -> Result<std::ops::Range<Timestamp>, Problem> {
    let mut body = Body::read(body, &["since", "until"])?;
    // Without an end there is none: the clock that made the newest may have been ahead of what it says now.
    let since = body.required("since", time);
    let until = body.field("until", or_null(time)).flatten().unwrap_or(Timestamp::MAX);
    if since.is_some_and(|since| since > until) {
        body.refuse("until", "must not be before `since`");
    }
    body.finish()?;
    Ok(since.unwrap_or(Timestamp::MAX)..until)
}

fn url(policy: &TargetPolicy, value: &RawValue) -> Result<String, Message> {
    validate::url(policy, &text(value)?).map_err(Message::from)
}

fn description(value: &RawValue) -> Result<String, Message> {
    validate::description(text(value)?).map_err(Message::from)
}

fn event_types(value: &RawValue) -> Result<Vec<String>, Message> {
    validate::event_types(texts(value)?).map_err(Message::from)
}

fn headers(value: &RawValue) -> Result<Vec<(String, String)>, Message> {
    validate::own_headers(named_texts(value)?).map_err(Message::from)
}

fn rate_limit(value: &RawValue) -> Result<u32, Message> {
    validate::rate_limit(count(value)?).map_err(|why| format!("{why}, or null for no limit").into())
}

fn secret(value: &RawValue) -> Result<WebhookSecret, Message> {
    WebhookSecret::parse(&Zeroizing::new(text(value)?)).map_err(Message::from)
}

fn time(value: &RawValue) -> Result<Timestamp, Message> {
    Timestamp::parse_rfc3339(&text(value)?)
        .ok_or_else(|| "must be an RFC 3339 time such as 2026-01-31T12:00:00Z".into())
}
