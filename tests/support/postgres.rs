//! A real Postgres for tests: throwaway clusters in a temporary directory, gone when the test process is.
//!
//! Every cluster has a watchdog, a shell that waits for the end of a pipe held by the test process: however that
//! ends (a failed test, `kill -9`), the pipe closes, the server is stopped at once and the directory removed.
//! The server never runs as root: where the tests do, it runs as the user `postgres`.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// How long a server may take to start or stop.
const PATIENCE: Duration = Duration::from_secs(60);

/// Stops the server of the cluster in `$1` and removes the directory once standard input ends.
const WATCHDOG: &str = r#"
trap '' INT TERM HUP
cat > /dev/null
pid=$(head -n 1 "$1/data/postmaster.pid" 2> /dev/null)
if [ -n "$pid" ] && [ "$(readlink "/proc/$pid/cwd")" = "$1/data" ]; then
    for child in $(cat "/proc/$pid/task/$pid/children" 2> /dev/null); do kill -CONT "$child"; done
    kill -CONT "$pid"
    kill -QUIT "$pid"
    while [ -d "/proc/$pid" ] && [ "$(readlink "/proc/$pid/cwd")" = "$1/data" ]; do sleep 0.05; done
fi
rm -rf "$1"
"#;

/// The one role that must show its password; a test that needs it creates it.
pub const PASSWORD_ROLE: &str = "with_password";

/// How a cluster is started.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Whether commits are flushed to disk. Off for speed, except where a test stops the server hard.
    pub fsync: bool,
}

/// One server and its data directory.
#[derive(Debug)]
pub struct Cluster {
    bin: PathBuf,
    dir: PathBuf,
    port: u16,
    fsync: bool,
    server: Option<Child>,
    databases: AtomicU32,
    /// Closing it is what the watchdog waits for.
    lifeline: Option<ChildStdin>,
    watchdog: Child,
}

impl Cluster {
    /// The cluster of this test process, started by whoever asks first. For tests that leave the server alone.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Cluster> = OnceLock::new();
        SHARED.get_or_init(|| Self::start_own(Options::default()))
    }

    /// A cluster for one test, which may stop, kill and freeze it.
    pub fn start_own(options: Options) -> Self {
        let bin = find_binaries();
        let dir = tempfile::Builder::new().prefix("millrace-pg-").tempdir().expect("a temporary directory").keep();
        if let Some((uid, gid)) = server_user() {
            std::os::unix::fs::chown(&dir, Some(uid), Some(gid)).expect("root may give a directory away");
        }
        let mut watchdog = as_server_user(Path::new("sh"), &dir)
            .args(["-c", WATCHDOG, "watchdog"])
            .arg(&dir)
            .stdin(Stdio::piped())
            .process_group(0)
            .spawn()
            .expect("sh runs");
        let lifeline = watchdog.stdin.take();
        let initdb = as_server_user(&bin.join("initdb"), &dir)
            .args(["-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C", "--no-sync", "-D"])
            .arg(dir.join("data"))
            .stderr(Stdio::piped())
            .output()
            .expect("initdb runs");
        assert!(initdb.status.success(), "initdb: {}", String::from_utf8_lossy(&initdb.stderr));
        ask_for_passwords(&dir);
        let port = free_port();
        let databases = AtomicU32::new(0);
        let mut cluster = Self { bin, dir, port, fsync: options.fsync, server: None, databases, lifeline, watchdog };
        cluster.start();
        cluster
    }

    /// Starts the server and waits until it takes connections.
    pub fn start(&mut self) {
        self.spawn();
        self.wait_until_ready();
    }

    /// Starts the server and does not wait.
    pub fn spawn(&mut self) {
        assert!(self.server.is_none(), "the server runs already");
        let fsync = if self.fsync { "fsync=on" } else { "fsync=off" };
        let log = std::fs::File::options().create(true).append(true).open(self.dir.join("log")).expect("a log file");
        let mut command = as_server_user(&self.bin.join("postgres"), &self.dir);
        command.arg("-D").arg(self.dir.join("data")).arg("-k").arg(&self.dir).args(["-p", &self.port.to_string()]);
        for setting in [fsync, "listen_addresses=127.0.0.1", "max_connections=200", "shared_buffers=64MB"] {
            command.args(["-c", setting]);
        }
        self.server = Some(command.stderr(log).process_group(0).spawn().expect("postgres runs"));
    }

    fn wait_until_ready(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = self.try_connect("postgres") {
            let ended = self.server.as_mut().and_then(|server| server.try_wait().expect("a child can be asked"));
            assert!(ended.is_none() && Instant::now() < deadline, "{error}; log:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Stops the server as an operator would: rolls back what runs, disconnects everybody, flushes.
    pub fn stop(&mut self) {
        self.signal(Signal::INT);
        self.wait_for_exit();
    }

    /// Stops the server without letting it finish anything; it recovers at the next start.
    pub fn crash(&mut self) {
        self.signal(Signal::QUIT);
        self.wait_for_exit();
    }

    /// Kills the postmaster; its backends notice and leave.
    pub fn kill(&mut self) {
        let backends = self.process_ids();
        self.signal(Signal::KILL);
        self.wait_for_exit();
        wait_for("the backends to leave", || backends.iter().all(|pid| !is_running(*pid)));
    }

    /// Freezes the postmaster and all its processes: connections stay open and nothing is answered.
    pub fn freeze(&self) {
        wait_for("the server to freeze", || {
            let running: Vec<u32> = self.process_ids().into_iter().filter(|pid| state(*pid) != Some('T')).collect();
            for pid in &running {
                send(*pid, Signal::STOP);
            }
            running.is_empty()
        });
    }

    /// Lets a frozen server go on.
    pub fn thaw(&self) {
        self.process_ids().into_iter().for_each(|pid| send(pid, Signal::CONT));
    }

    /// Restarts the server with TLS.
    pub fn install_certificate(&mut self, certificate: &Path, key: &Path) {
        use std::io::Write;
        use std::os::unix::fs::{OpenOptionsExt, chown};
        self.stop();
        for (from, name) in [(certificate, "server.crt"), (key, "server.key")] {
            let to = self.dir.join("data").join(name);
            let mut file = std::fs::File::options().write(true).create_new(true).mode(0o600).open(&to).expect("a file");
            file.write_all(&std::fs::read(from).expect("a readable file")).expect("a few bytes");
            if let Some((uid, gid)) = server_user() {
                chown(&to, Some(uid), Some(gid)).expect("root may give a file away");
            }
        }
        let settings = self.dir.join("data/postgresql.auto.conf");
        let mut settings = std::fs::File::options().append(true).open(settings).expect("initdb wrote it");
        settings.write_all(b"ssl = on\n").expect("a few bytes");
        self.start();
    }

    /// Lets a frozen server go on; does nothing to a stopped one.
    pub fn thaw_if_running(&self) {
        if self.server.is_some() {
            self.thaw();
        }
    }

    /// A new, empty database; returns its URL (over the Unix socket).
    pub fn create_database(&self) -> String {
        let name = self.new_name();
        self.admin("postgres").batch_execute(&format!("CREATE DATABASE {name}")).expect("a database is created");
        self.url(&name)
    }

    /// A name no other database of this cluster has.
    pub fn new_name(&self) -> String {
        format!("test_{}", self.databases.fetch_add(1, Ordering::Relaxed))
    }

    /// The URL of a database over the Unix socket.
    pub fn url(&self, database: &str) -> String {
        let dir = self.dir.display().to_string().replace('/', "%2F");
        format!("postgres://postgres@{dir}:{}/{database}", self.port)
    }

    /// The same over TCP.
    pub fn tcp_url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// The TCP port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A plain connection for the test's own statements.
    pub fn admin(&self, database: &str) -> postgres::Client {
        self.try_connect(database).unwrap_or_else(|error| panic!("{error}; log:\n{}", self.log()))
    }

    /// The same where Postgres may be recovering: waits until it answers.
    pub fn admin_patiently(&self, database: &str) -> postgres::Client {
        let mut client = None;
        wait_for("Postgres to answer", || {
            client = self.try_admin(database).ok();
            client.as_mut().is_some_and(|client| client.simple_query("SELECT 1").is_ok())
        });
        client.expect("it answered")
    }

    /// The same, once.
    pub fn try_admin(&self, database: &str) -> Result<postgres::Client, postgres::Error> {
        self.try_connect(database)
    }

    /// Whether the postmaster has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.server.as_mut().is_none_or(|server| server.try_wait().expect("a child can be asked").is_some())
    }

    /// Starts the server that has ended by itself, and does not wait.
    pub fn spawn_again(&mut self) {
        self.server = None;
        self.spawn();
    }

    /// Moves the WAL of the stopped server to this directory: the one file that the next start needs.
    pub fn move_wal_to(&self, disk: &Path) {
        if let Some((uid, gid)) = server_user() {
            std::os::unix::fs::chown(disk, Some(uid), Some(gid)).expect("root may give a directory away");
        }
        self.in_data(
            r#"file=$("$1/pg_controldata" . | sed -n "s/^Latest checkpoint's REDO WAL file: *//p")
            mkdir -m 700 "$2/pg_wal" "$2/pg_wal/archive_status"
            cp "pg_wal/$file" "$2/pg_wal/"
            rm -rf pg_wal
            ln -s "$2/pg_wal" pg_wal"#,
            disk,
        );
    }

    /// Moves it back.
    pub fn move_wal_back(&self) {
        self.in_data(
            r#"at=$(readlink pg_wal)
            rm pg_wal
            cp -R "$at" pg_wal
            chmod 700 pg_wal"#,
            Path::new(""),
        );
    }

    /// Runs a script in the data directory of the stopped server: `$1` are its programs, `$2` is `argument`.
    fn in_data(&self, script: &str, argument: &Path) {
        assert!(self.server.is_none(), "the server runs");
        let mut shell = as_server_user(Path::new("sh"), &self.dir.join("data"));
        shell.args(["-ec", script, "sh"]).arg(&self.bin).arg(argument).env("LC_ALL", "C").stderr(Stdio::piped());
        let output = shell.output().expect("sh runs");
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// What the server wrote to its log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    fn try_connect(&self, database: &str) -> Result<postgres::Client, postgres::Error> {
        postgres::Client::connect(&self.url(database), postgres::NoTls)
    }

    /// The postmaster and its children.
    fn process_ids(&self) -> Vec<u32> {
        let postmaster = self.server.as_ref().expect("the server runs").id();
        let all = std::fs::read_dir("/proc").expect("/proc is mounted").flatten();
        let all = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        all.filter(|pid| *pid == postmaster || parent(*pid) == Some(postmaster)).collect()
    }

    /// What the server's processes have used of the CPU, counted in ticks of 10 ms.
    pub fn cpu_time(&self) -> Duration {
        // utime and stime, and those of children that have ended.
        let ticks =
            |pid| stat(pid).map(|stat| stat.split(' ').skip(11).take(4).flat_map(str::parse::<u64>).sum::<u64>());
        Duration::from_millis(self.process_ids().into_iter().filter_map(ticks).sum::<u64>() * 10)
    }

    fn signal(&self, signal: Signal) {
        send(self.server.as_ref().expect("the server runs").id(), signal);
    }

    fn wait_for_exit(&mut self) {
        let mut server = self.server.take().expect("the server runs");
        wait_for("the server to stop", || server.try_wait().expect("a child can be asked").is_some());
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(self.lifeline.take());
        // Reaps what the watchdog stops.
        if let Some(mut server) = self.server.take() {
            let _ = server.wait();
        }
        let _ = self.watchdog.wait();
    }
}

/// The URL of the same database with other options, such as `sslmode=require`.
pub fn with_option(url: &str, option: &str) -> String {
    let separator = if url.contains('?') { '&' } else { '?' };
    format!("{url}{separator}{option}")
}

/// Polls until `done`; panics after a minute.
pub fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub fn send(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(pid.cast_signed()).expect("no process has number 0");
    // A process that ended meanwhile is as good as signalled.
    let _ = kill_process(pid, signal);
}

/// State, parent and so on: what follows the name in `/proc/<pid>/stat`.
fn stat(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(stat.rsplit_once(") ")?.1.to_owned())
}

fn state(pid: u32) -> Option<char> {
    stat(pid)?.chars().next()
}

fn parent(pid: u32) -> Option<u32> {
    stat(pid)?.split(' ').nth(1)?.parse().ok()
}

fn is_running(pid: u32) -> bool {
    state(pid).is_some_and(|state| state != 'Z')
}

/// Trusts everybody but [`PASSWORD_ROLE`].
fn ask_for_passwords(dir: &Path) {
    let rules = dir.join("data/pg_hba.conf");
    let trusting = std::fs::read_to_string(&rules).expect("initdb wrote it");
    std::fs::write(&rules, format!("local all {PASSWORD_ROLE} scram-sha-256\n{trusting}")).expect("it is ours");
}

pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a loopback port");
    listener.local_addr().expect("a bound address").port()
}

/// The directory of `initdb` and `postgres`: the newest version of Debian's, else the PATH's.
fn find_binaries() -> PathBuf {
    let mut versions: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .collect();
    versions.sort();
    let in_path = std::env::var_os("PATH").unwrap_or_default();
    let mut candidates = versions.into_iter().rev().map(|(_, bin)| bin).chain(std::env::split_paths(&in_path));
    let complete = |bin: &PathBuf| bin.join("initdb").exists() && bin.join("postgres").exists();
    candidates.find(complete).expect("these tests need PostgreSQL: install the package `postgresql`, or run ./test")
}

/// Who the server runs as where the tests run as root, which Postgres refuses.
pub fn server_user() -> Option<(u32, u32)> {
    let ask = |args: &[&str]| -> u32 {
        let id = Command::new("id").args(args).output().expect("`id` runs");
        let text = String::from_utf8(id.stdout).expect("`id` prints ASCII");
        text.trim().parse().expect("a user `postgres` exists: install the package `postgresql`, or run ./test")
    };
    (ask(&["-u"]) == 0).then(|| (ask(&["-u", "postgres"]), ask(&["-g", "postgres"])))
}

pub fn as_server_user(program: &Path, dir: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(dir).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if let Some((uid, gid)) = server_user() {
        command.uid(uid).gid(gid);
    }
    command
}
