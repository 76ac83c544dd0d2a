//! Clients that stall, talk nonsense, or do not speak TLS at all.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use rustls::ALL_VERSIONS;
use rustls::pki_types::ServerName;
use socket2::{Domain, Socket, Type};

use millrace_base::limits::{
    HANDSHAKE_TIMEOUT, HANDSHAKE_WAIT_MAX, HANDSHAKES_AT_ONCE_MIN, HANDSHAKES_MAX,
    HANDSHAKES_PER_ADDRESS_AND_SECOND_MAX, HEADER_TIMEOUT,
};
use support::server::{allow_all_descriptors, eventually};

use crate::tls::fixture::{Fixture, answer, exchange, on_both_drivers};

/// The first flight of a good client.
fn client_hello(f: &Fixture) -> Vec<u8> {
    let name = ServerName::try_from("localhost").unwrap();
    let mut session = rustls::ClientConnection::new(f.client_config(ALL_VERSIONS), name).unwrap();
    let mut hello = Vec::new();
    session.write_tls(&mut hello).unwrap();
    hello
}

/// Reads to the end of the connection, however it comes; what was said before.
fn rest(tcp: &mut TcpStream) -> Vec<u8> {
    let (mut all, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        match tcp.read(&mut buffer) {
            Ok(0) => return all,
            Ok(n) => all.extend_from_slice(&buffer[..n]),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return all,
            Err(error) => panic!("not ended: {error}"),
        }
    }
}

#[test]
fn plain_http_is_told_what_is_spoken_here() {
    on_both_drivers(&[], |f| {
        for request in [f.good(), b"GET / HTTP/1.1\r\n".to_vec(), b"P".to_vec()] {
            let mut tcp = f.tcp();
            tcp.write_all(&request).unwrap();
            let (status, body) = answer(&mut tcp);
            assert_eq!(status, 400);
            assert!(body.contains("https://") && body.contains("bad_request"), "{body}");
            assert!(rest(&mut tcp).is_empty());
        }
        assert_eq!(f.server.count("events_ingested_total"), 0);
        f.is_well();
    });
}

#[test]
fn nonsense_ends_the_connection_and_nothing_else() {
    on_both_drivers(&["--shards", "1"], |f| {
        let hello = client_hello(f);
        let mut flipped = Vec::new();
        for at in (1..hello.len()).step_by(3) {
            let mut bytes = hello.clone();
            bytes[at] ^= 0x55;
            flipped.push(bytes);
        }
        let cut = (0..hello.len()).step_by(5).map(|len| hello[..len].to_vec());
        let nonsense = [
            vec![0; 100],
            b"\r\n\r\n\0\r\nQUIT\n".to_vec(),
            vec![0x16; 65_536],
            [0x16, 3, 1, 0xff, 0xff].into_iter().chain(vec![1; 70_000]).collect(),
            // A handshake message of 16 MB, in records that are all right.
            [&[0x16, 3, 1, 0x40, 0, 1, 0xff, 0xff, 0xff][..], &[0; 16_380]].concat().repeat(4),
            // Application data before there are keys.
            [0x17, 3, 3, 0, 32].into_iter().chain([7; 32]).collect(),
        ];
        for bytes in nonsense.into_iter().chain(flipped).chain(cut) {
            let mut tcp = f.tcp();
            // The server may be fed up half-way.
            let _ = tcp.write_all(&bytes);
            let _ = tcp.shutdown(std::net::Shutdown::Write);
            let said = rest(&mut tcp);
            assert!(!said.starts_with(b"HTTP"), "{:?}", String::from_utf8_lossy(&said));
        }
        // After the handshake: a record that no key has seen.
        let mut client = f.connect(&f.client_config(ALL_VERSIONS));
        assert_eq!(exchange(&mut client, &f.good()).0, 202);
        client.sock.write_all(&[&[0x17, 3, 3, 0, 64][..], &[9; 64]].concat()).unwrap();
        rest(&mut client.sock);
        f.is_well();
        eventually("all connections are given back", || f.server.metric("connections_open") == 0.0);
    });
}

#[test]
fn a_stalled_client_is_ended_in_time() {
    on_both_drivers(&["--shards", "1"], |f| {
        let hello = client_hello(f);
        let ended_in_time = |begin: &[u8], drip: &[u8]| {
            let begun = Instant::now();
            let mut tcp = f.tcp();
            tcp.write_all(begin).unwrap();
            tcp.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
            let mut drip = drip.iter();
            let mut buffer = [0; 4096];
            loop {
                match tcp.read(&mut buffer) {
                    Ok(0) => break,
                    Err(error) if !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
                    _ => {}
                }
                if let Some(byte) = drip.next() {
                    let _ = tcp.write_all(&[*byte]);
                }
                assert!(begun.elapsed() < HANDSHAKE_TIMEOUT + Duration::from_secs(5), "not ended");
            }
            assert!(begun.elapsed() + Duration::from_millis(100) > HANDSHAKE_TIMEOUT, "after {:?}", begun.elapsed());
        };
        thread::scope(|scope| {
            scope.spawn(|| ended_in_time(&[], &[]));
            scope.spawn(|| ended_in_time(&hello[..hello.len() / 2], &[]));
            scope.spawn(|| ended_in_time(&hello[..10], &hello[10..100]));
            // Everything but the client's last word.
            scope.spawn(|| ended_in_time(&hello, &[]));
            scope.spawn(|| {
                // The deadlines of requests hold as ever, and the answer is readable.
                let mut client = f.connect(&f.client_config(ALL_VERSIONS));
                client.write_all(b"GET /health HTTP/1.1\r\nHos").unwrap();
                client.flush().unwrap();
                let begun = Instant::now();
                assert_eq!(answer(&mut client).0, 408);
                assert!(begun.elapsed() + Duration::from_secs(1) > HEADER_TIMEOUT);
            });
            scope.spawn(|| (0..20).for_each(|_| f.is_well()));
        });
        assert_eq!(f.server.count("connection_timeouts_total{phase=\"handshake\"}"), 4);
    });
}

#[test]
fn handshakes_that_stall_make_room_for_those_that_do_not() {
    allow_all_descriptors();
    on_both_drivers(&["--shards", "1"], |f| {
        let mut oldest = f.tcp();
        let _others: Vec<TcpStream> = (0..HANDSHAKES_MAX + 200).map(|_| f.tcp()).collect();
        let begun = Instant::now();
        f.is_well();
        assert!(rest(&mut oldest).is_empty(), "the oldest is ended");
        assert!(begun.elapsed() < HANDSHAKE_TIMEOUT, "and not by its own time");
    });
}

#[test]
fn tls_handshakes_of_an_address_are_a_burst_and_then_a_rate() {
    const WAITING: u32 = HANDSHAKE_WAIT_MAX.as_millis() as u32 * HANDSHAKES_PER_ADDRESS_AND_SECOND_MAX / 1000;
    on_both_drivers(&["--shards", "1"], |f| {
        let config = f.client_config(ALL_VERSIONS);
        let from = |last: u8| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            // Closed with a RST: a port that was bound and is in TIME-WAIT is nobody's for a minute, and other tests connect.
            socket.set_linger(Some(Duration::ZERO)).unwrap();
            socket.bind(&SocketAddr::from(([127, 0, 9, last], 0)).into()).unwrap();
            socket.connect(&f.server.addr.into()).unwrap();
            TcpStream::from(socket)
        };
        let mut opened = 0;
        // A machine on which this takes long is one on which nobody is refused.
        while opened < 40_000 && f.server.count("connections_refused_total") == 0 {
            (0..200).for_each(|_| drop(from(1)));
            opened += 200;
        }
        let refused = f.server.count("connections_refused_total");
        assert!(refused == 0 || opened > HANDSHAKES_AT_ONCE_MIN + WAITING, "{refused} of {opened}");
        let mut other = Fixture::over(from(2), &config).expect("another address has its own");
        assert_eq!(exchange(&mut other, &f.good()).0, 202);
        let mut served = None;
        eventually("its turn comes", || {
            served = Fixture::over(from(1), &config).ok();
            served.is_some()
        });
        assert_eq!(exchange(&mut served.expect("found above"), &f.good()).0, 202);
    });
}
