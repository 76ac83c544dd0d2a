//! The file `held.json` next to the segments: the events that the database does not take while it takes others, and why.
//!
//! It is written for `millrace journal inspect`. The server never reads it, and removes it when it starts. It is not
//! synchronised: after a power loss it may be missing or old, so readers check it against the segments.

use std::io;

use serde::{Deserialize, Serialize};

use super::disk::Storage;

/// The file's name.
pub const FILE: &str = "held.json";
/// The name of the file while it is being written.
const UNFINISHED: &str = "held.json.new";

/// The content of the file.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldList {
    /// When the list was made, RFC 3339.
    pub as_of: String,
    /// The events, longest held first.
    pub events: Vec<HeldEvent>,
}

/// A held event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldEvent {
    /// Id of the event.
    pub id: String,
    /// Id of its organisation.
    pub org_id: String,
    /// Type of the event.
    #[serde(rename = "type")]
    pub event_type: String,
    /// Since when it is held, RFC 3339.
    pub held_since: String,
    /// The database's error code: an SQLSTATE, or SQLite's name for it.
    pub code: String,
    /// The error in words.
    pub reason: String,
}

/// Whether `name` is one of this module's two files.
pub fn is_name(name: &str) -> bool {
    name == FILE || name == UNFINISHED
}

/// Replaces the file; removes it if nothing is held.
pub(super) fn write(storage: &dyn Storage, list: &HeldList) -> io::Result<()> {
    absent(storage.remove(UNFINISHED))?;
    if list.events.is_empty() {
        return absent(storage.remove(FILE));
    }
    let text = serde_json::to_vec(list).map_err(io::Error::other)?;
    storage.create(UNFINISHED)?.write(0, &text)?;
    storage.rename(UNFINISHED, FILE)
}

/// Reads the file; an empty list if there is none.
pub fn read(storage: &dyn Storage) -> io::Result<HeldList> {
    let bytes = match storage.len(FILE) {
        Ok(len) => storage.read(FILE, 0, len as usize)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(HeldList::default()),
        Err(error) => return Err(error),
    };
    serde_json::from_slice(&bytes)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("{FILE}: {error}")))
}

fn absent(removed: io::Result<()>) -> io::Result<()> {
    removed.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}
