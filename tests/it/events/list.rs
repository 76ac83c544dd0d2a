//! Lists of events: filters, and pages that meet without gap or repeat while more events arrive.

use serde_json::Value;

use support::installation::Installation;
use support::on_both_stores;
use support::server::{Client, event};

on_both_stores!(pages_meet_without_gap_or_repeat, lists_filter_by_type_and_time, a_wrong_query_is_refused_by_name);

const EVENTS: usize = 250;

/// Posts [`EVENTS`] events in one batch, every third of type `b`, the others `a`; returns their ids in that order.
fn post(client: &mut Client, key: &str) -> Vec<String> {
    let events: Vec<String> =
        (0..EVENTS).map(|n| event(if n % 3 == 0 { "b" } else { "a" }, None, &format!("{{\"n\":{n}}}"))).collect();
    let body = format!("[{}]", events.join(","));
    let answer = client.request("POST", "/api/events/batch", Some(key), Some(body.as_bytes())).json();
    assert_eq!(answer["accepted"], EVENTS);
    answer["results"].as_array().expect("results").iter().map(|r| r["id"].as_str().expect("id").to_owned()).collect()
}

fn page(client: &mut Client, key: &str, query: &str) -> (Vec<Value>, Option<String>) {
    let response = client.request("GET", &format!("/api/events?{query}"), Some(key), None);
    assert_eq!(response.status, 200, "{query}: {response:?}");
    let mut list = response.json();
    assert_eq!(list.as_object().expect("an object").len(), 2);
    let cursor = list["next_cursor"].as_str().map(str::to_owned);
    assert!(cursor.is_some() || list["next_cursor"].is_null());
    (std::mem::take(list["data"].as_array_mut().expect("data")), cursor)
}

/// Follows cursors to the end, running `between` after each page.
fn all(client: &mut Client, key: &str, query: &str, limit: usize, mut between: impl FnMut()) -> Vec<Value> {
    let mut found = Vec::new();
    let mut next = format!("{query}&limit={limit}");
    loop {
        let (mut events, cursor) = page(client, key, &next);
        // A page may be short where the machine is slow.
        assert!(events.len() <= limit, "{} events", events.len());
        found.append(&mut events);
        let Some(cursor) = cursor else { return found };
        next = format!("{query}&limit={limit}&cursor={cursor}");
        between();
    }
}

fn ids(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["id"].as_str().expect("id")).collect()
}

fn pages_meet_without_gap_or_repeat(installation: &Installation) {
    let server = installation.start(&[]);
    let key = server.key();
    let mut client = server.connect();
    let posted = post(&mut client, &key);
    server.drained();
    let newest_first: Vec<&str> = posted.iter().rev().map(String::as_str).collect();
    // In one page, of the default size and of the largest.
    let (events, cursor) = page(&mut client, &key, "");
    assert_eq!((ids(&events), cursor.is_some()), (newest_first[..100].to_vec(), true));
    let (events, cursor) = page(&mut client, &key, "limit=1000");
    assert_eq!((ids(&events), cursor), (newest_first.clone(), None));
    // Exactly full pages: the last one says that it is the last.
    assert_eq!(ids(&all(&mut client, &key, "", 125, || {})), newest_first);
    assert_eq!(ids(&all(&mut client, &key, "", 1, || {})), newest_first);
    // Events that arrive meanwhile are newer than the place where the list goes on.
    let mut latecomer = server.connect();
    let walked = all(&mut client, &key, "", 37, || {
        latecomer.request("POST", "/api/events", Some(&key), Some(event("late", None, "0").as_bytes())).id();
        server.drained();
    });
    assert_eq!(ids(&walked), newest_first);
    let times: Vec<&str> = walked.iter().map(|event| event["received_at"].as_str().expect("a time")).collect();
    assert!(times.is_sorted_by(|newer, older| newer >= older));
    let numbers: Vec<u64> = walked.iter().rev().map(|event| event["payload"]["n"].as_u64().expect("n")).collect();
    assert_eq!(numbers, (0..EVENTS as u64).collect::<Vec<_>>());
}

fn lists_filter_by_type_and_time(installation: &Installation) {
    let server = installation.start(&[]);
    let key = server.key();
    let mut client = server.connect();
    post(&mut client, &key);
    server.drained();
    let (everything, _) = page(&mut client, &key, "limit=1000");
    let time = |event: &Value| event["received_at"].as_str().expect("a time").to_owned();
    let only = |wanted: &dyn Fn(&Value) -> bool| -> Vec<&str> {
        ids(&everything).into_iter().zip(&everything).filter(|(_, event)| wanted(event)).map(|(id, _)| id).collect()
    };
    for (event_type, count) in [("a", 166), ("b", 84), ("none", 0)] {
        let found = all(&mut client, &key, &format!("type={event_type}"), 25, || {});
        assert_eq!(found.len(), count, "{event_type}");
        assert_eq!(ids(&found), only(&|event| event["type"] == event_type));
    }
    // Both ends are exclusive, whatever events share the microsecond.
    let (newer, older) = (time(&everything[50]), time(&everything[200]));
    let found = all(&mut client, &key, &format!("after={older}&before={newer}"), 11, || {});
    assert_eq!(ids(&found), only(&|event| older < time(event) && time(event) < newer));
    let found = all(&mut client, &key, &format!("type=b&after={older}"), 11, || {});
    assert_eq!(ids(&found), only(&|event| older < time(event) && event["type"] == "b"));
    assert_eq!(page(&mut client, &key, &format!("before={}", time(&everything[EVENTS - 1]))), (vec![], None));
    assert_eq!(page(&mut client, &key, "after=2999-01-01T00:00:00Z"), (vec![], None));
}

fn a_wrong_query_is_refused_by_name(installation: &Installation) {
    let server = installation.start(&[]);
    let key = server.key();
    let mut client = server.connect();
    for (query, name) in [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=1&limit=2", "limit"),
        ("cursor=x", "cursor"),
        ("after=yesterday", "after"),
        ("type=a%20b", "type"),
        ("typ=a", "typ"),
    ] {
        let refused = client.request("GET", &format!("/api/events?{query}"), Some(&key), None);
        assert_eq!((refused.status, &*refused.code()), (400, "bad_request"), "{query}");
        let detail = refused.json()["detail"].as_str().expect("detail").to_owned();
        assert!(detail.contains(&format!("`{name}`")), "{query}: {detail}");
    }
}
