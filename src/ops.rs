//! OPS: `/health`, `/ready` and `/metrics` on a listener and a scheduler of their own, so that they answer when
//! every shard is saturated.
//!
//! `may_minihttp` runs here: one worker and one timer thread of `may`, one coroutine a connection. Nothing in a
//! coroutine yields but its socket; rendering the metrics is the deepest thing that runs on its stack.
//!
//! **For the loopback only.** `may_minihttp` has no timeouts and bounds neither the header it buffers (one that
//! never ends grows until memory does) nor the answers to pipelined requests whose client does not read. At
//! the descriptor limit its accept loop spins, and this listener with it, until one is free: boot keeps some in
//! reserve. Whoever reaches it must be trusted with that. More than 16 header fields, or bytes that are not
//! HTTP, close the connection without an answer. What can be bounded from here is: connections, by
//! [`limits::OPS_CONNECTIONS_MAX`].
//!
//! It would also panic on `Content-Length: abc`, and take the body of a request for the next one: so bodies are
//! never read here, and a request that brings one is the last its connection gets an answer to. A panic that
//! happens all the same is caught by `may` and ends its connection only.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use may::sync::Semphore;
use may_minihttp::{HttpService, HttpServiceFactory, Request, Response};
use socket2::{Domain, Socket, Type};

use crate::health::{HEALTH_BODY, Readiness};
use crate::limits;
use crate::metrics::Metrics;

/// What the listener answers from.
#[derive(Clone)]
pub struct OpsState {
    /// Rendered for `/metrics`.
    pub metrics: Arc<Metrics>,
    /// Asked at every `/ready`; must not block.
    pub ready: Arc<dyn Fn() -> Readiness + Send + Sync>,
}

/// Binds `addr` and serves it until the process ends. Returns the address, with the port the system chose
/// where `addr` has port 0. Call it from a thread that is not pinned: `may`'s threads inherit its cores.
///
/// Fails where the address is in use, also by another process's ops listener.
pub fn start(addr: SocketAddr, state: OpsState) -> io::Result<SocketAddr> {
    if !addr.ip().is_loopback() {
        tracing::warn!(
            %addr,
            "the ops listener is not on a loopback address: it bounds neither connections nor header size and has \
             no timeouts, so anyone who can reach it can exhaust this server's memory"
        );
    }
    configure_scheduler();
    let reserved = reserve(addr)?;
    let addr = reserved.local_addr()?.as_socket().expect("a TCP socket has an IP address");
    // The handle could only cancel the accept loop; dropping it leaves it running.
    drop(Connections { state, free: Arc::new(Semphore::new(limits::OPS_CONNECTIONS_MAX)) }.start(addr)?);
    Ok(addr)
}

/// Takes effect before the first coroutine only.
fn configure_scheduler() {
    let config = may::config();
    config
        .set_workers(limits::OPS_WORKERS)
        .set_stack_size(limits::OPS_STACK_BYTES / size_of::<usize>())
        .set_pool_capacity(limits::OPS_STACKS_POOLED);
    config.set_worker_pin(false);
    // How long an idle worker sleeps; what wakes it is an event. The default is 10 ms.
    config.set_timeout_ns(Duration::from_secs(1).as_nanos() as u64);
}

/// Holds the address until `may` listens on it. `may` binds with `SO_REUSEPORT`, so alone it would share a port
/// in use by another of our processes in silence; this socket is bound without, and so notices.
fn reserve(addr: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&addr.into())?;
    socket.set_reuse_port(true)?;
    Ok(socket)
}

/// Makes a service for each accepted connection.
struct Connections {
    state: OpsState,
    /// How many more may be open.
    free: Arc<Semphore>,
}

impl HttpServiceFactory for Connections {
    type Service = OpsService;

    /// Runs in the accept loop, so waiting here leaves the next connections in the backlog.
    fn new_service(&self, _id: usize) -> OpsService {
        self.free.wait();
        OpsService { state: self.state.clone(), open: Permit(Arc::clone(&self.free)), closing: false }
    }
}

/// One open connection; gives its place back however the connection ends.
struct Permit(Arc<Semphore>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.post();
    }
}

/// One connection.
struct OpsService {
    state: OpsState,
    #[expect(dead_code, reason = "held for its drop")]
    open: Permit,
    /// A request brought a body: what follows cannot be told from it.
    closing: bool,
}

const JSON: &str = "Content-Type: application/json";
const PROBLEM: &str = "Content-Type: application/problem+json";
// As `metrics::CONTENT_TYPE` says.
const METRICS_TEXT: &str = "Content-Type: text/plain; version=0.0.4; charset=utf-8";

impl HttpService for OpsService {
    fn call(&mut self, request: Request, response: &mut Response) -> io::Result<()> {
        if self.closing || may_have_body(&request) {
            self.closing = true;
            response.status_code(400, "Bad Request").header("Connection: close").header(PROBLEM).body(
                r#"{"type":"about:blank","title":"Bad Request","status":400,"code":"bad_request","detail":"requests with a body are not taken here"}"#,
            );
            return Ok(());
        }
        match request.method() {
            "GET" => self.get(path_of(&request), response),
            // `may_minihttp` cannot state a length without sending as many bytes, so there is no honest HEAD.
            "HEAD" => {
                response.status_code(405, "Method Not Allowed").header("Allow: GET");
            }
            _ => response.status_code(405, "Method Not Allowed").header("Allow: GET").header(PROBLEM).body(
                r#"{"type":"about:blank","title":"Method Not Allowed","status":405,"code":"method_not_allowed","detail":"this route takes GET"}"#,
            ),
        }
        Ok(())
    }
}

impl OpsService {
    fn get(&self, path: &str, response: &mut Response) {
        match path {
            "/health" => response.header(JSON).body(HEALTH_BODY),
            "/ready" => {
                let readiness = (self.state.ready)();
                if readiness.status() != 200 {
                    response.status_code(usize::from(readiness.status()), "Service Unavailable");
                }
                response.header(JSON).body_vec(readiness.body().into_bytes());
            }
            "/metrics" => response.header(METRICS_TEXT).body_vec(self.state.metrics.render()),
            _ => response.status_code(404, "Not Found").header(PROBLEM).body(
                r#"{"type":"about:blank","title":"Not Found","status":404,"code":"not_found","detail":"here are /health, /ready and /metrics"}"#,
            ),
        }
    }
}

fn path_of<'a>(request: &'a Request) -> &'a str {
    let target = request.path();
    target.split_once('?').map_or(target, |(path, _query)| path)
}

/// Whether bytes of a body may follow the header.
fn may_have_body(request: &Request) -> bool {
    request.headers().iter().any(|field| {
        field.name.eq_ignore_ascii_case("transfer-encoding")
            || (field.name.eq_ignore_ascii_case("content-length") && field.value != b"0")
    })
}
