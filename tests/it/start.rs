//! A start where the system allows little: descriptors, threads, the length of files, CPU, `io_uring`; and signals that
//! are not meant for it.

use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Output;

use support::program::program;
use support::server::{Finally, Options, Server};

const FREE_PORTS: [&str; 4] = ["--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0"];

/// A start that is refused: its exit code and what it said.
fn refused(options: &Options, args: &[&str]) -> (Option<i32>, String) {
    let dir = tempfile::tempdir().unwrap();
    let Output { status, stderr, .. } =
        options.serve(&dir.path().join("data"), &[&FREE_PORTS, args].concat()).output().unwrap();
    (status.code(), String::from_utf8(stderr).unwrap())
}

#[track_caller]
fn assert_refused(options: &Options, args: &[&str], words: &[&str]) {
    let (code, said) = refused(options, args);
    assert_eq!(code, Some(64), "{said}");
    for word in words {
        assert!(said.contains(word), "{said:?} lacks {word:?}");
    }
}

#[test]
fn too_few_open_files_are_refused_with_how_many_are_needed() {
    for limit in [20, 32, 64] {
        let options = Options { open_files: Some(limit), ..Options::default() };
        let words = [&format!("{limit} open files are allowed"), "are needed at least", "ulimit -n"];
        assert_refused(&options, &["--shards", "2"], &words);
    }
    let options = Options { open_files: Some(1024), ..Options::default() };
    assert_refused(&options, &["--shards", "1024"], &["1024 open files", "--shards"]);
}

#[test]
fn a_short_limit_on_the_length_of_files_is_refused() {
    // In blocks of 512 or 1024 bytes, by the shell.
    let short = Options::default().after("ulimit -f 100");
    assert_refused(&short, &[], &["one of the journal has 16777216", "ulimit -f"]);
    assert_refused(&short, &["--durability", "memory"], &["the embedded store is one", "ulimit -f"]);
}

#[test]
fn too_few_threads_are_refused_with_how_many_are_needed() {
    // Nobody is limited who is root, and nobody's other processes count where there are none.
    const NOBODY_ELSE: u32 = 54_321;
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("millrace");
    fs::copy(program(), &copy).unwrap();
    let is_root = chown(dir.path(), Some(NOBODY_ELSE), Some(NOBODY_ELSE)).is_ok();
    // What other shells call by another letter.
    let mut command = std::process::Command::new("bash");
    command.args(["-c", r#"ulimit -u 8 && exec "$0" "$@""#]).arg(&copy).arg("serve").args(FREE_PORTS);
    command.current_dir(dir.path()).env_clear();
    if is_root {
        command.uid(NOBODY_ELSE).gid(NOBODY_ELSE);
    }
    let Output { status, stderr, .. } = command.output().unwrap();
    let said = String::from_utf8(stderr).unwrap();
    // Of a user with other processes not even the shell's limit leaves room for this one.
    if is_root {
        assert_eq!(status.code(), Some(64), "{said}");
        assert!(said.contains("threads can be started") && said.contains("ulimit -u"), "{said}");
        assert!(!said.contains("panicked"), "{said}");
    }
}

#[test]
fn a_server_uses_no_more_threads_and_descriptors_than_stated() {
    let server = Server::start(Options::default().with(&["--shards", "3", "--writers", "5"]));
    let (_, key) = server.organization("acme", "0");
    assert_eq!(server.post("/api/events", &key, r#"{"type":"a","payload":1}"#).status, 202);
    server.drained();
    let count = |what: &str| fs::read_dir(format!("/proc/{}/{what}", server.pid())).unwrap().count();
    assert!(count("task") <= millrace_base::limits::THREADS_BESIDE + 3 + 5, "{} threads", count("task"));
    let descriptors = millrace_base::limits::DESCRIPTORS_BESIDE + 3 * millrace_base::limits::DESCRIPTORS_OF_A_SHARD;
    assert!(count("fd") <= descriptors, "{} descriptors", count("fd"));
}

#[test]
fn signals_that_say_nothing_here_do_not_end_it() {
    let mut server = Server::sqlite();
    for signal in ["USR1", "USR2", "XFSZ"] {
        server.signal(signal);
        assert_eq!(server.get("/ready", None).status, 200, "after SIG{signal}");
    }
    assert_eq!(server.stop(), 0);
}

/// Becomes its arguments, with `io_uring_enter` refused from then on (EPERM), as sandboxes refuse it.
const WITHOUT_URING_ENTER: &str = r#"
import ctypes, os, struct, sys
# Its number on every machine that has had it from the start; from linux/seccomp.h and linux/filter.h what else is here.
step = lambda op, value, yes=0, no=0: struct.pack("HBBI", op, yes, no, value)
code = [step(0x20, 0), step(0x15, 426, 0, 1), step(0x06, 0x00050000 | 1), step(0x06, 0x7FFF0000)]
instructions = ctypes.create_string_buffer(b"".join(code))
header = struct.pack("HxxxxxxP", len(code), ctypes.addressof(instructions))
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, header, 0, 0):
    sys.exit("the filter cannot be loaded")
os.execv(sys.argv[1], sys.argv[1:])
"#;

#[test]
fn a_ring_that_may_be_made_and_not_entered_is_not_used() {
    let through = ["python3", "-c", WITHOUT_URING_ENTER].map(str::to_owned).to_vec();
    let options = Options { through, ..Options::default() };
    let mut server = Server::start(options.clone());
    server_says(&server, &["driver=\"epoll\"", "io_uring"]);
    assert_eq!(server.stop(), 0);
    let (code, said) = refused(&options, &["--io-driver", "uring"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("io_uring was asked for and cannot be used"), "{said}");
}

#[track_caller]
fn server_says(server: &Server, words: &[&str]) {
    let log = server.log();
    assert!(log.lines().any(|line| words.iter().all(|word| line.contains(word))), "{log}");
}

#[test]
fn a_cpu_quota_counts_where_it_leaves_fewer_cores() {
    let name = format!("millrace-test-{}", std::process::id());
    // The first hierarchy's own mount, and the second's; where neither can be had, there is no quota to try.
    let groups = [
        (format!("/sys/fs/cgroup/cpu/{name}"), vec![("cpu.cfs_period_us", "100000"), ("cpu.cfs_quota_us", "100000")]),
        (format!("/sys/fs/cgroup/{name}"), vec![("cpu.max", "100000 100000")]),
    ];
    for (group, settings) in groups {
        let group = Path::new(&group);
        if fs::create_dir(group).is_err() {
            continue;
        }
        let _removed = Finally(|| drop(fs::remove_dir(group)));
        // Without the second hierarchy that is a directory like any other.
        let set = group.join("cgroup.procs").exists()
            && settings.iter().all(|(file, text)| fs::write(group.join(file), text).is_ok());
        if !set || std::thread::available_parallelism().unwrap().get() < 2 {
            continue;
        }
        let options = Options::default().after(&format!("echo $$ > {}/cgroup.procs", group.display()));
        let dir = tempfile::tempdir().unwrap();
        let checked = options.cli(dir.path(), &["config", "check"]);
        assert!(checked.lines().any(|line| line.starts_with("shards = 1 ")), "{checked}");
        let mut server = Server::start(options);
        server_says(&server, &["a CPU quota leaves fewer cores", "quota=1"]);
        server_says(&server, &["shards are running", "shards=1"]);
        assert_eq!(server.stop(), 0);
    }
}
