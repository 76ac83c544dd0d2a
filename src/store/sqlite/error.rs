//! What a failed call to SQLite means: try again, a row is at fault, or an operator has to act.

use std::path::Path;

use rusqlite::ErrorCode;

use crate::{DatabaseError, StoreError};

/// Sorts an error on the database file `path`. SQLite's messages name tables and constraints, never values.
pub(super) fn classify(path: &Path, error: &rusqlite::Error) -> StoreError {
    let path = path.display();
    let rusqlite::Error::SqliteFailure(failure, _) = error else {
        // A row or statement that does not match this program's schema.
        return StoreError::Misconfigured(format!("{path} does not have this program's tables: {error}"));
    };
    match failure.code {
        ErrorCode::ConstraintViolation | ErrorCode::TooBig | ErrorCode::TypeMismatch => {
            StoreError::RowRefused(DatabaseError::new(failure.extended_code.to_string(), error.to_string()))
        }
        ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => StoreError::Misconfigured(format!(
            "{path} is damaged or no SQLite database ({error}); restore it from a backup, or move it away to start empty"
        )),
        ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::PermissionDenied => {
            StoreError::Misconfigured(format!(
                "{path} cannot be opened for writing ({error}); this user must own the file and its directory, and have files left to open"
            ))
        }
        // SQLITE_ERROR: a missing table or the like.
        ErrorCode::Unknown => {
            StoreError::Misconfigured(format!("{path}: {error}; `millrace migrate` creates what is missing"))
        }
        ErrorCode::DiskFull => StoreError::TooMuch(format!("the disk that holds {path} is full")),
        ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => {
            StoreError::Unavailable(format!("another process keeps {path} locked"))
        }
        ErrorCode::OperationInterrupted => StoreError::TooMuch(format!("{path}: the call took too long")),
        _ => StoreError::Unavailable(format!("{path}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::ffi;

    use super::*;

    #[test]
    fn every_result_code_has_the_right_culprit() {
        let kind = |code| match classify(
            Path::new("/d/millrace.db"),
            &rusqlite::Error::SqliteFailure(ffi::Error::new(code), None),
        ) {
            StoreError::RowRefused(_) => "row",
            StoreError::Misconfigured(why) if why.contains("/d/millrace.db") => "configuration",
            StoreError::Unavailable(_) => "server",
            StoreError::TooMuch(_) => "size",
            other => panic!("{other}"),
        };
        for (expected, codes) in [
            ("row", [ffi::SQLITE_CONSTRAINT, ffi::SQLITE_TOOBIG, ffi::SQLITE_MISMATCH]),
            ("configuration", [ffi::SQLITE_CORRUPT, ffi::SQLITE_READONLY, ffi::SQLITE_CANTOPEN]),
            ("configuration", [ffi::SQLITE_NOTADB, ffi::SQLITE_PERM, ffi::SQLITE_ERROR]),
            ("size", [ffi::SQLITE_FULL, ffi::SQLITE_INTERRUPT, ffi::SQLITE_FULL]),
            ("server", [ffi::SQLITE_LOCKED, ffi::SQLITE_BUSY, ffi::SQLITE_IOERR]),
            ("server", [ffi::SQLITE_NOMEM, ffi::SQLITE_PROTOCOL, ffi::SQLITE_NOLFS]),
        ] {
            for code in codes {
                assert_eq!(kind(code), expected, "{code}");
            }
        }
    }
}
