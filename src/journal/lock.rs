//! One server per data directory: a lock on the file `lock` in it, held for as long as the process lives.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// The lock. Dropping it, or any end of the process, releases it.
#[derive(Debug)]
pub struct DirectoryLock {
    _file: File,
}

/// Why a directory was not locked.
#[derive(Debug)]
pub enum LockError {
    /// Another process holds it; with its process id, if the file has it.
    Taken(Option<u32>),
    /// The directory or the file cannot be created or opened.
    Io(io::Error),
}

impl DirectoryLock {
    /// Locks `directory`; creates it with mode 0700 if it is missing.
    pub fn take(directory: &Path) -> Result<Self, LockError> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(LockError::Io)?;
        // The directory's own entry must survive a power loss, too, if this user may synchronise its parent.
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
        // Tells whoever finds the lock taken. If the disk is too full for it, the lock still holds.
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
