//! What receivers answer.

use std::time::Duration;

use bytes::Bytes;

use millrace_webhooks::client::{ClientConfig, Request};
use support::receiver::{Receiver, Step, answer, answer_with, send};

use crate::webhook_client::fixture::{BODY, Fixture, answered, insecure, request};

#[test]
fn the_request_arrives_as_it_was_meant() {
    let receiver = Receiver::start(|_| answer(200, "thanks"));
    let fixture = Fixture::new(insecure());
    assert_eq!(fixture.post(&receiver.url("/hooks/a%20b?c=d")), answered(200, "thanks"));
    let seen = &receiver.requests()[0];
    assert_eq!((seen.method.as_str(), seen.target.as_str()), ("POST", "/hooks/a%20b?c=d"));
    assert_eq!(seen.body, BODY.as_bytes());
    let mut names = seen.headers.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>();
    names.sort_unstable();
    // Nothing that was not asked for: no accept-encoding above all.
    assert_eq!(names, ["content-length", "content-type", "host", "webhook-id"]);
    assert_eq!(seen.header("host"), Some(receiver.address().to_string().as_str()));
    assert_eq!(seen.header("content-length"), Some(BODY.len().to_string().as_str()));
    assert_eq!(seen.header("webhook-id"), Some("evt_1"));
}

#[test]
fn bodies_of_any_size_are_sent() {
    let receiver = Receiver::start(|_| answer(200, ""));
    let fixture = Fixture::new(insecure());
    for size in [0, 1, 64 * 1024, 3 * 1024 * 1024] {
        let body = Bytes::from(vec![b'x'; size]);
        assert_eq!(fixture.send(Request { body, ..request(&receiver.url("/")) }), answered(200, ""));
    }
    let sizes = receiver.requests().iter().map(|seen| seen.body.len()).collect::<Vec<_>>();
    assert_eq!(sizes, [0, 1, 64 * 1024, 3 * 1024 * 1024]);
    assert_eq!(receiver.connections(), 1);
}

#[test]
fn every_status_is_an_answer() {
    let receiver = Receiver::start(|seen| answer(seen.target[1..].parse().unwrap(), "why"));
    let fixture = Fixture::new(insecure());
    for status in [200, 201, 302, 400, 404, 410, 429, 500, 503, 599, 999] {
        assert_eq!(fixture.post(&receiver.url(&format!("/{status}"))), answered(status, "why"));
    }
    assert_eq!(receiver.connections(), 1);
}

#[test]
fn answers_without_a_length() {
    for (bytes, expected, connections) in [
        ("HTTP/1.1 204 No Content\r\n\r\n", answered(204, ""), 1),
        ("HTTP/1.1 304 Not Modified\r\n\r\n", answered(304, ""), 1),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nT: r\r\n\r\n",
            answered(200, "abcde"),
            1,
        ),
        ("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nto the end", answered(200, "to the end"), 2),
        ("HTTP/1.0 200 OK\r\n\r\nto the end", answered(200, "to the end"), 2),
    ] {
        let receiver = Receiver::start(move |_| {
            let mut steps = send(bytes);
            if bytes.ends_with("end") {
                steps.push(Step::Close);
            }
            steps
        });
        let fixture = Fixture::new(insecure());
        for _ in 0..2 {
            assert_eq!(fixture.post(&receiver.url("/")), expected, "{bytes}");
        }
        assert_eq!(receiver.connections(), connections, "{bytes}");
    }
}

#[test]
fn interim_answers_are_passed_over() {
    let receiver = Receiver::start(|_| {
        let mut steps = send("HTTP/1.1 100 Continue\r\n\r\n");
        steps.push(Step::Pause(Duration::from_millis(30)));
        steps.extend(send("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n"));
        steps.extend(answer(200, "at last"));
        steps
    });
    let fixture = Fixture::new(insecure());
    for _ in 0..2 {
        assert_eq!(fixture.post(&receiver.url("/")), answered(200, "at last"));
    }
    assert_eq!(receiver.connections(), 1);
}

#[test]
fn switching_protocols_is_not_followed() {
    let receiver = Receiver::start(|_| send("HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"));
    let outcome = Fixture::new(insecure()).post(&receiver.url("/"));
    assert_eq!(outcome.response.map(|answer| answer.status), Some(101));
}

#[test]
fn redirects_are_not_followed() {
    let other = Receiver::start(|_| answer(200, ""));
    for status in [301, 302, 303, 307, 308] {
        let location = format!("Location: {}\r\n", other.url("/admin"));
        let receiver = Receiver::start(move |_| answer_with(status, &location, "over there"));
        assert_eq!(Fixture::new(insecure()).post(&receiver.url("/")), answered(status, "over there"));
    }
    assert_eq!(other.connections(), 0);
}

#[test]
fn the_pause_a_receiver_asks_for() {
    let receiver = Receiver::start(|_| answer_with(429, "Retry-After: 17\r\n", ""));
    let answer = Fixture::new(insecure()).post(&receiver.url("/")).response.unwrap();
    assert_eq!((answer.status, answer.retry_after), (429, Some(Duration::from_secs(17))));
}

#[test]
fn the_beginning_of_the_body_is_kept_as_it_came() {
    let long = "ab".repeat(2000);
    // Compressed or not, it is shown and never unpacked.
    let receiver = Receiver::start(move |_| answer_with(200, "Content-Encoding: gzip\r\n", &long));
    let fixture = Fixture::new(insecure());
    for _ in 0..2 {
        assert_eq!(fixture.post(&receiver.url("/")), answered(200, &"ab".repeat(512)));
    }
    assert_eq!(receiver.connections(), 1, "the rest was read");
}

#[test]
fn long_bodies_are_cut_and_cost_the_connection() {
    const ENDLESS: usize = 100 * 1024 * 1024;
    for announced in [true, false] {
        let receiver = Receiver::start(move |_| {
            let framing =
                if announced { format!("Content-Length: {ENDLESS}") } else { "Transfer-Encoding: chunked".to_owned() };
            let mut steps = send(&format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n"));
            let data = "x".repeat(0x10000);
            let part = if announced { data } else { format!("10000\r\n{data}\r\n") };
            steps.extend((0..ENDLESS / 0x10000).map(|_| Step::Send(part.clone().into_bytes())));
            steps
        });
        let fixture = Fixture::new(ClientConfig { response_bytes_max: 100_000, ..insecure() });
        for _ in 0..2 {
            assert_eq!(fixture.post(&receiver.url("/")), answered(200, &"x".repeat(1024)));
        }
        assert_eq!(receiver.connections(), 2);
        fixture.idle(Duration::from_millis(200));
        assert_eq!(receiver.open_connections(), 0, "nothing reads on");
    }
}
