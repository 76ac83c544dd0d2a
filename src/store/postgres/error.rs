//! What a failed call to Postgres means: who is at fault, and whether the session can still be used.
//!
//! One match sorts the classes of SQLSTATE. No text made here may carry a client's payload or a secret. Of the server's
//! error only the code, the primary message and names of the schema are kept, because DETAIL, CONTEXT and HINT echo rows.
//! A primary message that may quote a value is cut before the value.

use std::fmt;

use tokio_postgres::error::DbError;

use crate::{DatabaseError, StoreError};

/// Why a call within a session failed.
#[derive(Debug)]
pub(super) enum CallError {
    /// The server answered with an error.
    Database(Box<DbError>),
    /// No answer, or none that makes sense: it is not known whether the call took effect.
    ConnectionLost(String),
    /// No answer in time: it is not known whether the call took effect.
    TimedOut(String),
    /// The server's certificate or its way of authentication is not acceptable.
    Untrusted(String),
}

impl CallError {
    /// Sorts out an error of the driver.
    pub(super) fn new(error: &tokio_postgres::Error) -> Self {
        if let Some(refused) = error.as_db_error() {
            return Self::Database(Box::new(refused.clone()));
        }
        match std::error::Error::source(error).map(|source| (source, source.downcast_ref::<std::io::Error>())) {
            None => Self::ConnectionLost(error.to_string()),
            Some((_, Some(io))) => {
                let tls = io.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
                match tls {
                    Some(tls) => Self::Untrusted(format!("TLS: {tls}")),
                    None => Self::ConnectionLost(format!("{error}: {io}")),
                }
            }
            Some((source, None)) => Self::Untrusted(format!("{error}: {source}")),
        }
    }

    /// The violated constraint, if there is one.
    pub(super) fn constraint(&self) -> Option<&str> {
        match self {
            Self::Database(refused) => refused.constraint(),
            Self::ConnectionLost(_) | Self::TimedOut(_) | Self::Untrusted(_) => None,
        }
    }

    /// Whether an event's day has no partition: a check violation (23514) of no constraint.
    pub(super) fn is_missing_partition(&self) -> bool {
        matches!(self, Self::Database(refused) if refused.code().code() == "23514" && refused.constraint().is_none())
    }

    /// Whether a row with the same id, or another unique value, exists.
    pub(super) fn is_unique_violation(&self) -> bool {
        self.is_refused_with(&["23505"])
    }

    /// Whether the table takes rows, but not by COPY: row security is on (0A000), or it is a view (42809).
    pub(super) fn is_copy_unsupported(&self) -> bool {
        self.is_refused_with(&["0A000", "42809"])
    }

    fn is_refused_with(&self, codes: &[&str]) -> bool {
        matches!(self, Self::Database(refused) if codes.contains(&refused.code().code()))
    }

    /// Whether the session must be dropped: it is gone, or a new one may reach a better server after a failover, or has no
    /// stale plans and lost prepared statements.
    pub(super) fn ends_session(&self) -> bool {
        match self {
            Self::ConnectionLost(_) | Self::TimedOut(_) | Self::Untrusted(_) => true,
            Self::Database(refused) => {
                let code = refused.code().code();
                matches!(&code[..2], "08" | "25" | "26" | "57" | "58" | "XX" | "0A")
            }
        }
    }
}

impl From<CallError> for StoreError {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Database(refused) => classify(refused.code().code(), || describe(&refused)),
            CallError::ConnectionLost(why) => Self::Unavailable(why),
            CallError::TimedOut(why) => Self::TooMuch(why),
            CallError::Untrusted(why) => Self::Misconfigured(why),
        }
    }
}

/// The error of a change of the schema, which is never a row's fault. `text` puts the reason into a sentence.
pub(super) fn schema_error(refused: &DbError, text: impl FnOnce(&str) -> String) -> StoreError {
    let text = text(&describe(refused));
    let code = refused.code().code();
    match &code[..2] {
        "22" | "23" | "28" | "3D" | "3F" | "42" | "54" | "P0" => StoreError::Misconfigured(text),
        "55" if code == "55P03" => StoreError::Locked(text),
        _ => StoreError::Unavailable(text),
    }
}

/// Who is at fault, by SQLSTATE.
fn classify(code: &str, describe: impl FnOnce() -> String) -> StoreError {
    let class = code.get(..2).unwrap_or_default();
    match class {
        // Data exception, integrity constraint violation, program limit exceeded: this row, every time.
        "22" | "23" | "54" => StoreError::RowRefused(DatabaseError::new(code, describe())),
        // RAISE EXCEPTION in a trigger.
        "P0" if code == "P0001" => StoreError::RowRefused(DatabaseError::new(code, describe())),
        // Authorization, missing object or permission, unknown database, unknown schema, unusable server settings.
        "28" | "42" | "3D" | "3F" | "F0" => StoreError::Misconfigured(describe()),
        // The statement was cancelled: it took too long.
        "57" if code == "57014" => StoreError::TooMuch(describe()),
        "55" if code == "55P03" => StoreError::Locked(describe()),
        // Connection, transaction state (25006: read-only after a failover), a statement lost by a pooler, rollback,
        // resources, object state, intervention.
        "08" | "25" | "26" | "40" | "53" | "55" | "57" => StoreError::Unavailable(describe()),
        // Server faults (58, XX; a damaged page concerns one row), errors of functions and triggers, and codes not known here.
        _ => StoreError::Unexplained(DatabaseError::new(code, describe())),
    }
}

fn describe(refused: &DbError) -> String {
    struct Named<'a>(&'a DbError);
    impl fmt::Display for Named<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            let names = [("table", self.0.table()), ("column", self.0.column()), ("constraint", self.0.constraint())];
            for (what, name) in names {
                if let Some(name) = name {
                    write!(f, ", {what} {name}")?;
                }
            }
            Ok(())
        }
    }
    let code = refused.code().code();
    let message = match &code[..2] {
        // "invalid input syntax for type integer: "…"": the value comes after the colon or in quotes.
        "22" => refused.message().split([':', '"']).next().unwrap_or_default().trim_end(),
        // A trigger's own message, which may quote the row.
        "P0" => "raised by a trigger or function",
        _ => refused.message(),
    };
    format!("{message} (SQLSTATE {code}{})", Named(refused))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_has_the_right_culprit() {
        let kind = |code| match classify(code, String::new) {
            StoreError::RowRefused(_) => "row",
            StoreError::Misconfigured(_) => "configuration",
            StoreError::Unavailable(_) => "server",
            StoreError::TooMuch(_) => "size",
            StoreError::Locked(_) => "lock",
            StoreError::Unexplained(_) => "either",
            StoreError::Rejected(_) => "caller",
        };
        for (expected, codes) in [
            ("row", &["22P02", "22021", "22003", "23502", "23514", "23505", "54000", "54001", "P0001"][..]),
            ("configuration", &["28P01", "28000", "42P01", "42501", "42703", "3D000", "3F000"]),
            ("configuration", &["42P07", "42883", "42809"]),
            ("size", &["57014"]),
            ("lock", &["55P03"]),
            (
                "server",
                &[
                    "08006", "08P01", "53300", "53100", "53200", "57000", "57P01", "57P02", "57P03", "57P05", "40001",
                    "40P01", "55006", "25006", "25P02", "26000",
                ],
            ),
            (
                "either",
                &[
                    "58030", "58P01", "XX000", "XX001", "XX002", "0A000", "P0002", "P0003", "P0004", "21000", "27000",
                    "2F002", "38001", "39004", "44000", "HV000", "", "?",
                ],
            ),
        ] {
            for code in codes {
                assert_eq!(kind(code), expected, "{code}");
            }
        }
    }
}
