//! HTTP/2, where TLS negotiates it.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::{Request, Response, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use millrace_webhooks::client::ClientConfig;
use millrace_webhooks::delivery::outcome::{ErrorClass, Outcome};
use support::certificates::Authority;

use crate::webhook_client::fixture::{BODY, Fixture, answered, failed, secure};

type Tls = TlsStream<TcpStream>;

/// Accepts HTTP/2 over TLS and hands each connection and its number to a handler.
struct Http2Receiver {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    ca: (TempDir, ClientConfig),
    /// Dropped, it ends the thread that serves.
    _serving: oneshot::Sender<()>,
}

impl Http2Receiver {
    fn start<F>(handler: impl Fn(Tls, usize) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let authority = Authority::new();
        let mut tls = authority.server(&["127.0.0.1"]);
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let dir = tempfile::tempdir().unwrap();
        let config = ClientConfig { ca_file: Some(authority.file(dir.path())), ..secure() };
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let (serving, stop) = oneshot::channel();
        let accepted = Arc::clone(&connections);
        let accept = async move {
            let listener = TcpListener::from_std(listener).unwrap();
            let mut tasks = JoinSet::new();
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let number = accepted.fetch_add(1, Ordering::SeqCst);
                if let Ok(tls) = acceptor.accept(tcp).await {
                    tasks.spawn(handler(tls, number));
                }
            }
        };
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(futures_util::future::select(std::pin::pin!(accept), stop));
        });
        Self { address, connections, ca: (dir, config), _serving: serving }
    }

    /// Every request gets what `answer` makes of it.
    fn answering<F>(answer: impl Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Response<Full<Bytes>>> + Send + 'static,
    {
        Self::start(move |tls, _| {
            let answer = answer.clone();
            async move {
                let service = hyper::service::service_fn(move |request| {
                    let answered = answer(request);
                    async move { Ok::<_, Infallible>(answered.await) }
                });
                let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                builder.max_concurrent_streams(100);
                let _ = builder.serve_connection(TokioIo::new(tls), service).await;
            }
        })
    }

    fn config(&self) -> ClientConfig {
        self.ca.1.clone()
    }

    fn url(&self) -> String {
        format!("https://{}/hook?x", self.address)
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

fn ok(body: &str) -> Response<Full<Bytes>> {
    Response::new(Full::new(Bytes::copy_from_slice(body.as_bytes())))
}

fn all_ok(outcomes: &[Outcome]) -> bool {
    outcomes.iter().all(|outcome| *outcome == answered(200, "ok"))
}

#[test]
fn the_request_arrives_as_it_was_meant() {
    let receiver = Http2Receiver::answering(|request| async move {
        assert_eq!(request.version(), Version::HTTP_2);
        let (head, body) = request.into_parts();
        let mut names = head.headers.keys().map(hyper::header::HeaderName::as_str).collect::<Vec<_>>();
        names.sort_unstable();
        assert_eq!(names, ["content-length", "content-type", "webhook-id"]);
        let body = body.collect().await.unwrap().to_bytes();
        ok(&format!("{} {} {}", head.method, head.uri, String::from_utf8_lossy(&body)))
    });
    let fixture = Fixture::new(receiver.config());
    for _ in 0..3 {
        let expected = format!("POST {} {BODY}", receiver.url());
        assert_eq!(fixture.post(&receiver.url()), answered(200, &expected));
    }
    assert_eq!(receiver.connections(), 1);
}

#[test]
fn a_burst_shares_connections() {
    let receiver = Http2Receiver::answering(|_| async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        ok("ok")
    });
    let fixture = Fixture::new(receiver.config());
    assert!(all_ok(&fixture.post_all(&receiver.url(), 100)));
    assert_eq!(receiver.connections(), 1, "one for a hundred");
    assert!(all_ok(&fixture.post_all(&receiver.url(), 250)));
    let connections = receiver.connections();
    assert!((2..150).contains(&connections), "{connections}");
    assert!(all_ok(&fixture.post_all(&receiver.url(), 100)));
    assert_eq!(receiver.connections(), connections);
}

#[test]
fn slow_answers_do_not_delay_others() {
    let receiver = Http2Receiver::answering(|request| async move {
        if request.headers().get("webhook-id").is_some_and(|id| id == "slow") {
            std::future::pending::<()>().await;
        }
        ok("ok")
    });
    let fixture = Fixture::new(ClientConfig { timeout: Duration::from_millis(500), ..receiver.config() });
    assert_eq!(fixture.post(&receiver.url()), answered(200, "ok"));
    let mut slow = crate::webhook_client::fixture::request(&receiver.url());
    slow.headers.insert("webhook-id", "slow".parse().unwrap());
    assert_eq!(fixture.send(slow), failed(ErrorClass::Timeout));
    assert_eq!(fixture.post(&receiver.url()), answered(200, "ok"));
}

#[test]
fn bodies_are_bounded_and_the_connection_stays() {
    let receiver = Http2Receiver::answering(|_| async { Response::new(Full::new(vec![b'x'; 10_000_000].into())) });
    let fixture = Fixture::new(receiver.config());
    for _ in 0..5 {
        assert_eq!(fixture.post(&receiver.url()), answered(200, &"x".repeat(1024)));
    }
    assert_eq!(receiver.connections(), 1);
}

#[test]
fn heads_beyond_the_limit() {
    let receiver = Http2Receiver::answering(|request| async {
        // Answered early, the receiver would also reset the stream, and which of the two is seen first is chance.
        request.collect().await.unwrap();
        let mut answer = ok("ok");
        for at in 0..10 {
            let name = hyper::header::HeaderName::try_from(format!("x-{at}")).unwrap();
            answer.headers_mut().insert(name, "x".repeat(8000).parse().unwrap());
        }
        answer
    });
    assert_eq!(Fixture::new(receiver.config()).post(&receiver.url()), failed(ErrorClass::InvalidResponse));
}

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const INTERNAL_ERROR: [u8; 4] = [0, 0, 0, 2];
const REFUSED_STREAM: [u8; 4] = [0, 0, 0, 7];

/// Answers 200 on the first stream of each connection; to the second it says `then`, in frames, and ends.
fn after_the_first(then: Vec<u8>) -> Http2Receiver {
    Http2Receiver::start(move |tls, _| {
        let then = then.clone();
        async move { speak(tls, &then).await.unwrap_or_default() }
    })
}

async fn speak(mut tls: Tls, then: &[u8]) -> std::io::Result<()> {
    const HEADERS: u8 = 1;
    const END: u8 = 0x1 | 0x4;
    const STATUS_200: &[u8] = &[0x88];
    tls.read_exact(&mut [0; b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len()]).await?;
    tls.write_all(&frame(SETTINGS, 0, 0, &[])).await?;
    loop {
        let mut head = [0; 9];
        tls.read_exact(&mut head).await?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        tls.read_exact(&mut payload).await?;
        match (head[3], u32::from_be_bytes([head[5], head[6], head[7], head[8]])) {
            (HEADERS, 1) => tls.write_all(&frame(HEADERS, END, 1, STATUS_200)).await?,
            (HEADERS, _) => {
                tls.write_all(then).await?;
                tls.flush().await?;
                if then[3] == GOAWAY {
                    return Ok(());
                }
            }
            _ => {}
        }
    }
}

#[test]
fn what_the_receiver_did_not_begin_with_is_sent_again() {
    // Whatever it ends the connection for: the stream is above the last one that it names.
    let goodbye = |reason: [u8; 4]| frame(GOAWAY, 0, 0, &[1_u32.to_be_bytes(), reason].concat());
    for then in [goodbye([0; 4]), goodbye(INTERNAL_ERROR), frame(RST_STREAM, 0, 3, &REFUSED_STREAM)] {
        let receiver = after_the_first(then);
        let fixture = Fixture::new(receiver.config());
        for _ in 0..10 {
            assert_eq!(fixture.post(&receiver.url()), answered(200, ""));
        }
        assert_eq!(receiver.connections(), 10);
    }
}

#[test]
fn what_it_broke_off_is_a_failure() {
    // A GOAWAY that names the stream says that it may have begun with it.
    let trouble = |last: u32| frame(GOAWAY, 0, 0, &[last.to_be_bytes(), INTERNAL_ERROR].concat());
    for then in [trouble(3), trouble(i32::MAX as u32), frame(RST_STREAM, 0, 3, &INTERNAL_ERROR)] {
        let receiver = after_the_first(then);
        let fixture = Fixture::new(receiver.config());
        for _ in 0..3 {
            assert_eq!(fixture.post(&receiver.url()), answered(200, ""));
            assert_eq!(fixture.post(&receiver.url()), failed(ErrorClass::ConnectionClosed));
        }
    }
}

/// Refuses the first request of each connection whose number `refuses` says; answers the others. Counts requests.
fn refusing(refuses: fn(usize) -> bool) -> (Http2Receiver, Arc<AtomicUsize>) {
    let requests = Arc::new(AtomicUsize::new(0));
    let counts = Arc::clone(&requests);
    let receiver = Http2Receiver::start(move |tls, number| {
        let counts = Arc::clone(&counts);
        async move {
            let Ok(mut connection) = h2::server::handshake(tls).await else { return };
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                counts.fetch_add(1, Ordering::SeqCst);
                if refuses(number) {
                    respond.send_reset(h2::Reason::REFUSED_STREAM);
                    continue;
                }
                let mut body = respond.send_response(Response::builder().status(200).body(()).unwrap(), false).unwrap();
                let _ = body.send_data(Bytes::from_static(b"ok"), true);
            }
        }
    });
    (receiver, requests)
}

#[test]
fn a_refused_stream_is_resent_at_once_but_not_for_ever() {
    let (receiver, requests) = refusing(|number| number < 3);
    let fixture = Fixture::new(receiver.config());
    assert_eq!(fixture.post(&receiver.url()), answered(200, "ok"));
    assert_eq!((receiver.connections(), requests.load(Ordering::SeqCst)), (4, 4));
    let (receiver, requests) = refusing(|_| true);
    let fixture = Fixture::new(receiver.config());
    assert_eq!(fixture.post(&receiver.url()), failed(ErrorClass::ConnectionClosed));
    assert_eq!(requests.load(Ordering::SeqCst), 4);
}

#[test]
fn streams_over_the_receivers_limit_open_more_connections() {
    // One answer takes half a second: 40 after one another would take far longer than an attempt may.
    let receiver = Http2Receiver::start(|tls, _| async move {
        let mut builder = h2::server::Builder::new();
        let Ok(mut connection) = builder.max_concurrent_streams(1).handshake::<_, Bytes>(tls).await else { return };
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(500)).await;
                let answer = Response::builder().status(200).body(()).unwrap();
                let mut body = respond.send_response(answer, false).unwrap();
                let _ = body.send_data(Bytes::from_static(b"ok"), true);
            });
        }
    });
    let fixture = Fixture::new(ClientConfig { timeout: Duration::from_secs(10), ..receiver.config() });
    for _ in 0..2 {
        assert!(all_ok(&fixture.post_all(&receiver.url(), 40)));
        assert_eq!(receiver.connections(), 40);
    }
}

#[test]
fn a_receiver_without_settings_is_still_asked() {
    // It answers before it says what HTTP/2 begins with: the request is not held back for ever.
    let receiver = Http2Receiver::start(|mut tls, _| async move {
        const SETTINGS_AND_OK: [u8; 19] = [0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 1, 1, 5, 0, 0, 0, 1, 0x88];
        if until_request(&mut tls).await.is_ok() {
            let _ = tls.write_all(&SETTINGS_AND_OK).await;
            while tls.read(&mut [0; 1024]).await.is_ok_and(|read| read > 0) {}
        }
    });
    assert_eq!(Fixture::new(receiver.config()).post(&receiver.url()), answered(200, ""));
}

/// Reads until a request's body is there.
async fn until_request(tls: &mut Tls) -> std::io::Result<()> {
    let mut read = Vec::new();
    while !read.windows(BODY.len()).any(|window| window == BODY.as_bytes()) {
        if tls.read_buf(&mut read).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}

#[test]
fn a_graceful_goodbye_loses_nothing() {
    // Goodbye after every tenth request, while others are under way.
    let receiver = Http2Receiver::start(|tls, _| async move {
        let Ok(mut connection) = h2::server::handshake(tls).await else { return };
        let mut turn = 0;
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            turn += 1;
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(2)).await;
                let answer = Response::builder().status(200).body(()).unwrap();
                let mut body = respond.send_response(answer, false).unwrap();
                let _ = body.send_data(Bytes::from_static(b"ok"), true);
            });
            if turn == 10 {
                connection.graceful_shutdown();
            }
        }
    });
    let fixture = Fixture::new(receiver.config());
    for _ in 0..20 {
        assert!(all_ok(&fixture.post_all(&receiver.url(), 30)));
    }
    assert!(receiver.connections() >= 20);
}

#[test]
fn a_receiver_that_allows_few_streams_gets_no_more() {
    let receiver = Http2Receiver::start(|tls, _| async move {
        let mut builder = h2::server::Builder::new();
        let Ok(mut connection) = builder.max_concurrent_streams(2).handshake::<_, Bytes>(tls).await else { return };
        let busy = Arc::new(AtomicUsize::new(0));
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            let busy = Arc::clone(&busy);
            tokio::spawn(async move {
                let too_many = busy.fetch_add(1, Ordering::SeqCst) >= 2;
                tokio::time::sleep(Duration::from_millis(5)).await;
                busy.fetch_sub(1, Ordering::SeqCst);
                let answer = Response::builder().status(if too_many { 500 } else { 200 }).body(()).unwrap();
                let mut body = respond.send_response(answer, false).unwrap();
                let _ = body.send_data(Bytes::from_static(b"ok"), true);
            });
        }
    });
    let fixture = Fixture::new(receiver.config());
    assert!(all_ok(&fixture.post_all(&receiver.url(), 1)));
    assert!(all_ok(&fixture.post_all(&receiver.url(), 40)));
}

#[test]
fn a_connection_that_leads_nowhere_is_left() {
    // The first connection falls silent after its first answer, without being closed.
    let receiver = Http2Receiver::start(|tls, number| async move {
        let Ok(mut connection) = h2::server::handshake(tls).await else { return };
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            let answer = Response::builder().status(200).body(()).unwrap();
            let mut body = respond.send_response(answer, false).unwrap();
            let _ = body.send_data(Bytes::from_static(b"ok"), true);
            if number == 0 {
                let flush = tokio::time::timeout(Duration::from_millis(100), connection.accept());
                let _ = flush.await;
                std::future::pending::<()>().await;
            }
        }
    });
    let fixture = Fixture::new(ClientConfig { timeout: Duration::from_millis(500), ..receiver.config() });
    assert_eq!(fixture.post(&receiver.url()), answered(200, "ok"));
    fixture.idle(Duration::from_millis(200));
    let begun = Instant::now();
    assert_eq!(fixture.post(&receiver.url()), failed(ErrorClass::Timeout));
    assert!(begun.elapsed() < Duration::from_secs(2));
    assert_eq!(fixture.post(&receiver.url()), answered(200, "ok"));
    assert_eq!(receiver.connections(), 2);
}

#[test]
fn garbage_instead_of_frames() {
    let receiver = Http2Receiver::start(|mut tls, _| async move {
        let _ = tls.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        while tls.read(&mut [0; 1024]).await.is_ok_and(|read| read > 0) {}
    });
    assert_eq!(Fixture::new(receiver.config()).post(&receiver.url()), failed(ErrorClass::InvalidResponse));
}

/// SETTINGS as a server begins with, and then a frame without end that brings nothing.
fn flooding(frame: &'static [u8], after_request: bool) -> Http2Receiver {
    Http2Receiver::start(move |mut tls, _| async move {
        const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
        let _ = tls.write_all(&SETTINGS).await;
        if after_request {
            let _ = until_request(&mut tls).await;
        }
        let many = frame.repeat(1000);
        let (mut read, mut write) = tokio::io::split(tls);
        let reading = async { while read.read(&mut [0; 4096]).await.is_ok_and(|read| read > 0) {} };
        let writing = async { while write.write_all(&many).await.is_ok() {} };
        tokio::select! { () = reading => {}, () = writing => {} }
    })
}

#[test]
fn frames_that_bring_nothing_end_the_connection() {
    const PING: &[u8] = &[0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
    const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
    const WINDOW_UPDATE: &[u8] = &[0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    const UNKNOWN: &[u8] = &[0, 0, 0, 99, 0, 0, 0, 0, 0];
    for frame in [PING, SETTINGS, WINDOW_UPDATE, UNKNOWN] {
        for after_request in [false, true] {
            let receiver = flooding(frame, after_request);
            let begun = Instant::now();
            let outcome = Fixture::new(receiver.config()).post(&receiver.url());
            assert_eq!(outcome, failed(ErrorClass::InvalidResponse), "{frame:?}");
            assert!(begun.elapsed() < receiver.config().timeout);
        }
    }
}

#[test]
fn an_idle_connection_that_is_flooded_is_closed() {
    const PING: [u8; 17] = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
    const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    // HEADERS of stream 1 with `:status: 200`, which ends it.
    const OK: [u8; 10] = [0, 0, 1, 1, 5, 0, 0, 0, 1, 0x88];
    let ended = Arc::new(AtomicUsize::new(0));
    let counts = Arc::clone(&ended);
    let receiver = Http2Receiver::start(move |mut tls, _| {
        let counts = Arc::clone(&counts);
        async move {
            let _ = tls.write_all(&SETTINGS).await;
            let _ = until_request(&mut tls).await;
            let _ = tls.write_all(&OK).await;
            // Answered, and idle from then on.
            tokio::time::sleep(Duration::from_millis(200)).await;
            let many = PING.repeat(1000);
            let (mut read, mut write) = tokio::io::split(tls);
            let reading = async { while read.read(&mut [0; 4096]).await.is_ok_and(|read| read > 0) {} };
            let writing = async { while write.write_all(&many).await.is_ok() {} };
            tokio::select! { () = reading => {}, () = writing => {} }
            counts.fetch_add(1, Ordering::SeqCst);
        }
    });
    let fixture = Fixture::new(receiver.config());
    assert_eq!(fixture.post(&receiver.url()), answered(200, ""));
    let begun = Instant::now();
    while ended.load(Ordering::SeqCst) == 0 {
        assert!(begun.elapsed() < receiver.config().timeout, "it is read for ever");
        fixture.idle(Duration::from_millis(20));
    }
}
