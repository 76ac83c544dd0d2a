//! Random and mutated requests: whatever comes, the connection gets HTTP answers or a close, and the server stays.
//!
//! `MILLRACE_TEST_SEED=N` repeats a run.

use std::io::Read;
use std::time::{SystemTime, UNIX_EPOCH};

use support::server::{event, request};

use crate::http::fixture::{EVENT, Fixture, on_both_drivers};

const REQUESTS: usize = 2000;

/// Pseudo-random numbers (`SplitMix64`).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}

/// What is mutated: each feature of the protocol once.
fn models(f: &Fixture) -> Vec<Vec<u8>> {
    let key = Some(f.key.as_str());
    let n = EVENT.len();
    let batch = format!("[{EVENT},{EVENT}]");
    vec![
        f.good(),
        f.post(&event("t", Some("d"), r#"[1,{"a":"\u00e9\ud83d\ude00"},null,1e5]"#)),
        f.chunked(&format!("a;x=y\r\n{}\r\n{:x}\r\n{}\r\n0\r\nT: u\r\n\r\n", &EVENT[..10], n - 10, &EVENT[10..])),
        f.raw(&format!("Content-Length: {n}\r\nIdempotency-Key: \"k\"\r\nConnection: close\r\n"), EVENT),
        request("POST", "/api/events/batch", key, Some(batch.as_bytes())),
        request("GET", "/api/events?type=t&limit=5", key, None),
        request("GET", "/api/events/01890a5d-ac96-774b-bcce-b302099a8057", key, None),
        request("HEAD", "/health", None, None),
        request("POST", "/api/keys/rotate", Some("mr_wrong"), Some(br#"{"grace_seconds":60}"#)),
    ]
}

/// Bytes that mean something to HTTP or JSON.
const TOKENS: [&[u8]; 24] = [
    b"\r\n",
    b"\r",
    b"\n",
    b"\r\n\r\n",
    b" ",
    b"\t",
    b":",
    b"\0",
    b"\x7f",
    b"\xff",
    b"0\r\n\r\n",
    b"HTTP/1.1",
    b"HTTP/1.0",
    b"Content-Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Host: t\r\n",
    b"Connection: close\r\n",
    b"{",
    b"[",
    b"\"",
    b"\\u",
    b"99999999999999999999",
    b"-1",
    b"ffffffff",
];

/// A model with a few bytes changed, removed, repeated or put in; two models spliced; or noise.
fn mutant(random: &mut Random, models: &[Vec<u8>]) -> Vec<u8> {
    if random.below(20) == 0 {
        return (0..random.below(2000)).map(|_| random.next() as u8).collect();
    }
    let mut bytes = random.pick(models).clone();
    if random.below(5) == 0 {
        let other = random.pick(models);
        bytes.truncate(random.below(bytes.len()));
        bytes.extend_from_slice(&other[random.below(other.len())..]);
    }
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len().max(1)).min(bytes.len());
        let end = (at + random.below(30)).min(bytes.len());
        match random.below(6) {
            0 if at < bytes.len() => bytes[at] = random.next() as u8,
            1 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            2 => drop(bytes.drain(at..end)),
            3 => {
                let repeated = bytes[at..end].repeat(1 + random.below(50));
                bytes.splice(at..at, repeated);
            }
            4 => bytes.truncate(at),
            _ => drop(bytes.splice(at..at, random.pick(&TOKENS).iter().copied())),
        }
    }
    // Sometimes with a good request behind it.
    if random.below(4) == 0 {
        bytes.extend_from_slice(&models[0]);
    }
    bytes
}

/// Whether `bytes` are whole HTTP answers, one after the other. Answers to HEAD end where the next begins.
fn is_answers(mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        let mut headers = [httparse::EMPTY_HEADER; 32];
        let mut answer = httparse::Response::new(&mut headers);
        let Ok(httparse::Status::Complete(head)) = answer.parse(bytes) else { return false };
        bytes = &bytes[head..];
        let length = answer.headers.iter().find(|field| field.name == "Content-Length");
        let length: usize = match length {
            None if answer.code == Some(100) => 0,
            None => return false,
            Some(field) => {
                std::str::from_utf8(field.value).ok().and_then(|text| text.parse().ok()).unwrap_or(usize::MAX)
            }
        };
        if !(bytes.is_empty() || bytes.starts_with(b"HTTP/1.1 ")) {
            let Some(rest) = bytes.get(length..) else { return false };
            bytes = rest;
        }
    }
    true
}

#[test]
fn no_bytes_take_the_server_away() {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_nanos() as u64;
    let seed = std::env::var("MILLRACE_TEST_SEED").map_or(clock, |seed| seed.parse().expect("a number"));
    println!("MILLRACE_TEST_SEED={seed}");
    on_both_drivers(&[], |f| {
        let models = models(f);
        let mut random = Random(seed);
        let mut answered = 0;
        for number in 0..REQUESTS {
            let bytes = mutant(&mut random, &models);
            let mut client = f.connect();
            client.try_send(&bytes);
            client.finish_sending();
            let mut answers = Vec::new();
            // A reset is a close, too; a server that neither answers nor closes runs into the time limit.
            if let Err(error) = client.stream().read_to_end(&mut answers) {
                assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "request {number}: {bytes:?}");
            }
            let text = String::from_utf8_lossy(&answers);
            let sent = String::from_utf8_lossy(&bytes);
            assert!(is_answers(&answers), "request {number} of seed {seed}: {text}\nto {sent}");
            assert!(!text.contains("internal_error"), "request {number} of seed {seed}: {text}\nto {sent}");
            answered += usize::from(!answers.is_empty());
            if number % 100 == 99 {
                f.is_well();
            }
        }
        assert!(answered > REQUESTS / 4, "most of them were cut short: {answered} answered");
        f.server.drained();
    });
}
