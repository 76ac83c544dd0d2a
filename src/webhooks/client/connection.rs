//! HTTP on one connection: the task that speaks the protocol, and the handle through which requests are sent.

use std::pin::pin;

use bytes::Bytes;
use futures_util::future::{Either, select};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper::ext::on_informational;
use hyper::header::{HOST, HeaderValue};
use hyper::{Method, Response, Uri, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::sync::oneshot;
use tokio::time::timeout;

use millrace_base::limits::{
    WEBHOOK_CONNECTION_WINDOW_BYTES, WEBHOOK_RESPONSE_HEAD_BYTES_MAX, WEBHOOK_RESPONSE_HEADERS_MAX,
    WEBHOOK_SETTLE_TIMEOUT, WEBHOOK_STREAM_WINDOW_BYTES, WEBHOOK_STREAMS_PER_CONNECTION_MAX,
};

use super::Request;
use super::failure::{RetrySafety, SendFailure, attempt_error, is_refusal};
use super::stream::{ReceiveMonitor, Stream};
use crate::delivery::outcome::{AttemptError, ErrorClass};

type Body = Full<Bytes>;
pub type Http1 = http1::SendRequest<Body>;
pub type Http2 = http2::SendRequest<Body>;

/// The handle through which requests are sent. The connection lives as long as this handle (over HTTP/2, also its clones)
/// and the requests in flight.
pub enum HttpSender {
    Http1(Http1),
    Http2(Http2),
}

/// Starts HTTP on the stream; its task ends with the connection. Over HTTP/2 this waits a short time for the receiver's
/// settings, because the limit of concurrent streams must be known before a second request.
pub async fn handshake(stream: Stream) -> Result<(HttpSender, ReceiveMonitor), AttemptError> {
    let monitor = stream.monitor();
    let sender = if stream.speaks_http2() {
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_max_send_streams(WEBHOOK_STREAMS_PER_CONNECTION_MAX)
            .initial_stream_window_size(WEBHOOK_STREAM_WINDOW_BYTES)
            .initial_connection_window_size(WEBHOOK_CONNECTION_WINDOW_BYTES)
            .max_header_list_size(WEBHOOK_RESPONSE_HEAD_BYTES_MAX as u32)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| attempt_error(&error))?;
        let (ends, ended) = oneshot::channel::<()>();
        // Errors of the connection reach the attempts that use it.
        tokio::spawn(async move {
            drop(connection.await);
            drop(ends);
        });
        let settings = pin!(monitor.settings());
        if let Ok(Either::Right(_)) = timeout(WEBHOOK_SETTLE_TIMEOUT, select(settings, ended)).await {
            // The connection ended before the SETTINGS frame with which HTTP/2 begins.
            let spoke = monitor.has_received();
            return Err(if spoke { ErrorClass::InvalidResponse } else { ErrorClass::ConnectionClosed }.into());
        }
        HttpSender::Http2(sender)
    } else {
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(WEBHOOK_RESPONSE_HEAD_BYTES_MAX)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| attempt_error(&error))?;
        tokio::spawn(async move { drop(connection.await) });
        HttpSender::Http1(sender)
    };
    Ok((sender, monitor))
}

// This is the parser's default; setting it explicitly would move its table from the stack to the heap.
const _: () = assert!(WEBHOOK_RESPONSE_HEADERS_MAX == 100);

/// Sends the request and waits for the response head.
pub async fn send_http1(
    sender: &mut Http1,
    request: &Request,
    monitor: &ReceiveMonitor,
) -> Result<Response<Incoming>, SendFailure> {
    monitor.reset();
    monitor.wait_for_head();
    let mut message = http1_request(request);
    let counts = monitor.clone();
    on_informational(&mut message, move |_| counts.interim_response());
    let sent = sender.try_send_request(message).await;
    monitor.head_came();
    match sent {
        // The interim response over the limit arrived together with the final one.
        Ok(_) if monitor.is_over_limit() => {
            Err(SendFailure { error: ErrorClass::InvalidResponse.into(), retry: RetrySafety::Unsafe })
        }
        Ok(response) => Ok(response),
        Err(error) => Err(failure(error, monitor)),
    }
}

/// As [`send_http1`]; other requests may be in flight on the connection.
pub async fn send_http2(
    sender: &mut Http2,
    request: &Request,
    monitor: &ReceiveMonitor,
) -> Result<Response<Incoming>, SendFailure> {
    monitor.reset();
    monitor.request_sent();
    sender.try_send_request(http2_request(request)).await.map_err(|error| failure(error, monitor))
}

fn failure(mut error: TrySendError<hyper::Request<Body>>, monitor: &ReceiveMonitor) -> SendFailure {
    let error_to_report = attempt_error(error.error());
    let unsent = error.take_message().is_some();
    let is_invalid = monitor.is_over_limit() || unsent && monitor.has_received() && !is_refusal(error.error());
    let in_silence = error_to_report.class == ErrorClass::ConnectionClosed && !monitor.has_received();
    let retry = if is_refusal(error.error()) {
        RetrySafety::Safe
    } else if unsent || in_silence && !monitor.is_over_limit() {
        RetrySafety::IfReused
    } else {
        RetrySafety::Unsafe
    };
    // The receiver spoke first, or sent too much without content.
    SendFailure { error: if is_invalid { ErrorClass::InvalidResponse.into() } else { error_to_report }, retry }
}

fn http1_request(request: &Request) -> hyper::Request<Body> {
    let target = request.url.path_and_query().cloned().map_or_else(Uri::default, Uri::from);
    let mut message = message(request, target, Version::HTTP_11);
    let host = request.url.authority().map_or("", |authority| authority.as_str());
    let host = HeaderValue::from_str(host).expect("an authority is visible ASCII");
    message.headers_mut().insert(HOST, host);
    message
}

fn http2_request(request: &Request) -> hyper::Request<Body> {
    message(request, request.url.clone(), Version::HTTP_2)
}

fn message(request: &Request, target: Uri, version: Version) -> hyper::Request<Body> {
    let mut message = hyper::Request::new(Full::new(request.body.clone()));
    *message.method_mut() = Method::POST;
    *message.uri_mut() = target;
    *message.version_mut() = version;
    *message.headers_mut() = request.headers.clone();
    message
}
