//! Every refusal of the server, and how each looks on the wire (RFC 9457, `application/problem+json`).
//!
//! Exhaustive matches give each problem its code, status, `Retry-After` and text, so a new one cannot lack any. The texts are for
//! the client; what the operator needs is logged or counted where it happens.

use std::borrow::Cow;

use crate::key::API_KEY_LEN;
use crate::limits;

/// One invalid field of a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// Path of the field, such as `type` or `payload`.
    pub field: Cow<'static, str>,
    /// What is wrong with it and what would be right.
    pub message: Cow<'static, str>,
}

/// A refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// The bytes are not HTTP/1.1 (RFC 9112).
    BadRequest(&'static str),
    /// The same, because of a byte in the head or its position.
    BadHead(String),
    /// The query string of a list, or the body of a control request, is wrong.
    BadQuery(Cow<'static, str>),
    /// The body is not JSON.
    InvalidJson {
        /// Byte offset in the body where the grammar is first violated.
        offset: Option<usize>,
        /// What was expected there.
        detail: Cow<'static, str>,
    },
    /// No `X-API-Key` and no `Authorization: Bearer`.
    MissingApiKey,
    /// The key is wrong, unknown, expired or revoked: one response for all.
    InvalidApiKey,
    /// The presented key has not the form of a key.
    MalformedApiKey,
    /// The organisation is disabled.
    OrgDisabled,
    /// No such route.
    NotFound,
    /// The route exists; the resource does not, or belongs to another organisation. Carries the text.
    NoSuch(&'static str),
    /// The route exists, not with this method; carries the `Allow` value.
    MethodNotAllowed(&'static str),
    /// The request took too long to arrive.
    RequestTimeout,
    /// Neither `Content-Length` nor chunked.
    LengthRequired,
    /// Payload or body over its limit in bytes.
    PayloadTooLarge(usize),
    /// The request target is over its limit.
    UriTooLong,
    /// A media type that the route does not take; carries the `Accept` value.
    UnsupportedMediaType(&'static str),
    /// The body has a content coding.
    UnsupportedContentCoding,
    /// `Expect` other than `100-continue`.
    ExpectationFailed,
    /// The header is over its limit in bytes or fields.
    HeadersTooLarge,
    /// A transfer coding other than `chunked`.
    UnsupportedTransferCoding,
    /// A method this server does not know at all.
    UnknownMethod,
    /// Not HTTP/1.
    HttpVersionNotSupported,
    /// JSON, but no valid event; with every invalid field.
    InvalidEvent(Vec<FieldError>),
    /// JSON, but no valid endpoint for this route; with every invalid field.
    InvalidEndpoint(Vec<FieldError>),
    /// Nothing is sent to a disabled endpoint, not even a test event.
    EndpointDisabled,
    /// The organisation has reached its number of endpoints.
    TooManyEndpoints,
    /// The organisation has reached its number of live keys.
    TooManyKeys,
    /// Over the organisation's rate limit.
    RateLimited {
        /// Whole seconds until the next request is allowed, at least 1.
        retry_after: u32,
    },
    /// Over the limit of reading and managing requests, which is the same for every organisation.
    ControlLimited {
        /// Requests a minute.
        limit: u32,
        /// Whole seconds, at least 1.
        retry_after: u32,
    },
    /// Too many control requests of the organisation wait, or too many responses to it are unread.
    TooManyWaiting,
    /// The event queue is full.
    QueueFull,
    /// Too many first uses of keys are waiting for verification.
    AuthBusy,
    /// Too many wrong keys came from the client's address.
    AuthThrottled {
        /// Whole seconds until the next may be tried, at least 1.
        retry_after: u32,
    },
    /// The server is going away.
    ShuttingDown,
    /// The database is away, and the request needs it.
    StoreUnavailable,
    /// This server does not have the key that seals the secrets of webhook endpoints.
    SecretUnavailable,
    /// Too many control requests wait, or this one waited for too long.
    ControlBusy,
    /// The journal accepts nothing; with the reason.
    JournalUnavailable(&'static str),
    /// Too many open connections.
    TooManyConnections,
    /// A bug. Only this request fails.
    Internal,
}

macro_rules! codes {
    ($($name:ident = $status:literal $text:literal,)*) => {
        /// The fixed `code` of a refusal. Several problems may share one; a code has one status.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[expect(missing_docs, reason = "each variant is named as its text is")]
        pub enum Code {
            $($name,)*
        }

        impl Code {
            /// All of them, sorted by their text.
            pub const ALL: [Self; [$($status),*].len()] = [$(Self::$name),*];

            /// As documents and metrics spell it.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }

            /// HTTP status.
            pub const fn status(self) -> u16 {
                match self {
                    $(Self::$name => $status,)*
                }
            }
        }
    };
}

codes! {
    AuthBusy = 429 "auth_busy",
    BadRequest = 400 "bad_request",
    EndpointDisabled = 409 "endpoint_disabled",
    ExpectationFailed = 417 "expectation_failed",
    HeadersTooLarge = 431 "headers_too_large",
    HttpVersionNotSupported = 505 "http_version_not_supported",
    InternalError = 500 "internal_error",
    InvalidApiKey = 401 "invalid_api_key",
    InvalidEndpoint = 422 "invalid_endpoint",
    InvalidEvent = 422 "invalid_event",
    InvalidJson = 400 "invalid_json",
    JournalUnavailable = 503 "journal_unavailable",
    LengthRequired = 411 "length_required",
    MethodNotAllowed = 405 "method_not_allowed",
    MissingApiKey = 401 "missing_api_key",
    NotFound = 404 "not_found",
    NotImplemented = 501 "not_implemented",
    OrgDisabled = 403 "org_disabled",
    PayloadTooLarge = 413 "payload_too_large",
    QueueFull = 429 "queue_full",
    RateLimited = 429 "rate_limited",
    RequestTimeout = 408 "request_timeout",
    SecretUnavailable = 503 "secret_unavailable",
    ShuttingDown = 503 "shutting_down",
    StoreUnavailable = 503 "store_unavailable",
    TooManyConnections = 503 "too_many_connections",
    TooManyEndpoints = 422 "too_many_endpoints",
    TooManyKeys = 422 "too_many_keys",
    UnsupportedMediaType = 415 "unsupported_media_type",
    UnsupportedTransferCoding = 501 "unsupported_transfer_coding",
    UriTooLong = 414 "uri_too_long",
}

/// How a problem looks on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// HTTP status.
    pub status: u16,
    /// The fixed `code`.
    pub code: Code,
    /// `Retry-After` in seconds.
    pub retry_after: Option<u32>,
}

impl Problem {
    /// Status, code and retry in one row.
    pub fn row(&self) -> Row {
        let code = self.code();
        Row { status: code.status(), code, retry_after: self.retry_after() }
    }

    /// The `code` of the answer.
    pub const fn code(&self) -> Code {
        match self {
            Self::BadRequest(_) | Self::BadHead(_) | Self::BadQuery(_) => Code::BadRequest,
            Self::InvalidJson { .. } => Code::InvalidJson,
            Self::MissingApiKey => Code::MissingApiKey,
            Self::InvalidApiKey | Self::MalformedApiKey => Code::InvalidApiKey,
            Self::OrgDisabled => Code::OrgDisabled,
            Self::NotFound | Self::NoSuch(_) => Code::NotFound,
            Self::MethodNotAllowed(_) => Code::MethodNotAllowed,
            Self::RequestTimeout => Code::RequestTimeout,
            Self::EndpointDisabled => Code::EndpointDisabled,
            Self::LengthRequired => Code::LengthRequired,
            Self::PayloadTooLarge(_) => Code::PayloadTooLarge,
            Self::UriTooLong => Code::UriTooLong,
            Self::UnsupportedMediaType(_) | Self::UnsupportedContentCoding => Code::UnsupportedMediaType,
            Self::ExpectationFailed => Code::ExpectationFailed,
            Self::InvalidEvent(_) => Code::InvalidEvent,
            Self::InvalidEndpoint(_) => Code::InvalidEndpoint,
            Self::TooManyEndpoints => Code::TooManyEndpoints,
            Self::TooManyKeys => Code::TooManyKeys,
            Self::RateLimited { .. } | Self::ControlLimited { .. } | Self::TooManyWaiting => Code::RateLimited,
            Self::QueueFull => Code::QueueFull,
            Self::AuthBusy | Self::AuthThrottled { .. } => Code::AuthBusy,
            Self::HeadersTooLarge => Code::HeadersTooLarge,
            Self::Internal => Code::InternalError,
            Self::UnsupportedTransferCoding => Code::UnsupportedTransferCoding,
            Self::UnknownMethod => Code::NotImplemented,
            Self::ShuttingDown => Code::ShuttingDown,
            Self::StoreUnavailable | Self::ControlBusy => Code::StoreUnavailable,
            Self::SecretUnavailable => Code::SecretUnavailable,
            Self::JournalUnavailable(_) => Code::JournalUnavailable,
            Self::TooManyConnections => Code::TooManyConnections,
            Self::HttpVersionNotSupported => Code::HttpVersionNotSupported,
        }
    }

    /// Seconds for `Retry-After`; `None` if sending the same again is useless or no time can be named.
    fn retry_after(&self) -> Option<u32> {
        match self {
            Self::RateLimited { retry_after }
            | Self::ControlLimited { retry_after, .. }
            | Self::AuthThrottled { retry_after } => Some((*retry_after).max(1)),
            Self::TooManyWaiting
            | Self::QueueFull
            | Self::AuthBusy
            | Self::StoreUnavailable
            | Self::ControlBusy
            | Self::TooManyConnections => Some(1),
            Self::JournalUnavailable(_) => Some(2),
            Self::ShuttingDown => Some(5),
            Self::SecretUnavailable => Some(60),
            Self::BadRequest(_)
            | Self::BadHead(_)
            | Self::BadQuery(_)
            | Self::InvalidJson { .. }
            | Self::MissingApiKey
            | Self::InvalidApiKey
            | Self::MalformedApiKey
            | Self::OrgDisabled
            | Self::NotFound
            | Self::NoSuch(_)
            | Self::MethodNotAllowed(_)
            | Self::RequestTimeout
            | Self::EndpointDisabled
            | Self::LengthRequired
            | Self::PayloadTooLarge(_)
            | Self::UriTooLong
            | Self::UnsupportedMediaType(_)
            | Self::UnsupportedContentCoding
            | Self::ExpectationFailed
            | Self::InvalidEvent(_)
            | Self::InvalidEndpoint(_)
            | Self::TooManyEndpoints
            | Self::TooManyKeys
            | Self::HeadersTooLarge
            | Self::Internal
            | Self::UnsupportedTransferCoding
            | Self::UnknownMethod
            | Self::HttpVersionNotSupported => None,
        }
    }

    /// Whether the server had no room for an event (or test event): the event is fine, nothing of it was stored, and it can be
    /// sent again unchanged.
    pub const fn is_for_want_of_room(&self) -> bool {
        matches!(self, Self::QueueFull | Self::JournalUnavailable(_) | Self::TooManyWaiting | Self::ControlBusy)
    }

    /// What is wrong and what the client can do.
    // Over 70 lines: one arm for each problem.
    pub fn detail(&self) -> Cow<'static, str> {
        match self {
            Self::BadRequest(why) | Self::NoSuch(why) => Cow::Borrowed(why),
            Self::BadHead(why) => why.clone().into(),
            Self::BadQuery(why) => why.clone(),
            Self::InvalidJson { offset: Some(at), detail } => format!("{detail} at byte {at}").into(),
            Self::InvalidJson { offset: None, detail } => detail.clone(),
            Self::MissingApiKey => "send the API key as `X-API-Key: mr_…` or `Authorization: Bearer mr_…`".into(),
            Self::InvalidApiKey => "the API key is wrong, expired or revoked".into(),
            Self::MalformedApiKey => format!(
                "this is no API key: one has {API_KEY_LEN} characters and begins with `mr_`; it is cut off, quoted or mistyped"
            )
            .into(),
            Self::OrgDisabled => "the organisation of this API key is disabled; ask the operator".into(),
            Self::NotFound => "nothing is here; the routes are in /openapi.json".into(),
            Self::MethodNotAllowed(allow) => format!("this route takes {allow}").into(),
            Self::RequestTimeout => "the request did not arrive in time; send it again on a new connection".into(),
            Self::LengthRequired => "send Content-Length, or Transfer-Encoding: chunked".into(),
            Self::PayloadTooLarge(max @ limits::PAYLOAD_BYTES_MAX) => format!("the payload is larger than {max} bytes").into(),
            Self::PayloadTooLarge(max) => format!("the body is larger than the {max} bytes that this route takes").into(),
            Self::UriTooLong => {
                format!("the request target is longer than {} bytes", limits::REQUEST_TARGET_BYTES_MAX).into()
            }
            Self::UnsupportedMediaType(accept) => {
                format!("send the body as `Content-Type: {}`", accept.replace(", ", "` or `")).into()
            }
            Self::UnsupportedContentCoding => "send the body without a content coding".into(),
            Self::ExpectationFailed => "only `Expect: 100-continue` is understood".into(),
            Self::HeadersTooLarge => format!(
                "the request header is too large: at most {} fields, {} bytes with the request line, {} bytes of trailers",
                limits::REQUEST_HEADERS_MAX,
                limits::REQUEST_HEAD_BYTES_MAX,
                limits::TRAILER_BYTES_MAX
            )
            .into(),
            Self::UnsupportedTransferCoding => "the only transfer coding here is `chunked`".into(),
            Self::UnknownMethod => "this method is not known here; methods are case-sensitive: `GET`, not `get`".into(),
            Self::HttpVersionNotSupported => "HTTP/1.1 and HTTP/1.0 are spoken here".into(),
            Self::InvalidEvent(_) => "the event is not valid; `errors` names each field".into(),
            Self::InvalidEndpoint(_) => "the body is not valid; `errors` names each field".into(),
            Self::EndpointDisabled => "nothing is sent to a disabled endpoint; enable it first".into(),
            Self::TooManyEndpoints => {
                format!("an organisation has at most {} endpoints; delete one", limits::ENDPOINTS_PER_ORG_MAX).into()
            }
            Self::TooManyKeys => format!(
                "an organisation has at most {} live keys; revoke one, or rotate with a grace of 0",
                limits::LIVE_KEYS_PER_ORG_MAX
            )
            .into(),
            Self::RateLimited { .. } => {
                "the organisation's requests per minute are used up; the operator sets another limit with \
                 `millrace org update ORG --rate-limit N`"
                    .into()
            }
            Self::ControlLimited { limit, .. } => {
                format!("at most {limit} requests a minute that read or manage; the organisation's are used up").into()
            }
            Self::TooManyWaiting => {
                "too many of the organisation's requests wait, or too many answers are unread; send this again later"
                    .into()
            }
            Self::QueueFull => "the event queue is full; nothing of this event was stored; send it again later".into(),
            Self::AuthBusy => "too many API keys are being verified; send the request again".into(),
            Self::AuthThrottled { .. } => {
                "too many wrong API keys came from this address; keys in use go on working, others must wait".into()
            }
            Self::ShuttingDown => "the server is shutting down; send the request again".into(),
            Self::StoreUnavailable => "the database cannot be reached; send the request again".into(),
            Self::SecretUnavailable => {
                "this server has not the key that webhook secrets are sealed with; nothing was changed; ask the operator".into()
            }
            Self::ControlBusy => "too many requests wait for the database; send the request again".into(),
            Self::JournalUnavailable(why) => format!("{why}; nothing of this was stored; send it again later").into(),
            Self::TooManyConnections => "too many open connections; reuse them or come back later".into(),
            Self::Internal => "an internal error; the request may or may not have taken effect".into(),
        }
    }

    /// Appends the problem document to `out`.
    pub fn write_body(&self, out: &mut Vec<u8>) {
        #[derive(serde::Serialize)]
        struct Body<'a> {
            r#type: &'a str,
            title: &'a str,
            status: u16,
            code: &'a str,
            detail: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            offset: Option<usize>,
            #[serde(skip_serializing_if = "Option::is_none")]
            errors: Option<Vec<Field<'a>>>,
        }
        #[derive(serde::Serialize)]
        struct Field<'a> {
            field: &'a str,
            message: &'a str,
        }
        let row = self.row();
        let detail = self.detail();
        let body = Body {
            r#type: "about:blank",
            title: reason_phrase(row.status),
            status: row.status,
            code: row.code.as_str(),
            detail: &detail,
            offset: if let Self::InvalidJson { offset, .. } = self { *offset } else { None },
            errors: if let Self::InvalidEvent(fields) | Self::InvalidEndpoint(fields) = self {
                Some(fields.iter().map(|f| Field { field: &f.field, message: &f.message }).collect())
            } else {
                None
            },
        };
        serde_json::to_writer(out, &body).expect("writing plain text into memory cannot fail");
    }
}

/// The reason phrase of a status.
pub fn reason_phrase(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        411 => "Length Required",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        417 => "Expectation Failed",
        422 => "Unprocessable Content",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        _ => "Unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_sorted_and_have_known_statuses() {
        assert!(Code::ALL.windows(2).all(|pair| pair[0].as_str() < pair[1].as_str()));
        for (position, code) in Code::ALL.into_iter().enumerate() {
            assert_eq!(code as usize, position);
            assert_ne!(reason_phrase(code.status()), "Unknown", "{code:?}");
        }
    }
}
