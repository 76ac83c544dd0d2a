//! An event's way through the real server, on both stores: posted, stored, read back; deduplicated; in batches; and
//! which texts are taken for JSON.

mod batch;
mod dedup;
mod json;
mod list;
mod round_trip;
