//! Prints an endpoint. The text shows only the names of its headers; `--json` shows everything, as the API does.

use millrace_control::EndpointDocument;
use millrace_store::webhooks::Endpoint;
use millrace_webhooks::endpoint::secret::WebhookSecret;

use crate::cli::failure::Failure;
use crate::cli::output::{fields, json_line_of, show, show_json, to_the_second};

/// Prints one.
pub(super) fn endpoint(endpoint: &Endpoint, json: bool) -> Result<(), Failure> {
    if json { show_json(&EndpointDocument::new(endpoint)) } else { show(&described(endpoint, None)) }
}

/// One with its new secret, behind a line that says what was done.
pub(super) fn with_secret(done: &str, endpoint: &Endpoint, secret: &WebhookSecret, json: bool) -> String {
    let secret = secret.reveal();
    if json {
        return json_line_of(EndpointDocument::new(endpoint).with_secret(&secret));
    }
    format!("{done}\n\n{}\nThe secret is shown only this once.\n", described(endpoint, Some(&secret)))
}

fn described(endpoint: &Endpoint, secret: Option<&str>) -> String {
    let names: Vec<&str> = endpoint.headers.iter().map(|(name, _)| name.as_str()).collect();
    let rate = endpoint.rate_limit_per_second.map_or("none".to_owned(), |limit| format!("{limit} per second"));
    let (id, org) = (endpoint.id.to_string(), endpoint.org.to_string());
    let (state, events, headers) = (state(endpoint), events(endpoint), names.join(", "));
    let created = to_the_second(endpoint.created_at);
    let mut rows = vec![
        ("id", id.as_str()),
        ("organisation", &org),
        ("URL", &endpoint.url),
        ("description", &endpoint.description),
        ("events", &events),
        ("headers", if names.is_empty() { "none" } else { &headers }),
        ("rate limit", &rate),
        ("state", &state),
        ("created", &created),
    ];
    rows.extend(secret.map(|secret| ("secret", secret)));
    fields(&rows)
}

/// Whether events are sent to it, and why not.
pub(super) fn state(endpoint: &Endpoint) -> String {
    match (endpoint.enabled, &endpoint.disabled_reason, endpoint.failing_since) {
        (true, _, None) => "enabled".to_owned(),
        (true, _, Some(since)) => format!("enabled, failing since {}", to_the_second(since)),
        (false, None, _) => "disabled".to_owned(),
        (false, Some(reason), _) => format!("disabled: {reason}"),
    }
}

/// The events it gets.
pub(super) fn events(endpoint: &Endpoint) -> String {
    endpoint.event_types.as_ref().map_or("all".to_owned(), |types| types.join(", "))
}
