//! LOST, DUP and PHANTOM: the clients' log against the rows.

use std::collections::BTreeSet;
use std::path::Path;

use postgres::fallible_iterator::FallibleIterator;
use rusqlite::OpenFlags;

use crate::load::{Log, Told, payload};

/// A row of `events` or `quarantined_events`.
pub struct Row {
    /// As text.
    pub id: String,
    /// Verbatim.
    pub payload: String,
}

const POSTGRES_ROWS: &str = "SELECT id::text, payload::text FROM events
    UNION ALL SELECT id::text, payload FROM quarantined_events";

/// Counts events of type `hooked`, whose organisation has one endpoint, that do not have one delivery; on both stores.
pub const NOT_ONE_DELIVERY: &str = "SELECT count(*) FROM (
        SELECT events.id FROM events LEFT JOIN deliveries ON event_id = events.id WHERE type = 'hooked'
        GROUP BY events.id HAVING count(deliveries.id) <> 1
    ) AS wrong";

/// All rows of a Postgres database.
pub fn postgres_rows(client: &mut postgres::Client) -> Vec<Row> {
    let rows = client.query(POSTGRES_ROWS, &[]).expect("the database answers");
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
    connection.busy_timeout(crate::server::PATIENCE).expect("a timeout is set");
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
        log.sent(),
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
    let mut judge = Judge::new(log);
    for row in rows {
        judge.see(&row.id, &row.payload);
    }
    judge.finish()
}

/// The same for all rows of a Postgres database, one after the other: there may be millions.
pub fn postgres_verdict(client: &mut postgres::Client, log: &Log) -> Verdict {
    let mut judge = Judge::new(log);
    let no_parameters: [&str; 0] = [];
    let mut rows = client.query_raw(POSTGRES_ROWS, no_parameters).expect("the database answers");
    while let Some(row) = rows.next().expect("the database answers") {
        judge.see(row.get(0), row.get(1));
    }
    judge.finish()
}

/// Looks at rows, and knows in the end what is wrong with them.
struct Judge<'a> {
    log: &'a Log,
    stored: BTreeSet<u64>,
    verdict: Verdict,
}

impl<'a> Judge<'a> {
    fn new(log: &'a Log) -> Self {
        Self { log, stored: BTreeSet::new(), verdict: Verdict::default() }
    }

    fn see(&mut self, id: &str, stored: &str) {
        let Verdict { dup, phantom, changed, .. } = &mut self.verdict;
        let number = number(stored).unwrap_or_else(|| panic!("no payload of these tests: {stored}"));
        if stored != payload(number) {
            changed.push(number);
        }
        if !self.stored.insert(number) {
            dup.push(number);
        }
        match self.log.told(number) {
            Some(Told::Accepted(promised)) if promised != id => changed.push(number),
            Some(Told::Accepted(_) | Told::Nothing) => {}
            Some(Told::Refused(..) | Told::Unsent) | None => phantom.push(number),
        }
    }

    fn finish(mut self) -> Verdict {
        let accepted = self.log.accepted_numbers().into_iter();
        self.verdict.lost = accepted.filter(|number| !self.stored.contains(number)).collect();
        self.verdict.stored = self.stored.len();
        self.verdict
    }
}

/// The number in a payload, which stands first.
fn number(payload: &str) -> Option<u64> {
    let digits = payload.strip_prefix(r#"{"m":"#)?;
    digits[..digits.find(|c: char| !c.is_ascii_digit())?].parse().ok()
}
