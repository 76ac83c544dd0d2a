//! Two servers on one Postgres.

use std::collections::HashMap;

use serde_json::json;

use support::installation::Installation;
use support::receiver::{Receiver, answer};
use support::server::eventually;

use crate::webhooks::fixture::{Tenant, has_status, post_many, start};

/// Both take events, and both look for what is due; nothing is sent twice.
#[test]
fn two_servers_send_each_delivery_once() {
    const EACH: usize = 2000;
    let receiver = Receiver::start(|_| answer(200, ""));
    let installation = Installation::postgres();
    let tenant = Tenant::new(&installation, &[]);
    let other = start(&installation, &[]);
    tenant.endpoint(&receiver.url("/"), &json!({}));
    tenant.await_endpoint_on(&other, "t");
    let before = receiver.count();
    std::thread::scope(|scope| {
        for server in [&tenant.server, &other] {
            let key = &tenant.key;
            scope.spawn(move || (0..EACH / 500).for_each(|_| drop(post_many(server, key, 500, "t"))));
        }
    });
    eventually("all have arrived", || receiver.count() >= before + 2 * EACH);
    eventually("all are recorded", || tenant.count("pending") == 0);
    let mut times: HashMap<String, usize> = HashMap::new();
    for seen in receiver.requests() {
        *times.entry(seen.header("webhook-id").unwrap().to_owned()).or_default() += 1;
    }
    assert!(times.len() > 2 * EACH && times.values().all(|times| *times == 1));
    let lost = [&tenant.server, &other].map(|server| server.count("webhook_leases_lost_total"));
    assert_eq!(lost, [0, 0]);
}

/// Due deliveries are claimed by whoever comes first: many retries at once, two claimants, each retry made once.
#[test]
fn retries_are_claimed_by_one_server_each() {
    const COUNT: usize = 500;
    let receiver = Receiver::start(|seen| answer(if seen.target == "/500" { 500 } else { 200 }, ""));
    let installation = Installation::postgres();
    let tenant = Tenant::new(&installation, &["--webhook-retry-schedule", ""]);
    let other = start(&installation, &[]);
    let endpoint = tenant.endpoint(&receiver.url("/500"), &json!({}));
    let path = format!("/api/endpoints/{}", endpoint["id"].as_str().unwrap());
    let first = tenant.post("t", "0");
    tenant.delivery(&first, has_status("failed"));
    let change = |body: &str| {
        let changed = tenant.server.connect().request("PATCH", &path, Some(&tenant.key), Some(body.as_bytes()));
        assert_eq!(changed.status, 200, "{}", changed.json());
    };
    for _ in 0..COUNT / 100 {
        tenant.post_many(100, "t");
    }
    // They pile up: some have failed, the others wait for the circuit. Then both servers see them due at once.
    eventually("all are stored", || tenant.count("failed") + tenant.count("pending") == COUNT + 1);
    change(&json!({ "url": receiver.url("/200") }).to_string());
    let recover = format!("{path}/recover");
    eventually("all are delivered", || {
        // Again: an attempt that was under way when the URL changed fails after the first time.
        let recovered = tenant.server.post(&recover, &tenant.key, r#"{"since":"2020-01-01T00:00:00Z"}"#);
        assert_eq!(recovered.status, 202, "{}", recovered.json());
        tenant.count("delivered") == COUNT + 1
    });
    let mut times: HashMap<String, usize> = HashMap::new();
    for seen in receiver.requests().iter().filter(|seen| seen.target == "/200") {
        *times.entry(seen.header("webhook-id").unwrap().to_owned()).or_default() += 1;
    }
    assert_eq!((times.len(), times.values().sum::<usize>()), (COUNT + 1, COUNT + 1));
    drop(other);
}
