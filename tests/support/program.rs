//! The program under test.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

/// The server's binary. Cargo builds it before it runs an integration test, into the directory above that test's own.
pub fn program() -> &'static Path {
    static PROGRAM: LazyLock<PathBuf> = LazyLock::new(|| {
        let test = std::env::current_exe().expect("a test has a file");
        let program = test.ancestors().nth(2).expect("target/PROFILE/deps/TEST").join("millrace");
        assert!(program.is_file(), "{} is missing: `cargo build` makes it", program.display());
        program
    });
    &PROGRAM
}
