//! Bytes as a chunked body, against a second reading of the grammar. `tests/it/fuzz` runs the same body over the seeds.
#![no_main]

#[path = "../../tests/it/fuzz/http_chunked.rs"]
mod http_chunked;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| http_chunked::check(bytes));
