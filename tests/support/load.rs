//! Clients that keep a log: what each request carried, and what its sender was told.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, MutexGuard, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::Value;
use uuid::Uuid;

use crate::server::{PATIENCE, post_with, request};

/// What a client was told about one event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// 202 with this id.
    Accepted(String),
    /// A refusal: status and code.
    Refused(u16, String),
    /// Nothing: the connection ended first. The event may be stored or not.
    Nothing,
    /// Nothing, for there was no connection to be had: no byte of the event was sent.
    Unsent,
}

/// The clients' log, by the number in each event's payload.
#[derive(Default)]
pub struct Log {
    entries: Mutex<Entries>,
    accepted: AtomicUsize,
}

/// Millions of events fit: about 40 bytes each.
#[derive(Default)]
struct Entries {
    notes: BTreeMap<u64, Note>,
    /// The codes of refusals, few.
    codes: Vec<String>,
}

/// [`Told`] in little space.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Note {
    Accepted(Uuid),
    /// Status, and which of the codes.
    Refused(u16, u16),
    Nothing,
    Unsent,
}

impl Entries {
    fn insert(&mut self, number: u64, told: &Told) {
        let note = match told {
            Told::Accepted(id) => Note::Accepted(Uuid::parse_str(id).expect("an id is a UUID")),
            Told::Refused(status, code) => {
                let known = self.codes.iter().position(|known| known == code);
                let index = known.unwrap_or_else(|| {
                    self.codes.push(code.clone());
                    self.codes.len() - 1
                });
                Note::Refused(*status, index as u16)
            }
            Told::Nothing => Note::Nothing,
            Told::Unsent => Note::Unsent,
        };
        assert!(self.notes.insert(number, note).is_none(), "number {number} was sent twice");
    }

    fn told(&self, note: Note) -> Told {
        match note {
            Note::Accepted(id) => Told::Accepted(id.to_string()),
            Note::Refused(status, code) => Told::Refused(status, self.codes[code as usize].clone()),
            Note::Nothing => Told::Nothing,
            Note::Unsent => Told::Unsent,
        }
    }
}

impl Log {
    /// An empty one.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Notes what the sender of event `number` was told.
    pub fn note(&self, number: u64, told: Told) {
        self.note_all([(number, told)]);
    }

    /// Notes several at once.
    pub fn note_all(&self, all: impl IntoIterator<Item = (u64, Told)>) {
        let mut entries = self.entries();
        for (number, told) in all {
            self.accepted.fetch_add(usize::from(matches!(told, Told::Accepted(_))), Ordering::Relaxed);
            entries.insert(number, &told);
        }
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().expect("no client panics")
    }

    /// What the sender of event `number` was told.
    pub fn told(&self, number: u64) -> Option<Told> {
        let entries = self.entries();
        entries.notes.get(&number).map(|note| entries.told(*note))
    }

    /// How many events were sent, or meant to be.
    pub fn sent(&self) -> usize {
        self.entries().notes.len()
    }

    /// The events that were accepted.
    pub fn accepted_numbers(&self) -> Vec<u64> {
        let entries = self.entries();
        let accepted = entries.notes.iter().filter(|(_, note)| matches!(note, Note::Accepted(_)));
        accepted.map(|(number, _)| *number).collect()
    }

    /// How many events were accepted.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    /// How many requests had no answer.
    pub fn unanswered(&self) -> usize {
        self.entries().notes.values().filter(|note| **note == Note::Nothing).count()
    }

    /// How many refusals there were of each kind.
    pub fn refusals(&self) -> BTreeMap<(u16, String), usize> {
        let mut counts = BTreeMap::new();
        let entries = self.entries();
        for note in entries.notes.values() {
            if let Note::Refused(status, code) = *note {
                *counts.entry((status, entries.codes[code as usize].clone())).or_default() += 1;
            }
        }
        counts
    }
}

/// Numbers no other event of this process has.
pub fn next_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// From here on are the numbers of events that come by the hundred: their payloads are small.
const BULK: u64 = 1 << 40;

fn next_bulk(count: u64) -> std::ops::Range<u64> {
    static NEXT: AtomicU64 = AtomicU64::new(BULK);
    let first = NEXT.fetch_add(count, Ordering::Relaxed);
    first..first + count
}

/// The payload of event `number`, byte for byte: of mixed sizes, with white space that must survive.
pub fn payload(number: u64) -> String {
    if number >= BULK {
        return format!(r#"{{"m":{number}, "bulk" :true}}"#);
    }
    format!(r#"{{"m":{number}, "pad":"{}"}}"#, "x".repeat((number % 8) as usize * 100))
}

/// Whether events carry a `dedup_id`; their ids are made and stored in different ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ids {
    /// None does.
    Made,
    /// All do.
    Derived,
    /// Every other does.
    Both,
}

/// The event `number`.
pub fn event(number: u64, event_type: &str, ids: Ids) -> String {
    let mut text = format!(r#"{{"type":"{event_type}""#);
    if ids == Ids::Derived || (ids == Ids::Both && number % 2 == 1) {
        let _ = write!(text, r#","dedup_id":"d{number}""#);
    }
    text + r#","payload":"# + &payload(number) + "}"
}

/// An answer: its status and its body.
pub type Answer = (u16, Vec<u8>);

/// The answer to a batch.
#[derive(Deserialize)]
struct Results {
    results: Vec<ItemResult>,
}

#[derive(Deserialize)]
struct ItemResult {
    id: Option<String>,
    error: Option<Problem>,
}

#[derive(Deserialize)]
struct Problem {
    code: String,
}

/// Where a server listens at present. It may be down.
#[derive(Clone)]
pub struct Address(Arc<AtomicU16>);

impl Address {
    /// This one.
    pub fn new(addr: SocketAddr) -> Self {
        Self(Arc::new(AtomicU16::new(addr.port())))
    }

    pub fn get(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.0.load(Ordering::Relaxed)))
    }

    /// From now on that one.
    pub fn set(&self, addr: SocketAddr) {
        self.0.store(addr.port(), Ordering::Relaxed);
    }
}

/// A connection that is made again when it ends.
pub struct Connection {
    addr: SocketAddr,
    key: String,
    stream: Option<TcpStream>,
}

impl Connection {
    /// To `addr`, with `key`; connects when first used.
    pub fn new(addr: SocketAddr, key: &str) -> Self {
        Self { addr, key: key.to_owned(), stream: None }
    }

    /// From now on to that address.
    pub fn move_to(&mut self, addr: SocketAddr) {
        if self.addr != addr {
            (self.addr, self.stream) = (addr, None);
        }
    }

    /// Posts a new event and notes what was said about it.
    pub fn post_event(&mut self, log: &Log, event_type: &str, ids: Ids) -> Told {
        let number = next_number();
        let answer = self.post("/api/events", event(number, event_type, ids).as_bytes());
        let told = match answer {
            Ok((202, body)) => Told::Accepted(json(&body)["id"].as_str().expect("an id").to_owned()),
            Ok((status, body)) => Told::Refused(status, json(&body)["code"].as_str().expect("a code").to_owned()),
            Err(told) => told,
        };
        log.note(number, told.clone());
        told
    }

    /// Posts new events of these types in one batch and notes what was said about each; a refusal of the whole
    /// batch is returned.
    pub fn post_batch(&mut self, log: &Log, types: &[&str], ids: Ids) -> Result<(), Told> {
        let numbers: Vec<u64> = types.iter().map(|_| next_number()).collect();
        let events: Vec<String> = numbers.iter().zip(types).map(|(number, kind)| event(*number, kind, ids)).collect();
        let whole = match self.post("/api/events/batch", format!("[{}]", events.join(",")).as_bytes()) {
            Ok((202, body)) => {
                let results = json(&body)["results"].as_array().expect("results").clone();
                assert_eq!(results.len(), numbers.len());
                for (number, result) in numbers.iter().zip(results) {
                    let told = match (result["id"].as_str(), result["error"]["code"].as_str()) {
                        (Some(id), None) => Told::Accepted(id.to_owned()),
                        (None, Some(code)) => Told::Refused(202, code.to_owned()),
                        _ => panic!("{result}"),
                    };
                    log.note(*number, told);
                }
                return Ok(());
            }
            Ok((status, body)) => Told::Refused(status, json(&body)["code"].as_str().expect("a code").to_owned()),
            Err(told) => told,
        };
        log.note_all(numbers.into_iter().map(|number| (number, whole.clone())));
        Err(whole)
    }

    /// Posts `count` new events of one type with ids of the server's own in one batch, as an array or as lines, and notes
    /// what was said about each; a refusal of the whole batch is returned.
    pub fn post_bulk(&mut self, log: &Log, event_type: &str, count: u64) -> Result<(), Told> {
        let numbers = next_bulk(count);
        let is_array = (numbers.start / count).is_multiple_of(2);
        let mut body = String::with_capacity(count as usize * 100);
        for number in numbers.clone() {
            let separator = if number == numbers.start {
                ""
            } else if is_array {
                ","
            } else {
                "\n"
            };
            let _ = write!(body, r#"{separator}{{"type":"{event_type}","payload":{}}}"#, payload(number));
        }
        let answer = if is_array {
            self.post("/api/events/batch", format!("[{body}]").as_bytes())
        } else {
            self.post_as("application/x-ndjson", "/api/events/batch", body.as_bytes())
        };
        let whole = match answer {
            Ok((202, body)) => {
                let body: Results = serde_json::from_slice(&body).expect("results");
                assert_eq!(body.results.len() as u64, count);
                log.note_all(numbers.zip(body.results).map(|(number, result)| match (result.id, result.error) {
                    (Some(id), None) => (number, Told::Accepted(id)),
                    (None, Some(Problem { code })) => (number, Told::Refused(202, code)),
                    _ => panic!("an id or an error"),
                }));
                return Ok(());
            }
            Ok((status, body)) => Told::Refused(status, json(&body)["code"].as_str().expect("a code").to_owned()),
            Err(told) => told,
        };
        log.note_all(numbers.map(|number| (number, whole.clone())));
        Err(whole)
    }

    /// One POST. An answer that is cut is none.
    fn post(&mut self, path: &str, body: &[u8]) -> Result<Answer, Told> {
        self.post_bytes(&request("POST", path, Some(&self.key), Some(body)))
    }

    fn post_as(&mut self, content_type: &str, path: &str, body: &[u8]) -> Result<Answer, Told> {
        self.post_bytes(&post_with(path, &self.key, &[("Content-Type", content_type)], body))
    }

    fn post_bytes(&mut self, request: &[u8]) -> Result<Answer, Told> {
        if self.stream.is_none() {
            self.stream = Some(connect(self.addr).map_err(|_| Told::Unsent)?);
        }
        self.exchange(request).map_err(|_| {
            self.stream = None;
            Told::Nothing
        })
    }

    fn exchange(&mut self, request: &[u8]) -> io::Result<Answer> {
        let stream = self.stream.as_mut().expect("connected");
        stream.write_all(request)?;
        let mut received = Vec::new();
        let (head, body_start) = loop {
            if let Some(end) = received.windows(4).position(|window| window == b"\r\n\r\n") {
                break (String::from_utf8(received[..end].to_vec()).expect("an ASCII head"), end + 4);
            }
            read_more(stream, &mut received)?;
        };
        let length: usize = field(&head, "content-length").expect("a length").parse().expect("a number");
        while received.len() < body_start + length {
            read_more(stream, &mut received)?;
        }
        if field(&head, "connection") == Some("close") {
            self.stream = None;
        }
        let status: u16 = head[9..12].parse().expect("a status");
        if matches!(status, 429 | 503) {
            let seconds: u32 = field(&head, "retry-after").expect("Retry-After").parse().expect("whole seconds");
            assert!(seconds >= 1, "{head}");
        }
        Ok((status, received.split_off(body_start)))
    }
}

fn connect(addr: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(addr)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn read_more(stream: &mut TcpStream, received: &mut Vec<u8>) -> io::Result<()> {
    let mut buffer = [0; 16 * 1024];
    match stream.read(&mut buffer)? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        n => {
            received.extend_from_slice(&buffer[..n]);
            Ok(())
        }
    }
}

fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let fields = head.lines().skip(1).filter_map(|line| line.split_once(": "));
    fields.filter(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
}

fn json(body: &[u8]) -> Value {
    serde_json::from_slice(body).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(body)))
}

/// Clients on threads of their own that post one event after the other.
pub struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    /// `clients` connections to `addr`, until [`Self::stop`]. Returns when each has had its first answer.
    pub fn start(addr: SocketAddr, key: &str, clients: usize, ids: Ids, log: &Arc<Log>) -> Self {
        Self::start_with(addr, key, clients, log, move |connection, log| connection.post_event(log, "load", ids))
    }

    /// The same with single events and batches, both kinds of ids.
    pub fn start_mixed(addr: SocketAddr, key: &str, clients: usize, log: &Arc<Log>) -> Self {
        Self::start_with(addr, key, clients, log, |connection, log| match next_number() % 8 {
            0 => match connection.post_batch(log, &["load"; 20], Ids::Both) {
                Ok(()) => Told::Accepted(String::new()),
                Err(told) => told,
            },
            _ => connection.post_event(log, "load", Ids::Both),
        })
    }

    /// Batches of a hundred events with ids of the server's own, up to 8,000 events/s a client: what goes by COPY.
    pub fn start_bulk(addr: SocketAddr, key: &str, clients: usize, log: &Arc<Log>) -> Self {
        Self::start_with(addr, key, clients, log, |connection, log| match connection.post_bulk(log, "bulk", 100) {
            Ok(()) => {
                thread::sleep(Duration::from_millis(12));
                Told::Accepted(String::new())
            }
            Err(told) => told,
        })
    }

    /// Single events and now and then a batch, both kinds of ids, while it is their turn: mostly of the first type, of
    /// which `types` are.
    pub fn start_in_turns(
        addr: SocketAddr,
        key: &str,
        clients: usize,
        types: &'static [&'static str],
        turn: Turn,
        log: &Arc<Log>,
    ) -> Self {
        let usual = types[0];
        Self::start_with(addr, key, clients, log, move |connection, log| {
            while !turn.is_now() {
                thread::sleep(Duration::from_millis(5));
            }
            match next_number() % 64 {
                n if n < 8 => match connection.post_batch(log, &[usual; 20], Ids::Both) {
                    Ok(()) => Told::Accepted(String::new()),
                    Err(told) => told,
                },
                // Two in a row: most requests take two numbers. Right behind a batch would never come.
                40 | 41 => connection.post_event(log, types[types.len() - 1], Ids::Both),
                n => connection.post_event(log, usual, if n % 2 == 0 { Ids::Made } else { Ids::Derived }),
            }
        })
    }

    fn start_with(
        addr: SocketAddr,
        key: &str,
        clients: usize,
        log: &Arc<Log>,
        post: impl Fn(&mut Connection, &Log) -> Told + Clone + Send + 'static,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let begun = Arc::new(Barrier::new(clients + 1));
        let clients = (0..clients)
            .map(|_| {
                let (stop, log, begun) = (Arc::clone(&stop), Arc::clone(log), Arc::clone(&begun));
                let (mut connection, post) = (Connection::new(addr, key), post.clone());
                thread::spawn(move || {
                    post(&mut connection, &log);
                    begun.wait();
                    while !stop.load(Ordering::Relaxed) {
                        // Paced: the tests share a machine, and only the answers matter.
                        thread::sleep(match post(&mut connection, &log) {
                            Told::Accepted(_) => Duration::from_millis(1),
                            Told::Refused(..) | Told::Nothing | Told::Unsent => Duration::from_millis(20),
                        });
                    }
                })
            })
            .collect();
        begun.wait();
        Self { stop, clients }
    }

    /// Waits for the last answers.
    pub fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.join().expect("a client's answers have the right shape");
        }
    }
}

/// When those who send what cannot go by COPY have their turn: a batch of the server's goes by INSERT as a whole if one of its
/// events must, so that whoever sends all the time leaves nothing to COPY. Half of the time it is nobody's turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Derived ids among others.
    Plain,
    /// To an organisation with an endpoint.
    Hooked,
}

impl Turn {
    /// Whether it is this one.
    pub fn is_now(self) -> bool {
        static BEGAN: OnceLock<Instant> = OnceLock::new();
        let now = match BEGAN.get_or_init(Instant::now).elapsed().as_millis() / 90 % 4 {
            1 => Some(Self::Plain),
            3 => Some(Self::Hooked),
            _ => None,
        };
        now == Some(self)
    }
}
