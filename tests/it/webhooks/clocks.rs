//! Whatever the wall clock is set to: what waits comes when it should, once, and nobody is disabled for time that nobody
//! lived through.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use serde_json::json;

use support::installation::Installation;
use support::on_both_stores;
use support::receiver::{Receiver, Step, answer};
use support::server::eventually;
use support::stepped_clock::SteppedClock;

use crate::webhooks::fixture::{Tenant, arguments, has_status};

on_both_stores!(
    a_clock_set_back_stops_no_endpoint_with_an_open_circuit,
    a_retry_comes_though_the_clock_is_set_back_a_year,
    what_waits_comes_after_a_start_a_year_back,
    a_clock_set_400_days_ahead_disables_no_endpoint,
    no_step_of_the_clock_sends_a_delivery_twice,
    events_arrive_whatever_the_clock_is_set_to,
);

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

fn start(installation: &Installation, clock: &SteppedClock, args: &[&str]) -> Tenant {
    let server = installation.start_as(|options| clock.of(options), &arguments(args));
    let key = server.key();
    Tenant { server, key }
}

/// A receiver that answers with this status.
fn receiver(status: u16) -> (Receiver, Arc<AtomicU16>) {
    let says = Arc::new(AtomicU16::new(status));
    let status = Arc::clone(&says);
    (Receiver::start(move |_| answer(status.load(Ordering::Relaxed), "")), says)
}

fn opened(tenant: &Tenant) {
    eventually("its circuit is open", || tenant.server.count("webhook_open_circuits") == 1);
}

fn a_clock_set_back_stops_no_endpoint_with_an_open_circuit(installation: &Installation) {
    let (receiver, says) = receiver(503);
    let clock = SteppedClock::new();
    let tenant = start(installation, &clock, &["--webhook-concurrency", "8"]);
    tenant.endpoint(&receiver.url("/"), &json!({}));
    tenant.post_many(20, "t");
    opened(&tenant);
    clock.set_back(HOUR);
    says.store(200, Ordering::Relaxed);
    tenant.post_many(20, "t");
    eventually("all of it arrives", || tenant.count("delivered") == 40);
    assert_eq!(tenant.server.count("webhook_open_circuits"), 0);
}

fn a_retry_comes_though_the_clock_is_set_back_a_year(installation: &Installation) {
    let (receiver, says) = receiver(503);
    let clock = SteppedClock::new();
    let tenant = start(installation, &clock, &["--webhook-retry-schedule", "3s,3s,3s,3s,3s,3s,3s,3s"]);
    tenant.endpoint(&receiver.url("/"), &json!({}));
    for back in [HOUR, YEAR] {
        says.store(503, Ordering::Relaxed);
        let id = tenant.post("t", "1");
        tenant.delivery(&id, |delivery| delivery["attempts"].as_array().is_some_and(|attempts| !attempts.is_empty()));
        clock.set_back(back);
        says.store(200, Ordering::Relaxed);
        tenant.delivery(&id, has_status("delivered"));
    }
}

/// The embedded store goes by its machine's clock, and what it planned is a year ahead now. With Postgres the server's own
/// clock is of no importance.
fn what_waits_comes_after_a_start_a_year_back(installation: &Installation) {
    let (receiver, says) = receiver(503);
    let clock = SteppedClock::new();
    let args = ["--webhook-retry-schedule", "5s,5s,5s,5s"];
    let mut tenant = start(installation, &clock, &args);
    tenant.endpoint(&receiver.url("/"), &json!({}));
    let id = tenant.post("t", "1");
    tenant.delivery(&id, |delivery| delivery["attempts"].as_array().is_some_and(|attempts| !attempts.is_empty()));
    assert_eq!(tenant.server.stop(), 0);
    clock.set_back(YEAR);
    says.store(200, Ordering::Relaxed);
    let key = tenant.key;
    let tenant = Tenant { server: installation.start_as(|options| clock.of(options), &arguments(&args)), key };
    tenant.delivery(&id, has_status("delivered"));
}

fn a_clock_set_400_days_ahead_disables_no_endpoint(installation: &Installation) {
    let (receiver, says) = receiver(503);
    let clock = SteppedClock::new();
    let tenant = start(installation, &clock, &["--webhook-concurrency", "8"]);
    let endpoint = tenant.endpoint(&receiver.url("/"), &json!({}));
    let path = format!("/api/endpoints/{}", endpoint["id"].as_str().unwrap());
    tenant.post_many(20, "t");
    opened(&tenant);
    clock.set_forward(400 * DAY);
    let asked = receiver.count();
    eventually("it was asked again", || receiver.count() >= asked + 2);
    says.store(200, Ordering::Relaxed);
    // Whatever follows from the last failure is done before what follows from this.
    eventually("its backlog arrives", || tenant.count("delivered") == 20);
    assert_eq!(tenant.get(&path)["enabled"], true);
}

fn no_step_of_the_clock_sends_a_delivery_twice(installation: &Installation) {
    const COUNT: usize = 120;
    let receiver = Receiver::start(|_| vec![Step::Pause(Duration::from_millis(300)), answer(200, "").pop().unwrap()]);
    let clock = SteppedClock::new();
    let tenant = start(installation, &clock, &["--webhook-concurrency", "4"]);
    tenant.endpoint(&receiver.url("/"), &json!({}));
    tenant.post_many(COUNT, "t");
    let steps: [&dyn Fn(); 5] = [
        &|| clock.set_forward(HOUR),
        &|| clock.set_back(HOUR),
        &|| clock.set_forward(400 * DAY),
        &|| clock.set_to_1970(),
        &|| clock.set_forward(Duration::ZERO),
    ];
    for (n, step) in (1..).zip(steps) {
        eventually("some have arrived", || receiver.count() >= n * COUNT / 8);
        step();
    }
    eventually("all are delivered", || tenant.count("delivered") == COUNT);
    let mut times: HashMap<String, usize> = HashMap::new();
    for seen in receiver.requests() {
        *times.entry(seen.header("webhook-id").unwrap().to_owned()).or_default() += 1;
    }
    assert_eq!((times.len(), times.values().max()), (COUNT, Some(&1)));
    assert_eq!(tenant.server.count("webhook_leases_lost_total"), 0);
}

fn events_arrive_whatever_the_clock_is_set_to(installation: &Installation) {
    const EACH: usize = 5;
    let (receiver, _) = receiver(200);
    let clock = SteppedClock::new();
    // A machine that has just been switched on.
    clock.set_to_1970();
    let tenant = start(installation, &clock, &[]);
    // Slower than the posts: some find no room in memory, and are claimed.
    tenant.endpoint(&receiver.url("/paced"), &json!({ "rate_limit_per_second": 20 }));
    tenant.endpoint(&receiver.url("/"), &json!({}));
    let minutes = Duration::from_secs(120);
    let steps: [&dyn Fn(); 8] = [
        &|| (),
        &|| clock.set_forward(Duration::ZERO),
        &|| clock.set_back(minutes),
        &|| clock.set_forward(minutes),
        &|| clock.set_back(HOUR),
        &|| clock.set_forward(400 * DAY),
        &|| clock.set_back(YEAR),
        &|| clock.set_forward(Duration::ZERO),
    ];
    for (n, step) in (1..).zip(steps) {
        step();
        tenant.post_many(EACH, "t");
        eventually("what was posted has arrived", || receiver.count() >= 2 * EACH * n);
    }
    eventually("all of it is recorded", || tenant.count("delivered") == 2 * EACH * steps.len());
    assert_eq!(receiver.count(), 2 * EACH * steps.len());
    assert_eq!(tenant.server.count("webhook_leases_lost_total"), 0);
}
