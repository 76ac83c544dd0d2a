//! The documents: every Markdown file is whole, and its generated tables are what the code says.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "documents/markdown.rs"]
mod markdown;
#[path = "documents/tables.rs"]
mod tables;
