//! The client that makes requests to strangers, against receivers on real sockets.
//!
//! `answers` and `reuse` hold what works, `failures`, `tls` and `addresses` what must not, `proxy` and `http2` the other
//! ways a request can take.

mod addresses;
mod answers;
mod failures;
mod fixture;
mod http2;
mod names;
mod proxy;
mod reuse;
mod tls;
