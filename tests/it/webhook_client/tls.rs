//! Who is trusted, and that nobody else is.

use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustls::ServerConfig;

use millrace_webhooks::client::{ClientConfig, TrustRoots, WebhookClient};
use millrace_webhooks::delivery::outcome::ErrorClass;
use support::certificates::{Authority, self_signed};
use support::receiver::{Receiver, answer};

use crate::webhook_client::fixture::{Fixture, answered, failed, secure};

/// What comes of a receiver with this configuration, where `authority` is trusted.
fn outcome_of(authority: &Authority, tls: ServerConfig) -> millrace_webhooks::delivery::outcome::Outcome {
    let dir = tempfile::tempdir().unwrap();
    let receiver = Receiver::start_tls(tls, |_| answer(200, "ok"));
    Fixture::new(ClientConfig { ca_file: Some(authority.file(dir.path())), ..secure() }).post(&receiver.url("/"))
}

#[test]
fn a_private_authority_is_trusted_where_it_is_configured() {
    let authority = Authority::new();
    let tls = authority.server(&["127.0.0.1"]);
    assert_eq!(outcome_of(&authority, tls.clone()), answered(200, "ok"));
    // Not by default, and not beside another one.
    let receiver = Receiver::start_tls(tls.clone(), |_| answer(200, "ok"));
    assert_eq!(Fixture::new(secure()).post(&receiver.url("/")), failed(ErrorClass::TlsFailed));
    assert_eq!(outcome_of(&Authority::new(), tls), failed(ErrorClass::TlsFailed));
    assert_eq!(receiver.count(), 0);
}

#[test]
fn one_connection_serves_many_requests() {
    let authority = Authority::new();
    let dir = tempfile::tempdir().unwrap();
    let mut tls = authority.server(&["127.0.0.1"]);
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    let receiver = Receiver::start_tls(tls, |_| answer(200, "ok"));
    let fixture = Fixture::new(ClientConfig { ca_file: Some(authority.file(dir.path())), ..secure() });
    for _ in 0..20 {
        assert_eq!(fixture.post(&receiver.url("/")), answered(200, "ok"));
    }
    assert_eq!(receiver.connections(), 1);
    let outcomes = fixture.post_all(&receiver.url("/"), 20);
    assert!(outcomes.iter().all(|outcome| *outcome == answered(200, "ok")));
}

#[test]
fn certificates_that_prove_nothing() {
    let authority = Authority::new();
    for (what, tls) in [
        ("signed by itself", self_signed(&["127.0.0.1"])),
        ("for another host", authority.server(&["127.0.0.2", "receiver.test"])),
        ("expired", authority.expired(&["127.0.0.1"])),
    ] {
        assert_eq!(outcome_of(&authority, tls), failed(ErrorClass::TlsFailed), "{what}");
    }
}

/// A receiver as `openssl s_server` is one, with what `openssl req` and `openssl x509` make; ended when dropped.
struct OpensslReceiver {
    child: std::process::Child,
    port: u16,
    dir: tempfile::TempDir,
}

impl Drop for OpensslReceiver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn openssl(dir: &Path, args: &str) {
    let run = Command::new("openssl").current_dir(dir).args(args.split(' ')).stdin(Stdio::null()).output();
    let run = run.expect("these tests need the program `openssl`");
    assert!(run.status.success(), "openssl {args}: {}", String::from_utf8_lossy(&run.stderr));
}

impl OpensslReceiver {
    /// With a certificate for 127.0.0.1 whose key is made as `key` says, by an authority `ca.pem`.
    fn start(key: &str, args: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        openssl(
            dir.path(),
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=ca -keyout ca.key -out ca.pem",
        );
        openssl(dir.path(), &format!("req {key} -nodes -subj /CN=receiver -keyout key.pem -out request.pem"));
        std::fs::write(dir.path().join("names"), "subjectAltName=IP:127.0.0.1\n").unwrap();
        openssl(
            dir.path(),
            "x509 -req -days 2 -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -extfile names -out cert.pem",
        );
        // Whoever had the port before has given it back; nobody else is told of it.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut command = Command::new("openssl");
        command.current_dir(dir.path()).args(["s_server", "-accept", &format!("127.0.0.1:{port}"), "-www"]);
        command.args(["-cert", "cert.pem", "-key", "key.pem"]).args(args.split_whitespace());
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let receiver = Self { child, port, dir };
        let begun = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(20), "openssl s_server does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        receiver
    }

    fn detail(&self) -> String {
        let config = ClientConfig { ca_file: Some(self.dir.path().join("ca.pem")), ..secure() };
        detail(&Fixture::new(config), self.port)
    }
}

fn detail(fixture: &Fixture, port: u16) -> String {
    let (class, detail) = fixture.error(&format!("https://127.0.0.1:{port}/"));
    assert_eq!(class, ErrorClass::TlsFailed);
    detail
}

#[test]
fn what_is_wrong_with_a_certificate_is_said() {
    let (authority, other) = (Authority::new(), Authority::named("another authority"));
    let dir = tempfile::tempdir().unwrap();
    let fixture = Fixture::new(ClientConfig { ca_file: Some(authority.file(dir.path())), ..secure() });
    let (chain, without) = authority.behind_an_intermediate(&["127.0.0.1"]);
    let good = Receiver::start_tls(chain, |_| answer(200, "ok"));
    assert_eq!(fixture.post(&good.url("/")), answered(200, "ok"));
    for (tls, expected) in [
        (authority.expired(&["127.0.0.1"]), "a certificate has expired on 2021-01-01"),
        (authority.not_yet_valid(&["127.0.0.1"]), "a certificate is not valid before 4000-01-01"),
        (
            authority.server(&["127.0.0.2", "receiver.test"]),
            "the certificate is for another name: 127.0.0.2, receiver.test",
        ),
        (self_signed(&["127.0.0.1"]), "the certificate is signed by itself, and is not trusted"),
        (without, "the certificate came without an intermediate one, and no trusted authority signed it directly"),
        (
            other.behind_an_intermediate(&["127.0.0.1"]).0,
            "the certificate is signed by an authority that is not trusted",
        ),
        (authority.for_clients(&["127.0.0.1"]), "the certificate is not for servers"),
    ] {
        let receiver = Receiver::start_tls(tls, |_| answer(200, "ok"));
        assert_eq!(detail(&fixture, receiver.port()), expected);
        assert_eq!(receiver.count(), 0);
    }
}

#[test]
fn what_is_wrong_with_the_handshake_is_said() {
    const P256: &str = "-newkey ec -pkeyopt ec_paramgen_curve:P-256";
    const NOTHING_IN_COMMON: &str = "the receiver found no cipher, or no kind of key and signature, in common";
    for (key, args, expected) in [
        (P256, "-tls1_1 -cipher ALL:@SECLEVEL=0", "the receiver speaks neither TLS 1.2 nor TLS 1.3"),
        (P256, "-tls1_2 -cipher AES128-SHA256", NOTHING_IN_COMMON),
        ("-newkey ec -pkeyopt ec_paramgen_curve:P-521", "-tls1_3", NOTHING_IN_COMMON),
    ] {
        assert_eq!(OpensslReceiver::start(key, args).detail(), expected, "{key} {args}");
    }
    // Over TLS 1.3 the client learns of it with its first request.
    let asking = OpensslReceiver::start(P256, "-Verify 1 -tls1_2");
    assert_eq!(asking.detail(), NOTHING_IN_COMMON);
    let fixture = Fixture::new(secure());
    for (end, expected) in [
        (false, "the receiver closed the connection during the handshake"),
        (true, "the receiver reset the connection during the handshake"),
    ] {
        let receiver = Receiver::raw(move |mut tcp, _| {
            let _ = tcp.read(&mut [0; 4096])?;
            if end {
                socket2::SockRef::from(&tcp).set_linger(Some(Duration::ZERO))?;
            }
            Ok(())
        });
        assert_eq!(detail(&fixture, receiver.port()), expected);
    }
    let plain = Receiver::raw(|mut tcp, _| {
        let _ = tcp.read(&mut [0; 4096])?;
        std::io::Write::write_all(&mut tcp, b"HTTP/1.1 400 Bad Request\r\n\r\n")
    });
    assert_eq!(detail(&fixture, plain.port()), "what came is not TLS");
}

#[test]
fn a_port_that_does_not_speak_tls() {
    let plain = Receiver::start(|_| answer(200, "ok"));
    // It waits for the end of a head that never comes; the connect time ends that.
    let url = format!("https://127.0.0.1:{}/", plain.port());
    let impatient = ClientConfig { connect_timeout: Duration::from_millis(300), ..secure() };
    assert_eq!(Fixture::new(impatient.clone()).post(&url), failed(ErrorClass::ConnectTimeout));
    for answer in ["HTTP/1.1 400 Bad Request\r\n\r\n", ""] {
        let receiver = Receiver::raw(move |mut tcp, _| {
            let _ = tcp.read(&mut [0; 4096])?;
            std::io::Write::write_all(&mut tcp, answer.as_bytes())
        });
        let url = format!("https://127.0.0.1:{}/", receiver.port());
        assert_eq!(Fixture::new(impatient.clone()).post(&url), failed(ErrorClass::TlsFailed));
    }
}

#[test]
fn certificate_files_that_cannot_be_used_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let damaged = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    for path in [dir.path().join("absent.pem"), write("empty.pem", ""), write("bad.pem", damaged), write("no.pem", "x")]
    {
        let complaint = WebhookClient::new(ClientConfig { ca_file: Some(path.clone()), ..secure() }).err().unwrap();
        assert!(complaint.contains(path.to_str().unwrap()), "{complaint}");
    }
}

#[test]
fn the_systems_roots_can_be_used() {
    // What a machine has is its own affair; there is a client or a reason.
    if let Err(complaint) = WebhookClient::new(ClientConfig { roots: TrustRoots::System, ..secure() }) {
        assert!(complaint.contains("ca-certificates"), "{complaint}");
    }
}
