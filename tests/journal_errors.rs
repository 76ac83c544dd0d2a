//! A journal's disk that fails: what clients are told then, and that it is true.
//!
//! The disk is a real directory behind a wrapper that fails chosen operations. `answers` drives whole shards through
//! sockets; `sweep` fails the first, second, third … operation of every kind in turn under appenders without shards.
//! After each, a journal started on the same directory must bring every event that was acknowledged and none that was
//! refused.

#![allow(clippy::unwrap_used, reason = "a failed test may panic anywhere")]

#[path = "journal_errors/answers.rs"]
mod answers;
mod common;
#[path = "journal_errors/faulty_disk.rs"]
mod faulty_disk;
#[path = "journal_errors/fixture.rs"]
mod fixture;
#[path = "common/in_process.rs"]
mod in_process;
#[path = "common/lanes.rs"]
mod lanes;
#[path = "journal_errors/sweep.rs"]
mod sweep;
