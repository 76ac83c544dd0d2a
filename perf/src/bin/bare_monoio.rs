//! Yardstick: the least a thread-per-core HTTP server can do for a 202, on monoio as Millrace's shards run it: a pinned
//! thread and a listener a core, `io_uring` with `single_issuer` and `defer_taskrun`.
//!
//! It finds the end of the request (httparse, Content-Length), looks at nothing else, stores nothing, and answers 202
//! with a body as long as Millrace's. What it costs is what keep-alive HTTP costs on this runtime; `perf/compare` puts
//! Millrace and `bare_may_minihttp` next to it. Loopback only: it bounds no time and refuses nothing politely.
//!
//! `bare_monoio 127.0.0.1:PORT` prints a line `ready` and runs until it is stopped.
#![allow(clippy::print_stdout, reason = "a command-line program")]

use std::io;
use std::net::SocketAddr;
use std::sync::mpsc::{Sender, channel};
use std::thread;

use monoio::buf::IoBufMut;
use monoio::io::{AsyncReadRent, AsyncWriteRentExt};
use monoio::net::{ListenerOpts, TcpListener, TcpStream};
use monoio::{IoUringDriver, RuntimeBuilder};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// As a shard's; see `ingest/shard.rs`.
const ENTRIES: u32 = 4096;
/// Largest request, head and body. Over it the connection is closed.
const REQUEST_BYTES_MAX: usize = 16 * 1024;
/// As many as `may_minihttp` reads.
const HEADERS_MAX: usize = 16;
const ANSWER: &[u8] = b"HTTP/1.1 202 Accepted\r\nContent-Type: application/json\r\nContent-Length: 65\r\n\r\n\
    {\"id\":\"0198c0de-0000-7000-8000-000000000000\",\"status\":\"accepted\"}";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let listen: SocketAddr =
        std::env::args().nth(1).ok_or("usage: bare_monoio 127.0.0.1:PORT")?.parse().map_err(|_| "not an address")?;
    if !listen.ip().is_loopback() {
        return Err("loopback only".into());
    }
    let cores = core_affinity::get_core_ids().ok_or("cannot tell the cores")?;
    let (started, starts) = channel();
    for core in cores {
        let started = started.clone();
        thread::Builder::new().name(format!("responder-{}", core.id)).spawn(move || {
            core_affinity::set_for_current(core);
            if let Err(error) = respond(listen, &started) {
                let _ = started.send(Err(error));
            }
        })?;
    }
    // The threads hold the other ends; the first to fail is the end of the program.
    drop(started);
    let mut are_ready = 0;
    for start in starts {
        start?;
        are_ready += 1;
        if are_ready == thread::available_parallelism()?.get() {
            println!("ready listen={listen}");
        }
    }
    Err("every thread has ended".into())
}

/// One core's responder; returns only with an error.
fn respond(listen: SocketAddr, started: &Sender<io::Result<()>>) -> io::Result<()> {
    let mut flags = io_uring::IoUring::builder();
    flags.setup_single_issuer().setup_defer_taskrun().setup_cqsize(ENTRIES * 4);
    let mut runtime = RuntimeBuilder::<IoUringDriver>::new().with_entries(ENTRIES).uring_builder(flags).build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind_with_config(listen, &ListenerOpts::new().reuse_port(true))?;
        let _ = started.send(Ok(()));
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            monoio::spawn(async move {
                // A client that hangs up is no error of ours.
                let _ = answer(stream).await;
            });
        }
    })
}

/// One connection to its end.
async fn answer(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(REQUEST_BYTES_MAX);
    let mut answers = Vec::with_capacity(ANSWER.len());
    loop {
        let filled = buffer.len();
        if filled == REQUEST_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let (read, slice) = stream.read(buffer.slice_mut(filled..REQUEST_BYTES_MAX)).await;
        buffer = slice.into_inner();
        if read? == 0 {
            return Ok(());
        }
        let mut taken = 0;
        answers.clear();
        while let Some(length) = request_length(&buffer[taken..])? {
            answers.extend_from_slice(ANSWER);
            taken += length;
        }
        buffer.drain(..taken);
        if !answers.is_empty() {
            let written;
            (written, answers) = stream.write_all(answers).await;
            written?;
        }
    }
}

/// Bytes of the first request in `bytes`, head and body; `None` until all of it is there.
fn request_length(bytes: &[u8]) -> io::Result<Option<usize>> {
    let malformed = || io::Error::from(io::ErrorKind::InvalidData);
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(head) = request.parse(bytes).map_err(|_| malformed())? else { return Ok(None) };
    let declared = request.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
    let body = match declared {
        None => 0,
        Some(header) => str::from_utf8(header.value).ok().and_then(|v| v.parse().ok()).ok_or_else(malformed)?,
    };
    let length = head.checked_add(body).ok_or_else(malformed)?;
    Ok((bytes.len() >= length).then_some(length))
}
