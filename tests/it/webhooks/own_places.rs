//! Where the server and its database are no webhook goes, whatever networks are allowed.

use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use support::postgres::Cluster;
use support::server::{Client, Options, eventually};

/// A server on addresses of the test's choice, with all networks allowed; killed when dropped.
struct OwnServer {
    child: Child,
    address: SocketAddr,
    key: String,
    _dir: TempDir,
}

impl Drop for OwnServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl OwnServer {
    fn start(options: &Options, listen: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        options.make_store(dir.path());
        let org = options.cli(dir.path(), &["org", "create", "acme", "--json"]);
        let org: Value = serde_json::from_str(&org).unwrap();
        let port = TcpListener::bind((listen, 0)).unwrap().local_addr().unwrap().port();
        let address = SocketAddr::new(listen.parse().unwrap(), port);
        let networks = ["--webhook-allowed-networks", "127.0.0.0/8,10.0.0.0/8,0.0.0.0/8,::/0"];
        let listen = address.to_string();
        let args = [&["--listen", &listen, "--ops-listen", "127.0.0.6:0"][..], &networks].concat();
        let mut command = options.serve(dir.path(), &args);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let key = org["api_key"].as_str().unwrap().to_owned();
        let server = Self { child, address, key, _dir: dir };
        eventually("it listens", || std::net::TcpStream::connect(address).is_ok());
        eventually("it is ready", || server.request("GET", "/ready", None).0 == 200);
        server
    }

    fn request(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        let body = body.map(Value::to_string);
        let body = body.as_deref().map(str::as_bytes);
        let answer = Client::connect(self.address).request(method, path, Some(&self.key), body);
        (answer.status, answer.json())
    }

    /// Whether an endpoint may be there.
    fn takes(&self, host: &str) -> bool {
        let (status, document) =
            self.request("POST", "/api/endpoints", Some(&json!({ "url": format!("https://{host}/") })));
        if status != 201 {
            assert_eq!((status, &document["code"]), (422, &json!("invalid_endpoint")), "{document}");
            assert!(document.to_string().contains("this server or its database is there"), "{document}");
        }
        status == 201
    }
}

#[test]
fn the_databases_address_is_never_an_endpoint() {
    let cluster = Cluster::shared();
    let by_socket = cluster.create_database();
    let url = cluster.tcp_url(by_socket.rsplit('/').next().unwrap());
    let server = OwnServer::start(&Options::postgres(&url), "127.0.0.5");
    for (host, is_taken) in [
        ("127.0.0.1", false),
        ("[::ffff:127.0.0.1]:5432", false),
        // It leads there.
        ("0.0.0.0", false),
        ("127.0.0.5", false),
        ("127.0.0.6", false),
        ("127.0.0.7", true),
        ("10.0.0.1", true),
    ] {
        assert_eq!(server.takes(host), is_taken, "{host}");
    }
}

#[test]
fn own_addresses_are_no_endpoints_when_listening_on_all() {
    let server = OwnServer::start(&Options::default(), "0.0.0.0");
    for (host, is_taken) in
        [("127.0.0.1", false), ("127.0.0.77", false), ("[::1]", false), ("0.0.0.0", false), ("10.0.0.1", true)]
    {
        assert_eq!(server.takes(host), is_taken, "{host}");
    }
}
