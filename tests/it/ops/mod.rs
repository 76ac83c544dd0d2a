//! What an operator sees: the ops listener, the metrics, and Prometheus reading them.

mod listener;
mod metrics;
mod scrape;
