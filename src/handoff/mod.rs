//! THE ONLY CROSSING from shards to writers.
//!
//! The guarantee: an event that [`queue::Queue::offer`] took holds a slot until a writer reports it stored or
//! quarantined. Slots are taken before anything is promised to the client, so a full queue is a clear no, and
//! the memory of accepted events is bounded in count and in bytes whatever the database does. One organisation has a
//! share of them ([`shares`]), so that who sends more than is stored is the one that is refused.

pub mod journal;
pub mod queue;
pub mod shares;
