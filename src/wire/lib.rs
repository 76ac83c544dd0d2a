//! Bytes to values and back: request heads, chunked bodies, responses, the JSON grammar, the PROXY protocol header,
//! forwarding fields, and the route table.
//!
//! Everything here is a function of bytes: no I/O, no clock, no thread. So every parser that an attacker can reach
//! can be tested and fuzzed by itself.

pub mod forwarded;
pub mod http;
pub mod json_syntax;
pub mod proxy_protocol;
pub mod response;
pub mod routes;
