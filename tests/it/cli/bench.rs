//! `millrace bench` against a real server: what it reports is what the server counted, a pause costs what it should, and
//! whatever goes wrong is said with what mends it.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use support::certificates::Authority;
use support::server::{Options, Server};
use support::shell::{Shell, assert_has, keys_of};

/// The program with a key, and arguments that keep a run short.
fn shell(key: &str) -> Shell {
    Shell::new().with("MILLRACE_API_KEY", key)
}

fn url(server: &Server) -> String {
    format!("http://{}", server.addr)
}

const SHORT: [&str; 4] = ["--duration", "1s", "--warmup", "200ms"];

/// The one run of a load that must succeed.
fn measure(server: &Server, key: &str, args: &[&str]) -> Value {
    let url = url(server);
    let report = shell(key).json(&[&["bench", &url][..], &SHORT, args].concat());
    assert_eq!(report["runs"].as_array().unwrap().len(), 1);
    report["runs"][0].clone()
}

fn count(run: &Value, name: &str) -> u64 {
    run[name].as_u64().unwrap_or_else(|| panic!("{name} in {run}"))
}

fn ms(run: &Value, times: &str, quantile: &str) -> f64 {
    run[times][quantile].as_f64().unwrap_or_else(|| panic!("{times}.{quantile} in {run}"))
}

fn errors(run: &Value) -> u64 {
    run["errors"].as_object().unwrap().values().map(|count| count.as_u64().unwrap()).sum()
}

/// A queue that holds whatever a run can bring, so that nothing is refused.
fn roomy(args: &[&str]) -> Options {
    Options::default().with(&["--queue-capacity", "1000000"]).with(args)
}

#[test]
fn the_server_counts_what_the_report_says() {
    for durability in ["memory", "fsync"] {
        let server = Server::start(roomy(&["--durability", durability]));
        let key = server.key();
        let mut told = 0;
        for args in [
            &["--rate", "500", "--connections", "4"][..],
            &["--rate", "max", "--connections", "3", "--threads", "2"],
            &["--rate", "max", "--batch", "7", "--dedup", "--types", "a,b"],
            &["--rate", "400", "--dedup", "--payload-bytes", "3000"],
        ] {
            let run = measure(&server, &key, args);
            assert!(count(&run, "accepted") > 0, "{run}");
            assert_eq!((errors(&run), count(&run, "refused"), count(&run, "rejected")), (0, 0, 0), "{run}");
            told += count(&run, "accepted") + count(&run, "warmup_accepted");
            assert_eq!(server.count("events_ingested_total"), told, "{durability} {args:?}: {run}");
        }
        server.everything_stored();
        assert_eq!(server.count("store_events_deduplicated_total"), 0, "no dedup_id was used twice");
    }
}

#[test]
fn an_open_loop_keeps_its_rate() {
    let server = Server::start(roomy(&["--durability", "memory"]));
    let run = measure(&server, &server.key(), &["--rate", "300", "--connections", "8"]);
    // Due in the measured second; a machine that is busy may send some late, and then they are told of.
    let (requests, unsent) = (count(&run, "requests"), count(&run, "unsent"));
    assert!(requests + unsent >= 299 && requests <= 302 + 60, "{run}");
    assert_eq!(count(&run, "accepted"), requests, "{run}");
    assert_eq!(run["rate"], 300);
}

#[test]
fn a_paused_server_shows_in_the_latency_of_every_due_request() {
    const PAUSE: Duration = Duration::from_secs(1);
    let server = Server::start(roomy(&["--durability", "memory"]));
    let key = server.key();
    let args = ["bench", &url(&server), "--rate", "200", "--connections", "4", "--duration", "4s", "--warmup", "0s"];
    let load = shell(&key).command(&[&args[..], &["--json"]].concat()).stdout(Stdio::piped()).spawn().unwrap();
    let before = server.count("events_ingested_total");
    support::server::eventually("the load is under way", || server.count("events_ingested_total") > before + 100);
    server.signal("STOP");
    thread::sleep(PAUSE);
    server.signal("CONT");
    let output = load.wait_with_output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let run = &report["runs"][0];
    let pause_ms = PAUSE.as_secs_f64() * 1e3;
    assert!(ms(run, "latency_ms", "max") >= pause_ms * 0.99, "{run}");
    // A fifth of all that were due or more, evenly from none of the pause to all of it: a tenth waited half of it or more.
    // Only four were under way, so the times from sending do not show it.
    assert!(ms(run, "latency_ms", "p99") >= pause_ms * 0.8, "{run}");
    assert!(ms(run, "latency_ms", "p90") >= pause_ms * 0.4, "{run}");
    assert!(ms(run, "service_ms", "p90") < ms(run, "latency_ms", "p90"), "{run}");
    assert_eq!((count(run, "requests") + count(run, "unsent"), errors(run)), (800, 0), "{run}");
}

#[test]
fn a_load_ends_when_it_should_and_a_series_is_run_in_order() {
    let server = Server::start(roomy(&["--durability", "memory"]));
    let key = server.key();
    let begun = Instant::now();
    let args =
        ["bench", &url(&server), "--duration", "500ms", "--warmup", "0s", "--rate", "10,max,20", "--connections", "2"];
    let report = shell(&key).json(&args);
    assert!(begun.elapsed() >= Duration::from_millis(1500));
    let runs = report["runs"].as_array().unwrap();
    let rates: Vec<_> = runs.iter().map(|run| run["rate"].as_u64()).collect();
    assert_eq!(rates, [Some(10), None, Some(20)]);
    for run in runs {
        assert!((0.5..0.6).contains(&run["seconds"].as_f64().unwrap()), "{run}");
    }
}

#[test]
fn a_server_that_never_answers_does_not_hold_it() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let begun = Instant::now();
    let said = shell("mr_x").refused(1, &["bench", &url, "--timeout", "300ms", "--duration", "100ms"]);
    assert_has(&said, &["did not accept the first event", "no answer in time"]);
    assert!(begun.elapsed() < Duration::from_secs(30));
}

#[test]
fn the_fields_of_the_json_are_those_of_the_help() {
    let server = Server::start(roomy(&["--durability", "memory"]));
    let report = shell(&server.key()).json(&[&["bench", &url(&server), "--rate", "50"][..], &SHORT].concat());
    let mut fields = keys_of(&report);
    let run = &report["runs"][0];
    fields.extend(keys_of(run));
    for part in ["errors", "latency_ms", "service_ms"] {
        fields.extend(keys_of(&run[part]));
    }
    fields.extend(keys_of(&run["answers"][0]));
    let help = Shell::new().ok(&["bench", "--help"]);
    let (_, documented) = help.split_once("Fields of --json").unwrap();
    let (documented, _) = documented.split_once("Exit code").unwrap();
    let documented: Vec<&str> = documented.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect();
    for field in &fields {
        assert!(documented.contains(field), "{field} is not in the help");
    }
    assert_eq!(run["answers"][0]["status"], 202);
    assert_eq!(report["version"], env!("CARGO_PKG_VERSION"));
    for times in ["latency_ms", "service_ms"] {
        let quantiles = ["p50", "p90", "p99", "p999", "p9999", "max"].map(|quantile| ms(run, times, quantile));
        assert!(quantiles[0] > 0.0 && quantiles.is_sorted(), "{run}");
    }
}

#[test]
fn people_get_a_table_and_whoever_watches_a_line_a_second() {
    let server = Server::start(roomy(&["--durability", "memory"]));
    let args = ["bench", &url(&server), "--rate", "100", "--duration", "3s", "--warmup", "0s", "--progress"];
    let ended = shell(&server.key()).run(&args);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_has(&ended.stdout, &["RATE", "ACCEPTED/S", "P99.99", "\n100 ", &url(&server)]);
    assert!(ended.stderr.lines().count() >= 2, "{ended:?}");
    assert_has(&ended.stderr, &["rate 100: ", " accepted/s, ", "0 refused, 0 errors"]);
}

#[test]
fn what_goes_wrong_is_said_with_what_mends_it() {
    let server = Server::start(roomy(&["--durability", "memory"]));
    let url = url(&server);
    let stranger = millrace_base::key::ApiKey::generate().unwrap();
    let said = shell(stranger.reveal()).refused(1, &["bench", &url]);
    assert_has(&said, &["401 invalid_api_key", "millrace org create bench --rate-limit 0"]);
    assert!(!said.contains(stranger.reveal()), "{said}");

    let (_, limited) = server.organization("limited", "1");
    server.post("/api/events", &limited, r#"{"type":"t","payload":1}"#);
    let said = shell(&limited).refused(1, &["bench", &url]);
    assert_has(&said, &["429 rate_limited", "millrace org create bench --rate-limit 0"]);

    let (_, soon_limited) = server.organization("soon", "50");
    let ended = shell(&soon_limited).run(&[&["bench", &url, "--rate", "200"][..], &SHORT].concat());
    assert_has(&ended.stdout, &["429 rate_limited", "millrace org create bench --rate-limit 0"]);

    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let said = shell("mr_x").refused(1, &["bench", &format!("http://{nobody}")]);
    assert_has(&said, &[&nobody.to_string(), "Connection refused", "millrace serve"]);

    let said = Shell::new().refused(64, &["bench", &url]);
    assert_has(&said, &["MILLRACE_API_KEY", "--api-key-file", "millrace org create bench --rate-limit 0"]);
    for wrong in [
        &["--rate", "0"][..],
        &["--rate", "100000001"],
        &["--connections", "50001"],
        &["--duration", "3601s"],
        &["--duration", "soon"],
        &["--batch", "1001"],
        &["--batch", "1000", "--payload-bytes", "5000"],
        &["--types", "a b"],
        &["--ca-file", "none.pem"],
        &["--api-key-file", "none.txt"],
        &["--key", "mr_x"],
    ] {
        shell("mr_x").refused(64, &[&["bench", &url], wrong].concat());
    }
    shell("mr_x").refused(64, &["bench", "redis://127.0.0.1"]);
}

#[test]
fn a_server_lost_midway_is_an_error_and_still_reported() {
    let server = Server::start(roomy(&["--durability", "memory"]));
    let key = server.key();
    let args = ["bench", &url(&server), "--rate", "200", "--duration", "3s", "--warmup", "0s", "--json"];
    let load = shell(&key).command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    support::server::eventually("the load is under way", || server.count("events_ingested_total") > 50);
    drop(server);
    let output = load.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let run = &report["runs"][0];
    assert!(count(run, "accepted") > 0 && run["errors"]["connect"].as_u64().unwrap() > 0, "{run}");
    assert!(count(run, "unsent") > 0, "{run}");
    assert_has(&String::from_utf8(output.stderr).unwrap(), &["a connection could not be made", "Connection refused"]);
}

#[test]
fn an_interrupted_load_reports_what_it_has() {
    let server = Server::start(roomy(&["--durability", "memory"]));
    let key = server.key();
    let args = ["bench", &url(&server), "--rate", "200", "--duration", "60s", "--warmup", "0s", "--json"];
    let load = shell(&key).command(&args).stdout(Stdio::piped()).spawn().unwrap();
    support::server::eventually("the load is under way", || server.count("events_ingested_total") > 50);
    let interrupt = std::process::Command::new("kill").args(["-INT", &load.id().to_string()]).status().unwrap();
    assert!(interrupt.success());
    let output = load.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let run = &report["runs"][0];
    assert!(run["seconds"].as_f64().unwrap() < 30.0 && count(run, "accepted") > 0, "{run}");
}

#[test]
fn over_tls_it_trusts_whom_it_is_told_to() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let [certificate, key] = authority.pem(&["localhost"]);
    let file = |name: &str, text: &str| {
        std::fs::write(dir.path().join(name), text).unwrap();
        dir.path().join(name).to_str().unwrap().to_owned()
    };
    let (certificate_file, key_file) = (file("cert.pem", &certificate), file("key.pem", &key));
    // It is ready by its own word: a plain client of the test cannot ask it.
    let tls = ["--durability", "memory", "--tls-cert-file", &certificate_file, "--tls-key-file", &key_file];
    let server = Server::start_unready(roomy(&tls));
    support::server::eventually("the server is ready", || server.log().contains(" ready "));
    let api_key = server.key();
    let url = format!("https://localhost:{}", server.addr.port());
    let ca_file = authority.file(dir.path());
    let args = ["bench", &url, "--ca-file", ca_file.to_str().unwrap(), "--connections", "5", "--batch", "300"];
    let report = shell(&api_key).json(&[&args[..], &SHORT].concat());
    let run = &report["runs"][0];
    assert!(count(run, "accepted") >= 300 && errors(run) == 0, "{report}");
    let told = count(run, "accepted") + count(run, "warmup_accepted");
    assert_eq!(server.count("events_ingested_total"), told);
    let said = shell(&api_key).refused(1, &["bench", &url]);
    assert_has(&said, &["no connection", "certificate"]);
}

/// What any HTTP server may say.
#[test]
fn other_answers_are_noticed() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            thread::spawn(move || {
                let mut request = [0; 4096];
                while matches!(stream.read(&mut request), Ok(1..)) {
                    let answered = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
                    if answered.is_err() {
                        return;
                    }
                }
            });
        }
    });
    let said = shell("any-key").refused(1, &["bench", &url]);
    assert_has(&said, &["none that Millrace gives", "--any-2xx"]);
    let args = ["bench", &url, "--any-2xx", "--connections", "2", "--rate", "100"];
    let report = shell("any-key").json(&[&args[..], &SHORT].concat());
    assert_eq!(report["runs"][0]["answers"][0]["status"], 200);
}
