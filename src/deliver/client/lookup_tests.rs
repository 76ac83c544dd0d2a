//! The resolver is held until the test lets it go.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::*;

/// Holds every lookup until it is let go; counts them.
struct Held {
    begun: AtomicUsize,
    go: Mutex<mpsc::Receiver<io::Result<Vec<IpAddr>>>>,
}

fn held() -> (Arc<Held>, mpsc::Sender<io::Result<Vec<IpAddr>>>) {
    let (let_go, go) = mpsc::channel();
    (Arc::new(Held { begun: AtomicUsize::new(0), go: Mutex::new(go) }), let_go)
}

impl Resolve for Held {
    fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        self.begun.fetch_add(1, Ordering::Relaxed);
        assert_ne!(name, "panic", "as told");
        if name.starts_with("quick") {
            return Ok(vec![IpAddr::from([192, 0, 2, 7])]);
        }
        self.go.lock().unwrap().recv().unwrap_or_else(|_| Ok(Vec::new()))
    }
}

fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(test);
}

const A_WHILE: Duration = Duration::from_millis(100);

#[test]
fn one_lookup_serves_all_who_wait_for_the_name() {
    run(async {
        let (resolver, let_go) = held();
        let lookups = Lookups::new(resolver.clone());
        let waiting = futures_util::future::join_all((0..50).map(|_| lookups.addresses("slow")));
        let addresses = vec![IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2])];
        let later = async {
            sleep(A_WHILE).await;
            let_go.send(Ok(addresses.clone())).unwrap();
        };
        for answer in tokio::join!(waiting, later).0 {
            assert_eq!(answer.unwrap().to_vec(), addresses);
        }
        assert_eq!(resolver.begun.load(Ordering::Relaxed), 1);
        // Nothing is remembered.
        let_go.send(Ok(addresses)).unwrap();
        lookups.addresses("slow").await.unwrap();
        assert_eq!(resolver.begun.load(Ordering::Relaxed), 2);
    });
}

#[test]
fn an_attempt_that_gave_up_leaves_its_lookup_to_the_next() {
    run(async {
        let (resolver, let_go) = held();
        let lookups = Lookups::new(resolver.clone());
        for _ in 0..3 {
            assert!(timeout(A_WHILE, lookups.addresses("slow")).await.is_err());
        }
        assert_eq!(resolver.begun.load(Ordering::Relaxed), 1);
        let later = async {
            sleep(A_WHILE).await;
            let_go.send(Ok(vec![IpAddr::from([192, 0, 2, 1])])).unwrap();
        };
        tokio::join!(lookups.addresses("slow"), later).0.unwrap();
        assert_eq!(resolver.begun.load(Ordering::Relaxed), 1);
    });
}

#[test]
fn places_are_bounded_and_come_back() {
    run(async {
        let (resolver, let_go) = held();
        let lookups = Lookups::new(resolver.clone());
        let names = (0..WEBHOOK_LOOKUPS_MAX).map(|n| format!("slow{n}")).collect::<Vec<_>>();
        let all = futures_util::future::join_all(names.iter().map(|name| lookups.addresses(name)));
        assert!(timeout(A_WHILE, all).await.is_err());
        // Given up, but the threads are still in there.
        assert!(timeout(A_WHILE, lookups.addresses("quick")).await.is_err());
        let_go.send(Err(io::ErrorKind::NotFound.into())).unwrap();
        assert!(lookups.addresses("quick").await.is_ok());
        assert_eq!(resolver.begun.load(Ordering::Relaxed), WEBHOOK_LOOKUPS_MAX + 1);
        drop(let_go);
    });
}

#[test]
fn no_address_an_error_and_a_panic_are_failures() {
    run(async {
        let (resolver, let_go) = held();
        let lookups = Lookups::new(resolver);
        let_go.send(Ok(Vec::new())).unwrap();
        assert_eq!(lookups.addresses("empty").await, Err(ErrorClass::DnsFailed));
        let_go.send(Err(io::ErrorKind::NotFound.into())).unwrap();
        assert_eq!(lookups.addresses("unknown").await, Err(ErrorClass::DnsFailed));
        for _ in 0..2 {
            assert_eq!(lookups.addresses("panic").await, Err(ErrorClass::DnsFailed));
        }
        assert!(lookups.addresses("quick").await.is_ok());
    });
}
