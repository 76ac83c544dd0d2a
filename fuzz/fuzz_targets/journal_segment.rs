//! Bytes as a segment file of the journal: the body is the library's, and a normal test runs it over the seeds, too.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| millrace_journal::segment_fuzz::check(bytes));
