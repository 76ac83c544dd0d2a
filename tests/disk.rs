//! The journal's disk is full, its share of it is used up, or somebody else has it.

mod common;
#[path = "common/load.rs"]
mod load;
#[path = "common/oracle.rs"]
mod oracle;
#[path = "common/small_disk.rs"]
mod small_disk;

use std::path::Path;
use std::process::Command;

use common::postgres::{Cluster, Options as ClusterOptions};
use common::server::{Options, Server, eventually};
use load::{Connection, Ids, Load, Log, Told};
use small_disk::SmallDisk;

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
    assert!(server.log().contains("the journal has no room"), "it is said");
    assert!(server.count(r#"journal_failures_total{reason="no_space"}"#) > 0);
    assert_eq!((server.get("/health", None).status, server.get("/ready", None).status), (200, 200));
    // With the database still away.
    std::fs::remove_file(&ballast).expect("the ballast is there");
    let accepted = log.accepted();
    eventually("events are accepted again", || log.accepted() > accepted + 100);
    assert!(server.log().contains("the journal has room again"), "and so is that");
    load.stop();
    assert_eq!(log.refusals().keys().collect::<Vec<_>>(), [&no_space]);
    assert_eq!(log.unanswered(), 0);
    settle_accounts(cluster, &database, server, &data_dir, &log);
}

#[test]
fn a_journal_that_has_used_its_share_of_the_disk_is_a_full_queue() {
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
    load.stop();
    cluster.stop();
    assert_eq!(log.refusals().keys().collect::<Vec<_>>(), [&full]);
    settle_accounts(cluster, &database, server, dir.path(), &log);
}

#[test]
fn a_data_directory_has_one_server_at_a_time() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let options = Options { data_dir: Some(dir.path().to_owned()), ..Options::default() };
    let server = Server::start(options.clone());
    let second = Command::new(env!("CARGO_BIN_EXE_millrace"))
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
    assert!(server.count("journal_replayed_total") >= log.accepted() as u64);
    cluster.stop();
    settle_accounts(cluster, &database, server, dir.path(), &log);
}
