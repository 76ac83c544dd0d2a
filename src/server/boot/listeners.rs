//! Listens at both addresses: the public one, with a socket for each shard, and the operators' one.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::thread;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use millrace_base::limits;

use super::StartError;
use crate::config::Config;
use crate::ops::{self, OpsState};

/// Starts to listen at both. Returns the operators' and the public address, with the ports that the system chose, and the
/// public one's sockets.
///
/// # Errors
/// Which address cannot be listened at, why, and what to do.
pub(super) fn start(
    config: &Config,
    ops_state: &OpsState,
) -> Result<(SocketAddr, SocketAddr, Vec<TcpListener>), StartError> {
    let ops_addr = patiently(|| ops::start(config.ops_listen, ops_state.clone()))
        .map_err(|error| cannot_listen("ops-listen", config.ops_listen, &error))?;
    let listeners = patiently(|| listen(config.listen, config.shards));
    let listeners = listeners.map_err(|error| cannot_listen("listen", config.listen, &error))?;
    let listen_addr = listeners[0].local_addr().map_err(|error| cannot_listen("listen", config.listen, &error))?;
    Ok((ops_addr, listen_addr, listeners))
}

fn cannot_listen(setting: &str, addr: SocketAddr, error: &io::Error) -> StartError {
    let advice = match error.kind() {
        io::ErrorKind::AddrInUse => "another process listens there; stop it or choose another port",
        io::ErrorKind::PermissionDenied => "ports below 1024 need CAP_NET_BIND_SERVICE",
        io::ErrorKind::AddrNotAvailable => "no interface of this machine has that address",
        _ => "choose another address",
    };
    StartError(format!("cannot listen on {addr}: {error}; {advice} (--{setting} ADDRESS:PORT)"))
}

/// Tries again for a short time where the address is in use: the `io_uring` rings of a killed process hold its sockets a
/// little longer than the process lives.
fn patiently<T>(mut listen: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    const PAUSE: Duration = Duration::from_millis(10);
    let tries = limits::LISTEN_PATIENCE.as_millis() / PAUSE.as_millis();
    for _ in 0..tries {
        match listen() {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => thread::sleep(PAUSE),
            done => return done,
        }
    }
    listen()
}

/// One listener per shard on the same port: the kernel spreads connections over them.
fn listen(addr: SocketAddr, shards: usize) -> io::Result<Vec<TcpListener>> {
    // With SO_REUSEPORT a second server of the same user would share the port unnoticed, so first bind without it.
    let addr = match addr.port() {
        0 => addr,
        _ => socket(addr, false)?.local_addr()?.as_socket().expect("a TCP socket has an IP address"),
    };
    let mut listeners = Vec::with_capacity(shards);
    let mut bound = addr;
    for _ in 0..shards {
        let socket = socket(bound, true)?;
        socket.listen(limits::LISTEN_BACKLOG as i32)?;
        let listener = TcpListener::from(socket);
        bound = listener.local_addr()?;
        listeners.push(listener);
    }
    Ok(listeners)
}

fn socket(addr: SocketAddr, is_shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(is_shared)?;
    // Accepted sockets inherit these options, which saves two system calls for each connection.
    socket.set_tcp_nodelay(true)?;
    socket.set_send_buffer_size(limits::SEND_BUFFER_BYTES)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::io::{Error, ErrorKind};

    use super::*;

    #[test]
    fn only_an_address_in_use_is_retried_at_bind() {
        let mut answers = vec![Ok(7), Err(ErrorKind::AddrInUse), Err(ErrorKind::AddrInUse)];
        let listened = patiently(|| answers.pop().expect("no more is asked").map_err(Error::from));
        assert_eq!(listened.expect("free by then"), 7);
        let mut asked = 0;
        let refused = patiently(|| {
            asked += 1;
            Err::<(), _>(Error::from(ErrorKind::PermissionDenied))
        });
        assert_eq!((refused.expect_err("refused").kind(), asked), (ErrorKind::PermissionDenied, 1));
        let in_use = patiently(|| Err::<(), _>(Error::from(ErrorKind::AddrInUse)));
        assert_eq!(in_use.expect_err("still in use").kind(), ErrorKind::AddrInUse);
    }
}
