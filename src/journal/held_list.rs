//! HELD LIST: the file `held.json` beside the segments, which says which events the database does not take while it takes
//! others, and why. Written for `journal inspect`; the server never reads it, and removes it at its start.
//!
//! Not synchronised: after a power cut it may be missing or old. Whoever reads it believes only what the segments hold, too.

use std::io;

use serde::{Deserialize, Serialize};

use super::disk::Storage;

/// The file's name.
pub const FILE: &str = "held.json";
/// Its name until it is whole.
const UNFINISHED: &str = "held.json.new";

/// What is held, as the file says it.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldList {
    /// When this was so, RFC 3339.
    pub as_of: String,
    /// The events, those held for longest first.
    pub events: Vec<HeldEvent>,
}

/// An event that is held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldEvent {
    /// The event's id.
    pub id: String,
    /// Its organisation's.
    pub org_id: String,
    /// Its type.
    #[serde(rename = "type")]
    pub event_type: String,
    /// RFC 3339.
    pub held_since: String,
    /// What the database calls its refusal: an SQLSTATE, or SQLite's word.
    pub code: String,
    /// The same in words.
    pub reason: String,
}

/// Whether a file of this name is this module's.
pub fn is_name(name: &str) -> bool {
    name == FILE || name == UNFINISHED
}

/// Replaces the file, or removes it where nothing is held.
pub(super) fn write(storage: &dyn Storage, list: &HeldList) -> io::Result<()> {
    absent(storage.remove(UNFINISHED))?;
    if list.events.is_empty() {
        return absent(storage.remove(FILE));
    }
    let text = serde_json::to_vec(list).map_err(io::Error::other)?;
    storage.create(UNFINISHED)?.write(0, &text)?;
    storage.rename(UNFINISHED, FILE)
}

/// What the file says; nothing where there is none.
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
