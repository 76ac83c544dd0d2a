//! An event's way to its organisation's endpoints, through the real server, over real sockets, on both stores: signed,
//! retried, visible; whatever the receiver does, and however often the server is killed.

mod agreement;
mod arrival;
mod backlogs;
mod clocks;
mod crashes;
mod fairness;
mod fixture;
mod held;
mod instances;
mod outages;
mod own_places;
mod pace;
mod retries;
mod secrets;
