//! Endpoints and deliveries through the room's door: what a client sees, what the store and the hook get. The routes on
//! real stores are in `tests/it/webhook_routes`.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use uuid::Uuid;

use millrace_base::clock::Timestamp;
use millrace_base::event::{DeliveryId, EndpointId, EventId};
use millrace_base::limits;
use millrace_store::webhooks::{Attempt, DeliveryRecord, DeliveryStatus, PlannedDelivery};

use super::fake_store::{FakeStore, management_telling};
use super::fake_webhooks::pending;
use super::tests::{CHEAP, OURS, THEIRS, ask_as, bare, with_body, with_query};
use super::*;

/// A pool, its store, and the organisations that the hook was told of.
struct Room {
    pool: ControlPool,
    store: Arc<FakeStore>,
    told: Arc<Mutex<Vec<OrgId>>>,
}

impl Room {
    fn new() -> Self {
        let (store, told) = (Arc::new(FakeStore::new()), Arc::new(Mutex::new(Vec::new())));
        let hook = Arc::clone(&told);
        let management = management_telling(move |org| hook.lock().unwrap().push(org));
        let pool = ControlPool::start(store.clone(), Metrics::new(0), CHEAP, management, 2, 8).unwrap();
        Self { pool, store, told }
    }

    fn ask(&self, request: Request) -> Result<(u16, Value), Problem> {
        let reply = ask_as(&self.pool, OURS, request)?;
        let body = if reply.body.is_empty() { Value::Null } else { serde_json::from_slice(&reply.body).unwrap() };
        Ok((reply.status, body))
    }

    fn create(&self, body: &Value) -> Value {
        let (status, endpoint) = self.ask(with_body(ControlRoute::CreateEndpoint, body.to_string())).unwrap();
        assert_eq!(status, 201);
        endpoint
    }

    /// The fields that a refusal names.
    fn fields_at_fault(&self, request: Request) -> Vec<String> {
        match self.ask(request) {
            Err(Problem::InvalidEndpoint(errors)) => errors.into_iter().map(|e| e.field.into_owned()).collect(),
            other => panic!("{other:?}"),
        }
    }

    fn told(&self) -> Vec<OrgId> {
        std::mem::take(&mut self.told.lock().unwrap())
    }
}

fn id_of(endpoint: &Value) -> EndpointId {
    EndpointId(endpoint["id"].as_str().unwrap().parse().unwrap())
}

fn some_endpoint(room: &Room) -> EndpointId {
    let id = id_of(&room.create(&json!({"url": "https://example.com/hook"})));
    room.told();
    id
}

fn ended(org: OrgId, endpoint: EndpointId, status: DeliveryStatus) -> DeliveryRecord {
    let [id, event] = [Uuid::now_v7(), Uuid::now_v7()];
    let planned = PlannedDelivery { id: DeliveryId(id), event: EventId(event), endpoint, org, lease_until: None };
    let mut record = pending(&planned);
    (record.delivery.status, record.delivery.next_attempt_at) = (status, None);
    record
}

#[test]
fn an_endpoint_is_made_in_its_exact_shape_and_its_secret_shown_once() {
    let room = Room::new();
    let made = ask_as(
        &room.pool,
        OURS,
        with_body(
            ControlRoute::CreateEndpoint,
            br#"{"url":"https://EXAMPLE.com/h","description":"\"d\"","event_types":["a","b.*"],
                "headers":{"X-B":"2","X-A":"1"},"rate_limit_per_second":5}"#,
        ),
    )
    .unwrap();
    assert_eq!(made.status, 201);
    let text = String::from_utf8(made.body).unwrap();
    let endpoint: Value = serde_json::from_str(&text).unwrap();
    let [id, at, secret] = ["id", "created_at", "secret"].map(|name| endpoint[name].as_str().unwrap());
    let document = format!(
        r#"{{"id":"{id}","url":"https://example.com/h","description":"\"d\"","event_types":["a","b.*"],"headers":{{"X-B":"2","X-A":"1"}},"enabled":true,"disabled_reason":null,"rate_limit_per_second":5,"created_at":"{at}""#
    );
    assert_eq!(text, format!(r#"{document},"secret":"{secret}"}}"#));
    assert_eq!(room.told(), [OURS]);
    let stored = room.store.webhooks.endpoints.lock().unwrap()[0].clone();
    let secrets = &super::fake_store::management().secrets;
    assert_eq!(*secrets.open(stored.id, &stored.secret).unwrap().reveal(), secret);
    for request in
        [bare(ControlRoute::GetEndpoint(stored.id)), with_body(ControlRoute::UpdateEndpoint(stored.id), b"{}")]
    {
        let shown = String::from_utf8(ask_as(&room.pool, OURS, request).unwrap().body).unwrap();
        assert_eq!(shown, format!("{document}}}"));
    }
    let (_, listed) = room.ask(bare(ControlRoute::ListEndpoints)).unwrap();
    assert_eq!(listed["data"][0]["id"], id);
    assert!(!listed.to_string().contains("whsec_"));
}

#[test]
fn a_given_secret_is_kept_and_a_wrong_one_is_not_said_back() {
    let room = Room::new();
    let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    assert_eq!(room.create(&json!({"url": "https://example.com", "secret": secret}))["secret"], secret);
    let body = json!({"url": "https://example.com", "secret": "whsec_hunter2"}).to_string().into_bytes();
    let Err(problem) = room.ask(with_body(ControlRoute::CreateEndpoint, body)) else { panic!("a wrong secret") };
    assert!(!format!("{problem:?}").contains("hunter2"));
}

#[test]
fn every_field_at_fault_is_named_at_once() {
    let room = Room::new();
    let body = json!({
        "url": "http://10.0.0.1/",
        "description": "a\nb",
        "event_types": [],
        "headers": {"Host": "x"},
        "enabled": "yes",
        "rate_limit_per_second": 0,
        "secret": 5,
        "uri": 1,
    });
    let body = body.to_string().into_bytes();
    let expected =
        ["uri", "url", "description", "event_types", "headers", "enabled", "rate_limit_per_second", "secret"];
    assert_eq!(room.fields_at_fault(with_body(ControlRoute::CreateEndpoint, body)), expected);
    assert_eq!(room.fields_at_fault(with_body(ControlRoute::CreateEndpoint, b"{}")), ["url"]);
    assert_eq!(room.fields_at_fault(with_body(ControlRoute::CreateEndpoint, b"[]")), ["", "url"]);
    let id = some_endpoint(&room);
    let body = br#"{"url":null,"enabled":null,"secret":"x","id":"x"}"#.to_vec();
    assert_eq!(
        room.fields_at_fault(with_body(ControlRoute::UpdateEndpoint(id), body)),
        ["secret", "id", "url", "enabled"]
    );
    let body = br#"{"overlap_seconds":2592001,"secret":"x","grace":1}"#.to_vec();
    assert_eq!(
        room.fields_at_fault(with_body(ControlRoute::RotateEndpointSecret(id), body)),
        ["grace", "secret", "overlap_seconds"]
    );
    for (body, field) in [
        (&b"{}"[..], "since"),
        (br#"{"until":"2026-01-01T00:00:00Z"}"#, "since"),
        (br#"{"since":"soon","until":"2026-01-01T00:00:00Z"}"#, "since"),
        (br#"{"since":"2026-01-02T00:00:00Z","until":"2026-01-01T00:00:00Z"}"#, "until"),
    ] {
        assert_eq!(room.fields_at_fault(with_body(ControlRoute::RecoverEndpoint(id), body)), [field]);
    }
    for route in [ControlRoute::CreateEndpoint, ControlRoute::UpdateEndpoint(EndpointId(Uuid::nil()))] {
        let refused = room.ask(with_body(route, " \n")).unwrap_err();
        assert!(matches!(refused, Problem::InvalidJson { .. }), "{refused:?}");
    }
    assert_eq!(room.told(), [], "nothing changed");
}

#[test]
fn a_change_leaves_what_it_does_not_name_and_clears_what_is_null() {
    let room = Room::new();
    let full = json!({"url": "https://example.com/", "description": "d", "event_types": ["a"], "headers": {"X-A": "1"},
        "rate_limit_per_second": 5});
    let made = room.create(&full);
    let id = id_of(&made);
    room.told();
    let change = |body: &Value| room.ask(with_body(ControlRoute::UpdateEndpoint(id), body.to_string())).unwrap().1;
    let disabled = change(&json!({"enabled": false}));
    assert_eq!((&disabled["enabled"], &disabled["description"]), (&json!(false), &json!("d")));
    assert_eq!(disabled["event_types"], json!(["a"]));
    let cleared =
        change(&json!({"description": null, "event_types": null, "headers": null, "rate_limit_per_second": null}));
    assert_eq!((&cleared["description"], &cleared["event_types"]), (&json!(""), &Value::Null));
    assert_eq!((&cleared["headers"], &cleared["rate_limit_per_second"]), (&json!({}), &Value::Null));
    assert_eq!((&cleared["enabled"], &cleared["url"]), (&json!(false), &json!("https://example.com/")));
    assert_eq!(room.told(), [OURS, OURS]);
}

#[test]
fn one_endpoint_too_many_is_refused() {
    let room = Room::new();
    for _ in 0..limits::ENDPOINTS_PER_ORG_MAX {
        some_endpoint(&room);
    }
    let refused = room.ask(with_body(ControlRoute::CreateEndpoint, br#"{"url":"https://example.com"}"#)).unwrap_err();
    assert_eq!(refused, Problem::TooManyEndpoints);
    assert_eq!(room.told(), []);
}

#[test]
fn another_organisations_endpoints_and_deliveries_are_not_there() {
    let room = Room::new();
    let id = some_endpoint(&room);
    room.store.webhooks.endpoints.lock().unwrap()[0].org = THEIRS;
    let theirs = ended(THEIRS, id, DeliveryStatus::Failed);
    let (delivery, event) = (theirs.delivery.id, theirs.delivery.event);
    room.store.webhooks.deliveries.lock().unwrap().push(theirs);
    for request in [
        bare(ControlRoute::GetEndpoint(id)),
        with_body(ControlRoute::UpdateEndpoint(id), br#"{"enabled":false}"#),
        bare(ControlRoute::DeleteEndpoint(id)),
        bare(ControlRoute::RotateEndpointSecret(id)),
        bare(ControlRoute::TestEndpoint(id)),
        with_body(ControlRoute::RecoverEndpoint(id), br#"{"since":"2026-01-01T00:00:00Z"}"#),
        bare(ControlRoute::RetryDelivery(delivery)),
        bare(ControlRoute::ListEventDeliveries(event)),
    ] {
        assert_eq!(room.ask(request).unwrap_err().row().status, 404);
    }
    for request in [bare(ControlRoute::ListEndpoints), bare(ControlRoute::ListDeliveries)] {
        assert_eq!(room.ask(request).unwrap().1, json!({"data": [], "next_cursor": null}));
    }
    assert_eq!(room.told(), []);
}

#[test]
fn a_rotation_keeps_the_old_secret_for_the_overlap() {
    let room = Room::new();
    let made = room.create(&json!({"url": "https://example.com"}));
    let id = id_of(&made);
    room.told();
    for (body, overlap) in
        [(&b""[..], limits::SECRET_OVERLAP_DEFAULT), (br#"{"overlap_seconds":60}"#, Duration::from_secs(60))]
    {
        let before = Timestamp::now();
        let old = room.store.webhooks.endpoints.lock().unwrap()[0].secret.clone();
        let (status, rotated) = room.ask(with_body(ControlRoute::RotateEndpointSecret(id), body)).unwrap();
        assert_eq!((status, &rotated["id"]), (200, &made["id"]));
        assert_ne!(rotated["secret"], made["secret"]);
        let (previous, until) = room.store.webhooks.endpoints.lock().unwrap()[0].previous_secret.clone().unwrap();
        assert_eq!(previous, old);
        assert!(until >= before.plus(overlap) && until < before.plus(overlap + Duration::from_secs(60)));
    }
    assert_eq!(room.told(), [OURS, OURS]);
}

#[test]
fn a_test_stores_an_event_for_its_endpoint_and_a_disabled_one_is_refused() {
    let room = Room::new();
    let id = some_endpoint(&room);
    let (status, sent) = room.ask(bare(ControlRoute::TestEndpoint(id))).unwrap();
    assert_eq!((status, sent.as_object().unwrap().len()), (202, 2));
    let event = EventId(sent["event_id"].as_str().unwrap().parse().unwrap());
    let (_, stored) = room.ask(bare(ControlRoute::GetEvent(event))).unwrap();
    assert_eq!(stored["type"], "millrace.test");
    assert_eq!(stored["payload"]["endpoint_id"], id.to_string());
    let (_, deliveries) = room.ask(bare(ControlRoute::ListEventDeliveries(event))).unwrap();
    assert_eq!(deliveries["data"][0]["id"], sent["delivery_id"]);
    assert_eq!(deliveries["data"][0]["endpoint_id"], id.to_string());
    room.ask(with_body(ControlRoute::UpdateEndpoint(id), br#"{"enabled":false}"#)).unwrap();
    assert_eq!(room.ask(bare(ControlRoute::TestEndpoint(id))).unwrap_err(), Problem::EndpointDisabled);
}

#[test]
fn a_recovery_stops_at_its_bound_and_says_so() {
    let room = Room::new();
    let id = some_endpoint(&room);
    let many = limits::RECOVER_DELIVERIES_MAX + 5;
    {
        let mut deliveries = room.store.webhooks.deliveries.lock().unwrap();
        deliveries.extend(
            (0..many)
                .map(|n| ended(OURS, id, if n % 2 == 0 { DeliveryStatus::Failed } else { DeliveryStatus::Blocked })),
        );
        deliveries.push(ended(OURS, id, DeliveryStatus::Delivered));
        deliveries.push(ended(OURS, EndpointId(Uuid::nil()), DeliveryStatus::Failed));
    }
    let recover = |body: &str| room.ask(with_body(ControlRoute::RecoverEndpoint(id), body)).unwrap();
    let past = r#"{"since":"2020-01-01T00:00:00Z","until":"2020-01-02T00:00:00Z"}"#;
    assert_eq!(recover(past), (202, json!({"recovered": 0, "more": false})));
    let since = r#"{"since":"2020-01-01T00:00:00Z"}"#;
    assert_eq!(recover(since), (202, json!({"recovered": limits::RECOVER_DELIVERIES_MAX, "more": true})));
    assert_eq!(recover(since), (202, json!({"recovered": 5, "more": false})));
}

#[test]
fn a_delivery_is_shown_in_its_exact_shape_and_can_be_asked_for_again() {
    let room = Room::new();
    let id = some_endpoint(&room);
    let mut record = ended(OURS, id, DeliveryStatus::Failed);
    let at = Timestamp::parse_rfc3339("2026-01-01T00:00:00Z").unwrap();
    let attempt = |number, status_code, error: Option<&str>, body: Option<&str>| Attempt {
        delivery: record.delivery.id,
        number,
        at,
        status_code,
        error: error.map(str::to_owned),
        latency: Duration::from_micros(12_900),
        response_body: body.map(str::to_owned),
    };
    record.attempts = vec![attempt(1, None, Some("timeout"), None), attempt(2, Some(500), None, Some("\"\u{1}é"))];
    room.store.webhooks.deliveries.lock().unwrap().push(record.clone());
    let attempts = r#"[{"at":"2026-01-01T00:00:00.000000Z","status_code":null,"error":"timeout","error_detail":null,"latency_ms":12,"response_body":null},{"at":"2026-01-01T00:00:00.000000Z","status_code":500,"error":null,"error_detail":null,"latency_ms":12,"response_body":"\"\u0001é"}]"#;
    let delivery = record.delivery;
    let ids = format!(r#"{{"id":"{}","event_id":"{}","endpoint_id":"{id}""#, delivery.id, delivery.event);
    let shown = |request| String::from_utf8(ask_as(&room.pool, OURS, request).unwrap().body).unwrap();
    assert_eq!(
        shown(with_query(ControlRoute::ListDeliveries, format!("status=failed&endpoint_id={id}"))),
        format!(
            r#"{{"data":[{ids},"status":"failed","attempts":{attempts},"next_attempt_at":null}}],"next_cursor":null}}"#
        )
    );
    let retried = shown(bare(ControlRoute::RetryDelivery(delivery.id)));
    assert!(
        retried.starts_with(&format!(r#"{ids},"status":"pending","attempts":{attempts},"next_attempt_at":"20"#)),
        "{retried}"
    );
    assert_eq!(room.ask(bare(ControlRoute::RetryDelivery(delivery.id))).unwrap().0, 202);
    assert_eq!(room.ask(with_query(ControlRoute::ListDeliveries, "status=failed")).unwrap().1["data"], json!([]));
}

/// Follows a list to its end; the ids in it.
fn walk(room: &Room, limit: usize, route: ControlRoute) -> Vec<String> {
    let (mut seen, mut query) = (Vec::new(), format!("limit={limit}"));
    loop {
        let (_, page) = room.ask(with_query(route, query)).unwrap();
        let ids = page["data"].as_array().unwrap();
        assert!(ids.len() <= limit);
        seen.extend(ids.iter().map(|item| item["id"].as_str().unwrap().to_owned()));
        let Some(cursor) = page["next_cursor"].as_str() else { return seen };
        query = format!("limit={limit}&cursor={cursor}");
    }
}

#[test]
fn every_list_has_pages_that_meet() {
    let room = Room::new();
    let mut endpoints: Vec<String> = (0..7).map(|_| some_endpoint(&room).to_string()).collect();
    endpoints.reverse();
    let event = EventId(Uuid::now_v7());
    let mut deliveries: Vec<String> = (0..7)
        .map(|_| {
            let mut record = ended(OURS, EndpointId(Uuid::now_v7()), DeliveryStatus::Delivered);
            record.delivery.event = event;
            let id = record.delivery.id.to_string();
            room.store.webhooks.deliveries.lock().unwrap().push(record);
            id
        })
        .collect();
    deliveries.reverse();
    for limit in [1, 2, 3, 7, 100] {
        assert_eq!(walk(&room, limit, ControlRoute::ListEndpoints), endpoints);
        assert_eq!(walk(&room, limit, ControlRoute::ListDeliveries), deliveries);
        assert_eq!(walk(&room, limit, ControlRoute::ListEventDeliveries(event)), deliveries);
    }
}

#[test]
fn a_page_is_cut_by_what_it_weighs_as_written() {
    let room = Room::new();
    // A control character is six bytes in JSON.
    let answer = "\u{1}".repeat(limits::ANSWER_BODY_SHOWN_BYTES_MAX);
    let mut expected = Vec::new();
    for _ in 0..40 {
        let mut record = ended(OURS, EndpointId(Uuid::now_v7()), DeliveryStatus::Failed);
        let attempt = Attempt {
            delivery: record.delivery.id,
            number: 1,
            at: Timestamp::now(),
            status_code: Some(500),
            error: None,
            latency: Duration::ZERO,
            response_body: Some(answer.clone()),
        };
        record.attempts = vec![attempt; limits::DELIVERY_ATTEMPTS_SHOWN_MAX as usize];
        expected.push(record.delivery.id.to_string());
        room.store.webhooks.deliveries.lock().unwrap().push(record);
    }
    expected.reverse();
    let first = ask_as(&room.pool, OURS, bare(ControlRoute::ListDeliveries)).unwrap();
    assert!(first.body.len() <= limits::LIST_BYTES_MAX + 128, "{} bytes", first.body.len());
    drop(first);
    assert_eq!(walk(&room, 1000, ControlRoute::ListDeliveries), expected);
}

#[test]
fn an_event_without_deliveries_is_told_from_one_that_is_not_there() {
    let room = Room::new();
    let event = super::tests::event(1, "t", "1");
    room.store.events.lock().unwrap().push((OURS, event.clone()));
    let asked = room.ask(bare(ControlRoute::ListEventDeliveries(event.id))).unwrap().1;
    assert_eq!(asked, json!({"data": [], "next_cursor": null}));
    let absent = bare(ControlRoute::ListEventDeliveries(EventId(Uuid::nil())));
    assert_eq!(room.ask(absent).unwrap_err().row().status, 404);
}

#[test]
fn each_store_error_has_its_answer() {
    let id = EndpointId(Uuid::nil());
    for (error, problem) in [
        (StoreError::Unavailable("away".into()), Problem::StoreUnavailable),
        (StoreError::Misconfigured("no table".into()), Problem::StoreUnavailable),
        (StoreError::RowRefused(millrace_store::DatabaseError::new("22P02", "22P02")), Problem::Internal),
    ] {
        let store = Arc::new(FakeStore::with_hook(move || Err(error.clone())));
        let management = management_telling(|_| unreachable!("nothing changed"));
        let pool = ControlPool::start(store, Metrics::new(0), CHEAP, management, 2, 8).unwrap();
        for request in [
            with_body(ControlRoute::CreateEndpoint, br#"{"url":"https://example.com"}"#),
            bare(ControlRoute::ListEndpoints),
            bare(ControlRoute::GetEndpoint(id)),
            with_body(ControlRoute::UpdateEndpoint(id), b"{}"),
            bare(ControlRoute::DeleteEndpoint(id)),
            bare(ControlRoute::RotateEndpointSecret(id)),
            bare(ControlRoute::TestEndpoint(id)),
            with_body(ControlRoute::RecoverEndpoint(id), br#"{"since":"2026-01-01T00:00:00Z"}"#),
            bare(ControlRoute::ListDeliveries),
            bare(ControlRoute::ListEventDeliveries(EventId(Uuid::nil()))),
            bare(ControlRoute::RetryDelivery(DeliveryId(Uuid::nil()))),
        ] {
            assert_eq!(ask_as(&pool, OURS, request).unwrap_err(), problem);
        }
    }
}

#[test]
fn debug_shows_no_body() {
    let request = Request { query: "tip=hunter1".into(), ..with_body(ControlRoute::RotateKey, "hunter2") };
    assert_eq!(format!("{request:?}"), "Request { route: RotateKey, .. }");
}
