//! What waits by the ten thousand: it ends with its endpoint, gives way to others, and does not stay for ever.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;
use uuid::{NoContext, Uuid};

use millrace_base::clock::Timestamp;
use millrace_base::event::{DeliveryId, EndpointId, Event, EventId, OrgId};
use millrace_store::Store;
use millrace_store::webhooks::{Attempt, AttemptResult, Next, PlannedDelivery};
use support::installation::Installation;
use support::on_both_stores;
use support::receiver::{Receiver, Step, answer};
use support::server::eventually;

use crate::webhooks::fixture::{Tenant, has_status, start};

on_both_stores!(
    the_backlog_of_a_deleted_endpoint_fails_beside_others,
    a_retry_comes_in_time_beside_another_organisations_backlog,
    old_deliveries_are_deleted_after_a_start_and_pending_kept,
);

fn the_backlog_of_a_deleted_endpoint_fails_beside_others(installation: &Installation) {
    const BACKLOG: usize = 15_000;
    let receiver = Receiver::start(|_| answer(200, ""));
    let tenant = Tenant::new(installation, &[]);
    let slow = json!({ "rate_limit_per_second": 1, "event_types": ["slow"] });
    let doomed = tenant.endpoint(&receiver.url("/slow"), &slow);
    tenant.endpoint(&receiver.url("/quick"), &json!({ "event_types": ["quick"] }));
    for _ in 0..BACKLOG / 1000 {
        tenant.post_many(1000, "slow");
        tenant.server.drained();
    }
    let path = format!("/api/endpoints/{}", doomed["id"].as_str().expect("an id"));
    let deleted = tenant.server.connect().request("DELETE", &path, Some(&tenant.key), None);
    assert_eq!(deleted.status, 204);
    let quick = tenant.post_many(100, "quick");
    for id in quick.iter().step_by(33) {
        tenant.delivery(id, has_status("delivered"));
    }
    eventually("nothing waits any more", || {
        tenant.server.count("webhook_pending") == 0 && tenant.count("pending") == 0
    });
    let (failed, delivered) = (tenant.count("failed"), tenant.count("delivered"));
    assert_eq!(failed + delivered, BACKLOG + quick.len());
    assert!(failed > BACKLOG - 1000, "{failed}");
    let page = tenant.get("/api/deliveries?limit=1000&status=failed");
    for delivery in page["data"].as_array().expect("a list") {
        let attempts = delivery["attempts"].as_array().expect("a list");
        assert_eq!(attempts.last().expect("an attempt")["error"], "endpoint_deleted", "{delivery}");
    }
}

fn a_retry_comes_in_time_beside_another_organisations_backlog(installation: &Installation) {
    const BACKLOG: usize = 50_000;
    let (may_answer, tries) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let gate = Arc::clone(&may_answer);
    let busy = Arc::new(Receiver::forgetful(move |_| {
        vec![Step::Until(Arc::clone(&gate)), Step::Pause(Duration::from_millis(2)), answer(200, "").pop().unwrap()]
    }));
    // How much of the backlog had been sent at each attempt of the other.
    let (sent, seen_by) = (Arc::clone(&busy), Arc::clone(&tries));
    let counts: Arc<[AtomicUsize; 2]> = Arc::default();
    let noted = Arc::clone(&counts);
    let other = Receiver::start(move |_| {
        let n = seen_by.fetch_add(1, Ordering::SeqCst);
        if let Some(count) = noted.get(n) {
            count.store(sent.count(), Ordering::SeqCst);
        }
        answer(if n == 0 { 500 } else { 200 }, "")
    });
    let tenant = Tenant::new(installation, &["--queue-capacity", "60000"]);
    tenant.endpoint(&busy.url("/"), &json!({}));
    for _ in 0..BACKLOG / 1000 {
        tenant.post_many(1000, "t");
    }
    tenant.server.drained();
    let (_, key) = tenant.server.organization("other", "0");
    let made = tenant.server.post("/api/endpoints", &key, &json!({ "url": other.url("/") }).to_string());
    assert_eq!(made.status, 201);
    may_answer.store(true, Ordering::SeqCst);
    eventually("the backlog is being sent", || busy.count() > 500);
    crate::webhooks::fixture::post_many(&tenant.server, &key, 1, "t");
    eventually("the retry comes", || tries.load(Ordering::SeqCst) >= 2);
    let [first, second] = [0, 1].map(|n: usize| counts[n].load(Ordering::SeqCst));
    assert!(
        second < BACKLOG / 2,
        "{second} of the backlog were sent before the retry, {first} before the first attempt"
    );
}

fn old_deliveries_are_deleted_after_a_start_and_pending_kept(installation: &Installation) {
    const ENDED: usize = 7000;
    const DAY: u64 = 24 * 3600;
    let receiver = Receiver::start(|_| vec![Step::Hold]);
    let server = start(installation, &[]);
    let (org, key) = server.organization("old", "0");
    let org = OrgId(org.parse().expect("a UUID"));
    let mut tenant = Tenant { server, key };
    let endpoint = tenant.endpoint(&receiver.url("/"), &json!({}));
    let store = installation.store();
    let endpoint = EndpointId(endpoint["id"].as_str().expect("an id").parse().expect("a UUID"));
    assert_eq!(tenant.server.stop(), 0);
    // Beside them some that wait, of every age; a year away, so that nobody claims them.
    let lease = Timestamp::now().plus(Duration::from_secs(3600));
    let waiting = planned(&*store, org, endpoint, 400 * DAY, 6000, lease);
    let ended = planned(&*store, org, endpoint, 40 * DAY, ENDED, lease);
    let young = planned(&*store, org, endpoint, 20 * DAY, 10, lease);
    for ids in ended.chunks(1000).chain([&young[..]]) {
        let results: Vec<AttemptResult> = ids.iter().map(|id| delivered(*id, lease)).collect();
        assert_eq!(store.record(&results).expect("it answers").changed, ids.len() as u64);
    }
    drop(store);
    let tenant = Tenant { server: start(installation, &[]), key: tenant.key };
    eventually("what is too old is gone", || tenant.count("delivered") == young.len());
    assert_eq!(tenant.count("pending"), waiting.len());
}

/// Deliveries that were planned so long ago.
fn planned(
    store: &dyn Store,
    org: OrgId,
    endpoint: EndpointId,
    seconds: u64,
    count: usize,
    lease: Timestamp,
) -> Vec<DeliveryId> {
    let made = Timestamp::now().as_micros() as u64 / 1_000_000 - seconds;
    let event = || Event::new(EventId(Uuid::now_v7()), org, Timestamp::now(), "t", None, b"1");
    let events: Vec<Event> = (0..count).map(|_| event()).collect();
    let plan = |event: &Event| PlannedDelivery {
        id: DeliveryId(Uuid::new_v7(uuid::Timestamp::from_unix(NoContext, made, 0))),
        event: event.id,
        endpoint,
        org,
        lease_until: Some(lease),
    };
    let planned: Vec<PlannedDelivery> = events.iter().map(plan).collect();
    for (events, planned) in events.chunks(1000).zip(planned.chunks(1000)) {
        assert_eq!(store.store_events(events, planned).expect("it answers").deliveries.len(), planned.len());
    }
    planned.iter().map(|planned| planned.id).collect()
}

fn delivered(delivery: DeliveryId, lease: Timestamp) -> AttemptResult {
    let attempt = Attempt {
        delivery,
        number: 1,
        at: Timestamp::now(),
        status_code: Some(200),
        error: None,
        latency: Duration::from_millis(1),
        response_body: None,
    };
    AttemptResult { attempt, lease, next: Next::Delivered }
}
