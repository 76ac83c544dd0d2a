//! What deliveries cost the store: storing them with their events, recording, claiming, and looking at a million of them.
//!
//! One caller, so that every figure is the work itself; the Postgres server shares the machine and flushes every commit.
//! Beside the time of a call stands the CPU time the server's processes used for it, of which a machine has one second a
//! second and core. `cargo bench --bench webhook_store`, with `-- 100000` for that many pending instead of a million.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark that cannot run should say so and stop")]

use std::time::{Duration, Instant};

use uuid::Uuid;

use millrace_base::clock::Timestamp;
use millrace_base::event::{DeliveryId, EndpointId, Event, EventId, OrgId};
use millrace_store::Store;
use millrace_store::postgres::PostgresStore;
use millrace_store::sqlite::SqliteStore;
use millrace_store::webhooks::{Attempt, AttemptResult, Next, PlannedDelivery, Wanted};
use support::postgres::{Cluster, Options};

const BATCH: usize = 1000;
const ROUNDS: usize = 100;
const PENDING: usize = 1_000_000;

fn main() {
    let pending = std::env::args().find_map(|argument| argument.parse().ok()).unwrap_or(PENDING);
    let cluster = Cluster::start_own(Options { fsync: true });
    let store = PostgresStore::new(&cluster.create_database(), 4).unwrap();
    run(&store, pending, &|| cluster.cpu_time());
    let dir = tempfile::tempdir().unwrap();
    run(&SqliteStore::new(dir.path(), 1).unwrap(), pending, &|| Duration::ZERO);
}

/// A store, and how to ask what its server has used of the CPU.
struct Bench<'a> {
    store: &'a dyn Store,
    server_time: &'a dyn Fn() -> Duration,
}

fn run(store: &dyn Store, pending: usize, server_time: &dyn Fn() -> Duration) {
    store.migrate().unwrap();
    let bench = Bench { store, server_time };
    println!("\n{}: µs of a call, and of the server's CPU, for each row", store.kind());
    for derived in [false, true] {
        let ids = if derived { "derived ids" } else { "server's ids" };
        let batches: Vec<Batch> = (0..ROUNDS).map(|_| Batch::new(derived, None)).collect();
        bench.measure(&format!("events alone, {ids}"), BATCH, &batches, |batch| {
            store.store_events(&batch.events, &[]).unwrap();
        });
        let batches: Vec<Batch> = (0..ROUNDS).map(|_| Batch::new(derived, Some(1))).collect();
        bench.measure(&format!("events with a delivery each, {ids}"), BATCH, &batches, |batch| {
            let stored = store.store_events(&batch.events, &batch.planned).unwrap();
            assert_eq!(stored.deliveries.len(), BATCH);
        });
        bench.measure("record, all delivered at the first attempt", BATCH, &batches, |batch| {
            assert_eq!(store.record(&batch.results(1, Next::Delivered)).unwrap().changed, BATCH as u64);
        });
    }
    let batches: Vec<Batch> = (0..ROUNDS / 10).map(|_| Batch::new(false, Some(1))).collect();
    for batch in &batches {
        store.store_events(&batch.events, &batch.planned).unwrap();
    }
    let later = Next::RetryAt(lease().plus(Duration::from_secs(3600)));
    bench.measure("record, all failed", BATCH, &batches, |batch| {
        assert_eq!(store.record(&batch.results(1, later)).unwrap().changed, BATCH as u64);
    });
    bench.many_pending(pending);
}

impl Bench<'_> {
    fn measure<T>(&self, what: &str, rows: usize, inputs: &[T], mut call: impl FnMut(&T)) {
        let (server, began) = ((self.server_time)(), Instant::now());
        inputs.iter().for_each(&mut call);
        let (took, server) = (began.elapsed(), (self.server_time)().saturating_sub(server));
        let each = |time: Duration| time.as_secs_f64() * 1e6 / (rows * inputs.len()) as f64;
        println!("{what:50} {:9.2} {:9.2}", each(took), each(server));
    }

    /// `pending` deliveries due at one endpoint, and a few at a hundred; then at ten thousand.
    fn many_pending(&self, pending: usize) {
        let (store, large) = (self.store, EndpointId(Uuid::now_v7()));
        let few: Vec<EndpointId> = (0..100).map(|_| EndpointId(Uuid::now_v7())).collect();
        let fill = |endpoints: &[EndpointId], count: usize| {
            for _ in 0..count.div_ceil(BATCH) {
                let mut batch = Batch::new(false, Some(1));
                for (planned, endpoint) in batch.planned.iter_mut().zip(endpoints.iter().cycle()) {
                    (planned.endpoint, planned.lease_until) = (*endpoint, None);
                }
                store.store_events(&batch.events, &batch.planned).unwrap();
            }
        };
        fill(&[large], pending);
        fill(&few, 1000);
        println!("with {pending} pending at one endpoint and 10 at each of 100:");
        self.looks("101");
        let mut claimed = Vec::new();
        self.measure("claim 256 of the large one", 256, &[(); 100], |()| {
            let claims = store.claim(Timestamp::now(), lease(), &[Wanted::all(large, 256)]).unwrap();
            assert_eq!(claims.ready.len(), 256);
            claimed.extend(claims.ready);
        });
        let wanted: Vec<Wanted> = few.iter().take(32).map(|endpoint| Wanted::all(*endpoint, 8)).collect();
        self.measure("claim 8 of each of 32 others", 256, &[()], |()| {
            assert_eq!(store.claim(Timestamp::now(), lease(), &wanted).unwrap().ready.len(), 256);
        });
        let held: Vec<(DeliveryId, Timestamp)> =
            claimed.iter().map(|claimed| (claimed.delivery, claimed.lease)).collect();
        let held: Vec<&[(DeliveryId, Timestamp)]> = held.chunks(256).collect();
        self.measure("release 256", 256, &held, |held| store.release(held, Timestamp::now()).unwrap());
        self.looks("101, after these");
        let many: Vec<EndpointId> = (0..10_000).map(|_| EndpointId(Uuid::now_v7())).collect();
        fill(&many, 20_000);
        self.looks("10101");
    }

    fn looks(&self, endpoints: &str) {
        let (store, now) = (self.store, Timestamp::now());
        self.measure(&format!("due_endpoints, a page of {endpoints}"), 1, &[(); 20], |()| {
            store.due_endpoints(now, None, 256).unwrap();
        });
        self.measure(&format!("due_endpoints, none of {endpoints} due"), 1, &[(); 20], |()| {
            assert_eq!(store.due_endpoints(Timestamp::from_micros(0), None, 256), Ok(Vec::new()));
        });
        self.measure("pending_stats", 1, &[(); 20], |()| {
            store.pending_stats().unwrap();
        });
    }
}

/// Events, deliveries of them and what is needed to record those.
struct Batch {
    events: Vec<Event>,
    planned: Vec<PlannedDelivery>,
}

impl Batch {
    /// Events of one organisation, each with a delivery to one of so many endpoints.
    fn new(derived: bool, endpoints: Option<usize>) -> Self {
        let org = OrgId(Uuid::from_u128(7));
        let payload = format!("{{\"text\": \"{}\"}}", "x".repeat(108));
        let event = |_| {
            let id = Uuid::now_v7();
            let dedup_id = id.to_string();
            let (id, dedup_id) =
                if derived { (EventId::derived(org, &dedup_id), Some(dedup_id.as_str())) } else { (EventId(id), None) };
            Event::new(id, org, Timestamp::now(), "user.login", dedup_id, payload.as_bytes())
        };
        let events: Vec<Event> = (0..BATCH).map(event).collect();
        let endpoints: Vec<EndpointId> =
            (0..endpoints.unwrap_or(0)).map(|n| EndpointId(Uuid::from_u128(n as u128))).collect();
        let planned = events.iter().zip(endpoints.iter().cycle()).map(|(event, endpoint)| PlannedDelivery {
            id: DeliveryId(Uuid::now_v7()),
            event: event.id,
            endpoint: *endpoint,
            org,
            lease_until: Some(lease()),
        });
        Self { planned: planned.collect(), events }
    }

    fn results(&self, number: u32, next: Next) -> Vec<AttemptResult> {
        let result = |planned: &PlannedDelivery| AttemptResult {
            attempt: Attempt {
                delivery: planned.id,
                number,
                at: Timestamp::now(),
                status_code: Some(200),
                error: None,
                latency: Duration::from_millis(3),
                response_body: Some("{\"ok\": true}".to_owned()),
            },
            lease: lease(),
            next,
        };
        self.planned.iter().map(result).collect()
    }
}

/// The end of every lease here: far away.
fn lease() -> Timestamp {
    Timestamp::parse_rfc3339("2100-01-01T00:00:00Z").unwrap()
}
