//! The journal's files from the outside: what `millrace journal` says of them beside a running server, after a
//! `kill -9` and after damage, and what the next start makes of them.

mod identity;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use tempfile::TempDir;

use support::postgres::{Cluster, Options as ClusterOptions};
use support::program::program;
use support::server::{Client, Options, Server, event, eventually};

const BLOCK: usize = 4096;
const EX_DATAERR: Option<i32> = Some(65);
/// Events by id: the payload, as it was sent.
type Events = BTreeMap<String, String>;

/// A data directory, a database, and a way to keep the server from storing anything.
struct Place {
    dir: TempDir,
    options: Options,
    cluster: Option<Cluster>,
}

impl Place {
    fn sqlite() -> Self {
        Self::on(None)
    }

    fn postgres() -> Self {
        Self::on(Some(Cluster::start_own(ClusterOptions::default())))
    }

    fn on(cluster: Option<Cluster>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = Options {
            database_url: cluster.as_ref().map(Cluster::create_database),
            data_dir: Some(dir.path().to_owned()),
            ..Options::default()
        };
        Self { dir, options, cluster }
    }

    fn start(&self, args: &[&str]) -> Server {
        let args = [&["--rate-limit", "0", "--journal-segment-bytes", "524288"], args].concat();
        Server::start(self.options.clone().with(&args))
    }

    fn key(&self, server: &Server) -> String {
        if self.cluster.is_some() { server.key() } else { server.first_key() }
    }

    /// Runs `meanwhile` while nothing can be stored.
    fn without_storing<T>(&mut self, meanwhile: impl FnOnce() -> T) -> T {
        if let Some(cluster) = &mut self.cluster {
            cluster.stop();
            let done = meanwhile();
            cluster.start();
            return done;
        }
        let file = rusqlite::Connection::open(self.dir.path().join("millrace.db")).unwrap();
        file.busy_timeout(support::server::PATIENCE).unwrap();
        file.execute_batch("BEGIN IMMEDIATE").unwrap();
        meanwhile()
    }

    /// All that is stored.
    fn stored(&self) -> Events {
        if let Some(url) = &self.options.database_url {
            let mut client = postgres::Client::connect(url, postgres::NoTls).unwrap();
            let rows = client.query("SELECT id::text, payload::text FROM events", &[]).unwrap();
            return rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        }
        let file = rusqlite::Connection::open(self.dir.path().join("millrace.db")).unwrap();
        let mut select = file.prepare("SELECT id, payload FROM events").unwrap();
        let id = |row: &rusqlite::Row<'_>| row.get(0).map(|id| uuid::Uuid::from_bytes(id).to_string());
        let rows = select.query_map([], |row| Ok((id(row)?, row.get(1)?))).unwrap();
        rows.collect::<Result<_, _>>().unwrap()
    }

    fn journal_dir(&self) -> PathBuf {
        self.dir.path().join("journal")
    }

    /// The only file whose name ends so and that holds `text`, and where in it.
    fn find(&self, ending: &str, text: &str) -> (PathBuf, usize) {
        let files = fs::read_dir(self.journal_dir()).unwrap().map(|entry| entry.unwrap().path());
        let files = files.filter(|path| path.to_str().unwrap().ends_with(ending));
        let found = files.filter_map(|path| {
            let bytes = fs::read(&path).unwrap();
            let at = bytes.windows(text.len()).position(|window| window == text.as_bytes())?;
            Some((path, at))
        });
        let found: Vec<_> = found.collect();
        assert_eq!(found.len(), 1, "{text}: {found:?}");
        found[0].clone()
    }

    /// `millrace journal COMMAND` on the data directory.
    fn journal(&self, args: &[&str]) -> Ended {
        journal_on(self.dir.path(), args)
    }

    fn journal_json(&self, command: &str) -> Value {
        let ended = self.journal(&[command, "--json"]);
        assert_eq!((ended.stdout.lines().count(), ended.stderr.as_str()), (1, ""), "{ended:?}");
        serde_json::from_str(&ended.stdout).unwrap()
    }

    fn assert_sound(&self) {
        let ended = self.journal(&["verify"]);
        assert!(ended.code == Some(0) && ended.stdout.starts_with("Sound: ") && ended.stderr.is_empty(), "{ended:?}");
    }
}

#[derive(Debug)]
struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

fn journal_on(dir: &Path, args: &[&str]) -> Ended {
    let output = Command::new(program()).arg("journal").args(args).arg(dir).env_clear().output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ended { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// A line of an export, which must have these fields and no others.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<'a> {
    id: String,
    org_id: String,
    r#type: String,
    dedup_id: Option<String>,
    #[serde(borrow)]
    payload: &'a RawValue,
    received_at: String,
}

fn exported(ended: &Ended) -> Events {
    let mut events = Events::new();
    for line in ended.stdout.lines() {
        let line: Line<'_> = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(uuid::Uuid::try_parse(&line.org_id).is_ok() && line.received_at.ends_with('Z'));
        assert_eq!((line.r#type.as_str(), line.dedup_id.is_some()), ("a.b", line.payload.get().contains("odd")));
        assert!(events.insert(line.id, line.payload.get().to_owned()).is_none(), "an event twice");
    }
    events
}

/// What an export shows of events: line breaks became spaces.
fn on_one_line(events: &Events) -> Events {
    events.iter().map(|(id, payload)| (id.clone(), payload.replace(['\n', '\r'], " "))).collect()
}

fn post(client: &mut Client, key: &str, number: usize, payload: &str) -> String {
    let dedup_id = payload.contains("odd").then(|| format!("d-{number}"));
    let body = event("a.b", dedup_id.as_deref(), payload);
    client.request("POST", "/api/events", Some(key), Some(body.as_bytes())).id()
}

/// A server that accepted these events, stored next to none of them, and was killed.
fn backlog(place: &mut Place, args: &[&str], payloads: &[String]) -> Events {
    let server = place.start(args);
    let key = place.key(&server);
    // The key is known from here on, without the database.
    let mut accepted = Events::new();
    accepted.insert(post(&mut server.connect(), &key, usize::MAX, r#"{"first":1}"#), r#"{"first":1}"#.to_owned());
    // By every shard: so many connections do not all go to one.
    for _ in 0..32 {
        assert_eq!(server.get("/api/events?limit=1", Some(&key)).status, 200);
    }
    server.drained();
    place.without_storing(|| {
        let mut server = server;
        for (connection, payloads) in payloads.chunks(8).enumerate() {
            let mut client = server.connect();
            for (n, payload) in payloads.iter().enumerate() {
                let number = connection * 8 + n;
                accepted.insert(post(&mut client, &key, number, payload), payload.clone());
            }
        }
        server.signal("KILL");
        server.wait();
    });
    assert_eq!(accepted.len(), payloads.len() + 1);
    accepted
}

fn small_payloads(count: usize) -> Vec<String> {
    (0..count).map(|n| format!(r#"{{"marker":"<{n}>"}}"#)).collect()
}

/// Of all shapes and sizes, for several segments.
fn mixed_payloads() -> Vec<String> {
    let payload = |n: usize| match n % 4 {
        0 => format!("{{\n\t\"n\" : {n}.0 ,\r\n \"a\\n\":\"\\u0041\u{fc}\" }}"),
        1 => format!(r#"["odd", {n}, 1e400, -0]"#),
        2 => format!(r#""{n} {}""#, "x".repeat(if n % 8 == 2 { 200_000 } else { 3000 })),
        _ => n.to_string(),
    };
    (0..48).map(payload).collect()
}

// ---- a backlog after kill -9 -------------------------------------------------------------------------------

fn a_backlog_is_shown_and_replayed(mut place: Place, restart: &[&str]) {
    let accepted = backlog(&mut place, &["--shards", "2"], &mixed_payloads());

    let inspected = place.journal_json("inspect");
    let segments = inspected["segments"].as_array().unwrap();
    assert!(segments.len() > 2, "{inspected}");
    assert_eq!((inspected["events"].as_u64(), inspected["events_lost"].as_u64()), (Some(49), Some(0)));
    let sum: u64 = segments.iter().map(|segment| segment["events"].as_u64().unwrap()).sum();
    assert_eq!(sum, 49);
    let oldest = segments.iter().filter_map(|segment| segment["oldest"].as_str()).min();
    assert!(oldest.is_some() && inspected["oldest"].as_str() == oldest, "{inspected}");
    for segment in segments {
        assert_eq!((&segment["damage"], &segment["torn_tail"]), (&Value::Array(vec![]), &Value::Null));
        assert_eq!(segment["bytes"], 524_288);
    }
    let shown = place.journal(&["inspect"]);
    let lines: Vec<&str> = shown.stdout.lines().collect();
    assert!(lines[0].starts_with("SEGMENT ") && lines[0].contains(" OLDEST "), "{}", shown.stdout);
    assert_eq!(lines.iter().filter(|line| line.ends_with("sound")).count(), segments.len());
    assert!(shown.stdout.contains(&format!("in the database yet: {}", oldest.unwrap())), "{}", shown.stdout);

    place.assert_sound();
    assert_eq!(place.journal_json("verify")["sound"], true);
    let export = place.journal(&["export"]);
    assert_eq!((export.code, export.stderr.as_str()), (Some(0), ""));
    assert_eq!(exported(&export), on_one_line(&accepted));
    // The directory itself is as good a name.
    assert_eq!(journal_on(&place.journal_dir(), &["export"]).stdout, export.stdout);

    let server = place.start(restart);
    server.drained();
    eventually("it is said", || server.log().contains("replayed the journal"));
    assert_eq!(server.count("journal_replayed_total"), 49);
    assert_eq!(place.stored(), accepted);
    // What another run left is released, and what is there now is empty.
    eventually("the replayed segments are gone", || place.journal_json("inspect")["events"] == 0);
    place.assert_sound();
    assert_eq!(place.journal(&["export"]).stdout, "");
}

#[test]
fn on_sqlite_with_another_number_of_shards() {
    a_backlog_is_shown_and_replayed(Place::sqlite(), &["--shards", "1"]);
}

#[test]
fn on_sqlite_without_a_journal_from_now_on() {
    a_backlog_is_shown_and_replayed(Place::sqlite(), &["--shards", "2", "--durability", "memory"]);
}

#[test]
fn on_postgres_with_another_number_of_shards() {
    a_backlog_is_shown_and_replayed(Place::postgres(), &["--shards", "3"]);
}

#[test]
fn on_postgres_without_a_journal_from_now_on() {
    a_backlog_is_shown_and_replayed(Place::postgres(), &["--shards", "1", "--durability", "memory"]);
}

#[test]
fn a_reader_of_an_export_may_go_away() {
    let mut place = Place::sqlite();
    backlog(&mut place, &["--shards", "1"], &mixed_payloads());
    let mut child = Command::new(program())
        .args(["journal", "export"])
        .arg(place.dir.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 10]).unwrap();
    drop(stdout);
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr), (Some(0), vec![]));
}

// ---- beside a replay ---------------------------------------------------------------------------------------

/// Length of all segments on disk.
fn bytes_on_disk(place: &Place) -> u64 {
    let entries = fs::read_dir(place.journal_dir()).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len());
    entries.sum()
}

/// From now on each row takes a while to be stored, until `is_slow` is false.
fn set_slow(place: &Place, is_slow: bool) {
    let trigger = if is_slow {
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN PERFORM pg_sleep(0.05); RETURN NEW; END $$;
         CREATE TRIGGER slow BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION slow()"
    } else {
        "DROP TRIGGER slow ON events; DROP FUNCTION slow"
    };
    let url = place.options.database_url.as_ref().unwrap();
    postgres::Client::connect(url, postgres::NoTls).unwrap().batch_execute(trigger).unwrap();
}

#[test]
fn a_start_with_a_backlog_accepts_at_once() {
    for overflow in ["reject", "spill"] {
        let mut place = Place::postgres();
        let mut accepted = backlog(&mut place, &["--shards", "1"], &small_payloads(400));
        set_slow(&place, true);
        let restart = ["--shards", "1", "--queue-capacity", "16", "--writers", "1", "--queue-overflow", overflow];
        let server = place.start(&restart);
        // Half of the queue is theirs.
        let key = server.organization("other", "0").1;
        for n in 0..6 {
            let payload = format!(r#"{{"new":{n}}}"#);
            accepted.insert(post(&mut server.connect(), &key, n, &payload), payload);
        }
        assert!(server.count("journal_unread_segments") > 0, "{overflow}: the replay is not done");
        assert!(!server.log().contains("replayed the journal"));
        set_slow(&place, false);
        server.everything_stored();
        eventually("it is said", || server.log().contains("replayed the journal"));
        assert_eq!(place.stored(), accepted, "{overflow}");
    }
}

#[test]
fn sigterm_in_a_replay_says_that_something_is_left() {
    let mut place = Place::postgres();
    let mut accepted = backlog(&mut place, &["--shards", "1"], &small_payloads(400));
    set_slow(&place, true);
    let mut server = place.start(&["--shards", "1", "--queue-capacity", "16", "--writers", "1"]);
    let key = server.organization("other", "0").1;
    accepted.insert(post(&mut server.connect(), &key, 1, "1"), "1".to_owned());
    assert_eq!(server.stop(), 0);
    eventually("the last word", || server.log().contains("bye"));
    let stored = place.stored().len();
    let log = server.log();
    let last = log.lines().find(|line| line.contains("not read back yet; bye")).expect(&log);
    assert!(!log.contains("everything accepted is stored"), "{log}");
    let count =
        |name| last.split(&[' ', '=']).skip_while(|word| *word != name).nth(1).unwrap().parse::<usize>().unwrap();
    assert_eq!(count("events") + count("unread_events"), accepted.len() - stored, "{last}");
    set_slow(&place, false);
    let mut server = place.start(&["--shards", "1"]);
    server.everything_stored();
    assert_eq!(place.stored(), accepted);
    assert_eq!(server.stop(), 0);
    eventually("nothing is left", || server.log().contains("everything accepted is stored; bye"));
    assert_eq!(bytes_on_disk(&place), 0);
}

#[test]
fn sigterm_without_the_database_says_that_something_is_left() {
    let mut place = Place::postgres();
    let accepted = backlog(&mut place, &["--shards", "1"], &small_payloads(20));
    place.cluster.as_mut().unwrap().stop();
    let mut server = Server::start_unready(place.options.clone().with(&["--journal-segment-bytes", "524288"]));
    let ready = server.get("/ready", None);
    assert_eq!((ready.status, ready.json()["reason"].as_str().unwrap().contains("database")), (503, true));
    assert_eq!(server.stop(), 0);
    eventually("what is left is said", || server.log().contains("not read back yet; bye"));
    assert!(!server.log().contains("everything accepted is stored"), "{}", server.log());
    place.cluster.as_mut().unwrap().start();
    let mut server = place.start(&[]);
    server.everything_stored();
    assert_eq!(place.stored(), accepted);
    assert_eq!(server.stop(), 0);
}

#[test]
fn a_crash_loop_without_a_database_keeps_to_the_bound() {
    const BYTES_MAX: u64 = 4 * 524_288;
    let mut place = Place::postgres();
    let accepted = backlog(&mut place, &["--shards", "1"], &small_payloads(20));
    let bound = BYTES_MAX.to_string();
    let args = ["--journal-segment-bytes", "524288", "--journal-bytes-max", &bound];
    place.cluster.as_mut().unwrap().stop();
    for _ in 0..8 {
        let mut server = Server::start_unready(place.options.clone().with(&args));
        let left = server.count("journal_unread_segments");
        assert!(left > 0 && server.count("journal_segments") >= left);
        assert!(server.metric("journal_oldest_unreleased_seconds") > 0.0);
        // Long enough for a segment to be made, where one is.
        thread::sleep(std::time::Duration::from_millis(500));
        eventually("what the last run left is counted", || server.count("journal_bytes") == bytes_on_disk(&place));
        server.signal("KILL");
        server.wait();
        assert!(bytes_on_disk(&place) <= BYTES_MAX, "{} of {BYTES_MAX} bytes", bytes_on_disk(&place));
    }
    place.cluster.as_mut().unwrap().start();
    let server = place.start(&args[2..]);
    server.everything_stored();
    assert_eq!(place.stored(), accepted);
}

// ---- damage ------------------------------------------------------------------------------------------------

#[test]
fn a_flipped_byte_is_found_and_costs_one_event() {
    let mut place = Place::sqlite();
    let mut accepted = backlog(&mut place, &["--shards", "1"], &small_payloads(20));
    let (path, at) = place.find(".segment", "<7>");
    let name = path.file_name().unwrap().to_str().unwrap();
    File::options().write(true).open(&path).unwrap().write_all_at(b"!", at as u64).unwrap();
    // One client, one event a group, one group a block.
    let offset = at / BLOCK * BLOCK;
    let damage = |file: &str| {
        serde_json::json!([{
            "file": file, "offset": offset, "bytes": BLOCK, "events_lost": 1, "what": "damaged records"
        }])
    };

    let ended = place.journal(&["verify"]);
    assert_eq!((ended.code, ended.stderr.as_str()), (EX_DATAERR, ""));
    let line = format!("{name}: offset {offset}, {BLOCK} bytes, 1 events lost: damaged records\n");
    assert!(ended.stdout.starts_with(&line), "{}", ended.stdout);
    assert!(ended.stdout.contains("at least 1 events lost; 20 events"), "{}", ended.stdout);
    let verified = place.journal_json("verify");
    assert_eq!((&verified["sound"], &verified["damage"]), (&Value::Bool(false), &damage(name)));
    let inspected = place.journal(&["inspect"]);
    assert!(inspected.code == Some(0) && inspected.stdout.contains("DAMAGED in 1 places, 1 events lost"));

    let lost = accepted.iter().find(|(_, payload)| payload.contains("<7>")).unwrap().0.clone();
    accepted.remove(&lost);
    let export = place.journal(&["export"]);
    assert_eq!((export.code, exported(&export)), (EX_DATAERR, accepted.clone()));
    assert!(export.stderr.contains("at least 1 events") && export.stderr.contains("journal verify"), "{export:?}");

    let mut server = place.start(&["--shards", "1"]);
    server.drained();
    assert_eq!(place.stored(), accepted);
    assert_eq!((server.count("journal_damaged_records_total"), server.count("journal_replayed_total")), (1, 20));
    eventually("the sum is said", || server.log().contains("EVENTS ARE MISSING"));
    let log = server.log();
    for words in ["the journal is damaged: damaged records", &format!("offset={offset}"), name, "EVENTS ARE MISSING"] {
        assert!(log.lines().any(|line| line.contains("ERROR") && line.contains(words)), "{words}: {log}");
    }
    let kept = format!("{name}.damaged");
    eventually("the file is kept aside", || !path.exists() && place.journal_dir().join(&kept).exists());
    let verified = place.journal(&["verify", "--json"]);
    assert_eq!(verified.code, EX_DATAERR);
    assert_eq!(serde_json::from_str::<Value>(&verified.stdout).unwrap()["damage"], damage(&kept));
    assert_eq!(place.journal(&["export"]).code, Some(0), "what is kept aside is stored");
    assert_eq!(server.stop(), 0);

    let mut server = place.start(&["--shards", "1"]);
    server.says("a damaged segment is kept here");
    assert_eq!((server.count("journal_damaged_records_total"), server.count("journal_replayed_total")), (0, 0));
    assert_eq!(server.stop(), 0);
    assert!(place.journal(&["inspect"]).stdout.contains("kept aside; DAMAGED"));
    fs::remove_file(place.journal_dir().join(kept)).unwrap();
    place.assert_sound();
}

#[test]
fn a_cut_tail_is_replayed_quietly() {
    let mut place = Place::sqlite();
    let mut accepted = backlog(&mut place, &["--shards", "1"], &small_payloads(20));
    let (path, at) = place.find(".segment", "<19>");
    // As a power loss leaves a group that was being written.
    File::options().write(true).open(&path).unwrap().write_all_at(&[0; 40], at as u64 - 10).unwrap();
    let lost = accepted.iter().find(|(_, payload)| payload.contains("<19>")).unwrap().0.clone();
    accepted.remove(&lost);

    place.assert_sound();
    let inspected = place.journal_json("inspect");
    let torn = inspected["segments"].as_array().unwrap().iter().find(|segment| segment["torn_tail"].is_u64());
    assert_eq!(torn.unwrap()["torn_tail"], at / BLOCK * BLOCK);
    assert_eq!(exported(&place.journal(&["export"])), accepted);

    let server = place.start(&["--shards", "1"]);
    server.drained();
    assert_eq!(place.stored(), accepted);
    assert_eq!((server.count("journal_damaged_records_total"), server.count("journal_replayed_total")), (0, 20));
    let log = server.log();
    assert!(log.contains("a write was cut short here") && !log.contains("ERROR"), "{log}");
    eventually("it is released like any other", || !path.exists());
    place.assert_sound();
}

// ---- beside a running server -------------------------------------------------------------------------------

#[test]
fn a_server_under_load_never_looks_damaged() {
    let place = Place::sqlite();
    let server = place.start(&["--shards", "2"]);
    let key = server.first_key();
    let is_over = AtomicBool::new(false);
    let payload = format!(r#""{}""#, "x".repeat(9000));
    let body = format!("[{}]", vec![event("a.b", None, &payload); 20].join(","));
    thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut client = server.connect();
                    while !is_over.load(Ordering::Relaxed) {
                        let body = Some(body.as_bytes());
                        let answer = client.request("POST", "/api/events/batch", Some(&key), body);
                        assert!([202, 429].contains(&answer.status), "{answer:?}");
                    }
                })
            })
            .collect();
        let _over = support::server::Finally(|| is_over.store(true, Ordering::Relaxed));
        let mut seen = 0;
        for _ in 0..8 {
            place.assert_sound();
            let export = place.journal(&["export"]);
            assert_eq!((export.code, export.stderr.as_str()), (Some(0), ""));
            seen += exported(&export).len();
            seen += place.journal_json("inspect")["events"].as_u64().unwrap() as usize;
        }
        assert!(seen > 0 && clients.iter().all(|client| !client.is_finished()));
    });
}

// ---- wrong arguments and wrong directories -----------------------------------------------------------------

#[test]
fn what_cannot_be_read_is_named_with_a_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |path: &Path, code: i32, words: &[&str]| {
        for command in ["inspect", "verify", "export"] {
            let ended = journal_on(path, &[command]);
            assert!(ended.code == Some(code) && ended.stderr.starts_with("error: "), "{ended:?}");
            for words in [&[path.to_str().unwrap()], words].concat() {
                assert!(ended.stderr.contains(words), "{words}: {ended:?}");
            }
        }
    };
    refused(&dir.path().join("nowhere"), 1, &["No such file", "fix: "]);
    // An empty one is a journal of which everything was released.
    assert_eq!(journal_on(dir.path(), &["verify"]).stdout, "Sound: 0 segments, 0 events.\n");
    assert!(journal_on(dir.path(), &["inspect"]).stdout.contains("No event waits"));
    fs::write(dir.path().join("millrace.db"), "").unwrap();
    refused(dir.path(), 1, &["holds no journal", "fix: "]);
    refused(&dir.path().join("millrace.db"), 1, &["fix: "]);
    let segment = dir.path().join("journal/0000000000012c00-00000000.segment");
    fs::create_dir_all(&segment).unwrap();
    refused(dir.path(), 1, &["journal/0000000000012c00-00000000.segment: ", "fix: "]);
    assert_eq!(journal_on(dir.path(), &[]).code, Some(64));
    let usage = Command::new(program()).args(["journal", "verify"]).output().unwrap();
    assert_eq!(usage.status.code(), Some(64));
}
