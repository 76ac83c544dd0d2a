//! Bad clients for `perf/attacks`: each mode does one wrong thing for a number of seconds and says what it was answered.
//!
//!     cargo run --release -p millrace-perf --bin attacker -- MODE ADDRESS:PORT SECONDS CONNECTIONS [RATE]
//!
//! | mode | each connection |
//! |---|---|
//! | `idle`, `crowd` | says nothing; a crowd is of one address |
//! | `slow-head`, `slow-body`, `slow-hello` | sends the beginning of a request, of a body with a good key, of a TLS handshake, and then a byte a second |
//! | `deaf` | asks for a large document again and again and reads nothing |
//! | `pipeline` | asks without waiting for answers, and reads them |
//! | `churn` | is closed as soon as it is open |
//! | `unknown-keys`, `wrong-secrets`, `junk-keys` | sends an event with a new key of that kind, RATE a second over all |
//! | `spread-keys` | the same with unknown keys, each connection from an address of its own |
//! | `good-keys` | the same with the good key: what as many ordinary requests cost |
//! | `handshakes`, `resumptions` | shakes hands over TLS, in full or with a ticket, and asks for `/health` |
//! | `spread-handshakes`, `spread-resumptions` | the same, each from the next of 200 addresses |
//! | `burn` | is none: a thread that computes without pause. What an attacker on the same cores takes by being there |
//!
//! Connections that are closed are opened again. `keys KIND COUNT` prints keys, `certificate DIR` makes a private
//! authority and a certificate of it. The good key is in `MILLRACE_API_KEY`, the authority's file in `MILLRACE_CA_FILE`.
//! For loopback only, and for no longer than [`SECONDS_MAX`]: connections come from 127.1.0.0/16, a network for each
//! mode, so that limits by address leave others alone, and as many from each address as [`PER_ADDRESS`].

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use socket2::{Domain, Socket, Type};

use millrace_base::key::ApiKey;

type Failure = Box<dyn Error + Send + Sync>;

const SECONDS_MAX: f64 = 120.0;
const CONNECTIONS_MAX: u32 = 20_000;
const PER_ADDRESS: u32 = 4000;
const MODES: [&str; 18] = [
    "idle",
    "crowd",
    "slow-head",
    "slow-body",
    "slow-hello",
    "deaf",
    "pipeline",
    "churn",
    "unknown-keys",
    "wrong-secrets",
    "junk-keys",
    "handshakes",
    "resumptions",
    "spread-keys",
    "good-keys",
    "burn",
    "spread-handshakes",
    "spread-resumptions",
];
const HEALTH: &[u8] = b"GET /health HTTP/1.1\r\nHost: t\r\n\r\n";
const DOCUMENT: &[u8] = b"GET /openapi.json HTTP/1.1\r\nHost: t\r\n\r\n";

/// How often each thing happened: statuses by their number, and ends of connections.
type Counts = BTreeMap<String, u64>;

struct Attack {
    addr: SocketAddr,
    end: Instant,
    connections: u32,
    /// Requests a second of all connections together; 0 as fast as answers come.
    rate: f64,
    /// The network that its connections come from.
    network: [u8; 3],
    /// So many from each address of it.
    per_address: u32,
}

#[allow(clippy::print_stdout, reason = "the result")]
fn main() -> Result<(), Failure> {
    const USAGE: &str = "usage: attacker MODE ADDRESS:PORT SECONDS CONNECTIONS [RATE]";
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["keys", kind, count] => {
            for _ in 0..count.parse::<u32>()? {
                println!("{}", new_key(kind)?);
            }
        }
        ["certificate", dir] => make_certificate(dir)?,
        [mode, addr, seconds, connections, ref rest @ ..] => {
            let addr: SocketAddr = addr.parse()?;
            let (seconds, connections) = (seconds.parse::<f64>()?, connections.parse()?);
            let rate = rest.first().map_or(Ok(0.0), |rate| rate.parse())?;
            if !addr.ip().is_loopback() || !(0.0..=SECONDS_MAX).contains(&seconds) || connections > CONNECTIONS_MAX {
                return Err("loopback only, at most 120 seconds and 20,000 connections".into());
            }
            let end = Instant::now() + Duration::from_secs_f64(seconds);
            let per_address = match mode {
                "crowd" => CONNECTIONS_MAX,
                "spread-keys" | "spread-handshakes" | "spread-resumptions" => 1,
                _ => PER_ADDRESS,
            };
            let counts = run(mode, &Attack { addr, end, connections, rate, network: network(mode), per_address })?;
            println!("{}", serde_json::to_string(&counts)?);
        }
        _ => return Err(USAGE.into()),
    }
    Ok(())
}

/// One for each mode: what one did wrong is not held against the next.
fn network(mode: &str) -> [u8; 3] {
    let number = MODES.iter().position(|known| *known == mode).unwrap_or(MODES.len());
    [127, 1, number as u8]
}

fn run(mode: &str, attack: &Attack) -> Result<Counts, Failure> {
    match mode {
        "idle" | "crowd" => hold(attack, b"", b""),
        "slow-head" => hold(attack, b"POST /api/events HTTP/1.1\r\nHost: t\r\nX-Slow: ", &[b'x'; 128]),
        "slow-body" => {
            let head = format!(
                "POST /api/events HTTP/1.1\r\nHost: t\r\nX-API-Key: {}\r\nContent-Length: 1000\r\n\r\n",
                good_key()?
            );
            hold(attack, head.as_bytes(), &[b' '; 128])
        }
        // A record of 512 bytes with a client's first words, of which hardly any come.
        "slow-hello" => hold(attack, &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3], &[0x55; 128]),
        "deaf" => by_thread(attack, deaf),
        "pipeline" => by_thread(attack, pipeline),
        "churn" => by_thread(attack, churn),
        "spread-keys" => by_thread(attack, |attack, n| guess(attack, n, "unknown-keys")),
        "unknown-keys" | "wrong-secrets" | "junk-keys" | "good-keys" => {
            by_thread(attack, |attack, n| guess(attack, n, mode))
        }
        "burn" => by_thread(attack, |attack, _| Ok(burn(attack))),
        "handshakes" | "resumptions" | "spread-handshakes" | "spread-resumptions" => {
            let config = tls_config(mode.ends_with("resumptions"))?;
            by_thread(attack, |attack, n| shake_hands(attack, n, &config))
        }
        _ => Err(format!("there is no mode {mode}").into()),
    }
}

/// Runs the same on a thread for each connection, and adds up.
fn by_thread(
    attack: &Attack,
    body: impl Fn(&Attack, u32) -> Result<Counts, Failure> + Sync,
) -> Result<Counts, Failure> {
    thread::scope(|scope| {
        let threads: Vec<_> = (0..attack.connections)
            .map(|n| {
                scope.spawn({
                    let body = &body;
                    move || body(attack, n)
                })
            })
            .collect();
        let mut all = Counts::new();
        for thread in threads {
            for (what, count) in thread.join().map_err(|_| "a thread panicked")?? {
                *all.entry(what).or_default() += count;
            }
        }
        Ok(all)
    })
}

/// Connects from an address of the attack's own.
fn connect(attack: &Attack, n: u32) -> std::io::Result<TcpStream> {
    let [a, b, c] = attack.network;
    let host = u8::try_from(1 + n / attack.per_address).map_err(std::io::Error::other)?;
    let source = Ipv4Addr::new(a, b, c, host);
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::new(IpAddr::V4(source), 0).into())?;
    socket.set_tcp_nodelay(true)?;
    socket.connect(&attack.addr.into())?;
    Ok(socket.into())
}

fn count(counts: &mut Counts, what: &str) {
    *counts.entry(what.to_owned()).or_default() += 1;
}

/// The statuses in what was read; answers are counted by their status lines.
fn count_answers(counts: &mut Counts, read: &[u8]) {
    for at in memchr::memmem::find_iter(read, b"HTTP/1.1 ") {
        if let Some(status) = read.get(at + 9..at + 12) {
            count(counts, &String::from_utf8_lossy(status));
        }
    }
}

/// Many connections on one thread: each says `begin`, then a byte of `drip` a second.
fn hold(attack: &Attack, begin: &[u8], drip: &[u8]) -> Result<Counts, Failure> {
    let mut counts = Counts::new();
    let mut open: Vec<Option<(TcpStream, usize)>> = (0..attack.connections).map(|_| None).collect();
    let mut buffer = vec![0; 4096];
    while Instant::now() < attack.end {
        let round = Instant::now();
        for (n, slot) in open.iter_mut().enumerate() {
            if Instant::now() >= attack.end {
                break;
            }
            if let Some((stream, sent)) = slot {
                let is_over = match stream.read(&mut buffer) {
                    Ok(0) => true,
                    Ok(read) => {
                        count_answers(&mut counts, &buffer[..read]);
                        false
                    }
                    Err(error) => error.kind() != ErrorKind::WouldBlock,
                };
                let next = drip.get(*sent).map_or(&[][..], std::slice::from_ref);
                *sent += 1;
                if is_over || stream.write(next).is_err_and(|error| error.kind() != ErrorKind::WouldBlock) {
                    count(&mut counts, "closed");
                    *slot = None;
                }
            }
            if slot.is_none() {
                let mut stream = connect(attack, n as u32)?;
                count(&mut counts, "opened");
                // It may be closed again at once, at a limit.
                let _ = stream.write(begin);
                stream.set_nonblocking(true)?;
                *slot = Some((stream, 0));
            }
        }
        thread::sleep(Duration::from_secs(1).saturating_sub(round.elapsed()));
    }
    Ok(counts)
}

fn deaf(attack: &Attack, n: u32) -> Result<Counts, Failure> {
    let mut counts = Counts::new();
    let requests = DOCUMENT.repeat(64);
    while Instant::now() < attack.end {
        let mut stream = connect(attack, n)?;
        stream.set_write_timeout(Some(Duration::from_millis(250)))?;
        count(&mut counts, "opened");
        while Instant::now() < attack.end {
            match stream.write(&requests) {
                Err(error) if !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    count(&mut counts, "closed");
                    break;
                }
                _ => {}
            }
        }
    }
    Ok(counts)
}

fn pipeline(attack: &Attack, n: u32) -> Result<Counts, Failure> {
    let mut counts = Counts::new();
    let mut stream = connect(attack, n)?;
    let mut reader = stream.try_clone()?;
    let requests = HEALTH.repeat(1000);
    let answers = thread::spawn(move || {
        let (mut counts, mut buffer) = (Counts::new(), vec![0; 256 * 1024]);
        while let Ok(read @ 1..) = reader.read(&mut buffer) {
            count_answers(&mut counts, &buffer[..read]);
        }
        counts
    });
    while Instant::now() < attack.end && stream.write_all(&requests).is_ok() {}
    let _ = stream.shutdown(std::net::Shutdown::Both);
    for (what, more) in answers.join().map_err(|_| "a thread panicked")? {
        *counts.entry(what).or_default() += more;
    }
    Ok(counts)
}

fn churn(attack: &Attack, n: u32) -> Result<Counts, Failure> {
    let mut counts = Counts::new();
    while Instant::now() < attack.end {
        match connect(attack, n) {
            Ok(stream) => {
                // Reset, not a wait for ports: the attack should not run out of them first.
                socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
                count(&mut counts, "opened");
            }
            Err(_) => count(&mut counts, "not opened"),
        }
    }
    Ok(counts)
}

fn burn(attack: &Attack) -> Counts {
    let (mut state, mut rounds) = (1u64, 0);
    while Instant::now() < attack.end {
        for _ in 0..100_000 {
            state = std::hint::black_box(state.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ state >> 31);
        }
        rounds += 1;
    }
    Counts::from([("rounds".to_owned(), rounds)])
}

fn guess(attack: &Attack, n: u32, kind: &str) -> Result<Counts, Failure> {
    const BODY: &str = r#"{"type":"t","payload":1}"#;
    let mut counts = Counts::new();
    let mut stream = connect(attack, n)?;
    let pause = if attack.rate > 0.0 { f64::from(attack.connections) / attack.rate } else { 0.0 };
    let pause = Duration::from_secs_f64(pause);
    let mut buffer = vec![0; 4096];
    let mut due = Instant::now();
    while Instant::now() < attack.end {
        let key = new_key(kind)?;
        let length = BODY.len();
        let request = format!(
            "POST /api/events HTTP/1.1\r\nHost: t\r\nX-API-Key: {key}\r\nContent-Length: {length}\r\n\r\n{BODY}"
        );
        stream.write_all(request.as_bytes())?;
        let mut filled = 0;
        // Refusals are one small message: complete when the document's last brace is there.
        while filled == 0 || buffer[filled - 1] != b'}' {
            match stream.read(&mut buffer[filled..])? {
                0 => return Err("the server closed a connection with a guess".into()),
                read => filled += read,
            }
        }
        count_answers(&mut counts, &buffer[..filled]);
        due += pause;
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    Ok(counts)
}

fn shake_hands(attack: &Attack, n: u32, config: &Arc<ClientConfig>) -> Result<Counts, Failure> {
    let mut counts = Counts::new();
    // Matters only where each address has one.
    for n in (0..200).skip(n as usize).step_by(attack.connections.max(1) as usize).cycle() {
        if Instant::now() >= attack.end {
            break;
        }
        let mut stream = connect(attack, n)?;
        let mut session = ClientConnection::new(Arc::clone(config), ServerName::try_from("localhost")?)?;
        while session.is_handshaking() {
            session.complete_io(&mut stream)?;
        }
        // Tickets come after the handshake, with the answer at the latest.
        let mut client = rustls::Stream::new(&mut session, &mut stream);
        client.write_all(HEALTH)?;
        let _ = client.read(&mut [0; 4096])?;
        count(&mut counts, &format!("{:?}", session.handshake_kind()).replace("Some", ""));
    }
    Ok(counts)
}

fn tls_config(has_tickets: bool) -> Result<Arc<ClientConfig>, Failure> {
    let file = std::env::var("MILLRACE_CA_FILE").map_err(|_| "set MILLRACE_CA_FILE")?;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(file)?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    if !has_tickets {
        config.resumption = rustls::client::Resumption::disabled();
    }
    Ok(Arc::new(config))
}

fn good_key() -> Result<String, Failure> {
    std::env::var("MILLRACE_API_KEY").map_err(|_| "set MILLRACE_API_KEY".into())
}

/// A key that is not valid.
fn new_key(kind: &str) -> Result<String, Failure> {
    let unknown = ApiKey::generate()?.reveal().to_owned();
    Ok(match kind {
        "unknown-keys" => unknown,
        // The checksum hardly fits any more.
        "junk-keys" => unknown.chars().rev().collect(),
        "wrong-secrets" => with_id_of(&good_key()?, &unknown),
        // At the price of making one up, as for the others.
        "good-keys" => good_key()?,
        _ => return Err(format!("there are no keys of the kind {kind}").into()),
    })
}

/// The id of one key before the secret of another, with a checksum that fits.
fn with_id_of(key: &str, other: &str) -> String {
    const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let (id_end, checksum_at) = ("mr_".len() + 12, key.len() - 6);
    let mut forged = format!("{}{}", &key[..id_end], &other[id_end..checksum_at]);
    let mut rest = crc32fast::hash(forged.as_bytes());
    let mut checksum = [b'0'; 6];
    for digit in checksum.iter_mut().rev() {
        *digit = DIGITS[(rest % 62) as usize];
        rest /= 62;
    }
    forged.extend(checksum.map(char::from));
    forged
}

/// `ca.pem`, `cert.pem` and `key.pem` for localhost; elliptic, as is advised.
fn make_certificate(dir: &str) -> Result<(), Failure> {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    let certificate = CertificateParams::new(vec!["localhost".to_owned()])?.signed_by(&key, &authority)?;
    for (name, text) in [("ca", authority.pem()), ("cert", certificate.pem()), ("key", key.serialize_pem())] {
        std::fs::write(format!("{dir}/{name}.pem"), text)?;
    }
    Ok(())
}
