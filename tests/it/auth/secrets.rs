//! Secrets stay where they belong: not in the log at its most talkative, not on standard output, not in metrics, not in
//! an answer, not in the clear in the database.

use std::os::unix::fs::FileExt as _;
use std::path::Path;

use support::forged::{unknown_key, with_wrong_secret};
use support::installation::Installation;
use support::postgres::Cluster;
use support::server::{Client, Server, eventually};

use crate::auth::refusals::{id_of, key_made, post};

const PASSWORD: &str = "cAnArY-pAsSwOrD";

#[test]
fn no_secret_leaves_a_server_on_postgres() {
    let database = Cluster::shared().new_name();
    Cluster::shared().admin("postgres").batch_execute(&format!("CREATE DATABASE {database}")).unwrap();
    let url = Cluster::shared().tcp_url(&database).replacen("postgres@", &format!("postgres:{PASSWORD}@"), 1);
    let installation = Installation::postgres_at(&url);
    let server = installation.start(&["--log", "trace"]);
    let canaries = exercise(&server);
    assert_hidden(server, &canaries);
    let mut admin = Cluster::shared().admin(&database);
    for table in ["organizations", "api_keys"] {
        let rows = admin.query(&format!("SELECT t::text FROM {table} t"), &[]).unwrap();
        assert!(!rows.is_empty());
        for row in &rows {
            assert_none(&canaries, table, row.get(0));
        }
    }
}

#[test]
fn no_secret_leaves_a_server_on_sqlite() {
    let installation = Installation::sqlite();
    let server = installation.start(&["--log", "trace"]);
    // The first key is in a file for who started it, by intent, and nowhere else.
    let first_key = server.take_first_key();
    assert_eq!(post(&mut server.connect(), &format!("X-API-Key: {first_key}\r\n")).status, 202);
    let mut canaries = exercise(&server);
    canaries.push(secret_of(&first_key));
    assert_hidden(server, &canaries);
    let mut files = 0;
    each_file(installation.data_dir(), &mut |path| {
        files += 1;
        assert_none(&canaries, "a file's name", &path.display().to_string());
        assert_none(&canaries, "a file", &String::from_utf8_lossy(&std::fs::read(path).unwrap()));
    });
    assert!(files > 0);
}

/// The part of a key that nobody else may see.
fn secret_of(key: &str) -> String {
    key[16..].to_owned()
}

/// Uses keys in every way a client gets them right and wrong. Returns what must not be seen anywhere.
fn exercise(server: &Server) -> Vec<String> {
    let (_, key) = server.organization("test", "0");
    let mut client = server.connect();
    let mut keys =
        vec![key.clone(), unknown_key(), with_wrong_secret(&key), "mr_thisIsNoKey_thisIsNoSecretEither".to_owned()];
    let made = key_made(&server.cli(&["key", "create", "test", "--json"]));
    let rotated = client.request("POST", "/api/keys/rotate", Some(&made), Some(br#"{"grace_seconds":0}"#));
    keys.push(key_made(std::str::from_utf8(&rotated.body).unwrap()));
    keys.push(made);
    let canaries: Vec<String> = keys.iter().map(|key| secret_of(key)).chain([PASSWORD.to_owned()]).collect();
    let mut answers = Vec::new();
    for key in &keys {
        for fields in [
            format!("X-API-Key: {key}\r\n"),
            format!("Authorization: Bearer {key}\r\n"),
            format!("Authorization: {key}\r\n"),
            format!("X-API-Key: {key}x\r\n"),
            format!("X-API-Key: {key}\r\nX-API-Key: {key}\r\n"),
            // Where it does not belong: an unknown field, a broken one.
            format!("{key}: x\r\n"),
            format!("X-API-Key: {key}\r\nIdempotency-Key: \"{key}\r\n"),
        ] {
            answers.push(post(&mut server.connect(), &fields));
        }
        for (method, path) in [
            ("GET", format!("/api/events?api_key={key}")),
            ("GET", format!("/api/events/{key}")),
            ("DELETE", format!("/api/keys/{key}")),
            ("GET", format!("/{key}")),
            ("GET", "/api/keys".to_owned()),
        ] {
            answers.push(server.connect().request(method, &path, Some(key), None));
        }
        let body = format!(r#"{{"type":"t","payload":1,"dedup_id":{{"{key}":1}}"#);
        answers.push(server.connect().request("POST", "/api/events", Some(key), Some(body.as_bytes())));
    }
    assert!(answers.iter().any(|answer| answer.status == 202) && answers.iter().any(|answer| answer.status == 401));
    for answer in &answers {
        assert!(answer.status < 500, "{answer:?}");
        assert_none(&canaries, "an answer", &format!("{:?} {}", answer.headers, String::from_utf8_lossy(&answer.body)));
    }
    server.cli(&["key", "revoke", id_of(&key)]);
    eventually("the key is refused", || post(&mut client, &format!("X-API-Key: {key}\r\n")).status == 401);
    for addr in [server.addr, server.ops] {
        let metrics = Client::connect(addr).request("GET", "/metrics", None, None);
        assert_none(&canaries, "the metrics", std::str::from_utf8(&metrics.body).unwrap());
    }
    server.drained();
    canaries
}

/// Ends the server and looks through all it said.
fn assert_hidden(mut server: Server, canaries: &[String]) {
    assert_eq!(server.stop(), 0);
    let log = server.log();
    assert!(log.contains("ready"), "{log}");
    assert_none(canaries, "the log", &log);
    assert_none(canaries, "standard output", &server.stdout.lock().unwrap());
}

fn assert_none(canaries: &[String], place: &str, text: &str) {
    for canary in canaries {
        assert!(!text.contains(canary.as_str()), "a secret is in {place}:\n{text}");
    }
}

fn each_file(dir: &Path, visit: &mut impl FnMut(&Path)) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { each_file(&path, visit) } else { visit(&path) }
    }
}

/// An idle connection keeps its buffer; a memory dump must not find the key in it.
#[test]
fn an_idle_servers_memory_holds_no_key() {
    let installation = Installation::sqlite();
    let server = installation.start(&[]);
    let (_, key) = server.organization("test", "0");
    let mut clients: Vec<Client> = (0..8).map(|_| server.connect()).collect();
    for client in &mut clients {
        for fields in [format!("X-API-Key: {key}\r\n"), format!("Authorization: Bearer {key}\r\n")] {
            assert_eq!(post(client, &fields).status, 202);
        }
    }
    let rotated = clients[0].request("POST", "/api/keys/rotate", Some(&key), Some(br#"{"grace_seconds":60}"#));
    let made = key_made(std::str::from_utf8(&rotated.body).unwrap());
    assert_eq!(post(&mut clients[1], &format!("X-API-Key: {made}\r\n")).status, 202);
    server.drained();
    let memory = memory_of(server.pid());
    let holds = |text: &str| memchr::memmem::find_iter(&memory, text.as_bytes()).count();
    assert!(holds("X-API-Key") > 0, "the memory was read");
    assert_eq!((holds(&secret_of(&key)), holds(&secret_of(&made))), (0, 0), "copies of the key, of the new one");
}

/// What a process can write to and has in memory.
fn memory_of(pid: u32) -> Vec<u8> {
    // Bits of /proc/<pid>/pagemap, which has 8 bytes for each page: there, or swapped out.
    const IN_USE: u64 = 1 << 63 | 1 << 62;
    let page = rustix::param::page_size() as u64;
    let open = |name: &str| std::fs::File::open(format!("/proc/{pid}/{name}")).unwrap();
    let (file, pages) = (open("mem"), open("pagemap"));
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let mut memory = Vec::new();
    for map in maps.lines().filter(|map| map.split(' ').nth(1).is_some_and(|rights| rights.starts_with("rw"))) {
        let (from, to) = map.split(' ').next().and_then(|range| range.split_once('-')).unwrap();
        let [from, to] = [from, to].map(|at| u64::from_str_radix(at, 16).unwrap() / page);
        let mut bits = vec![0; ((to - from) * 8) as usize];
        pages.read_exact_at(&mut bits, from * 8).unwrap();
        let is_used = |bits: &[u8]| u64::from_ne_bytes(bits.try_into().unwrap()) & IN_USE != 0;
        for (number, _) in (from..to).zip(bits.chunks(8)).filter(|(_, bits)| is_used(bits)) {
            let mut bytes = vec![0; page as usize];
            // It may be gone since; a few pages are the kernel's and cannot be read.
            if file.read_exact_at(&mut bytes, number * page).is_ok() {
                memory.append(&mut bytes);
            }
        }
    }
    memory
}
