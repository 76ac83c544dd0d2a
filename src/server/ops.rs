//! OPS: `/health`, `/ready` and `/metrics` on a listener and a scheduler of their own, so that they answer when
//! every shard is saturated.
//!
//! Two layers on one worker thread of `may`, one coroutine a connection. The [`front`] is what clients talk to: it
//! bounds and times everything, reads heads with the parser of the main listener, and frames the answers. Behind it
//! `may_minihttp` answers, over a connection that nobody else can use ([`backend`]). Why two:
//! `docs/decisions/0001-ops-front.md`.
//!
//! There is no authentication: keep it on loopback, or where only your own machines reach it.

mod backend;
mod front;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use may::net::TcpListener;
use socket2::{Domain, Socket, Type};

use millrace_base::health::Readiness;
use millrace_base::limits;
use millrace_metrics::Metrics;

use backend::Backend;

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
/// # Errors
/// Where the address cannot be had, also because another process' ops listener has it.
pub fn start(addr: SocketAddr, state: OpsState) -> io::Result<SocketAddr> {
    configure_scheduler();
    let (reserved, addr) = reserve(addr)?;
    let listener = TcpListener::bind(addr)?;
    drop(reserved);
    let backend = Arc::new(Backend::start(state)?);
    // The handle could only cancel the accept loop; dropping it leaves it running.
    drop(may::go!(move || front::accept(&listener, &backend)));
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
fn reserve(addr: SocketAddr) -> io::Result<(Socket, SocketAddr)> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&addr.into())?;
    socket.set_reuse_port(true)?;
    let addr = socket.local_addr()?.as_socket().expect("a TCP socket has an IP address");
    Ok((socket, addr))
}
