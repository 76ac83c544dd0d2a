//! Where requests do not go, and that they go to the very address that was vetted.

use std::sync::Arc;

use millrace_webhooks::client::ClientConfig;
use millrace_webhooks::delivery::outcome::ErrorClass;
use millrace_webhooks::endpoint::target_policy::TargetPolicy;
use support::certificates::Authority;
use support::receiver::{Receiver, answer};

use crate::webhook_client::fixture::{Fixture, Names, answered, failed, insecure, secure};

fn public_only() -> ClientConfig {
    ClientConfig { policy: TargetPolicy::default(), ..insecure() }
}

#[test]
fn names_that_lead_to_this_machine_are_refused() {
    let receiver = Receiver::start(|_| answer(200, ""));
    let fixture = Fixture::new(public_only());
    // By the system's own resolver, and written out.
    for host in ["localhost", "127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0"] {
        let url = format!("https://{host}:{}/", receiver.port());
        assert_eq!(fixture.post(&url), failed(ErrorClass::AddressNotAllowed), "{url}");
    }
    assert_eq!(receiver.connections(), 0);
}

#[test]
fn plain_http_is_refused_whoever_stored_it() {
    let receiver = Receiver::start(|_| answer(200, ""));
    assert_eq!(Fixture::new(secure()).post(&receiver.url("/")), failed(ErrorClass::AddressNotAllowed));
    assert_eq!(receiver.connections(), 0);
}

#[test]
fn one_address_that_is_not_allowed_refuses_the_name() {
    let receiver = Receiver::start(|_| answer(200, ""));
    let names = Names::default()
        .with("first.test", &["10.0.0.1", "127.0.0.1"])
        .with("last.test", &["127.0.0.1", "127.0.0.2", "fd00::1"])
        .with("mapped.test", &["127.0.0.1", "::ffff:127.0.0.1"])
        .with("metadata.test", &["169.254.169.254"])
        .with("none.test", &[]);
    let fixture = Fixture::with_names(secure(), &Arc::new(names));
    for (name, expected) in [
        ("first.test", ErrorClass::AddressNotAllowed),
        ("last.test", ErrorClass::AddressNotAllowed),
        ("mapped.test", ErrorClass::AddressNotAllowed),
        ("metadata.test", ErrorClass::AddressNotAllowed),
        ("none.test", ErrorClass::DnsFailed),
        ("unknown.test", ErrorClass::DnsFailed),
    ] {
        let url = format!("https://{name}:{}/", receiver.port());
        assert_eq!(fixture.post(&url), failed(expected), "{name}");
    }
    assert_eq!(receiver.connections(), 0);
}

#[test]
fn a_name_that_leads_elsewhere_by_the_time_of_connecting() {
    // The vetted address is 127.0.0.2, where nobody listens; whoever asks again is sent to the receiver.
    let receiver = Receiver::start(|_| answer(200, ""));
    let names =
        Arc::new(Names::default().with("rebinding.test", &["127.0.0.2"]).with("rebinding.test", &["127.0.0.1"]));
    let fixture = Fixture::with_names(secure(), &names);
    let outcome = fixture.post(&format!("https://rebinding.test:{}/", receiver.port()));
    assert_eq!(outcome, failed(ErrorClass::ConnectionRefused));
    assert_eq!(names.asked(), ["rebinding.test"], "one lookup an attempt");
    assert_eq!(receiver.connections(), 0);
}

#[test]
fn forbidden_addresses_stay_closed_in_an_insecure_installation() {
    let receiver = Receiver::start(|_| answer(200, ""));
    let policy = TargetPolicy { forbidden: vec!["127.0.0.1".parse().unwrap()], ..insecure().policy };
    let names = Names::default().with("database.test", &["127.0.0.1"]);
    let fixture = Fixture::with_names(ClientConfig { policy, ..insecure() }, &Arc::new(names));
    for host in ["127.0.0.1", "[::ffff:127.0.0.1]", "database.test"] {
        assert_eq!(fixture.post(&receiver.url_of(host, "/")), failed(ErrorClass::AddressNotAllowed), "{host}");
    }
    assert_eq!(receiver.connections(), 0);
}

#[test]
fn credentials_in_a_stored_url_are_refused() {
    let receiver = Receiver::start(|_| answer(200, ""));
    let url = receiver.url_of("user:password@127.0.0.1", "/");
    assert_eq!(Fixture::new(insecure()).post(&url), failed(ErrorClass::AddressNotAllowed));
}

#[test]
fn the_next_address_is_tried() {
    let authority = Authority::new();
    let dir = tempfile::tempdir().unwrap();
    let receiver = Receiver::start_tls(authority.server(&["receiver.test"]), |_| answer(200, "ok"));
    // Refused, refused, answered; 127.0.0.1 is where the receiver is.
    let names = Arc::new(Names::default().with("receiver.test", &["127.0.0.3", "127.0.0.2", "127.0.0.1"]));
    let config = ClientConfig { ca_file: Some(authority.file(dir.path())), ..secure() };
    let fixture = Fixture::with_names(config, &names);
    for _ in 0..3 {
        assert_eq!(fixture.post(&receiver.url_of("receiver.test", "/")), answered(200, "ok"));
    }
    assert_eq!(names.asked().len(), 1, "the connection is kept, and nothing is asked for it");
    assert_eq!(receiver.requests()[0].header("host"), Some(format!("receiver.test:{}", receiver.port()).as_str()));
}
