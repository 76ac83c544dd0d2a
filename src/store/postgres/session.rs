//! One blocking session with a Postgres server, with a deadline for every call.
//!
//! The driver is asynchronous. Each session owns a small runtime that runs only during a call, on the caller's thread. This
//! adds what a blocking driver lacks: a deadline on the client's side, so that a server that hangs with its connections
//! alive does not block its callers, and a drop that closes the socket without waiting.
//!
//! Invariants: a session that may be out of step (a deadline passed, the connection was lost) is `broken` and never used
//! again. All calls between one [`Session::begin_call`] and the next share a deadline. A thread that already runs a tokio
//! runtime must not use a session: it would panic.

use std::collections::HashMap;
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_channel::mpsc;
use futures_util::future::join;
use futures_util::{SinkExt, StreamExt, stream};
use tokio::runtime::{Builder, Runtime};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_postgres::types::ToSql;
use tokio_postgres::{AsyncMessage, Client, Row, SimpleQueryMessage, Statement};

use millrace_base::limits;

use super::error::CallError;
use super::pooler;
use super::target::Target;
use crate::StoreError;

/// The oldest supported major version of the server. It attaches a partition without blocking, sorts over partitions
/// without a sort step, and notices during a statement that the client is gone.
const SERVER_MAJOR_VERSION_MIN: u32 = 14;

/// Commits. COMMIT alone reports success even if the transaction has failed and is rolled back. The statement before it
/// does nothing, and fails then.
const COMMIT: &str = "CLOSE ALL; COMMIT";

/// A session with a Postgres server.
pub(super) struct Session {
    /// `None` only while it is dropped.
    runtime: Option<Runtime>,
    conversation: Conversation,
    deadline: Instant,
    times: Timeouts,
    broken: bool,
}

/// The time limits of a session.
#[derive(Clone, Copy)]
pub(super) struct Timeouts {
    /// For a whole call, on the client's side.
    pub(super) call: Duration,
    /// For a statement, on the server's side: a little less, so that the server answers with an error.
    statement: Duration,
    /// For waiting for a lock.
    lock: Duration,
    /// How often the server checks that the client is still there; if not, it ends the statement.
    check: Option<Duration>,
}

impl Timeouts {
    /// For the threads that store, verify and send.
    pub(super) const USUAL: Self = Self {
        call: limits::STORE_CALL_TIMEOUT,
        statement: limits::STORE_STATEMENT_TIMEOUT,
        lock: limits::STORE_LOCK_TIMEOUT,
        check: None,
    };
    /// For the control threads, which clients wait for.
    pub(super) const CONTROL: Self = Self {
        call: limits::CONTROL_CALL_TIMEOUT,
        statement: limits::CONTROL_STATEMENT_TIMEOUT,
        lock: limits::CONTROL_LOCK_TIMEOUT,
        check: Some(limits::CONTROL_CLIENT_CHECK_INTERVAL),
    };
}

/// The driver's client and the statements prepared on it, as [`Session::within`] passes them to a call.
pub(super) struct Conversation {
    pub(super) client: Client,
    /// By text. All texts are constants of this program, so their number is bounded.
    statements: HashMap<&'static str, Statement>,
}

/// The channel for a session's notifications.
pub(super) type Notifications = mpsc::Sender<String>;

impl Session {
    /// Connects, checks the server and sets the session up, all within [`limits::STORE_CONNECT_TIMEOUT`]. Gives up soon after
    /// `stop` is set.
    pub(super) fn connect(
        target: &Target,
        times: Timeouts,
        notifications: Option<Notifications>,
        stop: Option<&AtomicBool>,
    ) -> Result<Self, StoreError> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| StoreError::Unavailable(format!("no runtime for a connection: {error}")))?;
        let connected = runtime.block_on(async {
            let opening = timeout(limits::STORE_CONNECT_TIMEOUT, open(target, times, notifications));
            match unless_stopped(opening, stop).await {
                Some(Ok(opened)) => opened,
                Some(Err(_)) => Err(no_answer(limits::STORE_CONNECT_TIMEOUT)),
                None => Err(StoreError::Unavailable("stopped while connecting".to_owned())),
            }
        });
        match connected {
            Ok(client) => Ok(Self {
                runtime: Some(runtime),
                conversation: Conversation { client, statements: HashMap::new() },
                deadline: Instant::now(),
                times,
                broken: false,
            }),
            Err(error) => {
                target.sessions_are_own.store(false, Ordering::Relaxed);
                // A drop would wait for a name lookup in progress.
                runtime.shutdown_background();
                Err(error)
            }
        }
    }

    /// Starts the time of a call: everything until the next `begin_call` ends within the session's [`Timeouts::call`].
    pub(super) fn begin_call(&mut self) {
        self.deadline = Instant::now() + self.times.call;
    }

    /// Starts the time of a migration, which is not bounded.
    pub(super) fn begin_migration(&mut self) {
        self.deadline = Instant::now() + limits::MIGRATION_TIME_MAX;
    }

    /// Runs `work` until the call's deadline.
    pub(super) fn within<T>(
        &mut self,
        work: impl AsyncFnOnce(&mut Conversation) -> Result<T, tokio_postgres::Error>,
    ) -> Result<T, CallError> {
        let runtime = self.runtime.as_ref().expect("taken by drop only");
        let conversation = &mut self.conversation;
        let result = runtime.block_on(async { timeout_at(self.deadline, work(conversation)).await });
        let result = match result {
            Ok(answered) => answered.map_err(|error| CallError::new(&error)),
            Err(_) => Err(CallError::TimedOut("no answer in time; whether it took effect is not known".to_owned())),
        };
        self.broken |= result.as_ref().is_err_and(CallError::ends_session);
        result
    }

    /// Runs one statement and collects its rows. For small results.
    pub(super) fn query(&mut self, sql: &'static str, params: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, CallError> {
        self.within(async |conversation: &mut Conversation| conversation.query(sql, params).await)
    }

    /// Runs one statement and returns its first row.
    pub(super) fn query_opt(
        &mut self,
        sql: &'static str,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Option<Row>, CallError> {
        self.query(sql, params).map(|rows| rows.into_iter().next())
    }

    /// Runs one statement and returns how many rows it touched.
    pub(super) fn execute(&mut self, sql: &'static str, params: &[&(dyn ToSql + Sync)]) -> Result<u64, CallError> {
        self.within(async |conversation: &mut Conversation| {
            let statement = conversation.prepare(sql).await?;
            conversation.client.execute(&statement, params).await
        })
    }

    /// Runs one COPY … FROM STDIN in a transaction of its own with `chunks`; returns how many rows are committed.
    ///
    /// The driver's `finish` returns at `CommandComplete`. Outside a transaction block the server commits only after that, at
    /// Sync, and the driver ignores an error at commit or the end of the backend. So the block is explicit, and the answer to
    /// COMMIT counts.
    pub(super) fn copy_in(&mut self, sql: &'static str, chunks: impl Iterator<Item = Bytes>) -> Result<u64, CallError> {
        let mut has_begun = false;
        let result = self.within(async |conversation: &mut Conversation| {
            let statement = conversation.prepare(sql).await?;
            let client = &conversation.client;
            // Both are sent before the answer to the first.
            let (begun, copying) = join(client.batch_execute("BEGIN"), client.copy_in(&statement)).await;
            begun?;
            let mut sink = pin!(copying?);
            has_begun = true;
            for chunk in chunks {
                sink.feed(chunk).await?;
            }
            // COMMIT is sent before the answer to the COPY. If the COPY failed, COMMIT fails, too.
            match join(sink.finish(), client.batch_execute(COMMIT)).await {
                (Ok(rows), committed) => committed.map(|()| rows),
                (Err(error), _) => {
                    // If the connection is gone, the first error tells more.
                    let _ = client.batch_execute("ROLLBACK").await;
                    Err(error)
                }
            }
        });
        // The driver also ends a COPY that the server did not begin, and would take the server's reply to that for the
        // answer to the next request.
        self.broken |= result.is_err() && !has_begun;
        result
    }

    /// Receives what the server has sent, and waits until `until` is ready or `most` has passed.
    pub(super) fn wait<T>(&mut self, most: Duration, until: impl Future<Output = T>) -> Option<T> {
        let runtime = self.runtime.as_ref().expect("taken by drop only");
        runtime.block_on(async { timeout(most, until).await.ok() })
    }

    /// Checks that the server answers; `None` if `stop` was set meanwhile.
    pub(super) fn ping(&mut self, stop: &AtomicBool) -> Option<Result<(), CallError>> {
        self.deadline = Instant::now() + limits::STORE_CHANGE_PING_TIMEOUT;
        self.within(async |conversation: &mut Conversation| {
            unless_stopped(conversation.client.batch_execute("SELECT 1"), Some(stop)).await.transpose()
        })
        .transpose()
    }

    /// Whether the session can be used, as far as that shows without asking the server.
    pub(super) fn is_usable(&mut self) -> bool {
        if self.broken || self.conversation.client.is_closed() {
            return false;
        }
        // If the server closed an idle connection, the socket shows it. Two polls of the runtime read that: one to notice
        // and one to act.
        let runtime = self.runtime.as_ref().expect("taken by drop only");
        runtime.block_on(async {
            for _ in 0..2 {
                tokio::task::yield_now().await;
            }
        });
        !self.conversation.client.is_closed()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Conversation {
    /// The prepared statement of a text, prepared on first use.
    pub(super) async fn prepare(&mut self, sql: &'static str) -> Result<Statement, tokio_postgres::Error> {
        if let Some(statement) = self.statements.get(sql) {
            return Ok(statement.clone());
        }
        let statement = self.client.prepare(sql).await?;
        self.statements.insert(sql, statement.clone());
        Ok(statement)
    }

    /// Runs one statement and collects its rows.
    pub(super) async fn query(
        &mut self,
        sql: &'static str,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, tokio_postgres::Error> {
        let statement = self.prepare(sql).await?;
        self.client.query(&statement, params).await
    }
}

fn no_answer(after: Duration) -> StoreError {
    StoreError::Unavailable(format!("no answer within {} s", after.as_secs()))
}

/// `work`, or `None` soon after `stop` is set.
async fn unless_stopped<T>(work: impl Future<Output = T>, stop: Option<&AtomicBool>) -> Option<T> {
    let mut work = pin!(work);
    loop {
        if let Ok(done) = timeout(limits::STOP_POLL_INTERVAL, work.as_mut()).await {
            return Some(done);
        }
        if stop.is_some_and(|stop| stop.load(Ordering::Relaxed)) {
            return None;
        }
    }
}

async fn open(target: &Target, times: Timeouts, notifications: Option<Notifications>) -> Result<Client, StoreError> {
    let connecting = target.config.connect(target.tls.clone()).await;
    let (client, mut connection) = connecting.map_err(|error| StoreError::from(CallError::new(&error)))?;
    check_server(connection.parameter("server_encoding"), connection.parameter("server_version"))?;
    // Runs whenever the runtime does. Notices of the server are dropped.
    tokio::spawn(async move {
        let mut messages = stream::poll_fn(|cx| connection.poll_message(cx));
        let mut notifications = notifications;
        while let Some(Ok(message)) = messages.next().await {
            let AsyncMessage::Notification(notification) = message else { continue };
            // A full channel ends the connection: the change feed then knows that it missed something.
            if let Some(Err(_)) = notifications.as_mut().map(|to| to.try_send(notification.payload().to_owned())) {
                return;
            }
        }
    });
    if !target.sessions_are_own.swap(true, Ordering::Relaxed) {
        pooler::refuse_lent_sessions(target, &client).await?;
    }
    set_up(&client, times, target.schema.as_deref()).await.map_err(|error| StoreError::from(CallError::new(&error)))?;
    Ok(client)
}

fn check_server(encoding: Option<&str>, version: Option<&str>) -> Result<(), StoreError> {
    let encoding = encoding.unwrap_or("unknown");
    if encoding != "UTF8" {
        return Err(StoreError::Misconfigured(format!(
            "the database's encoding is {encoding}; payloads can only be kept verbatim in UTF8 (CREATE DATABASE … \
             ENCODING 'UTF8' TEMPLATE template0)"
        )));
    }
    let major = version.and_then(|text| text.split(|c: char| !c.is_ascii_digit()).next()?.parse::<u32>().ok());
    if major.is_some_and(|major| major < SERVER_MAJOR_VERSION_MIN) {
        let version = version.unwrap_or_default();
        return Err(StoreError::Misconfigured(format!(
            "the server is PostgreSQL {version}; {SERVER_MAJOR_VERSION_MIN} or newer is needed"
        )));
    }
    Ok(())
}

/// Sets the time limits on the server's side too, and undoes defaults of the database that do not work for this store.
async fn set_up(client: &Client, times: Timeouts, schema: Option<&str>) -> Result<(), tokio_postgres::Error> {
    let statement_timeout = times.statement.as_millis();
    let lock_timeout = times.lock.as_millis();
    let idle_timeout = times.call.as_millis();
    // A plain name, so nothing in it has to be escaped.
    let search_path =
        schema.map_or(String::new(), |schema| format!("set_config('search_path', '\"{schema}\"', false), "));
    // The isolation level is what store_events_v1 relies on; JIT compilation only delays statements this short.
    // Every statement reads by index, in its order, and joins few rows to many. A plan is cached early, when tables are
    // small, and would go on reading whole tables while they grow; so the planner gets no other choice.
    let sql = format!(
        "SELECT {search_path}set_config('statement_timeout', '{statement_timeout}', false),
            set_config('lock_timeout', '{lock_timeout}', false),
            set_config('idle_in_transaction_session_timeout', '{idle_timeout}', false),
            set_config('default_transaction_isolation', 'read committed', false),
            set_config('jit', 'off', false),
            set_config('enable_seqscan', 'off', false),
            set_config('enable_hashjoin', 'off', false),
            set_config('enable_mergejoin', 'off', false),
            set_config('enable_bitmapscan', 'off', false);
        SELECT name, setting FROM pg_settings
        WHERE name IN ('fsync', 'full_page_writes', 'synchronous_commit') AND setting = 'off'"
    );
    for message in client.simple_query(&sql).await? {
        let SimpleQueryMessage::Row(row) = message else { continue };
        if let (2, Some(name)) = (row.len(), row.get(0)) {
            warn_once(name);
        }
    }
    if let Some(check) = times.check {
        // Not every system can tell the database that the other side is gone.
        let interval = check.as_millis();
        let _ = client.batch_execute(&format!("SET client_connection_check_interval = {interval}")).await;
    }
    Ok(())
}

fn warn_once(setting: &str) {
    static WARNED: AtomicBool = AtomicBool::new(false);
    if !WARNED.swap(true, Ordering::Relaxed) {
        tracing::warn!(
            setting,
            "the Postgres server runs with {setting} = off: events that were acknowledged can be lost when its machine \
             crashes; set it to on"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_or_non_utf8_postgres_is_refused_with_the_reason() {
        for version in ["14.0", "15.14 (Debian 15.14-0+deb12u1)", "18beta1", "17devel"] {
            assert_eq!(check_server(Some("UTF8"), Some(version)), Ok(()), "{version}");
        }
        for (encoding, version, words) in
            [("UTF8", "13.22", "PostgreSQL 13.22; 14 or newer"), ("UTF8", "9.6", "9.6"), ("LATIN1", "15.1", "UTF8")]
        {
            let Err(StoreError::Misconfigured(why)) = check_server(Some(encoding), Some(version)) else {
                panic!("{encoding} {version} is let in");
            };
            assert!(why.contains(words), "{why}");
        }
    }
}
