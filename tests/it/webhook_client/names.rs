//! Names, looked up as the system's files say, with real name servers on loopback.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hickory_resolver::proto::op::ResponseCode;

use millrace_webhooks::client::{ClientConfig, ResolverFiles};
use millrace_webhooks::delivery::outcome::ErrorClass;
use support::name_server::{NO_SUCH_NAME, NameServer, Said, address, files};
use support::receiver::{Receiver, answer_with};

use crate::webhook_client::fixture::{Fixture, answered, failed, insecure};

/// A receiver on 127.0.0.1 that keeps no connection, so that each request needs an address.
fn receiver() -> Receiver {
    Receiver::start(|_| answer_with(200, "Connection: close\r\n", "ok"))
}

fn fixture(resolver_files: ResolverFiles) -> Fixture {
    Fixture::new(ClientConfig { resolver_files, ..insecure() })
}

fn said(fixture: &Fixture, url: &str) -> String {
    let (class, detail) = fixture.error(url);
    assert_eq!(class, ErrorClass::DnsFailed);
    detail
}

#[test]
fn name_servers_search_list_and_hosts_follow_the_system() {
    let (receiver, dir) = (receiver(), tempfile::tempdir().unwrap());
    let server = NameServer::start(|name| match name {
        "plain.test" | "short.second.test" | "dotted.name.first.test" => address("127.0.0.1"),
        "both.test" => Said::Addresses(vec!["127.0.0.1".parse().unwrap(), "::1".parse().unwrap()], 0),
        _ => NO_SUCH_NAME,
    });
    let hosts = "127.0.0.1 listed.test listed # here\n::1 listed.elsewhere.test\n";
    let fixture = fixture(server.files(dir.path(), "search first.test second.test\n", hosts));
    for host in
        ["plain.test", "plain.test.", "short", "dotted.name", "listed", "listed.test", "LISTED.test", "localhost"]
    {
        assert_eq!(fixture.post(&receiver.url_of(host, "/")), answered(200, "ok"), "{host}");
    }
    // Each family once, a name with a dot as it is first, one without only after the list.
    assert_eq!(server.count("plain.test"), 4);
    assert_eq!((server.count("short"), server.count("short.first.test"), server.count("short.second.test")), (0, 2, 2));
    assert_eq!((server.count("dotted.name"), server.count("dotted.name.first.test")), (2, 2));
    assert!(!server.asked().iter().any(|name| name.contains("listed") || name.contains("localhost")));
    // An IPv6 address is no reason to do without the other.
    assert_eq!(fixture.post(&receiver.url_of("both.test", "/")), answered(200, "ok"));
    for host in ["unknown.test", "nowhere.invalid"] {
        assert_eq!(said(&fixture, &receiver.url_of(host, "/")), "there is no such name", "{host}");
    }
    assert_eq!(server.count("nowhere.invalid"), 0);
}

#[test]
fn who_is_to_blame_is_told_apart() {
    let (receiver, dir) = (receiver(), tempfile::tempdir().unwrap());
    let server = NameServer::start(|name| match name {
        "" => Said::Addresses(Vec::new(), 0),
        "good.test" => address("127.0.0.1"),
        "empty.test" => Said::Addresses(Vec::new(), 60),
        "refused.test" => Said::Code(ResponseCode::Refused),
        "failed.test" => Said::Code(ResponseCode::ServFail),
        _ => Said::Nothing,
    });
    let fixture = fixture(server.files(dir.path(), "", ""));
    for (host, detail) in [
        ("empty.test", "the name has no address"),
        ("refused.test", "the name servers refuse to answer for this name, or failed to find out"),
        ("failed.test", "the name servers refuse to answer for this name, or failed to find out"),
        ("silent.test", "the name servers give no answer for this name"),
    ] {
        assert_eq!(said(&fixture, &receiver.url_of(host, "/")), detail);
        // It is remembered for a little.
        let asked = server.count(host);
        assert_eq!(said(&fixture, &receiver.url_of(host, "/")), detail);
        assert_eq!(server.count(host), asked, "{host}");
    }
    assert_eq!(fixture.post(&receiver.url_of("good.test", "/")), answered(200, "ok"));
    assert_eq!(receiver.count(), 1);
}

#[test]
fn name_servers_that_answer_nobody_are_no_endpoints_failure() {
    let (receiver, dir) = (receiver(), tempfile::tempdir().unwrap());
    let url = receiver.url_of("good.test", "/");
    let answers = Arc::new(AtomicBool::new(false));
    let server = NameServer::start({
        let answers = Arc::clone(&answers);
        move |_| if answers.load(Ordering::SeqCst) { address("127.0.0.1") } else { Said::Nothing }
    });
    let silent = fixture(server.files(dir.path(), "", ""));
    let refusing = NameServer::at("127.0.0.3", server.port, |_| Said::Code(ResponseCode::Refused));
    let refused = tempfile::tempdir().unwrap();
    let refused = fixture(refusing.files(refused.path(), "", ""));
    for fixture in [&silent, &refused] {
        assert_eq!(fixture.postponed(&url), "the name servers do not answer, or not yet");
    }
    // Nobody listens: without the file, and with one that is empty, it is this machine that is asked.
    let nobody = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let absent =
        ResolverFiles { resolv_conf: "/nowhere/resolv.conf".into(), hosts: "/nowhere/hosts".into(), port: nobody };
    let empty = tempfile::tempdir().unwrap();
    for files in
        [absent, files(empty.path(), "", "", nobody), files(empty.path(), "nonsense\n\0\u{ff}", "1.2.3", nobody)]
    {
        let fixture = fixture(files);
        assert_eq!(fixture.postponed(&url), "the name servers do not answer, or not yet");
        assert_eq!(fixture.post(&receiver.url_of("localhost", "/")), answered(200, "ok"));
    }
    // What was put off is sent as soon as they answer: nothing is remembered of it.
    answers.store(true, Ordering::SeqCst);
    assert_eq!(silent.post(&url), answered(200, "ok"));
    // The default where resolv.conf names none: the server on 127.0.0.1.
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(fixture(files(dir.path(), "search x.test\n", "", server.port)).post(&url), answered(200, "ok"));
}

#[test]
fn a_silent_name_server_is_skipped_for_a_while() {
    let (receiver, dir) = (receiver(), tempfile::tempdir().unwrap());
    let good = NameServer::start(|name| if name.starts_with("good") { address("127.0.0.1") } else { NO_SUCH_NAME });
    for first in [|_: &str| Said::Nothing, |_: &str| Said::Code(ResponseCode::ServFail)] {
        let bad = NameServer::at("127.0.0.2", good.port, first);
        let text = "nameserver 127.0.0.2\nnameserver 127.0.0.1\noptions timeout:1\n";
        let fixture = fixture(files(dir.path(), text, "", good.port));
        for n in 0..5 {
            assert_eq!(fixture.post(&receiver.url_of(&format!("good{n}.test"), "/")), answered(200, "ok"));
        }
        assert!(bad.count("good0.test") >= 2);
        if matches!(first(""), Said::Nothing) {
            assert_eq!(bad.count("good4.test"), 0, "it costs one its time");
        }
        assert_eq!(fixture.post(&receiver.url_of("bad.test", "/")), failed(ErrorClass::DnsFailed));
    }
}

#[test]
fn the_third_name_server_is_asked_when_two_are_away() {
    let (receiver, dir) = (receiver(), tempfile::tempdir().unwrap());
    let good = NameServer::start(|name| if name.starts_with("good") { address("127.0.0.1") } else { NO_SUCH_NAME });
    let away = ["127.0.0.2", "127.0.0.3"].map(|at| NameServer::at(at, good.port, |_| Said::Nothing));
    // The times are those that hold where the file says nothing.
    let text = "nameserver 127.0.0.2\nnameserver 127.0.0.3\nnameserver 127.0.0.1\n";
    let fixture = fixture(files(dir.path(), text, "", good.port));
    assert_eq!(fixture.post(&receiver.url_of("good.test", "/")), answered(200, "ok"));
    let asked = away.each_ref().map(|server| server.asked().len());
    for host in ["good1.test", "good2.test"] {
        assert_eq!(fixture.post(&receiver.url_of(host, "/")), answered(200, "ok"));
    }
    assert_eq!(away.each_ref().map(|server| server.asked().len()), asked, "they cost one lookup their time");
}

#[test]
fn an_invalid_search_name_leaves_the_name_servers_in_use() {
    let (receiver, dir) = (receiver(), tempfile::tempdir().unwrap());
    let server = NameServer::at("127.0.0.2", 0, |_| address("127.0.0.1"));
    for search in ["search first.test bad..test\n", " domain bad..test\n", "search .\n", "search --\n"] {
        let fixture = fixture(server.files(dir.path(), search, ""));
        assert_eq!(fixture.post(&receiver.url_of("plain.test", "/")), answered(200, "ok"), "{search}");
    }
}

#[test]
fn aliases_and_answers_that_take_a_connection_are_followed() {
    let (receiver, dir) = (receiver(), tempfile::tempdir().unwrap());
    let here: IpAddr = "127.0.0.1".parse().unwrap();
    let server = NameServer::start(move |name| match name {
        "whole.test" => Said::Aliases(vec!["a.test.", "b.test.", "c.test."], vec![here]),
        // The name server leaves it to whoever asks to go on.
        "begun.test" => Said::Aliases(vec!["a.test.", "rest.test."], Vec::new()),
        "rest.test" => Said::Addresses(vec![here], 0),
        "nowhere.test" => Said::Aliases(vec!["gone.test."], Vec::new()),
        "circle.test" => Said::Aliases(vec!["circle2.test."], Vec::new()),
        "circle2.test" => Said::Aliases(vec!["circle.test."], Vec::new()),
        // 127.0.0.1 comes first, so that one of the eight that are tried answers.
        "many.test" => Said::Addresses((1..=100).map(|n| IpAddr::from([127, 0, 0, n])).collect(), 0),
        // Each is vetted whenever a connection is made, at everybody's cost.
        "hostile.test" => Said::Addresses((1..=1000u16).map(|n| [127, 0, (n >> 8) as u8, n as u8].into()).collect(), 0),
        _ => NO_SUCH_NAME,
    });
    let fixture = fixture(server.files(dir.path(), "", ""));
    for host in ["whole.test", "begun.test", "many.test"] {
        assert_eq!(fixture.post(&receiver.url_of(host, "/")), answered(200, "ok"), "{host}");
    }
    for (host, detail) in [
        ("nowhere.test", "there is no such name"),
        ("circle.test", "the name has no address"),
        ("hostile.test", "the name has more addresses than any receiver needs"),
    ] {
        assert_eq!(said(&fixture, &receiver.url_of(host, "/")), detail);
    }
    let asked = server.count("hostile.test");
    said(&fixture, &receiver.url_of("hostile.test", "/"));
    assert_eq!(server.count("hostile.test"), asked, "it is remembered for a little");
}

#[test]
fn addresses_are_cached_for_their_ttl_until_the_files_change() {
    let (receiver, dir) = (receiver(), tempfile::tempdir().unwrap());
    let server = NameServer::start(|name| match name {
        "long.test" => Said::Addresses(vec!["127.0.0.1".parse().unwrap()], 3600),
        _ => Said::Addresses(vec!["127.0.0.1".parse().unwrap()], 1),
    });
    let fixture = fixture(server.files(dir.path(), "", ""));
    let post = |host: &str| assert_eq!(fixture.post(&receiver.url_of(host, "/")), answered(200, "ok"), "{host}");
    for _ in 0..10 {
        post("long.test");
    }
    assert_eq!(server.count("long.test"), 2, "each family once");
    let begun = Instant::now();
    while server.count("short.test") < 4 {
        post("short.test");
        assert!(begun.elapsed() < Duration::from_secs(20), "it is never asked for again");
        fixture.idle(Duration::from_millis(50));
    }
    // Another name server, then the hosts file: both count without a restart.
    let other = NameServer::at("127.0.0.2", server.port, |_| address("127.0.0.1"));
    other.files(dir.path(), "", "");
    until(&fixture, &receiver, || other.count("long.test") > 0);
    assert_eq!(server.count("long.test"), 2);
    other.files(dir.path(), "", "127.0.0.9 long.test\n");
    let url = receiver.url_of("long.test", "/");
    let begun = Instant::now();
    while fixture.post(&url) != failed(ErrorClass::ConnectionRefused) {
        assert!(begun.elapsed() < Duration::from_secs(20), "the hosts file is never read again");
        fixture.idle(Duration::from_millis(50));
    }
}

fn until(fixture: &Fixture, receiver: &Receiver, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert_eq!(fixture.post(&receiver.url_of("long.test", "/")), answered(200, "ok"));
        assert!(begun.elapsed() < Duration::from_secs(20), "the files are never read again");
        fixture.idle(Duration::from_millis(50));
    }
}

#[test]
fn an_address_that_is_remembered_is_vetted_like_another() {
    let (receiver, dir) = (receiver(), tempfile::tempdir().unwrap());
    let addresses = |list: &[&str]| list.iter().map(|one| one.parse().unwrap()).collect::<Vec<IpAddr>>();
    let mixed = addresses(&["127.0.0.1", "10.0.0.1"]);
    let server = NameServer::start(move |_| Said::Addresses(mixed.clone(), 3600));
    let resolver_files = server.files(dir.path(), "", "127.0.0.1 listed.test\n");
    let config = ClientConfig {
        policy: millrace_webhooks::endpoint::target_policy::TargetPolicy::default(),
        resolver_files,
        ..insecure()
    };
    let fixture = Fixture::new(config);
    for host in ["mixed.test", "mixed.test", "listed.test", "localhost"] {
        let url = format!("https://{host}:{}/", receiver.port());
        assert_eq!(fixture.post(&url), failed(ErrorClass::AddressNotAllowed), "{host}");
    }
    assert_eq!(receiver.connections(), 0);
}
