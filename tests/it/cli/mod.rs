//! The command line.

mod bench;
mod commands;
mod quarantine;
mod webhooks;
