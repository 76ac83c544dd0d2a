//! The program: configuration, commands, start and stop, and the listener for operators.
//!
//! This room connects the others. Only `main` and the tests import it.

pub mod boot;
pub mod cli;
pub mod config;
pub mod ops;
pub mod shutdown;
