//! What the documents and the examples show is what the server does.

mod proxies;
mod quickstart;
mod receiver_example;
