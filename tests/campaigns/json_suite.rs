//! A directory of JSON texts against the running server, as bodies and as payloads, on both stores:
//!
//!     ./test json DIRECTORY
//!
//! The names say what a text is: `y_*.json` is JSON and comes back verbatim, `n_*.json` is none and is refused, and of
//! `i_*.json`, which the RFC leaves open, is printed what became of it. That is how the public suites are laid out; none
//! is in the repository. Without a directory the texts of `tests/support/json_cases.rs` are laid out like that.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use support::installation::Installation;
use support::json_cases::{self, Kind};
use support::on_both_stores;
use support::server::{Client, Response};

on_both_stores!(every_text_is_taken_or_refused_as_its_name_says);

fn every_text_is_taken_or_refused_as_its_name_says(installation: &Installation) {
    let _alone = crate::alone();
    let own = tempfile::tempdir().expect("a temporary directory");
    let given = std::env::var_os("MILLRACE_JSON_SUITE").map(PathBuf::from);
    if given.is_none() {
        lay_out(own.path());
    }
    let texts = texts(given.as_deref().unwrap_or(own.path()));
    let store = if installation.is_postgres() { "Postgres" } else { "SQLite" };
    let server = installation.start(&[]);
    let (org, key) = server.organization("test", "0");
    let mut client = server.connect();
    let mut totals: BTreeMap<String, usize> = BTreeMap::new();
    let mut kept = Vec::new();
    for (name, text) in &texts {
        let as_body = post(&mut client, &key, text);
        let as_payload = post(&mut client, &key, &[b"{\"type\":\"t\",\"payload\":", &text[..], b"}"].concat());
        let (body, payload) = (verdict(&as_body), verdict(&as_payload));
        match &name[..2] {
            // JSON, and as a body no event.
            "y_" => assert_eq!((&*body, &*payload), ("422 invalid_event", "202"), "{name}"),
            "n_" => assert_eq!((&*body, &*payload), ("400 invalid_json", "400 invalid_json"), "{name}"),
            _ if given.is_some() => println!("{store}: {name}: as a body {body}, as a payload {payload}"),
            _ => {}
        }
        *totals.entry(format!("{}: as a body {body}, as a payload {payload}", &name[..2])).or_default() += 1;
        if as_payload.status == 202 {
            kept.push((as_payload.id(), name, text));
        }
    }
    server.drained();
    assert_eq!(installation.rows(&org).len(), kept.len());
    for (id, name, text) in &kept {
        let read = client.request("GET", &format!("/api/events/{id}"), Some(&key), None);
        // White space around a payload is the envelope's.
        let member = [b"\"payload\":", text.trim_ascii(), b",\"received_at\":"].concat();
        let is_verbatim = read.body.windows(member.len()).any(|window| window == member);
        assert!(read.status == 200 && is_verbatim, "{name}: {}", String::from_utf8_lossy(&read.body));
    }
    println!("{store}: {} texts, {} stored and read back verbatim", texts.len(), kept.len());
    for (what, count) in totals {
        println!("{store}: {count:4} {what}");
    }
}

fn post(client: &mut Client, key: &str, body: &[u8]) -> Response {
    client.request("POST", "/api/events", Some(key), Some(body))
}

fn verdict(answer: &Response) -> String {
    if answer.status == 202 { "202".to_owned() } else { format!("{} {}", answer.status, answer.code()) }
}

/// The texts of a directory, in the order of their names.
fn texts(directory: &Path) -> Vec<(String, Vec<u8>)> {
    let mut texts: Vec<(String, Vec<u8>)> = fs::read_dir(directory)
        .expect("the directory of the suite")
        .map(|entry| entry.expect("the directory of the suite").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .map(|path| {
            let name = path.file_name().expect("a file").to_string_lossy().into_owned();
            assert!(["y_", "n_", "i_"].iter().any(|class| name.starts_with(class)), "{name} is of no class");
            (name, fs::read(&path).expect("a text"))
        })
        .collect();
    texts.sort_unstable();
    assert!(!texts.is_empty(), "{} holds no texts", directory.display());
    texts
}

fn lay_out(directory: &Path) {
    for (number, (_, text, kind)) in json_cases::all().into_iter().enumerate() {
        let class = match kind {
            Kind::Json => "y",
            Kind::NotJson => "n",
            Kind::OverBound => "i",
        };
        fs::write(directory.join(format!("{class}_{number:04}.json")), text).expect("a temporary file");
    }
}
