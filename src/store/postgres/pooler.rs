//! Finds out a pooler that lends the database's sessions for a transaction at a time.
//!
//! Through one of those a prepared statement, a LISTEN and the settings of a session are some other client's in the next
//! transaction: calls fail at random, and other programs get our settings. It shows by the process ids of backends: ours
//! changes from one transaction to the next, or another connection, made while ours is open, is given the same one.

use std::time::Duration;

use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, SimpleQueryMessage};

use super::error::CallError;
use super::target::Target;
use crate::StoreError;

/// How long the second connection may take. A pooler with a single session to give makes it wait.
const SECOND_CONNECTION_TIME_MAX: Duration = Duration::from_secs(1);

/// With the start of its server: another one may have a process of the same number.
const BACKEND: &str = "SELECT concat_ws(' of ', pg_backend_pid(), pg_postmaster_start_time())";

/// Refuses a session that is lent for a transaction only. `client` is new and idle; a second connection is made for a
/// moment.
///
/// # Errors
/// `Misconfigured` where it is lent, `Unavailable` and others where the question itself failed.
pub(super) async fn refuse_lent_sessions(target: &Target, client: &Client) -> Result<(), StoreError> {
    let asked = async { Ok((backend(client).await?, backend(client).await?)) };
    let (first, second) = asked.await.map_err(|error| StoreError::from(CallError::new(&error)))?;
    let mut is_lent = first != second;
    if !is_lent {
        // A database without room for another connection, or one that takes long, does not answer that question.
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

/// Whether another connection that begins a transaction is given `ours`, or leaves us with another.
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
            // Asked only here: it would wait for the one that the other has.
            theirs => theirs.and(backend(client).await).map(|now| now != ours),
        }
    };
    // Closed before this session rests: nothing moves on its runtime then.
    drop(other);
    let _ = connection.await;
    gives_way
}

/// Which backend answers.
async fn backend(client: &Client) -> Result<String, tokio_postgres::Error> {
    let answer = client.simple_query(BACKEND).await?;
    let row = answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    Ok(row.unwrap_or_default().to_owned())
}
