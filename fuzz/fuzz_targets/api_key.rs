//! Bytes as a presented API key. `tests/it/fuzz` runs the same body over the seeds.
#![no_main]

#[path = "../../tests/it/fuzz/api_key.rs"]
mod api_key;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| api_key::check(bytes));
