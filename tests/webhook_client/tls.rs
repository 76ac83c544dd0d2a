//! Who is trusted, and that nobody else is.

use std::io::Read as _;
use std::time::Duration;

use millrace::deliver::client::{ClientConfig, Roots, WebhookClient};
use millrace::deliver::outcome::ErrorClass;
use rustls::ServerConfig;

use crate::certificates::{Authority, self_signed};
use crate::fixture::{Fixture, answered, failed, secure};
use crate::receiver::{Receiver, answer};

/// What comes of a receiver with this configuration, where `authority` is trusted.
fn outcome_of(authority: &Authority, tls: ServerConfig) -> millrace::deliver::outcome::Outcome {
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
    if let Err(complaint) = WebhookClient::new(ClientConfig { roots: Roots::System, ..secure() }) {
        assert!(complaint.contains("ca-certificates"), "{complaint}");
    }
}
