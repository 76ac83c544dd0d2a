//! One shard fed from memory: the path of a request as the server runs it, without sockets.
//!
//! Everything from the first byte a connection reads to the last it writes is the library's own code on the
//! library's own types: shard, verifier, store (embedded), queue, metrics. Only the stream is another: it hands
//! out the same request again and again, one per read, and counts the answers' bytes. What is left out is the
//! kernel (socket calls, readiness, waking) and, unless a caller adds them, the writers.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use monoio::buf::{IoBuf, IoBufMut, IoVecBuf, IoVecBufMut};
use monoio::io::{AsyncReadRent, AsyncWriteRent};
use monoio::{BufResult, LegacyDriver, Runtime, RuntimeBuilder};
use tempfile::TempDir;

use millrace_base::key::ApiKey;
use millrace_ingest::shard::Shard;
use millrace_journal::queue::Accepted;

use crate::in_process::InProcess;

/// A shard with one organisation, and the writers' end of its queue.
pub struct Replay {
    /// What the shard accepted, for whoever takes the writers' part.
    pub accepted: Accepted,
    key: ApiKey,
    shard: Rc<Shard>,
    runtime: RefCell<Runtime<LegacyDriver>>,
    /// The embedded store's, until the end.
    _data_dir: TempDir,
}

impl Replay {
    /// A shard that nothing was sent to yet.
    pub fn new() -> Self {
        let InProcess { shared: state, accepted, key, data_dir } = InProcess::new(1);
        Self {
            accepted,
            key,
            shard: Rc::new(Shard::new(0, state).expect("randomness")),
            runtime: RefCell::new(RuntimeBuilder::<LegacyDriver>::new().build().expect("an epoll descriptor")),
            _data_dir: data_dir,
        }
    }

    /// A request to post one event's `body`, as wrk or k6 would send it.
    pub fn post(&self, body: &[u8]) -> Rc<[u8]> {
        self.post_to("/api/events", body)
    }

    /// The same to another route.
    pub fn post_to(&self, target: &str, body: &[u8]) -> Rc<[u8]> {
        let head = format!(
            "POST {target} HTTP/1.1\r\nHost: 127.0.0.1:3000\r\nUser-Agent: k6/1.0 (https://k6.io/)\r\n\
             Content-Type: application/json\r\nX-API-Key: {}\r\nAccept-Encoding: gzip\r\nContent-Length: {}\r\n\r\n",
            self.key.reveal(),
            body.len()
        );
        [head.as_bytes(), body].concat().into()
    }

    /// Serves one connection that sends `request` so many times, each after the answer to the one before.
    /// Returns how many bytes were answered.
    pub fn serve(&self, request: &Rc<[u8]>, times: usize) -> usize {
        let answered = Rc::new(Cell::new(0));
        let stream = Repeated {
            request: Rc::clone(request),
            sent: 0,
            left: times,
            answered: Rc::clone(&answered),
            descriptor: File::open("/dev/null").expect("there is /dev/null"),
        };
        self.runtime.borrow_mut().block_on(Rc::clone(&self.shard).serve_stream(stream));
        answered.get()
    }

    /// Serves one connection that sends `request` once. Returns how often a task that waits for every tick of the clock
    /// had its turn beside it.
    pub fn turns_beside(&self, request: &Rc<[u8]>) -> usize {
        let stream = Repeated {
            request: Rc::clone(request),
            sent: 0,
            left: 1,
            answered: Rc::default(),
            descriptor: File::open("/dev/null").expect("there is /dev/null"),
        };
        let turns = Rc::new(Cell::new(0));
        let counted = Rc::clone(&turns);
        let shard = Rc::clone(&self.shard);
        let mut runtime = RuntimeBuilder::<LegacyDriver>::new().enable_timer().build().expect("an epoll descriptor");
        runtime.block_on(async move {
            monoio::spawn(async move {
                loop {
                    monoio::time::sleep(Duration::ZERO).await;
                    counted.set(counted.get() + 1);
                }
            });
            shard.serve_stream(stream).await;
        });
        turns.get()
    }

    /// Takes all waiting events out of the queue, as a writer that has stored them. Returns how many.
    pub fn drain(&self) -> usize {
        let release = |event| self.accepted.slots.release(std::slice::from_ref(&event), event.weight());
        self.accepted.receiver.try_iter().map(release).count()
    }
}

/// A client that sends one request again and again.
struct Repeated {
    request: Rc<[u8]>,
    /// Bytes of the present copy that were read.
    sent: usize,
    /// Copies not yet read to their end.
    left: usize,
    answered: Rc<Cell<usize>>,
    /// Something to shut down when a deadline is missed; not a socket, so nothing comes of it.
    descriptor: File,
}

/// Is ready when asked again.
async fn wait_once() {
    let mut has_waited = false;
    poll_fn(|context| {
        if std::mem::replace(&mut has_waited, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

impl AsyncReadRent for Repeated {
    async fn read<T: IoBufMut>(&mut self, buffer: T) -> BufResult<usize, T> {
        if self.sent == 0 {
            // As the next request of a client that waits for its answers.
            wait_once().await;
        }
        let request = Rc::clone(&self.request);
        let mut rest = if self.left == 0 { &[] } else { &request[self.sent..] };
        let read = rest.read(buffer).await;
        if self.left > 0 && rest.is_empty() {
            (self.sent, self.left) = (0, self.left - 1);
        } else {
            self.sent = request.len() - rest.len();
        }
        read
    }

    async fn readv<T: IoVecBufMut>(&mut self, buffers: T) -> BufResult<usize, T> {
        (Err(io::ErrorKind::Unsupported.into()), buffers)
    }
}

impl AsyncWriteRent for Repeated {
    async fn write<T: IoBuf>(&mut self, answer: T) -> BufResult<usize, T> {
        let written = answer.bytes_init();
        self.answered.set(self.answered.get() + written);
        (Ok(written), answer)
    }

    async fn writev<T: IoVecBuf>(&mut self, answers: T) -> BufResult<usize, T> {
        (Err(io::ErrorKind::Unsupported.into()), answers)
    }

    async fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    async fn shutdown(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsRawFd for Repeated {
    fn as_raw_fd(&self) -> RawFd {
        self.descriptor.as_raw_fd()
    }
}
