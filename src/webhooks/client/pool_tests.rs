//! What is kept, for how long, and who gets it; over real sockets, with bounds small enough to meet.

use std::io::Read as _;
use std::net::{TcpListener, TcpStream};
use std::thread;

use tokio::time::sleep;

use super::super::connection::begin;
use super::super::stream::Stream;
use super::*;

fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

fn key(host: &str) -> Key {
    Key::of(&format!("http://{host}/").parse().unwrap()).unwrap()
}

/// A new connection, leased, and its other end.
async fn open(pool: &Pool, host: &str) -> (Lease, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let tcp = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (sender, heard) = begin(Stream::plain(tcp)).await.unwrap();
    (pool.opened(&key(host), sender, heard), listener.accept().unwrap().0)
}

/// As if it had had its answer.
async fn keep(lease: Lease) {
    lease.keep();
    settle().await;
}

async fn settle() {
    sleep(Duration::from_millis(20)).await;
}

fn is_closed(other_end: &mut TcpStream) -> bool {
    other_end.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    other_end.read(&mut [0]).is_ok_and(|read| read == 0)
}

/// Idle connections, and hosts that are known.
fn sizes(pool: &Pool) -> (usize, usize) {
    let state = pool.lock();
    let idle = state.hosts.values().map(|host| host.idle.len()).sum::<usize>();
    assert_eq!(idle, state.ages.len());
    (idle, state.hosts.len())
}

const LONG: Duration = Duration::from_secs(3600);

#[test]
fn over_all_hosts_the_oldest_goes_first() {
    run(async {
        let pool = Pool::new(2, LONG);
        let (first, mut first_end) = open(&pool, "first").await;
        let (second, mut second_end) = open(&pool, "second").await;
        let (third, mut third_end) = open(&pool, "first").await;
        assert_eq!(sizes(&pool), (0, 2), "a lease is not idle");
        for lease in [first, second, third] {
            keep(lease).await;
        }
        assert_eq!(sizes(&pool), (2, 2));
        settle().await;
        assert!(is_closed(&mut first_end) && !is_closed(&mut second_end) && !is_closed(&mut third_end));
        assert!(pool.take(&key("other"), false).is_none());
        assert!(pool.take(&key("first"), true).is_none(), "an idle one is not fresh");
        let lease = pool.take(&key("first"), false).unwrap();
        assert!(lease.is_reused());
        assert!(pool.take(&key("first"), false).is_none(), "one lease at a time");
        assert_eq!(sizes(&pool), (1, 2));
        drop(lease);
        assert_eq!(sizes(&pool), (1, 1), "nothing is left of a host without connections");
        settle().await;
        assert!(is_closed(&mut third_end), "what is not kept is closed");
    });
}

#[test]
fn the_last_one_back_is_used_first() {
    run(async {
        let pool = Pool::new(10, LONG);
        let (first, _first_end) = open(&pool, "host").await;
        let (second, mut second_end) = open(&pool, "host").await;
        keep(first).await;
        keep(second).await;
        drop(pool.take(&key("host"), false).unwrap());
        settle().await;
        assert!(is_closed(&mut second_end));
        assert_eq!(sizes(&pool), (1, 1));
    });
}

#[test]
fn what_the_other_end_has_closed_is_not_leased() {
    run(async {
        let pool = Pool::new(10, LONG);
        let (first, first_end) = open(&pool, "host").await;
        let (second, second_end) = open(&pool, "host").await;
        keep(first).await;
        keep(second).await;
        drop((first_end, second_end));
        settle().await;
        assert!(pool.take(&key("host"), false).is_none());
        assert_eq!(sizes(&pool), (0, 0));
    });
}

#[test]
fn idle_connections_end_on_their_own() {
    run(async {
        let pool = Pool::new(10, Duration::from_millis(200));
        let (lease, mut end) = open(&pool, "host").await;
        keep(lease).await;
        assert_eq!(sizes(&pool), (1, 1));
        sleep(Duration::from_millis(700)).await;
        assert_eq!(sizes(&pool), (0, 0));
        assert!(is_closed(&mut end));
        assert!(!pool.lock().sweeping);
        // And again: the sweep has ended and begins anew.
        let (lease, _end) = open(&pool, "host").await;
        keep(lease).await;
        sleep(Duration::from_millis(700)).await;
        assert_eq!(sizes(&pool), (0, 0));
    });
}

#[test]
fn one_goes_ahead_where_http2_is_possible() {
    run(async {
        let pool = Pool::new(10, LONG);
        assert!(matches!(pool.gate(&key("host")), Gate::Open), "not without TLS");
        let https = Key::of(&"https://host/".parse().unwrap()).unwrap();
        let Gate::Ours(ours) = pool.gate(&https) else { panic!("the first goes ahead") };
        let Gate::Theirs(mut wait) = pool.gate(&https) else { panic!("the second waits") };
        assert!(wait.has_changed().is_ok());
        let dropped = thread::spawn(move || drop(ours));
        assert!(wait.changed().await.is_err());
        dropped.join().unwrap();
        assert!(matches!(pool.gate(&https), Gate::Ours(_)));
        assert!(pool.lock().gates.is_empty());
        // Known not to be: nobody waits.
        let (_lease, _end) = open(&pool, "host").await;
        pool.lock().hosts.insert(https.clone(), Host { leases: 1, http1: true, ..Host::default() });
        assert!(matches!(pool.gate(&https), Gate::Open));
    });
}
