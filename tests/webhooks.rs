//! An event's way to its organisation's endpoints, through the real server, over real sockets, on both stores: signed,
//! retried, visible; whatever the receiver does, and however often the server is killed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::float_cmp, reason = "metrics that count are exact in f64")]

#[path = "webhooks/arrival.rs"]
mod arrival;
#[path = "common/certificates.rs"]
mod certificates;
mod common;
#[path = "webhooks/crashes.rs"]
mod crashes;
#[path = "webhooks/fairness.rs"]
mod fairness;
#[path = "webhooks/fixture.rs"]
mod fixture;
#[path = "common/installation.rs"]
mod installation;
#[path = "webhooks/instances.rs"]
mod instances;
#[path = "common/receiver.rs"]
mod receiver;
#[path = "webhooks/retries.rs"]
mod retries;
#[path = "webhooks/secrets.rs"]
mod secrets;
