//! One installation of the server on either kind of store, and its database as another program sees it: the same
//! tests run on both.

use std::sync::Arc;

use postgres::NoTls;
use rusqlite::Connection;
use tempfile::TempDir;
use uuid::Uuid;

use millrace_store::Store;
use millrace_store::open::{StoreConfig, open};

use crate::postgres::Cluster;
use crate::server::{Options, Server};

/// Runs each of the functions as a test on each kind of store.
#[macro_export]
macro_rules! on_both_stores {
    ($($test:ident),+ $(,)?) => {
        mod on_postgres {
            $(#[test] fn $test() { super::$test(&$crate::installation::Installation::postgres()); })+
        }
        mod on_sqlite {
            $(#[test] fn $test() { super::$test(&$crate::installation::Installation::sqlite()); })+
        }
    };
}

/// A database of its own and a data directory; servers come and go on it.
pub struct Installation {
    options: Options,
    dir: TempDir,
}

/// A row of `events`.
#[derive(Debug, PartialEq, Eq)]
pub struct Row {
    pub id: String,
    pub org: String,
    pub event_type: String,
    pub dedup_id: Option<String>,
    pub payload: String,
    pub received_at_micros: i64,
}

/// While it lives nothing can be written to `events` and `api_keys`, and keys can be read.
pub enum WriteBlock {
    Postgres(Box<postgres::Client>),
    Sqlite(Connection),
}

impl Installation {
    /// On the embedded store.
    pub fn sqlite() -> Self {
        Self::on(Options::default())
    }

    /// On a new database of the shared cluster.
    pub fn postgres() -> Self {
        Self::postgres_at(&Cluster::shared().create_database())
    }

    /// On a given database.
    pub fn postgres_at(url: &str) -> Self {
        Self::on(Options::postgres(url))
    }

    fn on(mut options: Options) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        // On Postgres each server has a data directory of its own: there may be several.
        options.data_dir = options.database_url.is_none().then(|| dir.path().to_owned());
        Self { options, dir }
    }

    /// Whether it is on Postgres, where several servers can share one database.
    pub fn is_postgres(&self) -> bool {
        self.options.database_url.is_some()
    }

    /// Where its servers keep their files, on the embedded store.
    pub fn data_dir(&self) -> &std::path::Path {
        self.dir.path()
    }

    /// A server of two shards, ready.
    pub fn start(&self, args: &[&str]) -> Server {
        self.start_as(|options| options, args)
    }

    /// The same, with something changed about how it is started.
    pub fn start_as(&self, change: impl Fn(Options) -> Options, args: &[&str]) -> Server {
        Server::start(change(self.options.clone().with(&["--shards", "2"]).with(args)))
    }

    /// The same, listening, with the database perhaps away.
    pub fn start_unready(&self, args: &[&str]) -> Server {
        Server::start_unready(self.options.clone().with(&["--shards", "2"]).with(args))
    }

    /// The store itself, as its servers use it.
    pub fn store(&self) -> Arc<dyn Store> {
        let database_url = self.options.database_url.clone();
        open(&StoreConfig { database_url, data_dir: self.dir.path().to_owned(), connections_max: 2 }).expect("a store")
    }

    /// What is stored of an organisation, oldest first.
    pub fn rows(&self, org: &str) -> Vec<Row> {
        let org = Uuid::parse_str(org).expect("an organisation's id");
        match &self.options.database_url {
            Some(url) => postgres_rows(url, org),
            None => sqlite_rows(&self.file(), org),
        }
    }

    /// Runs the test's own SQL: the first where the store is Postgres, the second where it is SQLite.
    pub fn sql(&self, postgres: &str, sqlite: &str) {
        match &self.options.database_url {
            Some(url) => client(url).batch_execute(postgres).expect("SQL that Postgres takes"),
            None => self.file().execute_batch(sqlite).expect("SQL that SQLite takes"),
        }
    }

    /// Holds locks that writing waits for.
    pub fn block_writes(&self) -> WriteBlock {
        if let Some(url) = &self.options.database_url {
            let locks = "
                BEGIN;
                LOCK TABLE events IN ACCESS EXCLUSIVE MODE;
                LOCK TABLE api_keys IN SHARE MODE";
            let mut client = client(url);
            client.batch_execute(locks).expect("the locks are free");
            WriteBlock::Postgres(Box::new(client))
        } else {
            let file = self.file();
            file.execute_batch("BEGIN IMMEDIATE").expect("the lock is free");
            WriteBlock::Sqlite(file)
        }
    }

    fn file(&self) -> Connection {
        let file = Connection::open(self.dir.path().join("millrace.db")).expect("the file can be opened");
        file.busy_timeout(crate::server::PATIENCE).expect("a setting");
        file
    }
}

fn client(url: &str) -> postgres::Client {
    postgres::Client::connect(url, NoTls).expect("Postgres answers")
}

fn postgres_rows(url: &str, org: Uuid) -> Vec<Row> {
    let sql = "
        SELECT id::text, org_id::text, type, dedup_id, payload::text,
            (extract(epoch FROM received_at) * 1000000)::bigint
        FROM events WHERE org_id::text = $1 ORDER BY received_at, id";
    let rows = client(url).query(sql, &[&org.to_string()]).expect("events can be read");
    let row = |row: &postgres::Row| Row {
        id: row.get(0),
        org: row.get(1),
        event_type: row.get(2),
        dedup_id: row.get(3),
        payload: row.get(4),
        received_at_micros: row.get(5),
    };
    rows.iter().map(row).collect()
}

fn sqlite_rows(file: &Connection, org: Uuid) -> Vec<Row> {
    let sql = "
        SELECT id, org_id, type, dedup_id, payload, received_at
        FROM events WHERE org_id = ?1 ORDER BY received_at, id";
    let mut select = file.prepare(sql).expect("the schema has events");
    let uuid = |row: &rusqlite::Row<'_>, at| row.get(at).map(|id| Uuid::from_bytes(id).to_string());
    let rows = select.query_map([org.as_bytes()], |row| {
        Ok(Row {
            id: uuid(row, 0)?,
            org: uuid(row, 1)?,
            event_type: row.get(2)?,
            dedup_id: row.get(3)?,
            payload: row.get(4)?,
            received_at_micros: row.get(5)?,
        })
    });
    rows.and_then(Iterator::collect).expect("events can be read")
}
