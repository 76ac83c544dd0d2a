//! The embedded store: a full disk, and kill -9.

use std::time::Duration;

use support::load::{Connection, Ids, Load, Log, Told};
use support::oracle;
use support::server::{Options, Server, eventually};
use support::small_disk::SmallDisk;

use crate::faults::share;

#[test]
fn a_full_disk_fills_the_queue_and_loses_nothing() {
    const CAPACITY: u64 = 300;
    let disk = SmallDisk::mount("8m");
    // What takes the room away, and gives it back.
    let ballast = disk.path().join("ballast");
    std::fs::write(&ballast, vec![1; 4 << 20]).expect("there is room for the ballast");
    let data_dir = disk.path().join("data");
    let options = Options { data_dir: Some(data_dir.clone()), ..Options::default() };
    // Without a journal, which would be the first to say no: `tests/it/journal/full_disk.rs` fills its disk.
    let capacity = CAPACITY.to_string();
    let mut server = Server::start(options.with(&["--durability", "memory", "--queue-capacity", &capacity]));
    let key = server.key();
    let log = Log::new();
    let load = Load::start(server.addr, &key, 4, Ids::Both, &log);
    eventually("the disk is full", || server.log().contains("is full"));
    let queue_full = (429, "queue_full".to_owned());
    eventually("the queue is full", || log.refusals().contains_key(&queue_full));
    eventually("and stays so", || log.refusals()[&queue_full] > 100);
    assert_eq!(server.count("event_queue_size"), share(CAPACITY as usize) as u64);
    assert_eq!(server.get("/health", None).status, 200);
    assert_eq!(server.count("store_events_quarantined_total"), 0);
    std::fs::remove_file(&ballast).expect("the ballast is there");
    let accepted = log.accepted();
    eventually("events are accepted again", || log.accepted() > accepted + CAPACITY as usize);
    load.stop();
    server.drained();
    let file = oracle::sqlite(&data_dir);
    oracle::check(&log, &oracle::sqlite_rows(&file));
    assert_eq!(log.refusals().keys().collect::<Vec<_>>(), [&queue_full]);
    assert_eq!(log.unanswered(), 0);
    assert_eq!(server.stop(), 0);
}

#[test]
fn kill_9_leaves_a_sound_file_without_torn_or_doubled_rows() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let options = Options { data_dir: Some(dir.path().to_owned()), ..Options::default() };
    let log = Log::new();
    let mut key = None;
    for round in 0..6 {
        let mut server = Server::start(options.clone());
        let key = key.get_or_insert_with(|| server.key());
        let accepted = log.accepted();
        let load = Load::start(server.addr, key, 6, Ids::Both, &log);
        eventually("the load runs", || log.accepted() > accepted + 100);
        std::thread::sleep(Duration::from_millis(round * 17));
        server.signal("KILL");
        server.wait();
        load.stop();
        let file = oracle::sqlite(dir.path());
        let sound: String = file.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("the file opens");
        assert_eq!(sound, "ok");
        oracle::check_after_kill(&log, &oracle::sqlite_rows(&file));
    }
    // What was not stored is in the journal; and it goes on.
    let server = Server::start(options);
    server.drained();
    let rows = oracle::sqlite_rows(&oracle::sqlite(dir.path()));
    oracle::check(&log, &rows);
    let before = rows.len();
    let mut connection = Connection::new(server.addr, &key.expect("made in the first round"));
    assert!(matches!(connection.post_event(&log, "after", Ids::Both), Told::Accepted(_)));
    server.drained();
    let rows = oracle::sqlite_rows(&oracle::sqlite(dir.path()));
    assert_eq!(rows.len(), before + 1);
    oracle::check(&log, &rows);
}

#[test]
fn a_commit_that_finds_the_disk_full_stores_nothing() {
    let disk = SmallDisk::mount("8m");
    let data_dir = disk.path().join("data");
    let options = Options { data_dir: Some(data_dir.clone()), ..Options::default() };
    let mut server = Server::start(options.with(&["--durability", "memory", "--shards", "1"]));
    let (key, log) = (server.key(), Log::new());
    let mut connection = Connection::new(server.addr, &key);
    let mut post = |count: usize| {
        for _ in 0..count {
            assert!(matches!(connection.post_event(&log, "full", Ids::Both), Told::Accepted(_)));
        }
    };
    post(50);
    server.drained();
    // To the last byte.
    let ballast = disk.path().join("ballast");
    let mut file = std::fs::File::create(&ballast).expect("a file");
    while std::io::Write::write(&mut file, &[1; 4096]).is_ok() {}
    let stored = server.count("store_events_stored_total");
    // More than what is left of the log's last page and block.
    post(600);
    eventually("the disk is full", || server.log().contains("is full"));
    let counted = server.count("store_events_stored_total") - stored;
    let rows = oracle::sqlite_rows(&oracle::sqlite(&data_dir)).len() as u64;
    assert!(rows >= 50 + counted, "{counted} counted as stored, {rows} there");
    drop(file);
    std::fs::remove_file(&ballast).expect("the ballast is there");
    server.drained();
    oracle::check(&log, &oracle::sqlite_rows(&oracle::sqlite(&data_dir)));
    assert_eq!(server.stop(), 0);
}

#[test]
fn what_was_counted_as_stored_survives_kill_9() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let options = Options { data_dir: Some(dir.path().to_owned()), ..Options::default() };
    // Without a journal: only the commit keeps them.
    let mut server = Server::start(options.with(&["--durability", "memory"]));
    let (key, log) = (server.key(), Log::new());
    let load = Load::start(server.addr, &key, 4, Ids::Both, &log);
    eventually("the load runs", || log.accepted() > 500);
    load.stop();
    server.drained();
    server.signal("KILL");
    server.wait();
    oracle::check(&log, &oracle::sqlite_rows(&oracle::sqlite(dir.path())));
}
