//! Yardstick: how many rows a second this Postgres takes from plain `unnest` batches.
//!
//! A few connections, a thread each, insert batches of small events one transaction at a time until the time is
//! up. No HTTP, no queue, no retries: Millrace cannot store faster than this with the same batches. It writes
//! either to Millrace's own `events` (`--table real`, migrated before) or to a copy of its shape in the schema
//! `insert_ceiling`, with or without the index that serves the list route, to show what that index costs.
//!
//! Prints one line of JSON. Every row inserted is counted again in the table before it does.
#![allow(clippy::print_stdout, reason = "a command-line program")]

use std::error::Error;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::{Parser, ValueEnum};
// The buffer in `ToSql`'s signature, which the crate re-exports only here.
use postgres::types::private::BytesMut;
use postgres::types::{IsNull, ToSql, Type, to_sql_checked};
use postgres::{Client, NoTls};
use uuid::Uuid;

/// The statement of `store/postgres/events.rs` for events without a `dedup_id`.
const INSERT: &str = "INSERT INTO events (id, org_id, received_at, type, dedup_id, payload) \
     SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::timestamptz[], $4::text[], $5::text[], $6::json[]) \
     ON CONFLICT DO NOTHING";
const ROWS_PER_BATCH_MAX: usize = 100_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Table {
    /// Millrace's own, already migrated.
    Real,
    /// A copy of its shape.
    Copy,
    /// The same without the index on (`org_id`, `received_at`, id).
    CopyNoListIndex,
}

/// Inserts batches of events as fast as this Postgres takes them.
#[derive(Parser)]
struct Args {
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    database_url: String,
    #[arg(long, value_enum, default_value = "copy")]
    table: Table,
    /// The organisation the rows belong to; the real table may insist on one that exists.
    #[arg(long, default_value = "00000000-0000-7000-8000-000000000001")]
    org_id: Uuid,
    #[arg(long, default_value_t = 4)]
    connections: usize,
    /// Rows in a transaction.
    #[arg(long, default_value_t = 500)]
    batch: usize,
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// About this many bytes of payload in a row.
    #[arg(long, default_value_t = 200)]
    payload_bytes: usize,
}

/// Sent as it is: `uuid` in binary is its 16 bytes, `json` its text.
#[derive(Debug)]
struct Raw<'a>(&'a [u8]);

impl ToSql for Raw<'_> {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        out.extend_from_slice(self.0);
        Ok(IsNull::No)
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::UUID || *ty == Type::JSON
    }

    to_sql_checked!();
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    if !(1..=ROWS_PER_BATCH_MAX).contains(&args.batch) || !(1..=1000).contains(&args.connections) {
        return Err("batch must be 1-100000 and connections 1-1000".into());
    }
    let mut admin = connect(&args)?;
    if args.table != Table::Real {
        create_copy(&mut admin, args.table == Table::Copy)?;
    }
    let before = count(&mut admin)?;

    let started = Instant::now();
    let deadline = started + Duration::from_secs(args.seconds);
    let per_thread: Result<Vec<_>, String> = thread::scope(|scope| {
        let threads: Vec<_> = (0..args.connections)
            .map(|_| scope.spawn(|| insert_until(&args, deadline).map_err(|e| format!("{e}: {:?}", e.source()))))
            .collect();
        threads.into_iter().map(|t| t.join().unwrap_or_else(|_| Err("a thread panicked".into()))).collect()
    });
    let elapsed = started.elapsed().as_secs_f64();

    let mut batch_times: Vec<Duration> = per_thread?.into_iter().flatten().collect();
    batch_times.sort_unstable();
    let rows = (batch_times.len() * args.batch) as u64;
    let found = count(&mut admin)? - before;
    if found != rows {
        return Err(format!("{rows} rows were inserted, {found} are in the table").into());
    }
    let percentile = |p: usize| batch_times.get(batch_times.len() * p / 100).map_or(0.0, |t| t.as_secs_f64() * 1e3);
    println!(
        "{}",
        serde_json::json!({
            "table": args.table.to_possible_value().map(|v| v.get_name().to_owned()),
            "connections": args.connections, "batch": args.batch, "payload_bytes": args.payload_bytes,
            "rows": rows, "seconds": elapsed, "rows_per_second": (rows as f64 / elapsed).round(),
            "batch_ms_p50": percentile(50), "batch_ms_p99": percentile(99),
        })
    );
    Ok(())
}

/// One connection's work; returns what each batch took.
fn insert_until(args: &Args, deadline: Instant) -> Result<Vec<Duration>, postgres::Error> {
    let mut client = connect(args)?;
    let statement = client.prepare(INSERT)?;
    let payload = payload(args.payload_bytes);
    let mut times = Vec::new();
    while Instant::now() < deadline {
        let begun = Instant::now();
        let ids: Vec<Uuid> = (0..args.batch).map(|_| Uuid::now_v7()).collect();
        let ids: Vec<Raw> = ids.iter().map(|id| Raw(id.as_bytes())).collect();
        let orgs: Vec<Raw> = ids.iter().map(|_| Raw(args.org_id.as_bytes())).collect();
        let types = vec!["user.login"; args.batch];
        let dedup_ids = vec![None::<&str>; args.batch];
        let payloads: Vec<Raw> = ids.iter().map(|_| Raw(payload.as_bytes())).collect();
        let received_at = vec![SystemTime::now(); args.batch];
        client.execute(&statement, &[&ids, &orgs, &received_at, &types, &dedup_ids, &payloads])?;
        times.push(begun.elapsed());
    }
    Ok(times)
}

fn connect(args: &Args) -> Result<Client, postgres::Error> {
    let mut client = Client::connect(&args.database_url, NoTls)?;
    client.batch_execute("SET statement_timeout = '120s'")?;
    if args.table != Table::Real {
        client.batch_execute("SET search_path = insert_ceiling")?;
    }
    Ok(client)
}

fn count(client: &mut Client) -> Result<u64, postgres::Error> {
    client.query_one("SELECT count(*) FROM events", &[]).map(|row| row.get::<_, i64>(0) as u64)
}

/// A JSON object of about `bytes` bytes.
fn payload(bytes: usize) -> String {
    let frame = r#"{"user":"u-1","ip":"192.0.2.1","note":""}"#;
    format!(r#"{{"user":"u-1","ip":"192.0.2.1","note":"{}"}}"#, "x".repeat(bytes.saturating_sub(frame.len())))
}

/// Partitions by day around today, a unique id in each, and the list route's index if asked for.
fn create_copy(client: &mut Client, list_index: bool) -> Result<(), Box<dyn Error>> {
    client.batch_execute(
        "DROP SCHEMA IF EXISTS insert_ceiling CASCADE;
         CREATE SCHEMA insert_ceiling;
         CREATE TABLE events (
             id uuid NOT NULL, org_id uuid NOT NULL, received_at timestamptz NOT NULL,
             type text NOT NULL, dedup_id text, payload json NOT NULL
         ) PARTITION BY RANGE (received_at);",
    )?;
    let today = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() / 86_400;
    for day in today - 1..=today + 1 {
        let (from, to) = (day * 86_400, (day + 1) * 86_400);
        client.batch_execute(&format!(
            "CREATE TABLE events_{day} PARTITION OF events FOR VALUES FROM (to_timestamp({from})) TO (to_timestamp({to}));
             CREATE UNIQUE INDEX ON events_{day} (id);"
        ))?;
    }
    if list_index {
        client.batch_execute("CREATE INDEX ON events (org_id, received_at, id)")?;
    }
    Ok(())
}
