//! OPS: answers `/health`, `/ready` and `/metrics` on a listener and a scheduler of its own, even when every shard is
//! saturated.
//!
//! It has two layers on one worker thread of `may`, with one coroutine for each connection. Clients talk to the [`front`]: it
//! bounds and times everything, reads heads with the parser of the main listener, and frames the answers. Behind it,
//! `may_minihttp` answers over a connection that nobody else can use ([`backend`]). `docs/decisions/0001-ops-front.md` has the
//! reasons.
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

/// Where the answers come from.
#[derive(Clone)]
pub struct OpsState {
    /// Rendered for `/metrics`.
    pub metrics: Arc<Metrics>,
    /// Called for every `/ready`; must not block.
    pub ready: Arc<dyn Fn() -> Readiness + Send + Sync>,
}

/// Binds `addr` and serves it until the process ends. Returns the address, with the port the system chose
/// where `addr` has port 0. Call it from a thread that is not pinned: `may`'s threads inherit its cores.
///
/// # Errors
/// Where the address cannot be bound, also because another process listens there.
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

/// Configures `may`; takes effect only before the first coroutine.
fn configure_scheduler() {
    let config = may::config();
    config
        .set_workers(limits::OPS_WORKERS)
        .set_stack_size(limits::OPS_STACK_BYTES / size_of::<usize>())
        .set_pool_capacity(limits::OPS_STACKS_POOLED);
    config.set_worker_pin(false);
    // How long an idle worker sleeps unless an event wakes it. The default is 10 ms.
    config.set_timeout_ns(Duration::from_secs(1).as_nanos() as u64);
}

/// Holds the address until `may` listens on it. `may` binds with `SO_REUSEPORT`, so it would share the port of another
/// process of ours unnoticed; this socket is bound without it and fails.
fn reserve(addr: SocketAddr) -> io::Result<(Socket, SocketAddr)> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&addr.into())?;
    socket.set_reuse_port(true)?;
    let addr = socket.local_addr()?.as_socket().expect("a TCP socket has an IP address");
    Ok((socket, addr))
}
