//! Events per second into each store: what derived ids and the list index cost.
//!
//! Four threads, batches of 500, payloads of 120 bytes; the Postgres server shares the machine and flushes
//! every commit. `cargo bench --bench store_insert`

#![allow(missing_docs, reason = "criterion's macros make undocumented functions")]
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot run should say so and stop")]

use std::thread;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use uuid::Uuid;

use millrace_base::clock::Timestamp;
use millrace_base::event::{Event, EventId, OrgId};
use millrace_store::Store;
use millrace_store::postgres::PostgresStore;
use millrace_store::sqlite::SqliteStore;
use support::postgres::{Cluster, Options};

const THREADS: usize = 4;
const BATCH: usize = 500;

fn batch(org: OrgId, derived: bool) -> Vec<Event> {
    let payload = format!("{{\"text\": \"{}\"}}", "x".repeat(108));
    (0..BATCH)
        .map(|_| {
            let id = Uuid::now_v7();
            let dedup_id = id.to_string();
            let (id, dedup_id) =
                if derived { (EventId::derived(org, &dedup_id), Some(dedup_id.as_str())) } else { (EventId(id), None) };
            Event::new(id, org, Timestamp::now(), "user.login", dedup_id, payload.as_bytes())
        })
        .collect()
}

/// Time for `rounds` batches on each thread, without the time to make them.
fn store_batches(store: &dyn Store, derived: bool, rounds: u64) -> Duration {
    let org = OrgId(Uuid::now_v7());
    let batches: Vec<Vec<Vec<Event>>> =
        (0..THREADS).map(|_| (0..rounds).map(|_| batch(org, derived)).collect()).collect();
    let began = Instant::now();
    thread::scope(|scope| {
        for batches in &batches {
            scope.spawn(move || {
                for batch in batches {
                    assert_eq!(store.store_events(batch, &[]).unwrap().new_events, BATCH as u64);
                }
            });
        }
    });
    began.elapsed()
}

fn insert(c: &mut Criterion) {
    let cluster = Cluster::start_own(Options { fsync: true });
    let dir = tempfile::tempdir().unwrap();
    let postgres = |without: &str| {
        let url = cluster.create_database();
        let store = PostgresStore::new(&url, THREADS as u32).unwrap();
        store.migrate().unwrap();
        postgres::Client::connect(&url, postgres::NoTls).unwrap().batch_execute(without).unwrap();
        Box::new(store) as Box<dyn Store>
    };
    let sqlite = SqliteStore::new(dir.path(), 1).unwrap();
    sqlite.migrate().unwrap();
    let stores = [
        ("postgres", postgres("")),
        ("postgres_without_list_index", postgres("DROP INDEX events_list")),
        ("sqlite", Box::new(sqlite) as Box<dyn Store>),
    ];
    let mut group = c.benchmark_group("store_insert");
    group.throughput(Throughput::Elements((THREADS * BATCH) as u64));
    group.sample_size(10).warm_up_time(Duration::from_secs(2)).measurement_time(Duration::from_secs(6));
    for (name, store) in &stores {
        for (kind, derived) in [("server_ids", false), ("derived_ids", true)] {
            group.bench_function(format!("{name}/{kind}"), |b| {
                b.iter_custom(|rounds| store_batches(&**store, derived, rounds));
            });
        }
    }
}

criterion_group!(benches, insert);
criterion_main!(benches);
