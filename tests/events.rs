//! An event's way through the real server, on both stores: posted, stored, read back; deduplicated; in batches; and
//! which texts are taken for JSON.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::float_cmp, reason = "metrics that count are exact in f64")]

#[path = "events/batch.rs"]
mod batch;
mod common;
#[path = "events/dedup.rs"]
mod dedup;
#[path = "common/installation.rs"]
mod installation;
#[path = "events/json.rs"]
mod json;
#[path = "events/json_cases.rs"]
mod json_cases;
#[path = "events/list.rs"]
mod list;
#[path = "events/round_trip.rs"]
mod round_trip;
