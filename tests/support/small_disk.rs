//! A disk that is soon full.

use std::path::Path;
use std::process::Command;

/// A small file system in memory, gone when dropped.
pub struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// Of this size, such as `8m`. Panics where this process may not mount.
    pub fn mount(size: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        mount(&["-t", "tmpfs", "-o", &format!("size={size},mode=700"), "none"], dir.path());
        Self(dir)
    }

    /// From now on it has this size.
    pub fn resize(&self, size: &str) {
        mount(&["-o", &format!("remount,size={size}")], self.path());
    }

    /// Lets nobody write to it any more, or everybody again. Panics where a file is open for writing.
    pub fn set_read_only(&self, is_read_only: bool) {
        mount(&["-o", if is_read_only { "remount,ro" } else { "remount,rw" }], self.path());
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

fn mount(args: &[&str], at: &Path) {
    let mounted = Command::new("mount").args(args).arg(at).output().expect("`mount` is there");
    assert!(
        mounted.status.success(),
        "this test fills a small disk of its own and must be allowed to mount one; run the tests as root, in a container \
         with CAP_SYS_ADMIN: {}",
        String::from_utf8_lossy(&mounted.stderr)
    );
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("--lazy").arg(self.path()).status();
        assert!(unmounted.is_ok_and(|status| status.success()) || std::thread::panicking(), "the disk is unmounted");
    }
}
