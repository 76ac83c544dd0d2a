//! TLS on the public listener, with a real client of it and on each of the two I/O drivers: handshakes of both versions,
//! tickets, new certificates under load, and clients that stall, talk nonsense or do not speak TLS at all.

mod fixture;
mod hostile;
mod reload;
mod requests;
