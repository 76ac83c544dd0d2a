//! A server that speaks TLS on each I/O driver, and a client.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, StreamOwned, SupportedProtocolVersion};
use tempfile::TempDir;

use support::certificates::Authority;
use support::server::{Client, Options, PATIENCE, Server, eventually, request};

/// What every test sends where it matters only that the event is good.
pub const EVENT: &str = r#"{"type":"user.login","payload":{"user":"ada"}}"#;

pub struct Fixture {
    pub server: Server,
    pub key: String,
    pub authority: Authority,
    dir: TempDir,
}

/// A connection over TLS.
pub type TlsClient = StreamOwned<ClientConnection, TcpStream>;

impl Fixture {
    pub fn start(driver: &str, args: &[&str]) -> Self {
        let (authority, dir) = (Authority::new(), tempfile::tempdir().unwrap());
        write_pair(&dir, &authority);
        let [certificates, key] = paths(&dir).map(|path| path.to_str().unwrap().to_owned());
        let options = Options::default().with(&["--rate-limit", "0", "--io-driver", driver]).with(args);
        let server = Server::start_unready(options.with(&["--tls-cert-file", &certificates, "--tls-key-file", &key]));
        eventually("the server is ready", || {
            Client::connect(server.ops).request("GET", "/ready", None, None).status == 200
        });
        let key = server.first_key();
        Self { server, key, authority, dir }
    }

    /// Puts a new certificate and its key in the place of those in use.
    pub fn renew(&self) {
        write_pair(&self.dir, &self.authority);
    }

    /// The files of certificate and key.
    pub fn files(&self) -> [PathBuf; 2] {
        paths(&self.dir)
    }

    /// What a client connects with; its tickets are kept in it.
    pub fn client_config(&self, versions: &[&'static SupportedProtocolVersion]) -> Arc<ClientConfig> {
        let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(self.authority.roots())
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.resumption = Resumption::in_memory_sessions(8);
        Arc::new(config)
    }

    /// A new connection, its handshake done.
    pub fn connect(&self, config: &Arc<ClientConfig>) -> TlsClient {
        self.try_connect(config).expect("a handshake")
    }

    pub fn try_connect(&self, config: &Arc<ClientConfig>) -> std::io::Result<TlsClient> {
        Self::over(self.tcp(), config)
    }

    /// TLS over a socket that may have been used for something else before.
    pub fn over(tcp: TcpStream, config: &Arc<ClientConfig>) -> std::io::Result<TlsClient> {
        let name = ServerName::try_from("localhost").unwrap();
        let session = ClientConnection::new(Arc::clone(config), name).unwrap();
        let mut client = StreamOwned::new(session, tcp);
        while client.conn.is_handshaking() {
            client.conn.complete_io(&mut client.sock)?;
        }
        Ok(client)
    }

    /// A connection without a word of TLS.
    pub fn tcp(&self) -> TcpStream {
        let tcp = TcpStream::connect(self.server.addr).unwrap();
        tcp.set_nodelay(true).unwrap();
        tcp.set_read_timeout(Some(PATIENCE)).unwrap();
        tcp
    }

    /// A good event.
    pub fn good(&self) -> Vec<u8> {
        self.post(EVENT)
    }

    /// `POST /api/events` with this body.
    pub fn post(&self, body: &str) -> Vec<u8> {
        request("POST", "/api/events", Some(&self.key), Some(body.as_bytes()))
    }

    /// A good event through a new connection: the server is well.
    pub fn is_well(&self) {
        let mut client = self.connect(&self.client_config(rustls::ALL_VERSIONS));
        assert_eq!(exchange(&mut client, &self.good()).0, 202);
    }
}

fn paths(dir: &TempDir) -> [PathBuf; 2] {
    ["cert.pem", "key.pem"].map(|name| dir.path().join(name))
}

fn write_pair(dir: &TempDir, authority: &Authority) {
    for (path, text) in paths(dir).iter().zip(authority.pem(&["localhost"])) {
        std::fs::write(path, text).unwrap();
    }
}

/// Sends a request; status and body of the answer.
pub fn exchange(client: &mut (impl Read + Write), request: &[u8]) -> (u16, String) {
    client.write_all(request).expect("the server reads");
    client.flush().expect("the server reads");
    answer(client)
}

/// The next answer: status and body.
pub fn answer(client: &mut impl Read) -> (u16, String) {
    let mut text = Vec::new();
    let mut more = [0; 1];
    while !text.ends_with(b"\r\n\r\n") {
        client.read_exact(&mut more).expect("an answer");
        text.push(more[0]);
    }
    let head = String::from_utf8(text).unwrap().to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
    let mut body = vec![0; length.parse().unwrap()];
    client.read_exact(&mut body).expect("a body");
    (head["http/1.1 ".len()..][..3].parse().unwrap(), String::from_utf8(body).unwrap())
}

/// The certificate the server showed.
pub fn shown(client: &TlsClient) -> CertificateDer<'static> {
    client.conn.peer_certificates().expect("a certificate")[0].clone().into_owned()
}

/// Runs a test against a server on each driver, side by side, and looks for panics in their logs.
pub fn on_both_drivers(args: &[&str], test: impl Fn(&Fixture) + Sync) {
    let first = if io_uring::IoUring::new(2).is_ok() { "uring" } else { "auto" };
    std::thread::scope(|scope| {
        let test = &test;
        let run = |driver| {
            let fixture = Fixture::start(driver, args);
            test(&fixture);
            let log = fixture.server.log();
            assert!(!log.contains("panicked") && !log.contains("a bug ended"), "{log}");
        };
        let runs = [first, "epoll"].map(|driver| (driver, scope.spawn(move || run(driver))));
        for (driver, run) in runs {
            assert!(run.join().is_ok(), "failed on {driver}; see above");
        }
    });
}
