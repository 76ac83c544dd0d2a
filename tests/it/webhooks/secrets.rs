//! What an endpoint's owner entrusts to the server, and what its operator does: secrets, headers and URLs with tokens in
//! them; the key that seals and the proxy's password. Each is put wherever it can be put, right and wrong, and looked for
//! wherever the server speaks, with the log at its most talkative. It is seen where its owner asks for it and nowhere
//! else.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use postgres::NoTls;
use serde_json::{Value, json};

use support::installation::Installation;
use support::postgres::Cluster;
use support::receiver::{Receiver, answer};
use support::server::{Client, Server, eventually};

use crate::webhooks::fixture::Tenant;

const SECRET: &[u8] = b"cAnArY-ThE-sEcReT-tHaT-sIgNs-123";
const HEADER: &str = "cAnArY-hEaDeR";
const IN_PATH: &str = "cAnArY-pAtH";
const IN_QUERY: &str = "cAnArY-qUeRy";
const PROXY_PASSWORD: &str = "cAnArY-pRoXy";
const SEALING: &[u8; 32] = b"cAnArY-ThE-kEy-ThAt-SeAlS-123456";
const OTHER_SEALING: &[u8; 32] = b"cAnArY-AnOtHeR-kEy-ThAt-SeAlS-12";

/// What nobody may see but who gave it.
struct Canaries {
    /// Seen only in the answer that makes it: as text, as bytes, as the database would show bytes.
    secrets: Vec<String>,
    /// The operator's: seen nowhere.
    operators: Vec<String>,
    /// Seen by their owner, and in the database.
    owners: Vec<String>,
}

impl Canaries {
    fn new() -> Self {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let basic = BASE64_STANDARD.encode(format!("millrace:{PROXY_PASSWORD}"));
        let mut operators = texts(&[PROXY_PASSWORD, &basic]);
        operators.extend(forms(SEALING));
        operators.extend(forms(OTHER_SEALING));
        Self { secrets: forms(SECRET), operators, owners: texts(&[HEADER, IN_PATH, IN_QUERY]) }
    }

    fn learn(&mut self, secret: &str) {
        self.secrets.extend(forms(&BASE64_STANDARD.decode(secret.strip_prefix("whsec_").unwrap()).unwrap()));
    }

    /// None of them is in what anybody but the owner can see.
    #[track_caller]
    fn assert_hidden(&self, place: &str, text: &str) {
        self.assert_sealed(place, text);
        assert_lacks(&self.owners, place, text);
    }

    /// None of them is in what the owner, or the operator at the database, can see, but for what they may.
    #[track_caller]
    fn assert_sealed(&self, place: &str, text: &str) {
        assert_lacks(&self.secrets, place, text);
        assert_lacks(&self.operators, place, text);
    }
}

/// The ways in which bytes could show.
fn forms(bytes: &[u8]) -> Vec<String> {
    let hex = bytes.iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    });
    let list = format!("{bytes:?}");
    let as_text = String::from_utf8(bytes.to_vec()).ok();
    [BASE64_STANDARD.encode(bytes), hex, list.trim_matches(['[', ']']).to_owned()].into_iter().chain(as_text).collect()
}

#[track_caller]
fn assert_lacks(canaries: &[String], place: &str, text: &str) {
    for canary in canaries {
        assert!(!text.contains(canary.as_str()), "{canary} is in {place}:\n{text}");
    }
}

#[test]
fn nothing_entrusted_leaves_a_server_on_sqlite() {
    let installation = Installation::sqlite();
    let canaries = exercise(&installation);
    let mut files = 0;
    each_file(installation.data_dir(), &mut |path| {
        files += 1;
        canaries.assert_hidden("a file's name", &path.display().to_string());
        canaries.assert_sealed("a file", &String::from_utf8_lossy(&std::fs::read(path).unwrap()));
    });
    assert!(files > 0);
}

#[test]
fn nothing_entrusted_leaves_a_server_on_postgres() {
    let url = Cluster::shared().create_database();
    let canaries = exercise(&Installation::postgres_at(&url));
    let mut admin = postgres::Client::connect(&url, NoTls).unwrap();
    for table in ["endpoints", "deliveries", "delivery_attempts", "delivery_queue", "failed_deliveries", "api_keys"] {
        for row in admin.query(&format!("SELECT t::text FROM {table} t"), &[]).unwrap() {
            canaries.assert_sealed(table, row.get(0));
            if table != "endpoints" {
                canaries.assert_hidden(table, row.get(0));
            }
        }
    }
}

/// Entrusts everything to servers on this installation, and looks at all they say.
fn exercise(installation: &Installation) -> Canaries {
    let mut canaries = Canaries::new();
    let receiver = Receiver::start(|seen| answer(if seen.target.contains("good") { 200 } else { 500 }, "no"));
    let tenant = Tenant { server: start(installation, &[], SEALING), key: String::new() };
    let (org, key) = tenant.server.organization("entrusting", "0");
    let tenant = Tenant { key, ..tenant };

    let given = format!("whsec_{}", BASE64_STANDARD.encode(SECRET));
    let path = |name: &str| format!("/{name}/{IN_PATH}?token={IN_QUERY}");
    let more = json!({ "secret": given, "headers": { "Authorization": format!("Bearer {HEADER}") } });
    let good = tenant.endpoint(&receiver.url(&path("good")), &more);
    assert_eq!(good["secret"], given.as_str(), "shown once, to who made it");
    let failing = tenant.endpoint(&receiver.url(&path("bad")), &more);
    tenant.endpoint(&format!("http://127.0.0.1:1{}", path("closed")), &more);
    tenant.endpoint(&format!("http://nowhere.invalid{}", path("unknown")), &more);
    let id = good["id"].as_str().unwrap();
    let rotation = tenant.server.post(&format!("/api/endpoints/{id}/rotate-secret"), &tenant.key, "{}").json();
    assert_lacks(&canaries.secrets, "the answer to a rotation", &rotation.to_string());
    canaries.learn(rotation["secret"].as_str().unwrap());
    refuse(&tenant, id, &given, &canaries);

    // Delivered, and not.
    let event = tenant.post("t", "1");
    eventually("every endpoint was tried", || attempts(&tenant, &event) >= 4);
    assert!(receiver.requests().iter().any(|seen| seen.target == path("good")));
    for path in [format!("/api/events/{event}/deliveries"), "/api/deliveries".to_owned()] {
        canaries.assert_hidden("deliveries", &tenant.get(&path).to_string());
    }
    for path in ["/api/endpoints".to_owned(), format!("/api/endpoints/{id}")] {
        let shown = tenant.get(&path).to_string();
        canaries.assert_sealed("endpoints", &shown);
        assert!(shown.contains(HEADER) && shown.contains(IN_QUERY), "their owner sees them: {shown}");
    }
    let change = tenant.server.connect().request(
        "PATCH",
        &format!("/api/endpoints/{}", failing["id"].as_str().unwrap()),
        Some(&tenant.key),
        Some(br#"{"description":"x"}"#),
    );
    canaries.assert_sealed("the answer to a change", &String::from_utf8_lossy(&change.body));

    commands(&tenant, &org, id, &canaries);
    speak_no_more(tenant.server, &canaries);

    // Through a proxy that lets nobody through, and with a key that opens nothing.
    let proxy = Receiver::raw(|mut tcp, _| {
        // Enough of it to know that it speaks.
        tcp.read_exact(&mut [0; 64])?;
        tcp.write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
    });
    let proxy_url = format!("http://millrace:{PROXY_PASSWORD}@127.0.0.1:{}", proxy.port());
    for (args, key) in [(&["--webhook-proxy", proxy_url.as_str()][..], SEALING), (&[], OTHER_SEALING)] {
        let is_foreign = key == OTHER_SEALING;
        let server = if is_foreign { start_foreign(installation) } else { start(installation, args, key) };
        let tenant = Tenant { server, key: tenant.key.clone() };
        let event = tenant.post("t", "1");
        if is_foreign {
            tenant.server.drained();
            let refused = tenant.server.post(&format!("/api/endpoints/{id}/rotate-secret"), &tenant.key, "{}");
            canaries.assert_hidden("a refusal", &String::from_utf8_lossy(&refused.body));
        } else {
            eventually("every endpoint was tried", || attempts(&tenant, &event) >= 4);
        }
        canaries.assert_hidden("deliveries", &tenant.get(&format!("/api/events/{event}/deliveries")).to_string());
        speak_no_more(tenant.server, &canaries);
    }
    assert!(proxy.connections() > 0);
    canaries
}

fn start(installation: &Installation, args: &[&str], sealing: &[u8]) -> Server {
    let key = BASE64_STANDARD.encode(sealing);
    installation.start(&arguments(args, &key))
}

/// One whose key opens nothing: not ready, and it says why.
fn start_foreign(installation: &Installation) -> Server {
    let server = installation.start_unready(&arguments(&[], &BASE64_STANDARD.encode(OTHER_SEALING)));
    eventually("it says that its key is another", || {
        String::from_utf8_lossy(&server.get("/ready", None).body).contains("webhook_secret_key")
    });
    server
}

fn arguments<'a>(args: &[&'a str], key: &'a str) -> Vec<&'a str> {
    let all = [
        &["--log", "trace", "--allow-insecure-webhooks", "--webhook-secret-key", key][..],
        &["--webhook-retry-schedule", "1s,1s", "--webhook-timeout", "2", "--webhook-connect-timeout", "1"],
        args,
    ];
    all.concat()
}

/// How many attempts were made for an event, all endpoints together.
fn attempts(tenant: &Tenant, event: &str) -> usize {
    // Not stored yet: nothing.
    let answer = tenant.server.get(&format!("/api/events/{event}/deliveries"), Some(&tenant.key)).json();
    let deliveries = answer["data"].as_array().map(Vec::as_slice).unwrap_or_default();
    deliveries.iter().filter(|delivery| delivery["attempts"].as_array().is_some_and(|all| !all.is_empty())).count()
}

/// Requests with everything in the wrong place: what is wrong is said without repeating it.
fn refuse(tenant: &Tenant, id: &str, secret: &str, canaries: &Canaries) {
    let url = "https://example.com/";
    let mut bodies: Vec<String> = [
        json!({ "url": format!("ftp://{IN_PATH}/") }),
        json!({ "url": format!("http://user:{IN_PATH}@127.0.0.1/") }),
        json!({ "url": format!("http://[{IN_PATH}/?{IN_QUERY}") }),
        json!({ "url": format!("{url}{}", IN_QUERY.repeat(300)) }),
        json!({ "url": url, "secret": &secret[..20] }),
        json!({ "url": url, "secret": format!("{secret}=") }),
        json!({ "url": url, "secret": [secret] }),
        json!({ "url": url, "headers": { "X-A": [HEADER] } }),
        json!({ "url": url, "headers": { "X-A": format!("{HEADER}\n") } }),
        json!({ "url": url, "headers": { "Host": HEADER } }),
        json!({ "url": url, "headers": { (format!("Authorization: {HEADER}")): "x" } }),
        json!({ "url": url, "headers": format!("Authorization: {HEADER}") }),
        json!({ "url": url, "event_types": secret }),
    ]
    .iter()
    .map(Value::to_string)
    .collect();
    bodies.push(format!(r#"{{"url":"{url}{IN_QUERY}","secret":"{secret}",}}"#));
    bodies.push(format!(r#"{{"url":"{url}","headers":{{"A":"{HEADER}"#));
    for body in bodies {
        for path in ["/api/endpoints".to_owned(), format!("/api/endpoints/{id}/rotate-secret")] {
            let answer = tenant.server.post(&path, &tenant.key, &body);
            assert!((400..500).contains(&answer.status), "{path} {body}: {answer:?}");
            canaries.assert_hidden("a refusal", &String::from_utf8_lossy(&answer.body));
        }
    }
    for query in ["limit", "cursor", "status", "other"] {
        let answer = tenant.server.get(&format!("/api/deliveries?{query}={secret}"), Some(&tenant.key));
        canaries.assert_hidden("a refusal", &String::from_utf8_lossy(&answer.body));
    }
}

/// What the operator's commands say about it.
fn commands(tenant: &Tenant, org: &str, id: &str, canaries: &Canaries) {
    let server = &tenant.server;
    for args in [&["endpoint", "list", org][..], &["endpoint", "show", id]] {
        let said = server.cli(args);
        canaries.assert_sealed("a command's output", &said);
        assert!(!said.contains(HEADER), "{said}");
        // In JSON it is what the API shows.
        canaries.assert_sealed("a command's output", &server.cli(&[args, &["--json"]].concat()));
    }
    let (key, proxy) = (BASE64_STANDARD.encode(SEALING), format!("http://millrace:{PROXY_PASSWORD}@127.0.0.1:3128"));
    let shown = server.cli(&["config", "check", "--webhook-secret-key", &key, "--webhook-proxy", &proxy]);
    assert!(shown.contains("webhook_secret_key") && shown.contains("webhook_proxy"), "{shown}");
    canaries.assert_hidden("config check", &shown);
}

/// Looks at the metrics, ends the server and looks through all it said.
fn speak_no_more(mut server: Server, canaries: &Canaries) {
    for addr in [server.addr, server.ops] {
        let metrics = Client::connect(addr).request("GET", "/metrics", None, None);
        canaries.assert_hidden("the metrics", std::str::from_utf8(&metrics.body).unwrap());
    }
    assert_eq!(server.stop(), 0);
    let log = server.log();
    assert!(log.contains("ready"), "{log}");
    canaries.assert_hidden("the log", &log);
    canaries.assert_hidden("standard output", &server.stdout.lock().unwrap());
}

fn each_file(dir: &Path, visit: &mut impl FnMut(&Path)) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { each_file(&path, visit) } else { visit(&path) }
    }
}
