//! The connections that threads share to call a store: an r2d2 pool that is empty at first.
//!
//! r2d2 connects on threads of its own and tries again for ever, with growing pauses. Two things are set here:
//! - A pause is at most [`limits::STORE_RECONNECT_INTERVAL_MAX`], so that the return of a database is noticed soon.
//! - A caller does not wait its whole time while the database refuses everybody. It gets the error of the first attempt
//!   to connect that failed after it asked. r2d2 would let it wait and then give a text; callers need to know whether the
//!   database is away or this server is misconfigured (docs/decisions/0040-connection-pool.md).
//!
//! A wait ends when the caller says so, an attempt to connect within [`limits::STORE_CONNECT_TIMEOUT`]. Dropping a
//! connection must not block. Nothing here logs.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use r2d2::{HandleError, ManageConnection, PooledConnection};

use millrace_base::limits;

use super::StoreError;

/// How often a caller that waits looks whether the attempts to connect fail.
const FAILURE_POLL_INTERVAL: Duration = Duration::from_millis(50);

/// A pool of `M`'s connections.
pub(super) struct Pool<M: ManageConnection> {
    pool: r2d2::Pool<M>,
    failures: Arc<Failures>,
}

impl<M: ManageConnection<Error = PoolError>> Pool<M> {
    /// A pool of at most `connections_max` connections, and of at least one. Connects at the first call of [`Self::get`].
    pub(super) fn new(manager: M, connections_max: u32) -> Self {
        let failures = Arc::new(Failures::default());
        let pool = r2d2::Pool::builder()
            .max_size(connections_max.max(1))
            .min_idle(Some(0))
            .test_on_check_out(true)
            // r2d2 pauses between attempts for up to half of this.
            .connection_timeout(2 * limits::STORE_RECONNECT_INTERVAL_MAX)
            .error_handler(Box::new(FailureHandler(Arc::clone(&failures))))
            .build_unchecked(manager);
        Self { pool, failures }
    }

    /// A connection, within `patience`.
    ///
    /// # Errors
    /// Why connecting failed, if there is no connection to wait for; `Unavailable` if all stay in use.
    pub(super) fn get(&self, patience: Duration) -> Result<PooledConnection<M>, StoreError> {
        let asked = Instant::now();
        let failures_before = self.failures.lock().count;
        loop {
            let left = patience.saturating_sub(asked.elapsed());
            if let Ok(connection) = self.pool.get_timeout(left.min(FAILURE_POLL_INTERVAL)) {
                return Ok(connection);
            }
            let failures = self.failures.lock();
            match &failures.last {
                Some(error) if failures.count > failures_before && self.pool.state().connections == 0 => {
                    return Err(error.clone());
                }
                _ if left.is_zero() => {
                    let most = self.pool.max_size();
                    return Err(StoreError::Unavailable(format!("none of {most} connections became free in time")));
                }
                _ => {}
            }
        }
    }

    /// A connection that nobody uses now. Does not connect.
    pub(super) fn get_idle(&self) -> Option<PooledConnection<M>> {
        self.pool.try_get()
    }

    /// Drops the connections that are not usable any more and that nobody uses now. Returns whether none is left.
    pub(super) fn drop_idle(&self) -> bool {
        // r2d2 tests each connection that it takes out.
        drop(self.pool.try_get());
        self.pool.state().connections == 0
    }
}

/// What a manager reports to the pool.
#[derive(Debug)]
pub(super) enum PoolError {
    /// An attempt to connect failed.
    NotConnected(StoreError),
    /// A connection that was idle cannot be used any more.
    Lost,
}

impl fmt::Display for PoolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotConnected(error) => error.fmt(f),
            Self::Lost => f.write_str("the connection was lost"),
        }
    }
}

impl std::error::Error for PoolError {}

/// The attempts to connect that failed.
#[derive(Default)]
struct Failures(Mutex<FailuresSoFar>);

#[derive(Default)]
struct FailuresSoFar {
    count: u64,
    last: Option<StoreError>,
}

impl Failures {
    fn lock(&self) -> MutexGuard<'_, FailuresSoFar> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Called by r2d2 with each error of the manager.
struct FailureHandler(Arc<Failures>);

impl HandleError<PoolError> for FailureHandler {
    fn handle_error(&self, error: PoolError) {
        if let PoolError::NotConnected(error) = error {
            let mut failures = self.0.lock();
            failures.count += 1;
            failures.last = Some(error);
        }
    }
}

impl fmt::Debug for FailureHandler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FailureHandler").finish_non_exhaustive()
    }
}
