//! The embedded store's file under a running server: taken away, replaced, copied, read by others for long.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use support::load::{Connection, Ids, Load, Log, Told};
use support::oracle;
use support::program::program;
use support::server::{Finally, Options, Server, eventually};

/// A server on a directory of its own.
struct Place {
    dir: tempfile::TempDir,
    server: Server,
    key: String,
}

impl Place {
    fn start(args: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let options = Options { data_dir: Some(dir.path().to_owned()), ..Options::default() };
        let server = Server::start(options.with(&[&["--shards", "1"], args].concat()));
        let key = server.key();
        Self { dir, server, key }
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("millrace.db")
    }

    fn beside(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A copy of what is stored now, as a backup tool makes it: one file.
    fn backup(&self) -> PathBuf {
        let to = self.beside("backup.db");
        let file = oracle::sqlite(self.dir.path());
        file.execute("VACUUM INTO ?1", [to.to_str().expect("text")]).expect("a copy is made");
        to
    }

    fn post(&self, log: &Log, count: usize) {
        let mut connection = Connection::new(self.server.addr, &self.key);
        for _ in 0..count {
            assert!(matches!(connection.post_event(log, "moved", Ids::Both), Told::Accepted(_)));
        }
    }

    fn not_ready_because(&self, why: &str) {
        eventually("the server is not ready, and says why", || {
            let ready = self.server.get("/ready", None);
            ready.status == 503 && ready.json()["reason"].as_str().is_some_and(|reason| reason.contains(why))
        });
    }

    fn ready(&self) {
        eventually("the server is ready", || self.server.get("/ready", None).status == 200);
    }
}

fn sound(file: &rusqlite::Connection) {
    let sound: String = file.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("the file opens");
    assert_eq!(sound, "ok");
}

/// How many accepted events are not in the file.
fn missing(file: &rusqlite::Connection, log: &Log) -> usize {
    let stored: BTreeSet<String> = oracle::sqlite_rows(file).into_iter().map(|row| row.id).collect();
    let is_missing = |number: &u64| matches!(log.told(*number), Some(Told::Accepted(id)) if !stored.contains(&id));
    log.accepted_numbers().iter().filter(|number| is_missing(number)).count()
}

#[test]
fn what_comes_after_a_restore_is_stored_in_the_restored_file() {
    let mut place = Place::start(&[]);
    let (before, lost, after) = (Log::new(), Log::new(), Log::new());
    place.post(&before, 50);
    place.server.drained();
    let backup = place.backup();
    place.post(&lost, 50);
    place.server.drained();
    // Its log is left where it is, as it is by somebody who knows of one file only.
    fs::rename(backup, place.file()).expect("the file is replaced");
    place.post(&after, 200);
    place.server.drained();
    place.ready();
    assert_eq!(place.server.stop(), 0);
    let file = oracle::sqlite(place.dir.path());
    sound(&file);
    // What the operator went back behind is lost.
    assert_eq!((missing(&file, &before), missing(&file, &lost), missing(&file, &after)), (0, 50, 0));
}

#[test]
fn a_restore_under_load_loses_nothing_acknowledged_after_it() {
    let mut place = Place::start(&[]);
    let (before, after) = (Log::new(), Log::new());
    place.post(&before, 20);
    place.server.drained();
    let load = Load::start(place.server.addr, &place.key, 6, Ids::Both, &before);
    eventually("the load runs", || before.accepted() > 200);
    let backup = place.backup();
    fs::rename(backup, place.file()).expect("the file is replaced");
    load.stop();
    let load = Load::start(place.server.addr, &place.key, 6, Ids::Both, &after);
    eventually("the load runs on", || after.accepted() > 500);
    load.stop();
    place.server.drained();
    assert_eq!(place.server.stop(), 0);
    let file = oracle::sqlite(place.dir.path());
    sound(&file);
    assert_eq!(missing(&file, &after), 0);
}

#[test]
fn a_missing_file_is_waited_for_and_never_made_anew() {
    let mut place = Place::start(&[]);
    let log = Log::new();
    place.post(&log, 50);
    place.server.drained();
    let elsewhere = place.beside("elsewhere.db");
    fs::rename(place.file(), &elsewhere).expect("the file is taken away");
    place.not_ready_because("database file is missing");
    place.post(&log, 100);
    eventually("it is loud", || {
        let log = place.server.log();
        log.lines().any(|line| line.contains("ERROR") && line.contains("millrace.db is missing"))
    });
    assert!(!place.file().exists(), "no new file");
    fs::rename(&elsewhere, place.file()).expect("the file is put back");
    place.ready();
    place.server.drained();
    oracle::check(&log, &oracle::sqlite_rows(&oracle::sqlite(place.dir.path())));
    assert_eq!(place.server.stop(), 0);
}

#[test]
fn another_stores_file_gets_nothing() {
    let mut place = Place::start(&[]);
    let mut other = Place::start(&[]);
    assert_eq!(other.server.stop(), 0);
    let log = Log::new();
    place.post(&log, 50);
    place.server.drained();
    let own = place.beside("own.db");
    fs::rename(place.file(), &own).expect("the file is taken away");
    fs::copy(other.file(), place.file()).expect("another is put there");
    place.not_ready_because("replaced by another store");
    place.post(&log, 100);
    let rows = |path: &Path| {
        let file = rusqlite::Connection::open(path).expect("the file opens");
        file.query_row("SELECT count(*) FROM events", [], |row| row.get::<_, i64>(0)).expect("the table is there")
    };
    eventually("it is loud", || {
        place.server.log().lines().any(|line| line.contains("ERROR") && line.contains("was replaced by"))
    });
    assert_eq!(rows(&place.file()), 0);
    for name in ["millrace.db", "millrace.db-wal", "millrace.db-shm"] {
        let _ = fs::remove_file(place.beside(name));
    }
    fs::rename(&own, place.file()).expect("the file is put back");
    place.ready();
    place.server.drained();
    oracle::check(&log, &oracle::sqlite_rows(&oracle::sqlite(place.dir.path())));
    assert_eq!(place.server.stop(), 0);
}

/// How many events a copy of the database file alone holds.
fn events_of_a_copy(data_dir: &Path) -> i64 {
    let elsewhere = tempfile::tempdir().expect("a temporary directory");
    let copy = elsewhere.path().join("copy.db");
    fs::copy(data_dir.join("millrace.db"), &copy).expect("the file is copied");
    let copy = rusqlite::Connection::open(copy).expect("the file opens");
    sound(&copy);
    copy.query_row("SELECT count(*) FROM events", [], |row| row.get(0)).expect("the table is there")
}

#[test]
fn after_a_clean_stop_the_database_is_one_file() {
    let mut place = Place::start(&[]);
    let log = Log::new();
    place.post(&log, 200);
    assert_eq!(place.server.stop(), 0);
    assert!(!place.beside("millrace.db-wal").exists() && !place.beside("millrace.db-shm").exists());
    assert_eq!(events_of_a_copy(place.dir.path()), 200);
    // And so after a command.
    let mut command = Command::new(program());
    command.args(["org", "create", "another"]).env("MILLRACE_DATA_DIR", place.dir.path());
    let output = command.output().expect("the binary starts");
    assert!(output.status.success(), "{output:?}");
    assert!(!place.beside("millrace.db-wal").exists() && !place.beside("millrace.db-shm").exists());
    assert_eq!(events_of_a_copy(place.dir.path()), 200);
}

#[test]
fn a_stop_beside_a_reader_leaves_a_whole_file() {
    let mut place = Place::start(&[]);
    let log = Log::new();
    place.post(&log, 200);
    place.server.drained();
    // Open, and not reading at the moment.
    let reader = oracle::sqlite(place.dir.path());
    assert_eq!(oracle::sqlite_rows(&reader).len(), 200);
    assert_eq!(place.server.stop(), 0);
    assert_eq!(fs::metadata(place.beside("millrace.db-wal")).map_or(0, |log| log.len()), 0);
    assert_eq!(events_of_a_copy(place.dir.path()), 200);
}

#[test]
fn a_long_reader_stops_no_storing_and_is_named() {
    const MIB: u64 = 1 << 20;
    let place = Place::start(&[]);
    let log_bytes = || fs::metadata(place.beside("millrace.db-wal")).map_or(0, |log| log.len());
    let reader = oracle::sqlite(place.dir.path());
    reader.execute_batch("BEGIN; SELECT count(*) FROM events").expect("a snapshot is taken");
    let count: i64 = reader.query_row("SELECT count(*) FROM events", [], |row| row.get(0)).expect("it reads");
    assert_eq!(count, 0);
    let body = format!("[{}]", vec![format!(r#"{{"type":"a.b","payload":"{}"}}"#, "x".repeat(200_000)); 20].join(","));
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut client = place.server.connect();
            while !is_over.load(Ordering::Relaxed) {
                let answer = client.request("POST", "/api/events/batch", Some(&place.key), Some(body.as_bytes()));
                assert!([202, 429].contains(&answer.status), "{answer:?}");
            }
        });
        let _over = Finally(|| is_over.store(true, Ordering::Relaxed));
        eventually("the reader is named", || place.server.log().contains("cannot be cut"));
        let stored = place.server.count("store_events_stored_total");
        eventually("storing goes on", || place.server.count("store_events_stored_total") > stored + 100);
        assert!(place.server.count("sqlite_wal_bytes") > 128 * MIB);
        reader.execute_batch("COMMIT").expect("the reader ends");
        eventually("the log is cut", || log_bytes() <= 128 * MIB);
    });
    eventually("and stays short", || place.server.count("sqlite_wal_bytes") <= 128 * MIB);
}
