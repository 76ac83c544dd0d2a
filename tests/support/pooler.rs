//! A real `PgBouncer` in front of a test's Postgres.

use std::net::TcpStream;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Child;

use rustix::process::Signal;
use tempfile::TempDir;

use crate::postgres::{Cluster, as_server_user, free_port, send, server_user, wait_for};

/// `PgBouncer`, until it is dropped.
pub struct Pooler {
    port: u16,
    process: Child,
    _dir: TempDir,
}

impl Pooler {
    /// In front of all databases of `cluster`, with these settings beside the usual ones.
    pub fn start(cluster: &Cluster, settings: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = free_port();
        let file = dir.path().join("pgbouncer.ini");
        let text = format!(
            "[databases]\n* = host=127.0.0.1 port={} user=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             listen_port = {port}\nunix_socket_dir =\nauth_type = any\n{settings}\n",
            cluster.port()
        );
        std::fs::write(&file, text).unwrap();
        // It does not run as root either.
        if let Some((uid, gid)) = server_user() {
            for path in [dir.path(), &file] {
                chown(path, Some(uid), Some(gid)).unwrap();
            }
        }
        let process = as_server_user(&find_program(), dir.path()).arg(&file).spawn().expect("pgbouncer runs");
        let mut pooler = Self { port, process, _dir: dir };
        wait_for("the pooler to listen", || {
            assert!(pooler.process.try_wait().unwrap().is_none(), "the pooler ended");
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        pooler
    }

    /// The URL of a database through it.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        send(self.process.id(), Signal::KILL);
        let _ = self.process.wait();
    }
}

/// Debian has it in a directory that not every user searches.
fn find_program() -> PathBuf {
    let path = Path::new("/usr/sbin/pgbouncer");
    if path.exists() { path.to_owned() } else { PathBuf::from("pgbouncer") }
}
