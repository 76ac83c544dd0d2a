//! The byte stream under a connection: a socket, TLS over a socket, or what a bench or test puts in its place.

use std::future::Future;
use std::os::fd::AsRawFd;

use monoio::BufResult;
use monoio::buf::{IoBuf, IoBufMut};
use monoio::io::{AsyncReadRent, AsyncWriteRent};

/// A connection's bytes, both ways.
///
/// The descriptor it shows must be its own, open for as long as it lives: a deadline shuts it down. Nothing here is
/// cancelled; every call ends by itself and gives its buffer back.
pub trait Stream: AsRawFd {
    /// Waits for bytes and puts them behind those in `buffer`, which has room for some. Returns how many; 0 at the end.
    /// Bytes that come in records may be more than there was room for, by one record at most.
    fn receive(&mut self, buffer: Vec<u8>) -> impl Future<Output = BufResult<usize, Vec<u8>>>;

    /// Sends what is in `buffer` from `from` on, or the first part of it. Returns how many bytes were taken.
    fn send(&mut self, buffer: Vec<u8>, from: usize) -> impl Future<Output = BufResult<usize, Vec<u8>>>;

    /// Tells the client that nothing more will be sent, where the stream has a word for that.
    fn finish(&mut self) -> impl Future<Output = ()>;
}

impl<S: AsyncReadRent + AsyncWriteRent + AsRawFd> Stream for S {
    async fn receive(&mut self, buffer: Vec<u8>) -> BufResult<usize, Vec<u8>> {
        let (begin, end) = (buffer.len(), buffer.capacity());
        let (read, buffer) = self.read(buffer.slice_mut(begin..end)).await;
        (read, buffer.into_inner())
    }

    async fn send(&mut self, buffer: Vec<u8>, from: usize) -> BufResult<usize, Vec<u8>> {
        let (written, buffer) = self.write(buffer.slice(from..)).await;
        (written, buffer.into_inner())
    }

    async fn finish(&mut self) {}
}
