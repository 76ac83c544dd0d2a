//! `/metrics` of a real server as Prometheus sees it: every name of the contract on both listeners, `promtool`'s
//! opinion, and a real Prometheus that scrapes it and evaluates `tuning/alerts.yml` on what it finds.

mod prometheus;

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use support::exposition::{Family, Scrape};
use support::postgres::{Cluster, Options as ClusterOptions};
use support::server::{Client, Finally, Options, Server, event, eventually, request};

use prometheus::Prometheus;

/// The contract's names: (family, kind, label). Those of webhooks and the journal come with them.
const CONTRACT: [(&str, &str, &str); 27] = [
    ("event_ingestion_latency_seconds", "histogram", ""),
    ("auth_latency_seconds", "histogram", ""),
    ("rate_limit_check_latency_seconds", "histogram", ""),
    ("db_operations_latency_seconds", "histogram", "operation"),
    ("events_ingested_total", "counter", ""),
    ("cache_lookups_total", "counter", "result"),
    ("event_queue_size", "gauge", ""),
    ("event_queue_capacity", "gauge", ""),
    ("validation_errors_total", "counter", "type"),
    ("http_requests_total", "counter", "route"),
    ("http_requests_total", "counter", "status"),
    ("rejected_total", "counter", "code"),
    ("store_batch_events", "histogram", ""),
    ("store_batch_bytes", "histogram", ""),
    ("store_batch_age_seconds", "histogram", ""),
    ("store_batch_retries_total", "counter", "reason"),
    ("store_events_quarantined_total", "counter", ""),
    ("store_events_found_total", "counter", ""),
    ("store_events_held", "gauge", "reason"),
    ("connections_open", "gauge", ""),
    ("connections_accepted_total", "counter", ""),
    ("connections_closed_total", "counter", ""),
    ("connections_refused_total", "counter", ""),
    ("tls_handshakes_total", "counter", "result"),
    ("log_lines_dropped_total", "counter", ""),
    ("millrace_ready", "gauge", ""),
    ("millrace_build_info", "gauge", "version"),
];

fn scrape(addr: SocketAddr) -> String {
    let answer = Client::connect(addr).request("GET", "/metrics", None, None);
    assert_eq!(answer.status, 200);
    assert!(answer.headers["content-type"].starts_with("text/plain; version=0.0.4"), "{:?}", answer.headers);
    String::from_utf8(answer.body).expect("text")
}

fn has_label(family: &Family, label: &str) -> bool {
    label.is_empty() || family.samples.keys().all(|(_, labels)| labels.contains_key(label))
}

/// Runs `promtool check metrics`; its complaints.
fn promtool_complaints(text: &str) -> String {
    let mut command = Command::new("promtool");
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut promtool =
        command.spawn().expect("this test needs promtool: install the package `prometheus`, or run ./test");
    promtool.stdin.take().expect("piped").write_all(text.as_bytes()).expect("promtool reads");
    let output = promtool.wait_with_output().expect("promtool ends");
    let complaints = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{complaints}");
    complaints
}

/// A bit of everything: stored, refused, read.
fn traffic(server: &Server, key: &str) {
    let mut client = server.connect();
    for n in 0..50 {
        let body = event("scraped", (n % 2 == 0).then(|| format!("d{n}")).as_deref(), "{}");
        assert_eq!(client.request("POST", "/api/events", Some(key), Some(body.as_bytes())).status, 202);
    }
    assert_eq!(server.post("/api/events", key, "{").status, 400);
    assert_eq!(server.post("/api/events", key, r#"{"type":"","payload":1}"#).status, 422);
    assert_eq!(server.post("/api/events", "nonsense", "{}").status, 401);
    assert_eq!(server.get("/nowhere", None).status, 404);
    server.drained();
    assert_eq!(server.get("/api/events", Some(key)).status, 200);
}

#[test]
fn both_listeners_show_every_metric_and_promtool_agrees() {
    let server = Server::start(Options::postgres(&Cluster::shared().create_database()));
    let (org, key) = server.organization("scraped", "100000");
    traffic(&server, &key);
    let (public, ops) = (scrape(server.addr), scrape(server.ops));
    for text in [&public, &ops] {
        assert_eq!(promtool_complaints(text), "");
        let families = Scrape::parse(text);
        for (name, kind, label) in CONTRACT {
            let family = families.0.get(name).unwrap_or_else(|| panic!("no {name}"));
            assert_eq!(family.kind, kind, "{name}");
            assert!(has_label(family, label), "{name} without {label}");
        }
        assert!(!text.contains(&key) && !text.contains(&key[3..15]) && !text.contains(&org), "who is in a label");
    }
    assert_eq!(
        Scrape::parse(&public).0.keys().collect::<Vec<_>>(),
        Scrape::parse(&ops).0.keys().collect::<Vec<_>>(),
        "the same families on both"
    );
    for (sample, count) in [
        ("events_ingested_total", 50),
        ("store_events_stored_total", 50),
        ("store_batch_events_sum", 50),
        ("event_ingestion_latency_seconds_count", 50),
        ("event_queue_size", 0),
        ("millrace_ready", 1),
        (r#"cache_lookups_total{result="miss"}"#, 1),
        (r#"http_requests_total{route="events_post",status="202"}"#, 50),
        (r#"http_requests_total{route="events_post",status="400"}"#, 1),
        (r#"http_requests_total{route="events_post",status="422"}"#, 1),
        (r#"http_requests_total{route="events_post",status="401"}"#, 1),
        (r#"http_requests_total{route="events_list",status="200"}"#, 1),
        (r#"http_requests_total{route="other",status="404"}"#, 1),
        (r#"rejected_total{code="invalid_api_key"}"#, 1),
        (r#"rejected_total{code="invalid_event"}"#, 1),
        (r#"validation_errors_total{type="invalid_json"}"#, 1),
        (r#"validation_errors_total{type="type_invalid"}"#, 1),
        (r#"db_operations_latency_seconds_count{operation="list_events"}"#, 1),
    ] {
        // A shard sees a key for the first time once, and there may be two.
        let at_most = if sample.contains("miss") { 2 } else { count };
        assert!((count..=at_most).contains(&server.count(sample)), "{sample} is {}", server.count(sample));
    }
}

#[test]
fn strangers_see_metrics_only_where_that_is_wanted() {
    let on_all = |args: &[&str]| Options { listen: Some("0.0.0.0:0"), ..Options::default() }.with(args);
    for (options, status) in [(Options::default(), 200), (on_all(&[]), 404), (on_all(&["--public-metrics"]), 200)] {
        let server = Server::start(options);
        for method in ["GET", "HEAD"] {
            let answer = server.connect().request(method, "/metrics", None, None);
            assert_eq!(answer.status, status, "{method} at {}", server.addr);
            assert!(status == 200 || !String::from_utf8_lossy(&answer.body).contains("events_ingested_total"));
        }
        assert_eq!(server.post("/metrics", "", "").status, 405);
        Scrape::parse(&scrape(server.ops));
    }
}

#[test]
fn prometheus_scrapes_the_server_and_evaluates_the_alerts() {
    let mut cluster = Cluster::start_own(ClusterOptions::default());
    let url = cluster.create_database();
    let mut healthy = Server::start(Options::postgres(&url));
    let key = healthy.key();
    traffic(&healthy, &key);
    cluster.stop();
    let waiting = Server::start_unready(Options::postgres(&url));
    assert_eq!(waiting.get("/ready", None).status, 503);

    let prometheus = Prometheus::start(&[healthy.ops, waiting.ops]);
    eventually("both targets are up", || {
        let targets = prometheus.api("targets", &[]);
        let targets = targets["activeTargets"].as_array().expect("a list");
        assert!(targets.iter().all(|target| target["lastError"] == ""), "{targets:?}");
        targets.len() == 2 && targets.iter().all(|target| target["health"] == "up")
    });
    eventually("all rules are evaluated", || prometheus.rules().iter().all(|rule| rule.health == "ok"));
    let rules = prometheus.rules();
    assert!(rules.len() >= 8, "{rules:?}");

    // What the rules ask for is there. Deliveries come with webhooks; their rule is silent until then.
    let known: BTreeSet<String> = Scrape::parse(&scrape(healthy.ops)).0.into_keys().collect();
    for rule in &rules {
        assert_eq!(rule.error, "", "{rule:?}");
        prometheus.query(&rule.expression);
        for name in metric_names(&rule.expression) {
            let family = name.strip_suffix("_bucket").unwrap_or(&name);
            assert!(known.contains(family) || family == "webhook_deliveries_total", "{} asks for {name}", rule.name);
        }
    }

    // Evaluated on real data.
    let instance = |server: &Server| format!(r#"{{job="millrace",instance="{}"}}"#, server.ops);
    assert_eq!(prometheus.value(&format!("event_queue_capacity{}", instance(&healthy))), Some(10_000.0));
    assert_eq!(prometheus.value(&format!("events_ingested_total{}", instance(&healthy))), Some(50.0));
    assert_eq!(prometheus.value(&format!("millrace_ready{}", instance(&waiting))), Some(0.0));
    let ratio = "sum(cache_lookups_total{result=\"hit\"}) / sum(cache_lookups_total) > bool 0.5";
    assert_eq!(prometheus.value(ratio), Some(1.0));
    let quantile = "histogram_quantile(0.95, sum by (le) (event_ingestion_latency_seconds_bucket)) < bool 60";
    assert_eq!(prometheus.value(quantile), Some(1.0));

    // One server waits for its database, the other is killed: the rules see both, and nothing else.
    eventually("one is seen not to be ready", || prometheus.state("MillraceNotReady") == "pending");
    assert_eq!(prometheus.state("MillraceDown"), "inactive");
    healthy.signal("KILL");
    healthy.wait();
    eventually("one is seen to be down", || prometheus.state("MillraceDown") == "pending");
    for quiet in ["MillraceQueueFilling", "MillraceEventsQuarantined", "MillraceWebhookDeliveriesFailing"] {
        assert_eq!(prometheus.state(quiet), "inactive", "{quiet}");
    }
}

/// The names of metrics in an expression: words with an underscore that are no function, label or text.
fn metric_names(expression: &str) -> BTreeSet<String> {
    let unquoted: String = expression.split('"').step_by(2).collect::<Vec<_>>().join(" ");
    let words = unquoted.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|word| word.contains('_') && *word != "histogram_quantile").map(str::to_owned).collect()
}

#[test]
fn the_ops_listener_answers_with_busy_shards_and_no_database() {
    let mut cluster = Cluster::start_own(ClusterOptions::default());
    let url = cluster.create_database();
    let server = Server::start(Options::postgres(&url));
    let key = server.key();
    let stop = AtomicBool::new(false);
    let ops = |path: &str| Client::connect(server.ops).request("GET", path, None, None);
    thread::scope(|scope| {
        // Also where this fails: the clients end with it.
        let _end = Finally(|| stop.store(true, Ordering::Relaxed));
        for _ in 0..8 {
            scope.spawn(|| {
                // Always more requests waiting than answered.
                let one = request("POST", "/api/events", Some(&key), Some(event("busy", None, "{}").as_bytes()));
                let many = one.repeat(100);
                let mut client = server.connect();
                client.send(&many);
                while !stop.load(Ordering::Relaxed) {
                    client.send(&many);
                    for _ in 0..100 {
                        assert!(matches!(client.response().status, 202 | 429));
                    }
                }
                for _ in 0..100 {
                    client.response();
                }
            });
        }
        let answered = || server.count("http_requests_total{route=\"events_post\",status=\"202\"}");
        let requests = || answered() + server.count(r#"rejected_total{code="queue_full"}"#);
        for outage in [false, true] {
            if outage {
                cluster.stop();
                eventually("the queue is full", || server.count("event_queue_size") == 8_889);
            }
            // Through several scrapes that each find the shards further on.
            for _ in 0..5 {
                let before = requests();
                eventually("the shards are at work", || requests() > before);
                assert_eq!(ops("/health").status, 200);
                assert_eq!(ops("/ready").status, 200, "ready: events are accepted as long as there is room");
                Scrape::parse(&scrape(server.ops));
            }
        }
    });
    cluster.start();
    server.drained();
    assert_eq!(server.count("store_events_stored_total"), server.count("events_ingested_total"));
}

#[test]
fn both_listeners_are_not_ready_before_database_and_on_sigterm() {
    let mut cluster = Cluster::start_own(ClusterOptions::default());
    let url = cluster.create_database();
    cluster.stop();
    let server = Server::start_unready(Options::postgres(&url));
    let on = |addr: SocketAddr, path: &str| Client::connect(addr).request("GET", path, None, None);
    for addr in [server.addr, server.ops] {
        assert_eq!(on(addr, "/health").status, 200);
        let ready = on(addr, "/ready");
        assert_eq!((ready.status, ready.json()["status"].as_str()), (503, Some("starting")));
    }
    assert_eq!(server.count("millrace_ready"), 0);
    // A key that nothing is known of: not 401, and never 202.
    let key = millrace_base::key::ApiKey::generate().expect("randomness");
    let answer = server.post("/api/events", key.reveal(), &event("e", None, "1"));
    assert_eq!((answer.status, answer.code().as_str()), (503, "store_unavailable"));
    assert!(answer.headers.contains_key("retry-after"));
    cluster.start();
    for addr in [server.addr, server.ops] {
        eventually("ready", || on(addr, "/ready").status == 200);
    }
    eventually("the gauge says so too", || server.count("millrace_ready") == 1);
    // A request that is not finished keeps the server from leaving at once.
    let mut slow = server.connect();
    slow.send(b"POST /api/events HTTP/1.1\r\nHost: t\r\nContent-Length: 10\r\n");
    server.signal("TERM");
    eventually("the gauge falls", || server.count("millrace_ready") == 0);
    assert_eq!(on(server.ops, "/ready").status, 503);
}
