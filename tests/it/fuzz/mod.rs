//! The bodies of the fuzz targets (`fuzz/`), over their seeds and over mutations of them: always the same ones, so that
//! what fails fails again. The targets themselves look further; this is what every run of the tests looks at.

mod api_key;
mod event;
mod http_chunked;
mod http_request;
mod proxy_header;

use std::fs;
use std::path::PathBuf;

/// A body's run is a second or two in a debug build.
const MUTATIONS: u64 = 20_000;

#[test]
fn api_keys() {
    run("api_key", api_key::check);
}

#[test]
fn chunked_bodies() {
    run("http_chunked", http_chunked::check);
}

#[test]
fn events() {
    run("event", event::check);
}

#[test]
fn requests_as_hyper_reads_them() {
    run("http_request", http_request::check);
}

#[test]
fn proxy_headers() {
    run("proxy_header", proxy_header::check);
}

fn run(target: &'static str, check: fn(&[u8])) {
    let directory: PathBuf = [env!("CARGO_MANIFEST_DIR"), "fuzz", "seeds", target].iter().collect();
    let mut paths: Vec<PathBuf> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort_unstable();
    let seeds: Vec<Vec<u8>> = paths.iter().map(|path| fs::read(path).unwrap()).collect();
    assert!(seeds.len() > 3, "{target} has seeds");
    for (path, seed) in paths.iter().zip(&seeds) {
        let _failing = Failing(format!("{}", path.display()), seed);
        check(seed);
    }
    for number in 0..MUTATIONS {
        let mut random = Random(number);
        let mut bytes = random.pick(&seeds).clone();
        for _ in 0..=random.below(5) {
            mutate(&mut bytes, &mut random, &seeds);
        }
        let _failing = Failing(format!("mutation {number} of {target}"), &bytes);
        check(&bytes);
    }
}

/// Says which input failed.
struct Failing<'a>(String, &'a [u8]);

impl Drop for Failing<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}: {}", self.0, self.1.escape_ascii());
        }
    }
}

/// `SplitMix64`.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}

/// What means something to one of the parsers.
const TOKENS: [&[u8]; 43] = [
    b"\r\n",
    b"\r",
    b"\n",
    b"\r\n\r\n",
    b" ",
    b"\t",
    b":",
    b";",
    b",",
    b"\0",
    b"\x7f",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b"0\r\n\r\n",
    b"f",
    b"HTTP/1.1",
    b"HTTP/1.0",
    b"Content-Length: 5\r\n",
    b"Content-Length: 0\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Host: t\r\n",
    b"Connection: close\r\n",
    b"Connection: keep-alive\r\n",
    b"Expect: 100-continue\r\n",
    b"http://t",
    b"*",
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b"\\",
    b"\\ud800",
    b"\\u0000",
    b"-0",
    b"1e999",
    b"\"type\":",
    b"\"payload\":",
    b"\"dedup_id\":",
    b"\r\n\r\n\0\r\nQUIT\n",
    b"\x21\x11\0\x0c",
    b"\x21\x21\0\x24",
];

fn mutate(bytes: &mut Vec<u8>, random: &mut Random, seeds: &[Vec<u8>]) {
    let at = random.below(bytes.len());
    let end = (at + random.below(24)).min(bytes.len());
    match random.below(8) {
        0 if at < bytes.len() => bytes[at] = random.next() as u8,
        1 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
        2 => drop(bytes.drain(at..end)),
        3 => {
            let repeated = bytes[at..end].repeat(1 + random.below(12));
            bytes.splice(at..at, repeated);
        }
        4 => bytes.truncate(at),
        5 => {
            let other = random.pick(seeds);
            bytes.extend_from_slice(&other[random.below(other.len())..]);
        }
        _ => drop(bytes.splice(at..at, random.pick(&TOKENS).iter().copied())),
    }
}
