//! `millrace quarantine`, from the outside, on both stores: what the database refused, brought back or dropped.

use serde_json::Value;

use support::installation::Installation;
use support::on_both_stores;
use support::server::{Server, event, eventually};

on_both_stores!(
    what_was_refused_is_stored_when_the_cause_is_gone,
    two_refused_events_of_one_dedup_id_are_both_kept,
    a_retry_says_that_the_id_is_taken,
    what_is_dropped_is_gone,
);

/// Has the database refuse every event of type `bad`.
fn refuse_bad(installation: &Installation) {
    installation.sql(
        "ALTER TABLE events ADD CONSTRAINT no_bad CHECK (type <> 'bad')",
        "CREATE TRIGGER no_bad BEFORE INSERT ON events WHEN NEW.type = 'bad'
            BEGIN SELECT RAISE(ABORT, 'CHECK constraint failed: no_bad'); END",
    );
}

fn allow_bad(installation: &Installation) {
    installation.sql("ALTER TABLE events DROP CONSTRAINT no_bad", "DROP TRIGGER no_bad");
}

fn json(server: &Server, args: &[&str]) -> Vec<Value> {
    let text = server.cli(&[args, &["--json"]].concat());
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn list(server: &Server) -> Vec<Value> {
    json(server, &["quarantine", "list"]).remove(0).as_array().unwrap().clone()
}

fn quarantined(server: &Server, count: usize) -> Vec<Value> {
    eventually("it is in quarantine", || list(server).len() == count);
    list(server)
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap()
}

fn what_was_refused_is_stored_when_the_cause_is_gone(installation: &Installation) {
    let server = installation.start(&["--allow-insecure-webhooks"]);
    let (org, key) = server.organization("test", "0");
    refuse_bad(installation);
    let id = server.post("/api/events", &key, &event("bad", Some("d"), "{\"a\" : 1}")).id();
    let row = quarantined(&server, 1).remove(0);
    assert_eq!((text(&row, "id"), text(&row, "event_id"), text(&row, "org_id")), (&*id, &*id, &*org));
    assert_eq!((text(&row, "type"), text(&row, "dedup_id"), &row["payload_bytes"]), ("bad", "d", &9.into()));
    assert!(text(&row, "reason").contains("no_bad"), "{row}");
    assert_eq!(json(&server, &["quarantine", "show", &id])[0]["payload"], serde_json::json!({"a": 1}));
    assert!(server.cli(&["quarantine", "show", &id]).ends_with("{\"a\" : 1}\n"));
    assert_eq!(json(&server, &["quarantine", "list", "test"])[0][0]["id"], *id);

    let refused = server.try_cli(&["quarantine", "retry", &id]);
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8(refused.stdout).unwrap();
    assert!(said.contains("refused again, it stays: ") && said.contains("no_bad"), "{said}");
    assert_eq!(list(&server).len(), 1);

    // Made since; nobody listens there, so what is seen is that the running server makes an attempt.
    let endpoint = r#"{"url":"http://127.0.0.1:1/","event_types":["bad"]}"#;
    assert_eq!(server.post("/api/endpoints", &key, endpoint).status, 201);
    allow_bad(installation);
    let retried = json(&server, &["quarantine", "retry", &id]);
    assert_eq!((text(&retried[0], "outcome"), &retried[0]["deliveries"]), ("stored", &1.into()));
    eventually("an attempt is made", || {
        let deliveries = server.get(&format!("/api/events/{id}/deliveries"), Some(&key)).json();
        deliveries["data"][0]["attempts"].as_array().is_some_and(|attempts| !attempts.is_empty())
    });
    assert_eq!(list(&server), [] as [Value; 0]);
    let stored = server.get(&format!("/api/events/{id}"), Some(&key));
    assert_eq!((stored.status, text(&stored.json(), "dedup_id")), (200, "d"));
    assert_eq!(installation.rows(&org)[0].payload, "{\"a\" : 1}");
    assert_eq!(server.post("/api/events", &key, &event("bad", Some("d"), "2")).id(), id, "the dedup_id is known");
}

fn two_refused_events_of_one_dedup_id_are_both_kept(installation: &Installation) {
    let server = installation.start(&[]);
    let (org, key) = server.organization("test", "0");
    refuse_bad(installation);
    let id = server.post("/api/events", &key, &event("bad", Some("d"), "1")).id();
    quarantined(&server, 1);
    // Other content, and then copies of both.
    for payload in ["2", "1", "2"] {
        assert_eq!(server.post("/api/events", &key, &event("bad", Some("d"), payload)).id(), id);
        server.drained();
    }
    let rows = quarantined(&server, 2);
    assert!(rows.iter().all(|row| text(row, "event_id") == id));
    let payload = |row: &Value| json(&server, &["quarantine", "show", text(row, "id")])[0]["payload"].clone();
    assert_eq!((payload(&rows[0]), payload(&rows[1])), (2.into(), 1.into()), "newest first");

    allow_bad(installation);
    let said = server.try_cli(&["quarantine", "retry", "--all", "--org", "test", "--json"]);
    assert_eq!(said.status.code(), Some(1), "one of them is left");
    let outcomes: Vec<Value> =
        String::from_utf8(said.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(outcomes.iter().map(|o| text(o, "outcome")).collect::<Vec<_>>(), ["stored", "id_taken"]);
    assert_eq!(installation.rows(&org)[0].payload, "1", "the first wins");
    assert_eq!(list(&server).len(), 1);
}

fn a_retry_says_that_the_id_is_taken(installation: &Installation) {
    let server = installation.start(&[]);
    let (org, key) = server.organization("test", "0");
    refuse_bad(installation);
    let bad = server.post("/api/events", &key, &event("bad", Some("a"), "1")).id();
    let same = server.post("/api/events", &key, &event("bad", Some("b"), "1")).id();
    quarantined(&server, 2);
    allow_bad(installation);
    // Meanwhile both ids are stored: one with other content.
    server.post("/api/events", &key, &event("good", Some("a"), "2"));
    server.post("/api/events", &key, &event("bad", Some("b"), "1"));
    server.drained();
    let outcome = |id: &str| {
        let output = server.try_cli(&["quarantine", "retry", id, "--json"]);
        let value: Value = serde_json::from_slice(&output.stdout).unwrap();
        (output.status.code().unwrap(), text(&value, "outcome").to_owned())
    };
    assert_eq!(outcome(&bad), (1, "id_taken".to_owned()));
    assert_eq!(outcome(&same), (0, "stored_before".to_owned()));
    assert_eq!(outcome(&same), (1, "not_there".to_owned()));
    assert_eq!(list(&server).len(), 1);
    assert_eq!(installation.rows(&org).len(), 2);
}

fn what_is_dropped_is_gone(installation: &Installation) {
    let server = installation.start(&[]);
    let key = server.organization("test", "0").1;
    refuse_bad(installation);
    let id = server.post("/api/events", &key, &event("bad", None, "1")).id();
    quarantined(&server, 1);
    assert_eq!(json(&server, &["quarantine", "drop", &id])[0]["outcome"], "dropped");
    assert_eq!(server.cli(&["quarantine", "list"]), "Nothing is in quarantine.\n");
    assert_eq!(server.try_cli(&["quarantine", "drop", &id]).status.code(), Some(1));
    assert_eq!(server.try_cli(&["quarantine", "show", &id]).status.code(), Some(1));
}
