//! The resolver in these tests blocks until the test releases it.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use super::*;

type ResolveResult = Result<ResolvedName, Unresolved>;

/// Blocks every lookup until the test releases it, and counts them.
struct HeldResolver {
    begun: AtomicUsize,
    generation: AtomicU64,
    go: tokio::sync::Mutex<mpsc::UnboundedReceiver<ResolveResult>>,
}

fn held() -> (Arc<HeldResolver>, mpsc::UnboundedSender<ResolveResult>) {
    let (let_go, go) = mpsc::unbounded_channel();
    let (begun, generation) = Default::default();
    (Arc::new(HeldResolver { begun, generation, go: tokio::sync::Mutex::new(go) }), let_go)
}

impl Resolve for HeldResolver {
    fn resolve<'a>(&'a self, name: &'a str) -> BoxFuture<'a, ResolveResult> {
        self.begun.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move {
            assert_ne!(name, "panic", "as told");
            if name.starts_with("quick") {
                return Ok(found(&[7], 0));
            }
            self.go.lock().await.recv().await.unwrap_or(Err(Unresolved::Resolver))
        })
    }

    fn generation(&self) -> BoxFuture<'_, u64> {
        Box::pin(async { self.generation.load(Ordering::Relaxed) })
    }
}

fn found(last: &[u8], ttl: u64) -> ResolvedName {
    let addresses = last.iter().map(|last| IpAddr::from([192, 0, 2, *last])).collect();
    ResolvedName { addresses, ttl: Duration::from_secs(ttl) }
}

const NO_NAME: Unresolved = Unresolved::Name("there is no such name");

fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(test);
}

impl LookupCache {
    async fn of(&self, name: &str, org: u128) -> LookupResult {
        let until = Instant::now() + Duration::from_secs(60);
        self.addresses(name, OrgId(Uuid::from_u128(org)), until).await
    }
}

const A_WHILE: Duration = Duration::from_millis(100);

#[test]
fn concurrent_attempts_share_one_lookup() {
    run(async {
        let (resolver, let_go) = held();
        let lookups = LookupCache::new(resolver.clone());
        let waiting = futures_util::future::join_all((0..50).map(|n| lookups.of("slow", n)));
        let later = async {
            sleep(A_WHILE).await;
            let_go.send(Ok(found(&[1, 2], 0))).unwrap();
        };
        for answer in tokio::join!(waiting, later).0 {
            assert_eq!(answer.unwrap().len(), 2);
        }
        assert_eq!(resolver.begun.load(Ordering::Relaxed), 1);
        // Without a TTL nothing is cached.
        let_go.send(Ok(found(&[1], 0))).unwrap();
        lookups.of("slow", 1).await.unwrap();
        assert_eq!(resolver.begun.load(Ordering::Relaxed), 2);
    });
}

#[test]
fn a_lookup_outlives_an_attempt_that_gave_up() {
    run(async {
        let (resolver, let_go) = held();
        let lookups = LookupCache::new(resolver.clone());
        for _ in 0..3 {
            assert!(timeout(A_WHILE, lookups.of("slow", 1)).await.is_err());
            let until = Instant::now() + A_WHILE;
            let late = lookups.addresses("slow", OrgId(Uuid::nil()), until).await;
            assert_eq!(late, Err(Unresolved::Resolver), "it says nothing about the name");
        }
        assert_eq!(resolver.begun.load(Ordering::Relaxed), 1);
        let later = async {
            sleep(A_WHILE).await;
            let_go.send(Ok(found(&[1], 0))).unwrap();
        };
        tokio::join!(lookups.of("slow", 1), later).0.unwrap();
        assert_eq!(resolver.begun.load(Ordering::Relaxed), 1);
    });
}

#[test]
fn lookups_of_one_organisation_leave_slots_for_the_others() {
    run(async {
        let (resolver, let_go) = held();
        let lookups = LookupCache::new(resolver.clone());
        let names = (0..2 * WEBHOOK_LOOKUPS_MAX).map(|n| format!("slow{n}")).collect::<Vec<_>>();
        let all = futures_util::future::join_all(names.iter().map(|name| lookups.of(name, 1)));
        assert!(timeout(A_WHILE, all).await.is_err());
        // The attempts gave up, but their lookups still run.
        assert_eq!(resolver.begun.load(Ordering::Relaxed), WEBHOOK_LOOKUPS_MAX / 2);
        assert!(lookups.of("quick", 2).await.is_ok());
        assert!(timeout(A_WHILE, lookups.of("quick, too", 1)).await.is_err());
        let_go.send(Err(NO_NAME)).unwrap();
        assert!(lookups.of("quick, too", 1).await.is_ok());
    });
}

#[test]
fn lookups_are_cached_unless_the_resolver_fails() {
    run(async {
        let (resolver, let_go) = held();
        let lookups = LookupCache::new(resolver.clone());
        let begun = |expected: usize| assert_eq!(resolver.begun.load(Ordering::Relaxed), expected);
        let_go.send(Err(NO_NAME)).unwrap();
        for _ in 0..3 {
            assert_eq!(lookups.of("unknown", 1).await, Err(NO_NAME));
        }
        begun(1);
        let_go.send(Ok(found(&[1], 60))).unwrap();
        for _ in 0..3 {
            assert_eq!(lookups.of("known", 1).await.unwrap().to_vec(), [IpAddr::from([192, 0, 2, 1])]);
        }
        begun(2);
        for said in [Err(Unresolved::Resolver), Ok(found(&[1; WEBHOOK_KNOWN_ADDRESSES_MAX + 1], 60))] {
            for _ in 0..2 {
                let_go.send(said.clone()).unwrap();
                assert_eq!(lookups.of("not for long", 1).await.is_ok(), said.is_ok());
            }
        }
        begun(6);
        // A new generation of the files makes the cache obsolete.
        resolver.generation.fetch_add(1, Ordering::Relaxed);
        let_go.send(Ok(found(&[2], 60))).unwrap();
        assert_eq!(lookups.of("known", 1).await.unwrap().to_vec(), [IpAddr::from([192, 0, 2, 2])]);
        for _ in 0..2 {
            assert_eq!(lookups.of("panic", 1).await, Err(Unresolved::Resolver));
        }
        begun(9);
        assert!(lookups.of("quick", 1).await.is_ok());
    });
}
