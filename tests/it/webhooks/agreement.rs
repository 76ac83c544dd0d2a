//! What servers on one database must have in common: the key that seals secrets, and the schedule of retries. One that
//! differs does no harm, and is not silent about it.

use serde_json::json;

use support::installation::Installation;
use support::on_both_stores;
use support::receiver::{Receiver, answer};
use support::server::{Server, eventually};

use crate::webhooks::fixture::{SECRET_KEY, Tenant, arguments, has_status, signatures_of, start};

on_both_stores!(
    after_losing_the_key_a_rotated_endpoint_is_signed_at_once,
    a_new_key_takes_over_with_the_old_one_behind_it,
);

const OTHER_KEY: &str = "ISIjJCUmJygpKissLS4vMDEyMzQ1Njc4OTo7PD0+P0A=";

/// A server with another key than the one secrets are sealed with: it takes events and says that it is not ready.
fn start_foreign(installation: &Installation) -> Server {
    let server = installation.start_unready(&arguments(&["--webhook-secret-key", OTHER_KEY]));
    eventually("it says that its key is another", || {
        let ready = server.get("/ready", None);
        ready.status == 503 && String::from_utf8_lossy(&ready.body).contains("webhook_secret_key")
    });
    let log = server.log();
    for word in ["ERROR", "MILLRACE_WEBHOOK_SECRET_KEY", "millrace endpoint accept-key"] {
        assert!(log.contains(word), "{word}: {log}");
    }
    server
}

/// A command, with the other key.
fn with_key<'a>(command: &[&'a str]) -> Vec<&'a str> {
    [command, &["--webhook-secret-key", OTHER_KEY]].concat()
}

fn after_losing_the_key_a_rotated_endpoint_is_signed_at_once(installation: &Installation) {
    let receiver = Receiver::start(|_| answer(200, ""));
    let mut tenant = Tenant::new(installation, &[]);
    let endpoint = tenant.endpoint(&receiver.url("/"), &json!({}));
    let id = endpoint["id"].as_str().unwrap();
    assert_eq!(tenant.server.stop(), 0);
    let tenant = Tenant { server: start_foreign(installation), key: tenant.key };
    let server = &tenant.server;

    // It takes events, and what it cannot sign waits; it seals nothing that others could not open.
    let event = tenant.post("t", "1");
    server.drained();
    eventually("it says how many wait", || server.count("webhook_endpoints_unusable") == 1);
    let waiting = tenant.delivery(&event, has_status("pending"));
    assert_eq!((&waiting["attempts"], receiver.count()), (&json!([]), 0));
    let rotate = format!("/api/endpoints/{id}/rotate-secret");
    let new = json!({ "url": receiver.url("/") }).to_string();
    for (path, body) in [(&rotate, "{}"), (&"/api/endpoints".to_owned(), &new)] {
        let refused = server.post(path, &tenant.key, body);
        assert_eq!((refused.status, &*refused.code()), (503, "secret_unavailable"), "{path}");
    }
    for command in [&["endpoint", "rotate-secret", id][..], &["endpoint", "create", "test", "https://example.com"]] {
        let refused = server.cli_refused(&with_key(command));
        assert!(refused.contains("could not sign") && refused.contains("accept-key"), "{refused}");
    }

    // The operator says that the key is lost.
    let accepted = server.cli(&with_key(&["endpoint", "accept-key", "--json"]));
    assert_eq!(accepted.trim(), json!({ "to_rotate": [id] }).to_string());
    // The command works on the database; the server hears of it soon, and refuses until then.
    let mut rotated = server.post(&rotate, &tenant.key, "{}");
    eventually("it is heard of, without a restart", || {
        if rotated.status == 503 {
            rotated = server.post(&rotate, &tenant.key, "{}");
        }
        rotated.status != 503
    });
    assert_eq!(rotated.status, 200, "{}", rotated.json());
    let delivered = tenant.delivery(&event, has_status("delivered"));
    assert_eq!(delivered["attempts"].as_array().unwrap().len(), 1);
    let seen = receiver.requests().remove(0);
    assert_eq!(signatures_of(&seen, rotated.json()["secret"].as_str().unwrap()), 1);
    assert!(!seen.header("webhook-signature").unwrap().contains(' '), "the lost one does not sign");
    eventually("nothing waits", || server.count("webhook_endpoints_unusable") == 0);
    // From here on both sign during a rotation.
    assert_eq!(server.post(&rotate, &tenant.key, "{}").status, 200);
    let event = tenant.post("t", "2");
    tenant.delivery(&event, has_status("delivered"));
    assert!(receiver.requests().remove(1).header("webhook-signature").unwrap().contains(' '));
}

fn a_new_key_takes_over_with_the_old_one_behind_it(installation: &Installation) {
    let receiver = Receiver::start(|_| answer(200, ""));
    let mut tenant = Tenant::new(installation, &[]);
    let endpoint = tenant.endpoint(&receiver.url("/"), &json!({}));
    let both = format!("{OTHER_KEY},{SECRET_KEY}");
    for (keys, rotates) in [(both.as_str(), true), (OTHER_KEY, false)] {
        assert_eq!(tenant.server.stop(), 0);
        tenant = Tenant { server: start(installation, &["--webhook-secret-key", keys]), key: tenant.key };
        let event = tenant.post("t", "1");
        let delivered = tenant.delivery(&event, has_status("delivered"));
        assert_eq!(delivered["attempts"].as_array().unwrap().len(), 1);
        if rotates {
            let path = format!("/api/endpoints/{}/rotate-secret", endpoint["id"].as_str().unwrap());
            assert_eq!(tenant.server.post(&path, &tenant.key, "{}").status, 200);
        }
    }
    // One secret of before could not be opened any more, and the present one signs.
    let signed = receiver.requests().remove(1).header("webhook-signature").unwrap().to_owned();
    assert!(!signed.contains(' '), "{signed}");
}

/// Forty events by way of a server that cannot sign: the other sends them, and none has an attempt that failed.
#[test]
fn a_server_with_another_key_fails_nothing_and_another_sends_it() {
    const COUNT: usize = 40;
    let receiver = Receiver::start(|_| answer(200, ""));
    let installation = Installation::postgres();
    let mut tenant = Tenant::new(&installation, &[]);
    let endpoint = tenant.endpoint(&receiver.url("/"), &json!({}));
    let foreign = start_foreign(&installation);
    let delivered = |server: &Server| {
        let answer = server.get("/api/deliveries?limit=1000&status=delivered", Some(&tenant.key)).json();
        let delivered = answer["data"].as_array().unwrap().clone();
        assert!(delivered.iter().all(|delivery| delivery["attempts"].as_array().unwrap().len() == 1), "{answer}");
        delivered.len()
    };
    crate::webhooks::fixture::post_many(&foreign, &tenant.key, COUNT, "t");
    eventually("all are delivered", || delivered(&foreign) == COUNT);
    let secret = endpoint["secret"].as_str().unwrap();
    assert!(receiver.requests().iter().all(|seen| signatures_of(seen, secret) == 1));
    assert_eq!(receiver.count(), COUNT);
    // With nobody there who can sign they wait, whatever the schedule.
    assert_eq!(tenant.server.stop(), 0);
    crate::webhooks::fixture::post_many(&foreign, &tenant.key, COUNT, "t");
    foreign.drained();
    let pending = foreign.get("/api/deliveries?limit=1000&status=pending", Some(&tenant.key)).json();
    let pending = pending["data"].as_array().unwrap();
    assert_eq!(pending.len(), COUNT);
    assert!(pending.iter().all(|delivery| delivery["attempts"] == json!([])));
    tenant.server = start(&installation, &[]);
    eventually("all are delivered", || delivered(&foreign) == 2 * COUNT);
    assert_eq!(receiver.count(), 2 * COUNT);
    let outcomes = ["delivered", "retried", "failed", "blocked"];
    let made = outcomes.map(|status| foreign.count(&format!("webhook_deliveries_total{{status=\"{status}\"}}")));
    assert_eq!(made, [0; 4], "the other made no attempt");
}

/// A key that becomes another one's while a server runs does not take the server away: tenants make endpoints.
#[test]
fn an_endpoint_is_served_by_the_server_that_has_its_key() {
    let receiver = Receiver::start(|_| answer(200, ""));
    let installation = Installation::postgres();
    let tenant = Tenant::new(&installation, &[]);
    let other = start(&installation, &["--webhook-secret-key", OTHER_KEY]);
    tenant.endpoint(&receiver.url("/"), &json!({}));
    eventually("the other says so", || other.log().contains("sealed with another key"));
    assert_eq!(other.get("/ready", None).status, 200);
    crate::webhooks::fixture::post_many(&other, &tenant.key, 40, "t");
    eventually("all are delivered", || tenant.count("delivered") == 40);
    let refused = other.post("/api/endpoints", &tenant.key, &json!({ "url": receiver.url("/") }).to_string());
    assert_eq!((refused.status, &*refused.code()), (503, "secret_unavailable"));
}

/// A server without retries beside one with some: nothing fails for good that the other would have sent again.
#[test]
fn of_different_schedules_the_longest_holds_on_all_servers() {
    const COUNT: usize = 5;
    let receiver = Receiver::start(|seen| answer(if seen.target == "/" { 500 } else { 200 }, ""));
    let installation = Installation::postgres();
    let tenant = Tenant::new(&installation, &["--webhook-retry-schedule", "2s,2s,2s,2s,2s,2s,2s,2s"]);
    let other = start(&installation, &["--webhook-retry-schedule", ""]);
    for server in [&tenant.server, &other] {
        eventually("it says so", || {
            let log = server.log();
            log.contains("ERROR") && log.contains("MILLRACE_WEBHOOK_RETRY_SCHEDULE")
        });
    }
    let endpoint = tenant.endpoint(&receiver.url("/"), &json!({}));
    tenant.await_endpoint_on(&other, "t");
    crate::webhooks::fixture::post_many(&other, &tenant.key, COUNT, "t");
    eventually("all were tried", || {
        let pending = tenant.get("/api/deliveries?limit=1000&status=pending");
        let tried = |delivery: &&serde_json::Value| delivery["attempts"] != json!([]);
        pending["data"].as_array().unwrap().iter().filter(tried).count() >= COUNT
    });
    assert_eq!(tenant.count("failed"), 0);
    let path = format!("/api/endpoints/{}", endpoint["id"].as_str().unwrap());
    let moved = json!({ "url": receiver.url("/well") }).to_string();
    let changed = other.connect().request("PATCH", &path, Some(&tenant.key), Some(moved.as_bytes()));
    assert_eq!(changed.status, 200, "{}", changed.json());
    eventually("all are delivered", || tenant.count("pending") == 0);
    assert_eq!(tenant.count("failed"), 0);
    drop(other);
    eventually("a schedule without a server is none", || {
        tenant.server.log().contains("the same webhook_retry_schedule")
    });
}
