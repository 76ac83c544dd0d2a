//! A webhook endpoint as its owner defines it: URL, event types, headers, rate limit and secret, and the rules for each. The
//! control API, the command line, planning and sending all use it.

pub(crate) mod database_hosts;
pub mod filter;
pub mod headers;
pub mod management;
pub mod secret;
pub mod target_policy;
pub mod validate;
