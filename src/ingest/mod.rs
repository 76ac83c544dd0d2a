//! INGEST: what runs on the shards. Never blocks, takes no lock, knows no database.

pub mod json_syntax;
