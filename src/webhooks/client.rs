//! The HTTP client for requests to receivers, which are untrusted.
//!
//! Owns the connections. Runs on the sender's runtime (one thread); any number of [`WebhookClient::send`] calls run
//! concurrently, bounded by the caller.
//!
//! - A route comes first: [`WebhookClient::pooled_route`] is an open connection; otherwise [`WebhookClient::resolve_route`]
//!   looks up the addresses. The lookup happens before the attempt's timeout starts, and a failure on this server's side
//!   postpones the delivery without counting an attempt.
//! - An attempt ends within the configured timeout, whatever the receiver or the proxy do. No request goes out later than
//!   that, even after the process was suspended.
//! - The client connects only where the [`TargetPolicy`] allows, and checks the very address that it connects to
//!   (`connect.rs`). It follows no redirect and takes no proxy from the environment.
//! - Memory per receiver is bounded: response head, bytes read and bytes kept of the body, idle connections (`pool.rs`) and
//!   lookups (`lookup.rs`). Responses are neither requested compressed nor decompressed.
//! - So is time: interim responses and HTTP/2 frames without content are counted (`stream.rs`).
//! - A request is written a second time only when a reused connection closed before any byte of a response, or when the
//!   receiver stated that it did not process the request; at most [`WEBHOOK_REFUSALS_MAX`] refusals per attempt.
//! - TLS negotiates HTTP/2; otherwise HTTP/1.1. A connection whose request timed out without a single received byte is not
//!   used again.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use hyper::header::{HeaderMap, RETRY_AFTER};
use hyper::{Response, Uri};
use tokio::time::{Instant, timeout_at};
use url::Url;

use millrace_base::event::OrgId;
use millrace_base::limits::{ANSWER_BODY_SHOWN_BYTES_MAX, WEBHOOK_REFUSALS_MAX};

use self::connect::{Connector, ResolvedTarget};
use self::failure::RetrySafety;
use self::lookup::LookupCache;
use self::pool::{ConnectGate, Origin, Pool, PooledConnection};
use self::proxy::Proxy;
use crate::delivery::outcome::{self, AttemptError, ErrorClass, Outcome, ReceiverResponse};
use crate::endpoint::target_policy::TargetPolicy;

mod connect;
mod connection;
mod failure;
mod lookup;
mod lookup_slots;
mod pool;
mod proxy;
mod stream;
mod system_resolver;
pub mod tls;

pub use self::lookup::{Resolve, ResolvedName, Unresolved};
pub use self::system_resolver::{ResolverFiles, SystemResolver};

/// The root certificates that are trusted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TrustRoots {
    /// Mozilla's, compiled in.
    #[default]
    Webpki,
    /// The operating system's.
    System,
}

/// The settings of the client.
#[derive(Clone)]
pub struct ClientConfig {
    /// Which targets are allowed.
    pub policy: TargetPolicy,
    /// The longest duration of an attempt, from connecting to the end of the response.
    pub timeout: Duration,
    /// The longest time for TCP, proxy and TLS.
    pub connect_timeout: Duration,
    /// The most bytes read of a response body. Past it the connection is closed and the response counts as complete.
    pub response_bytes_max: usize,
    /// The trusted roots.
    pub roots: TrustRoots,
    /// A PEM file of certificates that are trusted in addition.
    pub ca_file: Option<PathBuf>,
    /// `http://[user:password@]host:port` of a CONNECT proxy for all requests.
    pub proxy: Option<Url>,
    /// The system files that configure name resolution.
    pub resolver_files: ResolverFiles,
}

impl fmt::Debug for ClientConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientConfig")
            .field("policy", &self.policy)
            .field("timeout", &self.timeout)
            .field("connect_timeout", &self.connect_timeout)
            .field("response_bytes_max", &self.response_bytes_max)
            .field("roots", &self.roots)
            .field("ca_file", &self.ca_file)
            // It may hold a password.
            .field("proxy", &self.proxy.as_ref().map(|_| "***"))
            .field("resolver_files", &self.resolver_files)
            .finish()
    }
}

/// A POST request.
#[derive(Clone, Debug)]
pub struct Request {
    /// Where to: [`crate::endpoint::target_policy::request_uri`] of the endpoint's URL, which is made once and cheap to clone.
    pub url: Uri,
    /// All headers except `Host` and `Content-Length`.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

/// How an attempt reaches the receiver: an open connection, or addresses to connect to.
pub struct Route {
    origin: Origin,
    org: OrgId,
    kind: RouteKind,
}

enum RouteKind {
    Connection(PooledConnection),
    Target(ResolvedTarget),
}

/// Why there is no response.
#[derive(Debug)]
pub enum Unsent {
    /// The endpoint failed: this counts as an attempt.
    Failed(AttemptError),
    /// This server could not send, which says nothing about the endpoint. Gives the reason.
    Postponed(&'static str),
}

impl From<AttemptError> for Unsent {
    fn from(error: AttemptError) -> Self {
        Self::Failed(error)
    }
}

impl From<ErrorClass> for Unsent {
    fn from(class: ErrorClass) -> Self {
        Self::Failed(class.into())
    }
}

/// The client with its connections. Used from one tokio runtime; clones share the connections.
#[derive(Clone)]
pub struct WebhookClient {
    connector: Arc<Connector>,
    pool: Pool,
    timeout: Duration,
    response_bytes_max: usize,
}

impl WebhookClient {
    /// Creates a client that resolves names as the system's files say. Reads the certificates.
    ///
    /// # Errors
    /// What is wrong with the certificates or the proxy.
    pub fn new(config: ClientConfig) -> Result<Self, String> {
        let resolver = Arc::new(SystemResolver::new(config.resolver_files.clone()));
        Self::with_resolver(config, resolver)
    }

    /// As [`WebhookClient::new`], with another resolver.
    ///
    /// # Errors
    /// As [`WebhookClient::new`].
    pub fn with_resolver(config: ClientConfig, resolver: Arc<dyn Resolve>) -> Result<Self, String> {
        let connector = Connector {
            policy: config.policy,
            lookups: LookupCache::new(resolver),
            proxy: config.proxy.as_ref().map(Proxy::parse).transpose()?,
            tls: Arc::new(tls::client_config(config.roots, config.ca_file.as_deref())?),
            timeout: config.connect_timeout,
        };
        Ok(Self {
            connector: Arc::new(connector),
            pool: Pool::default(),
            timeout: config.timeout,
            response_bytes_max: config.response_bytes_max,
        })
    }

    /// A route over an open connection, if there is one, for a delivery of `org`.
    pub fn pooled_route(&self, url: &Uri, org: OrgId) -> Option<Route> {
        let origin = Origin::of(url)?;
        let kind = RouteKind::Connection(self.pool.take(&origin, false)?);
        Some(Route { origin, org, kind })
    }

    /// A route to a new connection, for a delivery of `org`: resolves the host name. Ends by `until`, and within
    /// [`WEBHOOK_LOOKUP_WAIT`](millrace_base::limits::WEBHOOK_LOOKUP_WAIT).
    ///
    /// # Errors
    /// [`Unsent::Failed`] if the name has no allowed address; [`Unsent::Postponed`] if that could not be found out.
    pub async fn resolve_route(&self, url: &Uri, org: OrgId, until: std::time::Instant) -> Result<Route, Unsent> {
        let origin = Origin::of(url).ok_or(ErrorClass::AddressNotAllowed)?;
        let kind = RouteKind::Target(self.connector.target(url, org, until.into()).await?);
        Ok(Route { origin, org, kind })
    }

    /// Makes one attempt over `route`, which must be for the URL of `request`. Ends within the timeout, whatever happens.
    ///
    /// # Errors
    /// Why the attempt is postponed: the receiver has seen nothing of the request.
    pub async fn send(&self, route: Route, request: Request) -> Result<Outcome, &'static str> {
        let deadline = Instant::now() + self.timeout;
        match self.exchange(route, &request, deadline).await {
            Ok((connection, response)) => Ok(self.read_response(connection, response, deadline).await),
            Err(Unsent::Failed(error)) => Ok(Outcome { response: None, error: Some(error) }),
            Err(Unsent::Postponed(why)) => Err(why),
        }
    }

    /// Sends the request and waits for the response head. If a reused connection turns out to be closed, the request is sent
    /// once more on a new one. A request that the receiver refused unprocessed is sent again at once.
    async fn exchange(
        &self,
        route: Route,
        request: &Request,
        deadline: Instant,
    ) -> Result<(PooledConnection, Response<Incoming>), Unsent> {
        let Route { origin, org, kind } = route;
        let (mut kind, mut refusals, mut again) = (Some(kind), 0, false);
        loop {
            // Connecting is a large and rare future: boxed, it does not enlarge every task.
            let mut connection = match kind.take() {
                Some(RouteKind::Connection(connection)) => connection,
                Some(RouteKind::Target(target)) => Box::pin(self.open(&origin, target, false, deadline)).await?,
                None => Box::pin(self.open_fresh(&origin, &request.url, org, deadline)).await?,
            };
            // The process or this thread was suspended: another server may be sending this delivery by now.
            if Instant::now() >= deadline {
                connection.keep();
                return Err(Unsent::Postponed("this server was held up for longer than an attempt may take"));
            }
            match timeout_at(deadline, connection.send(request)).await {
                Ok(Ok(response)) => return Ok((connection, response)),
                Ok(Err(failure)) => {
                    connection.retire();
                    match failure.retry {
                        RetrySafety::Safe if refusals < WEBHOOK_REFUSALS_MAX => refusals += 1,
                        RetrySafety::IfReused if connection.is_reused() && !again => again = true,
                        _ => return Err(failure.error.into()),
                    }
                }
                Err(_) => {
                    connection.retire_if_silent();
                    return Err(ErrorClass::Timeout.into());
                }
            }
        }
    }

    /// A connection that was not idle before.
    async fn open_fresh(
        &self,
        origin: &Origin,
        url: &Uri,
        org: OrgId,
        deadline: Instant,
    ) -> Result<PooledConnection, Unsent> {
        if let Some(connection) = self.pool.take(origin, true) {
            return Ok(connection);
        }
        let target = self.connector.target(url, org, deadline).await?;
        Ok(self.open(origin, target, true, deadline).await?)
    }

    /// A new connection, or one that another attempt has opened meanwhile.
    async fn open(
        &self,
        origin: &Origin,
        target: ResolvedTarget,
        fresh: bool,
        deadline: Instant,
    ) -> Result<PooledConnection, AttemptError> {
        if let Some(connection) = self.pool.take(origin, fresh) {
            return Ok(connection);
        }
        let _guard = match self.pool.gate(origin) {
            ConnectGate::NotNeeded => None,
            ConnectGate::Holder(guard) => Some(guard),
            ConnectGate::Wait(mut open) => {
                let deadline = deadline.min(Instant::now() + self.connector.timeout);
                if timeout_at(deadline, open.changed()).await.is_err() {
                    return Err(ErrorClass::ConnectTimeout.into());
                }
                if let Some(connection) = self.pool.take(origin, fresh) {
                    return Ok(connection);
                }
                None
            }
        };
        let stream = self.connector.connect(&target, deadline).await?;
        // Over HTTP/2 this waits for the receiver's settings, within the attempt's deadline.
        let started = timeout_at(deadline, connection::handshake(stream)).await;
        let (sender, monitor) = started.map_err(|_| AttemptError::from(ErrorClass::Timeout))??;
        Ok(self.pool.opened(origin, sender, monitor))
    }

    /// Reads the response body; only its beginning is kept.
    async fn read_response(
        &self,
        connection: PooledConnection,
        response: Response<Incoming>,
        deadline: Instant,
    ) -> Outcome {
        let (head, mut body) = response.into_parts();
        let mut shown = Vec::new();
        let error = match timeout_at(deadline, drain(&mut body, &mut shown, self.response_bytes_max)).await {
            Ok(Ok(Drained::Whole)) => {
                connection.keep();
                None
            }
            Ok(Ok(Drained::Cut)) => None,
            Ok(Err(_)) if connection.is_over_limit() => Some(ErrorClass::InvalidResponse.into()),
            Ok(Err(error)) => Some(failure::attempt_error(&error)),
            Err(_) => Some(ErrorClass::Timeout.into()),
        };
        let retry_after = head.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        let response = ReceiverResponse {
            status: head.status.as_u16(),
            retry_after: retry_after.and_then(|text| outcome::retry_after(text, SystemTime::now())),
            body: outcome::body_excerpt(&shown),
        };
        Outcome { response: Some(response), error }
    }
}

enum Drained {
    Whole,
    /// The body is longer than the limit.
    Cut,
}

/// Reads past the excerpt so that the connection can be reused, unless the announced length exceeds the limit anyway.
async fn drain(body: &mut Incoming, shown: &mut Vec<u8>, bytes_max: usize) -> Result<Drained, hyper::Error> {
    let announced = body.size_hint().lower();
    let bytes_max = if announced > bytes_max as u64 { ANSWER_BODY_SHOWN_BYTES_MAX.min(bytes_max) } else { bytes_max };
    let mut read = 0;
    while !body.is_end_stream() {
        if read >= bytes_max {
            return Ok(Drained::Cut);
        }
        let Some(frame) = body.frame().await else { break };
        let Ok(data) = frame?.into_data() else { continue };
        let room = ANSWER_BODY_SHOWN_BYTES_MAX - shown.len();
        shown.extend_from_slice(&data[..data.len().min(room)]);
        read += data.len();
    }
    Ok(Drained::Whole)
}
