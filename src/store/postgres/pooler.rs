//! Detects a pooler that lends the database's sessions for one transaction at a time.
//!
//! With such a pooler, prepared statements, LISTEN and the settings of a session go to another client in the next
//! transaction: calls fail at random, and other programs get our settings. The process ids of backends show it: ours changes
//! between two transactions, or another connection that is made while ours is open gets the same one.

use std::time::Duration;

use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, SimpleQueryMessage};

use super::error::CallError;
use super::target::Target;
use crate::StoreError;

/// How long the second connection may take. A pooler with a single session makes it wait.
const SECOND_CONNECTION_TIME_MAX: Duration = Duration::from_secs(1);

/// With the server's start time: another server may have a process with the same number.
const BACKEND: &str = "SELECT concat_ws(' of ', pg_backend_pid(), pg_postmaster_start_time())";

/// Refuses a session that is lent for a transaction only. `client` is new and idle; a second connection is made for a short
/// time.
///
/// # Errors
/// `Misconfigured` if the session is lent, `Unavailable` and others if the check itself failed.
pub(super) async fn refuse_lent_sessions(target: &Target, client: &Client) -> Result<(), StoreError> {
    let asked = async { Ok((backend(client).await?, backend(client).await?)) };
    let (first, second) = asked.await.map_err(|error| StoreError::from(CallError::new(&error)))?;
    let mut is_lent = first != second;
    if !is_lent {
        // A database without room for another connection, or a slow one, leaves the question open.
        let other = timeout(SECOND_CONNECTION_TIME_MAX, gives_way(target, client, &first)).await;
        is_lent = other.is_ok_and(|gives_way| gives_way.unwrap_or(false));
    }
    if is_lent {
        return Err(StoreError::Misconfigured(
            "a pooler between this server and the database lends connections for a transaction (as PgBouncer does with \
             pool_mode = transaction), and prepared statements, LISTEN and settings of a session do not survive that; \
             set pool_mode = session for this database, or connect to the database itself"
                .to_owned(),
        ));
    }
    Ok(())
}

/// Whether another connection that begins a transaction gets the backend `ours`, or changes ours.
async fn gives_way(target: &Target, client: &Client, ours: &str) -> Result<bool, tokio_postgres::Error> {
    let (other, connection) = target.config.connect(target.tls.clone()).await?;
    let connection = tokio::spawn(connection);
    let begun = other.batch_execute("BEGIN").await;
    // Lent for a single statement: a transaction is refused.
    let gives_way = if begun.is_err_and(|error| error.code() == Some(&SqlState::PROTOCOL_VIOLATION)) {
        Ok(true)
    } else {
        match backend(&other).await {
            Ok(theirs) if theirs == ours => Ok(true),
            // Asked only here: otherwise it would wait for the backend that the other connection has.
            theirs => theirs.and(backend(client).await).map(|now| now != ours),
        }
    };
    // Closed before this session is idle, because its runtime does not run then.
    drop(other);
    let _ = connection.await;
    gives_way
}

/// The backend that answers.
async fn backend(client: &Client) -> Result<String, tokio_postgres::Error> {
    let answer = client.simple_query(BACKEND).await?;
    let row = answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    Ok(row.unwrap_or_default().to_owned())
}
