//! A webhook receiver to start from: it believes nothing that is not signed, and does nothing twice.
//!
//!     WEBHOOK_SECRET=whsec_… cargo run --example receiver -- [ADDRESS:PORT]      (127.0.0.1:4000)
//!
//! Signatures are those of Standard Webhooks, so the libraries of that project do what [`verify`] does. Delivery is at
//! least once and in no order: a repeated event has the same `webhook-id`. Answer 2xx only when you are done with it, or
//! have it safe; everything else is delivered again.

use std::collections::{HashSet, VecDeque};
use std::convert::Infallible;
use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::header::HeaderMap;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use ring::hmac;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// The largest payload, 256 KiB, with what stands around it.
const BODY_BYTES_MAX: usize = 260 * 1024;
/// How far the sender's clock may be from ours; also how long a recorded request could be played again.
const TOLERANCE_SECONDS: u64 = 300;
/// Two are sent while one secret replaces another.
const SIGNATURES_MAX: usize = 4;
/// Events remembered, about 150 bytes each. Repeats come within days, so a real receiver keeps ids in its database, in
/// the transaction that does what the event asks for.
const REMEMBERED_MAX: usize = 100_000;
const CONNECTIONS_MAX: usize = 256;
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// Calls `handle` with the id and the body of every event, once.
pub struct Receiver<F> {
    key: hmac::Key,
    seen: Mutex<Seen>,
    handle: F,
}

/// The ids of the last events, and the order in which they are forgotten.
#[derive(Default)]
struct Seen {
    ids: HashSet<String>,
    order: VecDeque<String>,
}

impl Seen {
    fn is_new(&mut self, id: &str) -> bool {
        if !self.ids.insert(id.to_owned()) {
            return false;
        }
        self.order.push_back(id.to_owned());
        if self.order.len() > REMEMBERED_MAX {
            self.order.pop_front().map(|oldest| self.ids.remove(&oldest));
        }
        true
    }
}

impl<F: Fn(&str, &[u8]) + Send + Sync + 'static> Receiver<F> {
    /// `secret` as Millrace shows it once: `whsec_` and base64.
    pub fn new(secret: &str, handle: F) -> Result<Self, Box<dyn Error>> {
        let key = STANDARD.decode(secret.strip_prefix("whsec_").ok_or("a secret begins with whsec_")?)?;
        Ok(Self { key: hmac::Key::new(hmac::HMAC_SHA256, &key), seen: Mutex::default(), handle })
    }

    /// Serves for ever.
    pub async fn serve(self, listener: TcpListener) {
        let (receiver, places) = (Arc::new(self), Arc::new(Semaphore::new(CONNECTIONS_MAX)));
        loop {
            let place = Arc::clone(&places).acquire_owned().await.expect("it is never closed");
            let Ok((stream, _)) = listener.accept().await else {
                // Out of descriptors, most likely: some come back.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let receiver = Arc::clone(&receiver);
            tokio::spawn(async move {
                let answer = service_fn(|request| receiver.answer(request));
                let mut http = http1::Builder::new();
                http.timer(TokioTimer::new()).header_read_timeout(READ_TIMEOUT).max_buf_size(16 * 1024);
                // A connection that breaks is the sender's affair: it delivers again.
                let _ = http.serve_connection(TokioIo::new(stream), answer).await;
                drop(place);
            });
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        let (status, why) = self.receive(request).await.err().unwrap_or((StatusCode::NO_CONTENT, ""));
        let mut response = Response::new(Full::from(why));
        *response.status_mut() = status;
        Ok(response)
    }

    async fn receive(&self, request: Request<Incoming>) -> Result<(), (StatusCode, &'static str)> {
        if request.method() != Method::POST {
            return Err((StatusCode::METHOD_NOT_ALLOWED, "POST only"));
        }
        let (head, body) = request.into_parts();
        let body = tokio::time::timeout(READ_TIMEOUT, Limited::new(body, BODY_BYTES_MAX).collect()).await;
        let body = body.map_err(|_| (StatusCode::REQUEST_TIMEOUT, "the body takes too long"))?;
        let body = body.map_err(|_| (StatusCode::PAYLOAD_TOO_LARGE, "the body is too large, or cut off"))?.to_bytes();
        let now = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
        let id = verify(&self.key, &head.headers, &body, now)?;
        if self.seen.lock().unwrap_or_else(PoisonError::into_inner).is_new(id) {
            (self.handle)(id, &body);
        }
        Ok(())
    }
}

/// The event's id, where one of the signatures is made with `key` over exactly these bytes: verify before you parse.
fn verify<'a>(
    key: &hmac::Key,
    headers: &'a HeaderMap,
    body: &[u8],
    now: u64,
) -> Result<&'a str, (StatusCode, &'static str)> {
    let field = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let fields = (field("webhook-id"), field("webhook-timestamp"), field("webhook-signature"));
    let (Some(id), Some(timestamp), Some(signatures)) = fields else {
        return Err((StatusCode::BAD_REQUEST, "webhook-id, webhook-timestamp or webhook-signature is missing"));
    };
    let seconds: u64 =
        timestamp.parse().map_err(|_| (StatusCode::BAD_REQUEST, "webhook-timestamp is not a time in seconds"))?;
    let content = [id.as_bytes(), b".", timestamp.as_bytes(), b".", body].concat();
    // Compares in constant time.
    let is_ours = |signature: &str| {
        let code = signature.strip_prefix("v1,").and_then(|text| STANDARD.decode(text).ok());
        code.is_some_and(|code| hmac::verify(key, &content, &code).is_ok())
    };
    if !signatures.split(' ').take(SIGNATURES_MAX).any(is_ours) {
        return Err((StatusCode::UNAUTHORIZED, "no signature fits"));
    }
    if now.abs_diff(seconds) > TOLERANCE_SECONDS {
        return Err((StatusCode::UNAUTHORIZED, "webhook-timestamp is too far from now"));
    }
    Ok(id)
}

#[allow(clippy::print_stdout, reason = "what it is for")]
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let secret = std::env::var("WEBHOOK_SECRET").map_err(|_| "set WEBHOOK_SECRET to the endpoint's whsec_… secret")?;
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:4000".to_owned());
    let receiver = Receiver::new(&secret, |id, body| println!("{id} {}", String::from_utf8_lossy(body)))?;
    let listener = TcpListener::bind(&address).await?;
    println!("receiving webhooks on http://{}/", listener.local_addr()?);
    receiver.serve(listener).await;
    Ok(())
}
