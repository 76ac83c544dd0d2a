//! Checks what the operating system allows this process: open files, threads, the length of a file.
//!
//! It is checked before anything starts, so that too little is one clear message and not a server that hangs, panics or is
//! ended by a signal later. Runs on the main thread.

use std::fmt;
use std::io;
use std::thread;

use crossbeam_channel::bounded;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use millrace_base::limits;

use crate::config::{Config, Durability};

/// What the operating system allows too little of, with how to get more.
#[derive(Debug)]
pub(super) enum TooLittle {
    /// Open files.
    OpenFiles {
        /// How many are allowed.
        limit: usize,
        /// How many the server needs at least.
        least: usize,
        /// How many it needs for all configured connections.
        right: usize,
    },
    /// Threads.
    Threads {
        /// How many could be started.
        started: usize,
        /// How many the server needs.
        needed: usize,
        /// What the next one failed with.
        error: io::Error,
    },
    /// The length of a file: too short for one of the journal.
    JournalFile {
        /// How long a file may be.
        limit: u64,
        /// How long a file of the journal is.
        segment: u64,
    },
    /// The length of a file: too short for the embedded store.
    StoreFile {
        /// How long a file may be.
        limit: u64,
    },
}

impl fmt::Display for TooLittle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OpenFiles { limit, least, right } => write!(
                f,
                "{limit} open files are allowed, and {least} are needed at least\n  fix: raise the limit (ulimit -n, or \
                 LimitNOFILE= of the unit; {right} and more are right), or have fewer --shards and --writers"
            ),
            Self::Threads { started, needed, error } => write!(
                f,
                "{started} threads can be started, and {needed} are needed: {error}\n  fix: raise the limit (ulimit -u, \
                 LimitNPROC= or TasksMax= of the unit, --pids-limit of the container), or have fewer --shards and \
                 --writers"
            ),
            Self::JournalFile { limit, segment } => write!(
                f,
                "files of {limit} bytes are allowed, and one of the journal has {segment}\n  fix: raise the limit (ulimit \
                 -f, or LimitFSIZE= of the unit), or lower --journal-segment-bytes"
            ),
            Self::StoreFile { limit } => write!(
                f,
                "files of {limit} bytes are allowed, and the embedded store is one\n  fix: raise the limit (ulimit -f, or \
                 LimitFSIZE= of the unit): unlimited is right"
            ),
        }
    }
}

impl std::error::Error for TooLittle {}

/// Checks everything; returns how many client connections are possible, at most the configured number.
///
/// # Errors
/// What there is too little of.
pub(super) fn check(config: &Config, store_connections: u32) -> Result<usize, TooLittle> {
    let descriptors = descriptors_needed(config.shards, config.database_url.as_ref().map_or(0, |_| store_connections));
    let room = room_for_connections(raise_descriptor_limit(), descriptors, config.connections_max)?;
    let threads = limits::THREADS_BESIDE + config.shards + config.writers;
    try_threads(threads, |body| thread::Builder::new().name("trial".to_owned()).spawn(body).map(drop))?;
    check_file_length(config, getrlimit(Resource::Fsize).current)?;
    Ok(room)
}

fn descriptors_needed(shards: usize, database_connections: u32) -> usize {
    limits::DESCRIPTORS_BESIDE
        + limits::DESCRIPTORS_OF_A_SHARD * shards
        + limits::DESCRIPTORS_OF_A_DATABASE_CONNECTION * database_connections as usize
}

/// How many client connections a limit on open files leaves room for, at most `wanted`.
fn room_for_connections(limit: usize, needed: usize, wanted: usize) -> Result<usize, TooLittle> {
    let least = needed + limits::CONNECTIONS_ROOM_MIN;
    if limit < least {
        return Err(TooLittle::OpenFiles {
            limit,
            least,
            right: limits::RESERVED_DESCRIPTORS + limits::WEBHOOK_CONNECTIONS_MAX + wanted,
        });
    }
    // Of few descriptors the webhooks get at most a quarter.
    let reserved = limits::RESERVED_DESCRIPTORS.max(needed) + limits::WEBHOOK_CONNECTIONS_MAX.min(limit / 4);
    let room = limit.saturating_sub(reserved).max(limits::CONNECTIONS_ROOM_MIN);
    if room < wanted {
        tracing::warn!(limit, connections_max = room, "the limit on open files leaves room for fewer connections");
    }
    Ok(room.min(wanted))
}

/// Starts as many threads at once as the server will have, and ends them. That is the only way to know: the user's other
/// processes count against the limit, and so do those of the container.
fn try_threads(
    needed: usize,
    mut spawn: impl FnMut(Box<dyn FnOnce() + Send>) -> io::Result<()>,
) -> Result<(), TooLittle> {
    let (all_there, waiting) = bounded::<()>(0);
    for started in 0..needed {
        let waiting = waiting.clone();
        // Waits until the sender is dropped.
        let wait = move || {
            let _ = waiting.recv();
        };
        if let Err(error) = spawn(Box::new(wait)) {
            return Err(TooLittle::Threads { started, needed, error });
        }
    }
    drop(all_there);
    Ok(())
}

/// A write past the limit fails, and no longer ends the process: `shutdown` handles the signal that comes with it.
fn check_file_length(config: &Config, limit: Option<u64>) -> Result<(), TooLittle> {
    let Some(limit) = limit else { return Ok(()) };
    let segment = config.journal_segment_bytes;
    if config.durability != Durability::Memory && limit < segment {
        return Err(TooLittle::JournalFile { limit, segment });
    }
    if config.database_url.is_none() {
        if limit < limits::EMBEDDED_FILE_BYTES_MIN {
            return Err(TooLittle::StoreFile { limit });
        }
        tracing::warn!(
            limit,
            "the length of files is limited: the embedded store takes no events once it is that long"
        );
    }
    Ok(())
}

/// Raises the soft limit on open files to the hard one, where that is allowed. Returns the limit in force.
pub fn raise_descriptor_limit() -> usize {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let mut limit = current.unwrap_or(u64::MAX);
    if setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).is_ok() {
        limit = maximum.unwrap_or(u64::MAX);
    }
    usize::try_from(limit).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn few_descriptors_are_few_connections_and_too_few_are_refused() {
        let needed = descriptors_needed(2, 0);
        let least = needed + limits::CONNECTIONS_ROOM_MIN;
        assert_eq!(room_for_connections(least, needed, 1000).unwrap(), limits::CONNECTIONS_ROOM_MIN);
        assert_eq!(room_for_connections(1 << 20, needed, 1000).unwrap(), 1000);
        let why = room_for_connections(least - 1, needed, 1000).unwrap_err().to_string();
        assert!(why.contains(&format!("{least} are needed")) && why.contains("ulimit -n"), "{why}");
        // Descriptors of many shards and database connections are not left for clients.
        let many = descriptors_needed(64, 300);
        assert!(many > limits::RESERVED_DESCRIPTORS);
        assert!(room_for_connections(many + 400, many, 1000).unwrap() <= 300);
    }

    #[test]
    fn threads_are_tried_all_at_once() {
        let alive = Arc::new(AtomicUsize::new(0));
        let refuse_after = |most: usize| {
            let alive = Arc::clone(&alive);
            move |body: Box<dyn FnOnce() + Send>| {
                if alive.fetch_add(1, Ordering::Relaxed) == most {
                    return Err(io::Error::from_raw_os_error(libc::EAGAIN));
                }
                let alive = Arc::clone(&alive);
                thread::Builder::new().spawn(move || {
                    body();
                    alive.fetch_sub(1, Ordering::Relaxed);
                })?;
                Ok(())
            }
        };
        let why = try_threads(20, refuse_after(8)).unwrap_err().to_string();
        assert!(why.starts_with("8 threads can be started, and 20 are needed") && why.contains("ulimit -u"), "{why}");
        try_threads(3, refuse_after(usize::MAX)).unwrap();
    }
}
