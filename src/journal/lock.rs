//! One server to a data directory: a lock on the file `lock` in it, held for as long as the process lives.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// Held until it is dropped, or the process ends, however it ends.
#[derive(Debug)]
pub struct DirectoryLock {
    _file: File,
}

/// Why a directory was not locked.
#[derive(Debug)]
pub enum LockError {
    /// Another process has it; its id, where it says so.
    Taken(Option<u32>),
    /// The directory or the file cannot be made or opened.
    Io(io::Error),
}

impl DirectoryLock {
    /// Locks `directory`, which is created (for its owner only) where it is missing.
    pub fn take(directory: &Path) -> Result<Self, LockError> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(LockError::Io)?;
        // Its own entry must survive a power loss, too, as far as this user may see to that.
        let parent = directory.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let _ = File::open(parent).and_then(|parent| parent.sync_all());
        let open = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(directory.join("lock"));
        let mut file = open.map_err(LockError::Io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => {
                let mut text = String::new();
                let _ = file.read_to_string(&mut text);
                return Err(LockError::Taken(text.trim().parse().ok()));
            }
            Err(std::fs::TryLockError::Error(error)) => return Err(LockError::Io(error)),
        }
        // For whoever finds it taken; a disk too full for it changes nothing about the lock.
        let _ = file
            .set_len(0)
            .and_then(|()| file.seek(SeekFrom::Start(0)))
            .and_then(|_| writeln!(file, "{}", std::process::id()));
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_holder_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new");
        let lock = DirectoryLock::take(&path).unwrap();
        let taken = DirectoryLock::take(&path);
        assert!(matches!(taken, Err(LockError::Taken(Some(id))) if id == std::process::id()), "{taken:?}");
        drop(lock);
        DirectoryLock::take(&path).unwrap();
    }
}
