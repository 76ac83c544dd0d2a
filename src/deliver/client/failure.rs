//! What went wrong on a connection, told by types and never by text.

use std::error::Error;
use std::io;

use crate::deliver::outcome::ErrorClass;

/// Why no answer came.
pub struct Failure {
    pub class: ErrorClass,
    /// The receiver has not begun with the request, as far as can be told: sending it again is no second request.
    pub untouched: bool,
}

/// As attempts show it.
pub fn class_of(error: &hyper::Error) -> ErrorClass {
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

/// Whether the receiver says that it has not begun with an HTTP/2 request: it shut the connection down first, or
/// refused the stream.
pub fn is_refusal(error: &hyper::Error) -> bool {
    causes(error).filter_map(|cause| cause.downcast_ref::<h2::Error>()).any(|error| {
        error.is_remote()
            && (error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR)
                || error.reason() == Some(h2::Reason::REFUSED_STREAM))
    })
}

fn causes(error: &hyper::Error) -> impl Iterator<Item = &(dyn Error + 'static)> {
    std::iter::successors(error.source(), |&cause| cause.source())
}
