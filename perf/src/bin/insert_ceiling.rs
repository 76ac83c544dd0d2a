//! Yardstick: how many rows a second this Postgres takes in plain batches, and what a row costs by each way in.
//!
//! A few connections, a thread each, insert batches of small events one transaction at a time until the time is
//! up. No HTTP, no queue, no retries: Millrace cannot store faster than this with the same batches. It writes
//! either to Millrace's own `events` (`--table real`, migrated before) or to a copy of its shape in the schema
//! `insert_ceiling`, with or without the index that serves the list route, to show what that index costs.
//! `--way` is how: by the statements of `store/postgres/events.rs`, or by what was tried beside them.
//!
//! Prints one line of JSON. Every row inserted is counted again in the table before it does.
#![allow(clippy::print_stdout, reason = "a command-line program")]

use std::error::Error;
use std::io::Write;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::{Parser, ValueEnum};
// The buffer in `ToSql`'s signature, which the crate re-exports only here.
use postgres::types::private::BytesMut;
use postgres::types::{IsNull, ToSql, Type, to_sql_checked};
use postgres::{Client, GenericClient, NoTls, Statement};
use uuid::Uuid;

const INSERT: &str = "INSERT INTO events (id, org_id, received_at, type, dedup_id, payload) \
     SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::timestamptz[], $4::text[], $5::text[], $6::json[])";
const COPY_COLUMNS: &str = "(id, org_id, received_at, type, dedup_id, payload) FROM STDIN (FORMAT binary)";
/// Before the first row and after the last, in COPY's binary format.
const COPY_HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
const COPY_TRAILER: [u8; 2] = (-1_i16).to_be_bytes();
/// 2000-01-01, where Postgres counts microseconds from.
const POSTGRES_EPOCH_MICROS: u128 = 946_684_800_000_000;
const EVENT_TYPE: &str = "user.login";
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Way {
    /// `INSERT … SELECT FROM unnest(…) ON CONFLICT DO NOTHING`.
    Unnest,
    /// The same without `ON CONFLICT`: what the look before each row costs.
    UnnestUnchecked,
    /// Binary COPY into the partitioned table.
    Copy,
    /// Binary COPY into today's partition: what finding it for each row costs.
    CopyPartition,
    /// Binary COPY into a temporary table, `INSERT … SELECT … ON CONFLICT DO NOTHING` from there, TRUNCATE.
    CopyStaged,
}

/// Inserts batches of events as fast as this Postgres takes them.
#[derive(Parser)]
struct Args {
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    database_url: String,
    #[arg(long, value_enum, default_value = "copy")]
    table: Table,
    #[arg(long, value_enum, default_value = "unnest")]
    way: Way,
    /// The organisation the rows belong to; the real table may insist on one that exists.
    #[arg(long, default_value = "00000000-0000-7000-8000-000000000001")]
    org_id: Uuid,
    #[arg(long, default_value_t = 4)]
    connections: usize,
    /// Rows in a transaction.
    #[arg(long, default_value_t = 500)]
    batch: usize,
    /// Bytes in a message of COPY's data.
    #[arg(long, default_value_t = 65_536)]
    copy_chunk_bytes: usize,
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
    if !(1..=ROWS_PER_BATCH_MAX).contains(&args.batch)
        || !(1..=1000).contains(&args.connections)
        || args.copy_chunk_bytes == 0
    {
        return Err("batch must be 1-100000 and connections 1-1000".into());
    }
    let mut admin = connect(&args)?;
    if args.table != Table::Real {
        create_copy(&mut admin, args.table == Table::Copy)?;
    }
    let before = count(&mut admin)?;
    let wal_before = wal_bytes(&mut admin)?;

    let started = Instant::now();
    let deadline = started + Duration::from_secs(args.seconds);
    let per_thread: Result<Vec<_>, String> = thread::scope(|scope| {
        let threads: Vec<_> = (0..args.connections)
            .map(|_| scope.spawn(|| insert_until(&args, deadline).map_err(|e| format!("{e}: {:?}", e.source()))))
            .collect();
        threads.into_iter().map(|t| t.join().unwrap_or_else(|_| Err("a thread panicked".into()))).collect()
    });
    let elapsed = started.elapsed().as_secs_f64();
    let wal = wal_bytes(&mut admin)? - wal_before;

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
            "way": args.way.to_possible_value().map(|v| v.get_name().to_owned()),
            "connections": args.connections, "batch": args.batch, "payload_bytes": args.payload_bytes,
            "rows": rows, "seconds": elapsed, "rows_per_second": (rows as f64 / elapsed).round(),
            "batch_ms_p50": percentile(50), "batch_ms_p99": percentile(99),
            "wal_bytes_per_row": wal as f64 / rows.max(1) as f64,
        })
    );
    Ok(())
}

/// One connection's work; returns what each batch took.
fn insert_until(args: &Args, deadline: Instant) -> Result<Vec<Duration>, Box<dyn Error>> {
    let mut client = connect(args)?;
    let statements = prepare(&mut client, args)?;
    let payload = payload(args.payload_bytes);
    let mut times = Vec::new();
    while Instant::now() < deadline {
        let begun = Instant::now();
        let ids: Vec<Uuid> = (0..args.batch).map(|_| Uuid::now_v7()).collect();
        match statements.as_slice() {
            [insert] if matches!(args.way, Way::Unnest | Way::UnnestUnchecked) => {
                unnest(&mut client, insert, args, &ids, &payload)?;
            }
            [copy] => copy_in(&mut client, copy, args, &ids, &payload)?,
            [copy, insert, truncate] => {
                let mut transaction = client.transaction()?;
                copy_in(&mut transaction, copy, args, &ids, &payload)?;
                transaction.execute(insert, &[])?;
                transaction.execute(truncate, &[])?;
                transaction.commit()?;
            }
            _ => return Err("no such way".into()),
        }
        times.push(begun.elapsed());
    }
    Ok(times)
}

/// The statements of the way, in the order they are run for a batch.
fn prepare(client: &mut Client, args: &Args) -> Result<Vec<Statement>, postgres::Error> {
    let texts = match args.way {
        Way::Unnest => vec![format!("{INSERT} ON CONFLICT DO NOTHING")],
        Way::UnnestUnchecked => vec![INSERT.to_owned()],
        Way::Copy => vec![format!("COPY events {COPY_COLUMNS}")],
        Way::CopyPartition => vec![format!("COPY {} {COPY_COLUMNS}", partition_of_today(client)?)],
        Way::CopyStaged => {
            client.batch_execute("CREATE TEMP TABLE staged (LIKE events)")?;
            vec![
                format!("COPY staged {COPY_COLUMNS}"),
                "INSERT INTO events SELECT * FROM staged ON CONFLICT DO NOTHING".to_owned(),
                "TRUNCATE staged".to_owned(),
            ]
        }
    };
    texts.iter().map(|text| client.prepare(text)).collect()
}

/// Where a row of now goes.
fn partition_of_today(client: &mut Client) -> Result<String, postgres::Error> {
    let mut undone = client.transaction()?;
    let row = undone.query_one(
        "INSERT INTO events (id, org_id, received_at, type, payload)
        VALUES (gen_random_uuid(), gen_random_uuid(), now(), 't', '1') RETURNING tableoid::regclass::text",
        &[],
    )?;
    row.try_get(0)
}

fn unnest(
    client: &mut Client,
    insert: &Statement,
    args: &Args,
    ids: &[Uuid],
    payload: &str,
) -> Result<(), postgres::Error> {
    let orgs: Vec<Raw> = ids.iter().map(|_| Raw(args.org_id.as_bytes())).collect();
    let payloads: Vec<Raw> = ids.iter().map(|_| Raw(payload.as_bytes())).collect();
    let (types, dedup_ids) = (vec![EVENT_TYPE; ids.len()], vec![None::<&str>; ids.len()]);
    let received_at = vec![SystemTime::now(); ids.len()];
    let ids: Vec<Raw> = ids.iter().map(|id| Raw(id.as_bytes())).collect();
    client.execute(insert, &[&ids, &orgs, &received_at, &types, &dedup_ids, &payloads])?;
    Ok(())
}

fn copy_in(
    client: &mut impl GenericClient,
    copy: &Statement,
    args: &Args,
    ids: &[Uuid],
    payload: &str,
) -> Result<(), Box<dyn Error>> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros() - POSTGRES_EPOCH_MICROS;
    let mut rows = COPY_HEADER.to_vec();
    for id in ids {
        rows.extend(6_i16.to_be_bytes());
        let before = [id.as_bytes(), args.org_id.as_bytes(), &(now as i64).to_be_bytes()[..], EVENT_TYPE.as_bytes()];
        for field in before {
            rows.extend((field.len() as i32).to_be_bytes());
            rows.extend(field);
        }
        rows.extend((-1_i32).to_be_bytes()); // no dedup_id
        rows.extend((payload.len() as i32).to_be_bytes());
        rows.extend(payload.as_bytes());
    }
    rows.extend(COPY_TRAILER);
    let mut sink = client.copy_in(copy)?;
    rows.chunks(args.copy_chunk_bytes).try_for_each(|chunk| sink.write_all(chunk))?;
    sink.finish()?;
    Ok(())
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

/// Where the write-ahead log ends.
fn wal_bytes(client: &mut Client) -> Result<u64, postgres::Error> {
    let position = "SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint";
    client.query_one(position, &[]).map(|row| row.get::<_, i64>(0) as u64)
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
