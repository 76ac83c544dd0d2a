//! Bytes as the body of a request, against `serde_json`. `tests/it/fuzz` runs the same body over the seeds.
#![no_main]

#[path = "../../tests/it/fuzz/event.rs"]
mod event;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| event::check(bytes));
