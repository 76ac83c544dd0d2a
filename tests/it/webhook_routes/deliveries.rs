//! Deliveries listed, made again one by one and by the range; test events.

use std::time::Duration;

use serde_json::{Value, json};
use uuid::Uuid;

use millrace_base::clock::Timestamp;
use millrace_base::event::{DeliveryId, EndpointId, Event, EventId, OrgId};
use millrace_store::Store;
use millrace_store::webhooks::{Attempt, AttemptResult, Next, PlannedDelivery};
use support::installation::Installation;
use support::on_both_stores;
use support::server::{Server, event};

use crate::webhook_routes::{Api, id_of, ids};

on_both_stores!(
    a_test_event_is_stored_for_its_endpoint_alone,
    deliveries_are_listed_by_event_status_and_endpoint,
    a_delivery_is_made_again,
    what_failed_is_recovered_by_the_range,
);

/// An organisation with two endpoints that want nothing, and the store beside its server.
struct World {
    api: Api,
    org: OrgId,
    endpoints: [EndpointId; 2],
    store: std::sync::Arc<dyn Store>,
    _server: Server,
}

impl World {
    fn on(installation: &Installation) -> Self {
        let server = installation.start(&[]);
        let (org, key) = server.organization("ours", "0");
        let mut api = Api { client: server.connect(), key };
        let body = json!({"url": "https://example.invalid/", "event_types": ["nothing.wants.this"]});
        let endpoints = [(); 2].map(|()| EndpointId(id_of(&api.create(&body)).parse().unwrap()));
        Self { api, org: OrgId(org.parse().unwrap()), endpoints, store: installation.store(), _server: server }
    }

    /// Stores an event with a delivery to each of the endpoints; nobody else may send it meanwhile.
    fn plan(&self, endpoints: &[EndpointId]) -> (EventId, Vec<PlannedDelivery>) {
        let id = EventId(Uuid::now_v7());
        let event = Event::new(id, self.org, Timestamp::now(), "t", None, b"1");
        let planned: Vec<PlannedDelivery> = endpoints
            .iter()
            .map(|endpoint| PlannedDelivery {
                id: DeliveryId(Uuid::now_v7()),
                event: id,
                endpoint: *endpoint,
                org: self.org,
                lease_until: Some(Timestamp::now().plus(Duration::from_secs(3600))),
            })
            .collect();
        self.store.store_events(&[event], &planned).unwrap();
        (id, planned)
    }

    /// Records an attempt, and what follows.
    fn attempt(&self, planned: &PlannedDelivery, next: Next) {
        let attempt = Attempt {
            delivery: planned.id,
            number: 1,
            at: Timestamp::parse_rfc3339("2026-01-01T00:00:00Z").unwrap(),
            status_code: Some(500),
            error: Some("timeout".to_owned()),
            latency: Duration::from_millis(12),
            response_body: Some("\"é\"\u{1}".to_owned()),
        };
        let lease = planned.lease_until.unwrap();
        assert_eq!(self.store.record(&[AttemptResult { attempt, lease, next }]).unwrap().changed, 1);
    }
}

fn a_test_event_is_stored_for_its_endpoint_alone(installation: &Installation) {
    let mut world = World::on(installation);
    let id = world.endpoints[0].to_string();
    let sent = world.api.get(202, "POST", &format!("/api/endpoints/{id}/test"), None);
    assert_eq!(sent.as_object().unwrap().len(), 2);
    let stored = world.api.get(200, "GET", &format!("/api/events/{}", sent["event_id"].as_str().unwrap()), None);
    assert_eq!((&stored["type"], &stored["payload"]["endpoint_id"]), (&json!("millrace.test"), &json!(id)));
    let of_event = format!("/api/events/{}/deliveries", sent["event_id"].as_str().unwrap());
    let deliveries = world.api.walk(&of_event, 10);
    assert_eq!((deliveries.len(), &deliveries[0]["id"]), (1, &sent["delivery_id"]));
    assert_eq!((&deliveries[0]["endpoint_id"], &deliveries[0]["event_id"]), (&json!(id), &sent["event_id"]));
    world.api.get(200, "PATCH", &format!("/api/endpoints/{id}"), Some(&json!({"enabled": false})));
    world.api.refused(409, "endpoint_disabled", "POST", &format!("/api/endpoints/{id}/test"), None);
}

fn deliveries_are_listed_by_event_status_and_endpoint(installation: &Installation) {
    let mut world = World::on(installation);
    let [first, second] = world.endpoints;
    let planned: Vec<(EventId, Vec<PlannedDelivery>)> = (0..5).map(|_| world.plan(&[first, second])).collect();
    for (at, (_, of_event)) in planned.iter().enumerate() {
        let next = [Next::Delivered, Next::Failed, Next::Blocked][at % 3];
        world.attempt(&of_event[0], next);
    }
    let newest_first = |wanted: &dyn Fn(usize, &PlannedDelivery) -> bool| -> Vec<String> {
        let all = planned.iter().enumerate().rev();
        all.flat_map(|(at, (_, of_event))| of_event.iter().rev().map(move |planned| (at, planned)))
            .filter(|(at, planned)| wanted(*at, planned))
            .map(|(_, planned)| planned.id.to_string())
            .collect()
    };
    let everything = newest_first(&|_, _| true);
    for limit in [1, 3, 10, 1000] {
        assert_eq!(ids(&world.api.walk("/api/deliveries", limit)), everything, "{limit}");
        let failed = newest_first(&|at, planned| planned.endpoint == first && at % 3 == 1);
        assert_eq!(ids(&world.api.walk("/api/deliveries?status=failed", limit)), failed);
        let to_second = newest_first(&|_, planned| planned.endpoint == second);
        assert_eq!(ids(&world.api.walk(&format!("/api/deliveries?endpoint_id={second}"), limit)), to_second);
        let blocked = format!("/api/deliveries?endpoint_id={first}&status=blocked");
        assert_eq!(
            ids(&world.api.walk(&blocked, limit)),
            newest_first(&|at, planned| planned.endpoint == first && at % 3 == 2)
        );
        let of_event = format!("/api/events/{}/deliveries", planned[2].0);
        assert_eq!(ids(&world.api.walk(&of_event, limit)), newest_first(&|at, _| at == 2));
    }
    let pending = format!("/api/deliveries?endpoint_id={second}&status=pending");
    let shown = &world.api.walk(&pending, 1000)[0];
    let due = Timestamp::parse_rfc3339(shown["next_attempt_at"].as_str().unwrap()).unwrap();
    assert!(due > Timestamp::now());
    assert_eq!((&shown["attempts"], shown.as_object().unwrap().len()), (&json!([]), 6));
    let failed = &world.api.walk("/api/deliveries?status=failed", 1000)[0];
    let expected = json!({
        "id": failed["id"], "event_id": planned[4].0.to_string(), "endpoint_id": first.to_string(), "status": "failed",
        "attempts": [{"at": "2026-01-01T00:00:00.000000Z", "status_code": 500, "error": "timeout", "error_detail": null, "latency_ms": 12,
            "response_body": "\"é\"\u{1}"}],
        "next_attempt_at": null,
    });
    assert_eq!(*failed, expected);

    // An event that nobody wanted has none; one that is not there is not found.
    let unwanted =
        world.api.client.request("POST", "/api/events", Some(&world.api.key), Some(event("e", None, "1").as_bytes()));
    let path = format!("/api/events/{}/deliveries", unwanted.id());
    support::server::eventually("the event is stored", || world.api.ask("GET", &path, None).status == 200);
    assert_eq!(world.api.walk(&path, 10), [] as [Value; 0]);
    for (query, name) in
        [("status=lost", "status"), ("endpoint_id=1", "endpoint_id"), ("limit=0", "limit"), ("x=1", "x")]
    {
        let refused = world.api.refused(400, "bad_request", "GET", &format!("/api/deliveries?{query}"), None);
        assert!(refused["detail"].as_str().unwrap().contains(&format!("`{name}`")), "{refused}");
    }
}

fn a_delivery_is_made_again(installation: &Installation) {
    let mut world = World::on(installation);
    for next in [Next::Delivered, Next::Failed, Next::Blocked] {
        let (event, planned) = world.plan(&world.endpoints[..1]);
        world.attempt(&planned[0], next);
        let before = Timestamp::now();
        let retried = world.api.get(202, "POST", &format!("/api/deliveries/{}/retry", planned[0].id), None);
        assert_eq!((&retried["id"], &retried["status"]), (&json!(planned[0].id.to_string()), &json!("pending")));
        assert_eq!(retried["attempts"][0]["error"], "timeout", "what was tried stays");
        let due = Timestamp::parse_rfc3339(retried["next_attempt_at"].as_str().unwrap()).unwrap();
        assert!((before..=Timestamp::now()).contains(&due));
        let listed = world.api.walk(&format!("/api/events/{event}/deliveries"), 10);
        assert_eq!((&listed[0]["id"], &listed[0]["status"]), (&retried["id"], &json!("pending")));
    }
}

fn what_failed_is_recovered_by_the_range(installation: &Installation) {
    let mut world = World::on(installation);
    let [first, second] = world.endpoints;
    let fail = |world: &World, next| {
        let (_, planned) = world.plan(&[first, second]);
        for planned in &planned {
            world.attempt(planned, next);
        }
    };
    fail(&world, Next::Failed);
    fail(&world, Next::Blocked);
    fail(&world, Next::Delivered);
    std::thread::sleep(Duration::from_millis(5));
    let middle = Timestamp::now();
    std::thread::sleep(Duration::from_millis(5));
    fail(&world, Next::Failed);
    let recover = format!("/api/endpoints/{first}/recover");
    let (early, middle) = ("2020-01-01T00:00:00Z", middle.to_rfc3339());
    for (since, until, recovered) in [
        (early, "2020-01-02T00:00:00Z", 0),
        (early, middle.as_str(), 2),
        (early, middle.as_str(), 0),
        (middle.as_str(), "2999-01-01T00:00:00Z", 1),
    ] {
        let answer = world.api.get(202, "POST", &recover, Some(&json!({"since": since, "until": until})));
        assert_eq!(answer, json!({"recovered": recovered, "more": false}), "{since} {until}");
    }
    let recover = format!("/api/endpoints/{second}/recover");
    let answer = world.api.get(202, "POST", &recover, Some(&json!({"since": early})));
    assert_eq!(answer["recovered"], 3, "until now, where no end is given");
}
