//! `docs/in-front-of-millrace.md`: its configurations of nginx and `HAProxy`, as they stand there but for the addresses, in
//! front of real servers.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use millrace_base::key::ApiKey;
use millrace_base::limits;
use support::postgres::Cluster;
use support::server::{Client, Options, Response, Server, event, eventually, post_with};

const PAGE: &str = include_str!("../../../docs/in-front-of-millrace.md");
/// From where the proxies connect: all of 127.0.0.0/8 is this machine, and the tests' own connections come from 127.0.0.1.
const PROXY: &str = "127.0.9.1";
/// The servers as the page has them.
const PLACES: [&str; 2] = ["10.0.0.11:3000", "10.0.0.12:3000"];
/// Runs its arguments until standard input ends, however the test does.
const WATCHDOG: &str = r#""$@" < /dev/null & pid=$!; cat > /dev/null; kill -KILL "$pid"; wait"#;

/// The first block of a section that is in this language.
fn block(section: &str, language: &str) -> &'static str {
    let from = PAGE.find(&format!("\n## {section}\n")).unwrap_or_else(|| panic!("no section {section}"));
    let begin = format!("\n```{language}\n");
    let rest = &PAGE[from..];
    let rest = &rest[rest.find(&begin).unwrap_or_else(|| panic!("no {language} in {section}")) + begin.len()..];
    &rest[..rest.find("\n```\n").unwrap()]
}

/// What a section tells to start servers with, after the addresses they listen on.
fn settings(section: &str) -> Vec<&'static str> {
    let line = block(section, "").lines().find(|line| line.starts_with("millrace serve ")).unwrap();
    let words: Vec<&str> = line.split(' ').skip(2).collect();
    assert_eq!(words[0], "--listen");
    words[2..].iter().map(|word| if *word == "10.0.0.0/24" { "127.0.9.0/24" } else { *word }).collect()
}

/// A well-formed key of nobody's.
fn unknown_key() -> String {
    ApiKey::generate().unwrap().reveal().to_owned()
}

/// A proxy; gone when dropped.
struct Proxy {
    at: SocketAddr,
    watchdog: Child,
    _dir: TempDir,
}

impl Proxy {
    /// Runs this program with a configuration, in which the port stands for port 80 and the servers for those of the page.
    fn start(program: &[&str], configuration: &str, servers: &[Server; 2]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr()).unwrap();
        let mut text = configuration.replace("DIRECTORY", dir.path().to_str().unwrap());
        for (place, server) in PLACES.iter().zip(servers) {
            assert!(text.contains(place), "{text}");
            text = text.replace(place, &server.addr.to_string());
        }
        text = text.replace("listen 80;", &format!("listen {at};")).replace("bind :80\n", &format!("bind {at}\n"));
        assert!(text.contains(&at.to_string()), "{text}");
        let file = dir.path().join("configuration");
        std::fs::write(&file, text).unwrap();
        let watchdog = Command::new("sh")
            .args(["-c", WATCHDOG, "watchdog"])
            .args(program)
            .arg(&file)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let proxy = Self { at, watchdog, _dir: dir };
        eventually("the proxy listens (the packages nginx-light and haproxy; ./test installs them)", || {
            std::net::TcpStream::connect(at).is_ok()
        });
        // It may have to find out first that they are there.
        eventually("the proxy has servers", || proxy.get("/ready").status == 200);
        proxy
    }

    fn nginx(servers: &[Server; 2]) -> Self {
        let frame =
            "error_log stderr; pid DIRECTORY/pid; daemon off; master_process off; events {}\nhttp { access_log off;";
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
        let temporary: Vec<String> =
            temporary.iter().map(|name| format!("{name}_temp_path DIRECTORY/{name};")).collect();
        let page = block("nginx", "nginx");
        let whole = format!("{frame} proxy_bind {PROXY}; {}\n{page}\n}}\n", temporary.join(" "));
        Self::start(&["/usr/sbin/nginx", "-e", "stderr", "-c"], &whole, servers)
    }

    fn haproxy(section: &str, servers: &[Server; 2]) -> Self {
        let page = block(section, "haproxy");
        let whole = format!("{}\n", page.replacen("defaults\n", &format!("defaults\n    source {PROXY}\n"), 1));
        Self::start(&["/usr/sbin/haproxy", "-db", "-q", "-f"], &whole, servers)
    }

    fn from(&self, source: [u8; 4]) -> Client {
        Client::connect_from(Ipv4Addr::from(source), self.at)
    }

    fn get(&self, path: &str) -> Response {
        Client::connect(self.at).request("GET", path, None, None)
    }

    fn post(&self, path: &str, key: &str, body: &[u8]) -> Response {
        Client::connect(self.at).request("POST", path, Some(key), Some(body))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        drop(self.watchdog.stdin.take());
        let _ = self.watchdog.wait();
    }
}

/// Two servers on one Postgres, set up as a section says, and a key.
fn servers(section: &str) -> ([Server; 2], String) {
    let options = Options::postgres(&Cluster::shared().create_database()).with(&settings(section));
    // One shard: an address's wrong keys are counted in one place.
    let options = options.with(&["--shards", "1"]);
    let servers = [Server::start(options.clone()), Server::start(options)];
    let key = servers[0].key();
    (servers, key)
}

/// Whether a client that guesses is told to wait, and another of the same proxy is not, whatever the first one says of
/// itself.
fn clients_are_told_apart(proxy: &Proxy) {
    let guess = |client: &mut Client, n: u32| {
        let lie = Ipv4Addr::from(0x0b00_0000 + n).to_string();
        let fields = [("X-Forwarded-For", lie.as_str())];
        client.exchange(&post_with("/api/events", &unknown_key(), &fields, event("e", None, "1").as_bytes())).status
    };
    let mut guesser = proxy.from([127, 0, 8, 1]);
    // Either of the servers counts for itself.
    let many = limits::AUTH_FAILURES_PER_ADDRESS_AND_MINUTE_MAX * 4;
    let throttled = (0..many).find(|n| {
        // nginx ends a connection after a thousand requests.
        if n % 100 == 0 {
            guesser = proxy.from([127, 0, 8, 1]);
        }
        let status = guess(&mut guesser, *n);
        assert!(matches!(status, 401 | 429), "{status}");
        status == 429
    });
    assert!(throttled.is_some(), "{many} wrong keys of one address");
    assert_eq!(guess(&mut proxy.from([127, 0, 8, 2]), 0), 401, "another client");
}

/// What is over a limit is refused by Millrace, and what is not arrives.
fn sizes_are_millraces(proxy: &Proxy, key: &str) {
    let batch = |bytes: usize| {
        let payload = "x".repeat(limits::PAYLOAD_BYTES_MAX - 2);
        let item = event("e", None, &format!("\"{payload}\""));
        format!("[{}]", vec![item; bytes / limits::PAYLOAD_BYTES_MAX].join(","))
    };
    let large = batch(limits::BATCH_BODY_BYTES_MAX - limits::PAYLOAD_BYTES_MAX);
    assert_eq!(proxy.post("/api/events/batch", key, large.as_bytes()).status, 202);
    let refused = proxy.post("/api/events/batch", key, batch(limits::BATCH_BODY_BYTES_MAX + 70_000).as_bytes());
    assert_eq!((refused.status, refused.code().as_str()), (413, "payload_too_large"));
    let nobodys = proxy.post("/api/events/batch", &unknown_key(), large.as_bytes());
    assert_eq!((nobodys.status, nobodys.code().as_str()), (401, "invalid_api_key"));
}

/// While a server stops, and when it is gone, the other one takes everything.
fn a_server_may_go(proxy: &Proxy, servers: &mut [Server; 2], key: &str) {
    let post = || proxy.post("/api/events", key, event("e", Some("d"), "1").as_bytes()).status;
    servers[0].stop();
    // One request may have met the end.
    eventually("the other server takes events", || post() == 202);
    for _ in 0..50 {
        assert_eq!(post(), 202);
    }
    assert_eq!(proxy.get("/ready").status, 200);
}

/// Seconds that a line of the page gives.
fn seconds(section: &str, language: &str, name: &str) -> u64 {
    let line = block(section, language).lines().map(str::trim).find(|line| line.starts_with(&format!("{name} ")));
    let value = line.unwrap_or_else(|| panic!("no {name} in {section}")).rsplit(' ').next().unwrap();
    value.trim_end_matches(';').strip_suffix('s').unwrap().parse().unwrap()
}

#[test]
fn nginx_as_the_page_has_it() {
    let (mut servers, key) = servers("nginx");
    let proxy = Proxy::nginx(&servers);
    assert_eq!(proxy.get("/metrics").status, 404);
    assert!(!proxy.get("/metrics").headers.contains_key("keep-alive"), "nginx's own");
    assert_eq!(proxy.get("/openapi.json").status, 200);
    sizes_are_millraces(&proxy, &key);
    clients_are_told_apart(&proxy);
    // Connections to servers are kept.
    let opened = || servers.iter().map(|server| server.count("connections_accepted_total")).sum::<u64>();
    let before = opened();
    for _ in 0..100 {
        assert_eq!(proxy.post("/api/events", &key, event("e", None, "1").as_bytes()).status, 202);
    }
    assert!(opened() - before < 50, "{} connections for 100 requests", opened() - before);
    a_server_may_go(&proxy, &mut servers, &key);
}

#[test]
fn haproxy_as_the_page_has_it() {
    let (mut servers, key) = servers("nginx");
    let proxy = Proxy::haproxy("HAProxy", &servers);
    assert_eq!(proxy.get("/metrics").status, 404);
    assert_eq!(proxy.get("/openapi.json").status, 200);
    sizes_are_millraces(&proxy, &key);
    clients_are_told_apart(&proxy);
    a_server_may_go(&proxy, &mut servers, &key);
}

#[test]
fn haproxy_with_the_proxy_protocol_as_the_page_has_it() {
    let (mut servers, key) = servers("HAProxy, TCP");
    let proxy = Proxy::haproxy("HAProxy, TCP", &servers);
    sizes_are_millraces(&proxy, &key);
    clients_are_told_apart(&proxy);
    a_server_may_go(&proxy, &mut servers, &key);
}

#[test]
fn whoever_is_in_front_ends_idle_connections_first() {
    let kept = limits::KEEP_ALIVE_TIMEOUT_DEFAULT.as_secs();
    assert!(PAGE.contains(&format!("closes one after {kept} s (`--keep-alive-timeout`)")));
    assert!(seconds("nginx", "nginx", "keepalive_timeout") < kept);
    // Without HTTP of its own it must not end what Millrace still uses.
    assert!(seconds("HAProxy, TCP", "haproxy", "timeout client") > kept);
    assert!(seconds("HAProxy, TCP", "haproxy", "timeout server") > kept);
}
