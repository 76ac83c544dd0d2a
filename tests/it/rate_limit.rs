//! The limit of an organisation, through the real server: exact over both shards, told in every answer, its own.

use std::thread;
use std::time::{Duration, Instant};

use support::installation::Installation;
use support::on_both_stores;
use support::server::{Client, Response, event, eventually, post_with};

on_both_stores!(
    a_limit_is_the_organisations_own_or_the_servers_default,
    a_change_of_credentials_keeps_the_minute,
    what_finds_no_room_is_not_charged,
);

/// Header fields of a request.
type Fields = [(&'static str, &'static str)];

/// The fields of a limited answer: (quota, remaining, seconds until there is more).
fn fields(answer: &Response) -> Option<(u32, u32, u32)> {
    let parse = |text: &str| text.parse().expect("a number");
    let policy = answer.headers.get("ratelimit-policy")?;
    let quota = policy.strip_prefix("\"org-minute\";q=")?.strip_suffix(";w=60")?;
    let state = answer.headers["ratelimit"].strip_prefix("\"org-minute\";r=").expect("the policy's name");
    let (remaining, reset) = state.split_once(";t=").expect("a time");
    Some((parse(quota), parse(remaining), parse(reset)))
}

/// Checks a 429: the code, nothing left, and the same time in both fields.
fn assert_limited(answer: &Response, quota: u32) -> u32 {
    assert_eq!((answer.status, &*answer.code()), (429, "rate_limited"));
    let detail = answer.json()["detail"].as_str().expect("detail").to_owned();
    assert!(detail.contains("`millrace org update ORG --rate-limit N`"), "{detail}");
    let (policy, remaining, reset) = fields(answer).expect("a limited answer says so");
    assert_eq!((policy, remaining), (quota, 0));
    assert!((1..=61).contains(&reset), "{reset}");
    assert_eq!(answer.headers["retry-after"], reset.to_string());
    reset
}

fn post(client: &mut Client, key: &str) -> Response {
    client.request("POST", "/api/events", Some(key), Some(event("t", None, "1").as_bytes()))
}

fn numbered(n: usize) -> String {
    let events: Vec<String> = (0..n).map(|n| event("t", None, &n.to_string())).collect();
    format!("[{}]", events.join(","))
}

fn what_finds_no_room_is_not_charged(installation: &Installation) {
    const LIMIT: u32 = 100;
    let server = installation.start(&["--queue-capacity", "5"]);
    let key = server.organization("test", &LIMIT.to_string()).1;
    let mut client = server.connect();
    assert_eq!(post(&mut client, &key).status, 202);
    server.drained();
    let block = installation.block_writes();
    for _ in 0..5 {
        assert_eq!(post(&mut client, &key).status, 202);
    }
    let left = |answer: &Response| fields(answer).map(|(_, remaining, _)| remaining);
    for _ in 0..20 {
        let refused = post(&mut client, &key);
        assert_eq!((refused.status, &*refused.code(), left(&refused)), (429, "queue_full", Some(LIMIT - 6)));
        let refused = client.request("POST", "/api/events/batch", Some(&key), Some(numbered(50).as_bytes()));
        assert_eq!((refused.status, &*refused.code(), left(&refused)), (429, "queue_full", Some(LIMIT - 6)));
    }
    drop(block);
    server.drained();
    // Of a batch too, only what was taken is charged.
    let block = installation.block_writes();
    let some = client.request("POST", "/api/events/batch", Some(&key), Some(numbered(50).as_bytes()));
    assert_eq!((some.status, &some.json()["accepted"], left(&some)), (202, &5.into(), Some(LIMIT - 11)));
    drop(block);
    server.drained();
    assert_eq!(left(&post(&mut client, &key)), Some(LIMIT - 12));
}

#[test]
fn a_minute_later_there_is_room_again() {
    const LIMIT: u32 = 3;
    let installation = Installation::sqlite();
    let server = installation.start(&[]);
    let key = server.organization("test", &LIMIT.to_string()).1;
    let mut client = server.connect();
    let began = Instant::now();
    for _ in 0..LIMIT {
        assert_eq!(post(&mut client, &key).status, 202);
    }
    let retry_after = Duration::from_secs(assert_limited(&post(&mut client, &key), LIMIT).into());
    let refused_at = Instant::now();
    // Asking does not push the time away, and no minute holds more than the limit.
    loop {
        let is_time = refused_at.elapsed() >= retry_after;
        // A connection of its own: this one would go idle for too long.
        let answer = post(&mut server.connect(), &key);
        if answer.status == 202 {
            assert!(began.elapsed() >= Duration::from_secs(60), "room after {:?}", began.elapsed());
            // All of them left together if they came within one second.
            let (quota, remaining, _) = fields(&answer).expect("a limited answer says so");
            assert!(quota == LIMIT && remaining < LIMIT, "{answer:?}");
            return;
        }
        assert_limited(&answer, LIMIT);
        assert!(!is_time, "still refused {:?} after being told to wait {retry_after:?}", refused_at.elapsed());
        thread::sleep(Duration::from_millis(500));
    }
}

#[test]
fn both_shards_together_admit_exactly_the_limit() {
    const LIMIT: u32 = 60;
    const CONNECTIONS: u32 = 12;
    let installation = Installation::sqlite();
    let server = installation.start(&[]);
    let (org, key) = server.organization("test", &LIMIT.to_string());
    let answers: Vec<Response> = thread::scope(|scope| {
        let ask = || -> Vec<Response> {
            let mut client = server.connect();
            (0..3 * LIMIT / CONNECTIONS).map(|_| post(&mut client, &key)).collect()
        };
        let threads: Vec<_> = (0..CONNECTIONS).map(|_| scope.spawn(ask)).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("every request was answered")).collect()
    });
    let (admitted, refused): (Vec<&Response>, Vec<&Response>) = answers.iter().partition(|answer| answer.status == 202);
    assert!(refused.iter().all(|answer| assert_limited(answer, LIMIT) > 0));
    // Each admitted request took another of the places.
    let mut remaining: Vec<u32> = admitted
        .iter()
        .map(|answer| {
            let (quota, remaining, reset) = fields(answer).expect("every answer tells");
            assert!(quota == LIMIT && (1..=61).contains(&reset) && !answer.headers.contains_key("retry-after"));
            remaining
        })
        .collect();
    remaining.sort_unstable();
    assert_eq!(remaining, (0..LIMIT).collect::<Vec<_>>());
    server.drained();
    assert_eq!(installation.rows(&org).len(), LIMIT as usize);
    assert_eq!(server.metric("rejected_total{code=\"rate_limited\"}"), f64::from(2 * LIMIT));
}

#[test]
fn every_answer_to_a_known_organisation_tells_its_limit() {
    let installation = Installation::sqlite();
    let server = installation.start(&[]);
    let key = server.organization("test", "10").1;
    let unlimited = server.organization("unlimited", "0").1;
    let json = [("Content-Type", "application/json")];
    let requests: [(u16, &str, &Fields, &[u8]); 8] = [
        (202, "/api/events", &json, br#"{"type":"t","payload":1}"#),
        (422, "/api/events", &json, br#"{"type":"t"}"#),
        (400, "/api/events", &json, b"{"),
        (415, "/api/events", &[("Content-Type", "text/plain")], b"{}"),
        (415, "/api/events", &[("Content-Encoding", "gzip")], b"{}"),
        (202, "/api/events/batch", &json, br#"[{"type":"t","payload":1}]"#),
        (422, "/api/events/batch", &json, b"[]"),
        (400, "/api/events/batch", &json, b"[1 2]"),
    ];
    for (used, (status, path, own, body)) in (1..).zip(requests) {
        let answer = server.connect().exchange(&post_with(path, &key, own, body));
        assert_eq!(answer.status, status, "{path} {}", String::from_utf8_lossy(body));
        assert_eq!(fields(&answer).map(|(quota, remaining, _)| (quota, remaining)), Some((10, 10 - used)), "{status}");
        let answer = server.connect().exchange(&post_with(path, &unlimited, own, body));
        assert_eq!(answer.status, status);
        assert!(!answer.headers.keys().any(|name| name.starts_with("ratelimit")), "{answer:?}");
    }
    let too_large = "x".repeat(millrace_base::limits::EVENT_BODY_BYTES_MAX + 1);
    let answer = server.connect().exchange(&post_with("/api/events", &key, &json, too_large.as_bytes()));
    assert_eq!((answer.status, fields(&answer).map(|(_, remaining, _)| remaining)), (413, Some(1)));
    assert_eq!(fields(&post(&mut server.connect(), &key)).map(|(_, remaining, _)| remaining), Some(0));
    assert_limited(&post(&mut server.connect(), &key), 10);
    assert_limited(&server.post("/api/events/batch", &key, "[]"), 10);
    // Reading is not limited, and does not tell.
    let list = server.get("/api/events", Some(&key));
    assert_eq!((list.status, fields(&list)), (200, None));
    // Nor is anybody told who is not known.
    let refused = server.post("/api/events", "mr_x", "{}");
    assert_eq!((refused.status, fields(&refused)), (401, None));
}

#[test]
fn one_organisation_at_its_limit_leaves_the_others_alone() {
    let installation = Installation::sqlite();
    let server = installation.start(&[]);
    let (noisy, quiet) = (server.organization("noisy", "5").1, server.organization("quiet", "5").1);
    let mut client = server.connect();
    let statuses: Vec<u16> = (0..20).map(|_| post(&mut client, &noisy).status).collect();
    assert_eq!(statuses, [[202; 5].as_slice(), &[429; 15]].concat());
    for left in (0..5).rev() {
        let answer = post(&mut client, &quiet);
        assert_eq!((answer.status, fields(&answer).map(|(_, remaining, _)| remaining)), (202, Some(left)));
    }
    assert_limited(&post(&mut client, &quiet), 5);
}

#[test]
fn a_batch_is_charged_by_the_event() {
    let installation = Installation::sqlite();
    let server = installation.start(&[]);
    let (org, key) = server.organization("test", "10");
    let mut client = server.connect();
    let mut batch = |body: &str| client.request("POST", "/api/events/batch", Some(&key), Some(body.as_bytes()));
    let left = |answer: &Response| fields(answer).map(|(_, remaining, _)| remaining);
    assert_eq!(left(&batch(&numbered(4))), Some(6));
    // What is no event costs nothing beyond the request itself.
    assert_eq!(left(&batch("[1,2,3]")), Some(5));
    assert_eq!(left(&batch("[1,2,{\"type\":\"t\",\"payload\":0},3]")), Some(4));
    // As many as there is room for, in order; the rest is refused, each for itself.
    let answer = batch(&numbered(7));
    assert_eq!((answer.status, left(&answer)), (202, Some(0)));
    let body = answer.json();
    assert_eq!((&body["accepted"], &body["rejected"]), (&4.into(), &3.into()));
    let results = body["results"].as_array().unwrap();
    assert!(results[..4].iter().all(|result| result["id"].is_string()));
    assert!(results[4..].iter().all(|result| result["error"]["code"] == "rate_limited"));
    // With no room at all: the clear no of a single event.
    assert_limited(&batch(&numbered(2)), 10);
    server.drained();
    let payloads: Vec<String> = installation.rows(&org).into_iter().map(|row| row.payload).collect();
    assert_eq!(payloads, ["0", "1", "2", "3", "0", "0", "1", "2", "3"]);
}

fn a_limit_is_the_organisations_own_or_the_servers_default(installation: &Installation) {
    let server = installation.start(&["--rate-limit", "7"]);
    let made: serde_json::Value = serde_json::from_str(&server.cli(&["org", "create", "plain", "--json"])).unwrap();
    let plain = made["api_key"].as_str().unwrap();
    let own = server.organization("own", "3").1;
    let none = server.organization("none", "0").1;
    let mut client = server.connect();
    let mut admitted = |key: &str| (0..10).filter(|_| post(&mut client, key).status == 202).count();
    assert_eq!((admitted(plain), admitted(&own), admitted(&none)), (7, 3, 10));
    assert_limited(&post(&mut server.connect(), plain), 7);
    assert_limited(&post(&mut server.connect(), &own), 3);
}

fn a_change_of_credentials_keeps_the_minute(installation: &Installation) {
    let server = installation.start(&[]);
    let key = server.organization("test", "5").1;
    let mut client = server.connect();
    for _ in 0..5 {
        assert_eq!(post(&mut client, &key).status, 202);
    }
    assert_limited(&post(&mut client, &key), 5);
    // A new key is no new minute, and it is the organisation's, not the key's.
    let body = br#"{"grace_seconds":0}"#;
    let rotated = client.request("POST", "/api/keys/rotate", Some(&key), Some(body)).json();
    let new_key = rotated["api_key"].as_str().unwrap();
    eventually("the old key is refused", || post(&mut server.connect(), &key).status == 401);
    assert_limited(&post(&mut client, new_key), 5);
    // Nor is a new limit: what was used is used.
    server.cli(&["org", "update", "test", "--rate-limit", "7"]);
    eventually("the limit is higher", || {
        let answer = post(&mut client, new_key);
        assert!(answer.status == 202 || assert_limited(&answer, 5) > 0);
        answer.status == 202
    });
    let answer = post(&mut client, new_key);
    assert_eq!((answer.status, fields(&answer).map(|(quota, remaining, _)| (quota, remaining))), (202, Some((7, 0))));
    assert_limited(&post(&mut client, new_key), 7);
}
