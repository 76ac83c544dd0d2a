//! What the journal asks of a disk, behind a trait, so that tests can drop, tear and fail every operation.
//!
//! The journal relies on two promises: after [`SegmentFile::sync`] has returned `Ok`, the bytes written before survive a power
//! loss; after [`Storage::sync_directory`] has, so do the names. It assumes nothing else to survive, and nothing about the order
//! in which the rest reaches the disk.
//!
//! All calls block; shards make none.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// One directory of segments.
pub trait Storage: Send + Sync + 'static {
    /// The names of the files in it, in no order.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Creates an empty file for writing. `AlreadyExists` where there is one.
    fn create(&self, name: &str) -> io::Result<Box<dyn SegmentFile>>;

    /// Opens an existing file to overwrite it.
    fn reopen(&self, name: &str) -> io::Result<Box<dyn SegmentFile>>;

    /// Reads a file from `offset` on, at most `len` bytes; fewer at its end.
    fn read(&self, name: &str, offset: u64, len: usize) -> io::Result<Vec<u8>>;

    /// Length of a file, in bytes.
    fn len(&self, name: &str) -> io::Result<u64>;

    /// Space on the file system.
    fn space(&self) -> io::Result<Space>;

    /// Renames a file, over an existing one.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes the names durable.
    fn sync_directory(&self) -> io::Result<()>;
}

/// Space on a file system, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Used and free.
    pub total: u64,
    /// Free for this process.
    pub available: u64,
}

impl Space {
    /// Unlimited, for tests.
    pub const ENDLESS: Self = Self { total: u64::MAX, available: u64::MAX };
}

/// A file that is written at given offsets and made durable.
pub trait SegmentFile: Send {
    /// Allocates `len` bytes, so that writing them later does not find the disk full.
    fn allocate(&mut self, len: u64) -> io::Result<()>;

    /// Writes all of `bytes` at `offset`.
    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes everything written durable, including the length of the file.
    fn sync(&mut self) -> io::Result<()>;
}

/// A directory on a local file system.
#[derive(Debug)]
pub struct Disk {
    directory: PathBuf,
    /// The directory itself, held open, so that it can be synchronised even when no file descriptor is left.
    entries: File,
}

impl Disk {
    /// Opens `directory`; creates it with mode 0700 if it is missing.
    pub fn create(directory: &Path) -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        // The directory's own entry must survive a power loss, too.
        if let Some(parent) = directory.parent() {
            File::open(parent).and_then(|parent| parent.sync_all())?;
        }
        Self::open(directory)
    }

    /// Opens `directory`, which exists.
    pub fn open(directory: &Path) -> io::Result<Self> {
        fs::read_dir(directory)?;
        Ok(Self { directory: directory.to_owned(), entries: File::open(directory)? })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

impl Storage for Disk {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            // A name that is not UTF-8 is not ours.
            names.extend(entry?.file_name().into_string());
        }
        Ok(names)
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn SegmentFile>> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(self.path(name))?;
        Ok(Box::new(file))
    }

    fn reopen(&self, name: &str) -> io::Result<Box<dyn SegmentFile>> {
        Ok(Box::new(OpenOptions::new().write(true).open(self.path(name))?))
    }

    fn read(&self, name: &str, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let file = File::open(self.path(name))?;
        let there = file.metadata()?.len().saturating_sub(offset).min(len as u64);
        let mut bytes = Vec::with_capacity(there as usize);
        let mut reader = PositionedReader { file: &file, offset };
        reader.by_ref().take(len as u64).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn len(&self, name: &str) -> io::Result<u64> {
        Ok(fs::metadata(self.path(name))?.len())
    }

    fn space(&self) -> io::Result<Space> {
        let stat = rustix::fs::fstatvfs(&self.entries)?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        Ok(Space { total: bytes(stat.f_blocks), available: bytes(stat.f_bavail) })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path(from), self.path(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path(name))
    }

    fn sync_directory(&self) -> io::Result<()> {
        self.entries.sync_all()
    }
}

impl SegmentFile for File {
    fn allocate(&mut self, len: u64) -> io::Result<()> {
        use rustix::fs::{FallocateFlags, fallocate};
        use rustix::io::Errno;
        match fallocate(&*self, FallocateFlags::empty(), 0, len) {
            // Some file systems and sandboxes do not support it. Writing the zeros later finds a full disk as well.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::PERM | Errno::ACCESS) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }
}

struct PositionedReader<'a> {
    file: &'a File,
    offset: u64,
}

impl Read for PositionedReader<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(into, self.offset)?;
        self.offset += read as u64;
        Ok(read)
    }
}
