//! The byte stream of a connection, plain or TLS. It records whether bytes arrived, and limits traffic without content.
//!
//! A receiver can keep the single sending thread busy with what HTTP allows it to send unasked: interim responses (1xx) and,
//! over HTTP/2, pings, settings, window updates and empty frames, even on an idle connection. hyper and h2 bound the memory
//! for these but process them without end. This module counts them and closes the connection over the limit; requests in
//! flight on it fail as `invalid_response`.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio_rustls::client::TlsStream;

use millrace_base::limits::{
    WEBHOOK_FRAMES_A_REQUEST, WEBHOOK_FRAMES_A_SECOND, WEBHOOK_FRAMES_AHEAD_MAX, WEBHOOK_INTERIM_ANSWERS_MAX,
    WEBHOOK_INTERIM_BYTES_MAX, WEBHOOK_RESPONSE_HEAD_BYTES_MAX, WEBHOOK_STREAMS_PER_CONNECTION_MAX,
};

/// Over HTTP/1.1, the most bytes until the response head is complete: that head, what is read together with it, and the
/// interim responses before it.
const HEAD_BYTES_MAX: usize = 2 * WEBHOOK_RESPONSE_HEAD_BYTES_MAX + WEBHOOK_INTERIM_BYTES_MAX;

/// Records what the receiver has sent. Written by the task of the connection and by the attempts; both run on one thread, so
/// no ordering is needed.
#[derive(Clone, Default)]
pub struct ReceiveMonitor(Arc<MonitorState>);

#[derive(Default)]
struct MonitorState {
    /// Whether anything arrived since [`ReceiveMonitor::reset`]. Distinguishes a connection that was closed while idle from a
    /// response that broke off.
    has_received: AtomicBool,
    /// The limit of traffic without content was exceeded; never reset.
    is_over_limit: AtomicBool,
    /// HTTP/1.1: whether an attempt waits for a response head; and the interim responses and bytes received since.
    waits_for_head: AtomicBool,
    interim: AtomicUsize,
    bytes: AtomicUsize,
    /// HTTP/2: frames that new requests allow and that are not yet credited to the [`FrameLimiter`].
    earned: AtomicU32,
    /// HTTP/2: the receiver's limit of concurrent streams, once its settings have arrived.
    streams_max: AtomicUsize,
    has_settings: AtomicBool,
    settings_came: Notify,
}

impl ReceiveMonitor {
    pub fn reset(&self) {
        self.0.has_received.store(false, Ordering::Relaxed);
    }

    pub fn has_received(&self) -> bool {
        self.0.has_received.load(Ordering::Relaxed)
    }

    /// Whether the receiver exceeded the limit of traffic without content.
    pub fn is_over_limit(&self) -> bool {
        self.0.is_over_limit.load(Ordering::Relaxed)
    }

    /// HTTP/1.1: an attempt waits for a response head from here on.
    pub fn wait_for_head(&self) {
        self.0.interim.store(0, Ordering::Relaxed);
        self.0.bytes.store(0, Ordering::Relaxed);
        self.0.waits_for_head.store(true, Ordering::Relaxed);
    }

    /// The response head arrived.
    pub fn head_came(&self) {
        self.0.waits_for_head.store(false, Ordering::Relaxed);
    }

    /// An interim response arrived instead.
    pub fn interim_response(&self) {
        if self.0.interim.fetch_add(1, Ordering::Relaxed) >= WEBHOOK_INTERIM_ANSWERS_MAX {
            self.0.is_over_limit.store(true, Ordering::Relaxed);
        }
    }

    /// HTTP/2: a request is sent, which allows the receiver some frames.
    pub fn request_sent(&self) {
        self.0.earned.fetch_add(WEBHOOK_FRAMES_A_REQUEST, Ordering::Relaxed);
    }

    /// HTTP/2: how many requests may be in flight on the connection. One until the receiver has sent its settings.
    pub fn streams_max(&self) -> usize {
        if !self.0.has_settings.load(Ordering::Relaxed) {
            return 1;
        }
        self.0.streams_max.load(Ordering::Relaxed).min(WEBHOOK_STREAMS_PER_CONNECTION_MAX)
    }

    /// HTTP/2: waits for the receiver's settings, which are its first frame.
    pub async fn settings(&self) {
        let came = self.0.settings_came.notified();
        if !self.0.has_settings.load(Ordering::Relaxed) {
            came.await;
        }
    }

    /// The receiver's settings arrived; `streams_max` is their limit of concurrent streams, if they contain one.
    fn note_settings(&self, streams_max: Option<u32>) {
        let is_first = !self.0.has_settings.swap(true, Ordering::Relaxed);
        match streams_max {
            Some(max) => self.0.streams_max.store(max as usize, Ordering::Relaxed),
            None if is_first => self.0.streams_max.store(usize::MAX, Ordering::Relaxed),
            None => {}
        }
        self.0.settings_came.notify_waiters();
    }

    fn bytes_came(&self, bytes: usize) {
        self.0.has_received.store(true, Ordering::Relaxed);
        if self.0.waits_for_head.load(Ordering::Relaxed)
            && self.0.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes > HEAD_BYTES_MAX
        {
            self.0.is_over_limit.store(true, Ordering::Relaxed);
        }
    }

    fn check(&self) -> io::Result<()> {
        if self.is_over_limit() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "too much that brings nothing"));
        }
        Ok(())
    }
}

/// Limits HTTP/2 frames without content: all except DATA, and tiny DATA frames. Requests and elapsed time earn credit for
/// them (a token bucket). Also reads SETTINGS, because neither hyper nor h2 reports when they arrive.
struct FrameLimiter {
    /// The header of the frame that is being read.
    header: [u8; FrameLimiter::HEADER],
    read: usize,
    /// Bytes of the current frame's payload that are still to come.
    left: usize,
    /// The remaining credit in frames.
    credit: u32,
    refilled_at: Instant,
    /// The parser of the SETTINGS frame that is being read.
    settings: Option<SettingsParser>,
    monitor: ReceiveMonitor,
}

#[derive(Default)]
struct SettingsParser {
    one: [u8; 6],
    read: usize,
    streams_max: Option<u32>,
}

impl SettingsParser {
    const MAX_CONCURRENT_STREAMS: u16 = 3;

    fn take(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let part = (self.one.len() - self.read).min(bytes.len());
            self.one[self.read..self.read + part].copy_from_slice(&bytes[..part]);
            (self.read, bytes) = (self.read + part, &bytes[part..]);
            if self.read == self.one.len() {
                let [a, b, value @ ..] = self.one;
                if u16::from_be_bytes([a, b]) == Self::MAX_CONCURRENT_STREAMS {
                    self.streams_max = Some(u32::from_be_bytes(value));
                }
                self.read = 0;
            }
        }
    }
}

impl FrameLimiter {
    const HEADER: usize = 9;
    const DATA: u8 = 0;
    const SETTINGS: u8 = 4;
    const ACK: u8 = 1;
    /// DATA frames with fewer bytes count, too.
    const DATA_MIN: usize = 64;

    fn new(now: Instant, monitor: ReceiveMonitor) -> Self {
        Self {
            header: [0; Self::HEADER],
            read: 0,
            left: 0,
            credit: WEBHOOK_FRAMES_AHEAD_MAX / 8,
            refilled_at: now,
            settings: None,
            monitor,
        }
    }

    fn earn(&mut self, earned: u32, now: Instant) {
        let seconds = now.saturating_duration_since(self.refilled_at).as_secs();
        if seconds > 0 {
            self.refilled_at = now;
        }
        let by_time = u32::try_from(seconds).unwrap_or(u32::MAX).saturating_mul(WEBHOOK_FRAMES_A_SECOND);
        self.credit = self.credit.saturating_add(earned).saturating_add(by_time).min(WEBHOOK_FRAMES_AHEAD_MAX);
    }

    /// Counts the frames in `bytes`; `false` if they exceed the credit.
    fn take(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let payload = self.left.min(bytes.len());
            if let Some(settings) = &mut self.settings {
                settings.take(&bytes[..payload]);
            }
            (self.left, bytes) = (self.left - payload, &bytes[payload..]);
            if self.left == 0
                && let Some(settings) = self.settings.take()
            {
                self.monitor.note_settings(settings.streams_max);
            }
            let part = (Self::HEADER - self.read).min(bytes.len());
            self.header[self.read..self.read + part].copy_from_slice(&bytes[..part]);
            (self.read, bytes) = (self.read + part, &bytes[part..]);
            if self.read < Self::HEADER {
                continue;
            }
            let [a, b, c, kind, flags, ..] = self.header;
            (self.read, self.left) = (0, u32::from_be_bytes([0, a, b, c]) as usize);
            if kind == Self::SETTINGS && flags & Self::ACK == 0 {
                if self.left == 0 {
                    self.monitor.note_settings(None);
                } else {
                    self.settings = Some(SettingsParser::default());
                }
            }
            if kind != Self::DATA || self.left < Self::DATA_MIN {
                let Some(credit) = self.credit.checked_sub(1) else { return false };
                self.credit = credit;
            }
        }
        true
    }
}

enum Transport {
    Plain(TcpStream),
    // Boxed: the state of a TLS session is larger than a kilobyte.
    Tls(Box<TlsStream<TcpStream>>),
}

/// The byte stream that HTTP runs on.
pub struct Stream {
    inner: Transport,
    monitor: ReceiveMonitor,
    /// Only over HTTP/2.
    frames: Option<FrameLimiter>,
}

impl Stream {
    pub fn plain(tcp: TcpStream) -> Self {
        Self { inner: Transport::Plain(tcp), monitor: ReceiveMonitor::default(), frames: None }
    }

    pub fn tls(tls: TlsStream<TcpStream>) -> Self {
        let is_http2 = tls.get_ref().1.alpn_protocol() == Some(b"h2");
        let monitor = ReceiveMonitor::default();
        let frames = is_http2.then(|| FrameLimiter::new(Instant::now(), monitor.clone()));
        Self { inner: Transport::Tls(Box::new(tls)), monitor, frames }
    }

    pub fn monitor(&self) -> ReceiveMonitor {
        self.monitor.clone()
    }

    /// Whether the receiver chose HTTP/2.
    pub fn speaks_http2(&self) -> bool {
        self.frames.is_some()
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.monitor.check()?;
        let before = buf.filled().len();
        ready!(match &mut this.inner {
            Transport::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Transport::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
        })?;
        let came = &buf.filled()[before..];
        if !came.is_empty() {
            this.monitor.bytes_came(came.len());
            if let Some(frames) = &mut this.frames {
                frames.earn(this.monitor.0.earned.swap(0, Ordering::Relaxed), Instant::now());
                if !frames.take(came) {
                    this.monitor.0.is_over_limit.store(true, Ordering::Relaxed);
                }
            }
        }
        Poll::Ready(this.monitor.check())
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().inner {
            Transport::Plain(tcp) => Pin::new(tcp).poll_write(cx, bytes),
            Transport::Tls(tls) => Pin::new(tls).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().inner {
            Transport::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, parts),
            Transport::Tls(tls) => Pin::new(tls).poll_write_vectored(cx, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.inner {
            Transport::Plain(tcp) => tcp.is_write_vectored(),
            Transport::Tls(tls) => tls.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().inner {
            Transport::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Transport::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().inner {
            Transport::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Transport::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn frame(kind: u8, payload: usize) -> Vec<u8> {
        let length = (payload as u32).to_be_bytes();
        let header = [length[1], length[2], length[3], kind, 0, 0, 0, 0, 1];
        [&header[..], &vec![7; payload]].concat()
    }

    #[test]
    fn frames_without_content_are_counted_across_any_split() {
        // SETTINGS, PING, empty DATA, DATA with 3 bytes and WINDOW_UPDATE count; large DATA does not.
        let frames = [(4, 36), (6, 8), (0, 0), (0, 3), (8, 4), (0, 16_384), (0, 64)];
        let bytes: Vec<u8> = frames.iter().flat_map(|(kind, payload)| frame(*kind, *payload)).collect();
        for cut in [1, 2, 8, 9, 10, 17, 1000, bytes.len()] {
            let mut limiter = FrameLimiter::new(Instant::now(), ReceiveMonitor::default());
            let begun_with = limiter.credit;
            assert!(bytes.chunks(cut).all(|bytes| limiter.take(bytes)));
            assert_eq!((begun_with - limiter.credit, limiter.left, limiter.read), (5, 0, 0), "{cut}");
        }
    }

    #[test]
    fn settings_frames_are_parsed_across_any_split() {
        let settings =
            |payload: &[u8], flags: u8| [&[0, 0, payload.len() as u8, 4, flags, 0, 0, 0, 0][..], payload].concat();
        let (window, streams) = ([0, 4, 0, 0, 255, 255], |max: u8| [0, 3, 0, 0, 0, max]);
        for cut in [1, 5, 6, 7, 9, 15, 1000] {
            let monitor = ReceiveMonitor::default();
            let mut limiter = FrameLimiter::new(Instant::now(), monitor.clone());
            let mut take = |bytes: &[u8]| bytes.chunks(cut).all(|bytes| limiter.take(bytes));
            assert_eq!(monitor.streams_max(), 1);
            // An ACK of our own settings contains none.
            assert!(take(&settings(&[], 1)));
            assert_eq!(monitor.streams_max(), 1);
            assert!(take(&settings(&window, 0)));
            assert_eq!(monitor.streams_max(), WEBHOOK_STREAMS_PER_CONNECTION_MAX);
            assert!(take(&settings(&[window, streams(7)].concat(), 0)));
            assert_eq!(monitor.streams_max(), 7);
            // A frame of another type with the same bytes.
            assert!(take(&[&[0, 0, 6, 99, 0, 0, 0, 0, 0][..], &streams(9)].concat()));
            assert!(take(&settings(&[], 0)) && take(&settings(&window, 0)));
            assert_eq!(monitor.streams_max(), 7);
            assert!(take(&settings(&streams(0), 0)));
            assert_eq!(monitor.streams_max(), 0);
        }
    }

    #[test]
    fn requests_and_time_earn_frame_credit() {
        let now = Instant::now();
        let mut limiter = FrameLimiter::new(now, ReceiveMonitor::default());
        let settings = frame(4, 0);
        let begun_with = limiter.credit;
        for _ in 0..begun_with {
            assert!(limiter.take(&settings));
        }
        assert!(!limiter.take(&settings));
        limiter.earn(2, now + Duration::from_millis(10));
        assert!(limiter.take(&settings) && limiter.take(&settings));
        assert!(!limiter.take(&settings));
        limiter.earn(0, now + Duration::from_secs(1));
        assert_eq!(limiter.credit, WEBHOOK_FRAMES_A_SECOND);
        limiter.earn(u32::MAX, now + Duration::from_secs(1_000_000));
        assert_eq!(limiter.credit, WEBHOOK_FRAMES_AHEAD_MAX);
    }
}
