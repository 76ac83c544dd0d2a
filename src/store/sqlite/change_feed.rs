//! The change feed of the embedded store, between the processes on one file: a numbered table that is read five times a
//! second.
//!
//! The transaction that makes a change notes it, so a process that reads the number sees the change. Notes are
//! trimmed after [`limits::STORE_CHANGES_KEPT`]; a process that slept longer finds a gap in the
//! numbers and reads everything again.

use std::sync::atomic::{AtomicBool, Ordering};

use rusqlite::{Connection, OptionalExtension, Transaction, params};

use millrace_base::clock::Timestamp;
use millrace_base::event::{EndpointId, OrgId};
use millrace_base::key::KeyId;
use millrace_base::limits;

use crate::{StoreChange, StoreError};

/// Notes a change for the other processes; [`StoreChange::Everything`] has no note.
pub(super) fn note_change(transaction: &Transaction<'_>, change: StoreChange) -> rusqlite::Result<()> {
    let (kind, id) = match change {
        StoreChange::Key(id) => ("key", id.to_string()),
        StoreChange::Organization(id) => ("org", id.to_string()),
        StoreChange::Endpoints(id) => ("endpoints", id.to_string()),
        StoreChange::DeliveriesDue(id) => ("due", id.to_string()),
        StoreChange::Everything => return Ok(()),
    };
    note(transaction, kind, &id)
}

/// Notes that everything must be read again, with a word that no version knows.
pub(super) fn note_everything(transaction: &Transaction<'_>) -> rusqlite::Result<()> {
    note(transaction, "sealing_key", "")
}

fn note(transaction: &Transaction<'_>, kind: &str, id: &str) -> rusqlite::Result<()> {
    let now = Timestamp::now();
    let kept_since = now.as_micros() - limits::STORE_CHANGES_KEPT.as_micros() as i64;
    transaction.execute("DELETE FROM credential_changes WHERE changed_at < ?1", [kept_since])?;
    transaction.execute(
        "INSERT INTO credential_changes (kind, id, changed_at) VALUES (?1, ?2, ?3)",
        params![kind, id, now.as_micros()],
    )?;
    Ok(())
}

/// Reports changes until `stop` is set or `read_since` fails. `read_since` reads the changes after a number.
pub(super) fn watch(
    stop: &AtomicBool,
    mut read_since: impl FnMut(i64) -> Result<Changes, StoreError>,
    on_change: &mut dyn FnMut(StoreChange),
) -> Result<(), StoreError> {
    let mut seen = read_since(0)?.last;
    on_change(StoreChange::Everything);
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(limits::STORE_CHANGE_POLL_INTERVAL);
        let changes = read_since(seen)?;
        if changes.complete {
            changes.list.into_iter().for_each(&mut *on_change);
        } else {
            on_change(StoreChange::Everything);
        }
        seen = changes.last;
    }
    Ok(())
}

/// The changes after a number.
pub(super) struct Changes {
    list: Vec<StoreChange>,
    /// Whether `list` has all of them.
    complete: bool,
    /// The newest number given out.
    last: i64,
}

/// Reads the changes after `seen`, or only the newest number if there are too many.
pub(super) fn changes_since(connection: &Connection, seen: i64) -> rusqlite::Result<Changes> {
    // Numbers are given out one by one and never twice; a transaction that fails returns its numbers.
    let last = connection
        .prepare_cached("SELECT seq FROM sqlite_sequence WHERE name = 'credential_changes'")?
        .query_row([], |row| row.get(0))
        .optional()?
        .unwrap_or(0);
    let new = last - seen;
    // Below zero if the file was replaced by an older one.
    if !(1..=limits::STORE_CHANGES_MAX as i64).contains(&new) {
        return Ok(Changes { list: Vec::new(), complete: new == 0, last });
    }
    let mut select =
        connection.prepare_cached("SELECT kind, id FROM credential_changes WHERE seq > ?1 AND seq <= ?2")?;
    let changes: Vec<StoreChange> = select
        .query_map([seen, last], |row| Ok(parse(&row.get::<_, String>(0)?, &row.get::<_, String>(1)?)))?
        .collect::<rusqlite::Result<_>>()?;
    Ok(Changes { complete: changes.len() as i64 == new, list: changes, last })
}

/// The change in a note. A word that is not known here, of a newer version, may concern anything.
fn parse(kind: &str, id: &str) -> StoreChange {
    let uuid = |id| uuid::Uuid::try_parse(id).ok();
    let known = match kind {
        "key" => KeyId::parse(id).map(StoreChange::Key),
        "org" => uuid(id).map(|id| StoreChange::Organization(OrgId(id))),
        "endpoints" => uuid(id).map(|id| StoreChange::Endpoints(OrgId(id))),
        "due" => uuid(id).map(|id| StoreChange::DeliveriesDue(EndpointId(id))),
        _ => None,
    };
    known.unwrap_or(StoreChange::Everything)
}
