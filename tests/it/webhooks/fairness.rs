//! One endpoint's trouble is not another's.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use serde_json::json;

use support::installation::Installation;
use support::on_both_stores;
use support::receiver::{Receiver, Step, answer};
use support::server::{PATIENCE, eventually};

use crate::webhooks::fixture::Tenant;

on_both_stores!(
    a_black_hole_with_a_backlog_delays_nobody,
    an_endpoint_gets_no_more_a_second_than_it_wants,
    a_backlog_ends_when_its_endpoint_is_disabled,
);

/// A black hole with thousands of deliveries beside a hundred endpoints that answer: theirs arrive while not one of its
/// attempts has even timed out.
fn a_black_hole_with_a_backlog_delays_nobody(installation: &Installation) {
    const BACKLOG: usize = 3000;
    const HEALTHY: usize = 100;
    let hole = Receiver::start(|_| vec![Step::Hold]);
    let receiver = Receiver::start(|_| answer(200, ""));
    let tenant = Tenant::new(installation, &["--webhook-timeout", "60", "--webhook-connect-timeout", "5"]);
    tenant.endpoint(&hole.url("/"), &json!({ "event_types": ["lost"] }));
    for n in 0..HEALTHY - 1 {
        tenant.endpoint(&receiver.url(&format!("/{n}")), &json!({ "event_types": ["found"] }));
    }
    for _ in 0..BACKLOG / 1000 {
        tenant.post_many(1000, "lost");
    }
    eventually("the hole has as many as it may have", || hole.count() >= 32);
    let ids = tenant.post_many(10, "found");
    let seen = receiver.wait_for(ids.len() * (HEALTHY - 1), PATIENCE);
    let mut each: HashMap<&str, usize> = HashMap::new();
    for one in &seen {
        *each.entry(&one.target).or_default() += 1;
    }
    assert_eq!((each.len(), each.values().all(|count| *count == ids.len())), (HEALTHY - 1, true));
    eventually("all of them are recorded", || tenant.count("delivered") == ids.len() * (HEALTHY - 1));
    assert_eq!(hole.count(), 32, "no attempt of the hole has ended");
    assert_eq!(tenant.count("pending"), BACKLOG);
}

fn an_endpoint_gets_no_more_a_second_than_it_wants(installation: &Installation) {
    const RATE: usize = 20;
    let receiver = Receiver::start(|_| answer(200, ""));
    let tenant = Tenant::new(installation, &[]);
    tenant.endpoint(&receiver.url("/"), &json!({ "rate_limit_per_second": RATE }));
    tenant.post_many(3 * RATE, "t");
    let seen = receiver.wait_for(3 * RATE, PATIENCE);
    let arrived: Vec<Instant> = seen.iter().map(|seen| seen.at).collect();
    for window in arrived.windows(RATE + 2) {
        // The receiver's own lateness can push two together, not many.
        // Twice the rate would be half a second; what was held up on its way comes sooner after what was not.
        assert!(window[RATE + 1].duration_since(window[0]) >= Duration::from_millis(600));
    }
}

/// By the command line, so that only the claiming thread can hear of it; and it hears of it in the middle of the backlogs of
/// several, of which there is always one that has room for more.
fn a_backlog_ends_when_its_endpoint_is_disabled(installation: &Installation) {
    const EACH: usize = 3000;
    const OTHERS: usize = 9;
    /// What may be sent after the command has ended: 4 requests at a time of 10 ms each, for some seconds.
    const FURTHER: usize = 1200;
    let respond =
        || Receiver::forgetful(|_| vec![Step::Pause(Duration::from_millis(10)), answer(200, "").pop().unwrap()]);
    let (receiver, others) = (respond(), respond());
    let tenant = Tenant::new(installation, &["--webhook-concurrency", "4"]);
    let endpoint = tenant.endpoint(&receiver.url("/"), &json!({}));
    for n in 0..OTHERS {
        tenant.endpoint(&others.url(&format!("/{n}")), &json!({}));
    }
    for _ in 0..EACH / 500 {
        tenant.post_many(500, "t");
        tenant.server.drained();
    }
    tenant.server.cli(&["endpoint", "disable", endpoint["id"].as_str().unwrap()]);
    let before = receiver.count();
    // It is known a second later; of what is in memory by then nothing is sent any more.
    eventually("nothing more is sent to it", || {
        let sent = receiver.count();
        std::thread::sleep(Duration::from_secs(2));
        receiver.count() == sent
    });
    let further = receiver.count() - before;
    assert!(further <= FURTHER, "{further} after {before}");
}
