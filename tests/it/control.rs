//! Reading and managing requests of organisations that share a server: what one does costs another nothing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use millrace_base::limits;
use support::installation::Installation;
use support::on_both_stores;
use support::postgres::Cluster;
use support::server::{Client, Response, Server, event, eventually};

on_both_stores!(
    an_organisation_waiting_for_the_database_blocks_no_other,
    control_requests_have_a_minute_of_their_own,
    a_test_event_is_one_of_the_minute,
    changes_are_in_the_log_once_with_who_and_from_where,
);

/// A name that never exists (RFC 2606).
const ENDPOINT: &str = r#"{"url":"https://example.invalid/","event_types":["nothing.wants.this"]}"#;

fn ask(client: &mut Client, method: &str, path: &str, key: &str, body: Option<&str>) -> Response {
    client.request(method, path, Some(key), body.map(str::as_bytes))
}

/// More than an organisation may have waiting.
const CONNECTIONS: usize = limits::CONTROL_QUEUE_MAX / 2 + 10;

/// Sends the same request over and over, over many connections, for as long as `work` takes.
fn beside<T>(server: &Server, key: &str, request: (&str, &str, Option<&str>), work: impl FnOnce() -> T) -> T {
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..CONNECTIONS {
            scope.spawn(|| {
                let mut client = server.connect();
                while !is_over.load(Ordering::Relaxed) {
                    let (method, path, body) = request;
                    let answer = ask(&mut client, method, path, key, body);
                    assert!([429, 503].contains(&answer.status), "{answer:?}");
                    // As a client does that was refused; most of them wait for an answer.
                    thread::sleep(Duration::from_millis(100));
                }
            });
        }
        let _over = support::server::Finally(|| is_over.store(true, Ordering::Relaxed));
        work()
    })
}

/// A request that comes through a trusted proxy, from 203.0.113.7.
fn forwarded(client: &mut Client, method: &str, path: &str, key: &str, body: &str) -> Response {
    let head = format!("{method} {path} HTTP/1.1\r\nHost: t\r\nX-API-Key: {key}\r\nX-Forwarded-For: 203.0.113.7\r\n");
    client.exchange(format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes())
}

fn changes_are_in_the_log_once_with_who_and_from_where(installation: &Installation) {
    let server = installation.start(&["--trusted-proxies", "127.0.0.1/32", "--forwarded-field", "x-forwarded-for"]);
    let (org, key) = server.organization("acme", "0");
    let leaked = server.cli(&["key", "create", "acme", "--json"]);
    let leaked: serde_json::Value = serde_json::from_str(&leaked).unwrap();
    let (leaked, wrong) = (leaked["key_id"].as_str().unwrap(), millrace_base::key::ApiKey::generate().unwrap());
    let mut client = server.connect();
    let mut change = |method: &str, path: &str, body: &str| {
        let answer = forwarded(&mut client, method, path, &key, body);
        assert!((200..300).contains(&answer.status), "{method} {path}: {answer:?}");
        if answer.body.is_empty() { serde_json::Value::Null } else { answer.json() }
    };
    let made = change("POST", "/api/endpoints", ENDPOINT);
    let (id, secret) = (made["id"].as_str().unwrap(), made["secret"].as_str().unwrap());
    let endpoint = format!("/api/endpoints/{id}");
    change("PATCH", &endpoint, r#"{"description":"not in the log"}"#);
    change("POST", &format!("{endpoint}/rotate-secret"), "{}");
    change("DELETE", &endpoint, "");
    let rotated = change("POST", "/api/keys/rotate", "{}");
    let (new_id, new_key) = (rotated["key_id"].as_str().unwrap(), rotated["api_key"].as_str().unwrap());
    change("DELETE", &format!("/api/keys/{new_id}"), "");
    // Nothing comes of these.
    let mut other = server.connect();
    assert_eq!(forwarded(&mut other, "DELETE", &endpoint, &key, "").status, 404);
    assert_eq!(forwarded(&mut other, "GET", "/api/keys", wrong.reveal(), "").status, 401);
    server.cli(&["key", "revoke", leaked]);
    server.cli(&["org", "disable", "acme"]);
    // Heard of one after the other: before this line, everything was.
    server.says("an organisation was changed");
    let log = server.log();
    let by = format!("org={org} by_key={} from=203.0.113.7", &key[3..15]);
    for (what, id) in [
        ("endpoint.created", id),
        ("endpoint.updated", id),
        ("endpoint.secret_rotated", id),
        ("endpoint.deleted", id),
        ("key.rotated", new_id),
        ("key.revoked", new_id),
    ] {
        let lines = log.lines().filter(|line| line.contains(&format!("change=\"{what}\" id={id} {by}")));
        assert_eq!(lines.count(), 1, "{what} in {log}");
    }
    assert_eq!(log.matches("changed by a request").count(), 6, "{log}");
    let elsewhere: Vec<&str> = log.lines().filter(|line| line.contains("elsewhere")).collect();
    assert!(matches!(elsewhere[..], [line] if line.contains(&format!("key={leaked}"))), "{elsewhere:#?}");
    assert!(log.contains(&format!("org={org} name=\"acme\" disabled=true rate_limit=0")), "{log}");
    assert!(log.contains(&format!("key={} from=203.0.113.7 withheld=0", wrong.id())), "{log}");
    for shown_never in [&key[16..], &new_key[16..], &wrong.reveal()[16..], &secret[6..], "not in the log"] {
        assert!(!log.contains(shown_never), "{log}");
    }
}

/// Waits until requests of an organisation wait for others of it: some were told that they are too many.
fn crowded(server: &Server) {
    eventually("the greedy one is refused", || server.metric("rejected_total{code=\"rate_limited\"}") > 0.0);
}

fn an_organisation_waiting_for_the_database_blocks_no_other(installation: &Installation) {
    let server = installation.start(&[]);
    let greedy = server.organization("greedy", "0").1;
    let light = server.organization("light", "0").1;
    let mut client = server.connect();
    assert_eq!(ask(&mut client, "POST", "/api/endpoints", &light, Some(ENDPOINT)).status, 201);
    assert_eq!(ask(&mut client, "GET", "/api/keys", &greedy, None).status, 200);
    let block = installation.block_writes();
    let waits = if installation.is_postgres() {
        ("GET", "/api/events", None)
    } else {
        ("POST", "/api/endpoints", Some(ENDPOINT))
    };
    beside(&server, &greedy, waits, || {
        crowded(&server);
        for _ in 0..5 {
            for path in ["/api/endpoints", "/api/deliveries", "/api/keys"] {
                let answer = ask(&mut client, "GET", path, &light, None);
                assert_eq!(answer.status, 200, "{path}: {answer:?}");
            }
        }
        // Its own keys it sees, too.
        assert_eq!(ask(&mut client, "GET", "/api/keys", &greedy, None).status, 200);
    });
    drop(block);
}

#[test]
fn a_leaked_key_is_revoked_while_its_organisation_is_busy() {
    let cluster = Cluster::shared();
    let database = cluster.new_name();
    cluster.admin("postgres").batch_execute(&format!("CREATE DATABASE {database}")).unwrap();
    let server = Installation::postgres_at(&cluster.url(&database)).start(&[]);
    let (org, leaked) = server.organization("greedy", "0");
    let second: serde_json::Value = serde_json::from_str(&server.cli(&["key", "create", &org, "--json"])).unwrap();
    let own = second["api_key"].as_str().unwrap().to_owned();
    let light = server.organization("light", "0").1;
    let id = |key: &str| key.split('_').nth(1).unwrap().to_owned();
    let mut client = server.connect();
    for key in [&leaked, &own, &light] {
        assert_eq!(ask(&mut client, "GET", "/api/keys", key, None).status, 200);
    }
    let mut admin = cluster.admin(&database);
    let mut lock = admin.transaction().unwrap();
    lock.batch_execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE").unwrap();
    // Over connections that know the key before it is revoked.
    beside(&server, &own, ("GET", "/api/events?type=t", None), || {
        crowded(&server);
        let revoked = ask(&mut client, "DELETE", &format!("/api/keys/{}", id(&leaked)), &own, None);
        assert_eq!(revoked.status, 204, "{revoked:?}");
        let revoked = ask(&mut client, "DELETE", &format!("/api/keys/{}", id(&light)), &light, None);
        assert_eq!(revoked.status, 204, "{revoked:?}");
    });
    eventually("the leaked key is refused", || ask(&mut client, "GET", "/api/keys", &leaked, None).status == 401);
    lock.rollback().unwrap();
}

#[test]
fn a_hanging_statement_is_ended_before_others_time_out() {
    let cluster = Cluster::shared();
    let database = cluster.new_name();
    cluster.admin("postgres").batch_execute(&format!("CREATE DATABASE {database}")).unwrap();
    let server = Installation::postgres_at(&cluster.url(&database)).start(&[]);
    let [first, second, light] = ["first", "second", "light"].map(|name| server.organization(name, "0").1);
    let mut client = server.connect();
    for key in [&first, &second, &light] {
        assert_eq!(ask(&mut client, "GET", "/api/keys", key, None).status, 200);
    }
    let mut admin = cluster.admin(&database);
    // Whoever lists deliveries waits for longer than anybody lives.
    let endless = "
        ALTER TABLE deliveries RENAME TO deliveries_of_old;
        CREATE FUNCTION endless() RETURNS SETOF deliveries_of_old LANGUAGE plpgsql AS
            'BEGIN PERFORM pg_sleep(1e6); RETURN; END';
        CREATE VIEW deliveries AS SELECT * FROM endless()";
    admin.batch_execute(endless).unwrap();
    let sleeping = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND wait_event = 'PgSleep'";
    let mut sleepers = || admin.query_one(sleeping, &[]).unwrap().get::<_, i64>(0);
    thread::scope(|scope| {
        // Of each one waits behind the other.
        let lists: Vec<_> = [&first, &second, &first, &second]
            .map(|key| scope.spawn(|| ask(&mut server.connect(), "GET", "/api/deliveries", key, None)))
            .into_iter()
            .collect();
        eventually("both threads are at it", || sleepers() == 2);
        let answer = ask(&mut client, "GET", "/api/events/00000000-0000-7000-8000-000000000001", &light, None);
        assert_eq!(answer.status, 404, "{answer:?}");
        for list in lists {
            let answer = list.join().unwrap();
            assert_eq!((answer.status, &*answer.code()), (503, "store_unavailable"));
        }
    });
    eventually("nothing of them runs on in the database", || sleepers() == 0);
}

/// The fields of a counted answer: the policy's name and limit, and what is left.
fn left(answer: &Response, name: &str) -> (u32, u32) {
    let number = |text: &str| text.parse::<u32>().expect("a number");
    let policy = &answer.headers["ratelimit-policy"];
    let quota = policy.strip_prefix(&format!("\"{name}\";q=")).and_then(|rest| rest.strip_suffix(";w=60"));
    let state = answer.headers["ratelimit"].strip_prefix(&format!("\"{name}\";r=")).expect("the policy's name");
    (number(quota.unwrap_or_else(|| panic!("{policy} of {name}"))), number(state.split_once(";t=").unwrap().0))
}

fn control_requests_have_a_minute_of_their_own(installation: &Installation) {
    let server = installation.start(&[]);
    let (busy, other) = (server.organization("busy", "1000").1, server.organization("other", "1000").1);
    let mut client = server.connect();
    let (limit, keys_limit) = (limits::CONTROL_REQUESTS_PER_MINUTE_MAX, limits::KEY_REQUESTS_PER_MINUTE_MAX);
    // Refused for its parameter before the database is asked, and counted all the same.
    let wrong = "/api/events?x=1";
    for n in 1..=limit {
        let answer = ask(&mut client, "GET", wrong, &busy, None);
        assert_eq!((answer.status, left(&answer, "control-minute").0), (400, limit), "{n}");
        // A minute may have begun anew on a slow machine, and then there is more.
        assert!(left(&answer, "control-minute").1 >= limit - n);
        if left(&answer, "control-minute").1 == 0 {
            break;
        }
    }
    let refused = ask(&mut client, "GET", wrong, &busy, None);
    if refused.status != 400 {
        assert_eq!((refused.status, &*refused.code()), (429, "rate_limited"));
        assert_eq!(left(&refused, "control-minute"), (limit, 0));
        assert!((1..=61).contains(&refused.headers["retry-after"].parse::<u32>().unwrap()));
    }
    // Its keys, its events and the others are not concerned.
    let keys = ask(&mut client, "GET", "/api/keys", &busy, None);
    assert_eq!((keys.status, left(&keys, "keys-minute")), (200, (keys_limit, keys_limit - 1)));
    let posted = ask(&mut client, "POST", "/api/events", &busy, Some(&event("t", None, "1")));
    assert_eq!((posted.status, left(&posted, "org-minute")), (202, (1000, 999)));
    let others = ask(&mut client, "GET", "/api/endpoints", &other, None);
    assert_eq!((others.status, left(&others, "control-minute")), (200, (limit, limit - 1)));
    // Those of keys are counted too.
    let unknown = "/api/keys/unknownKey00";
    let deleted = ask(&mut client, "DELETE", unknown, &other, None);
    assert_eq!((deleted.status, left(&deleted, "keys-minute")), (404, (keys_limit, keys_limit - 1)));
}

fn a_test_event_is_one_of_the_minute(installation: &Installation) {
    const LIMIT: u32 = 10;
    let server = installation.start(&[]);
    let (org, key) = server.organization("limited", &LIMIT.to_string());
    let unlimited = server.organization("unlimited", "0").1;
    let mut client = server.connect();
    let mut endpoint = |key: &str| {
        let made = ask(&mut client, "POST", "/api/endpoints", key, Some(ENDPOINT));
        format!("/api/endpoints/{}/test", made.json()["id"].as_str().unwrap())
    };
    let (path, free) = (endpoint(&key), endpoint(&unlimited));
    let posted = ask(&mut client, "POST", "/api/events", &key, Some(&event("t", None, "1")));
    assert_eq!(left(&posted, "org-minute"), (LIMIT, LIMIT - 1));
    let mut sent = 1;
    for _ in 0..30 {
        let answer = ask(&mut client, "POST", &path, &key, None);
        if answer.status == 202 {
            sent += 1;
            assert_eq!(left(&answer, "org-minute").0, LIMIT);
        } else {
            assert_eq!((answer.status, &*answer.code()), (429, "rate_limited"));
            assert_eq!(left(&answer, "org-minute"), (LIMIT, 0));
            assert!(answer.headers.contains_key("retry-after"));
            break;
        }
    }
    assert_eq!(sent, LIMIT, "events of the minute, tests included");
    let posted = ask(&mut client, "POST", "/api/events", &key, Some(&event("t", None, "1")));
    assert_eq!((posted.status, &*posted.code()), (429, "rate_limited"));
    server.drained();
    assert_eq!(installation.rows(&org).len(), LIMIT as usize);
    // Who has no limit for events has that of all control requests.
    let answer = ask(&mut client, "POST", &free, &unlimited, None);
    assert_eq!((answer.status, left(&answer, "control-minute").0), (202, limits::CONTROL_REQUESTS_PER_MINUTE_MAX));
}
