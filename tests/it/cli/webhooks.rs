//! `millrace endpoint` and `millrace delivery`, from the outside, on both stores.

use std::sync::Arc;

use serde_json::{Value, json};

use millrace_base::clock::Timestamp;
use millrace_base::event::{DeliveryId, EndpointId, OrgId};
use millrace_store::Store;
use millrace_store::open::{StoreConfig, open};
use millrace_store::webhooks::{Attempt, AttemptResult, DeliveryQuery, Next, Wanted};
use support::postgres::Cluster;
use support::shell::{Shell, assert_has, keys_of};

const KEY: &str = "AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA=";
const OTHER_KEY: &str = "ISIjJCUmJygpKissLS4vMDEyMzQ1Njc4OTo7PD0+P0A=";
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const CANARY: &str = "hunter2-canary";

/// A shell on each kind of store, with an organisation `acme`, and the store itself.
fn on_both_stores(test: impl Fn(&Shell, &dyn Store)) {
    let url = Cluster::shared().create_database();
    let on_postgres = Shell::new().with("DATABASE_URL", url.clone()).with("MILLRACE_WEBHOOK_SECRET_KEY", KEY);
    for (shell, database_url) in [(Shell::with_store(), None), (on_postgres, Some(url))] {
        shell.json(&["org", "create", "acme"]);
        let data_dir = shell.dir.path().join("millrace-data");
        let store: Arc<dyn Store> = open(&StoreConfig { database_url, data_dir, connections_max: 2 }).unwrap();
        test(&shell, &*store);
    }
}

fn id_of(value: &Value) -> &str {
    value["id"].as_str().unwrap()
}

fn org_of(shell: &Shell) -> OrgId {
    OrgId(shell.json(&["org", "list"])[0]["org_id"].as_str().unwrap().parse().unwrap())
}

#[test]
fn an_endpoint_is_made_shown_changed_and_deleted() {
    on_both_stores(|shell, _| {
        let made = shell.json(&[
            "endpoint",
            "create",
            "acme",
            "https://EXAMPLE.com/h",
            "--description",
            "Ünï",
            "--event-type",
            "a.*",
            "--event-type",
            "b",
            "--header",
            "X-A: 1:2",
            "--header",
            "X-B:2",
            "--rate-limit",
            "20",
        ]);
        let id = id_of(&made);
        let expected = json!({
            "id": id, "url": "https://example.com/h", "description": "Ünï", "event_types": ["a.*", "b"],
            "headers": {"X-A": "1:2", "X-B": "2"}, "enabled": true, "disabled_reason": null,
            "rate_limit_per_second": 20, "created_at": made["created_at"], "secret": made["secret"],
        });
        assert_eq!(made, expected);
        assert!(made["secret"].as_str().unwrap().starts_with("whsec_"));

        let shown = shell.json(&["endpoint", "show", id]);
        assert_eq!(keys_of(&shown).len(), 9);
        assert_eq!(shell.json(&["endpoint", "list", "acme"]), json!([shown]));
        let text = shell.ok(&["endpoint", "show", id]);
        assert_has(&text, &[id, "https://example.com/h", "Ünï", "a.*, b", "X-A, X-B", "20 per second", "enabled"]);
        assert!(!text.contains("1:2") && !text.contains("whsec_"), "{text}");
        assert_has(&shell.ok(&["endpoint", "list", "acme"]), &["ID", "STATE", id, "enabled", "a.*, b"]);

        let changed = shell.json(&["endpoint", "update", id, "--url", "https://example.org/", "--header", "X-C: 3"]);
        assert_eq!((&changed["url"], &changed["headers"]), (&json!("https://example.org/"), &json!({"X-C": "3"})));
        assert_eq!(changed["event_types"], json!(["a.*", "b"]), "what is not named stays");
        let clear = ["--all-events", "--no-headers", "--no-rate-limit", "--description", ""];
        let cleared = shell.json(&[&["endpoint", "update", id][..], &clear].concat());
        assert_eq!((&cleared["event_types"], &cleared["headers"]), (&Value::Null, &json!({})));
        assert_eq!((&cleared["rate_limit_per_second"], &cleared["description"]), (&Value::Null, &json!("")));
        assert_eq!(shell.json(&["endpoint", "disable", id])["enabled"], json!(false));
        assert_has(&shell.ok(&["endpoint", "list", "acme"]), &["disabled", "all"]);
        assert_has(&shell.refused(1, &["endpoint", "test", id]), &["disabled", "millrace endpoint enable"]);
        assert_eq!(shell.json(&["endpoint", "enable", id])["enabled"], json!(true));

        assert_eq!(shell.json(&["endpoint", "delete", id]), json!({"id": id, "deleted": true}));
        for command in [&["delete", id][..], &["show", id], &["enable", id], &["test", id], &["rotate-secret", id]] {
            assert_has(&shell.refused(1, &[&["endpoint"], command].concat()), &[id, "millrace endpoint list"]);
        }
        assert_eq!(shell.json(&["endpoint", "list", "acme"]), json!([]));
        assert_has(&shell.ok(&["endpoint", "list", "acme"]), &["millrace endpoint create"]);
        shell.refused(1, &["endpoint", "list", "nobody"]);
        shell.refused(1, &["endpoint", "create", "nobody", "https://example.com"]);
    });
}

#[test]
fn a_secret_is_read_from_a_file_rotated_and_shown_once() {
    on_both_stores(|shell, _| {
        shell.file("secret", &format!("{SECRET}\n"));
        let url = "https://example.com";
        let made = shell.json(&["endpoint", "create", "acme", url, "--disabled", "--secret-file", "secret"]);
        assert_eq!((&made["secret"], &made["enabled"]), (&json!(SECRET), &json!(false)));
        let id = id_of(&made);
        let rotated = shell.json(&["endpoint", "rotate-secret", id, "--overlap", "1m"]);
        assert_eq!(rotated["id"], id);
        assert_ne!(rotated["secret"], made["secret"]);
        let said = shell.ok(&["endpoint", "rotate-secret", id, "--secret-file", "secret"]);
        assert_has(&said, &[SECRET, "signs too until 20", "only this once"]);
        assert_has(
            &shell.ok(&["endpoint", "create", "acme", url]),
            &["Made an endpoint of acme", "whsec_", "only this once"],
        );
        for command in [&["endpoint", "show", id, "--json"][..], &["endpoint", "list", "acme", "--json"]] {
            assert!(!shell.ok(command).contains("whsec_"), "{command:?}");
        }
        shell.file("wrong", CANARY);
        for file in ["wrong", "absent"] {
            let message = shell.refused(64, &["endpoint", "rotate-secret", id, "--secret-file", file]);
            assert_has(&message, &["--secret-file"]);
            assert!(!message.contains(CANARY), "{message}");
        }
        // Standard input holds nothing here.
        assert_has(&shell.refused(64, &["endpoint", "rotate-secret", id, "--secret-file", "-"]), &["must be `whsec_`"]);
    });
}

#[test]
fn what_is_wrong_is_named_and_not_repeated() {
    let shell = Shell::new();
    for (args, words) in [
        (&["create", "acme", "http://example.com/?hunter2-canary"][..], &["the URL", "https://"][..]),
        (&["create", "acme", "https://u:hunter2-canary@example.com"], &["the URL", "credentials"]),
        (&["create", "acme", "https://10.0.0.1/hunter2-canary"], &["the URL", "10.0.0.1"]),
        (&["create", "acme", "https://example.com", "--header", "hunter2-canary"], &["--header", "'Name: value'"]),
        (&["create", "acme", "https://example.com", "--header", "Host: hunter2-canary"], &["--header", "host"]),
        (&["create", "acme", "https://example.com", "--event-type", "hunter2-canary*"], &["--event-type", "entry 1"]),
        (&["create", "acme", "https://example.com", "--description", "hunter2-canary\n"], &["--description"]),
        (&["show", "hunter2-canary"], &["no endpoint id"]),
    ] {
        let message = shell.refused(64, &[&["endpoint"], args].concat());
        assert_has(&message, words);
        assert!(!message.contains(CANARY), "{message}");
    }
    let id = "0197e1c2-8d2e-7a10-8c3b-5b1f0e9d4a21";
    for args in [
        &["endpoint", "create", "acme"][..],
        &["endpoint", "create", "acme", "https://example.com", "--rate-limit", "0"],
        &["endpoint", "update", id],
        &["endpoint", "update", id, "--all-events", "--event-type", "a"],
        &["endpoint", "rotate-secret", id, "--overlap", "31d"],
        &["endpoint", "recover", id],
        &["endpoint", "recover", id, "--since", "yesterday"],
        &["delivery", "list", "acme", "--status", "lost"],
        &["delivery", "list", "acme", "--limit", "1001"],
        &["delivery", "retry", "acme", "x"],
    ] {
        shell.refused(64, args);
    }
    assert_eq!(std::fs::read_dir(shell.dir.path()).unwrap().count(), 0, "a refused command leaves nothing behind");
}

#[test]
fn server_settings_allow_insecure_and_private_targets() {
    let shell = Shell::with_store();
    shell.json(&["org", "create", "acme"]);
    let create = |more: &[&str]| {
        let args = [&["endpoint", "create", "acme", "http://127.0.0.1:1/"], more].concat();
        shell.run(&args).code
    };
    assert_eq!((create(&[]), create(&["--allow-insecure-webhooks"])), (Some(64), Some(0)));
    let private = ["endpoint", "create", "acme", "https://10.1.2.3/", "--webhook-allowed-networks", "10.1.0.0/16"];
    shell.ok(&private);
}

#[test]
fn beside_postgres_the_servers_key_is_needed_and_must_fit() {
    let url = Cluster::shared().create_database();
    let with_key = |key: &str| Shell::new().with("DATABASE_URL", url.clone()).with("MILLRACE_WEBHOOK_SECRET_KEY", key);
    let without = Shell::new().with("DATABASE_URL", url.clone());
    without.json(&["org", "create", "acme"]);
    let create = ["endpoint", "create", "acme", "https://example.com"];
    let message = without.refused(1, &create);
    assert_has(&message, &["neither configured nor in ./millrace-data", "MILLRACE_WEBHOOK_SECRET_KEY", "--data-dir"]);
    assert!(!without.dir.path().join("millrace-data").exists(), "no key of its own is made");
    let made = with_key(KEY).json(&create);
    let rotate = ["endpoint", "rotate-secret", id_of(&made)];
    for command in [&create[..], &rotate] {
        let message = with_key(OTHER_KEY).refused(1, command);
        assert_has(&message, &["could not sign", "another key", "MILLRACE_WEBHOOK_SECRET_KEY", "accept-key"]);
    }
    // Where the key is lost for good.
    let accepted = with_key(OTHER_KEY).json(&["endpoint", "accept-key"]);
    assert_eq!(accepted, json!({ "to_rotate": [id_of(&made)] }));
    assert_has(&with_key(OTHER_KEY).ok(&rotate), &["the one before cannot be opened and signs no more"]);
    assert_has(&with_key(OTHER_KEY).ok(&["endpoint", "accept-key"]), &["opens the secrets of all endpoints"]);
    assert_has(&with_key(OTHER_KEY).ok(&rotate), &["the one before signs too until 20"]);
    with_key(OTHER_KEY).json(&create);
    with_key(KEY).refused(1, &create);
}

#[test]
fn the_embedded_store_s_key_is_made_for_its_owner_alone() {
    use std::os::unix::fs::MetadataExt as _;
    let shell = Shell::with_store();
    shell.json(&["org", "create", "acme"]);
    let file = shell.dir.path().join("millrace-data/webhook-secret.key");
    assert!(!file.exists(), "not before it is needed");
    shell.json(&["endpoint", "create", "acme", "https://example.com"]);
    assert_eq!(file.metadata().unwrap().mode() & 0o777, 0o600);
    shell.json(&["endpoint", "create", "acme", "https://example.com"]);
}

#[test]
fn deliveries_are_listed_and_made_again() {
    on_both_stores(|shell, store| {
        let made = shell.json(&["endpoint", "create", "acme", "https://example.com"]);
        let (id, org) = (id_of(&made), org_of(shell));
        assert_eq!(shell.ok(&["delivery", "list", "acme"]), "There is no such delivery.\n");
        let sent: Vec<Value> = (0..3).map(|_| shell.json(&["endpoint", "test", id])).collect();
        assert_eq!(keys_of(&sent[0]).len(), 2);
        assert_has(&shell.ok(&["endpoint", "test", id]), &["Stored the test event", "millrace delivery list"]);

        let listed = shell.json(&["delivery", "list", "acme", "--endpoint", id]);
        assert_eq!(listed.as_array().unwrap().len(), 4);
        for (sent, listed) in sent.iter().zip(listed.as_array().unwrap().iter().rev()) {
            assert_eq!((&sent["delivery_id"], &sent["event_id"]), (&listed["id"], &listed["event_id"]));
            assert_eq!((&listed["status"], &listed["attempts"]), (&json!("pending"), &json!([])));
            assert_eq!(keys_of(listed).len(), 6);
        }
        let newest = shell.json(&["delivery", "list", "acme", "--limit", "2"]);
        assert_eq!(newest.as_array().unwrap()[..], listed.as_array().unwrap()[..2]);

        fail_all(store, org, EndpointId(id.parse().unwrap()));
        assert_eq!(shell.json(&["delivery", "list", "acme", "--status", "pending"]), json!([]));
        let failed = shell.json(&["delivery", "list", "acme", "--status", "failed"]);
        assert_eq!(failed.as_array().unwrap().len(), 4);
        assert_eq!(failed[0]["attempts"][0]["response_body"], json!("\u{1b}[2J"));
        let text = shell.ok(&["delivery", "list", "acme"]);
        assert_has(&text, &["STATUS", "failed", "500"]);
        assert!(!text.contains('\u{1b}'), "a stranger's answer does not reach the terminal");

        let again = id_of(&failed[0]);
        let retried = shell.json(&["delivery", "retry", "acme", again]);
        assert_eq!((&retried["id"], &retried["status"]), (&failed[0]["id"], &json!("pending")));
        assert_eq!(retried["attempts"], failed[0]["attempts"]);
        assert_has(&shell.ok(&["delivery", "retry", "acme", again]), &[again, "is due"]);
        let recover = ["endpoint", "recover", id, "--since", "2020-01-01T00:00:00Z"];
        let past = [&recover[..], &["--until", "2020-01-02T00:00:00Z"]].concat();
        assert_eq!(shell.json(&past), json!({"recovered": 0}));
        assert_eq!(shell.json(&recover), json!({"recovered": 3}));
        assert_eq!(shell.ok(&recover), "0 deliveries are due again.\n");

        shell.json(&["org", "create", "other"]);
        assert_has(&shell.refused(1, &["delivery", "retry", "other", again]), &[again, "millrace delivery list"]);
        assert_eq!(shell.json(&["delivery", "list", "other"]), json!([]));
    });
}

/// Claims what is due to the endpoint and records that it failed for good.
fn fail_all(store: &dyn Store, org: OrgId, endpoint: EndpointId) {
    let now = Timestamp::now();
    let lease = now.plus(std::time::Duration::from_secs(60));
    let claims = store.claim(now, lease, &[Wanted::all(endpoint, 100)]).unwrap();
    let failed = |delivery: DeliveryId| AttemptResult {
        attempt: Attempt {
            delivery,
            number: 1,
            at: now,
            status_code: Some(500),
            error: None,
            latency: std::time::Duration::from_millis(7),
            response_body: Some("\u{1b}[2J".to_owned()),
        },
        lease,
        next: Next::Failed,
    };
    let results: Vec<AttemptResult> = claims.ready.iter().map(|claimed| failed(claimed.delivery)).collect();
    assert_eq!(store.record(&results).unwrap().changed, results.len() as u64);
    let all = DeliveryQuery { limit: 100, ..DeliveryQuery::default() };
    assert_eq!(store.deliveries(org, &all).unwrap().0.len(), results.len());
}
