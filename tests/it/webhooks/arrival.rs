//! What arrives: the request to the byte, to whom it goes, and what is never sent.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::json;

use support::certificates::Authority;
use support::installation::Installation;
use support::on_both_stores;
use support::receiver::{Receiver, answer};
use support::server::{PATIENCE, event, eventually};

use crate::webhooks::fixture::{SECRET_KEY, Tenant, has_status, signatures_of};

on_both_stores!(
    an_event_arrives_signed_and_verbatim,
    only_the_endpoints_of_the_organisation_that_want_it_get_it,
    a_copy_of_an_event_brings_no_delivery,
    what_is_sent_of_copies_is_what_is_stored,
    both_secrets_sign_during_a_rotation,
    a_disabled_endpoint_gets_nothing_until_it_is_enabled,
    what_is_pending_for_a_deleted_endpoint_fails,
    a_test_goes_to_its_endpoint_alone,
    without_insecure_webhooks_nothing_goes_to_private_addresses,
);

fn an_event_arrives_signed_and_verbatim(installation: &Installation) {
    let receiver = Receiver::start(|_| answer(200, "thanks"));
    let tenant = Tenant::new(installation, &[]);
    let endpoint =
        tenant.endpoint(&receiver.url("/in?a=b"), &json!({ "headers": { "X-Team": "blue", "Authorization": "me" } }));
    let payload = "{ \"b\":1.000,\t\"a\": [1e400, \"\\ud800\"]}";
    let id = tenant.post("user.login", payload);
    let seen = receiver.wait_for(1, PATIENCE).remove(0);
    let delivery = tenant.delivery(&id, has_status("delivered"));
    assert_eq!(delivery["attempts"][0]["status_code"], 200);
    assert_eq!(delivery["attempts"][0]["response_body"], "thanks");
    assert_eq!(delivery["attempts"][0]["error"], json!(null));
    assert_eq!(delivery["endpoint_id"], endpoint["id"]);

    let body = String::from_utf8(seen.body.clone()).unwrap();
    let at = body.strip_prefix(r#"{"type":"user.login","timestamp":""#).unwrap().split('"').next().unwrap();
    assert_eq!(body, format!(r#"{{"type":"user.login","timestamp":"{at}","data":{payload}}}"#));
    let stored = String::from_utf8(tenant.server.get(&format!("/api/events/{id}"), Some(&tenant.key)).body).unwrap();
    assert!(stored.ends_with(&format!(r#","received_at":"{at}"}}"#)), "{stored}");
    assert_eq!((seen.method.as_str(), seen.target.as_str()), ("POST", "/in?a=b"));
    let host = receiver.address().to_string();
    let version = format!("millrace/{}", env!("CARGO_PKG_VERSION"));
    for (name, value) in [
        ("host", host.as_str()),
        ("content-type", "application/json"),
        ("user-agent", &version),
        ("webhook-id", &id),
        ("x-team", "blue"),
        ("authorization", "me"),
    ] {
        assert_eq!(seen.header(name), Some(value), "{name}");
    }
    assert_eq!(signatures_of(&seen, endpoint["secret"].as_str().unwrap()), 1);
    let signed_at: u64 = seen.header("webhook-timestamp").unwrap().parse().unwrap();
    assert!(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs().abs_diff(signed_at) < 60);
    for absent in ["accept-encoding", "x-api-key", "cookie"] {
        assert_eq!(seen.header(absent), None);
    }
}

fn only_the_endpoints_of_the_organisation_that_want_it_get_it(installation: &Installation) {
    let receiver = Receiver::start(|_| answer(204, ""));
    let tenant = Tenant::new(installation, &[]);
    tenant.endpoint(&receiver.url("/all"), &json!({}));
    tenant.endpoint(&receiver.url("/users"), &json!({ "event_types": ["user.*"] }));
    tenant.endpoint(&receiver.url("/orders"), &json!({ "event_types": ["order.paid", "order.shipped"] }));
    let (_, other) = tenant.server.organization("other", "0");
    let theirs = tenant.server.post("/api/endpoints", &other, &json!({ "url": receiver.url("/theirs") }).to_string());
    assert_eq!(theirs.status, 201);
    let user = tenant.post("user.login", "1");
    let order = tenant.post("order.paid", "2");
    let neither = tenant.post("order", "3");
    let seen = receiver.wait_for(5, PATIENCE);
    let mut got: Vec<(&str, &str)> =
        seen.iter().map(|seen| (seen.target.as_str(), seen.header("webhook-id").unwrap())).collect();
    got.sort_unstable();
    let mut wanted =
        vec![("/all", user.as_str()), ("/all", &order), ("/all", &neither), ("/orders", &order), ("/users", &user)];
    wanted.sort_unstable();
    assert_eq!(got, wanted);
    eventually("all is recorded", || tenant.count("delivered") == 5);
    assert_eq!(tenant.count("pending"), 0);
}

fn a_copy_of_an_event_brings_no_delivery(installation: &Installation) {
    let receiver = Receiver::start(|_| answer(200, ""));
    let tenant = Tenant::new(installation, &[]);
    tenant.endpoint(&receiver.url("/"), &json!({}));
    for _ in 0..5 {
        let id = tenant.server.post("/api/events", &tenant.key, &event("t", Some("once"), "1")).id();
        tenant.delivery(&id, has_status("delivered"));
    }
    let last = tenant.post("t", "2");
    tenant.delivery(&last, has_status("delivered"));
    assert_eq!(receiver.count(), 2);
}

fn what_is_sent_of_copies_is_what_is_stored(installation: &Installation) {
    const IDS: usize = 300;
    let receiver = Receiver::start(|_| answer(200, ""));
    let server = crate::webhooks::fixture::start(installation, &[]);
    let (org, key) = server.organization("test", "0");
    let tenant = Tenant { server, key };
    tenant.endpoint(&receiver.url("/"), &json!({ "event_types": ["wanted"] }));
    // Three copies of each, of which the types differ, and one batch holds all.
    let copies = (0..3).flat_map(|copy| (0..IDS).map(move |n| (copy, n)));
    let events: Vec<String> = copies
        .map(|(copy, n)| {
            let event_type = if (n + copy) % 2 == 0 { "wanted" } else { "other" };
            event(event_type, Some(&format!("d{n}")), &format!(r#"{{"n":{n},"copy":{copy}}}"#))
        })
        .collect();
    let batch = format!("[{}]", events.join(","));
    assert_eq!(tenant.server.post("/api/events/batch", &tenant.key, &batch).status, 202);
    tenant.server.drained();
    assert_eq!(tenant.server.count("store_events_deduplicated_total"), 2 * IDS as u64);
    let rows = installation.rows(&org);
    assert_eq!(rows.len(), IDS);
    let wanted: Vec<_> = rows.iter().filter(|row| row.event_type == "wanted").collect();
    let seen = receiver.wait_for(wanted.len(), PATIENCE);
    eventually("all is recorded", || tenant.count("delivered") == wanted.len());
    assert_eq!((receiver.count(), tenant.count("pending")), (wanted.len(), 0));
    for seen in seen {
        let row = wanted.iter().find(|row| Some(&*row.id) == seen.header("webhook-id")).expect("it is stored, as sent");
        let body = String::from_utf8(seen.body.clone()).unwrap();
        assert!(body.ends_with(&format!(r#","data":{}}}"#, row.payload)), "{body} is not {row:?}");
    }
}

fn both_secrets_sign_during_a_rotation(installation: &Installation) {
    let receiver = Receiver::start(|_| answer(200, ""));
    let tenant = Tenant::new(installation, &[]);
    let endpoint = tenant.endpoint(&receiver.url("/"), &json!({}));
    let rotate = |body: &str| {
        let path = format!("/api/endpoints/{}/rotate-secret", endpoint["id"].as_str().unwrap());
        let rotated = tenant.server.post(&path, &tenant.key, body);
        assert_eq!(rotated.status, 200, "{}", rotated.json());
        rotated.json()["secret"].as_str().unwrap().to_owned()
    };
    let first = endpoint["secret"].as_str().unwrap();
    let second = rotate(r#"{"overlap_seconds":3600}"#);
    tenant.post("t", "1");
    let seen = receiver.wait_for(1, PATIENCE).remove(0);
    assert_eq!((signatures_of(&seen, first), signatures_of(&seen, &second)), (1, 1));
    let third = rotate(r#"{"overlap_seconds":0}"#);
    tenant.post("t", "2");
    let seen = receiver.wait_for(2, PATIENCE).remove(1);
    let signed = [first, &second, &third].map(|secret| signatures_of(&seen, secret));
    assert_eq!(signed, [0, 0, 1]);
}

fn a_disabled_endpoint_gets_nothing_until_it_is_enabled(installation: &Installation) {
    let receiver = Receiver::start(|seen| answer(if seen.target == "/slow" { 500 } else { 200 }, ""));
    let tenant = Tenant::new(installation, &["--webhook-retry-schedule", "3s"]);
    let endpoint = tenant.endpoint(&receiver.url("/slow"), &json!({}));
    let path = format!("/api/endpoints/{}", endpoint["id"].as_str().unwrap());
    let change = |body: &str| {
        let changed = tenant.server.connect().request("PATCH", &path, Some(&tenant.key), Some(body.as_bytes()));
        assert_eq!(changed.status, 200, "{}", changed.json());
    };
    let failed_once = tenant.post("t", "1");
    tenant.delivery(&failed_once, |delivery| delivery["attempts"][0]["status_code"] == 500);
    change(r#"{"enabled":false}"#);
    let meanwhile = tenant.post("t", "2");
    tenant.server.drained();
    // Its retry comes due meanwhile, and waits.
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(receiver.count(), 1);
    change(&json!({ "url": receiver.url("/"), "enabled": true }).to_string());
    tenant.delivery(&failed_once, has_status("delivered"));
    let deliveries = tenant.get(&format!("/api/events/{meanwhile}/deliveries"));
    assert_eq!(deliveries["data"], json!([]), "nothing is planned for a disabled endpoint");
}

fn what_is_pending_for_a_deleted_endpoint_fails(installation: &Installation) {
    let receiver = Receiver::start(|_| answer(500, ""));
    let tenant = Tenant::new(installation, &[]);
    let endpoint = tenant.endpoint(&receiver.url("/"), &json!({}));
    let id = tenant.post("t", "1");
    tenant.delivery(&id, |delivery| delivery["attempts"][0]["status_code"] == 500);
    let path = format!("/api/endpoints/{}", endpoint["id"].as_str().unwrap());
    assert_eq!(tenant.server.connect().request("DELETE", &path, Some(&tenant.key), None).status, 204);
    let failed = tenant.delivery(&id, has_status("failed"));
    assert_eq!(failed["next_attempt_at"], json!(null));
}

fn a_test_goes_to_its_endpoint_alone(installation: &Installation) {
    let receiver = Receiver::start(|_| answer(200, ""));
    let tenant = Tenant::new(installation, &[]);
    let endpoint = tenant.endpoint(&receiver.url("/tested"), &json!({ "event_types": ["nothing.*"] }));
    tenant.endpoint(&receiver.url("/other"), &json!({}));
    let path = format!("/api/endpoints/{}/test", endpoint["id"].as_str().unwrap());
    let made = tenant.server.post(&path, &tenant.key, "");
    assert_eq!(made.status, 202, "{}", made.json());
    let delivered = tenant.delivery(made.json()["event_id"].as_str().unwrap(), has_status("delivered"));
    assert_eq!(delivered["id"], made.json()["delivery_id"]);
    let seen = receiver.requests();
    assert_eq!(seen.iter().map(|seen| seen.target.as_str()).collect::<Vec<_>>(), ["/tested"]);
    assert!(seen[0].body.starts_with(b"{\"type\":\"millrace.test\","));
}

/// An endpoint that was made while insecure ones were allowed is judged again when they are not.
fn without_insecure_webhooks_nothing_goes_to_private_addresses(installation: &Installation) {
    let receiver = Receiver::start(|_| answer(200, ""));
    let authority = Authority::new();
    let tls = Receiver::start_tls(authority.server(&["localhost"]), |_| answer(200, ""));
    let mut tenant = Tenant::new(installation, &[]);
    tenant.endpoint(&receiver.url("/"), &json!({}));
    tenant.endpoint(&tls.url_of("localhost", "/"), &json!({}));
    assert_eq!(tenant.server.stop(), 0);
    let server = installation.start(&["--webhook-secret-key", SECRET_KEY]);
    let tenant = Tenant { server, key: tenant.key };
    let id = tenant.post("t", "1");
    let mut deliveries = json!(null);
    eventually("both are blocked", || {
        deliveries = tenant.server.get(&format!("/api/events/{id}/deliveries"), Some(&tenant.key)).json();
        let data = deliveries["data"].as_array().cloned().unwrap_or_default();
        data.len() == 2 && data.iter().all(|delivery| delivery["status"] == "blocked")
    });
    for delivery in deliveries["data"].as_array().unwrap() {
        assert_eq!(delivery["attempts"][0]["error"], "address_not_allowed");
        assert_eq!(delivery["next_attempt_at"], json!(null));
    }
    for url in [receiver.url("/"), tls.url_of("localhost", "/"), "https://10.0.0.1/".to_owned()] {
        let refused = tenant.server.post("/api/endpoints", &tenant.key, &json!({ "url": url }).to_string());
        assert_eq!((refused.status, refused.code().as_str()), (422, "invalid_endpoint"), "{url}");
    }
    assert_eq!((receiver.connections(), tls.connections()), (0, 0));
    assert_eq!(tenant.server.count(r#"webhook_deliveries_total{status="blocked"}"#), 2);
}
