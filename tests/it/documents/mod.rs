//! What the documents and the examples show is what the server does; every Markdown file is whole, and its generated
//! tables are what the code says.

mod markdown;
mod proxies;
mod quickstart;
mod receiver_example;
mod tables;
