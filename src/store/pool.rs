//! Connections shared by the threads that call a store: an r2d2 pool that starts empty and says why it is empty.
//!
//! r2d2 connects on threads of its own and retries for ever with growing pauses; two things are arranged around
//! it. Its pauses stop at [`limits::STORE_RECONNECT_INTERVAL_MAX`], so that a database's return is noticed soon.
//! And a caller does not sit out the whole wait while the database refuses everybody: it is told the error of
//! the first attempt that failed since it asked, as a [`StoreError`] rather than as a text.
//!
//! A wait ends when the caller says, a connect within [`limits::STORE_CONNECT_TIMEOUT`]. Dropping a connection must never block
//! ([`Connector::Connection`]); nothing here logs.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use millrace_base::limits;

use super::StoreError;

/// How often a waiting caller looks whether the attempts to connect fail.
const FAILURE_POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Makes and judges connections.
pub(super) trait Connector: Send + Sync + 'static {
    /// A connection; its drop does not block.
    type Connection: Send + 'static;

    /// Connects within [`limits::STORE_CONNECT_TIMEOUT`].
    fn connect(&self) -> Result<Self::Connection, StoreError>;

    /// Whether the connection may be handed out: asked before and after each use, so without a round trip.
    fn is_usable(&self, connection: &mut Self::Connection) -> bool;
}

/// A pool of `C`'s connections.
pub(super) struct Pool<C: Connector> {
    pool: r2d2::Pool<Manager<C>>,
    failures: Arc<Mutex<Failures>>,
}

/// A connection on loan; goes back when dropped.
pub(super) type Pooled<C> = r2d2::PooledConnection<Manager<C>>;

impl<C: Connector> Pool<C> {
    /// A pool of at most `connections_max`, at least one. Connects when first asked.
    pub(super) fn new(connector: C, connections_max: u32) -> Self {
        let failures = Arc::new(Mutex::new(Failures { count: 0, last: None }));
        let manager = Manager { connector, failures: Arc::clone(&failures) };
        let pool = r2d2::Pool::builder()
            .max_size(connections_max.max(1))
            .min_idle(Some(0))
            .test_on_check_out(true)
            // r2d2 pauses between attempts for up to half of this.
            .connection_timeout(2 * limits::STORE_RECONNECT_INTERVAL_MAX)
            .error_handler(Box::new(r2d2::NopErrorHandler))
            .build_unchecked(manager);
        Self { pool, failures }
    }

    /// A connection, at most `patience` from now.
    ///
    /// # Errors
    /// Why connecting failed, where there is no connection to wait for; `Unavailable` where all stay in use.
    pub(super) fn get(&self, patience: Duration) -> Result<Pooled<C>, StoreError> {
        let asked = Instant::now();
        let failures_before = self.failures().count;
        loop {
            let left = patience.saturating_sub(asked.elapsed());
            if let Ok(connection) = self.pool.get_timeout(left.min(FAILURE_POLL_INTERVAL)) {
                return Ok(connection);
            }
            let failures = self.failures();
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

    /// One that nobody uses now; connects to nothing.
    pub(super) fn get_idle(&self) -> Option<Pooled<C>> {
        self.pool.try_get()
    }

    /// Drops those that are no longer usable and that nobody uses now. Returns whether there are none left.
    pub(super) fn drop_idle(&self) -> bool {
        // Each is judged when it is taken.
        drop(self.pool.try_get());
        self.pool.state().connections == 0
    }

    fn failures(&self) -> std::sync::MutexGuard<'_, Failures> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Failures {
    count: u64,
    last: Option<StoreError>,
}

/// What r2d2 calls.
pub(super) struct Manager<C> {
    connector: C,
    failures: Arc<Mutex<Failures>>,
}

impl<C: Connector> r2d2::ManageConnection for Manager<C> {
    type Connection = C::Connection;
    type Error = StoreError;

    fn connect(&self) -> Result<C::Connection, StoreError> {
        self.connector.connect().inspect_err(|error| {
            let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
            failures.count += 1;
            failures.last = Some(error.clone());
        })
    }

    fn is_valid(&self, connection: &mut C::Connection) -> Result<(), StoreError> {
        if self.connector.is_usable(connection) {
            Ok(())
        } else {
            Err(StoreError::Unavailable("the connection was lost".to_owned()))
        }
    }

    fn has_broken(&self, connection: &mut C::Connection) -> bool {
        !self.connector.is_usable(connection)
    }
}

impl<C: Connector> fmt::Debug for Manager<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Manager").finish_non_exhaustive()
    }
}
