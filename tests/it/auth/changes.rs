//! Changes of credentials, made by the API or by another process, reach every shard of every running server.
//!
//! Each server is asked over many connections, so that both of its shards are; on Postgres two servers share the
//! database. How long a change took is printed, and only bounded by patience: that is a fifth of the cache's TTL, so
//! a change that arrives only with the TTL fails.

use std::time::Instant;

use millrace_base::clock::Timestamp;
use support::installation::Installation;
use support::on_both_stores;
use support::server::{Client, PATIENCE, Response, Server, event, request};

use crate::auth::refusals::{id_of, key_made};

on_both_stores!(
    a_rotation_reaches_every_shard,
    a_revocation_reaches_every_shard,
    an_organisations_changes_reach_every_shard
);

const CONNECTIONS: usize = 8;
const _: () = assert!(PATIENCE.as_secs() * 5 <= millrace_base::limits::AUTH_CACHE_TTL.as_secs());

/// Running servers on one database, and connections to all shards of all of them.
struct Servers {
    store: &'static str,
    all: Vec<Server>,
    clients: Vec<Client>,
}

impl Servers {
    fn start(installation: &Installation) -> Self {
        let count = if installation.is_postgres() { 2 } else { 1 };
        let all: Vec<Server> = (0..count).map(|_| installation.start(&[])).collect();
        let clients = all.iter().flat_map(|server| (0..CONNECTIONS).map(|_| server.connect())).collect();
        Self { store: if installation.is_postgres() { "postgres" } else { "sqlite" }, all, clients }
    }

    fn cli(&self, args: &[&str]) -> String {
        self.all[0].cli(args)
    }

    /// Asks over every connection.
    fn post(&mut self, key: &str) -> Vec<Response> {
        let post = request("POST", "/api/events", Some(key), Some(event("t", None, "1").as_bytes()));
        self.clients.iter_mut().for_each(|client| client.send(&post));
        self.clients.iter_mut().map(Client::response).collect()
    }

    /// Asks over every connection until all say yes to `is_new`; those that do not must say yes to `is_old`.
    fn until(&mut self, what: &str, key: &str, is_old: impl Fn(&Response) -> bool, is_new: impl Fn(&Response) -> bool) {
        let began = Instant::now();
        loop {
            let answers = self.post(key);
            for answer in &answers {
                assert!(is_old(answer) || is_new(answer), "{what}: {answer:?}");
            }
            if answers.iter().all(&is_new) {
                break println!("{}: {what}: seen everywhere after {:?}", self.store, began.elapsed());
            }
            assert!(began.elapsed() < PATIENCE, "{what}: not seen everywhere within {PATIENCE:?}");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    fn until_refused(&mut self, what: &str, key: &str) {
        self.until(what, key, is_accepted, |answer| answer.status == 401);
    }

    fn assert_accepted(&mut self, key: &str) {
        let answers = self.post(key);
        assert!(answers.iter().all(is_accepted), "{answers:?}");
    }
}

fn is_accepted(answer: &Response) -> bool {
    answer.status == 202
}

fn quota(answer: &Response) -> Option<&str> {
    let policy = answer.headers.get("ratelimit-policy")?;
    Some(policy.strip_prefix("\"org-minute\";q=").and_then(|rest| rest.strip_suffix(";w=60")).expect("a policy"))
}

fn a_rotation_reaches_every_shard(installation: &Installation) {
    let mut servers = Servers::start(installation);
    let (_, mut key) = servers.all[0].organization("test", "0");
    for (by_api, grace) in [(true, 0), (false, 0), (true, 2), (false, 2)] {
        servers.assert_accepted(&key);
        let answer = if by_api {
            let body = format!(r#"{{"grace_seconds":{grace}}}"#);
            let rotated = servers.clients[0].request("POST", "/api/keys/rotate", Some(&key), Some(body.as_bytes()));
            assert_eq!((rotated.status, &*rotated.headers["cache-control"]), (200, "no-store"));
            String::from_utf8(rotated.body).expect("text")
        } else {
            servers.cli(&["key", "rotate", id_of(&key), "--grace", &grace.to_string(), "--json"])
        };
        let new_key = key_made(&answer);
        let answer: serde_json::Value = serde_json::from_str(&answer).expect("JSON");
        assert_eq!(answer["key_id"], id_of(&new_key));
        let expires_at = answer["previous_expires_at"].as_str().and_then(Timestamp::parse_rfc3339).expect("a time");
        let what = format!("rotation by {}, {grace} s of grace", if by_api { "the API" } else { "another process" });
        servers.until(&what, &key, is_accepted, |answer| {
            // Not a moment before the grace is over.
            answer.status == 401 && Timestamp::now() >= expires_at
        });
        servers.assert_accepted(&new_key);
        key = new_key;
    }
    // A rotation that does not say locks nobody out whose answer is lost on the way.
    let rotated = servers.clients[0].request("POST", "/api/keys/rotate", Some(&key), None).json();
    let expires_at = rotated["previous_expires_at"].as_str().and_then(Timestamp::parse_rfc3339).expect("a time");
    let seconds = (expires_at.as_micros() - Timestamp::now().as_micros()) / 1_000_000;
    assert!((86_000..=86_400).contains(&seconds), "{rotated}");
    servers.assert_accepted(rotated["api_key"].as_str().expect("a key"));
    servers.assert_accepted(&key);
}

fn a_revocation_reaches_every_shard(installation: &Installation) {
    let mut servers = Servers::start(installation);
    let (_, key) = servers.all[0].organization("test", "0");
    let (_, stranger) = servers.all[0].organization("other", "0");
    for (what, by_api) in [("revocation by the API", true), ("revocation by another process", false)] {
        let doomed = key_made(&servers.cli(&["key", "create", "test", "--json"]));
        servers.assert_accepted(&doomed);
        if by_api {
            let path = format!("/api/keys/{}", id_of(&doomed));
            let hidden = servers.clients[0].request("DELETE", &path, Some(&stranger), None);
            assert_eq!(hidden.status, 404, "another organisation's key is not there");
            assert_eq!(servers.clients[0].request("DELETE", &path, Some(&key), None).status, 204);
        } else {
            servers.cli(&["key", "revoke", id_of(&doomed)]);
        }
        servers.until_refused(what, &doomed);
        servers.assert_accepted(&key);
    }
    // A key may revoke itself, and then nobody of its organisation is left.
    let path = format!("/api/keys/{}", id_of(&key));
    assert_eq!(servers.clients[0].request("DELETE", &path, Some(&key), None).status, 204);
    servers.until_refused("revocation by itself", &key);
    servers.assert_accepted(&stranger);
}

fn an_organisations_changes_reach_every_shard(installation: &Installation) {
    let mut servers = Servers::start(installation);
    let (_, key) = servers.all[0].organization("test", "0");
    let (_, bystander) = servers.all[0].organization("other", "77777");
    let mut before = None;
    for (limit, expected) in
        [("50000", Some("50000")), ("default", Some("1000")), ("0", None), ("60000", Some("60000"))]
    {
        assert!(servers.post(&key).iter().all(|answer| quota(answer) == before), "{limit}");
        servers.cli(&["org", "update", "test", "--rate-limit", limit]);
        let old = |answer: &Response| quota(answer) == before;
        servers.until(&format!("limit {limit}"), &key, old, |answer| quota(answer) == expected);
        before = expected;
    }
    servers.cli(&["org", "disable", "test"]);
    servers.until("disabled", &key, is_accepted, |answer| answer.status == 403);
    servers.cli(&["org", "update", "test", "--enable"]);
    servers.until("enabled", &key, |answer| answer.status == 403, is_accepted);
    assert!(servers.post(&bystander).iter().all(|answer| quota(answer) == Some("77777")));
}
