//! An endpoint with a backlog is sent to at the rate it asked for, or as fast as it answers, for as long as it takes.

use std::time::{Duration, Instant};

use serde_json::json;

use support::installation::Installation;
use support::on_both_stores;
use support::receiver::{Receiver, Step, answer};

use crate::webhooks::fixture::Tenant;

on_both_stores!(a_backlog_is_sent_at_its_rate_for_longer_than_two_leases);

/// A lease is the timeout and 45 s.
fn a_backlog_is_sent_at_its_rate_for_longer_than_two_leases(installation: &Installation) {
    const WATCHED: Duration = Duration::from_secs(105);
    const SLOW: Duration = Duration::from_millis(1500);
    let args = ["--webhook-timeout", "2", "--webhook-connect-timeout", "1", "--webhook-concurrency", "2"];
    let tenant = Tenant::new(installation, &args);
    let paced: Vec<(u32, Receiver)> =
        [1, 5, 20].into_iter().map(|rate| (rate, Receiver::start(|_| answer(200, "")))).collect();
    for (rate, receiver) in &paced {
        let only = json!({ "rate_limit_per_second": rate, "event_types": [format!("t{rate}")] });
        tenant.endpoint(&receiver.url("/"), &only);
    }
    let slow = Receiver::start(|_| vec![Step::Pause(SLOW), answer(200, "").pop().unwrap()]);
    tenant.endpoint(&slow.url("/"), &json!({ "event_types": ["slow"] }));
    let backlog = |rate: u32| WATCHED.as_secs() as usize * rate as usize * 3 / 2;
    for (rate, _) in &paced {
        let mut left = backlog(*rate);
        while left > 0 {
            let some = left.min(1000);
            tenant.post_many(some, &format!("t{rate}"));
            left -= some;
        }
    }
    tenant.post_many(300, "slow");
    let began = Instant::now();
    let before: Vec<usize> = paced.iter().map(|(_, receiver)| receiver.count()).collect();
    std::thread::sleep(WATCHED);
    let seconds = began.elapsed().as_secs_f64();
    // Each arrives when it does: what is counted is that none stopped, or went ahead.
    for ((rate, receiver), before) in paced.iter().zip(before) {
        let sent = (receiver.count() - before) as f64;
        let due = seconds * f64::from(*rate);
        assert!(sent >= due * 0.9 && sent <= due * 1.02 + 2.0, "{sent} instead of {due} at {rate} a second");
    }
    let due = seconds / SLOW.as_secs_f64() * 2.0;
    assert!(slow.count() as f64 >= due * 0.8, "{} instead of {due} at the slow one", slow.count());
    assert_eq!(tenant.server.count("webhook_leases_lost_total"), 0);
}
