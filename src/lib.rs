//! Millrace: a thread-per-core event ingestion server. The modules stand in the order an event walks them.

pub mod cli;
pub mod config;
pub mod limits;
pub mod logging;

pub mod boot;
pub mod certificates;
pub mod critical_thread;
pub mod shutdown;

pub mod clock;
pub mod event;
pub mod key;
pub mod problem;
pub mod quantity;
pub mod routes;

pub mod ingest;

pub mod auth;

pub mod handoff;

pub mod store;

pub mod deliver;

pub mod control;

pub mod health;
pub mod metrics;
pub mod ops;

pub mod bench;
