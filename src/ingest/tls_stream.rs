//! TLS over a socket: rustls' unbuffered state machine between a connection and its `TcpStream`.
//!
//! Runs on its shard. Records are decrypted where they arrived and copied once, into the connection's own buffer;
//! responses are encrypted into one buffer and written from it. An idle stream holds rustls' state and one small read
//! buffer, where `monoio-rustls` would pin two buffers of 16 KiB besides rustls' own. `incoming` holds at most
//! [`limits::TLS_INCOMING_BYTES_MAX`]: a record, and room for the start of the next.
//!
//! **Between two calls `incoming` holds no complete record**: every read decrypts all there is. Data that came with
//! the end of the handshake, before anybody asked for it, waits in `ahead`.
//!
//! A connection that ends without a close notify is treated like any other end: HTTP's own framing tells whether a
//! request is complete.

use std::io::{self, ErrorKind};
use std::mem::take;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use monoio::BufResult;
use monoio::buf::{IoBuf, IoBufMut};
use monoio::io::{AsyncReadRent, AsyncWriteRent};
use monoio::net::TcpStream;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, InsufficientSizeError, UnbufferedStatus};
use rustls::{HandshakeKind, ServerConfig};

use millrace_base::limits;

use super::stream::Stream;
use super::work_budget;

/// A record's header: type, version and length.
const RECORD_HEADER_BYTES: usize = 5;
/// Bytes that encryption adds to a short record, in either version of TLS; if it needs more, rustls says so.
const RECORD_OVERHEAD_BYTES: usize = 64;
/// A read has at least this much room.
const LEAST_READ_BYTES: usize = limits::CONNECTION_READ_BYTES / 4;
/// Plaintext encrypted at a time: one full record.
const SENT_AT_ONCE_BYTES: usize = 16 * 1024;
/// An output buffer above this is not kept: most answers are smaller.
const KEPT_OUTPUT_BYTES: usize = 1024;
/// Reads in a row without data before the stream yields: a client can send empty records for ever.
const READS_IN_ROW_MAX: u32 = 32;

/// A TLS connection.
pub(super) struct TlsStream {
    /// Boxed: a stream is moved into its connection, and a future keeps space for it at every place it was moved from.
    session: Box<UnbufferedServerConnection>,
    /// Records as they arrived, from the first that is not complete on.
    incoming: Vec<u8>,
    /// The capacity for a new `incoming`.
    read_hint: usize,
    /// Decrypted, not yet received.
    ahead: Vec<u8>,
    /// Encrypted, not yet sent.
    outgoing: Vec<u8>,
    /// The client has said that nothing more comes.
    is_ended: bool,
    tcp: TcpStream,
}

/// Why a handshake failed.
#[derive(Debug)]
pub(super) enum HandshakeError {
    /// The client speaks HTTP without TLS.
    Plaintext,
    /// The client was gone, too slow, or broke the protocol.
    Failed,
}

impl From<io::Error> for HandshakeError {
    fn from(_: io::Error) -> Self {
        Self::Failed
    }
}

/// What to send once rustls lets application data be sent.
#[derive(Clone, Copy)]
enum Sending<'a> {
    Nothing,
    Data(&'a [u8]),
    CloseNotify,
}

/// What rustls waits for.
#[derive(Debug, PartialEq, Eq)]
enum Waits {
    /// The client's part of the handshake.
    Handshake,
    /// Whatever the client sends next.
    Traffic,
}

impl TlsStream {
    /// TLS over `tcp`, from its first byte on.
    ///
    /// # Errors
    /// If rustls refuses the configuration.
    pub(super) fn new(tcp: TcpStream, config: Arc<ServerConfig>) -> Result<Self, rustls::Error> {
        Ok(Self {
            session: Box::new(UnbufferedServerConnection::new(config)?),
            incoming: Vec::new(),
            read_hint: limits::CONNECTION_READ_BYTES,
            ahead: Vec::new(),
            outgoing: Vec::new(),
            is_ended: false,
            tcp,
        })
    }

    /// The socket itself, for a client that does not speak TLS.
    pub(super) fn into_tcp(self) -> TcpStream {
        self.tcp
    }

    /// Runs the handshake; returns whether a session ticket made it short.
    pub(super) async fn handshake(&mut self) -> Result<HandshakeKind, HandshakeError> {
        loop {
            if self.fill().await? == 0 || self.is_ended {
                return Err(HandshakeError::Failed);
            }
            // The letter of an HTTP method, where a TLS record has its type.
            if self.incoming[0].is_ascii_uppercase() {
                return Err(HandshakeError::Plaintext);
            }
            let mut ahead = take(&mut self.ahead);
            let waits = self.advance(&mut ahead, Sending::Nothing);
            self.ahead = ahead;
            // Also after a failure, to send the alert that says why.
            self.flush().await?;
            match waits {
                Ok(Waits::Handshake) => {}
                Ok(Waits::Traffic) => return self.session.handshake_kind().ok_or(HandshakeError::Failed),
                Err(_) => return Err(HandshakeError::Failed),
            }
        }
    }

    /// Hands rustls everything in `incoming` until it waits for more. What is decrypted goes to `plain`, what is to be
    /// sent to `outgoing`.
    fn advance(&mut self, plain: &mut Vec<u8>, sending: Sending<'_>) -> Result<Waits, rustls::Error> {
        let Self { session, incoming, outgoing, .. } = self;
        let mut done = 0;
        let outcome = loop {
            let UnbufferedStatus { mut discard, state } = session.process_tls_records(&mut incoming[done..]);
            let is_blocked = match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(Ok(record)) = traffic.next_record() {
                        discard += record.discard;
                        plain.extend_from_slice(record.payload);
                    }
                    None
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    append(outgoing, 0, |room| data.encode(room).map_err(|error| required_to_encode(&error)));
                    None
                }
                Ok(ConnectionState::TransmitTlsData(transmit)) => {
                    // It is flushed before anything else is awaited.
                    transmit.done();
                    None
                }
                Ok(ConnectionState::PeerClosed) => {
                    self.is_ended = true;
                    None
                }
                Ok(ConnectionState::BlockedHandshake) => Some(Ok(Waits::Handshake)),
                Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                    let is_sent = match sending {
                        Sending::Nothing => true,
                        Sending::Data(data) => append(outgoing, data.len() + RECORD_OVERHEAD_BYTES, |room| {
                            traffic.encrypt(data, room).map_err(|error| required_to_encrypt(&error))
                        }),
                        Sending::CloseNotify => append(outgoing, RECORD_OVERHEAD_BYTES, |room| {
                            traffic.queue_close_notify(room).map_err(|error| required_to_encrypt(&error))
                        }),
                    };
                    Some(if is_sent { Ok(Waits::Traffic) } else { Err(rustls::Error::EncryptError) })
                }
                Ok(ConnectionState::Closed) => Some(Ok(Waits::Traffic)),
                // Early data is never offered.
                Ok(_) => Some(Err(rustls::Error::General("unexpected state".to_owned()))),
                Err(error) => Some(Err(error)),
            };
            done += discard;
            if let Some(outcome) = is_blocked {
                break outcome;
            }
        };
        // The alert that says why. Asked for only while there is one: rustls must not see the input again.
        while outcome.is_err()
            && session.wants_write()
            && let Ok(ConnectionState::EncodeTlsData(mut data)) =
                session.process_tls_records(&mut incoming[done..]).state
        {
            append(outgoing, 0, |room| data.encode(room).map_err(|error| required_to_encode(&error)));
        }
        self.read_hint = done.next_power_of_two().clamp(limits::CONNECTION_READ_BYTES, limits::TLS_KEPT_READ_BYTES);
        self.incoming.drain(..done);
        outcome
    }

    /// Reads more bytes behind those in `incoming`; at least up to the end of the record there, with a few calls.
    async fn fill(&mut self) -> io::Result<usize> {
        let mut incoming = take(&mut self.incoming);
        if incoming.is_empty() && incoming.capacity() != self.read_hint {
            incoming = Vec::with_capacity(self.read_hint);
        } else if incoming.capacity() - incoming.len() < LEAST_READ_BYTES {
            let room = limits::TLS_INCOMING_BYTES_MAX.saturating_sub(incoming.len());
            if room == 0 {
                // A handshake message of many records; no client of ours needs one.
                return Err(ErrorKind::InvalidData.into());
            }
            incoming.reserve_exact(missing(&incoming).max(LEAST_READ_BYTES).min(room));
        }
        let (begin, end) = (incoming.len(), incoming.capacity());
        let (read, incoming) = self.tcp.read(incoming.slice_mut(begin..end)).await;
        self.incoming = incoming.into_inner();
        read
    }

    /// Writes all of `outgoing`.
    async fn flush(&mut self) -> io::Result<()> {
        let mut outgoing = take(&mut self.outgoing);
        let mut written = 0;
        while written < outgoing.len() {
            let (result, rest) = self.tcp.write(outgoing.slice(written..)).await;
            outgoing = rest.into_inner();
            match result? {
                0 => return Err(ErrorKind::WriteZero.into()),
                n => written += n,
            }
        }
        if outgoing.capacity() <= KEPT_OUTPUT_BYTES {
            outgoing.clear();
            self.outgoing = outgoing;
        }
        Ok(())
    }

    /// Encrypts and writes.
    async fn transmit(&mut self, sending: Sending<'_>) -> io::Result<()> {
        let mut ahead = take(&mut self.ahead);
        let advanced = self.advance(&mut ahead, sending);
        self.ahead = ahead;
        self.flush().await?;
        match advanced {
            Ok(Waits::Traffic) => Ok(()),
            Ok(Waits::Handshake) | Err(_) => Err(ErrorKind::InvalidData.into()),
        }
    }
}

impl Stream for TlsStream {
    async fn receive(&mut self, mut buffer: Vec<u8>) -> BufResult<usize, Vec<u8>> {
        let before = buffer.len();
        buffer.append(&mut take(&mut self.ahead));
        let mut reads = 0;
        while buffer.len() == before && !self.is_ended {
            if reads == READS_IN_ROW_MAX {
                reads = 0;
                work_budget::yield_now().await;
            }
            reads += 1;
            match self.fill().await {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => return (Err(error), buffer),
            }
            let advanced = self.advance(&mut buffer, Sending::Nothing);
            // Key updates, and the alert where something is wrong.
            let flushed = self.flush().await;
            if advanced.is_err() || flushed.is_err() {
                return (Err(ErrorKind::InvalidData.into()), buffer);
            }
        }
        (Ok(buffer.len() - before), buffer)
    }

    async fn send(&mut self, buffer: Vec<u8>, from: usize) -> BufResult<usize, Vec<u8>> {
        let end = buffer.len().min(from + SENT_AT_ONCE_BYTES);
        let sent = self.transmit(Sending::Data(&buffer[from..end])).await;
        (sent.map(|()| end - from), buffer)
    }

    async fn finish(&mut self) {
        // If the client is gone, there is nobody to tell.
        let _ = self.transmit(Sending::CloseNotify).await;
    }
}

impl AsRawFd for TlsStream {
    fn as_raw_fd(&self) -> RawFd {
        self.tcp.as_raw_fd()
    }
}

/// How many bytes the record that `incoming` ends in still lacks; 0 where its length is not known yet.
fn missing(incoming: &[u8]) -> usize {
    match incoming {
        [_, _, _, high, low, ..] => {
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            (RECORD_HEADER_BYTES + length).saturating_sub(incoming.len())
        }
        _ => 0,
    }
}

/// Lets `write` fill room behind what is in `out`: `guess` bytes of it, and as much as it asks for where those are too
/// few. `false` if that does not help.
fn append(out: &mut Vec<u8>, guess: usize, mut write: impl FnMut(&mut [u8]) -> Result<usize, usize>) -> bool {
    let begin = out.len();
    out.resize(begin + guess, 0);
    let written = write(&mut out[begin..]).or_else(|required| {
        out.resize(begin + required, 0);
        write(&mut out[begin..])
    });
    out.truncate(begin + written.unwrap_or(0));
    written.is_ok()
}

/// The room that encoding lacked.
fn required_to_encode(error: &EncodeError) -> usize {
    match error {
        EncodeError::InsufficientSize(InsufficientSizeError { required_size }) => *required_size,
        EncodeError::AlreadyEncoded => 0,
    }
}

/// The room that encrypting lacked.
fn required_to_encrypt(error: &EncryptError) -> usize {
    match error {
        EncryptError::InsufficientSize(InsufficientSizeError { required_size }) => *required_size,
        EncryptError::EncryptExhausted => 0,
    }
}
