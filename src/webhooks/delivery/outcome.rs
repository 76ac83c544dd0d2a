//! What came of an attempt, and what that means. Pure; made by the client, judged by the sender.
//!
//! Only a complete 2xx is a delivery. A redirect is an answer like any other that is not 2xx: it is never followed, its
//! status is what the attempt shows, and it is tried again, because the owner may mend it. An answer that breaks off
//! proves nothing, whatever its status: it is tried again, and a receiver that had meant yes sees the event twice.
//!
//! What the receiver says is bounded before it is kept: [`limits::ANSWER_BODY_SHOWN_BYTES_MAX`] of its body.

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use millrace_base::limits;

/// What went wrong, where it was not the receiver's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorClass {
    /// The URL, or an address its name has, is not allowed.
    AddressNotAllowed,
    /// The name has no address.
    DnsFailed,
    /// Nobody listens there.
    ConnectionRefused,
    /// No connection in time: name, TCP, proxy and TLS together.
    ConnectTimeout,
    /// Any other failure to connect, the proxy's included.
    ConnectFailed,
    /// The certificate is not trusted, or for another host, or TLS failed otherwise.
    TlsFailed,
    /// Connected, but no complete answer in time.
    Timeout,
    /// The connection ended before the answer did.
    ConnectionClosed,
    /// What came is not HTTP, or over its limits.
    InvalidResponse,
    /// The endpoint's secret cannot be opened with the keys this server has, so nothing can be signed.
    SecretUnavailable,
    /// This server failed, not the receiver: a bug.
    InternalError,
}

impl ErrorClass {
    /// As attempts show it.
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

/// What went wrong, and more of it than the class says, where more is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptError {
    /// The word for it.
    pub class: ErrorClass,
    /// A few words in English.
    pub detail: Option<Cow<'static, str>>,
}

impl From<ErrorClass> for AttemptError {
    fn from(class: ErrorClass) -> Self {
        Self { class, detail: None }
    }
}

impl AttemptError {
    /// With the detail, on one line and of at most [`limits::ERROR_DETAIL_BYTES_MAX`] bytes: part of it may be the receiver's
    /// own words.
    pub fn new(class: ErrorClass, detail: impl Into<Cow<'static, str>>) -> Self {
        let detail = detail.into();
        let is_fine = detail.len() <= limits::ERROR_DETAIL_BYTES_MAX && !detail.chars().any(char::is_control);
        let detail = if is_fine { detail } else { shortened(&detail).into() };
        Self { class, detail: Some(detail) }
    }

    /// As an attempt keeps it: the word, and the detail behind a colon.
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

/// What [`AttemptError::to_recorded`] made, apart again: the word and the detail.
pub fn split_recorded(recorded: &str) -> (&str, Option<&str>) {
    recorded.split_once(": ").map_or((recorded, None), |(word, detail)| (word, Some(detail)))
}

/// The receiver's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceiverResponse {
    /// HTTP status.
    pub status: u16,
    /// `Retry-After`, as a pause from now.
    pub retry_after: Option<Duration>,
    /// The body's first bytes, as text.
    pub body: String,
}

/// What came of an attempt. Both where the answer began and did not end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What the receiver said.
    pub answer: Option<ReceiverResponse>,
    /// What went wrong.
    pub error: Option<AttemptError>,
}

/// What an outcome means for the delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// 2xx, to its end.
    Delivered,
    /// Anything else: again, not before this pause.
    Retry(Option<Duration>),
    /// 410: the endpoint wants nothing any more.
    Gone,
    /// The target is not allowed.
    Blocked,
}

impl Outcome {
    /// Whether what went wrong is on this side, and says nothing about the endpoint.
    pub fn is_internal_error(&self) -> bool {
        self.error.as_ref().is_some_and(|trouble| trouble.class == ErrorClass::InternalError)
    }

    /// What follows.
    ///
    /// `Retry-After` is heard on every answer that is not a delivery, not only on 429 and 503: whoever writes it means
    /// it.
    pub fn verdict(&self) -> Verdict {
        match (&self.answer, self.error.as_ref().map(|trouble| trouble.class)) {
            (_, Some(ErrorClass::AddressNotAllowed)) => Verdict::Blocked,
            (Some(answer), None) if (200..300).contains(&answer.status) => Verdict::Delivered,
            (Some(answer), None) if answer.status == 410 => Verdict::Gone,
            (answer, _) => Verdict::Retry(answer.as_ref().and_then(|answer| answer.retry_after)),
        }
    }
}

/// Reads `Retry-After`, seconds or a date, as a pause from `now`; `None` where it is neither. A date that has passed is
/// no pause.
pub fn retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim_matches([' ', '\t']);
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // More seconds than fit are for ever; the schedule caps both.
        return Some(text.parse().map_or(Duration::MAX, Duration::from_secs));
    }
    let at = httpdate::parse_http_date(text).ok()?;
    Some(at.duration_since(now).unwrap_or_default())
}

/// What is kept of a body, given its beginning: at most [`limits::ANSWER_BODY_SHOWN_BYTES_MAX`] bytes of text, cut
/// between characters. What is not UTF-8 becomes U+FFFD; NUL is left out, because Postgres' `text` does not take it.
pub fn body_excerpt(bytes: &[u8]) -> String {
    let bytes = &bytes[..bytes.len().min(limits::ANSWER_BODY_SHOWN_BYTES_MAX)];
    // A character that the end cuts through is not wrong, only unfinished: left out.
    let last = bytes.utf8_chunks().last().map_or(&[][..], |chunk| chunk.invalid());
    let is_unfinished = std::str::from_utf8(last).is_err_and(|error| error.error_len().is_none());
    let whole = if is_unfinished { &bytes[..bytes.len() - last.len()] } else { bytes };
    let mut shown = String::with_capacity(bytes.len());
    for character in String::from_utf8_lossy(whole).chars().filter(|character| *character != '\0') {
        // A replacement is longer than the byte it stands for, so the text can outgrow the bytes.
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
        let answer = status.map(|status| ReceiverResponse { status, retry_after, body: String::new() });
        Outcome { answer, error: error.map(AttemptError::from) }
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
            let trouble = AttemptError::new(ErrorClass::TlsFailed, given.to_owned());
            let recorded = trouble.to_recorded();
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
            // Cut by whoever read it.
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
