//! Bytes as the body of a request, against `serde_json`. `tests/fuzz.rs` runs the same body over the seeds.
#![no_main]

#[path = "../../tests/fuzz/event.rs"]
mod event;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| event::check(bytes));
