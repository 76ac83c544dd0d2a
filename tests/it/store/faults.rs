//! Postgres stopped, crashed, frozen and back again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use millrace_store::{Store, StoreChange, StoreError};
use support::postgres::{Cluster, Options, wait_for};

use crate::store::fixture::{Fixture, StorePlain, event, key, org};

/// What every call is promised: connecting plus the call itself, and a margin for a busy machine.
const CALL_MAX: Duration = Duration::from_secs(30);

fn cluster_and_store() -> (Cluster, Fixture, Arc<dyn Store>) {
    let cluster = Cluster::start_own(Options::default());
    let fixture = Fixture::on(Some(cluster.create_database()));
    let store = fixture.migrated();
    (cluster, fixture, store)
}

fn is_unavailable<T: std::fmt::Debug>(result: Result<T, StoreError>) {
    let error = result.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable(_) | StoreError::TooMuch(_)), "{error:?}");
}

/// Makes the store open `count` sessions.
fn warm(store: &dyn Store, count: usize) {
    let barrier = std::sync::Barrier::new(count);
    thread::scope(|scope| {
        for _ in 0..count {
            scope.spawn(|| {
                barrier.wait();
                for _ in 0..5 {
                    store.organizations().unwrap();
                }
            });
        }
    });
}

#[test]
fn a_store_opens_without_its_database_and_works_later() {
    let mut cluster = Cluster::start_own(Options::default());
    let fixture = Fixture::on(Some(cluster.create_database()));
    cluster.stop();
    let store = fixture.open();
    let began = Instant::now();
    is_unavailable(store.migrate());
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    cluster.start();
    assert!(store.migrate().unwrap() > 0);
    assert_eq!(store.store_plain(&[event(org(), "1")]), Ok(1));
}

#[test]
fn writers_go_on_within_two_seconds_of_the_databases_return() {
    let (mut cluster, _fixture, store) = cluster_and_store();
    warm(&*store, 8);
    cluster.stop();
    let back = AtomicBool::new(false);
    thread::scope(|scope| {
        let writers: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    let mut failures = 0;
                    let event = event(org(), "1");
                    let mut pause = Duration::from_millis(50);
                    while let Err(error) = store.store_plain(std::slice::from_ref(&event)) {
                        assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
                        failures += 1;
                        thread::sleep(pause);
                        pause = (pause * 2).min(Duration::from_secs(1));
                    }
                    assert!(back.load(Ordering::Relaxed), "stored in a stopped server");
                    (Instant::now(), failures)
                })
            })
            .collect();
        // Long enough for every pause to have grown to its longest.
        thread::sleep(Duration::from_secs(5));
        back.store(true, Ordering::Relaxed);
        cluster.start();
        let returned = Instant::now();
        let ends: Vec<_> = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
        assert!(ends.iter().all(|(_, failures)| *failures > 0));
        let first = ends.iter().map(|(at, _)| at.saturating_duration_since(returned)).min().unwrap();
        let last = ends.iter().map(|(at, _)| at.saturating_duration_since(returned)).max().unwrap();
        assert!(first < Duration::from_secs(2), "the first insert after {first:?}");
        assert!(last < Duration::from_secs(5), "the last insert after {last:?}");
    });
}

#[test]
fn after_a_crash_stale_sessions_are_not_handed_out() {
    let (mut cluster, _fixture, store) = cluster_and_store();
    for hard in [false, true] {
        warm(&*store, 8);
        if hard {
            cluster.kill();
        } else {
            cluster.crash();
        }
        cluster.start();
        for _ in 0..10 {
            assert_eq!(store.store_plain(&[event(org(), "1")]), Ok(1));
        }
    }
}

#[test]
fn a_frozen_server_frees_every_caller_in_time() {
    let (cluster, fixture, store) = cluster_and_store();
    let other = fixture.open();
    warm(&*store, 4);
    warm(&*other, 4);
    cluster.freeze();
    let frozen = Instant::now();
    drop(other);
    assert!(frozen.elapsed() < Duration::from_secs(1), "dropping sessions took {:?}", frozen.elapsed());
    thread::scope(|scope| {
        // More callers than there are sessions: the others wait for a connection to a server that does not answer.
        for n in 0..12 {
            let store = &store;
            scope.spawn(move || {
                let began = Instant::now();
                match n % 4 {
                    0 => is_unavailable(store.store_plain(&[event(org(), "1")])),
                    1 => is_unavailable(store.find_key(key().0)),
                    2 => is_unavailable(store.quarantine(&event(org(), "1"), "why")),
                    _ => is_unavailable(store.maintain()),
                }
                assert!(began.elapsed() < CALL_MAX, "{:?}", began.elapsed());
            });
        }
    });
    cluster.thaw();
    wait_for("the store to recover", || store.store_plain(&[event(org(), "1")]).is_ok());
}

#[test]
fn a_watcher_notices_that_its_server_is_frozen_or_gone() {
    let (mut cluster, _fixture, store) = cluster_and_store();
    let never = AtomicBool::new(false);
    for freeze in [true, false] {
        let listening = AtomicBool::new(false);
        thread::scope(|scope| {
            let watcher = scope.spawn(|| {
                store.watch_changes(&never, &mut |change| {
                    assert_eq!(change, StoreChange::Everything);
                    listening.store(true, Ordering::Relaxed);
                })
            });
            wait_for("the watcher to listen", || listening.load(Ordering::Relaxed));
            let began = Instant::now();
            if freeze {
                cluster.freeze();
            } else {
                cluster.stop();
            }
            is_unavailable(watcher.join().unwrap());
            assert!(began.elapsed() < CALL_MAX, "{:?}", began.elapsed());
        });
        cluster.thaw_if_running();
    }
}

#[test]
fn a_watcher_of_a_frozen_server_still_stops() {
    let (cluster, _fixture, store) = cluster_and_store();
    let (stop, listening) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        let watcher = scope.spawn(|| store.watch_changes(&stop, &mut |_| listening.store(true, Ordering::Relaxed)));
        wait_for("the watcher to listen", || listening.load(Ordering::Relaxed));
        cluster.freeze();
        // Until it has asked the server for a sign of life and waits for the answer.
        thread::sleep(Duration::from_secs(6));
        let began = Instant::now();
        stop.store(true, Ordering::Relaxed);
        assert_eq!(watcher.join().unwrap(), Ok(()));
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    });
    cluster.thaw();
}
