//! Classifies connection errors by their types, never by their text.

use std::error::Error;
use std::io;

use super::tls;
use crate::delivery::outcome::{AttemptError, ErrorClass};

/// Why there is no response.
pub struct SendFailure {
    pub error: AttemptError,
    pub retry: RetrySafety,
}

/// Whether the request may be sent again: depends on whether the receiver may have processed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetrySafety {
    /// The receiver may have processed it.
    Unsafe,
    /// Nothing was sent, or the connection closed before any byte came back. Safe on a reused connection, which the receiver
    /// was probably closing already.
    IfReused,
    /// The receiver states that it did not process it.
    Safe,
}

/// The error that is recorded for the attempt.
pub fn attempt_error(error: &hyper::Error) -> AttemptError {
    let class = class_of(error);
    let tls = causes(error).find_map(|cause| cause.downcast_ref::<io::Error>().and_then(tls::explain));
    match tls {
        Some(detail) if class == ErrorClass::TlsFailed => AttemptError::new(class, detail),
        _ => class.into(),
    }
}

fn class_of(error: &hyper::Error) -> ErrorClass {
    if error.is_parse() {
        return ErrorClass::InvalidResponse;
    }
    for cause in causes(error) {
        if let Some(error) = cause.downcast_ref::<h2::Error>() {
            // An error that this side detected, as opposed to one that the receiver sent.
            let ours = error.is_library() && !error.is_io();
            return if ours { ErrorClass::InvalidResponse } else { ErrorClass::ConnectionClosed };
        }
        if let Some(error) = cause.downcast_ref::<io::Error>() {
            return class_of_io(error);
        }
    }
    ErrorClass::ConnectionClosed
}

fn class_of_io(error: &io::Error) -> ErrorClass {
    if error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()).is_some() {
        return ErrorClass::TlsFailed;
    }
    match error.kind() {
        // hyper reports invalid chunks with these kinds.
        io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => ErrorClass::InvalidResponse,
        _ => ErrorClass::ConnectionClosed,
    }
}

/// Whether the receiver states that it did not process an HTTP/2 request (RFC 9113, section 8.7): it refused the stream, or
/// it sent a GOAWAY that names an earlier stream as the last one, with any error code. `h2` reports the error of a GOAWAY
/// only on such streams.
pub fn is_refusal(error: &hyper::Error) -> bool {
    causes(error)
        .filter_map(|cause| cause.downcast_ref::<h2::Error>())
        .any(|error| error.is_remote() && (error.is_go_away() || error.reason() == Some(h2::Reason::REFUSED_STREAM)))
}

fn causes(error: &hyper::Error) -> impl Iterator<Item = &(dyn Error + 'static)> {
    std::iter::successors(error.source(), |&cause| cause.source())
}
