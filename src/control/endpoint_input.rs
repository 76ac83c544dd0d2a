//! What is given about an endpoint, by a request's body or by a command's flags, and its checks.
//!
//! [`EndpointInput`] is the one type for both. A field that can be given is one row here: its name, its type, how a body gives
//! it, and its check, whose rule is [`validate`]'s. What passes the checks is an [`EndpointChange`]. A body is read strictly
//! and all its errors are reported at once, so its fields are read one by one: a derived `Deserialize` would stop at the first
//! error.

use std::ops::Range;
use std::time::Duration;

use serde_json::value::RawValue;
use zeroize::Zeroizing;

use millrace_base::clock::Timestamp;
use millrace_base::limits::{SECRET_OVERLAP_DEFAULT, SECRET_OVERLAP_MAX};
use millrace_base::problem::{FieldError, Problem};
use millrace_store::webhooks::EndpointChange;
use millrace_webhooks::endpoint::secret::WebhookSecret;
use millrace_webhooks::endpoint::target_policy::TargetPolicy;
use millrace_webhooks::endpoint::validate;

use super::body::{Body, Message, count, named_texts, or_null, switch, text, texts};

/// Makes [`EndpointInput`] from rows of this form: `name: type, reader of a body's value, check;`.
macro_rules! endpoint_fields {
    ($($(#[$doc:meta])* $field:ident: $given:ty, $read:expr, $check:path;)*) => {
        /// What is given about an endpoint, not yet checked. `None`: the field is not given; `Some(None)`: it is to be
        /// cleared.
        #[derive(Default)]
        pub struct EndpointInput {
            $($(#[$doc])* pub $field: Option<$given>,)*
        }

        impl EndpointInput {
            const FIELDS: &'static [&'static str] = &[$(stringify!($field)),*];

            fn read(body: &mut Body<'_>) -> Self {
                Self { $($field: body.field(stringify!($field), $read),)* }
            }

            /// Checks every field that is given. Returns those that are right, and an error for each that is not.
            pub fn check(self, policy: &TargetPolicy) -> (EndpointChange, Vec<FieldError>) {
                let mut errors = Vec::new();
                let change = EndpointChange {
                    $($field: {
                        let checked = self.$field.map(|given| $check(policy, given));
                        right(&mut errors, stringify!($field), checked)
                    },)*
                };
                (change, errors)
            }
        }
    };
}

endpoint_fields! {
    /// Where requests go.
    url: String, text, check_url;
    /// The owner's words; cleared: none.
    description: Option<String>, or_null(text), check_description;
    /// The types of events that are delivered; cleared: all.
    event_types: Option<Vec<String>>, or_null(texts), check_event_types;
    /// Headers that are sent with every request, in this order; cleared: none.
    headers: Option<Vec<(String, String)>>, or_null(named_texts), check_headers;
    /// Whether anything is sent.
    enabled: bool, switch, check_enabled;
    /// Requests per second at most; cleared: no limit.
    rate_limit_per_second: Option<u64>, or_null(count), check_rate_limit;
}

#[allow(clippy::needless_pass_by_value, reason = "every check has this form")]
fn check_url(policy: &TargetPolicy, url: String) -> Result<String, Message> {
    validate::url(policy, &url).map_err(Message::from)
}

fn check_description(_: &TargetPolicy, given: Option<String>) -> Result<String, Message> {
    given.map_or_else(|| Ok(String::new()), validate::description).map_err(Message::from)
}

fn check_event_types(_: &TargetPolicy, given: Option<Vec<String>>) -> Result<Option<Vec<String>>, Message> {
    given.map(validate::event_types).transpose().map_err(Message::from)
}

fn check_headers(_: &TargetPolicy, given: Option<Vec<(String, String)>>) -> Result<Vec<(String, String)>, Message> {
    given.map_or_else(|| Ok(Vec::new()), validate::own_headers).map_err(Message::from)
}

#[allow(clippy::unnecessary_wraps, reason = "every check has this form")]
fn check_enabled(_: &TargetPolicy, enabled: bool) -> Result<bool, Message> {
    Ok(enabled)
}

fn check_rate_limit(_: &TargetPolicy, given: Option<u64>) -> Result<Option<u32>, Message> {
    given.map(validate::rate_limit).transpose().map_err(|why| format!("{why}, or null for no limit").into())
}

/// The value that a check let pass; what it refused is an error of the field.
fn right<T>(errors: &mut Vec<FieldError>, field: &'static str, checked: Option<Result<T, Message>>) -> Option<T> {
    checked?.map_err(|message| errors.push(FieldError { field: field.into(), message })).ok()
}

/// Reads a new endpoint and its secret, where one is given. `null` is the same as leaving a field out.
pub(super) fn new(policy: &TargetPolicy, body: &[u8]) -> Result<(EndpointChange, Option<WebhookSecret>), Problem> {
    let fields = [EndpointInput::FIELDS, &["secret"]].concat();
    let mut body = Body::read(body, &fields)?;
    body.require("url");
    body.leave_out_nulls_except("url");
    let given = checked(&mut body, policy);
    let secret = body.field("secret", secret);
    body.finish()?;
    Ok((given, secret))
}

/// Reads a change: what is left out stays, `null` clears what can be cleared.
pub(super) fn change(policy: &TargetPolicy, body: &[u8]) -> Result<EndpointChange, Problem> {
    let mut body = Body::read(body, EndpointInput::FIELDS)?;
    let change = checked(&mut body, policy);
    body.finish()?;
    Ok(change)
}

fn checked(body: &mut Body<'_>, policy: &TargetPolicy) -> EndpointChange {
    let (change, errors) = EndpointInput::read(body).check(policy);
    for FieldError { field, message } in errors {
        body.refuse(field, message);
    }
    change
}

/// Reads a rotation: the new secret, where it is given, and how long the old one signs as well.
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

/// Reads which deliveries to recover, by the time they were created.
pub(super) fn recovery(body: &[u8]) -> Result<Range<Timestamp>, Problem> {
    let mut body = Body::read(body, &["since", "until"])?;
    let since = body.required("since", time);
    // Without an end the range is open: the clock that created the newest delivery may be ahead of this one.
    let until = body.field("until", or_null(time)).flatten().unwrap_or(Timestamp::MAX);
    if since.is_some_and(|since| since > until) {
        body.refuse("until", "must not be before `since`");
    }
    body.finish()?;
    Ok(since.unwrap_or(Timestamp::MAX)..until)
}

fn secret(value: &RawValue) -> Result<WebhookSecret, Message> {
    WebhookSecret::parse(&Zeroizing::new(text(value)?)).map_err(Message::from)
}

fn time(value: &RawValue) -> Result<Timestamp, Message> {
    Timestamp::parse_rfc3339(&text(value)?)
        .ok_or_else(|| "must be an RFC 3339 time such as 2026-01-31T12:00:00Z".into())
}
