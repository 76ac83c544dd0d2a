//! The journal's disk is full, its share of it is used up, or somebody else has it.

use std::path::Path;
use std::process::Command;

use support::load::{Connection, Ids, Load, Log, Told};
use support::oracle;
use support::postgres::{Cluster, Options as ClusterOptions};
use support::program::program;
use support::server::{Options, Server, eventually};
use support::small_disk::SmallDisk;

/// A server on a database of its own, which spills into small segments under `data_dir`, with the database away.
fn without_its_database(data_dir: &Path, args: &[&str], log: &Log) -> (Cluster, String, Server, String) {
    let mut cluster = Cluster::start_own(ClusterOptions::default());
    let database = cluster.new_name();
    cluster.admin("postgres").batch_execute(&format!("CREATE DATABASE {database}")).expect("a database is created");
    let options = Options { data_dir: Some(data_dir.to_owned()), ..Options::postgres(&cluster.tcp_url(&database)) };
    let spilling = ["--queue-overflow", "spill", "--queue-capacity", "100", "--journal-segment-bytes", "524288"];
    let server = Server::start(options.with(&spilling).with(args));
    let key = server.key();
    // Every shard knows the key from here on: so many connections do not all go to one.
    for _ in 0..32 {
        assert!(matches!(Connection::new(server.addr, &key).post_event(log, "first", Ids::Made), Told::Accepted(_)));
    }
    server.drained();
    cluster.stop();
    (cluster, database, server, key)
}

/// Brings the database back, and holds what is stored against what was said.
fn settle_accounts(mut cluster: Cluster, database: &str, mut server: Server, data_dir: &Path, log: &Log) {
    cluster.start();
    eventually("everything spilled is stored", || {
        oracle::count(&mut cluster.admin(database), "events") >= log.accepted() as i64
    });
    assert_eq!(server.stop(), 0);
    assert_eq!(std::fs::read_dir(data_dir.join("journal")).expect("a journal").count(), 0);
    oracle::check(log, &oracle::postgres_rows(&mut cluster.admin(database)));
}

#[test]
fn a_full_disk_is_a_clear_no_until_there_is_room_again() {
    let disk = SmallDisk::mount("16m");
    let ballast = disk.path().join("ballast");
    std::fs::write(&ballast, vec![1; 8 << 20]).expect("there is room for the ballast");
    let data_dir = disk.path().join("data");
    let log = Log::new();
    let (cluster, database, server, key) = without_its_database(&data_dir, &[], &log);
    let load = Load::start(server.addr, &key, 4, Ids::Both, &log);
    let no_space = (503, "journal_unavailable".to_owned());
    eventually("the disk is full", || log.refusals().get(&no_space).is_some_and(|n| *n > 50));
    server.says("the journal has no room");
    assert!(server.count(r#"journal_failures_total{reason="no_space"}"#) > 0);
    assert_eq!(server.get("/health", None).status, 200);
    let ready = server.get("/ready", None);
    assert_eq!(ready.status, 503, "it takes nothing");
    assert!(ready.json()["reason"].as_str().unwrap().contains("the journal's disk is full"), "{ready:?}");
    // With the database still away.
    std::fs::remove_file(&ballast).expect("the ballast is there");
    let accepted = log.accepted();
    eventually("events are accepted again", || log.accepted() > accepted + 100);
    server.says("the journal has room again");
    load.stop();
    assert_eq!(log.refusals().keys().collect::<Vec<_>>(), [&no_space]);
    assert_eq!(log.unanswered(), 0);
    settle_accounts(cluster, &database, server, &data_dir, &log);
}

#[test]
fn a_journal_at_its_size_limit_answers_queue_full() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let log = Log::new();
    let share = ["--journal-bytes-max", "4194304"];
    let (mut cluster, database, server, key) = without_its_database(dir.path(), &share, &log);
    let load = Load::start(server.addr, &key, 4, Ids::Both, &log);
    let full = (429, "queue_full".to_owned());
    eventually("the share is used up", || log.refusals().get(&full).is_some_and(|n| *n > 50));
    assert!(server.count("journal_bytes") <= 4_194_304);
    cluster.start();
    let accepted = log.accepted();
    eventually("events are accepted again", || log.accepted() > accepted + 100);
    eventually("it is ready again", || server.get("/ready", None).status == 200);
    load.stop();
    cluster.stop();
    assert_eq!(log.refusals().keys().collect::<Vec<_>>(), [&full]);
    settle_accounts(cluster, &database, server, dir.path(), &log);
}

#[test]
fn journal_and_store_on_one_small_disk_store_what_was_accepted() {
    let disk = SmallDisk::mount("40m");
    let data_dir = disk.path().join("data");
    let log = Log::new();
    let args = ["--queue-overflow", "spill", "--queue-capacity", "100", "--journal-segment-bytes", "1048576"];
    let options = Options { data_dir: Some(data_dir.clone()), ..Options::default() };
    let mut server = Server::start(options.with(&args));
    let key = server.key();
    for _ in 0..32 {
        assert!(matches!(Connection::new(server.addr, &key).post_event(&log, "first", Ids::Made), Told::Accepted(_)));
    }
    server.drained();
    // Nothing can be stored while this lasts.
    let file = oracle::sqlite(&data_dir);
    file.execute_batch("BEGIN IMMEDIATE").expect("the lock is free");
    let load = Load::start_mixed(server.addr, &key, 6, &log);
    let no_space = (503, "journal_unavailable".to_owned());
    eventually("the journal is full", || log.refusals().get(&no_space).is_some_and(|n| *n > 50));
    assert_eq!(server.get("/ready", None).status, 503);
    load.stop();
    file.execute_batch("ROLLBACK").expect("the lock is held");
    server.everything_stored();
    let load = Load::start_mixed(server.addr, &key, 2, &log);
    let accepted = log.accepted();
    eventually("events are accepted again", || log.accepted() > accepted + 20);
    load.stop();
    server.everything_stored();
    oracle::check(&log, &oracle::sqlite_rows(&file));
    assert_eq!(server.stop(), 0);
}

/// A server whose journal is on `disk`, and whose store is not.
fn with_its_journal_on(disk: &SmallDisk) -> (tempfile::TempDir, Server) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    std::os::unix::fs::symlink(disk.path(), dir.path().join("journal")).expect("a link");
    let options = Options { data_dir: Some(dir.path().to_owned()), ..Options::default() };
    (dir, Server::start_unready(options.with(&["--journal-segment-bytes", "524288", "--shards", "1"])))
}

/// The server takes nothing, and says so with these words and this label wherever it is asked.
fn expect_refusal(server: &Server, words: &str, label: &str) {
    let key = server.first_key();
    let body = support::server::event("a.b", None, "1");
    eventually("it is not ready, for this reason", || {
        let ready = server.get("/ready", None);
        ready.status == 503 && ready.json()["reason"].as_str().expect("a reason").contains(words)
    });
    assert_eq!(server.count("millrace_ready"), 0);
    let refusal = server.post("/api/events", &key, &body);
    assert_eq!((refusal.status, refusal.code().as_str()), (503, "journal_unavailable"));
    assert!(refusal.json()["detail"].as_str().expect("a detail").contains(words), "{refusal:?}");
    assert!(server.count(&format!(r#"journal_failures_total{{reason="{label}"}}"#)) > 0);
    server.says(words);
}

fn expect_acceptance(server: &mut Server) {
    let key = server.first_key();
    eventually("it is ready", || server.get("/ready", None).status == 200);
    assert_eq!(server.post("/api/events", &key, &support::server::event("a.b", None, "1")).status, 202);
    server.drained();
    assert_eq!(server.stop(), 0);
}

#[test]
fn a_read_only_journal_is_not_ready_and_does_not_say_full() {
    let disk = SmallDisk::mount("16m");
    disk.set_read_only(true);
    let (_dir, mut server) = with_its_journal_on(&disk);
    expect_refusal(&server, "read-only file system", "permission");
    disk.set_read_only(false);
    expect_acceptance(&mut server);
}

#[test]
fn a_disk_full_at_the_start_is_not_ready() {
    let disk = SmallDisk::mount("16m");
    let ballast = disk.path().join("ballast");
    std::fs::write(&ballast, vec![1; 15 << 20]).expect("there is room for the ballast");
    let (_dir, mut server) = with_its_journal_on(&disk);
    expect_refusal(&server, "the journal's disk is full", "no_space");
    std::fs::remove_file(&ballast).expect("the ballast is there");
    expect_acceptance(&mut server);
}

#[test]
fn a_data_directory_has_one_server_at_a_time() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let options = Options { data_dir: Some(dir.path().to_owned()), ..Options::default() };
    let server = Server::start(options.clone());
    let second = Command::new(program())
        .args(["serve", "--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0", "--data-dir"])
        .arg(dir.path())
        .output()
        .expect("the binary starts");
    let said = String::from_utf8_lossy(&second.stderr);
    assert_eq!(second.status.code(), Some(1), "{said}");
    for words in [&format!("another server (process {}) is running on", server.pid()), "--data-dir"] {
        assert!(said.contains(words), "{said} lacks {words}");
    }
    // The first one's end, however it comes, is the end of its claim.
    server.signal("KILL");
    drop(server);
    Server::start(options);
}

#[test]
fn what_is_left_of_a_journal_is_replayed_without_one_too() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let log = Log::new();
    let (mut cluster, database, server, key) = without_its_database(dir.path(), &[], &log);
    let load = Load::start(server.addr, &key, 4, Ids::Both, &log);
    eventually("events wait in the journal", || log.accepted() > 300);
    server.signal("KILL");
    drop(server);
    load.stop();
    cluster.start();
    let mut options = Options::postgres(&cluster.tcp_url(&database));
    options.data_dir = Some(dir.path().to_owned());
    let server = Server::start(options.with(&["--durability", "memory", "--shards", "3"]));
    server.everything_stored();
    assert!(server.count("journal_replayed_total") >= log.accepted() as u64);
    cluster.stop();
    settle_accounts(cluster, &database, server, dir.path(), &log);
}
