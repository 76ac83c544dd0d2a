//! Bytes as the header that a proxy sends. `tests/it/fuzz` runs the same body over the seeds.
#![no_main]

#[path = "../../tests/it/fuzz/proxy_header.rs"]
mod proxy_header;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| proxy_header::check(bytes));
