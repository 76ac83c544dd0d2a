//! Deliveries on Postgres, where what is pending and what failed stands in tables of its own: that these say the same as
//! `deliveries` whoever does what at once, that updates stay cheap, and that a cut connection doubles nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use millrace_base::clock::Timestamp;
use millrace_base::event::{DeliveryId, Event};
use millrace_store::webhooks::{AttemptResult, DeliveryStatus, Next, PlannedDelivery, Wanted};
use millrace_store::{Store, StoreError};
use support::postgres::{Cluster, Options, wait_for};
use support::proxy::{Cut, Proxy};

use crate::store::fixture::{Fixture, admin, derived_at, event};
use crate::store::webhooks::{
    claim, claim_due, deliveries, due_endpoints, endpoint, find, in_seconds, list, organization, planned, record_all,
    result, status,
};

/// Deliveries that wait and are not queued, or not for the moment they wait for: they would never be sent in time.
const NOT_QUEUED: &str = "
    SELECT count(*) FROM deliveries LEFT JOIN delivery_queue ON delivery_id = id AND delivery_queue.org_id = deliveries.org_id
    WHERE status = 0 AND (delivery_id IS NULL OR delivery_queue.next_attempt_at > deliveries.next_attempt_at)";
/// Deliveries that failed and are not listed so.
const NOT_LISTED: &str = "
    SELECT count(*) FROM deliveries LEFT JOIN failed_deliveries AS failed
        ON delivery_id = id AND failed.org_id = deliveries.org_id AND failed.status = deliveries.status
    WHERE deliveries.status IN (2, 3) AND delivery_id IS NULL";

/// Everything that is done to deliveries, by many at once, to few of them. Nobody waits in a circle, no delivery leaves
/// the queue before it has ended, and in the end all can be delivered.
#[test]
fn the_queue_tells_of_every_delivery_that_waits() {
    const COUNT: usize = 30;
    let fixture = Fixture::postgres();
    let store = fixture.migrated();
    let org = organization(&*store);
    let id = endpoint(&*store, org).id;
    let ids = deliveries(&*store, org, id, COUNT, None);
    let stop = AtomicBool::new(false);
    let done = AtomicU64::new(0);
    thread::scope(|scope| {
        for n in 0..8_usize {
            let (store, ids, stop, done) = (fixture.open(), &ids, &stop, &done);
            scope.spawn(move || {
                let mut round = n;
                while !stop.load(Ordering::Relaxed) {
                    round += 1;
                    let moment = Timestamp::now();
                    // Leases end at once, so that many are lost.
                    let lease = moment.plus(Duration::from_millis(round as u64 % 5 + 1));
                    match n {
                        0..4 => work(&*store, id, moment, lease, round),
                        4 => drop(store.retry_delivery(org, ids[round % COUNT], moment).unwrap()),
                        5 => drop(
                            store.recover_deliveries(org, id, Timestamp::from_micros(0)..lease, 9, moment).unwrap(),
                        ),
                        6 => {
                            // Guesses at leases, from the other end.
                            let held: Vec<_> = ids.iter().rev().map(|id| find(&*store, org, *id).delivery).collect();
                            let held: Vec<_> = held
                                .iter()
                                .filter_map(|delivery| Some((delivery.id, delivery.next_attempt_at?)))
                                .collect();
                            store.release(&held, moment).unwrap();
                        }
                        _ => {
                            due_endpoints(&*store, moment, None, 9).unwrap();
                            assert!(store.pending_stats().unwrap().count <= 2 * COUNT as u64);
                            thread::sleep(Duration::from_millis(5));
                        }
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let mut looks = 0;
        while looks < 30 {
            thread::sleep(Duration::from_millis(100));
            assert_eq!((fixture.count(NOT_QUEUED), fixture.count(NOT_LISTED)), (0, 0));
            looks += 1;
        }
        stop.store(true, Ordering::Relaxed);
    });
    println!("{} calls", done.load(Ordering::Relaxed));
    store.recover_deliveries(org, id, Timestamp::from_micros(0)..in_seconds(1), 99, Timestamp::now()).unwrap();
    wait_for("everything to be delivered", || {
        let lease = in_seconds(60);
        let claimed = claim(&*store, id, 99, lease);
        let results: Vec<_> = claimed
            .iter()
            .map(|claimed| result(claimed.delivery, claimed.attempts_made + 1, lease, Next::Delivered))
            .collect();
        assert_eq!(record_all(&*store, &results), Ok(results.len() as u64));
        list(&*store, org, Some(DeliveryStatus::Delivered)).len() == COUNT
    });
    // A claim that finds nothing puts right what is left over.
    wait_for("the queue to be empty", || {
        claim(&*store, id, 99, in_seconds(60));
        fixture.count("SELECT count(*) FROM delivery_queue") == 0
    });
    assert_eq!(due_endpoints(&*store, in_seconds(9), None, 9), Ok(Vec::new()));
    for status in [DeliveryStatus::Pending, DeliveryStatus::Failed, DeliveryStatus::Blocked] {
        assert_eq!(list(&*store, org, Some(status)), []);
    }
}

/// Claims a few and records something of each, sometimes late.
fn work(store: &dyn Store, id: millrace_base::event::EndpointId, now: Timestamp, lease: Timestamp, round: usize) {
    let claims = claim_due(store, now, lease, &[(id, 7)]).unwrap();
    if round.is_multiple_of(3) {
        thread::sleep(Duration::from_millis(7));
    }
    let next = |n: usize| match (round + n) % 4 {
        0 => Next::Delivered,
        1 => Next::Failed,
        2 => Next::Blocked,
        _ => Next::RetryAt(now),
    };
    let results: Vec<AttemptResult> = claims
        .ready
        .iter()
        .enumerate()
        .map(|(n, claimed)| result(claimed.delivery, claimed.attempts_made + 1, lease, next(n)))
        .collect();
    record_all(store, &results).unwrap();
}

#[test]
fn a_queue_that_says_too_much_is_put_right() {
    let fixture = Fixture::postgres();
    let store = fixture.migrated();
    let org = organization(&*store);
    let id = endpoint(&*store, org).id;
    let lease = in_seconds(60);
    let ids = deliveries(&*store, org, id, 2, Some(lease));
    assert_eq!(record_all(&*store, &[result(ids[0], 1, lease, Next::Delivered)]), Ok(1));
    // As where a statement deleted what it had seen, and not what was put there while it waited.
    let wrong = format!(
        "INSERT INTO delivery_queue SELECT org_id, id, endpoint_id, now() FROM deliveries WHERE id = '{}';
        UPDATE delivery_queue SET next_attempt_at = now() WHERE delivery_id = '{}'",
        ids[0].0, ids[1].0
    );
    fixture.sql(&wrong, "");
    assert_eq!(due_endpoints(&*store, Timestamp::now(), None, 9), Ok(vec![id]));
    assert_eq!(list(&*store, org, Some(DeliveryStatus::Pending)).len(), 1);
    assert_eq!(claim(&*store, id, 9, in_seconds(90)), []);
    assert_eq!(due_endpoints(&*store, Timestamp::now(), None, 9), Ok(Vec::new()));
    assert_eq!(claim_due(&*store, lease, in_seconds(90), &[(id, 9)]).unwrap().ready.len(), 1);
    assert_eq!(fixture.count("SELECT count(*) FROM delivery_queue"), 1);
}

#[test]
fn recording_a_first_attempt_writes_no_index() {
    let fixture = Fixture::postgres();
    let store = fixture.migrated();
    let org = organization(&*store);
    let id = endpoint(&*store, org).id;
    let lease = in_seconds(60);
    for _ in 0..10 {
        let ids = deliveries(&*store, org, id, 1000, Some(lease));
        let results: Vec<_> = ids.iter().map(|id| result(*id, 1, lease, Next::Delivered)).collect();
        assert_eq!(record_all(&*store, &results), Ok(1000));
    }
    let updates =
        |which: &str| fixture.count(&format!("SELECT {which} FROM pg_stat_user_tables WHERE relname = 'deliveries'"));
    wait_for("the statistics", || updates("n_tup_upd") == 10_000);
    assert!(updates("n_tup_hot_upd") > 9_900, "{}", updates("n_tup_hot_upd"));
    assert_eq!(fixture.count("SELECT count(*) FROM delivery_attempts"), 0);
}

/// What was planned when all tables were empty reads them by index when they are not.
#[test]
fn statements_planned_early_stay_fast() {
    let fixture = Fixture::postgres();
    let store = fixture.migrated();
    let org = organization(&*store);
    let id = endpoint(&*store, org).id;
    let lease = in_seconds(60);
    for _ in 0..50 {
        let ids = deliveries(&*store, org, id, 100, Some(lease));
        let results: Vec<_> = ids.iter().map(|id| result(*id, 1, lease, Next::Delivered)).collect();
        record_all(&*store, &results[..50]).unwrap();
        store.release(&ids[50..].iter().map(|id| (*id, lease)).collect::<Vec<_>>(), Timestamp::now()).unwrap();
        claim(&*store, id, 10, lease);
        list(&*store, org, Some(DeliveryStatus::Blocked));
        store.delete_old_deliveries(Timestamp::from_micros(0), None).unwrap();
    }
    let scans = "SELECT COALESCE(sum(seq_scan), 0)::bigint FROM pg_stat_user_tables
        WHERE relname LIKE 'deliver%' OR relname = 'failed_deliveries' OR relname LIKE 'events_p%'";
    // Creating the indexes read each table once.
    thread::sleep(Duration::from_millis(1500));
    assert!(fixture.count(scans) <= 40, "{}", fixture.count(scans));
}

/// A cluster, a store that reaches it through a proxy, and one that does not.
pub fn through_proxy() -> (Cluster, Proxy, Fixture, Arc<dyn Store>) {
    let cluster = Cluster::start_own(Options::default());
    let database = cluster.new_name();
    cluster.admin("postgres").batch_execute(&format!("CREATE DATABASE {database}")).unwrap();
    let proxy = Proxy::start(cluster.port());
    let port = format!(":{}/", cluster.port());
    let url = cluster.tcp_url(&database).replace(&port, &format!(":{}/", proxy.port));
    let fixture = Fixture::on(Some(cluster.tcp_url(&database)));
    fixture.migrated();
    let behind = Fixture::on(Some(url)).open();
    (cluster, proxy, fixture, behind)
}

/// Makes a call whose answer is cut off, and then again until it is answered.
pub fn cut_and_again<T: std::fmt::Debug>(proxy: &Proxy, cut: Cut, call: impl Fn() -> Result<T, StoreError>) -> T {
    let cuts = proxy.cuts();
    assert!(proxy.arm(cut));
    let lost = call();
    assert!(matches!(lost, Err(StoreError::Unavailable(_))), "{lost:?}");
    assert_eq!(proxy.cuts(), cuts + 1);
    call().unwrap()
}

#[test]
fn a_connection_cut_after_commit_doubles_no_delivery() {
    let (_cluster, proxy, fixture, behind) = through_proxy();
    let store = fixture.open();
    let org = organization(&*store);
    let id = endpoint(&*store, org).id;
    let lease = in_seconds(60);
    let mut known: Vec<DeliveryId> = Vec::new();
    for round in 0..40 {
        let cut = if round % 2 == 0 { Cut::AfterRequest } else { Cut::BeforeAnswer };
        let payload = "{\"m\": 1}";
        let mut batch: Vec<Event> = (0..3).map(|_| event(org, payload)).collect();
        if round % 4 < 2 {
            let derived = derived_at(org, Timestamp::now(), &format!("d{round}"));
            batch.push(Event::new(
                derived.id,
                org,
                derived.received_at,
                "t",
                Some(&format!("d{round}")),
                payload.as_bytes(),
            ));
        }
        let plan: Vec<PlannedDelivery> = batch.iter().map(|event| planned(event, id, Some(lease))).collect();
        let stored = cut_and_again(&proxy, cut, || behind.store_events(&batch, &plan));
        if cut == Cut::BeforeAnswer {
            assert_eq!((stored.new_events, stored.deliveries), (0, Vec::new()), "it was committed");
        }
        // The first call runs on behind the cut, and may come second.
        wait_for("one of the two", || {
            fixture.count("SELECT count(*) FROM deliveries") == (known.len() + batch.len()) as i64
        });
        known.extend(plan.iter().map(|planned| planned.id));

        let results = plan.iter().map(|planned| {
            let mut result = result(planned.id, 1, lease, Next::Delivered);
            result.attempt.response_body = Some(payload.to_owned());
            result
        });
        let results: Vec<AttemptResult> = results.collect();
        cut_and_again(&proxy, cut, || behind.record(&results));
        for planned in &plan {
            assert_eq!(find(&*store, org, planned.id).attempts.len(), 1);
            assert_eq!(status(&*store, org, planned.id), DeliveryStatus::Delivered);
        }
    }
    assert_eq!(fixture.count("SELECT count(*) FROM events"), known.len() as i64);
    assert_eq!(list(&*store, org, None).len(), known.len());
    assert_eq!(fixture.count("SELECT count(*) FROM delivery_queue"), 0);
}

/// Two that record and give back the same in opposite orders do not wait for each other in a circle.
#[test]
fn locks_are_taken_in_one_order() {
    let fixture = Fixture::postgres();
    let store = fixture.migrated();
    let org = organization(&*store);
    let id = endpoint(&*store, org).id;
    let lease = in_seconds(600);
    let ids = deliveries(&*store, org, id, 400, Some(lease));
    thread::scope(|scope| {
        for n in 0..4 {
            let (store, mut ids) = (fixture.open(), ids.clone());
            if n % 2 == 0 {
                ids.reverse();
            }
            scope.spawn(move || {
                for round in 0..30 {
                    let held: Vec<_> = ids.iter().map(|id| (*id, lease)).collect();
                    store.release(&held, lease).unwrap();
                    let results: Vec<_> =
                        ids.iter().map(|id| result(*id, round + 1, lease, Next::RetryAt(lease))).collect();
                    record_all(&*store, &results).unwrap();
                }
            });
        }
    });
    let deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()";
    thread::sleep(Duration::from_millis(1500));
    let url = fixture.config.database_url.as_deref().unwrap();
    assert_eq!(admin(url).query_one(deadlocks, &[]).unwrap().get::<_, i64>(0), 0);
}

/// A dump holds a snapshot for hours: whoever looks for what is due passes over what has ended since, unless it begins where
/// the last look ended.
#[test]
fn a_look_does_not_pass_over_what_has_ended() {
    const ENDED: usize = 5000;
    let fixture = Fixture::postgres();
    let store = fixture.migrated();
    let org = organization(&*store);
    let id = endpoint(&*store, org).id;
    deliveries(&*store, org, id, 1, None);
    let mut dump = admin(fixture.config.database_url.as_deref().unwrap());
    dump.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM delivery_queue").unwrap();
    for _ in 0..ENDED / 1000 {
        let lease = Timestamp::now();
        let ids = deliveries(&*store, org, id, 1000, Some(lease));
        let results: Vec<_> = ids.iter().map(|id| result(*id, 1, lease, Next::Delivered)).collect();
        assert_eq!(record_all(&*store, &results), Ok(1000));
    }
    claim(&*store, id, 9, Timestamp::now());
    let looked_at = Timestamp::now();
    let last = deliveries(&*store, org, id, 1, None)[0];
    drop(store);
    // A session tells of its statistics when it ends.
    let alone = || {
        let sessions = "SELECT count(*) FROM pg_stat_activity
            WHERE datname = current_database() AND backend_type = 'client backend'";
        // The dump's, and the one that asks.
        wait_for("the sessions to end", || fixture.count(sessions) == 2);
    };
    let read =
        || fixture.count("SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = 'delivery_queue_due'");
    let cost = |look: &dyn Fn(&dyn Store)| {
        alone();
        let before = read();
        look(&*fixture.open());
        alone();
        read() - before
    };
    let now = Timestamp::now();
    let all = cost(&|store| assert_eq!(due_endpoints(store, now, None, 9), Ok(vec![id])));
    assert!(all > ENDED as i64, "{all}");
    let few = cost(&|store| {
        assert_eq!(store.due_since(now, &[(id, looked_at)]).unwrap().len(), 1);
        let wanted = [Wanted { endpoint: id, most: 9, from: looked_at }];
        let claimed = store.claim(now, in_seconds(60), &wanted).unwrap().ready;
        assert_eq!(claimed.iter().map(|claimed| claimed.delivery).collect::<Vec<_>>(), [last]);
    });
    assert!(few < 100, "{few}");
    drop(dump);
}
