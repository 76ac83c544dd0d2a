//! The database is away for longer than a lease lasts, or cannot be written to: what was answered meanwhile is recorded
//! once and not sent again, and no more is sent than can be recorded in time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::json;

use support::installation::Installation;
use support::postgres::{Cluster, Options as ClusterOptions};
use support::receiver::{Receiver, Step, answer};
use support::server::{Server, eventually};
use support::stepped_clock::SteppedClock;

use crate::webhooks::fixture::{Tenant, arguments, start};

/// Fewer than one endpoint may have in flight.
const COUNT: usize = 200;
const ARGS: [&str; 2] = ["--webhook-concurrency", "200"];
/// A lease is the timeout and 45 s.
const LONGER_THAN_A_LEASE: Duration = Duration::from_secs(120);

/// A receiver that answers when it is told to.
struct Gate {
    receiver: Receiver,
    is_open: Arc<AtomicBool>,
}

impl Gate {
    fn new() -> Self {
        let is_open = Arc::new(AtomicBool::new(false));
        let opened = Arc::clone(&is_open);
        let receiver = Receiver::start(move |_| vec![Step::Until(Arc::clone(&opened)), answer(200, "").pop().unwrap()]);
        Self { receiver, is_open }
    }

    fn open(&self) {
        self.is_open.store(true, Ordering::SeqCst);
    }
}

/// The clock of this database is that much ahead for whoever connects from now on.
fn set_forward(cluster: &Cluster, database: &str, by: Duration) {
    let seconds = by.as_secs();
    let ahead = format!(
        "CREATE SCHEMA ahead;
        CREATE FUNCTION ahead.clock_timestamp() RETURNS timestamptz LANGUAGE sql
            AS 'SELECT pg_catalog.clock_timestamp() + interval ''{seconds} s''';
        ALTER DATABASE {database} SET search_path = public, ahead, pg_catalog"
    );
    cluster.admin(database).batch_execute(&ahead).expect("a superuser may");
}

/// Everything has its place in the database again, nothing is in memory any more.
fn settled(tenant: &Tenant, servers: &[&Server]) {
    eventually("all are delivered", || tenant.count("delivered") == COUNT);
    eventually("nothing is held", || servers.iter().all(|server| server.count("webhook_held") == 0));
    for event in tenant.get(&format!("/api/deliveries?limit={COUNT}"))["data"].as_array().expect("a list") {
        assert_eq!(event["attempts"].as_array().map(Vec::len), Some(1), "{event}");
    }
}

fn away_for_longer_than_a_lease(servers: usize) {
    let mut cluster = Cluster::start_own(ClusterOptions { fsync: false });
    let database = cluster.new_name();
    cluster.admin("postgres").batch_execute(&format!("CREATE DATABASE {database}")).expect("a superuser may");
    let installation = Installation::postgres_at(&cluster.url(&database));
    let gate = Gate::new();
    let tenant = Tenant::new(&installation, &ARGS);
    tenant.endpoint(&gate.receiver.url("/"), &json!({}));
    let others: Vec<Server> = (1..servers).map(|_| start(&installation, &ARGS)).collect();
    tenant.post_many(COUNT, "t");
    eventually("all have arrived", || gate.receiver.count() == COUNT);
    set_forward(&cluster, &database, LONGER_THAN_A_LEASE);
    cluster.crash();
    gate.open();
    eventually("all are answered", || tenant.server.count("webhook_in_flight") == 0);
    // Whoever looks for what is due has noticed too.
    for server in others.iter().chain([&tenant.server]) {
        eventually("it is noticed", || server.log().contains("cannot be claimed"));
    }
    cluster.start();
    let all: Vec<&Server> = others.iter().chain([&tenant.server]).collect();
    settled(&tenant, &all);
    assert_eq!(gate.receiver.count(), COUNT, "each is sent once");
    assert_eq!(all.iter().map(|server| server.count("webhook_leases_lost_total")).sum::<u64>(), 0);
}

#[test]
fn a_database_restart_resends_nothing_that_was_answered() {
    away_for_longer_than_a_lease(1);
}

#[test]
fn no_other_server_resends_what_was_answered_in_an_outage() {
    away_for_longer_than_a_lease(3);
}

#[test]
fn a_locked_file_makes_nothing_be_sent_again_that_was_answered() {
    let installation = Installation::sqlite();
    let clock = SteppedClock::new();
    let gate = Gate::new();
    let server = installation.start_as(|options| clock.of(options), &arguments(&ARGS));
    let tenant = Tenant { key: server.key(), server };
    tenant.endpoint(&gate.receiver.url("/"), &json!({}));
    tenant.post_many(COUNT, "t");
    eventually("all have arrived", || gate.receiver.count() == COUNT);
    let locked = installation.block_writes();
    gate.open();
    eventually("all are answered", || tenant.server.count("webhook_in_flight") == 0);
    clock.set_forward(LONGER_THAN_A_LEASE);
    eventually("it is noticed", || tenant.server.log().contains("cannot be claimed"));
    drop(locked);
    settled(&tenant, &[&tenant.server]);
    assert_eq!(gate.receiver.count(), COUNT, "each is sent once");
    assert_eq!(tenant.server.count("webhook_leases_lost_total"), 0);
}

/// Where the database takes nothing any more, what goes on being sent would be sent again by whoever finds the leases over.
#[test]
fn a_server_that_cannot_record_stops_sending() {
    const MANY: usize = 2000;
    let cluster = Cluster::start_own(ClusterOptions { fsync: false });
    let database = cluster.new_name();
    cluster.admin("postgres").batch_execute(&format!("CREATE DATABASE {database}")).expect("a superuser may");
    let installation = Installation::postgres_at(&cluster.url(&database));
    // A third of a lease is 15 s and a little: at this pace some hundreds are sent until then, all of them before it ends.
    let pause = Arc::new(AtomicU64::new(100));
    let paced = Arc::clone(&pause);
    let receiver = Receiver::forgetful(move |_| {
        let pause = Duration::from_millis(paced.load(Ordering::SeqCst));
        vec![Step::Pause(pause), answer(200, "").pop().unwrap()]
    });
    let args = ["--webhook-timeout", "1", "--webhook-connect-timeout", "1", "--webhook-concurrency", "4"];
    let tenant = Tenant::new(&installation, &args);
    tenant.endpoint(&receiver.url("/"), &json!({}));
    tenant.post_many(MANY / 2, "t");
    tenant.post_many(MANY / 2, "t");
    eventually("some are held", || tenant.server.count("webhook_held") > 1000);
    eventually("it is under way", || receiver.count() > 0);
    let mut admin = cluster.admin(&database);
    admin.batch_execute("BEGIN; LOCK TABLE deliveries IN ACCESS EXCLUSIVE MODE").expect("a superuser may");
    eventually("it stops sending", || tenant.server.log().contains("no webhooks are sent"));
    eventually("nothing is in flight", || tenant.server.count("webhook_in_flight") == 0);
    let sent = receiver.count();
    assert!(sent < MANY, "{sent}");
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(receiver.count(), sent, "it has stopped");
    pause.store(1, Ordering::SeqCst);
    admin.batch_execute("ROLLBACK").expect("it answers");
    eventually("it goes on, and all of it arrives", || tenant.count("delivered") == MANY);
    assert_eq!(receiver.count(), MANY, "each is sent once");
    assert_eq!(tenant.server.count("webhook_leases_lost_total"), 0);
}
