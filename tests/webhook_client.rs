//! The client that makes requests to strangers, against receivers on real sockets.
//!
//! `answers` and `reuse` hold what works, `failures`, `tls` and `addresses` what must not, `proxy` and `http2` the other
//! ways a request can take.

#![allow(clippy::unwrap_used, reason = "these are tests")]

#[path = "webhook_client/addresses.rs"]
mod addresses;
#[path = "webhook_client/answers.rs"]
mod answers;
#[path = "common/certificates.rs"]
mod certificates;
#[path = "webhook_client/failures.rs"]
mod failures;
#[path = "webhook_client/fixture.rs"]
mod fixture;
#[path = "webhook_client/http2.rs"]
mod http2;
#[path = "common/name_server.rs"]
mod name_server;
#[path = "webhook_client/names.rs"]
mod names;
#[path = "webhook_client/proxy.rs"]
mod proxy;
#[path = "common/receiver.rs"]
mod receiver;
#[path = "webhook_client/reuse.rs"]
mod reuse;
#[path = "webhook_client/tls.rs"]
mod tls;
