//! The real disk with one fault: chosen operations fail, and may be held up before.
//!
//! It also keeps watch: a file of which a write or a synchronisation failed must not be written or synchronised again.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use millrace_journal::disk::{Disk, SegmentFile, Space, Storage};

/// What an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    List,
    Create,
    Allocate,
    Write,
    Sync,
    Read,
    Rename,
    Remove,
    SyncDirectory,
}

/// Of which files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    Any,
    /// Segments that are being made.
    Making,
    /// Segments that were made: what is written to them are events.
    InUse,
}

/// Operations of one kind that fail.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    pub kind: Kind,
    pub of: Of,
    /// The first that fails, counted from 1.
    pub nth: u64,
    /// Whether all behind it fail, too, until the disk is mended.
    pub lasts: bool,
    /// `libc::EIO` and the like.
    pub errno: i32,
}

#[derive(Default)]
struct State {
    fault: Option<Fault>,
    /// Operations that the fault could have met.
    met: u64,
    failed: u64,
    /// Writes and synchronisations of files that had failed.
    retried: u64,
    /// Synchronisations of segments in use wait.
    is_held: bool,
    waiting: u64,
    /// Of the segment that is being made: whether it is made.
    making: Arc<AtomicBool>,
}

/// See the module. Clones are the same disk.
#[derive(Clone)]
pub struct FaultyDisk {
    disk: Arc<Disk>,
    state: Arc<(Mutex<State>, Condvar)>,
}

impl FaultyDisk {
    pub fn new(directory: &Path, fault: Option<Fault>) -> Self {
        let state = State { fault, ..State::default() };
        Self { disk: Arc::new(Disk::create(directory).unwrap()), state: Arc::new((Mutex::new(state), Condvar::new())) }
    }

    /// From now on this fails.
    pub fn fail(&self, fault: Fault) {
        let mut state = self.lock();
        (state.fault, state.met) = (Some(fault), 0);
    }

    /// Nothing fails any more.
    pub fn mend(&self) {
        self.lock().fault = None;
    }

    /// How many operations failed.
    pub fn failed(&self) -> u64 {
        self.lock().failed
    }

    /// How often a file was written or synchronised of which that had failed.
    pub fn retried(&self) -> u64 {
        self.lock().retried
    }

    /// Holds up synchronisations of segments in use.
    pub fn hold(&self) {
        self.lock().is_held = true;
    }

    pub fn let_go(&self) {
        self.lock().is_held = false;
        self.state.1.notify_all();
    }

    /// How many are held up.
    pub fn waiting(&self) -> u64 {
        self.lock().waiting
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an operation; `Err` where it is one that fails.
    fn meet(&self, kind: Kind, is_making: bool, is_in_use: bool) -> io::Result<()> {
        let mut state = self.lock();
        if kind == Kind::Sync && is_in_use && state.is_held {
            state.waiting += 1;
            state = self.state.1.wait_while(state, |state| state.is_held).unwrap_or_else(PoisonError::into_inner);
            state.waiting -= 1;
        }
        let Some(fault) = state.fault else { return Ok(()) };
        let is_met = match fault.of {
            Of::Any => true,
            Of::Making => is_making,
            Of::InUse => is_in_use,
        };
        if kind != fault.kind || !is_met {
            return Ok(());
        }
        state.met += 1;
        if state.met < fault.nth || state.met > fault.nth && !fault.lasts {
            return Ok(());
        }
        state.failed += 1;
        Err(io::Error::from_raw_os_error(fault.errno))
    }

    fn file(&self, file: Box<dyn SegmentFile>) -> Box<dyn SegmentFile> {
        let is_made = Arc::new(AtomicBool::new(false));
        self.lock().making = Arc::clone(&is_made);
        Box::new(FaultyFile { disk: self.clone(), file, is_made, has_failed: false })
    }

    fn meet_name(&self, kind: Kind, name: &str) -> io::Result<()> {
        self.meet(kind, name.contains(".preparing"), false)
    }
}

impl Storage for FaultyDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        self.meet(Kind::List, false, false)?;
        self.disk.list()
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn SegmentFile>> {
        self.meet_name(Kind::Create, name)?;
        Ok(self.file(self.disk.create(name)?))
    }

    fn reopen(&self, name: &str) -> io::Result<Box<dyn SegmentFile>> {
        self.meet_name(Kind::Create, name)?;
        Ok(self.file(self.disk.reopen(name)?))
    }

    fn read(&self, name: &str, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        self.meet_name(Kind::Read, name)?;
        self.disk.read(name, offset, len)
    }

    fn len(&self, name: &str) -> io::Result<u64> {
        self.disk.len(name)
    }

    fn space(&self) -> io::Result<Space> {
        Ok(Space::ENDLESS)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.meet_name(Kind::Rename, from)?;
        self.disk.rename(from, to)?;
        if from.contains(".preparing") {
            self.lock().making.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.meet_name(Kind::Remove, name)?;
        self.disk.remove(name)
    }

    fn sync_directory(&self) -> io::Result<()> {
        self.meet(Kind::SyncDirectory, false, false)?;
        self.disk.sync_directory()
    }
}

struct FaultyFile {
    disk: FaultyDisk,
    file: Box<dyn SegmentFile>,
    /// It has its name.
    is_made: Arc<AtomicBool>,
    has_failed: bool,
}

impl FaultyFile {
    fn meet(&mut self, kind: Kind) -> io::Result<()> {
        if self.has_failed {
            self.disk.lock().retried += 1;
        }
        let is_made = self.is_made.load(Ordering::Relaxed);
        let met = self.disk.meet(kind, !is_made, is_made);
        self.has_failed |= met.is_err();
        met
    }
}

impl SegmentFile for FaultyFile {
    fn allocate(&mut self, len: u64) -> io::Result<()> {
        self.meet(Kind::Allocate)?;
        self.file.allocate(len)
    }

    /// A write that fails has written the first half.
    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let met = self.meet(Kind::Write);
        let there = if met.is_ok() { bytes } else { &bytes[..bytes.len() / 2] };
        self.file.write(offset, there)?;
        met
    }

    fn sync(&mut self) -> io::Result<()> {
        self.meet(Kind::Sync)?;
        self.file.sync()
    }
}
