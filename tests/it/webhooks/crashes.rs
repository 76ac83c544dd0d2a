//! Killed while it delivers: every delivery ends delivered at least once, or is still pending. None vanishes.

use std::collections::HashSet;
use std::time::Duration;

use serde_json::json;

use support::installation::Installation;
use support::on_both_stores;
use support::postgres::{Cluster, Options as ClusterOptions};
use support::receiver::{Receiver, Step, answer};
use support::server::eventually;

use crate::webhooks::fixture::{Tenant, has_status, start};

on_both_stores!(a_killed_server_loses_no_delivery, a_server_that_is_stopped_records_what_it_sent);

/// A lease of what a killed server held ends by itself; with the shortest timeouts that can be set, within a minute.
fn a_killed_server_loses_no_delivery(installation: &Installation) {
    const ROUNDS: usize = 3;
    const EACH: usize = 400;
    let receiver = Receiver::start(|_| vec![Step::Pause(Duration::from_millis(3)), answer(200, "").pop().unwrap()]);
    let args = ["--webhook-timeout", "1", "--webhook-connect-timeout", "1", "--webhook-concurrency", "4"];
    let mut ids = Vec::new();
    let mut tenant = Tenant::new(installation, &args);
    tenant.endpoint(&receiver.url("/"), &json!({}));
    for round in 0..ROUNDS {
        let before = receiver.count();
        ids.extend(tenant.post_many(EACH, "t"));
        eventually("some have arrived", || receiver.count() >= before + 50 * (round + 1));
        tenant.server.signal("KILL");
        tenant.server.wait();
        tenant = Tenant { server: start(installation, &args), key: tenant.key };
    }
    eventually("all are delivered", || tenant.count("delivered") == ROUNDS * EACH);
    assert_eq!(tenant.count("pending") + tenant.count("failed"), 0);
    let arrived: HashSet<String> =
        receiver.requests().iter().map(|seen| seen.header("webhook-id").unwrap().to_owned()).collect();
    assert_eq!(arrived, ids.into_iter().collect());
}

fn a_server_that_is_stopped_records_what_it_sent(installation: &Installation) {
    const COUNT: usize = 200;
    let receiver = Receiver::start(|_| vec![Step::Pause(Duration::from_millis(20)), answer(200, "").pop().unwrap()]);
    let mut tenant = Tenant::new(installation, &["--webhook-concurrency", "8"]);
    tenant.endpoint(&receiver.url("/"), &json!({}));
    tenant.post_many(COUNT, "t");
    eventually("some have arrived", || receiver.count() >= 20);
    assert_eq!(tenant.server.stop(), 0);
    let sent = receiver.count();
    assert!(sent < COUNT, "stopped in the middle");
    let tenant = Tenant { server: start(installation, &[]), key: tenant.key };
    // What it had sent is recorded, what it held is due at once: nothing waits for a lease, nothing is sent twice.
    eventually("all are delivered", || tenant.count("delivered") == COUNT);
    assert_eq!(receiver.count(), COUNT);
}

/// While the database is away what was sent cannot be recorded; nothing is sent over and over, and nothing is lost.
#[test]
fn a_database_that_is_away_for_a_while_costs_no_delivery() {
    let mut cluster = Cluster::start_own(ClusterOptions { fsync: false });
    let installation = Installation::postgres_at(&cluster.create_database());
    let receiver = Receiver::start(|_| answer(200, ""));
    let tenant = Tenant::new(&installation, &[]);
    tenant.endpoint(&receiver.url("/"), &json!({}));
    let first = tenant.post("t", "1");
    tenant.delivery(&first, has_status("delivered"));
    for _ in 0..3 {
        tenant.post_many(100, "t");
        cluster.crash();
        std::thread::sleep(Duration::from_millis(300));
        tenant.post_many(100, "t");
        cluster.start();
    }
    eventually("all are delivered", || tenant.count("delivered") == 601);
    assert_eq!(tenant.count("pending") + tenant.count("failed"), 0);
    let arrived: HashSet<String> =
        receiver.requests().iter().map(|seen| seen.header("webhook-id").unwrap().to_owned()).collect();
    assert_eq!(arrived.len(), 601);
}

/// The journal still holds them; that the day is gone means that they were stored and are not wanted any more.
#[test]
fn a_day_dropped_after_a_kill_is_not_stored_or_delivered_again() {
    const COUNT: usize = 20;
    let url = Cluster::shared().create_database();
    let installation = Installation::postgres_at(&url);
    let receiver = Receiver::start(|_| answer(200, ""));
    let directory = tempfile::tempdir().expect("a temporary directory");
    let args = ["--data-dir", directory.path().to_str().expect("text")];
    let mut tenant = Tenant::new(&installation, &args);
    tenant.endpoint(&receiver.url("/"), &json!({}));
    tenant.post_many(COUNT, "t");
    eventually("all are delivered", || tenant.count("delivered") == COUNT);
    tenant.server.signal("KILL");
    tenant.server.wait();
    let mut admin = postgres::Client::connect(&url, postgres::NoTls).expect("the database is there");
    let rows = |admin: &mut postgres::Client| -> i64 {
        admin.query_one("SELECT count(*) FROM events", &[]).expect("it answers").get(0)
    };
    assert_eq!(rows(&mut admin), COUNT as i64);
    let partitions = "SELECT DISTINCT tableoid::regclass::text FROM events";
    for row in admin.query(partitions, &[]).expect("it answers") {
        admin.batch_execute(&format!("DROP TABLE {}", row.get::<_, String>(0))).expect("it is there");
    }
    let tenant = Tenant { server: start(&installation, &args), key: tenant.key };
    eventually("they are released", || tenant.server.count("journal_events_expired_total") == COUNT as u64);
    let said = "whose partition was dropped since";
    eventually("the log says so once", || tenant.server.log().matches(said).count() == 1);
    assert_eq!(tenant.server.count("journal_replayed_total"), 0);
    // What is accepted now is stored, of the same day though it is.
    let new = tenant.post("t", "1");
    tenant.delivery(&new, has_status("delivered"));
    assert_eq!((rows(&mut admin), receiver.count()), (1, COUNT + 1));
}
