//! Tests how long connections are kept and which one is used next, over real sockets and with small limits.

use std::io::Read as _;
use std::net::{TcpListener, TcpStream};
use std::thread;

use tokio::time::sleep;

use super::super::connection::handshake;
use super::super::stream::Stream;
use super::*;

fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

fn origin(host: &str) -> Origin {
    Origin::of(&format!("http://{host}/").parse().unwrap()).unwrap()
}

/// A new connection in use, and its other end.
async fn open(pool: &Pool, host: &str) -> (PooledConnection, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let tcp = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (sender, monitor) = handshake(Stream::plain(tcp)).await.unwrap();
    (pool.opened(&origin(host), sender, monitor), listener.accept().unwrap().0)
}

/// As after a complete response.
async fn keep(connection: PooledConnection) {
    connection.keep();
    settle().await;
}

async fn settle() {
    sleep(Duration::from_millis(20)).await;
}

fn is_closed(other_end: &mut TcpStream) -> bool {
    other_end.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    other_end.read(&mut [0]).is_ok_and(|read| read == 0)
}

/// The number of idle connections and of origins.
fn sizes(pool: &Pool) -> (usize, usize) {
    let state = pool.lock();
    let idle = state.hosts.values().map(|host| host.idle.len()).sum::<usize>();
    assert_eq!(idle, state.ages.len());
    (idle, state.hosts.len())
}

const LONG: Duration = Duration::from_secs(3600);

#[test]
fn the_oldest_idle_connection_of_all_hosts_is_closed_first() {
    run(async {
        let pool = Pool::new(2, LONG);
        let (first, mut first_end) = open(&pool, "first").await;
        let (second, mut second_end) = open(&pool, "second").await;
        let (third, mut third_end) = open(&pool, "first").await;
        assert_eq!(sizes(&pool), (0, 2), "a lease is not idle");
        for connection in [first, second, third] {
            keep(connection).await;
        }
        assert_eq!(sizes(&pool), (2, 2));
        settle().await;
        assert!(is_closed(&mut first_end) && !is_closed(&mut second_end) && !is_closed(&mut third_end));
        assert!(pool.take(&origin("other"), false).is_none());
        assert!(pool.take(&origin("first"), true).is_none(), "an idle one is not fresh");
        let connection = pool.take(&origin("first"), false).unwrap();
        assert!(connection.is_reused());
        assert!(pool.take(&origin("first"), false).is_none(), "one lease at a time");
        assert_eq!(sizes(&pool), (1, 2));
        drop(connection);
        assert_eq!(sizes(&pool), (1, 1), "nothing is left of a host without connections");
        settle().await;
        assert!(is_closed(&mut third_end), "what is not kept is closed");
    });
}

#[test]
fn the_connection_returned_last_is_used_first() {
    run(async {
        let pool = Pool::new(10, LONG);
        let (first, _first_end) = open(&pool, "host").await;
        let (second, mut second_end) = open(&pool, "host").await;
        keep(first).await;
        keep(second).await;
        drop(pool.take(&origin("host"), false).unwrap());
        settle().await;
        assert!(is_closed(&mut second_end));
        assert_eq!(sizes(&pool), (1, 1));
    });
}

#[test]
fn connections_closed_by_the_receiver_are_not_reused() {
    run(async {
        let pool = Pool::new(10, LONG);
        let (first, first_end) = open(&pool, "host").await;
        let (second, second_end) = open(&pool, "host").await;
        keep(first).await;
        keep(second).await;
        drop((first_end, second_end));
        settle().await;
        assert!(pool.take(&origin("host"), false).is_none());
        assert_eq!(sizes(&pool), (0, 0));
    });
}

#[test]
fn idle_connections_are_closed_after_the_timeout() {
    run(async {
        let pool = Pool::new(10, Duration::from_millis(200));
        let (connection, mut end) = open(&pool, "host").await;
        keep(connection).await;
        assert_eq!(sizes(&pool), (1, 1));
        sleep(Duration::from_millis(700)).await;
        assert_eq!(sizes(&pool), (0, 0));
        assert!(is_closed(&mut end));
        assert!(!pool.lock().sweeping);
        // And again: the sweep has ended and starts again.
        let (connection, _end) = open(&pool, "host").await;
        keep(connection).await;
        sleep(Duration::from_millis(700)).await;
        assert_eq!(sizes(&pool), (0, 0));
    });
}

#[test]
fn one_attempt_connects_first_when_http2_is_possible() {
    run(async {
        let pool = Pool::new(10, LONG);
        assert!(matches!(pool.gate(&origin("host")), ConnectGate::NotNeeded), "not without TLS");
        let https = Origin::of(&"https://host/".parse().unwrap()).unwrap();
        let ConnectGate::Holder(ours) = pool.gate(&https) else { panic!("the first goes ahead") };
        let ConnectGate::Wait(mut wait) = pool.gate(&https) else { panic!("the second waits") };
        assert!(wait.has_changed().is_ok());
        let dropped = thread::spawn(move || drop(ours));
        assert!(wait.changed().await.is_err());
        dropped.join().unwrap();
        assert!(matches!(pool.gate(&https), ConnectGate::Holder(_)));
        assert!(pool.lock().gates.is_empty());
        // The origin is known to use HTTP/1.1: nobody waits.
        let (_lease, _end) = open(&pool, "host").await;
        pool.lock()
            .hosts
            .insert(https.clone(), HostConnections { leases: 1, http1: true, ..HostConnections::default() });
        assert!(matches!(pool.gate(&https), ConnectGate::NotNeeded));
    });
}
