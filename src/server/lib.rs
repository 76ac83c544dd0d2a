//! The program: configuration, commands, start and stop, and the listener for operators.
//!
//! This room wires the others together. Nothing imports it but `main`.

pub mod boot;
pub mod cli;
pub mod config;
pub mod ops;
pub mod shutdown;
