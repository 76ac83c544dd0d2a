//! LOST, DUP and PHANTOM: the clients' log against the rows.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::collections::BTreeMap;
use std::path::Path;

use rusqlite::OpenFlags;
use serde_json::Value;

use crate::load::{Log, Told, payload};

/// A row of `events` or `quarantined_events`.
pub struct Row {
    /// As text.
    pub id: String,
    /// Verbatim.
    pub payload: String,
}

/// All rows of a Postgres database.
pub fn postgres_rows(client: &mut postgres::Client) -> Vec<Row> {
    const ROWS: &str = "SELECT id::text, payload::text FROM events
        UNION ALL SELECT id::text, payload FROM quarantined_events";
    let rows = client.query(ROWS, &[]).expect("the database answers");
    rows.iter().map(|row| Row { id: row.get(0), payload: row.get(1) }).collect()
}

/// How many rows a Postgres table has.
pub fn count(client: &mut postgres::Client, table: &str) -> i64 {
    client.query_one(&format!("SELECT count(*) FROM {table}"), &[]).expect("the database answers").get(0)
}

/// The embedded store's file, for reading.
pub fn sqlite(data_dir: &Path) -> rusqlite::Connection {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection =
        rusqlite::Connection::open_with_flags(data_dir.join("millrace.db"), flags).expect("the file opens");
    connection.busy_timeout(crate::common::server::PATIENCE).expect("a timeout is set");
    connection
}

/// All rows of the embedded store.
pub fn sqlite_rows(connection: &rusqlite::Connection) -> Vec<Row> {
    const ROWS: &str = "SELECT id, payload FROM events UNION ALL SELECT id, payload FROM quarantined_events";
    let mut rows = connection.prepare(ROWS).expect("the tables are there");
    let rows = rows.query_map([], |row| {
        let id = uuid::Uuid::from_bytes(row.get(0)?).to_string();
        Ok(Row { id, payload: row.get(1)? })
    });
    rows.expect("the file is readable").collect::<Result<_, _>>().expect("rows of the schema")
}

/// LOST, DUP and PHANTOM are none, ids are those that were promised, payloads are the bytes that were sent.
pub fn check(log: &Log, rows: &[Row]) {
    check_stored(log, rows, true);
}

/// The same where the server was killed and may have lost what it had not stored: DUP and PHANTOM are none.
pub fn check_after_kill(log: &Log, rows: &[Row]) {
    check_stored(log, rows, false);
}

/// What was found: numbers of events.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Rows.
    pub stored: usize,
    /// Accepted and not stored.
    pub lost: Vec<u64>,
    /// Stored twice.
    pub dup: Vec<u64>,
    /// Refused, and stored.
    pub phantom: Vec<u64>,
    /// Stored with another id or payload.
    pub changed: Vec<u64>,
}

#[expect(clippy::print_stdout, reason = "what was found, for whoever reads a failed test")]
fn check_stored(log: &Log, rows: &[Row], nothing_lost: bool) {
    let Verdict { stored, lost, dup, phantom, changed } = verdict(log, rows);
    println!(
        "sent {}, accepted {}, refused {:?}, unanswered {}, stored {stored}, lost {}, dup {}, phantom {}",
        log.entries().len(),
        log.accepted(),
        log.refusals(),
        log.unanswered(),
        lost.len(),
        dup.len(),
        phantom.len()
    );
    assert_eq!(dup, [0; 0], "DUP");
    assert_eq!(phantom, [0; 0], "PHANTOM");
    assert_eq!(changed, [0; 0], "stored with another id or payload");
    assert!(!nothing_lost || lost.is_empty(), "LOST: {lost:?}");
}

/// Holds the rows against the log.
pub fn verdict(log: &Log, rows: &[Row]) -> Verdict {
    let mut stored: BTreeMap<u64, &str> = BTreeMap::new();
    let (mut dup, mut phantom, mut changed) = (Vec::new(), Vec::new(), Vec::new());
    let entries = log.entries();
    for row in rows {
        let value: Value = serde_json::from_str(&row.payload).expect("a stored payload is JSON");
        let number = value["m"].as_u64().expect("a payload of these tests");
        if row.payload != payload(number) {
            changed.push(number);
        }
        if stored.insert(number, &row.id).is_some() {
            dup.push(number);
        }
        match entries.get(&number) {
            Some(Told::Accepted(id)) if *id != row.id => changed.push(number),
            Some(Told::Accepted(_) | Told::Nothing) => {}
            Some(Told::Refused(..) | Told::Unsent) | None => phantom.push(number),
        }
    }
    let lost: Vec<u64> = entries
        .iter()
        .filter(|(number, told)| matches!(told, Told::Accepted(_)) && !stored.contains_key(number))
        .map(|(number, _)| *number)
        .collect();
    Verdict { stored: stored.len(), lost, dup, phantom, changed }
}
