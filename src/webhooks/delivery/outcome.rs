//! The outcome of an attempt and what it means for the delivery. Pure: the client builds outcomes, the sender acts on them.
//!
//! Only a complete 2xx response is a delivery. A redirect is not followed: its status is recorded and the delivery is
//! retried, because the owner may fix the URL. A response that breaks off proves nothing, whatever its status: the delivery
//! is retried, and a receiver that did process the event gets it twice.
//!
//! Of the response body at most [`limits::ANSWER_BODY_SHOWN_BYTES_MAX`] are kept.

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use millrace_base::limits;

/// Why an attempt failed, other than by the status of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorClass {
    /// The URL or an address of its host is not allowed.
    AddressNotAllowed,
    /// The host name has no address.
    DnsFailed,
    /// Nothing listens at the address.
    ConnectionRefused,
    /// No connection in time: TCP, proxy and TLS together.
    ConnectTimeout,
    /// Any other failure to connect, including the proxy's.
    ConnectFailed,
    /// The certificate is not trusted or is for another host, or TLS failed otherwise.
    TlsFailed,
    /// Connected, but no complete response in time.
    Timeout,
    /// The connection closed before the response was complete.
    ConnectionClosed,
    /// The response is not HTTP, or exceeds a limit.
    InvalidResponse,
    /// The endpoint's secret cannot be opened with this server's keys, so nothing can be signed.
    SecretUnavailable,
    /// This server failed, not the receiver: a bug.
    InternalError,
}

impl ErrorClass {
    /// The code in recorded attempts.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AddressNotAllowed => "address_not_allowed",
            Self::DnsFailed => "dns_failed",
            Self::ConnectionRefused => "connection_refused",
            Self::ConnectTimeout => "connect_timeout",
            Self::ConnectFailed => "connect_failed",
            Self::TlsFailed => "tls_failed",
            Self::Timeout => "timeout",
            Self::ConnectionClosed => "connection_closed",
            Self::InvalidResponse => "invalid_response",
            Self::SecretUnavailable => "secret_unavailable",
            Self::InternalError => "internal_error",
        }
    }
}

/// Why an attempt failed, with a detail if more is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptError {
    /// The kind of failure.
    pub class: ErrorClass,
    /// A short explanation in English.
    pub detail: Option<Cow<'static, str>>,
}

impl From<ErrorClass> for AttemptError {
    fn from(class: ErrorClass) -> Self {
        Self { class, detail: None }
    }
}

impl AttemptError {
    /// Cuts `detail` to one line of at most [`limits::ERROR_DETAIL_BYTES_MAX`] bytes: it may contain text from the receiver.
    pub fn new(class: ErrorClass, detail: impl Into<Cow<'static, str>>) -> Self {
        let detail = detail.into();
        let is_fine = detail.len() <= limits::ERROR_DETAIL_BYTES_MAX && !detail.chars().any(char::is_control);
        let detail = if is_fine { detail } else { shortened(&detail).into() };
        Self { class, detail: Some(detail) }
    }

    /// The text recorded with an attempt: the code, then a colon and the detail if there is one.
    pub fn to_recorded(&self) -> String {
        match &self.detail {
            Some(detail) => format!("{}: {detail}", self.class.as_str()),
            None => self.class.as_str().to_owned(),
        }
    }
}

fn shortened(text: &str) -> String {
    let mut short = String::new();
    for character in text.chars().filter(|character| !character.is_control()) {
        if short.len() + character.len_utf8() > limits::ERROR_DETAIL_BYTES_MAX {
            break;
        }
        short.push(character);
    }
    short
}

/// Splits the text of [`AttemptError::to_recorded`] into the code and the detail.
pub fn split_recorded(recorded: &str) -> (&str, Option<&str>) {
    recorded.split_once(": ").map_or((recorded, None), |(word, detail)| (word, Some(detail)))
}

/// The receiver's response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceiverResponse {
    /// HTTP status.
    pub status: u16,
    /// `Retry-After`, as a pause from when the response arrived.
    pub retry_after: Option<Duration>,
    /// The beginning of the body, as text.
    pub body: String,
}

/// The outcome of an attempt. Has both a response and an error if the response broke off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The response, if its head arrived.
    pub response: Option<ReceiverResponse>,
    /// The failure, if there was one.
    pub error: Option<AttemptError>,
}

/// What an outcome means for its delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A complete 2xx response.
    Delivered,
    /// Anything else: retry, at the earliest after this pause.
    Retry(Option<Duration>),
    /// 410 Gone: the endpoint wants no more events.
    Gone,
    /// The target policy does not allow the target.
    Blocked,
}

impl Outcome {
    /// Whether this server failed, which says nothing about the endpoint.
    pub fn is_internal_error(&self) -> bool {
        self.error.as_ref().is_some_and(|error| error.class == ErrorClass::InternalError)
    }

    /// What follows. `Retry-After` is respected on every response that is not a delivery, not only on 429 and 503.
    pub fn verdict(&self) -> Verdict {
        match (&self.response, self.error.as_ref().map(|error| error.class)) {
            (_, Some(ErrorClass::AddressNotAllowed)) => Verdict::Blocked,
            (Some(response), None) if (200..300).contains(&response.status) => Verdict::Delivered,
            (Some(response), None) if response.status == 410 => Verdict::Gone,
            (response, _) => Verdict::Retry(response.as_ref().and_then(|response| response.retry_after)),
        }
    }
}

/// Parses `Retry-After`, in seconds or as a date, into a pause from `now`. `None` if it is neither; zero for a past date.
pub fn retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim_matches([' ', '\t']);
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // A number that does not fit becomes the maximum; the schedule caps it.
        return Some(text.parse().map_or(Duration::MAX, Duration::from_secs));
    }
    let at = httpdate::parse_http_date(text).ok()?;
    Some(at.duration_since(now).unwrap_or_default())
}

/// The text that is kept of a body, given its first bytes: at most [`limits::ANSWER_BODY_SHOWN_BYTES_MAX`] bytes, cut
/// between characters. Invalid UTF-8 becomes U+FFFD; NUL is removed, because Postgres' `text` refuses it.
pub fn body_excerpt(bytes: &[u8]) -> String {
    let bytes = &bytes[..bytes.len().min(limits::ANSWER_BODY_SHOWN_BYTES_MAX)];
    // A character cut off at the end is incomplete, not invalid: drop it.
    let last = bytes.utf8_chunks().last().map_or(&[][..], |chunk| chunk.invalid());
    let is_unfinished = std::str::from_utf8(last).is_err_and(|error| error.error_len().is_none());
    let whole = if is_unfinished { &bytes[..bytes.len() - last.len()] } else { bytes };
    let mut shown = String::with_capacity(bytes.len());
    for character in String::from_utf8_lossy(whole).chars().filter(|character| *character != '\0') {
        // U+FFFD is longer than the byte that it replaces, so the text can be longer than the bytes.
        if shown.len() + character.len_utf8() > limits::ANSWER_BODY_SHOWN_BYTES_MAX {
            break;
        }
        shown.push(character);
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(status: Option<u16>, retry_after: Option<Duration>, error: Option<ErrorClass>) -> Outcome {
        let response = status.map(|status| ReceiverResponse { status, retry_after, body: String::new() });
        Outcome { response, error: error.map(AttemptError::from) }
    }

    #[test]
    fn verdicts() {
        let minute = Some(Duration::from_secs(60));
        let again = Verdict::Retry(None);
        for (status, error, verdict) in [
            (Some(200), None, Verdict::Delivered),
            (Some(204), None, Verdict::Delivered),
            (Some(299), None, Verdict::Delivered),
            (Some(199), None, again),
            (Some(300), None, again),
            (Some(302), None, again),
            (Some(308), None, again),
            (Some(400), None, again),
            (Some(404), None, again),
            (Some(409), None, again),
            (Some(410), None, Verdict::Gone),
            (Some(500), None, again),
            (Some(999), None, again),
            (Some(200), Some(ErrorClass::ConnectionClosed), again),
            (Some(200), Some(ErrorClass::Timeout), again),
            (Some(410), Some(ErrorClass::InvalidResponse), again),
            (None, Some(ErrorClass::AddressNotAllowed), Verdict::Blocked),
            (None, Some(ErrorClass::DnsFailed), again),
            (None, Some(ErrorClass::TlsFailed), again),
            (None, None, again),
        ] {
            assert_eq!(outcome(status, None, error).verdict(), verdict, "{status:?} {error:?}");
        }
        for status in [429, 503, 302, 500] {
            assert_eq!(outcome(Some(status), minute, None).verdict(), Verdict::Retry(minute), "{status}");
        }
        assert_eq!(outcome(Some(503), minute, Some(ErrorClass::Timeout)).verdict(), Verdict::Retry(minute));
        assert_eq!(outcome(Some(200), minute, None).verdict(), Verdict::Delivered);
        assert_eq!(outcome(Some(410), minute, None).verdict(), Verdict::Gone);
    }

    #[test]
    fn details_are_short_lines_and_come_apart_again() {
        let max = limits::ERROR_DETAIL_BYTES_MAX;
        for (given, kept) in [
            ("expired: in 2020", "expired: in 2020".to_owned()),
            ("a\0b\nc", "abc".to_owned()),
            (&"ü".repeat(max), "ü".repeat(max / 2)),
        ] {
            let error = AttemptError::new(ErrorClass::TlsFailed, given.to_owned());
            let recorded = error.to_recorded();
            assert_eq!(split_recorded(&recorded), ("tls_failed", Some(&*kept)));
        }
        assert_eq!(split_recorded(&AttemptError::from(ErrorClass::Timeout).to_recorded()), ("timeout", None));
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        // Sun, 06 Nov 1994 08:49:37 GMT.
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        for (text, pause) in [
            ("0", Some(0)),
            ("120", Some(120)),
            (" 007\t", Some(7)),
            ("18446744073709551615", Some(u64::MAX)),
            ("Sun, 06 Nov 1994 08:50:37 GMT", Some(60)),
            ("Sunday, 06-Nov-94 08:50:37 GMT", Some(60)),
            ("Sun Nov  6 08:50:37 1994", Some(60)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(0)),
            ("Sat, 05 Nov 1994 08:49:37 GMT", Some(0)),
            ("", None),
            (" ", None),
            ("-1", None),
            ("+1", None),
            ("1.5", None),
            ("1 2", None),
            ("0x10", None),
            ("٣", None),
            ("soon", None),
            ("Sun, 06 Nov 1994", None),
            ("Sun, 99 Nov 1994 08:49:37 GMT", None),
        ] {
            assert_eq!(retry_after(text, now), pause.map(Duration::from_secs), "{text:?}");
        }
        assert_eq!(retry_after(&"9".repeat(500), now), Some(Duration::MAX));
    }

    #[test]
    fn bodies_are_shown_as_text_and_cut_between_characters() {
        let max = limits::ANSWER_BODY_SHOWN_BYTES_MAX;
        for (bytes, shown) in [
            (&b""[..], ""),
            (b"ok", "ok"),
            ("grün".as_bytes(), "grün"),
            (b"a\0b\0", "ab"),
            (b"a\xffb", "a\u{fffd}b"),
            (b"\xf0\x9f\x92 x", "\u{fffd} x"),
            // Cut within a character.
            (b"a\xf0\x9f\x92", "a"),
            (b"a\xff\xc3", "a\u{fffd}"),
        ] {
            assert_eq!(body_excerpt(bytes), shown, "{bytes:?}");
        }
        assert_eq!(body_excerpt(&vec![b'a'; max + 1]), "a".repeat(max));
        assert_eq!(body_excerpt(format!("{}ü", "a".repeat(max - 1)).as_bytes()), "a".repeat(max - 1));
        assert_eq!(body_excerpt(format!("{}ü", "a".repeat(max - 2)).as_bytes()).len(), max);
        assert_eq!(body_excerpt(&vec![0xff; max]), "\u{fffd}".repeat(max / 3));
        assert_eq!(body_excerpt(&vec![0; 2 * max]), "");
    }

    proptest::proptest! {
        #[test]
        fn any_body_is_bounded_text(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..2048)) {
            let shown = body_excerpt(&bytes);
            proptest::prop_assert!(shown.len() <= limits::ANSWER_BODY_SHOWN_BYTES_MAX && !shown.contains('\0'));
        }

        #[test]
        fn any_retry_after_is_survived(text in ".*") {
            let _ = retry_after(&text, SystemTime::UNIX_EPOCH);
        }
    }
}
