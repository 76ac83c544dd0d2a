//! Makes requests to strangers.
//!
//! Owns the connections to receivers; runs on the sender's runtime (one thread), where any number of [`WebhookClient::send`]s
//! run beside each other; how many is the caller's bound.
//!
//! - [`WebhookClient::pooled_route`] comes first, a connection that is open; else [`WebhookClient::resolve_route`], the addresses of
//!   the name. What that waits for is on this side, so its time is none of the attempt's, and what goes wrong on this side is
//!   no attempt at all.
//! - An attempt ends within the configured timeout, whatever the receiver or the proxy do; no request goes out after that,
//!   even where the process stood still.
//! - It goes where the [`TargetPolicy`] allows, checked on the very address that is connected to (`connect.rs`), and
//!   nowhere else: redirects are answers, and no proxy is taken from the environment.
//! - Receivers cost bounded memory: the answer's head, what is read of its body, and what is kept of that are limits, and
//!   so are idle connections (`pool.rs`) and lookups (`lookup.rs`). Nothing is decompressed, or asked for compressed.
//! - And bounded time: interim answers are counted, and so are HTTP/2 frames that bring nothing (`stream.rs`).
//! - A request is written twice only where the first connection had been idle and closed without a byte of an answer, or
//!   the receiver said that it had not begun with it: then at once, at most [`WEBHOOK_REFUSALS_MAX`] times.
//! - HTTP/2 where TLS negotiates it, else HTTP/1.1. A connection on which a request met nothing but silence is not used
//!   again, so that one which leads nowhere costs its attempts and not those to come.

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

/// Which public certificate authorities are trusted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TrustRoots {
    /// Mozilla's, as built in.
    #[default]
    Webpki,
    /// The operating system's.
    System,
}

/// How requests are made.
#[derive(Clone)]
pub struct ClientConfig {
    /// Where they may go.
    pub policy: TargetPolicy,
    /// Until the end of the answer, connecting included.
    pub timeout: Duration,
    /// For name, TCP, proxy and TLS.
    pub connect_timeout: Duration,
    /// Most that is read of an answer's body, in bytes; past it the connection is closed, and the answer stands.
    pub response_bytes_max: usize,
    /// Who is trusted.
    pub roots: TrustRoots,
    /// Certificates (PEM) that are trusted beside them.
    pub ca_file: Option<PathBuf>,
    /// `http://[user:password@]host:port` of a CONNECT proxy that all requests go through.
    pub proxy: Option<Url>,
    /// Where it says how names are looked up.
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

/// One request: a POST.
#[derive(Clone, Debug)]
pub struct Request {
    /// Where to: [`crate::endpoint::target_policy::request_uri`] of the endpoint's URL, which is made once and cheap to clone.
    pub url: Uri,
    /// All headers but `Host` and `Content-Length`.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

/// What an attempt begins with.
pub struct Route {
    origin: Origin,
    org: OrgId,
    kind: RouteKind,
}

enum RouteKind {
    Connection(PooledConnection),
    Target(ResolvedTarget),
}

/// Why a request was not sent.
#[derive(Debug)]
pub enum Unsent {
    /// Because of the endpoint: an attempt like another.
    Failed(AttemptError),
    /// Because of something on this side, which says nothing about the endpoint.
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

/// Keeps connections; used from one tokio runtime. Clones share them.
#[derive(Clone)]
pub struct WebhookClient {
    connector: Arc<Connector>,
    pool: Pool,
    timeout: Duration,
    response_bytes_max: usize,
}

impl WebhookClient {
    /// Reads the certificates. Names are looked up as the system's files say.
    ///
    /// # Errors
    /// What is wrong with them, or with the proxy.
    pub fn new(config: ClientConfig) -> Result<Self, String> {
        let resolver = Arc::new(SystemResolver::new(config.resolver_files.clone()));
        Self::with_resolver(config, resolver)
    }

    /// The same with another source of addresses.
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

    /// Ready for an attempt for something of `org` where a connection is open.
    pub fn pooled_route(&self, url: &Uri, org: OrgId) -> Option<Route> {
        let origin = Origin::of(url)?;
        let kind = RouteKind::Connection(self.pool.take(&origin, false)?);
        Some(Route { origin, org, kind })
    }

    /// Gets ready for an attempt for something of `org` where none is: finds out where to open one. Ends by `until`, and
    /// within [`WEBHOOK_LOOKUP_WAIT`](millrace_base::limits::WEBHOOK_LOOKUP_WAIT).
    ///
    /// # Errors
    /// That there is nowhere to send it, which is an attempt that failed; or that it is put off.
    pub async fn resolve_route(&self, url: &Uri, org: OrgId, until: std::time::Instant) -> Result<Route, Unsent> {
        let origin = Origin::of(url).ok_or(ErrorClass::AddressNotAllowed)?;
        let kind = RouteKind::Target(self.connector.target(url, org, until.into()).await?);
        Ok(Route { origin, org, kind })
    }

    /// Makes one attempt, at the URL that it was prepared for; ends within the timeout, whatever happens.
    ///
    /// # Errors
    /// Why it is put off: the receiver has seen nothing of it.
    pub async fn send(&self, route: Route, request: Request) -> Result<Outcome, &'static str> {
        let deadline = Instant::now() + self.timeout;
        match self.exchange(route, &request, deadline).await {
            Ok((connection, response)) => Ok(self.read_response(connection, response, deadline).await),
            Err(Unsent::Failed(error)) => Ok(Outcome { answer: None, error: Some(error) }),
            Err(Unsent::Postponed(why)) => Err(why),
        }
    }

    /// Sends the request and waits for the answer's head. A connection that had been used before may have been closed
    /// meanwhile; then the request goes out once more, on a new one. One that the receiver refused to begin with goes out
    /// again at once.
    async fn exchange(
        &self,
        route: Route,
        request: &Request,
        deadline: Instant,
    ) -> Result<(PooledConnection, Response<Incoming>), Unsent> {
        let Route { origin, org, kind } = route;
        let (mut kind, mut refusals, mut again) = (Some(kind), 0, false);
        loop {
            // Opening one is seldom and large: in a box, it takes no room in the others' tasks.
            let mut connection = match kind.take() {
                Some(RouteKind::Connection(connection)) => connection,
                Some(RouteKind::Target(target)) => Box::pin(self.open(&origin, target, false, deadline)).await?,
                None => Box::pin(self.open_fresh(&origin, &request.url, org, deadline)).await?,
            };
            // The process stood still, or this thread did: what goes out now may be sent by somebody else as well.
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

    /// A connection that has not been idle.
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

    /// A new connection, or one that is there by now.
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
        // An HTTP/2 receiver's settings are waited for: within the attempt's time, too.
        let started = timeout_at(deadline, connection::handshake(stream)).await;
        let (sender, monitor) = started.map_err(|_| AttemptError::from(ErrorClass::Timeout))??;
        Ok(self.pool.opened(origin, sender, monitor))
    }

    /// Reads the body, of which only the beginning is kept.
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
        let answer = ReceiverResponse {
            status: head.status.as_u16(),
            retry_after: retry_after.and_then(|text| outcome::retry_after(text, SystemTime::now())),
            body: outcome::body_excerpt(&shown),
        };
        Outcome { answer: Some(answer), error }
    }
}

enum Drained {
    Whole,
    /// There was more than is read.
    Cut,
}

/// Reads on behind what is shown, so that the connection can be used again; not where the receiver announces more than
/// would be read.
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
