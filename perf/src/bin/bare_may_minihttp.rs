//! Yardstick: the least an HTTP server can do for a 202, on `may_minihttp`, one worker a core.
//!
//! It reads the request and its body, looks at nothing, stores nothing, and answers 202 with a body as long as
//! Millrace's. What it costs is what keep-alive HTTP costs on this machine; `perf/compare` puts Millrace next
//! to it. Loopback only: `may_minihttp` bounds neither headers nor body.
//!
//! `bare_may_minihttp 127.0.0.1:PORT` prints a line `ready` and runs until it is stopped.
#![allow(clippy::print_stdout, reason = "a command-line program")]

use std::io;
use std::net::SocketAddr;

use may_minihttp::{HttpServer, HttpService, Request, Response};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Clone)]
struct Accept;

impl HttpService for Accept {
    fn call(&mut self, request: Request, response: &mut Response) -> io::Result<()> {
        // Dropping the reader reads the body to its end.
        drop(request.body());
        response.status_code(202, "Accepted");
        response.header("Content-Type: application/json");
        response.body(r#"{"id":"0198c0de-0000-7000-8000-000000000000","status":"accepted"}"#);
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let listen: SocketAddr = std::env::args()
        .nth(1)
        .ok_or("usage: bare_may_minihttp 127.0.0.1:PORT")?
        .parse()
        .map_err(|_| "not an address")?;
    if !listen.ip().is_loopback() {
        return Err("loopback only".into());
    }
    may::config().set_workers(std::thread::available_parallelism()?.get());
    let server = HttpServer(Accept).start(listen)?;
    println!("ready listen={listen}");
    server.join().map_err(|_| "the server panicked")?;
    Ok(())
}
