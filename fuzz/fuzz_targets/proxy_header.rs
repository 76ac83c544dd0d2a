//! Bytes as the header that a proxy sends. `tests/fuzz.rs` runs the same body over the seeds.
#![no_main]

#[path = "../../tests/fuzz/proxy_header.rs"]
mod proxy_header;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| proxy_header::check(bytes));
