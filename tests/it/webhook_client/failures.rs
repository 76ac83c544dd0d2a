//! Every way an attempt can fail has its class, and ends in time.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use millrace_webhooks::client::ClientConfig;
use millrace_webhooks::delivery::outcome::{ErrorClass, Outcome};
use support::receiver::{self, Receiver, Step, answer, reset, send};

use crate::webhook_client::fixture::{Fixture, answered, failed, insecure};

const SHORT: Duration = Duration::from_millis(300);

fn impatient() -> Fixture {
    Fixture::new(ClientConfig { timeout: SHORT, ..insecure() })
}

fn in_time(begun: Instant) {
    let took = begun.elapsed();
    assert!(took >= SHORT && took < SHORT * 30, "{took:?}");
}

/// What comes of a receiver that says `steps` to each request.
fn outcome_of(steps: fn() -> Vec<Step>) -> Outcome {
    let receiver = Receiver::start(move |_| steps());
    Fixture::new(insecure()).post(&receiver.url("/"))
}

fn partly(status: u16, body: &str, error: ErrorClass) -> Outcome {
    Outcome { error: Some(error.into()), ..answered(status, body) }
}

#[test]
fn nobody_listens() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("http://127.0.0.1:{port}/");
    assert_eq!(Fixture::new(insecure()).post(&url), failed(ErrorClass::ConnectionRefused));
}

/// As in a process that is stopped and goes on: by then somebody else may have sent it.
#[test]
fn nothing_goes_out_after_the_attempts_time() {
    let receiver = Receiver::start(|_| answer(200, ""));
    let fixture = impatient();
    let why = fixture.postponed_by(&receiver.url("/"), SHORT * 2);
    assert!(why.contains("held up"), "{why}");
    fixture.idle(SHORT);
    assert_eq!(receiver.count(), 0);
    // The connection that was made is there for the next one.
    assert_eq!(fixture.post(&receiver.url("/")), answered(200, ""));
}

#[test]
fn the_name_does_not_exist() {
    let outcome = Fixture::new(insecure()).post("http://nowhere.invalid/");
    assert_eq!(outcome, failed(ErrorClass::DnsFailed));
}

#[test]
fn connections_are_not_accepted() {
    // A listener whose backlog is full swallows what comes: the next connection waits for ever.
    let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    listener.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap().as_socket().unwrap();
    let _fills = (0..4)
        .map(|_| {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            socket.set_nonblocking(true).unwrap();
            let _ = socket.connect(&address.into());
            socket
        })
        .collect::<Vec<_>>();
    let begun = Instant::now();
    let fixture = Fixture::new(ClientConfig { connect_timeout: SHORT, ..insecure() });
    assert_eq!(fixture.post(&format!("http://{address}/")), failed(ErrorClass::ConnectTimeout));
    in_time(begun);
    // The whole timeout is a bound, too.
    let begun = Instant::now();
    assert_eq!(impatient().post(&format!("http://{address}/")), failed(ErrorClass::ConnectTimeout));
    in_time(begun);
}

#[test]
fn reset_before_the_request_and_after() {
    let receiver = Receiver::raw(|tcp, _| reset(&tcp));
    assert_eq!(Fixture::new(insecure()).post(&receiver.url("/")), failed(ErrorClass::ConnectionClosed));
    assert_eq!(outcome_of(|| vec![Step::Reset]), failed(ErrorClass::ConnectionClosed));
    assert_eq!(outcome_of(|| vec![Step::Close]), failed(ErrorClass::ConnectionClosed));
}

#[test]
fn closed_in_the_middle_of_the_answer() {
    for (steps, expected) in [
        ((|| [send("HTTP/1.1 200 OK\r\nContent-"), vec![Step::Close]].concat_steps()) as fn() -> Vec<Step>, None),
        (
            || [send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"), vec![Step::Close]].concat_steps(),
            Some("half"),
        ),
        (
            || {
                let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n";
                [send(head), vec![Step::Close]].concat_steps()
            },
            Some("half"),
        ),
        (
            || {
                let pause = Step::Pause(Duration::from_millis(50));
                [send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"), vec![pause, Step::Reset]].concat_steps()
            },
            Some("half"),
        ),
    ] {
        let expected = match expected {
            None => failed(ErrorClass::ConnectionClosed),
            Some(body) => partly(200, body, ErrorClass::ConnectionClosed),
        };
        assert_eq!(outcome_of(steps), expected);
    }
}

trait ConcatSteps {
    fn concat_steps(self) -> Vec<Step>;
}

impl<const N: usize> ConcatSteps for [Vec<Step>; N] {
    fn concat_steps(self) -> Vec<Step> {
        self.into_iter().flatten().collect()
    }
}

#[test]
fn silence_before_the_head() {
    let receiver = Receiver::start(|_| vec![Step::Hold]);
    let begun = Instant::now();
    assert_eq!(impatient().post(&receiver.url("/")), failed(ErrorClass::Timeout));
    in_time(begun);
}

#[test]
fn silence_after_the_head() {
    let receiver = Receiver::start(|_| {
        [send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"), vec![Step::Hold]].concat_steps()
    });
    let begun = Instant::now();
    let fixture = impatient();
    assert_eq!(fixture.post(&receiver.url("/")), partly(200, "half", ErrorClass::Timeout));
    in_time(begun);
    fixture.idle(Duration::from_millis(100));
    assert_eq!(receiver.open_connections(), 0, "the connection is closed");
}

#[test]
fn a_byte_now_and_then_does_not_prolong_it() {
    let drip = |text: &'static str| {
        text.bytes()
            .flat_map(|byte| [Step::Send(vec![byte]), Step::Pause(Duration::from_millis(20))])
            .collect::<Vec<_>>()
    };
    let head = Receiver::start(move |_| drip("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX: slowly does it\r\n\r\nok"));
    let begun = Instant::now();
    assert_eq!(impatient().post(&head.url("/")), failed(ErrorClass::Timeout));
    in_time(begun);

    let body = Receiver::start(move |_| {
        [send("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"), drip("one byte at a time, for ever and ever")]
            .concat_steps()
    });
    let begun = Instant::now();
    let outcome = impatient().post(&body.url("/"));
    in_time(begun);
    assert_eq!(outcome.error, Some(ErrorClass::Timeout.into()));
    assert!(outcome.response.unwrap().body.starts_with("one b"));

    // As many as are taken, and for longer than the attempt may last.
    let interim = Receiver::start(|_| {
        (0..15)
            .flat_map(|_| [send("HTTP/1.1 102 Processing\r\n\r\n"), vec![Step::Pause(SHORT / 10)]])
            .flatten()
            .collect()
    });
    let begun = Instant::now();
    assert_eq!(impatient().post(&interim.url("/")), failed(ErrorClass::Timeout));
    in_time(begun);
}

#[test]
fn a_receiver_that_does_not_read() {
    let receiver = Receiver::raw(|tcp, _| {
        std::thread::sleep(Duration::from_secs(2));
        drop(tcp);
        Ok(())
    });
    let body = bytes::Bytes::from(vec![b'x'; 16 * 1024 * 1024]);
    let request =
        millrace_webhooks::client::Request { body, ..crate::webhook_client::fixture::request(&receiver.url("/")) };
    let begun = Instant::now();
    assert_eq!(impatient().send(request), failed(ErrorClass::Timeout));
    in_time(begun);
}

#[test]
fn heads_beyond_the_limits() {
    let long = Receiver::start(|_| send(&format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(100_000))));
    assert_eq!(Fixture::new(insecure()).post(&long.url("/")), failed(ErrorClass::InvalidResponse));
    let many = Receiver::start(|_| send(&format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: y\r\n".repeat(101))));
    assert_eq!(Fixture::new(insecure()).post(&many.url("/")), failed(ErrorClass::InvalidResponse));
    // Just inside both.
    let fits = Receiver::start(|_| {
        let headers = format!("X: {}\r\n{}", "x".repeat(16_000), "X: y\r\n".repeat(90));
        receiver::answer_with(200, &headers, "ok")
    });
    assert_eq!(Fixture::new(insecure()).post(&fits.url("/")), answered(200, "ok"));
}

#[test]
fn garbage() {
    for bytes in [
        "garbage\r\n\r\n",
        "SSH-2.0-OpenSSH_9.2\r\n",
        "220 mail.example ESMTP\r\n",
        "HTTP/3.0 200 OK\r\n\r\n",
        "HTTP/1.1 20 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: five\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        "\0\0\0\0\0\0\0\0\0",
    ] {
        let receiver = Receiver::start(move |_| send(bytes));
        assert_eq!(Fixture::new(insecure()).post(&receiver.url("/")), failed(ErrorClass::InvalidResponse), "{bytes}");
        // Also where it comes before the request does.
        let receiver = Receiver::raw(move |mut tcp, _| {
            tcp.write_all(bytes.as_bytes())?;
            while tcp.read(&mut [0; 1024])? > 0 {}
            Ok(())
        });
        let outcome = Fixture::new(insecure()).post(&receiver.url("/"));
        assert_eq!(outcome, failed(ErrorClass::InvalidResponse), "{bytes}");
    }
    let chunks = Receiver::start(|_| send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnope\r\n"));
    let outcome = Fixture::new(insecure()).post(&chunks.url("/"));
    assert_eq!(outcome, partly(200, "", ErrorClass::InvalidResponse));
}

#[test]
fn a_failure_leaves_the_next_attempt_alone() {
    let receiver = Receiver::start(|seen| match seen.connection {
        0 => vec![Step::Hold],
        1 => send("garbage\r\n\r\n"),
        2 => vec![Step::Reset],
        _ => answer(200, "ok"),
    });
    let fixture = impatient();
    let outcomes = (0..5).map(|_| fixture.post(&receiver.url("/"))).collect::<Vec<_>>();
    assert_eq!(
        outcomes,
        [
            failed(ErrorClass::Timeout),
            failed(ErrorClass::InvalidResponse),
            failed(ErrorClass::ConnectionClosed),
            answered(200, "ok"),
            answered(200, "ok"),
        ]
    );
    assert_eq!(receiver.connections(), 4);
}

#[test]
fn interim_answers_without_end_are_no_answer() {
    const EARLY: &str = "HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\n";
    const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    assert_eq!(outcome_of(|| send(&[&EARLY.repeat(16), OK].concat())), answered(200, "ok"));
    let invalid = failed(ErrorClass::InvalidResponse);
    assert_eq!(outcome_of(|| send(&[&EARLY.repeat(17), OK].concat())), invalid);
    // One after the other, and as fast as they can be read; neither costs the time until the timeout.
    assert_eq!(
        outcome_of(|| (0..30)
            .flat_map(|_| [Step::Send(EARLY.into()), Step::Pause(Duration::from_millis(5))])
            .collect()),
        invalid
    );
    let begun = Instant::now();
    let receiver = Receiver::raw(|mut tcp, _| {
        let many = EARLY.repeat(1000);
        let _ = tcp.read(&mut [0; 4096])?;
        loop {
            tcp.write_all(many.as_bytes())?;
        }
    });
    let fixture = Fixture::new(insecure());
    assert_eq!(fixture.post(&receiver.url("/")), invalid);
    assert!(begun.elapsed() < insecure().timeout);
    // Few, and large.
    let large = format!("HTTP/1.1 103 Early Hints\r\nLink: {}\r\n\r\n", "x".repeat(20_000));
    let receiver = Receiver::start(move |_| send(&[&large.repeat(15), OK].concat()));
    assert_eq!(fixture.post(&receiver.url("/")), invalid);
}
