//! The room through its door: jobs submitted to a real pool over a store in memory.

use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use futures_channel::oneshot;
use serde_json::Value;
use uuid::Uuid;

use millrace_base::clock::Timestamp;
use millrace_base::event::EventId;
use millrace_base::key;
use millrace_base::limits::{CONTROL_WORKERS, LIST_KEYS_MAX};
use millrace_store::{Rejection, StoredEvent};

use super::fake_store::{FakeStore, key_info, management};
use super::*;

pub(super) const OURS: OrgId = OrgId(Uuid::from_u128(1));
pub(super) const THEIRS: OrgId = OrgId(Uuid::from_u128(2));
pub(super) const CHEAP: Argon2Cost = Argon2Cost { memory_kib: 8, iterations: 1 };

fn key_id(text: &str) -> KeyId {
    KeyId::parse(text).unwrap()
}

fn caller(org: OrgId) -> Caller {
    Caller { org, key: key_id("ourOwnKey000"), from: [127, 0, 0, 1].into() }
}

pub(super) fn event(n: u128, event_type: &str, payload: &str) -> StoredEvent {
    StoredEvent {
        id: EventId(Uuid::from_u128(n)),
        event_type: event_type.into(),
        dedup_id: None,
        payload: payload.into(),
        // Two events share each microsecond, so that order among equals counts too.
        received_at: Timestamp::from_micros(1_767_225_600_000_000 + (n / 2) as i64),
    }
}

fn pool(store: FakeStore) -> (ControlPool, Arc<FakeStore>) {
    let store = Arc::new(store);
    (ControlPool::start(store.clone(), Metrics::new(0), CHEAP, management(), CONTROL_WORKERS, 8).unwrap(), store)
}

fn wait<T>(answered: oneshot::Receiver<T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let answer = tokio::time::timeout(Duration::from_secs(20), answered).await;
        answer.expect("an answer within 20 s").expect("the pool answers every job")
    })
}

/// A request with neither query nor body.
pub(super) fn bare(route: ControlRoute) -> Request {
    with_body(route, "")
}

pub(super) fn with_query(route: ControlRoute, query: impl Into<String>) -> Request {
    Request { query: query.into(), ..bare(route) }
}

pub(super) fn with_body(route: ControlRoute, body: impl Into<Vec<u8>>) -> Request {
    Request { route, query: String::new(), body: body.into().into() }
}

pub(super) fn ask_as(pool: &ControlPool, org: OrgId, request: Request) -> Result<Reply, Problem> {
    wait(pool.submit(Job { caller: caller(org), request })?)
}

fn ask(pool: &ControlPool, request: Request) -> Result<Reply, Problem> {
    ask_as(pool, OURS, request)
}

fn text(reply: Result<Reply, Problem>) -> String {
    let reply = reply.unwrap();
    assert_eq!(reply.status, 200);
    String::from_utf8(reply.body).unwrap()
}

fn json(reply: Result<Reply, Problem>) -> Value {
    serde_json::from_str(&text(reply)).unwrap()
}

#[test]
fn an_event_comes_back_in_its_exact_shape_with_the_payload_verbatim() {
    let (pool, store) = pool(FakeStore::new());
    let payload = "{ \"b\":1.000,\t\"a\": [1e400, \"\\u0041\\ud800\"],\"a\":null }";
    let plain = event(8, "user.login", payload);
    let odd = StoredEvent { dedup_id: Some("q\"\\/ é😀".into()), ..event(9, "a", "7") };
    store.events.lock().unwrap().extend([(OURS, plain.clone()), (OURS, odd.clone())]);
    assert_eq!(
        text(ask(&pool, bare(ControlRoute::GetEvent(plain.id)))),
        format!(
            "{{\"id\":\"{}\",\"type\":\"user.login\",\"dedup_id\":null,\"payload\":{payload},\
             \"received_at\":\"2026-01-01T00:00:00.000004Z\"}}",
            plain.id
        )
    );
    assert_eq!(json(ask(&pool, bare(ControlRoute::GetEvent(odd.id))))["dedup_id"], "q\"\\/ é😀");
}

#[test]
fn another_organisations_things_are_not_there() {
    let (pool, store) = pool(FakeStore::new());
    let theirs = event(1, "t", "1");
    store.events.lock().unwrap().push((THEIRS, theirs.clone()));
    store.keys.lock().unwrap().push(key_info(key_id("theirKey0000"), THEIRS, Timestamp::now()));
    assert_eq!(ask(&pool, bare(ControlRoute::GetEvent(theirs.id))).unwrap_err(), not_found::EVENT);
    assert_eq!(text(ask(&pool, bare(ControlRoute::ListEvents))), r#"{"data":[],"next_cursor":null}"#);
    assert_eq!(text(ask(&pool, bare(ControlRoute::ListKeys))), r#"{"data":[],"has_more":false}"#);
    assert_eq!(ask(&pool, bare(ControlRoute::DeleteKey(key_id("theirKey0000")))).unwrap_err(), not_found::KEY);
    assert_eq!(store.keys.lock().unwrap()[0].revoked_at, None);
}

#[test]
fn pages_cover_every_event_once_newest_first_whatever_arrives_meanwhile() {
    let (pool, store) = pool(FakeStore::new());
    store.events.lock().unwrap().extend((1..=10).map(|n| (OURS, event(n, "t", &n.to_string()))));
    let (mut seen, mut query, mut arriving) = (Vec::new(), "limit=3".to_owned(), 100);
    loop {
        let page = json(ask(&pool, with_query(ControlRoute::ListEvents, query)));
        seen.extend(page["data"].as_array().unwrap().iter().map(|event| event["payload"].as_u64().unwrap()));
        arriving += 1;
        store.events.lock().unwrap().push((OURS, event(arriving, "t", "0")));
        match page["next_cursor"].as_str() {
            Some(cursor) => query = format!("limit=3&cursor={cursor}"),
            None => break,
        }
    }
    assert_eq!(seen, [10, 9, 8, 7, 6, 5, 4, 3, 2, 1]);
}

#[test]
fn a_page_that_ends_exactly_at_the_last_event_has_no_next() {
    let (pool, store) = pool(FakeStore::new());
    store.events.lock().unwrap().extend((1..=3).map(|n| (OURS, event(n, "t", "[]"))));
    let page = json(ask(&pool, with_query(ControlRoute::ListEvents, "limit=3")));
    assert_eq!((page["data"].as_array().unwrap().len(), &page["next_cursor"]), (3, &Value::Null));
}

#[test]
fn filters_reach_the_store_and_a_bad_one_is_refused_before_it() {
    let (pool, store) = pool(FakeStore::new());
    store
        .events
        .lock()
        .unwrap()
        .extend((0..10).map(|n| (OURS, event(n, if n % 2 == 0 { "even" } else { "odd" }, &n.to_string()))));
    let query = "type=even&after=2026-01-01T00:00:00.000001Z&before=2026-01-01T01:00:00.000004%2B01:00";
    let page = json(ask(&pool, with_query(ControlRoute::ListEvents, query)));
    let payloads: Vec<_> =
        page["data"].as_array().unwrap().iter().map(|event| event["payload"].as_u64().unwrap()).collect();
    assert_eq!(payloads, [6, 4]);
    let refused = ask(&pool, with_query(ControlRoute::ListEvents, "typ=even")).unwrap_err();
    assert!(refused.detail().contains("`typ`"), "{refused:?}");
}

#[test]
fn keys_are_listed_in_their_exact_shape_newest_first_and_at_most_a_thousand() {
    let (pool, store) = pool(FakeStore::new());
    let at = Timestamp::parse_rfc3339("2026-01-01T00:00:00Z").unwrap();
    let mut used = key_info(key_id("usedKey00000"), OURS, at);
    (used.last_used_at, used.expires_at, used.revoked_at) = (Some(at), Some(at), Some(at));
    store.keys.lock().unwrap().extend([used, key_info(key_id("freshKey0000"), OURS, at)]);
    let time = "\"2026-01-01T00:00:00.000000Z\"";
    assert_eq!(
        text(ask(&pool, bare(ControlRoute::ListKeys))),
        format!(
            "{{\"data\":[{{\"id\":\"freshKey0000\",\"created_at\":{time},\"last_used_at\":null,\"expires_at\":null,\
             \"revoked_at\":null}},{{\"id\":\"usedKey00000\",\"created_at\":{time},\"last_used_at\":{time},\
             \"expires_at\":{time},\"revoked_at\":{time}}}],\"has_more\":false}}"
        )
    );
    store.keys.lock().unwrap().extend((0..2000).map(|n| key_info(key_id(&format!("k{n:011}")), OURS, at)));
    let listed = json(ask(&pool, bare(ControlRoute::ListKeys)));
    assert_eq!((listed["data"].as_array().unwrap().len(), &listed["has_more"]), (LIST_KEYS_MAX, &true.into()));
    assert_eq!(listed["data"][0]["id"], "k00000001999");
}

#[test]
fn a_rotation_shows_a_key_that_verifies_and_lets_the_callers_own_expire() {
    let (pool, store) = pool(FakeStore::new());
    let before = Timestamp::now();
    store.keys.lock().unwrap().push(key_info(caller(OURS).key, OURS, before));
    let shown = json(ask(&pool, with_body(ControlRoute::RotateKey, br#"{"grace_seconds":3600}"#)));
    assert_eq!(shown.as_object().unwrap().len(), 3);
    let clear = shown["api_key"].as_str().unwrap();
    assert_eq!(key::parse(clear.as_bytes()).unwrap().as_str(), shown["key_id"].as_str().unwrap());
    assert!(key::verify(clear.as_bytes(), &store.verifiers.lock().unwrap()[0]));
    let expires = Timestamp::parse_rfc3339(shown["previous_expires_at"].as_str().unwrap()).unwrap();
    assert!(expires >= before.plus(Duration::from_secs(3600)) && expires < before.plus(Duration::from_secs(3660)));
    assert_eq!(store.keys.lock().unwrap()[0].expires_at, Some(expires));
    assert_eq!(json(ask(&pool, bare(ControlRoute::ListKeys)))["data"][0]["id"], shown["key_id"]);
}

#[test]
fn a_refused_rotation_changes_nothing() {
    let (pool, store) = pool(FakeStore::new());
    store.keys.lock().unwrap().push(key_info(caller(OURS).key, OURS, Timestamp::now()));
    for body in ["{", "[]", r#"{"grace":1}"#, r#"{"grace_seconds":2592001}"#] {
        assert_eq!(ask(&pool, with_body(ControlRoute::RotateKey, body)).unwrap_err().row().status, 400, "{body}");
    }
    let keys = store.keys.lock().unwrap();
    assert_eq!((keys.len(), keys[0].expires_at), (1, None));
}

#[test]
fn a_caller_may_revoke_its_own_last_key_and_then_cannot_rotate_it() {
    let (pool, store) = pool(FakeStore::new());
    store.keys.lock().unwrap().push(key_info(caller(OURS).key, OURS, Timestamp::now()));
    for _ in 0..2 {
        let reply = ask(&pool, bare(ControlRoute::DeleteKey(caller(OURS).key))).unwrap();
        assert_eq!((reply.status, reply.body.len()), (204, 0));
    }
    assert!(store.keys.lock().unwrap()[0].revoked_at.is_some());
    assert_eq!(ask(&pool, bare(ControlRoute::RotateKey)).unwrap_err(), Problem::InvalidApiKey);
    assert_eq!(ask(&pool, bare(ControlRoute::DeleteKey(key_id("unknownKey00")))).unwrap_err(), not_found::KEY);
}

#[test]
fn each_store_error_has_its_answer() {
    for (error, problem) in [
        (StoreError::Unavailable("away".into()), Problem::StoreUnavailable),
        (StoreError::Misconfigured("no table".into()), Problem::StoreUnavailable),
        (StoreError::RowRefused(millrace_store::DatabaseError::new("22P02", "22P02")), Problem::Internal),
        (Rejection::KeyNotValid(key_id("unknownKey00")).into(), Problem::InvalidApiKey),
        (Rejection::NoSuchOrganization("gone".into()).into(), Problem::InvalidApiKey),
        (Rejection::KeyIdTaken.into(), Problem::Internal),
    ] {
        let (pool, _) = pool(FakeStore::with_hook(move || Err(error.clone())));
        for request in [
            bare(ControlRoute::GetEvent(EventId(Uuid::nil()))),
            bare(ControlRoute::ListEvents),
            bare(ControlRoute::ListKeys),
            bare(ControlRoute::RotateKey),
            bare(ControlRoute::DeleteKey(key_id("anyKey000000"))),
        ] {
            assert_eq!(ask(&pool, request).unwrap_err(), problem);
        }
    }
}

#[test]
fn a_panicking_handler_costs_its_request_and_no_thread() {
    let (pool, _) = pool(FakeStore::with_hook(|| panic!("a bug in the store")));
    for _ in 0..CONTROL_WORKERS * 5 {
        assert_eq!(ask(&pool, bare(ControlRoute::ListKeys)).unwrap_err(), Problem::Internal);
    }
}

/// A pool with one thread whose store waits, at every call, for a word from the test.
fn held_pool(queue_max: usize) -> (ControlPool, Receiver<()>, Sender<()>) {
    let (entered, entries) = unbounded();
    let (go, gate) = bounded(queue_max * 4);
    let hook = move || {
        entered.send(()).unwrap();
        // The test's end lets everything through.
        let _ = gate.recv();
        Ok(())
    };
    let store = Arc::new(FakeStore::with_hook(hook));
    (ControlPool::start(store, Metrics::new(0), CHEAP, management(), 1, queue_max).unwrap(), entries, go)
}

#[test]
fn metrics_are_rendered_on_a_thread_of_their_own_while_all_others_wait_for_the_database() {
    let metrics = Metrics::new(0);
    let (rendered, on) = unbounded();
    metrics.set_queue(1, move || {
        rendered.send(std::thread::current().name().unwrap_or_default().to_owned()).unwrap();
        0
    });
    let (entered, entries) = unbounded();
    let (go, gate) = bounded::<()>(0);
    let store = FakeStore::with_hook(move || {
        entered.send(()).unwrap();
        let _ = gate.recv();
        Ok(())
    });
    let pool = ControlPool::start(Arc::new(store), metrics, CHEAP, management(), 1, 8).unwrap();
    let held = [list_keys(OURS), list_events(OURS)].map(|job| pool.submit(job).unwrap());
    for _ in &held {
        entries.recv_timeout(Duration::from_secs(20)).expect("both threads took a job");
    }
    while on.try_recv().is_ok() {}
    let page = wait(pool.metrics_page().unwrap());
    assert!(page.starts_with(b"# HELP "));
    assert_eq!(on.try_iter().collect::<Vec<_>>(), ["control-metrics"]);
    drop(go);
    for answered in held {
        assert_eq!(wait(answered).unwrap().status, 200);
    }
}

fn list_keys(org: OrgId) -> Job {
    Job { caller: caller(org), request: bare(ControlRoute::ListKeys) }
}

fn list_events(org: OrgId) -> Job {
    Job { caller: caller(org), request: bare(ControlRoute::ListEvents) }
}

#[test]
fn one_organisation_fills_half_of_the_queue_and_another_still_gets_in() {
    let (pool, entries, go) = held_pool(8);
    let ours: Vec<_> = (0..4).map(|_| pool.submit(list_events(OURS)).unwrap()).collect();
    assert_eq!(pool.submit(list_events(OURS)).unwrap_err(), Problem::TooManyWaiting);
    // Another's slot in the table: the first organisation that does not share ours.
    let other = (2..).map(|n| OrgId(Uuid::from_u128(n))).find_map(|org| pool.submit(list_events(org)).ok()).unwrap();
    entries.recv_timeout(Duration::from_secs(10)).expect("a thread took the first job");
    for _ in 0..5 {
        go.send(()).unwrap();
    }
    for answered in ours.into_iter().chain([other]) {
        assert_eq!(wait(answered).unwrap().status, 200);
    }
    go.send(()).unwrap();
    assert_eq!(ask(&pool, bare(ControlRoute::ListEvents)).unwrap().status, 200, "the permits came back");
}

#[test]
fn a_full_queue_is_a_clear_no_whoever_filled_it() {
    let (pool, _entries, go) = held_pool(4);
    let taken: Vec<_> = (1..200).map(|n| pool.submit(list_events(OrgId(Uuid::from_u128(n))))).collect();
    assert_eq!(taken.iter().filter(|answer| answer.is_ok()).count(), 4);
    // Two that share a slot share what is left, before all is taken.
    let refusals = [Problem::ControlBusy, Problem::TooManyWaiting];
    assert!(taken.iter().filter_map(|answer| answer.as_ref().err()).all(|no| refusals.contains(no)));
    assert_eq!(*taken.last().unwrap().as_ref().unwrap_err(), Problem::ControlBusy);
    drop(go);
    for answered in taken.into_iter().flatten() {
        assert_eq!(wait(answered).unwrap().status, 200);
    }
}

#[test]
fn an_organisation_has_one_thread_and_the_routes_of_keys_have_their_own() {
    // The first call waits, and those after it do not.
    let (entered, entries) = unbounded();
    let (go, gate) = bounded::<()>(0);
    let is_first = std::sync::atomic::AtomicBool::new(true);
    let store = FakeStore::with_hook(move || {
        if is_first.swap(false, std::sync::atomic::Ordering::SeqCst) {
            entered.send(()).unwrap();
            let _ = gate.recv();
        }
        Ok(())
    });
    let (pool, _) = pool(store);
    let mut waiting: Vec<_> = (0..3).map(|_| pool.submit(list_events(OURS)).unwrap()).collect();
    entries.recv_timeout(Duration::from_secs(10)).expect("a thread took the first job");
    // There is a second thread, and it is not for ours.
    assert_eq!(ask_as(&pool, THEIRS, bare(ControlRoute::ListEvents)).unwrap().status, 200);
    assert_eq!(ask(&pool, bare(ControlRoute::ListKeys)).unwrap().status, 200);
    assert_eq!(ask(&pool, bare(ControlRoute::DeleteKey(key_id("unknownKey00")))).unwrap_err(), not_found::KEY);
    assert!(waiting.iter_mut().all(|answered| answered.try_recv().unwrap().is_none()), "ours wait for their first");
    drop(go);
    for answered in waiting {
        assert_eq!(wait(answered).unwrap().status, 200);
    }
}

#[test]
fn a_job_nobody_waits_for_any_more_is_not_begun() {
    let (pool, entries, go) = held_pool(8);
    let first = pool.submit(list_keys(OURS)).unwrap();
    entries.recv_timeout(Duration::from_secs(10)).expect("a thread took the first job");
    let abandoned = pool.submit(Job { caller: caller(OURS), request: bare(ControlRoute::RotateKey) }).unwrap();
    let last = pool.submit(list_keys(OURS)).unwrap();
    drop(abandoned);
    drop(go);
    assert_eq!(wait(first).unwrap().status, 200);
    assert_eq!(wait(last).unwrap().status, 200);
    assert_eq!(entries.try_iter().count(), 1, "the store saw the first and the last");
}

#[test]
fn unsent_replies_are_bounded_for_reads_and_a_change_is_always_told() {
    let (pool, store) = pool(FakeStore::new());
    let large = format!("\"{}\"", "x".repeat(10 * 1024 * 1024));
    store.events.lock().unwrap().push((OURS, event(1, "t", &large)));
    store.keys.lock().unwrap().push(key_info(caller(OURS).key, OURS, Timestamp::now()));
    let get = || ask(&pool, bare(ControlRoute::GetEvent(EventId(Uuid::from_u128(1)))));
    let unsent: Vec<Reply> = (0..3).map(|_| get().unwrap()).collect();
    assert_eq!(get().unwrap_err(), Problem::TooManyWaiting, "a fourth is over 32 MiB");
    assert_eq!(ask(&pool, bare(ControlRoute::RotateKey)).unwrap().status, 200);
    drop(unsent);
    assert_eq!(get().unwrap().status, 200);
}

#[test]
fn when_the_pool_goes_its_threads_finish_what_is_queued_and_end() {
    let store = Arc::new(FakeStore::new());
    let pool = ControlPool::start(store.clone(), Metrics::new(0), CHEAP, management(), CONTROL_WORKERS, 8).unwrap();
    let queued: Vec<_> = (0..4).map(|_| pool.submit(list_keys(OURS)).unwrap()).collect();
    drop(pool);
    for answered in queued {
        assert_eq!(wait(answered).unwrap().status, 200);
    }
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while Arc::strong_count(&store) > 1 {
        assert!(std::time::Instant::now() < deadline, "the threads still hold the store");
        std::thread::yield_now();
    }
}

#[test]
fn debug_shows_no_secret() {
    let (pool, store) = pool(FakeStore::new());
    store.keys.lock().unwrap().push(key_info(caller(OURS).key, OURS, Timestamp::now()));
    let shown = format!("{:?}", ask(&pool, bare(ControlRoute::RotateKey)).unwrap());
    assert!(!shown.contains("mr_") && shown.contains("bytes"), "{shown}");
}

#[test]
fn a_store_that_is_away_costs_one_line_and_not_one_a_request() {
    let lines = Arc::new(Mutex::new(0));
    let handlers = Handlers {
        store: Arc::new(FakeStore::with_hook(|| Err(StoreError::Unavailable("away".into())))),
        metrics: Metrics::new(0),
        argon2: CHEAP,
        management: management(),
        own_changes: OwnChanges::default(),
        failure_log: FailureLog::default(),
    };
    let writer = CountLines(lines.clone());
    let log = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
    tracing::subscriber::with_default(log, || {
        for _ in 0..50 {
            assert_eq!(handlers.answer(list_keys(OURS)), Err(Problem::StoreUnavailable));
        }
    });
    assert_eq!(*lines.lock().unwrap(), 1);
}

#[derive(Clone)]
struct CountLines(Arc<Mutex<usize>>);

impl std::io::Write for CountLines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        *self.0.lock().unwrap() += bytes.split(|byte| *byte == b'\n').count() - 1;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
