//! TLS on the public listener, with a real client of it and on each of the two I/O drivers: handshakes of both versions,
//! tickets, new certificates under load, and clients that stall, talk nonsense or do not speak TLS at all.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/certificates.rs"]
mod certificates;
mod common;
#[path = "tls/fixture.rs"]
mod fixture;
#[path = "tls/hostile.rs"]
mod hostile;
#[path = "tls/reload.rs"]
mod reload;
#[path = "tls/requests.rs"]
mod requests;
