//! The writers: threads that take batches off the queue and store them, whatever it takes.
//!
//! A batch leaves a writer in parts. An event is stored ([`bisect`]); or refused for its data and quarantined; or held off the
//! writers if it alone cannot be stored ([`held_events`]); or left for a writer with a delivery permit if its deliveries cannot
//! be stored now ([`delivery_permits`]); or given up at the deadline of a shutdown. While the database is away or refuses
//! everything ([`refusals`]), each writer keeps its batch and retries with backoff and jitter; the queue fills up, and the
//! shards answer 429.
//!
//! Of two copies of an event in one batch the first is stored; the second is a duplicate once the first is stored.
//!
//! Invariant: a slot is released, and the event counted in its journal segment, exactly when the event is committed to `events`
//! or to `quarantined_events`. So the slots still taken when the writers have ended are the events that only the journal has;
//! without a journal, they are lost.
//!
//! Runs on the `writer-N`, `held-events` and `held-journal` threads only. It may block, and it knows nothing of HTTP.

pub mod batch_size;
mod bisect;
mod delivery_permits;
pub mod gather;
mod held_events;
mod outage;
mod refusals;
mod writer;

pub use self::writer::Writers;
