//! What went wrong on a connection, told by types and never by text.

use std::error::Error;
use std::io;

use super::tls;
use crate::delivery::outcome::{AttemptError, ErrorClass};

/// Why no answer came.
pub struct SendFailure {
    pub error: AttemptError,
    pub retry: RetrySafety,
}

/// Whether the receiver has begun with the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetrySafety {
    /// It may have.
    Unsafe,
    /// It has not, as far as can be told: nothing was sent, or nothing came back before the connection ended.
    IfReused,
    /// It says that it has not.
    Safe,
}

/// As attempts show it.
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
            // What our side found wrong, and not what the receiver said.
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
        // How chunks that are none are reported.
        io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => ErrorClass::InvalidResponse,
        _ => ErrorClass::ConnectionClosed,
    }
}

/// Whether the receiver says that it has not begun with an HTTP/2 request (RFC 9113, section 8.7): it refused the stream,
/// or ended the connection and this stream is above the last one that it names, whatever it ended it for. `h2` gives the
/// error of a GOAWAY to those streams only.
pub fn is_refusal(error: &hyper::Error) -> bool {
    causes(error)
        .filter_map(|cause| cause.downcast_ref::<h2::Error>())
        .any(|error| error.is_remote() && (error.is_go_away() || error.reason() == Some(h2::Reason::REFUSED_STREAM)))
}

fn causes(error: &hyper::Error) -> impl Iterator<Item = &(dyn Error + 'static)> {
    std::iter::successors(error.source(), |&cause| cause.source())
}
