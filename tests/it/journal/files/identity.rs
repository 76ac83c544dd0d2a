//! Whose journal a data directory holds: never replayed into another store than the one it was accepted for.

use std::fs;
use std::process::{Command, Stdio};

use support::postgres::{Cluster, Options as ClusterOptions};
use support::program::program;
use support::server::{Options, Server, eventually};

use super::{Events, Place, TempDir, backlog, post, small_payloads};

const EX_USAGE: Option<i32> = Some(64);

/// What the file in the data directory says.
fn store_id(place: &Place) -> String {
    fs::read_to_string(place.dir.path().join("store-id")).unwrap()
}

/// A start that must be refused: its exit code and what it said.
fn refused(options: &Options) -> (Option<i32>, String) {
    let mut command = Command::new(program());
    command.args(["serve", "--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0"]).args(&options.args);
    command.env_clear().env("MILLRACE_DATA_DIR", options.data_dir.as_ref().unwrap());
    command.envs(options.database_url.iter().map(|url| ("DATABASE_URL", url)));
    let output = command.stdin(Stdio::null()).output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

/// Another store for the same data directory: another database of the same cluster, or the embedded one.
fn elsewhere(place: &Place, database_url: Option<String>) -> Options {
    Options { database_url, ..place.options.clone() }
}

fn all_stored(place: &Place, accepted: &Events) {
    let server = place.start(&[]);
    server.drained();
    assert_eq!(place.stored(), *accepted);
}

#[test]
fn a_start_without_its_database_url_empties_no_journal() {
    let mut place = Place::postgres();
    let accepted = backlog(&mut place, &["--shards", "1"], &small_payloads(20));
    let id = store_id(&place);
    for _ in 0..2 {
        let (code, said) = refused(&elsewhere(&place, None));
        assert_eq!(code, EX_USAGE, "{said}");
        let id = id.trim_end().strip_prefix("postgres ").unwrap();
        for words in ["another store", id, "DATABASE_URL is not set", "--adopt", "nothing was replayed"] {
            assert!(said.contains(words), "{words}: {said}");
        }
    }
    assert_eq!(store_id(&place), id);
    all_stored(&place, &accepted);
}

#[test]
fn another_database_takes_a_journal_only_when_told_to() {
    let mut place = Place::postgres();
    let accepted = backlog(&mut place, &["--shards", "1"], &small_payloads(20));
    let before = store_id(&place);
    let other = place.cluster.as_ref().unwrap().create_database();
    let (code, said) = refused(&elsewhere(&place, Some(other.clone())));
    assert_eq!(code, EX_USAGE, "{said}");
    assert!(said.contains("set DATABASE_URL to the database"), "{said}");
    place.options.database_url = Some(other);
    let mut server = place.start(&["--adopt"]);
    server.says("taken into this store");
    server.drained();
    assert_eq!(place.stored(), accepted);
    assert_ne!(store_id(&place), before);
    assert_eq!(server.stop(), 0);
    all_stored(&place, &accepted);
}

#[test]
fn a_foreign_database_found_late_gets_nothing_replayed() {
    let mut place = Place::postgres();
    let accepted = backlog(&mut place, &["--shards", "1"], &small_payloads(20));
    let mut late = Cluster::start_own(ClusterOptions::default());
    let other = late.create_database();
    late.stop();
    let options = elsewhere(&place, Some(other.clone()));
    let mut server = Server::start_unready(options.with(&["--shards", "1"]));
    assert_eq!(server.get("/ready", None).status, 503);
    late.start();
    eventually("the server has found out", || server.log().contains("another store"));
    assert!(server.log().lines().any(|line| line.contains("ERROR") && line.contains("another store")));
    let ready = server.get("/ready", None);
    assert_eq!(ready.status, 503);
    assert!(ready.json()["reason"].as_str().unwrap().contains("another store"), "{ready:?}");
    assert_eq!(server.count("journal_replayed_total"), 0);
    assert_eq!(server.stop(), 0);
    let mut client = postgres::Client::connect(&other, postgres::NoTls).unwrap();
    let is_migrated: bool = client.query_one("SELECT to_regclass('events') IS NOT NULL", &[]).unwrap().get(0);
    assert!(!is_migrated, "nothing was changed in the other database");
    all_stored(&place, &accepted);
}

#[test]
fn an_empty_journal_follows_its_server_to_another_store() {
    let mut place = Place::sqlite();
    let mut server = place.start(&[]);
    let key = place.key(&server);
    post(&mut server.connect(), &key, 0, "1");
    assert!(store_id(&place).starts_with("sqlite "));
    assert_eq!(server.stop(), 0);
    place.cluster = Some(Cluster::start_own(ClusterOptions::default()));
    place.options.database_url = place.cluster.as_ref().map(Cluster::create_database);
    let mut server = place.start(&[]);
    eventually("it is said", || server.log().contains("its journal was empty"));
    assert!(store_id(&place).starts_with("postgres "));
    assert_eq!(server.stop(), 0);
}

#[test]
fn a_journal_of_an_older_version_takes_its_next_store() {
    let mut place = Place::sqlite();
    let accepted = backlog(&mut place, &["--shards", "1"], &small_payloads(20));
    fs::remove_file(place.dir.path().join("store-id")).unwrap();
    all_stored(&place, &accepted);
    assert!(store_id(&place).starts_with("sqlite "));
}

#[test]
fn an_unreadable_store_id_refuses_the_start_and_says_why() {
    let place = Place::sqlite();
    assert_eq!(place.start(&[]).stop(), 0);
    fs::write(place.dir.path().join("store-id"), "sqlite").unwrap();
    let (code, said) = refused(&place.options);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("store-id cannot be used") && said.contains("remove it"), "{said}");
}

#[test]
fn two_copies_of_a_data_directory_store_each_event_once() {
    let mut place = Place::postgres();
    let accepted = backlog(&mut place, &["--shards", "1"], &small_payloads(40));
    let copy = TempDir::new().unwrap();
    let copied = Command::new("cp").arg("-a").arg(place.dir.path().join(".")).arg(copy.path()).status().unwrap();
    assert!(copied.success());
    let second = Options { data_dir: Some(copy.path().to_owned()), ..place.options.clone() };
    let servers = [place.start(&[]), Server::start(second)];
    servers.iter().for_each(Server::drained);
    assert_eq!(place.stored(), accepted);
}

#[test]
fn an_older_database_is_the_same_store_to_a_newer_journal() {
    let place = Place::postgres();
    let mut server = place.start(&["--shards", "1"]);
    let key = place.key(&server);
    post(&mut server.connect(), &key, 1, "\"odd\"");
    server.drained();
    assert_eq!(server.stop(), 0);
    // The backup; what comes after it is in the journal and in the database that is lost.
    let (url, cluster) = (place.options.database_url.clone().unwrap(), place.cluster.as_ref().unwrap());
    let (name, backup) = (url.rsplit('/').next().unwrap().split('?').next().unwrap().to_owned(), cluster.new_name());
    let mut admin = cluster.admin("postgres");
    admin.batch_execute(&format!("CREATE DATABASE {backup} TEMPLATE {name}")).unwrap();
    let mut server = place.start(&["--shards", "1"]);
    let mut events = place.stored();
    for n in 0..20 {
        let payload = format!("{{\"odd\":{n}}}");
        events.insert(post(&mut server.connect(), &key, n + 2, &payload), payload);
    }
    server.drained();
    server.signal("KILL");
    server.wait();
    for sql in [format!("DROP DATABASE {name} (FORCE)"), format!("ALTER DATABASE {backup} RENAME TO {name}")] {
        admin.batch_execute(&sql).unwrap();
    }
    all_stored(&place, &events);
}
