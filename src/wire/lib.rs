//! Bytes to values and back: request heads, chunked bodies, targets, the JSON grammar, the PROXY header, forwarding
//! fields, and the table of routes.
//!
//! Everything here is a function of bytes: no I/O, no clock, no thread.

pub mod forwarded;
pub mod http;
pub mod json_syntax;
pub mod proxy_protocol;
pub mod routes;
