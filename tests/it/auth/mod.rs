//! Who may come in, through the real server: refusals that tell nothing, changes of credentials that reach running
//! servers, and what holds while the database is away.

mod changes;
mod first_use;
mod many_keys;
mod outage;
mod refusals;
mod secrets;
