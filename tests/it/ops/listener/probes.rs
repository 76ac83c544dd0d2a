//! What probes and scrapers send: the real programs where Debian has them, else their bytes.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::{DEADLINE, connect, ops};

/// Runs a program to its end; its exit code and standard output. `package` is where Debian has it.
fn run(package: &str, program: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|e| panic!("{program}: {e}; install the package `{package}`, or run ./test"));
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn nagios_check_http_is_content() {
    let addr = ops().addr;
    let (ip, port) = (addr.ip().to_string(), addr.port().to_string());
    for more in [
        &[][..],
        &["-u", "/health"],
        &["-u", "/ready", "-H", "localhost"],
        &["-u", "/health", "-j", "HEAD"],
        &["-j", "OPTIONS"],
        &["-u", "/health", "-s", r#""status":"ok""#],
        &["-u", "/metrics", "-N"],
    ] {
        let arguments = [&["-I", &ip, "-p", &port, "-t", "60"], more].concat();
        let (code, said) = run("monitoring-plugins-basic", "/usr/lib/nagios/plugins/check_http", &arguments);
        assert_eq!(code, Some(0), "{more:?}: {said}");
    }
}

#[test]
fn wget_and_curl_get_their_answer_and_go() {
    let base = format!("http://{}", ops().addr);
    for arguments in [&["-q", "-O-"][..], &["-q", "-O-", "--no-http-keep-alive"]] {
        let (code, said) = run("wget", "wget", &[arguments, &[&format!("{base}/health")]].concat());
        assert_eq!(code, Some(0), "{said}");
        assert!(said.starts_with(r#"{"status":"ok""#), "{said}");
    }
    // As a container's health check has it: a HEAD.
    assert_eq!(run("wget", "wget", &["-q", "--spider", &format!("{base}/ready")]).0, Some(0));
    for arguments in [&["-0"][..], &["-I"], &["-H", "Connection: close"], &["-X", "OPTIONS"]] {
        let fixed = ["-sS", "--fail", "--max-time", "60", "-o", "/dev/null", "-w", "%{http_code}"];
        let (code, said) = run("curl", "curl", &[&fixed, arguments, &[&format!("{base}/health")]].concat());
        assert_eq!((code, said.as_str()), (Some(0), "200"), "{arguments:?}");
    }
}

#[test]
fn probes_of_kubernetes_and_cloud_balancers_are_answered() {
    for agent in [
        "GET /ready HTTP/1.1\r\nHost: 10.1.2.3:9464\r\nUser-Agent: kube-probe/1.29\r\nAccept: */*\r\n\
         Connection: close\r\n\r\n",
        "GET /ready HTTP/1.1\r\nHost: 10.1.2.3:9464\r\nConnection: close\r\nUser-Agent: ELB-HealthChecker/2.0\r\n\
         Accept-Encoding: gzip, compressed\r\n\r\n",
        "GET /ready HTTP/1.1\r\nHost: 10.1.2.3\r\nConnection: close\r\nUser-Agent: GoogleHC/1.0\r\n\r\n",
        "HEAD / HTTP/1.0\r\n\r\n",
    ] {
        let mut stream = connect();
        stream.write_all(agent.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer and an end");
        assert!(answer.starts_with("HTTP/1.1 200 "), "{agent}: {answer}");
    }
}

/// `HAProxy`, killed when dropped.
struct HaProxy(Child);

impl Drop for HaProxy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn haproxy_sees_the_server_up_with_every_kind_of_check() {
    const CHECKS: [(&str, &str); 6] = [
        ("plain", "option httpchk"),
        ("head", "option httpchk HEAD /ready"),
        ("get", "option httpchk GET /ready HTTP/1.1"),
        ("options", "option httpchk OPTIONS * HTTP/1.1"),
        ("sent", "option httpchk\n  http-check send meth GET uri /ready ver HTTP/1.1 hdr Host localhost"),
        ("closing", "option httpchk\n  http-check send meth GET uri /health ver HTTP/1.0 hdr Connection close"),
    ];
    let directory = tempfile::tempdir().unwrap();
    let (socket, file) = (directory.path().join("stats"), directory.path().join("haproxy.cfg"));
    let mut config = format!(
        "global\n  stats socket {} mode 600\ndefaults\n  mode http\n  timeout connect 60s\n  timeout client 60s\n  \
         timeout server 60s\n  timeout check 60s\n",
        socket.display()
    );
    for (name, check) in CHECKS {
        writeln!(config, "backend {name}\n  {check}\n  server one {} check inter 100ms", ops().addr).unwrap();
    }
    fs::write(&file, config).unwrap();
    let mut command = Command::new("haproxy");
    command.arg("-db").arg("-f").arg(&file).stdin(Stdio::null()).stdout(Stdio::null());
    let _proxy = HaProxy(command.spawn().unwrap_or_else(|e| panic!("haproxy: {e}; install `haproxy`, or run ./test")));
    let started = Instant::now();
    loop {
        let rows = statistics(&socket).unwrap_or_default();
        let is_checked = |name: &str| {
            let row = rows.iter().find(|row| row.starts_with(&format!("{name},one,")));
            row.is_some_and(|row| row.contains("L7OK,") && row.contains(",UP,"))
        };
        if CHECKS.iter().all(|(name, _)| is_checked(name)) {
            return;
        }
        assert!(started.elapsed() < DEADLINE, "{rows:#?}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// `HAProxy`'s statistics, a line a server; `None` while it does not answer.
fn statistics(socket: &std::path::Path) -> Option<Vec<String>> {
    let mut stream = UnixStream::connect(socket).ok()?;
    stream.write_all(b"show stat\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text.lines().map(str::to_owned).collect())
}
