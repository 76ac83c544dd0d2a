//! Through an egress proxy.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use millrace_webhooks::client::{ClientConfig, WebhookClient};
use millrace_webhooks::delivery::outcome::ErrorClass;
use support::certificates::Authority;
use support::receiver::{Receiver, answer};

use crate::webhook_client::fixture::{Fixture, Names, answered, failed, insecure, secure};

/// Answers each CONNECT with `answer` and, if that is a yes, joins the client to 127.0.0.1 and the port it asked for.
struct Proxy {
    port: u16,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    fn start(answer: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let heads = Arc::new(Mutex::new(Vec::new()));
        thread::spawn({
            let heads = Arc::clone(&heads);
            move || {
                for client in listener.incoming() {
                    let heads = Arc::clone(&heads);
                    thread::spawn(move || tunnel(client?, answer, &heads));
                }
            }
        });
        Self { port, heads }
    }

    fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }

    fn url(&self, credentials: &str) -> url::Url {
        format!("http://{credentials}127.0.0.1:{}", self.port).parse().unwrap()
    }
}

fn tunnel(mut client: TcpStream, answer: &str, heads: &Mutex<Vec<String>>) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        client.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let authority = head.split(' ').nth(1).unwrap_or_default();
    let port = authority.rsplit(':').next().and_then(|port| port.parse::<u16>().ok()).unwrap();
    heads.lock().unwrap().push(head);
    // In pieces: it may arrive so.
    for piece in answer.as_bytes().chunks(7) {
        client.write_all(piece)?;
        thread::sleep(Duration::from_millis(1));
    }
    if !answer.contains(" 200 ") {
        return Ok(());
    }
    let mut server = TcpStream::connect(("127.0.0.1", port))?;
    let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
    thread::spawn(move || io::copy(&mut from_client, &mut to_server));
    io::copy(&mut server, &mut client)?;
    Ok(())
}

const YES: &str = "HTTP/1.1 200 Connection established\r\nVia: 1.1 proxy\r\n\r\n";

#[test]
fn http_and_https_go_through_it_and_names_are_its_own() {
    let authority = Authority::new();
    let dir = tempfile::tempdir().unwrap();
    let plain = Receiver::start(|_| answer(200, "plain"));
    let encrypted = Receiver::start_tls(authority.server(&["receiver.test"]), |_| answer(200, "encrypted"));
    let proxy = Proxy::start(YES);
    // Nothing can be resolved here.
    let names = Arc::new(Names::default());
    let ca_file = Some(authority.file(dir.path()));
    let config = ClientConfig { ca_file, proxy: Some(proxy.url("us%65r:p%40ss@")), ..insecure() };
    let fixture = Fixture::with_names(config, &names);
    for _ in 0..3 {
        assert_eq!(fixture.post(&plain.url_of("plain.test", "/a")), answered(200, "plain"));
        assert_eq!(fixture.post(&encrypted.url_of("receiver.test", "/b")), answered(200, "encrypted"));
    }
    assert_eq!(names.asked(), [""; 0]);
    assert_eq!((plain.connections(), encrypted.connections()), (1, 1));
    assert_eq!(plain.requests()[0].target, "/a");
    let credentials = "Proxy-Authorization: Basic dXNlcjpwQHNz\r\n";
    let expected = [("plain.test", plain.port()), ("receiver.test", encrypted.port())]
        .map(|(host, port)| format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n{credentials}\r\n"));
    assert_eq!(proxy.heads(), expected);
    // What is for the proxy does not reach the receiver.
    assert!(plain.requests().iter().all(|seen| seen.header("proxy-authorization").is_none()));
}

#[test]
fn literal_addresses_are_still_vetted() {
    let proxy = Proxy::start(YES);
    let config = ClientConfig { proxy: Some(proxy.url("")), ..secure() };
    for url in ["https://10.0.0.1/", "https://[::1]/", "https://169.254.169.254/"] {
        assert_eq!(Fixture::new(config.clone()).post(url), failed(ErrorClass::AddressNotAllowed), "{url}");
    }
    assert_eq!(proxy.heads(), [""; 0]);
}

#[test]
fn a_proxy_that_refuses_or_is_none() {
    let receiver = Receiver::start(|_| answer(200, ""));
    let long: &'static str = Box::leak(format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(20_000)).into_boxed_str());
    for answer in [
        "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\n\r\n",
        "HTTP/1.1 403 Forbidden\r\n\r\n",
        "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 3\r\n\r\nbad",
        "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1/\r\n\r\n",
        "SSH-2.0-OpenSSH_9.2\r\n\r\n",
        "HTTP/1.1 40",
        "",
        long,
    ] {
        let proxy = Proxy::start(answer);
        let fixture = Fixture::new(ClientConfig { proxy: Some(proxy.url("")), ..insecure() });
        assert_eq!(fixture.post(&receiver.url("/")), failed(ErrorClass::ConnectFailed), "{answer:.40}");
    }
    assert_eq!(receiver.connections(), 0);
}

#[test]
fn a_proxy_that_is_silent_or_absent() {
    let receiver = Receiver::start(|_| answer(200, ""));
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap()).parse().ok();
    let config = ClientConfig { proxy: url, connect_timeout: Duration::from_millis(300), ..insecure() };
    assert_eq!(Fixture::new(config.clone()).post(&receiver.url("/")), failed(ErrorClass::ConnectTimeout));
    drop(silent);
    assert_eq!(Fixture::new(config).post(&receiver.url("/")), failed(ErrorClass::ConnectionRefused));
}

#[test]
fn a_proxy_that_is_written_wrongly_is_not_quoted() {
    for url in ["https://u:secret@proxy:1", "socks5://u:secret@proxy:1", "http://u:secret@proxy:1/path"] {
        let config = ClientConfig { proxy: url.parse().ok(), ..insecure() };
        assert!(!format!("{config:?}").contains("secret"));
        let complaint = WebhookClient::new(config).err().unwrap();
        assert!(complaint.contains("proxy") && !complaint.contains("secret"), "{complaint}");
    }
}
