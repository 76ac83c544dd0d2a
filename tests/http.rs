//! The public listener, through real sockets, with each of the two I/O drivers.
//!
//! `refusals`, `framing` and `hostile` (with the list of all classes) hold what must not be taken, `requests` what must,
//! `limits` what slow and greedy clients get, `turns` what large requests leave to others, `addresses` what all clients of one address get together, `proxies` who
//! speaks for clients, `garbage` that nothing a client sends takes the server away, `shutdown` how it leaves.

#[path = "http/addresses.rs"]
mod addresses;
mod common;
#[path = "http/fixture.rs"]
mod fixture;
#[path = "http/framing.rs"]
mod framing;
#[path = "http/garbage.rs"]
mod garbage;
#[path = "http/hostile.rs"]
mod hostile;
#[path = "http/limits.rs"]
mod limits;
#[path = "http/proxies.rs"]
mod proxies;
#[path = "http/refusals.rs"]
mod refusals;
#[path = "common/replay.rs"]
mod replay;
#[path = "http/requests.rs"]
mod requests;
#[path = "http/shutdown.rs"]
mod shutdown;
#[path = "http/turns.rs"]
mod turns;
