//! Standard error as it should not be: a pipe that nobody reads, one whose reader went away, a full disk. What was
//! accepted is stored all the same, and the end waits for nobody.

use std::fs::File;
use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::net::{TcpListener, TcpStream};
use std::process::Stdio;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use support::load::{Connection, Ids, Log, Told};
use support::oracle;
use support::postgres::{Cluster, Options as ClusterOptions};
use support::server::{Options, Server, eventually};

const WRITERS: u64 = 8;

/// Puts into a pipe what it takes, so that whoever writes to it next waits for a reader.
fn fill(pipe: &PipeWriter) {
    let flags = fcntl_getfl(pipe).expect("a pipe");
    fcntl_setfl(pipe, flags | OFlags::NONBLOCK).expect("a pipe");
    for piece in [vec![b'.'; 4096], vec![b'.']] {
        while (&*pipe).write(&piece).is_ok() {}
    }
    fcntl_setfl(pipe, flags).expect("a pipe");
}

/// All that comes out of a pipe until its writers are gone.
fn read(mut pipe: PipeReader) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut text = String::new();
        pipe.read_to_string(&mut text).expect("text");
        text
    })
}

/// A server whose log goes elsewhere, and its clients.
struct Site {
    server: Server,
    database: String,
    connections: Vec<Connection>,
    log: Arc<Log>,
}

impl Site {
    fn start(cluster: &Cluster, stderr: impl Into<Stdio>, args: &[&str]) -> Self {
        let database = cluster.new_name();
        cluster.admin("postgres").batch_execute(&format!("CREATE DATABASE {database}")).expect("a database is created");
        let options = Options::postgres(&cluster.url(&database))
            .with(&["--queue-capacity", "20000", "--writers", &WRITERS.to_string()])
            .with(args);
        let server = Server::start_logging_to(options, stderr);
        let key = server.key();
        let connections = (0..4).map(|_| Connection::new(server.addr, &key)).collect();
        let mut site = Self { server, database, connections, log: Log::new() };
        // Whatever shards they are on know the key from now on.
        site.post("warm", 1);
        site.server.drained();
        site
    }

    /// Single events and batches, all of which are accepted.
    fn post(&mut self, what: &str, rounds: usize) {
        for connection in &mut self.connections {
            for _ in 0..rounds {
                let told = connection.post_event(&self.log, what, Ids::Both);
                assert!(matches!(told, Told::Accepted(_)), "{what}: {told:?}");
                assert_eq!(connection.post_batch(&self.log, &[what; 9], Ids::Made), Ok(()));
            }
        }
    }

    /// Thousands while the database is away.
    fn post_into_the_outage(&mut self) {
        self.post("outage", 50);
    }

    /// Lets the server find out that the database is away, and say it.
    fn wait_for_the_outage(&self) {
        let retries = || self.server.count(r#"store_batch_retries_total{reason="unavailable"}"#);
        eventually("a failure", || retries() > 0);
        // Failures are an outage when they have come for half a second. Of so many that come after it, one writer made two,
        // and so has said the first.
        let since = Instant::now();
        eventually("it lasts", || since.elapsed() > Duration::from_secs(1));
        let before = retries();
        eventually("it is said", || retries() > before + WRITERS);
    }

    fn assert_all_stored(&self, cluster: &Cluster) {
        self.server.drained();
        assert_eq!(self.log.accepted(), 4 * 51 * 10);
        oracle::check(&self.log, &oracle::postgres_rows(&mut cluster.admin(&self.database)));
        assert_eq!(self.server.get("/ready", None).status, 200);
    }
}

#[test]
fn a_log_that_nobody_reads_holds_nothing_up() {
    let mut cluster = Cluster::start_own(ClusterOptions::default());
    let (reader, writer) = pipe().expect("a pipe");
    let mut site = Site::start(&cluster, writer.try_clone().expect("a descriptor"), &[]);
    fill(&writer);
    cluster.stop();
    site.post_into_the_outage();
    site.wait_for_the_outage();
    cluster.start();
    site.assert_all_stored(&cluster);
    assert_eq!(site.server.count("log_lines_dropped_total"), 0);
    // Once somebody reads, it is all there.
    drop(writer);
    let text = read(reader);
    assert_eq!(site.server.stop(), 0);
    drop(site);
    let text = text.join().expect("no panic");
    let at = |line: &str| text.find(line).unwrap_or_else(|| panic!("no {line:?} in {text}"));
    assert!(at("events cannot be stored") < at("events are being stored again"));
    assert!(at("events are being stored again") < at("everything accepted is stored; bye"));
}

#[test]
fn a_closed_pipe_or_full_disk_behind_the_log_stops_nothing() {
    let mut cluster = Cluster::start_own(ClusterOptions::default());
    let (reader, writer) = pipe().expect("a pipe");
    drop(reader);
    let full = File::options().write(true).open("/dev/full").expect("Linux has it");
    let mut sites = [Site::start(&cluster, writer, &[]), Site::start(&cluster, full, &[])];
    cluster.stop();
    // Both before either is waited for: a connection that is idle for long is closed, and the next one may be on a shard
    // that does not know the key.
    sites.iter_mut().for_each(Site::post_into_the_outage);
    sites.iter().for_each(Site::wait_for_the_outage);
    cluster.start();
    for site in &mut sites {
        site.assert_all_stored(&cluster);
        assert!(site.server.count("log_lines_dropped_total") > 0);
        assert_eq!(site.server.stop(), 0);
    }
}

#[test]
fn the_end_does_not_wait_for_whoever_reads_the_log() {
    let mut cluster = Cluster::start_own(ClusterOptions::default());
    let (_reader, writer) = pipe().expect("a pipe");
    let stderr = || writer.try_clone().expect("a descriptor");
    let mut clean = Site::start(&cluster, stderr(), &[]);
    let mut cut_short = Site::start(&cluster, stderr(), &["--durability", "memory", "--shutdown-grace", "600"]);
    fill(&writer);
    assert_eq!(clean.server.stop(), 0);
    // An end that would take its whole grace, and the signal that cuts it short.
    cluster.stop();
    cut_short.post_into_the_outage();
    cut_short.wait_for_the_outage();
    cut_short.server.signal("TERM");
    eventually("it is shutting down", || TcpStream::connect(cut_short.server.addr).is_err());
    assert_eq!(cut_short.server.stop(), 130);
    // A start that fails.
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("it is bound").to_string();
    let data_dir = tempfile::tempdir().expect("a temporary directory");
    let mut failed = Options::default().serve(data_dir.path(), &["--listen", &address]);
    let mut failed = failed.stderr(stderr()).spawn().expect("the binary starts");
    let mut code = None;
    eventually("the start fails", || {
        code = failed.try_wait().expect("a child").map(|status| status.code());
        code.is_some()
    });
    assert_eq!(code, Some(Some(1)));
}
