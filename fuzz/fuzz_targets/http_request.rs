//! Bytes as all that a client sends on one connection, against hyper's reading. `tests/it/fuzz` runs the same body over the seeds.
#![no_main]

#[path = "../../tests/it/fuzz/http_request.rs"]
mod http_request;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| http_request::check(bytes));
