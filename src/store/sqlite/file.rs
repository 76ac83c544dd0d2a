//! Checks that the open database file still has its name.
//!
//! A restore may put another file under the name while the server runs, and a mistake may remove it. A connection goes on
//! with the file that it opened, which has no name then: what is stored there is gone when the process ends. So the device
//! and inode of the name are compared with those of the open file when a connection is taken from the pool, and again after
//! each commit. A transaction that was committed into a file without a name does not count as stored.
//!
//! The file under the name is opened then, if it is the same store; a restored copy has the identity of its original.
//! Another store, or no file, is a misconfiguration: nothing is stored until an operator acts. A process that has had a file
//! open creates none.
//!
//! A file that is overwritten in place keeps its inode, and this does not notice. Replace it by a rename.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{StoreError, StoreId};

/// The name of the file in the data directory.
pub const FILE_NAME: &str = "millrace.db";

/// Identifies a file, whatever its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    fn of(metadata: &fs::Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }
}

/// The file of one store, shared by its connections.
pub(super) struct StoreFile {
    pub(super) path: Arc<Path>,
    state: Mutex<State>,
    /// Why nothing can be stored, as an index of [`TROUBLES`]; 0 if it can, as far as is known.
    trouble: AtomicU8,
    is_closed: AtomicBool,
}

/// The reasons in `/ready`.
const TROUBLES: [&str; 3] = [
    "",
    "the database file is missing: it was removed or renamed under the server; put it back",
    "the database file was replaced by another store's; put the right one back",
];
const MISSING: u8 = 1;
const ANOTHER: u8 = 2;

#[derive(Default)]
struct State {
    /// The identity of this process's store, once it is known.
    identity: Option<StoreId>,
    opened: Option<Opened>,
}

/// The file that was opened last.
struct Opened {
    at: FileId,
    /// Its log, held open so that no other file gets its inode. Unlike the database file, a log may be opened and closed
    /// freely, because SQLite holds no locks on it.
    log: Option<File>,
    shared_memory: Option<FileId>,
    /// Each connection to the file has a clone.
    alive: Arc<()>,
}

/// Held while a connection is being opened: one at a time.
pub(super) struct Opening<'a> {
    file: &'a StoreFile,
    state: MutexGuard<'a, State>,
    at: FileId,
}

impl StoreFile {
    /// The file `millrace.db` in `data_dir`. Creates the directory, private to this user, if it is missing, but not the file.
    pub(super) fn new(data_dir: &Path) -> Result<Self, StoreError> {
        use rustix::fs::{Access, access};
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(data_dir)
            .map_err(|error| cannot_be_opened(data_dir, &error))?;
        let path = data_dir.join(FILE_NAME);
        // Not by opening it: closing a descriptor of a file drops all locks of this process on it, SQLite's included.
        match access(&path, Access::READ_OK | Access::WRITE_OK) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(cannot_be_opened(&path, &error.into())),
        }
        let (state, trouble, is_closed) = Default::default();
        Ok(Self { path: path.into(), state, trouble, is_closed })
    }

    /// Creates the file, empty, if it is missing and this process never had it open.
    pub(super) fn create(&self) -> Result<(), StoreError> {
        let state = self.state();
        if state.opened.is_some() {
            return Ok(());
        }
        // Beforehand, because SQLite would let the umask decide who reads it; its other files copy the mode.
        let created = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&self.path);
        match created {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(cannot_be_opened(&self.path, &error)),
        }
        Ok(())
    }

    /// Whether there is any file under the name.
    pub(super) fn exists(&self) -> bool {
        self.named().is_ok()
    }

    /// Whether `at` has the name.
    pub(super) fn is_current(&self, at: FileId) -> bool {
        self.named().is_ok_and(|named| named == at)
    }

    /// Prepares opening the file that has the name now.
    pub(super) fn begin_opening(&self) -> Result<Opening<'_>, StoreError> {
        if self.is_closed() {
            return Err(StoreError::Unavailable("the store is closed".to_owned()));
        }
        let state = self.state();
        let at = self.named().map_err(|error| {
            if error.kind() != io::ErrorKind::NotFound {
                return cannot_be_opened(&self.path, &error);
            }
            let path = self.path.display();
            if state.opened.is_none() {
                return StoreError::Misconfigured(format!("{path} is not there; `millrace serve` makes it, unless --no-migrate is set"));
            }
            self.set_trouble(MISSING);
            StoreError::Misconfigured(format!(
                "{path} is missing: it was removed or renamed while the server had it open; put it, or a restored copy, \
                 back. What is accepted meanwhile is held"
            ))
        })?;
        if let Some(opened) = state.opened.as_ref().filter(|opened| opened.at != at) {
            self.put_log_aside(opened)?;
        }
        Ok(Opening { file: self, state, at })
    }

    /// Why nothing can be stored, for `/ready`.
    pub(super) fn trouble(&self) -> Option<&'static str> {
        match self.trouble.load(Ordering::Relaxed) {
            0 => None,
            trouble => Some(TROUBLES[trouble as usize]),
        }
    }

    /// Bytes of the log.
    pub(super) fn log_bytes(&self) -> u64 {
        let state = self.state();
        let log = state.opened.as_ref().and_then(|opened| opened.log.as_ref());
        // Its own length, not that of the name: it may have been deleted.
        log.and_then(|log| log.metadata().ok()).filter(|log| log.nlink() > 0).map_or(0, |log| log.len())
    }

    /// Notes the identity of this process's store, unless it is known.
    pub(super) fn learn(&self, identity: Option<StoreId>) {
        let mut state = self.state();
        state.identity = state.identity.or(identity);
    }

    /// From now on no connection is opened or kept.
    pub(super) fn close(&self) {
        self.is_closed.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Relaxed)
    }

    /// Moves the log of the file that was open before out of the way: SQLite would read its pages as those of the file that
    /// has the name now. Connections to the old file have truncated it, if they could.
    fn put_log_aside(&self, before: &Opened) -> Result<(), StoreError> {
        let log = self.beside("-wal");
        let old = before.log.as_ref().and_then(|log| log.metadata().ok());
        if let (Some(old), Ok(named)) = (old, fs::metadata(&log))
            && FileId::of(&old) == FileId::of(&named)
        {
            let aside = self.beside("-wal.replaced");
            let moved = if named.len() == 0 { fs::remove_file(&log) } else { fs::rename(&log, &aside) };
            moved.map_err(|error| cannot_be_opened(&log, &error))?;
            if named.len() > 0 {
                tracing::warn!(file = %aside.display(), "the log of a database file that was replaced is kept here");
            }
        }
        // While a connection to the old file is open, no other file gets its inode.
        let shared_memory = self.beside("-shm");
        let is_ours = |named: fs::Metadata| before.shared_memory == Some(FileId::of(&named));
        if Arc::strong_count(&before.alive) > 1 && fs::metadata(&shared_memory).is_ok_and(is_ours) {
            fs::remove_file(&shared_memory).map_err(|error| cannot_be_opened(&shared_memory, &error))?;
        }
        Ok(())
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        let mut path = self.path.as_os_str().to_owned();
        path.push(suffix);
        path.into()
    }

    fn named(&self) -> io::Result<FileId> {
        fs::metadata(&self.path).map(|metadata| FileId::of(&metadata))
    }

    fn set_trouble(&self, trouble: u8) {
        self.trouble.store(trouble, Ordering::Relaxed);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Opening<'_> {
    /// Whether a file with this identity may be used.
    pub(super) fn check(&mut self, found: Option<StoreId>) -> Result<(), StoreError> {
        let path = self.file.path.display();
        match (self.state.identity, found) {
            (None, found) => self.state.identity = found,
            (Some(known), Some(found)) if known == found => {}
            (Some(known), found) => {
                self.file.set_trouble(ANOTHER);
                let found = found.map_or("an empty or older one".to_owned(), |found| format!("the store {found}"));
                return Err(StoreError::Misconfigured(format!(
                    "{path} was replaced by {found} while the server had the store {known} open; put that one, or a restored \
                     copy of it, back. What is accepted meanwhile is held"
                )));
            }
        }
        Ok(())
    }

    /// Ends the opening, after the connection has read. Returns which file it has open, and the token of open connections.
    pub(super) fn done(mut self) -> Result<(FileId, Arc<()>), StoreError> {
        let (file, at) = (self.file, self.at);
        if !file.is_current(at) {
            return Err(StoreError::Unavailable(format!(
                "{} was replaced while it was being opened",
                file.path.display()
            )));
        }
        let before = self.state.opened.take().filter(|opened| opened.at == at);
        let alive = before.map_or_else(Arc::default, |before| before.alive);
        self.state.opened = Some(Opened {
            at,
            log: File::open(file.beside("-wal")).ok(),
            shared_memory: fs::metadata(file.beside("-shm")).ok().map(|metadata| FileId::of(&metadata)),
            alive: Arc::clone(&alive),
        });
        if file.trouble.swap(0, Ordering::Relaxed) != 0 {
            tracing::warn!(file = %file.path.display(), "the store's database file is there again and is used");
        }
        Ok((at, alive))
    }
}

fn cannot_be_opened(path: &Path, error: &io::Error) -> StoreError {
    StoreError::Misconfigured(format!("{} cannot be created or opened: {error}", path.display()))
}
