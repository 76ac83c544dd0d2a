//! What the test binaries share.

#![allow(dead_code, reason = "each test binary uses its own part of what is shared")]

pub mod postgres;
pub mod server;
