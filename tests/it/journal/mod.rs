//! The journal: its files, its disk, and every error that the disk can answer with.

mod errors;
mod files;
mod full_disk;
