//! A journal's disk that fails: what clients are told then, and that it is true.
//!
//! The disk is a real directory behind a wrapper that fails chosen operations. `answers` drives whole shards through
//! sockets; `sweep` fails the first, second, third … operation of every kind in turn under appenders without shards.
//! After each, a journal started on the same directory must bring every event that was acknowledged and none that was
//! refused.

mod answers;
mod faulty_disk;
mod fixture;
mod sweep;
