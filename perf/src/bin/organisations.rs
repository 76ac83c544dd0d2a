//! Fills a migrated Postgres with organisations, a key each, and prints the keys, one a line.
//!
//! `perf/scaling` needs ten thousand of them, and `millrace org create` is a process for each. Their Argon2id strings
//! are of the least cost, so that what is measured is the caches and not the first use of each key.
//!
//!     DATABASE_URL=postgres://… organisations COUNT RATE_LIMIT_PER_MINUTE
#![allow(clippy::print_stdout, reason = "a command-line program")]

use std::error::Error;
use std::time::SystemTime;

use postgres::{Client, NoTls};
use uuid::Uuid;

use millrace_base::key::{ApiKey, Argon2Cost};

const ORGANISATIONS_MAX: usize = 100_000;
const LEAST_COST: Argon2Cost = Argon2Cost { memory_kib: 8, iterations: 1 };

fn main() -> Result<(), Box<dyn Error>> {
    let usage = "usage: DATABASE_URL=postgres://… organisations COUNT RATE_LIMIT_PER_MINUTE";
    let mut args = std::env::args().skip(1);
    let count: usize = args.next().ok_or(usage)?.parse()?;
    let rate_limit: i64 = args.next().ok_or(usage)?.parse()?;
    if count > ORGANISATIONS_MAX {
        return Err("at most 100,000 organisations".into());
    }
    let mut client = Client::connect(&std::env::var("DATABASE_URL").map_err(|_| usage)?, NoTls)?;
    let mut transaction = client.transaction()?;
    let org = transaction
        .prepare("INSERT INTO organizations (id, name, rate_limit_per_minute, created_at) VALUES ($1, $2, $3, $4)")?;
    let credential = transaction
        .prepare("INSERT INTO api_keys (id, org_id, digest, phc, created_at) VALUES ($1, $2, $3, $4, $5)")?;
    let now = SystemTime::now();
    for _ in 0..count {
        let (id, key) = (Uuid::now_v7(), ApiKey::generate()?);
        let verifier = key.verifier(LEAST_COST);
        transaction.execute(&org, &[&id, &format!("scaling-{id}"), &rate_limit, &now])?;
        let digest: &[u8] = &verifier.digest;
        transaction.execute(&credential, &[&key.id().as_str(), &id, &digest, &verifier.phc, &now])?;
        println!("{}", key.reveal());
    }
    transaction.commit()?;
    Ok(())
}
