//! A wall clock that a test sets, for one server process: a library in front of the C library's `clock_gettime`, which adds to
//! the time of day what a file says, and leaves the monotonic clock and everybody else alone.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tempfile::TempDir;

use crate::server::Options;

/// The offset is read with each call, in microseconds.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile const long long *offset;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("STEPPED_CLOCK_FILE");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) abort();
    void *page = mmap(0, sizeof *offset, PROT_READ, MAP_SHARED, file, 0);
    if (page == MAP_FAILED) abort();
    offset = page;
    close(file);
}

int clock_gettime(clockid_t id, struct timespec *at) {
    long failed = syscall(SYS_clock_gettime, id, at);
    if (!failed && offset && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) {
        long long micros = at->tv_sec * 1000000LL + at->tv_nsec / 1000 + *offset;
        at->tv_sec = micros / 1000000;
        at->tv_nsec = micros % 1000000 * 1000 + at->tv_nsec % 1000;
    }
    return failed ? -1 : 0;
}

int gettimeofday(struct timeval *at, void *zone) {
    struct timespec now;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &now)) return -1;
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}
"#;

/// Built once, for all tests of the binary.
static LIBRARY: LazyLock<PathBuf> = LazyLock::new(|| {
    let dir = tempfile::tempdir().expect("a temporary directory").keep();
    let (source, library) = (dir.join("stepped_clock.c"), dir.join("stepped_clock.so"));
    fs::write(&source, SHIM).expect("a file");
    let built = Command::new("cc").args(["-O1", "-shared", "-fPIC", "-o"]).args([&library, &source]).status();
    assert!(built.expect("there is a C compiler, as for the build").success());
    library
});

/// See the module.
pub struct SteppedClock {
    dir: TempDir,
}

impl SteppedClock {
    /// One that goes right.
    pub fn new() -> Self {
        let clock = Self { dir: tempfile::tempdir().expect("a temporary directory") };
        fs::write(clock.file(), 0_i64.to_ne_bytes()).expect("a file");
        clock
    }

    /// A server started with these goes by this clock.
    #[must_use]
    pub fn of(&self, mut options: Options) -> Options {
        let file = self.file().to_str().expect("text").to_owned();
        options.env.push(("LD_PRELOAD".to_owned(), LIBRARY.to_str().expect("text").to_owned()));
        options.env.push(("STEPPED_CLOCK_FILE".to_owned(), file));
        options
    }

    /// Sets it to so much after the right time.
    pub fn set_forward(&self, by: Duration) {
        self.set(by.as_micros() as i64);
    }

    /// Sets it to so much before the right time.
    pub fn set_back(&self, by: Duration) {
        self.set(-(by.as_micros() as i64));
    }

    /// Sets it to 1970, as a machine without a battery has it.
    pub fn set_to_1970(&self) {
        self.set_back(SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970"));
    }

    /// In place: the file is mapped.
    fn set(&self, micros: i64) {
        use std::os::unix::fs::FileExt as _;
        let file = fs::OpenOptions::new().write(true).open(self.file()).expect("it is there");
        file.write_all_at(&micros.to_ne_bytes(), 0).expect("a file");
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("offset")
    }
}
