//! The real binary on free ports, and a client that speaks raw HTTP/1.1 to it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::Value;
use socket2::{Domain, Socket, Type};
use tempfile::TempDir;

use millrace_store::open::StoreConfig;

use crate::program::program;

/// How long anything that must happen may take before a test gives up; never a measure of speed.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Polls `done` until it is true; panics with `what` after [`PATIENCE`].
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        // Seldom enough, after a while, that what is asked through a limited route stays within its limit.
        let pause = if began.elapsed() < Duration::from_secs(2) { 10 } else { 100 };
        std::thread::sleep(Duration::from_millis(pause));
    }
}

/// Lets this process open as many files as the hard limit allows, for tests with many connections. `./test` does the same for
/// all tests, so one that runs beside them sees no difference.
pub fn allow_all_descriptors() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).expect("up to the hard limit");
}

/// Does this when dropped, however a test ends.
pub struct Finally<F: FnMut()>(pub F);

impl<F: FnMut()> Drop for Finally<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// How to start a server.
#[derive(Clone, Default)]
pub struct Options {
    /// `DATABASE_URL`; embedded SQLite without.
    pub database_url: Option<String>,
    /// Listen for events here instead of on a free port of loopback.
    pub listen: Option<&'static str>,
    /// Further arguments of `serve`.
    pub args: Vec<String>,
    /// Further environment.
    pub env: Vec<(String, String)>,
    /// Use this data directory instead of a new one.
    pub data_dir: Option<PathBuf>,
    /// Limit the process to this many open files, soft and hard.
    pub open_files: Option<u64>,
    /// A program, with its arguments, that becomes the server: it gets the server's command line behind its own.
    pub through: Vec<String>,
}

impl Options {
    /// On Postgres.
    pub fn postgres(url: &str) -> Self {
        Self { database_url: Some(url.to_owned()), ..Self::default() }
    }

    /// With one more argument list.
    #[must_use]
    pub fn with(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(|arg| (*arg).to_owned()));
        self
    }

    /// Makes the store, as only a server does, for commands that are run before one.
    pub fn make_store(&self, data_dir: &Path) {
        let (database_url, data_dir) = (self.database_url.clone(), data_dir.to_owned());
        let store = millrace_store::open::open(&StoreConfig { database_url, data_dir, connections_max: 2 });
        store.and_then(|store| store.migrate()).expect("a new store");
    }

    /// With a shell that does this and then becomes the server.
    #[must_use]
    pub fn after(mut self, script: &str) -> Self {
        self.through = ["sh", "-c", &format!(r#"{script} && exec "$0" "$@""#)].map(str::to_owned).to_vec();
        self
    }

    /// Runs a command of the binary; returns standard output.
    pub fn cli(&self, data_dir: &Path, args: &[&str]) -> String {
        let output = self.command(data_dir).args(args).output().expect("the binary starts");
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    }

    /// The command `serve`, not started yet.
    pub fn serve(&self, data_dir: &Path, args: &[&str]) -> Command {
        let mut command = self.command(data_dir);
        command.arg("serve").args(args).args(&self.args).stdin(Stdio::null());
        command
    }

    fn command(&self, data_dir: &Path) -> Command {
        let program = program();
        let mut command = match (self.open_files, self.through.split_first()) {
            (None, None) => Command::new(program),
            (None, Some((first, rest))) => {
                let mut command = Command::new(first);
                command.args(rest).arg(program);
                command
            }
            (Some(limit), _) => {
                let mut shell = Command::new("sh");
                shell.args(["-c", &format!(r#"ulimit -n {limit} && exec "$0" "$@""#)]).arg(program);
                shell
            }
        };
        // Nothing of the caller's: what a campaign is told is told in variables too.
        std::env::vars().filter(|(name, _)| name.starts_with("MILLRACE_")).for_each(|(name, _)| {
            command.env_remove(name);
        });
        command.env_remove("DATABASE_URL").env("MILLRACE_DATA_DIR", data_dir);
        // The cheapest Argon2 there is: most tests are not about it, and the build is not optimised.
        command.env("MILLRACE_ARGON2_MEMORY_KIB", "8");
        // Several servers run at once, and each would have its first shard on the first core.
        command.env("MILLRACE_PIN", "false");
        if let Some(url) = &self.database_url {
            command.env("DATABASE_URL", url);
        }
        command.envs(self.env.iter().cloned());
        command
    }
}

/// A running server. Killed when dropped.
pub struct Server {
    /// The public listener.
    pub addr: SocketAddr,
    /// The ops listener.
    pub ops: SocketAddr,
    /// Standard error so far.
    pub log: Arc<Mutex<String>>,
    /// Standard output so far.
    pub stdout: Arc<Mutex<String>>,
    options: Options,
    data_dir: PathBuf,
    child: Child,
    _temp: Option<TempDir>,
}

impl Server {
    /// Starts on the embedded store and waits until ready.
    pub fn sqlite() -> Self {
        Self::start(Options::default())
    }

    /// Starts and waits until ready.
    pub fn start(options: Options) -> Self {
        let server = Self::start_unready(options);
        eventually("the server is ready", || server.get("/ready", None).status == 200);
        server
    }

    /// Starts and waits until it listens.
    pub fn start_unready(options: Options) -> Self {
        let temp = options.data_dir.is_none().then(|| tempfile::tempdir().expect("a temporary directory"));
        let data_dir = options.data_dir.clone().unwrap_or_else(|| temp.as_ref().expect("made above").path().to_owned());
        let listen = options.listen.unwrap_or("127.0.0.1:0");
        let mut child = options
            .serve(&data_dir, &["--listen", listen, "--ops-listen", "127.0.0.1:0"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let log = collect(child.stderr.take().expect("piped"));
        let stdout = collect(child.stdout.take().expect("piped"));
        // Complete from here on, so that the process ends with it whatever happens.
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut server = Self { addr: nowhere, ops: nowhere, log, stdout, options, data_dir, child, _temp: temp };
        eventually("the server says where it listens", || {
            let text = server.log();
            if let Some(status) = server.child.try_wait().expect("a child") {
                panic!("the server ended with {status}:\n{text}");
            }
            let addresses = text
                .lines()
                .find(|line| line.contains("listening"))
                .and_then(|line| Some((field(line, "listen")?.parse().ok()?, field(line, "ops")?.parse().ok()?)));
            addresses.map(|(addr, ops)| (server.addr, server.ops) = (addr, ops)).is_some()
        });
        server
    }

    /// Starts with standard error going elsewhere, so without a log here, and waits until ready.
    pub fn start_logging_to(options: Options, stderr: impl Into<Stdio>) -> Self {
        static STARTED: AtomicU8 = AtomicU8::new(0);
        let temp = tempfile::tempdir().expect("a temporary directory");
        let data_dir = temp.path().to_owned();
        // The log would say where it listens: an address that nobody else has, as all of 127.0.0.0/8 is this machine.
        let [.., high, low] = std::process::id().to_be_bytes();
        let address = Ipv4Addr::new(127, 128 + STARTED.fetch_add(1, Ordering::Relaxed) % 127, high, low);
        let (addr, ops) = (SocketAddr::from((address, 3000)), SocketAddr::from((address, 3001)));
        let mut child = options
            .serve(&data_dir, &["--listen", &addr.to_string(), "--ops-listen", &ops.to_string()])
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .expect("the binary starts");
        let stdout = collect(child.stdout.take().expect("piped"));
        let mut server = Self { addr, ops, log: Arc::default(), stdout, options, data_dir, child, _temp: Some(temp) };
        eventually("the server is ready", || {
            assert_eq!(server.child.try_wait().expect("a child"), None, "the server ended");
            TcpStream::connect(addr).is_ok() && server.get("/ready", None).status == 200
        });
        server
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Runs a command of the binary that may fail.
    pub fn try_cli(&self, args: &[&str]) -> std::process::Output {
        self.options.command(&self.data_dir).args(args).output().expect("the binary starts")
    }

    /// Where its files are.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// Runs another command of the binary against the same store; returns standard output.
    pub fn cli(&self, args: &[&str]) -> String {
        self.options.cli(&self.data_dir, args)
    }

    /// Runs a command that is refused; returns standard error.
    pub fn cli_refused(&self, args: &[&str]) -> String {
        let output = self.options.command(&self.data_dir).args(args).output().expect("the binary starts");
        assert_eq!(output.status.code(), Some(1), "{args:?}: {}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8(output.stderr).expect("text")
    }

    /// Makes an organisation; `rate_limit` as on the command line. Returns (organisation id, API key).
    pub fn organization(&self, name: &str, rate_limit: &str) -> (String, String) {
        let made: Value =
            serde_json::from_str(&self.cli(&["org", "create", name, "--rate-limit", rate_limit, "--json"]))
                .expect("JSON");
        (made["org_id"].as_str().expect("org_id").to_owned(), made["api_key"].as_str().expect("api_key").to_owned())
    }

    /// The key that the first start of a new embedded store leaves to who started it. Its organisation has the limit of
    /// `--rate-limit`.
    pub fn first_key(&self) -> String {
        let path = self.data_dir.join("first-api-key");
        let mut key = String::new();
        eventually("the first key is there", || {
            key = std::fs::read_to_string(&path).unwrap_or_default();
            key.ends_with('\n')
        });
        key.trim_end().to_owned()
    }

    /// The same, and its file is removed, as its reader is told to.
    pub fn take_first_key(&self) -> String {
        let key = self.first_key();
        std::fs::remove_file(self.data_dir.join("first-api-key")).expect("it was there");
        key
    }

    /// The key of an organisation without a limit.
    pub fn key(&self) -> String {
        self.organization("test", "0").1
    }

    /// One connection.
    pub fn connect(&self) -> Client {
        Client::connect(self.addr)
    }

    /// GET on a connection of its own.
    pub fn get(&self, path: &str, key: Option<&str>) -> Response {
        self.connect().request("GET", path, key, None)
    }

    /// POST JSON on a connection of its own.
    pub fn post(&self, path: &str, key: &str, body: &str) -> Response {
        self.connect().request("POST", path, Some(key), Some(body.as_bytes()))
    }

    /// What a scraper of the ops listener gets.
    pub fn scrape(&self) -> String {
        let response = Client::connect(self.ops).request("GET", "/metrics", None, None);
        String::from_utf8(response.body).expect("text")
    }

    /// The value of an unlabelled metric, or of one with exactly this text as its name and labels.
    pub fn metric(&self, name: &str) -> f64 {
        sample(&self.scrape(), name)
    }

    /// The same, of a metric that counts.
    pub fn count(&self, name: &str) -> u64 {
        let value = self.metric(name);
        assert!(value >= 0.0 && value.fract() == 0.0, "{name} is {value}");
        value as u64
    }

    /// Waits until the writers have everything that earlier runs left in the journal.
    pub fn replayed(&self) {
        eventually("the journal is read back", || self.metric("journal_unread_segments") == 0.0);
    }

    /// Waits until everything accepted is stored, what was replayed included.
    pub fn drained(&self) {
        self.replayed();
        eventually("the queue is empty", || self.metric("event_queue_size") == 0.0);
    }

    /// Waits until everything that was accepted or replayed has been through the database: spilled events, too. A
    /// small queue makes that slow; what must not happen is that it stops.
    pub fn everything_stored(&self) {
        let unread = || self.metric("journal_unread_segments");
        while unread() > 0.0 {
            let (before, deadline) = (self.metric("journal_replayed_total"), Instant::now() + PATIENCE);
            while unread() > 0.0 && self.metric("journal_replayed_total") <= before {
                assert!(Instant::now() < deadline, "{before} events are replayed, and it goes no further");
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        let sums = || {
            let scrape = self.scrape();
            let sum = |names: &[&str]| names.iter().map(|name| sample(&scrape, name)).sum::<f64>();
            let stored =
                ["stored", "deduplicated", "found", "quarantined"].map(|how| format!("store_events_{how}_total"));
            (sum(&stored.each_ref().map(String::as_str)), sum(&["events_ingested_total", "journal_replayed_total"]))
        };
        loop {
            let (stored, accepted) = sums();
            if stored >= accepted {
                return;
            }
            let deadline = Instant::now() + PATIENCE;
            while sums().0 <= stored {
                assert!(Instant::now() < deadline, "{stored} of {accepted} are stored, and it goes no further");
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }

    /// Sends a signal by name, such as `TERM`.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([format!("-{name}"), self.pid().to_string()]).status().expect("kill");
        assert!(sent.success());
    }

    /// Waits for the end.
    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("the server ends", || {
            status = self.child.try_wait().expect("a child");
            status.is_some()
        });
        status.expect("set above")
    }

    /// SIGTERM, and the exit code.
    pub fn stop(&mut self) -> i32 {
        self.signal("TERM");
        let status = self.wait();
        status.code().unwrap_or_else(|| panic!("ended by signal {:?}", status.signal()))
    }

    /// Waits until the log has these words: a line is written, and read here, a little after what it tells of.
    pub fn says(&self, words: &str) {
        eventually(words, || self.log().contains(words));
    }

    /// The log so far.
    pub fn log(&self) -> String {
        self.log.lock().expect("no reader panics").clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            // To the test's captured output.
            println!("---- log of the server ----\n{}----", self.log());
        }
    }
}

/// The value of a metric in a scrape, by its name and labels as they are written there.
pub fn sample(scrape: &str, name: &str) -> f64 {
    let line = scrape.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
    let line = line.unwrap_or_else(|| panic!("no metric {name}"));
    line.rsplit(' ').next().expect("a value").parse().expect("a number")
}

pub fn collect(from: impl Read + Send + 'static) -> Arc<Mutex<String>> {
    let text = Arc::new(Mutex::new(String::new()));
    let kept = Arc::clone(&text);
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines() {
            let Ok(line) = line else { return };
            let mut text = kept.lock().expect("no reader panics");
            text.push_str(&line);
            text.push('\n');
        }
    });
    text
}

fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

/// One answer.
#[derive(Debug, Clone)]
pub struct Response {
    /// The status.
    pub status: u16,
    /// Fields, names in lower case; of repeated ones the last.
    pub headers: BTreeMap<String, String>,
    /// The body.
    pub body: Vec<u8>,
}

impl Response {
    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {:?}", String::from_utf8_lossy(&self.body)))
    }

    /// The `code` of a problem, checked to be one.
    pub fn code(&self) -> String {
        assert_eq!(self.headers["content-type"], "application/problem+json", "{self:?}");
        let problem = self.json();
        assert_eq!(problem["status"], self.status);
        assert!(problem["title"].is_string() && problem["detail"].is_string() && problem["type"].is_string());
        problem["code"].as_str().expect("code").to_owned()
    }

    /// The id in a 202.
    pub fn id(&self) -> String {
        assert_eq!(self.status, 202, "{}", String::from_utf8_lossy(&self.body));
        self.json()["id"].as_str().expect("id").to_owned()
    }
}

/// A connection.
pub struct Client {
    stream: TcpStream,
    unread: Vec<u8>,
}

impl Client {
    /// Connects.
    pub fn connect(addr: SocketAddr) -> Self {
        Self::over(TcpStream::connect(addr).expect("the server accepts"))
    }

    /// Connects from this address of the machine (all of 127.0.0.0/8 is).
    pub fn connect_from(source: Ipv4Addr, addr: SocketAddr) -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.bind(&SocketAddr::from((source, 0)).into()).expect("an address of this machine");
        socket.connect(&addr.into()).expect("the server accepts");
        Self::over(socket.into())
    }

    /// Connects with a receive buffer of this size, in bytes, which does not grow.
    pub fn connect_with_receive_buffer(addr: SocketAddr, bytes: usize) -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.set_recv_buffer_size(bytes).expect("a size below the system's bound");
        socket.connect(&addr.into()).expect("the server accepts");
        Self::over(socket.into())
    }

    fn over(stream: TcpStream) -> Self {
        stream.set_nodelay(true).expect("a socket");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        Self { stream, unread: Vec::new() }
    }

    /// Writes raw bytes.
    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the server reads");
    }

    /// Writes raw bytes to a server that may have closed already.
    pub fn try_send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// One request, its answer.
    pub fn request(&mut self, method: &str, path: &str, key: Option<&str>, body: Option<&[u8]>) -> Response {
        self.send(&request(method, path, key, body));
        self.receive(method == "HEAD")
    }

    /// A request given as bytes, its answer.
    pub fn exchange(&mut self, request: &[u8]) -> Response {
        self.send(request);
        self.response()
    }

    /// The next answer.
    pub fn response(&mut self) -> Response {
        self.receive(false)
    }

    /// The next answer, to a HEAD request where `is_head`. Skips nothing: a 100 is an answer too.
    pub fn receive(&mut self, is_head: bool) -> Response {
        self.try_receive(is_head).expect("an answer")
    }

    /// The next answer; `None` where the connection ends first.
    pub fn try_receive(&mut self, is_head: bool) -> Option<Response> {
        let head_end = loop {
            if let Some(at) = self.unread.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            if self.fill() == 0 {
                assert!(self.unread.is_empty(), "cut answer: {:?}", String::from_utf8_lossy(&self.unread));
                return None;
            }
        };
        let head = String::from_utf8(self.unread.drain(..head_end).collect()).expect("an ASCII head");
        let mut lines = head.split("\r\n");
        let status_line = lines.next().expect("a status line");
        assert!(status_line.starts_with("HTTP/1.1 "), "{status_line}");
        let status: u16 = status_line[9..12].parse().expect("a status");
        let headers: BTreeMap<String, String> = lines
            .filter(|line| !line.is_empty())
            .map(|line| line.split_once(": ").unwrap_or_else(|| panic!("field {line:?}")))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        let has_body = !is_head && status != 204 && status >= 200;
        let length = if has_body { headers["content-length"].parse().expect("a length") } else { 0 };
        while self.unread.len() < length {
            assert!(self.fill() > 0, "cut body of {head}");
        }
        let body = self.unread.drain(..length).collect();
        Some(Response { status, headers, body })
    }

    /// Whether the server closed the connection and sent nothing more.
    pub fn is_closed(&mut self) -> bool {
        self.unread.is_empty() && self.fill() == 0
    }

    /// Says that no more will be sent.
    pub fn finish_sending(&self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Write);
    }

    /// The socket.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    fn fill(&mut self) -> usize {
        let mut buffer = [0; 64 * 1024];
        let read = loop {
            // A call with a timeout is not resumed after a signal (stopping and going on is one): begin it again.
            match self.stream.read(&mut buffer) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        match read {
            Ok(n) => {
                self.unread.extend_from_slice(&buffer[..n]);
                n
            }
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => 0,
            Err(error) => panic!("reading an answer: {error}"),
        }
    }
}

/// The bytes of a POST with fields of the test's own.
pub fn post_with(path: &str, key: &str, fields: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut head = format!("POST {path} HTTP/1.1\r\nHost: test\r\nX-API-Key: {key}\r\n");
    for (name, value) in fields {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
    [head.as_bytes(), body].concat()
}

/// The bytes of a request.
pub fn request(method: &str, path: &str, key: Option<&str>, body: Option<&[u8]>) -> Vec<u8> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: test\r\n");
    if let Some(key) = key {
        head.push_str(&format!("X-API-Key: {key}\r\n"));
    }
    if let Some(body) = body {
        head.push_str(&format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len()));
    }
    head.push_str("\r\n");
    [head.as_bytes(), body.unwrap_or_default()].concat()
}

/// An event's body.
pub fn event(event_type: &str, dedup_id: Option<&str>, payload: &str) -> String {
    match dedup_id {
        Some(dedup_id) => format!(r#"{{"type":"{event_type}","dedup_id":"{dedup_id}","payload":{payload}}}"#),
        None => format!(r#"{{"type":"{event_type}","payload":{payload}}}"#),
    }
}
