//! Connections are used again where they can be, and never to an attempt's harm.

use std::time::Duration;

use millrace_webhooks::delivery::outcome::ErrorClass;
use support::receiver::{Receiver, Step, answer, answer_with};

use crate::webhook_client::fixture::{Fixture, answered, failed, insecure};

#[test]
fn one_connection_serves_one_request_after_another() {
    let receiver = Receiver::start(|_| answer(200, "ok"));
    let fixture = Fixture::new(insecure());
    for _ in 0..200 {
        assert_eq!(fixture.post(&receiver.url("/")), answered(200, "ok"));
    }
    assert_eq!(receiver.connections(), 1);
}

#[test]
fn requests_side_by_side_have_a_connection_each() {
    let receiver = Receiver::start(|_| {
        let mut steps = vec![Step::Pause(Duration::from_millis(50))];
        steps.extend(answer(200, "ok"));
        steps
    });
    let fixture = Fixture::new(insecure());
    for _ in 0..3 {
        assert!(fixture.post_all(&receiver.url("/"), 20).iter().all(|outcome| *outcome == answered(200, "ok")));
    }
    assert_eq!(receiver.connections(), 20);
}

#[test]
fn a_receiver_that_closes_after_each_answer_fails_nothing() {
    // With and without saying so, at once and a little later: the close meets the next request at every moment.
    for (headers, pause) in [("Connection: close\r\n", 0), ("", 0), ("", 50), ("", 200), ("", 500)] {
        let receiver = Receiver::start(move |_| {
            let mut steps = answer_with(200, headers, "ok");
            steps.push(Step::Pause(Duration::from_micros(pause)));
            steps.push(Step::Close);
            steps
        });
        let fixture = Fixture::new(insecure());
        for _ in 0..300 {
            assert_eq!(fixture.post(&receiver.url("/")), answered(200, "ok"));
        }
        assert_eq!(receiver.count(), 300, "a request that was sent again had not been read");
    }
}

#[test]
fn a_reused_connection_closed_by_the_receiver_is_replaced() {
    for end in [|| Step::Close, || Step::Reset] {
        let receiver = Receiver::start(move |seen| if seen.turn == 0 { answer(200, "ok") } else { vec![end()] });
        let fixture = Fixture::new(insecure());
        for _ in 0..20 {
            assert_eq!(fixture.post(&receiver.url("/")), answered(200, "ok"));
        }
    }
}

#[test]
fn it_is_not_replaced_once_the_answer_has_begun() {
    let receiver = Receiver::start(|seen| {
        if seen.turn == 0 { answer(200, "ok") } else { vec![Step::Send(b"HTTP/1.1 2".to_vec()), Step::Close] }
    });
    let fixture = Fixture::new(insecure());
    assert_eq!(fixture.post(&receiver.url("/")), answered(200, "ok"));
    assert_eq!(fixture.post(&receiver.url("/")), failed(ErrorClass::ConnectionClosed));
    assert_eq!(receiver.count(), 2);
}

#[test]
fn a_new_connection_gets_one_chance() {
    let receiver = Receiver::start(|_| vec![Step::Close]);
    assert_eq!(Fixture::new(insecure()).post(&receiver.url("/")), failed(ErrorClass::ConnectionClosed));
    assert_eq!(receiver.count(), 1);
}

#[test]
fn bytes_that_nobody_asked_for_end_an_idle_connection() {
    let receiver = Receiver::start(|_| {
        let mut steps = answer(200, "ok");
        steps.push(Step::Pause(Duration::from_millis(20)));
        steps.extend(answer(500, "not yours"));
        steps
    });
    let fixture = Fixture::new(insecure());
    for _ in 0..3 {
        assert_eq!(fixture.post(&receiver.url("/")), answered(200, "ok"));
        fixture.idle(Duration::from_millis(60));
    }
    assert_eq!(receiver.connections(), 3);
}

#[test]
fn an_early_answer_does_not_block_the_connection_for_others() {
    // Answers before the body has been read, and never reads it.
    let receiver = Receiver::raw(|mut tcp, _| {
        use std::io::{Read as _, Write as _};
        let _ = tcp.read(&mut [0; 1024])?;
        tcp.write_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")?;
        std::thread::sleep(Duration::from_secs(5));
        Ok(())
    });
    let fixture = Fixture::new(insecure());
    for _ in 0..2 {
        let body = bytes::Bytes::from(vec![b'x'; 16 * 1024 * 1024]);
        let request =
            millrace_webhooks::client::Request { body, ..crate::webhook_client::fixture::request(&receiver.url("/")) };
        assert_eq!(fixture.send(request), answered(413, ""));
    }
    assert_eq!(receiver.connections(), 2);
}
