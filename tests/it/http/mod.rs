//! The public listener, through real sockets, with each of the two I/O drivers.
//!
//! `refusals`, `framing` and `hostile` (with the list of all classes) hold what must not be taken, `requests` what must,
//! `limits` what slow and greedy clients get, `turns` what large requests leave to others, `addresses` what all clients of one address get together, `proxies` who
//! speaks for clients, `garbage` that nothing a client sends takes the server away, `shutdown` how it leaves.

mod addresses;
mod fixture;
mod framing;
mod garbage;
mod hostile;
mod idle;
mod limits;
mod proxies;
mod refusals;
mod requests;
mod shutdown;
mod turns;
