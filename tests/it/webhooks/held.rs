//! What cannot be sent now waits, alone: for a disabled organisation, and where an endpoint's row cannot be read. And what
//! begins anew, does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};

use serde_json::{Value, json};

use millrace_base::event::{EndpointId, OrgId};
use support::installation::Installation;
use support::on_both_stores;
use support::receiver::{Receiver, answer};
use support::server::{Server, eventually};

use crate::webhooks::fixture::{Tenant, has_status, post_many, start};

on_both_stores!(
    deliveries_of_a_disabled_organisation_wait,
    an_endpoint_whose_row_cannot_be_read_is_out_alone,
    no_event_that_follows_the_201_misses_the_endpoint,
    a_reenabled_endpoint_survives_its_first_failures,
    what_an_endpoint_was_moved_away_from_does_not_disable_it,
    circuits_are_forgotten_with_their_endpoints,
);

fn named(installation: &Installation, args: &[&str]) -> (Tenant, OrgId) {
    let server = start(installation, args);
    let (org, key) = server.organization("named", "0");
    (Tenant { server, key }, OrgId(org.parse().unwrap()))
}

fn change(tenant: &Tenant, path: &str, body: &Value) {
    let body = body.to_string();
    let changed = tenant.server.connect().request("PATCH", path, Some(&tenant.key), Some(body.as_bytes()));
    assert_eq!(changed.status, 200, "{}", changed.json());
}

fn path_of(endpoint: &Value) -> String {
    format!("/api/endpoints/{}", endpoint["id"].as_str().unwrap())
}

/// On all servers, wherever it was disabled.
fn deliveries_of_a_disabled_organisation_wait(installation: &Installation) {
    const COUNT: usize = 60;
    let receiver = Receiver::start(|seen| answer(if seen.target == "/fails" { 500 } else { 200 }, ""));
    let (tenant, org) = named(installation, &[]);
    let other = installation.is_postgres().then(|| start(installation, &[]));
    let servers: Vec<&Server> = std::iter::once(&tenant.server).chain(&other).collect();
    tenant.endpoint(&receiver.url("/paced"), &json!({ "rate_limit_per_second": 10, "event_types": ["t"] }));
    tenant.endpoint(&receiver.url("/fails"), &json!({ "event_types": ["none"] }));
    let another = tenant.server.organization("another", "0").1;
    let theirs = json!({ "url": receiver.url("/theirs") }).to_string();
    assert_eq!(tenant.server.post("/api/endpoints", &another, &theirs).status, 201);
    let failing = tenant.post("none", "1");
    tenant.delivery(&failing, |_| receiver.requests().iter().any(|seen| seen.target == "/fails"));
    if let Some(server) = &other {
        tenant.await_endpoint_on(server, "none");
    }
    for server in &servers {
        post_many(server, &tenant.key, COUNT / servers.len(), "t");
    }
    eventually("some have arrived", || receiver.count() > 5);

    tenant.server.cli(&["org", "disable", "named"]);
    for server in &servers {
        eventually("its keys are refused", || server.get("/api/keys", Some(&tenant.key)).status == 403);
    }
    let store = installation.store();
    let due = || store.due_endpoints(store.time().unwrap(), None, 10).unwrap();
    eventually("nothing is due for anybody", || due().is_empty());
    let deliveries = || {
        let query = millrace_store::webhooks::DeliveryQuery { limit: 1000, ..Default::default() };
        store.deliveries(org, &query).unwrap().0
    };
    let attempts = || deliveries().iter().map(|record| record.attempts.len()).sum::<usize>();
    // Each server hears of it in its own time, and may claim, send and record until then.
    let (mut before, mut attempts_before) = (receiver.count(), attempts());
    eventually("nothing of it is in memory or under way", || {
        let earlier = (before, attempts_before);
        std::thread::sleep(std::time::Duration::from_secs(1));
        (before, attempts_before) = (receiver.count(), attempts());
        (before, attempts_before) == earlier && servers.iter().all(|server| server.count("webhook_held") == 0)
    });
    assert!(deliveries().iter().any(|record| record.delivery.next_attempt_at.is_some()));
    // Others go on, on every server.
    for server in &servers {
        post_many(server, &another, 5, "t");
    }
    eventually("others' arrive", || {
        receiver.requests().iter().filter(|seen| seen.target == "/theirs").count() == 5 * servers.len()
    });
    assert_eq!((receiver.count(), attempts()), (before + 5 * servers.len(), attempts_before));

    tenant.server.cli(&["org", "update", "named", "--enable"]);
    eventually("all of it arrives, once", || {
        let paced = deliveries();
        let delivered = paced.iter().filter(|record| record.delivery.status.as_str() == "delivered");
        delivered.filter(|record| record.attempts.len() == 1).count() == COUNT
    });
    assert_eq!(receiver.requests().iter().filter(|seen| seen.target == "/paced").count(), COUNT);
}

fn an_endpoint_whose_row_cannot_be_read_is_out_alone(installation: &Installation) {
    let receiver = Receiver::start(|seen| answer(if seen.target == "/broken" { 500 } else { 200 }, ""));
    let mut tenant = Tenant::new(installation, &["--webhook-retry-schedule", "1s,1s,1s,1s,1s,1s,1s,1s,1s,1s,1s,1s"]);
    let good = tenant.endpoint(&receiver.url("/good"), &json!({}));
    let broken = tenant.endpoint(&receiver.url("/broken"), &json!({}));
    let id = broken["id"].as_str().unwrap();
    let first = tenant.post("t", "1");
    eventually("the one to be broken was tried", || receiver.requests().iter().any(|seen| seen.target == "/broken"));
    assert_eq!(tenant.server.stop(), 0);
    installation.sql(
        "UPDATE endpoints SET headers = '{\"a\": [1]}', event_types = '7' WHERE url LIKE '%/broken'",
        "UPDATE endpoints SET headers = '{\"a\": [1]}', event_types = '7' WHERE url LIKE '%/broken'",
    );

    tenant = Tenant { server: start(installation, &[]), key: tenant.key };
    let is_it = |line: &str| line.contains("ERROR") && line.contains(id) && line.contains("cannot be read");
    eventually("it is said", || tenant.server.log().lines().any(is_it));
    let tried = receiver.requests().iter().filter(|seen| seen.target == "/broken").count();
    for server_key in [tenant.key.clone(), tenant.server.organization("other", "0").1] {
        let stored = post_many(&tenant.server, &server_key, 3, "t");
        eventually("events are stored", || {
            stored.iter().all(|id| tenant.server.get(&format!("/api/events/{id}"), Some(&server_key)).status == 200)
        });
    }
    eventually("the others' deliveries arrive", || tenant.count("delivered") == 4);
    eventually("it is counted", || tenant.server.count("webhook_endpoints_unusable") == 1);
    let listed = tenant.get("/api/endpoints");
    assert_eq!(listed["data"].as_array().unwrap().len(), 1, "{listed}");
    assert_eq!(listed["data"][0]["id"], good["id"]);
    assert!(tenant.server.cli(&["endpoint", "list", "test"]).contains("unreadable"));
    let refused = tenant.server.cli_refused(&["endpoint", "show", id]);
    assert!(refused.contains("cannot be read") && refused.contains("endpoint delete"), "{refused}");
    // A change of another one has it read again.
    change(&tenant, &path_of(&good), &json!({ "description": "x" }));
    let event = tenant.post("t", "2");
    eventually("it arrives", || tenant.count("delivered") == 5);
    let deliveries = tenant.get(&format!("/api/events/{event}/deliveries"));
    assert_eq!(deliveries["data"].as_array().unwrap().len(), 1, "nothing is planned for it");
    let waits = tenant.get(&format!("/api/events/{first}/deliveries"));
    let waits =
        waits["data"].as_array().unwrap().iter().find(|delivery| delivery["endpoint_id"] == id).unwrap().clone();
    assert_eq!(
        (&waits["status"], receiver.requests().iter().filter(|seen| seen.target == "/broken").count()),
        (&json!("pending"), tried)
    );

    // Mended, it goes on; or it is deleted.
    installation.sql(
        "UPDATE endpoints SET headers = '[]', event_types = NULL WHERE url LIKE '%/broken'",
        "UPDATE endpoints SET headers = '[]', event_types = NULL WHERE url LIKE '%/broken'",
    );
    tenant.server.cli(&["endpoint", "update", id, "--url", &receiver.url("/mended"), "--allow-insecure-webhooks"]);
    eventually("what waited arrives", || receiver.requests().iter().any(|seen| seen.target == "/mended"));
    installation.sql(
        "UPDATE endpoints SET headers = '7' WHERE url LIKE '%/mended'",
        "UPDATE endpoints SET headers = '7' WHERE url LIKE '%/mended'",
    );
    tenant.server.cli(&["endpoint", "delete", id]);
    assert!(!tenant.server.cli(&["endpoint", "list", "test"]).contains("unreadable"));
}

fn no_event_that_follows_the_201_misses_the_endpoint(installation: &Installation) {
    const COUNT: usize = 50;
    let receiver = Receiver::start(|_| answer(200, ""));
    let tenant = Tenant::new(installation, &[]);
    let mut posting = tenant.server.connect();
    let events: Vec<String> = (0..COUNT)
        .map(|n| {
            let wants = format!("t{n}");
            tenant.endpoint(&receiver.url("/"), &json!({ "event_types": [wants] }));
            let body = support::server::event(&wants, None, "1");
            posting.request("POST", "/api/events", Some(&tenant.key), Some(body.as_bytes())).id()
        })
        .collect();
    for event in &events {
        tenant.delivery(event, has_status("delivered"));
    }
    assert_eq!((receiver.count(), tenant.count("delivered")), (COUNT, COUNT));
}

fn a_reenabled_endpoint_survives_its_first_failures(installation: &Installation) {
    let receiver = Receiver::start(|_| answer(503, ""));
    let (tenant, org) = named(installation, &["--webhook-concurrency", "8"]);
    let endpoint = tenant.endpoint(&receiver.url("/"), &json!({}));
    let (path, id) = (path_of(&endpoint), EndpointId(endpoint["id"].as_str().unwrap().parse().unwrap()));
    let store = installation.store();
    let is_failing = || store.endpoint(org, id).unwrap().unwrap().failing_since.is_some();
    tenant.post_many(20, "t");
    eventually("it is known to fail", is_failing);
    // Five days of it.
    let days = "UPDATE endpoints SET failing_ms = 432000000";
    installation.sql(days, days);
    eventually("it is disabled", || tenant.get(&path)["enabled"] == false);
    assert_eq!(tenant.get(&path)["disabled_reason"], "nothing but failures for five days");
    let asked = receiver.count();
    change(&tenant, &path, &json!({ "enabled": true }));
    eventually("its circuit opens anew", || receiver.count() >= asked + 8 && is_failing());
    let asked = receiver.count();
    // What follows from a probe is recorded before the next one is made.
    eventually("two probes have failed", || receiver.count() >= asked + 2);
    assert_eq!(tenant.get(&path)["enabled"], true);
}

fn what_an_endpoint_was_moved_away_from_does_not_disable_it(installation: &Installation) {
    let (is_asked, may_answer) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let receiver = Receiver::start({
        let (is_asked, may_answer) = (Arc::clone(&is_asked), Arc::clone(&may_answer));
        move |seen| {
            if seen.target == "/new" {
                return answer(200, "");
            }
            is_asked.store(true, Ordering::SeqCst);
            eventually("it may answer", || may_answer.load(Ordering::SeqCst));
            answer(410, "")
        }
    });
    let tenant = Tenant::new(installation, &["--webhook-timeout", "60"]);
    let endpoint = tenant.endpoint(&receiver.url("/old"), &json!({}));
    let first = tenant.post("t", "1");
    eventually("the old one is asked", || is_asked.load(Ordering::SeqCst));
    change(&tenant, &path_of(&endpoint), &json!({ "url": receiver.url("/new") }));
    may_answer.store(true, Ordering::SeqCst);
    tenant.delivery(&first, has_status("failed"));
    for n in 0..3 {
        let event = tenant.post("t", &n.to_string());
        tenant.delivery(&event, has_status("delivered"));
    }
    assert_eq!(tenant.get(&path_of(&endpoint))["enabled"], true);
}

/// However many fail and are deleted, what is remembered is of those that are there.
fn circuits_are_forgotten_with_their_endpoints(installation: &Installation) {
    let receiver = Receiver::start(|_| answer(503, ""));
    let tenant = Tenant::new(installation, &["--webhook-concurrency", "8"]);
    let open = || tenant.server.count("webhook_open_circuits");
    for round in 0..3 {
        let endpoints: Vec<Value> =
            (0..5).map(|n| tenant.endpoint(&receiver.url(&format!("/{round}/{n}")), &json!({}))).collect();
        tenant.post_many(10, "t");
        eventually("all circuits are open", || open() == 5);
        for endpoint in &endpoints {
            let deleted = tenant.server.connect().request("DELETE", &path_of(endpoint), Some(&tenant.key), None);
            assert_eq!(deleted.status, 204);
        }
        eventually("none is counted", || open() == 0);
    }
}

/// Whichever server it was that failed, and whichever delivers.
#[test]
fn a_success_on_any_server_ends_the_failing_period() {
    let status = Arc::new(AtomicU16::new(503));
    let receiver = Receiver::start({
        let status = Arc::clone(&status);
        move |_| answer(status.load(Ordering::SeqCst), "")
    });
    let installation = Installation::postgres();
    let (mut tenant, org) = named(&installation, &["--webhook-concurrency", "8"]);
    let endpoint = tenant.endpoint(&receiver.url("/"), &json!({}));
    let id = EndpointId(endpoint["id"].as_str().unwrap().parse().unwrap());
    let store = installation.store();
    let failing_since = || store.endpoint(org, id).unwrap().unwrap().failing_since;
    tenant.post_many(20, "t");
    eventually("it is known to fail", || failing_since().is_some());
    assert_eq!(tenant.server.stop(), 0);
    status.store(200, Ordering::SeqCst);
    let other = start(&installation, &["--webhook-concurrency", "8"]);
    post_many(&other, &tenant.key, 1, "t");
    eventually("it fails no longer", || failing_since().is_none());
    drop(other);
}
