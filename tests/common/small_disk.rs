//! A disk that is soon full.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::path::Path;
use std::process::Command;

/// A small file system in memory, gone when dropped.
pub struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// Of this size, such as `8m`. Panics where this process may not mount.
    pub fn mount(size: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size},mode=700"), "none"]).arg(dir.path());
        let mounted = mount.output().expect("`mount` is there");
        assert!(
            mounted.status.success(),
            "this test fills a small disk of its own and must be allowed to mount one; run the tests as root, in a \
             container with CAP_SYS_ADMIN: {}",
            String::from_utf8_lossy(&mounted.stderr)
        );
        Self(dir)
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("--lazy").arg(self.path()).status();
        assert!(unmounted.is_ok_and(|status| status.success()) || std::thread::panicking(), "the disk is unmounted");
    }
}
