//! A fresh store for one test, whichever kind, and events to put into it.

use std::sync::Arc;

use uuid::Uuid;

use millrace_base::clock::Timestamp;
use millrace_base::event::{Event, EventId, OrgId};
use millrace_base::key::{ApiKey, Argon2Cost, KeyId, KeyVerifier};
use millrace_store::open::{StoreConfig, open};
use millrace_store::{EventQuery, Store, StoreError, StoredEvent};
use support::postgres::Cluster;

/// Runs each of the functions as a test on each kind of store.
macro_rules! on_both_stores {
    ($($test:ident),+ $(,)?) => {
        mod on_postgres {
            $(#[test] fn $test() { super::$test(&crate::store::fixture::Fixture::postgres()); })+
        }
        mod on_sqlite {
            $(#[test] fn $test() { super::$test(&crate::store::fixture::Fixture::sqlite()); })+
        }
    };
}
pub(crate) use on_both_stores;

/// An empty database.
pub struct Fixture {
    pub config: StoreConfig,
    _dir: tempfile::TempDir,
}

impl Fixture {
    pub fn postgres() -> Self {
        Self::on(Some(Cluster::shared().create_database()))
    }

    pub fn sqlite() -> Self {
        Self::on(None)
    }

    pub fn on(database_url: Option<String>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = StoreConfig { database_url, data_dir: dir.path().join("data"), connections_max: 8 };
        Self { config, _dir: dir }
    }

    /// The store as a process opens it: another instance at each call.
    pub fn open(&self) -> Arc<dyn Store> {
        open(&self.config).unwrap()
    }

    /// The same with its schema up to date.
    pub fn migrated(&self) -> Arc<dyn Store> {
        let store = self.open();
        store.migrate().unwrap();
        store
    }

    /// Runs the test's own SQL: the first where the store is Postgres, the second where it is SQLite.
    pub fn sql(&self, postgres: &str, sqlite: &str) {
        match &self.config.database_url {
            Some(url) => admin(url).batch_execute(postgres).unwrap(),
            None => self.file().execute_batch(sqlite).unwrap(),
        }
    }

    /// One number out of the database, by SQL both understand.
    pub fn count(&self, sql: &str) -> i64 {
        match &self.config.database_url {
            Some(url) => admin(url).query_one(sql, &[]).unwrap().get(0),
            None => self.file().query_row(sql, [], |row| row.get(0)).unwrap(),
        }
    }

    fn file(&self) -> rusqlite::Connection {
        let file = rusqlite::Connection::open(self.config.data_dir.join("millrace.db")).unwrap();
        file.busy_timeout(std::time::Duration::from_secs(10)).unwrap();
        file
    }
}

/// A plain connection to the database of a URL.
pub fn admin(url: &str) -> postgres::Client {
    postgres::Client::connect(url, postgres::NoTls).unwrap()
}

/// Storing where nobody waits for a delivery.
pub trait StorePlain {
    /// Returns how many events are new.
    fn store_plain(&self, batch: &[Event]) -> Result<u64, StoreError>;
}

impl StorePlain for dyn Store {
    fn store_plain(&self, batch: &[Event]) -> Result<u64, StoreError> {
        let stored = self.store_events(batch, &[])?;
        assert_eq!(stored.deliveries, []);
        Ok(stored.new_events)
    }
}

pub fn org() -> OrgId {
    OrgId(Uuid::now_v7())
}

/// An event without a `dedup_id`, received now.
pub fn event(org: OrgId, payload: &str) -> Event {
    event_at(org, Timestamp::now(), payload)
}

pub fn event_at(org: OrgId, at: Timestamp, payload: &str) -> Event {
    Event::new(EventId(Uuid::now_v7()), org, at, "user.login", None, payload.as_bytes())
}

/// An event whose id is derived from its `dedup_id`.
pub fn derived_at(org: OrgId, at: Timestamp, dedup_id: &str) -> Event {
    Event::new(EventId::derived(org, dedup_id), org, at, "user.login", Some(dedup_id), b"{\"n\": 1}")
}

/// A moment of a day long gone, so that nothing depends on when the test runs.
pub fn at(rfc3339: &str) -> Timestamp {
    Timestamp::parse_rfc3339(rfc3339).unwrap()
}

/// Every stored event of an organisation.
pub fn stored(store: &dyn Store, org: OrgId) -> Vec<StoredEvent> {
    let (events, next) = store.events(org, &EventQuery { limit: 1000, ..EventQuery::default() }).unwrap();
    assert!(next.is_none(), "the test stores too much for one page");
    events
}

/// A new key's id and what the database keeps of it.
pub fn key() -> (KeyId, KeyVerifier) {
    let key = ApiKey::generate().unwrap();
    (key.id(), key.verifier(Argon2Cost { memory_kib: 8, iterations: 1 }))
}
