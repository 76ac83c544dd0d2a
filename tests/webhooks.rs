//! An event's way to its organisation's endpoints, through the real server, over real sockets, on both stores: signed,
//! retried, visible; whatever the receiver does, and however often the server is killed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::float_cmp, reason = "metrics that count are exact in f64")]

#[path = "webhooks/agreement.rs"]
mod agreement;
#[path = "webhooks/arrival.rs"]
mod arrival;
#[path = "webhooks/backlogs.rs"]
mod backlogs;
#[path = "common/certificates.rs"]
mod certificates;
#[path = "webhooks/clocks.rs"]
mod clocks;
mod common;
#[path = "webhooks/crashes.rs"]
mod crashes;
#[path = "webhooks/fairness.rs"]
mod fairness;
#[path = "webhooks/fixture.rs"]
mod fixture;
#[path = "webhooks/held.rs"]
mod held;
#[path = "common/installation.rs"]
mod installation;
#[path = "webhooks/instances.rs"]
mod instances;
#[path = "webhooks/outages.rs"]
mod outages;
#[path = "webhooks/own_places.rs"]
mod own_places;
#[path = "webhooks/pace.rs"]
mod pace;
#[path = "common/receiver.rs"]
mod receiver;
#[path = "webhooks/retries.rs"]
mod retries;
#[path = "webhooks/secrets.rs"]
mod secrets;
#[path = "common/stepped_clock.rs"]
mod stepped_clock;
#[path = "common/webhook.rs"]
mod webhook;
