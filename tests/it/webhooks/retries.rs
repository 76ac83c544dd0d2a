//! What follows from what the receiver does: every class of failure is visible and tried again, and an endpoint that is
//! dead is left alone.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use support::certificates::{Authority, self_signed};
use support::installation::Installation;
use support::on_both_stores;
use support::receiver::{Receiver, Step, answer, answer_with, send};
use support::server::{PATIENCE, eventually};

use crate::webhooks::fixture::{Tenant, has_status, signatures_of};

on_both_stores!(
    a_failed_delivery_is_tried_again_with_the_same_bytes,
    each_class_of_failure_is_named,
    over_tls_the_certificate_decides,
    a_receiver_that_asks_for_time_gets_it,
    an_endpoint_that_is_gone_is_disabled,
    a_410_that_breaks_off_is_tried_again_and_disables_nothing,
    a_delivery_that_failed_for_good_can_be_sent_again,
    a_dead_endpoint_is_probed_and_its_backlog_sent_on_return,
    a_circuit_ends_with_the_endpoint_as_it_was,
);

fn a_failed_delivery_is_tried_again_with_the_same_bytes(installation: &Installation) {
    let tries = AtomicUsize::new(0);
    let receiver = Receiver::start(move |_| answer([500, 302, 200][tries.fetch_add(1, Ordering::Relaxed)], "said"));
    let tenant = Tenant::new(installation, &[]);
    let endpoint = tenant.endpoint(&receiver.url("/"), &json!({}));
    let id = tenant.post("t", "{\"a\" :1}");
    let delivery = tenant.delivery(&id, has_status("delivered"));
    let attempts = delivery["attempts"].as_array().unwrap();
    let codes: Vec<&Value> = attempts.iter().map(|attempt| &attempt["status_code"]).collect();
    assert_eq!(codes, [500, 302, 200]);
    assert!(attempts.iter().all(|attempt| attempt["response_body"] == "said" && attempt["latency_ms"].is_u64()));
    let seen = receiver.requests();
    assert_eq!(seen.len(), 3);
    for one in &seen {
        assert_eq!((one.header("webhook-id"), &one.body), (Some(id.as_str()), &seen[0].body));
        assert_eq!(signatures_of(one, endpoint["secret"].as_str().unwrap()), 1);
    }
    for pair in seen.windows(2) {
        assert!(pair[1].at.duration_since(pair[0].at) >= Duration::from_millis(750));
    }
    let outcomes = ["retried", "delivered", "failed", "blocked"]
        .map(|status| tenant.server.count(&format!("webhook_deliveries_total{{status=\"{status}\"}}")));
    assert_eq!(outcomes, [2, 1, 0, 0]);
}

fn each_class_of_failure_is_named(installation: &Installation) {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap();
    let refused = format!("http://{}/", nobody.local_addr().unwrap());
    drop(nobody);
    let receiver = Receiver::start(|seen| match seen.target.as_str() {
        "/reset" => vec![Step::Reset],
        "/close" => vec![Step::Close],
        "/silent" => vec![Step::Hold],
        "/half" => {
            let mut steps = send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf");
            steps.push(Step::Hold);
            steps
        }
        "/drip" => (0..20)
            .flat_map(|n| {
                let byte = if n == 0 { "HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n" } else { "x" };
                [Step::Send(byte.into()), Step::Pause(Duration::from_millis(300))]
            })
            .collect(),
        "/garbage" => send("SSH-2.0-OpenSSH_9.2\r\n"),
        "/header" => answer_with(200, &format!("X: {}\r\n", "x".repeat(100_000)), ""),
        "/redirect" => answer_with(307, "Location: http://127.0.0.1:1/\r\n", ""),
        "/huge" => answer(200, &"y".repeat(3_000_000)),
        path => panic!("{path}"),
    });
    let tenant = Tenant::new(
        installation,
        &["--webhook-timeout", "2", "--webhook-connect-timeout", "1", "--webhook-retry-schedule", ""],
    );
    let cases: &[(&str, &str, Value, &str)] = &[
        ("refused", &refused, json!(null), "connection_refused"),
        ("name", "http://no-such-host.invalid/", json!(null), "dns_failed"),
        ("reset", &receiver.url("/reset"), json!(null), "connection_closed"),
        ("close", &receiver.url("/close"), json!(null), "connection_closed"),
        ("silent", &receiver.url("/silent"), json!(null), "timeout"),
        ("half", &receiver.url("/half"), json!(200), "timeout"),
        ("drip", &receiver.url("/drip"), json!(200), "timeout"),
        ("garbage", &receiver.url("/garbage"), json!(null), "invalid_response"),
        ("header", &receiver.url("/header"), json!(null), "invalid_response"),
        ("redirect", &receiver.url("/redirect"), json!(307), ""),
        ("huge", &receiver.url("/huge"), json!(200), ""),
    ];
    for (name, url, ..) in cases {
        tenant.endpoint(url, &json!({ "event_types": [name] }));
    }
    let ids: Vec<String> = cases.iter().map(|(name, ..)| tenant.post(name, "1")).collect();
    for ((name, _, status_code, error), id) in cases.iter().zip(ids) {
        let delivery = tenant.delivery(&id, |delivery| delivery["status"] != "pending");
        let attempt = &delivery["attempts"][0];
        assert_eq!(&attempt["status_code"], status_code, "{name}");
        let error = if error.is_empty() { json!(null) } else { json!(error) };
        assert_eq!(attempt["error"], error, "{name}");
        assert_eq!(delivery["status"], if *name == "huge" { "delivered" } else { "failed" }, "{name}");
        let shown = attempt["response_body"].as_str().unwrap_or_default().len();
        assert!(shown <= 1024 && (*name != "huge" || shown == 1024), "{name}: {shown}");
    }
}

fn over_tls_the_certificate_decides(installation: &Installation) {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let ca = authority.file(directory.path());
    let good = Receiver::start_tls(authority.server(&["localhost"]), |_| answer(200, ""));
    let wrong_host = Receiver::start_tls(authority.server(&["other.test"]), |_| answer(200, ""));
    let expired = Receiver::start_tls(authority.expired(&["localhost"]), |_| answer(200, ""));
    let stranger = Receiver::start_tls(self_signed(&["localhost"]), |_| answer(200, ""));
    let tenant =
        Tenant::new(installation, &["--webhook-ca-file", ca.to_str().unwrap(), "--webhook-retry-schedule", ""]);
    for (name, receiver) in
        [("good", &good), ("wrong_host", &wrong_host), ("expired", &expired), ("stranger", &stranger)]
    {
        tenant.endpoint(&receiver.url_of("localhost", "/"), &json!({ "event_types": [name] }));
        let id = tenant.post(name, "1");
        let delivery = tenant.delivery(&id, |delivery| delivery["status"] != "pending");
        if name == "good" {
            assert_eq!(delivery["status"], "delivered");
        } else {
            assert_eq!(delivery["attempts"][0]["error"], "tls_failed", "{name}");
            assert_eq!(receiver.count(), 0, "{name}");
        }
    }
}

fn a_receiver_that_asks_for_time_gets_it(installation: &Installation) {
    let receiver =
        Receiver::start(
            |seen| if seen.turn == 0 { answer_with(429, "Retry-After: 4\r\n", "") } else { answer(200, "") },
        );
    let tenant = Tenant::new(installation, &[]);
    tenant.endpoint(&receiver.url("/"), &json!({}));
    let id = tenant.post("t", "1");
    tenant.delivery(&id, has_status("delivered"));
    let seen = receiver.requests();
    assert!(seen[1].at.duration_since(seen[0].at) >= Duration::from_secs(4));
}

fn an_endpoint_that_is_gone_is_disabled(installation: &Installation) {
    let receiver = Receiver::start(|_| answer(410, ""));
    let tenant = Tenant::new(installation, &[]);
    let endpoint = tenant.endpoint(&receiver.url("/"), &json!({}));
    let id = tenant.post("t", "1");
    tenant.delivery(&id, has_status("failed"));
    let path = format!("/api/endpoints/{}", endpoint["id"].as_str().unwrap());
    eventually("the endpoint is disabled", || tenant.get(&path)["enabled"] == false);
    assert!(tenant.get(&path)["disabled_reason"].as_str().unwrap().contains("410"));
    // Known to the planning within a second.
    eventually("nothing more is planned for it", || {
        let id = tenant.post("t", "2");
        tenant.server.drained();
        let deliveries = tenant.get(&format!("/api/events/{id}/deliveries"));
        deliveries["data"] == json!([])
    });
}

/// One rule: what breaks off says nothing, neither for the delivery nor for the endpoint.
fn a_410_that_breaks_off_is_tried_again_and_disables_nothing(installation: &Installation) {
    let receiver = Receiver::start(|seen| match seen.header("webhook-id") {
        Some(_) if seen.connection == 0 => {
            let mut steps = send("HTTP/1.1 410 Gone\r\nContent-Length: 100\r\n\r\nbut");
            steps.push(Step::Close);
            steps
        }
        _ => answer(200, ""),
    });
    let tenant = Tenant::new(installation, &[]);
    let endpoint = tenant.endpoint(&receiver.url("/"), &json!({}));
    let delivered = tenant.delivery(&tenant.post("t", "1"), has_status("delivered"));
    let attempts = delivered["attempts"].as_array().unwrap();
    assert_eq!(attempts.len(), 2);
    assert_eq!((&attempts[0]["status_code"], &attempts[0]["error"]), (&json!(410), &json!("connection_closed")));
    assert_eq!(tenant.get(&format!("/api/endpoints/{}", endpoint["id"].as_str().unwrap()))["enabled"], true);
}

fn a_delivery_that_failed_for_good_can_be_sent_again(installation: &Installation) {
    let is_up = Arc::new(AtomicUsize::new(0));
    let status = Arc::clone(&is_up);
    let receiver = Receiver::start(move |_| answer([500, 200][status.load(Ordering::Relaxed)], ""));
    let tenant = Tenant::new(installation, &["--webhook-retry-schedule", ""]);
    let endpoint = tenant.endpoint(&receiver.url("/"), &json!({}));
    let ids: Vec<String> = (0..4).map(|_| tenant.post("t", "1")).collect();
    let failed: Vec<Value> = ids.iter().map(|id| tenant.delivery(id, has_status("failed"))).collect();
    is_up.store(1, Ordering::Relaxed);
    let one = failed[0]["id"].as_str().unwrap();
    let retried = tenant.server.post(&format!("/api/deliveries/{one}/retry"), &tenant.key, "");
    assert_eq!(retried.status, 202, "{}", retried.json());
    let delivered = tenant.delivery(&ids[0], has_status("delivered"));
    assert_eq!(delivered["attempts"].as_array().unwrap().len(), 2);
    assert_eq!(tenant.count("failed"), 3);
    let path = format!("/api/endpoints/{}/recover", endpoint["id"].as_str().unwrap());
    let recovered = tenant.server.post(&path, &tenant.key, r#"{"since":"2020-01-01T00:00:00Z"}"#);
    assert_eq!((recovered.status, &recovered.json()["recovered"]), (202, &json!(3)), "{}", recovered.json());
    for id in &ids {
        tenant.delivery(id, has_status("delivered"));
    }
    assert_eq!(receiver.count(), 8);
}

fn a_dead_endpoint_is_probed_and_its_backlog_sent_on_return(installation: &Installation) {
    const BACKLOG: usize = 300;
    let is_up = Arc::new(AtomicUsize::new(0));
    let status = Arc::clone(&is_up);
    let receiver = Receiver::start(move |_| answer([503, 200][status.load(Ordering::Relaxed)], ""));
    let tenant = Tenant::new(installation, &["--webhook-concurrency", "8"]);
    tenant.endpoint(&receiver.url("/"), &json!({}));
    let ids = tenant.post_many(BACKLOG, "t");
    eventually("its circuit is open", || tenant.server.count("webhook_open_circuits") == 1);
    let asked = receiver.count();
    assert!(asked < 50, "{asked} requests before it was left alone");
    std::thread::sleep(Duration::from_secs(2));
    assert!(receiver.count() <= asked + 8, "{} requests while it rests", receiver.count());
    is_up.store(1, Ordering::Relaxed);
    eventually("its backlog arrives", || tenant.count("delivered") == BACKLOG);
    assert_eq!(tenant.server.count("webhook_open_circuits"), 0);
    let arrived: std::collections::HashSet<String> =
        receiver.wait_for(BACKLOG, PATIENCE).iter().map(|seen| seen.header("webhook-id").unwrap().to_owned()).collect();
    assert!(ids.iter().all(|id| arrived.contains(id)));
}

/// Disabled, moved or deleted: what was known of the receiver is of no importance any more, and nobody counts it.
fn a_circuit_ends_with_the_endpoint_as_it_was(installation: &Installation) {
    let dead = Receiver::start(|_| answer(503, ""));
    let alive = Receiver::start(|_| answer(200, ""));
    let tenant = Tenant::new(installation, &["--webhook-concurrency", "8"]);
    let endpoint = tenant.endpoint(&dead.url("/"), &json!({}));
    let path = format!("/api/endpoints/{}", endpoint["id"].as_str().unwrap());
    let change = |body: Value| {
        let body = body.to_string();
        let changed = tenant.server.connect().request("PATCH", &path, Some(&tenant.key), Some(body.as_bytes()));
        assert_eq!(changed.status, 200, "{}", changed.json());
    };
    let open = || tenant.server.count("webhook_open_circuits");
    tenant.post_many(20, "t");
    eventually("its circuit is open", || open() == 1);
    change(json!({ "enabled": false }));
    eventually("it ends when it is disabled", || open() == 0);
    let asked = dead.count();
    change(json!({ "enabled": true }));
    eventually("it is asked again as a new one is", || dead.count() >= asked + 8 && open() == 1);
    change(json!({ "url": alive.url("/") }));
    eventually("it ends when it is moved, and the backlog arrives", || tenant.count("delivered") == 20 && open() == 0);
    change(json!({ "url": dead.url("/") }));
    tenant.post_many(20, "t");
    eventually("its circuit is open", || open() == 1);
    let deleted = tenant.server.connect().request("DELETE", &path, Some(&tenant.key), None);
    assert_eq!(deleted.status, 204);
    eventually("it ends when it is deleted", || open() == 0);
}
