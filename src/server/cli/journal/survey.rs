//! Reads a journal directory once, beside a server that may be writing to it.
//!
//! It takes no lock, changes nothing, and holds one segment in memory at a time. A running server can mislead it only for a
//! short time: a segment that vanishes was released, and a segment that was read while it was written looks damaged once but
//! not twice. So damage counts only where a second reading, which starts at the segment before, finds it again.

use std::io::{self, ErrorKind};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use millrace_journal::disk::Disk;
use millrace_journal::held_list::{self, HeldList};
use millrace_journal::reader::{self, Chain, ReadError, SegmentReport};
use millrace_journal::record::Record;
use millrace_journal::segment::SegmentId;

use crate::boot::JOURNAL_DIRECTORY;
use crate::cli::failure::Failure;

/// The pause between the two readings, longer than a write takes.
const SECOND_READING_AFTER: Duration = Duration::from_millis(100);

/// A journal directory.
pub struct Directory {
    path: PathBuf,
    disk: Disk,
}

/// The content of one file of the journal.
pub struct Surveyed {
    /// The file's name.
    pub name: String,
    /// Whether it is a damaged segment that an earlier replay kept: its readable events are stored.
    pub is_kept_aside: bool,
    /// What its reading found.
    pub report: SegmentReport,
}

/// The content of a journal directory.
#[derive(Default)]
pub struct Survey {
    /// The segments in order, then those that were kept aside.
    pub files: Vec<Surveyed>,
    /// Why files could not be read.
    pub unreadable: Vec<String>,
    /// Names of files that are not the journal's.
    pub foreign: Vec<String>,
    /// The events in the segments that the database does not take, as the server last listed them.
    pub held: HeldList,
}

impl Directory {
    /// Finds the journal: `given` is its directory or a data directory.
    pub fn find(given: &Path) -> Result<Self, Failure> {
        let within = given.join(JOURNAL_DIRECTORY);
        let path = if within.is_dir() { within } else { given.to_owned() };
        let failed = |error: io::Error| {
            Failure::Refused(format!(
                "{}: {error}\n  fix: name the server's data directory, or its `{JOURNAL_DIRECTORY}` directory, as a user \
                 who may read it",
                path.display()
            ))
        };
        let disk = Disk::open(&path).map_err(failed)?;
        let listing = reader::list(&disk).map_err(failed)?;
        let is_journal =
            !listing.segments.is_empty() || !listing.unfinished.is_empty() || !listing.kept_aside.is_empty();
        // An empty directory is a journal whose segments were all released.
        if !is_journal && !listing.foreign.is_empty() {
            return Err(Failure::Refused(format!(
                "{} holds no journal: it has no `{JOURNAL_DIRECTORY}` directory and no segments\n  fix: name the server's \
                 data directory (`millrace config check` shows it)",
                path.display()
            )));
        }
        Ok(Self { path, disk })
    }

    /// The directory's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads everything. Calls `on_record` with each intact record of the segments, the oldest stream first, until it breaks;
    /// files that were kept aside are left out of that.
    pub fn survey(&self, on_record: &mut dyn FnMut(Record) -> ControlFlow<()>) -> Result<Survey, Failure> {
        let listing = self.list()?;
        let mut survey = Survey { foreign: listing.foreign, ..Survey::default() };
        let mut chain = Chain::default();
        let mut before: Option<(SegmentId, Chain)> = None;
        let mut flow = ControlFlow::Continue(());
        // Of the list only those events count that the segments hold.
        let mut said = self.held(&mut survey);
        survey.held.as_of = std::mem::take(&mut said.as_of);
        for id in listing.segments {
            let chain_before = chain.clone();
            let mut forward = |_, record: Record| {
                if !said.events.is_empty() {
                    let id = record.event.id.to_string();
                    survey.held.events.extend(said.events.extract_if(.., |held| held.id == id));
                }
                flow = on_record(record);
                flow
            };
            let read = reader::read(&self.disk, id, &mut chain, &mut forward);
            if flow.is_break() {
                return Ok(survey);
            }
            if let Some(mut report) = self.noted(read, &mut survey) {
                if report.is_damaged() {
                    self.confirm(&mut report, before.take(), chain_before.clone());
                }
                survey.files.push(Surveyed { name: id.to_string(), is_kept_aside: false, report });
            }
            before = Some((id, chain_before));
        }
        // Listed after the segments, so that a segment that was renamed meanwhile is not missed.
        for name in self.list()?.kept_aside {
            let Some(id) = reader::kept_aside_id(&name) else {
                survey.foreign.push(name);
                continue;
            };
            let read = reader::read_named(&self.disk, &name, id, &mut Chain::default(), &mut ignore);
            if let Some(report) = self.noted(read, &mut survey) {
                survey.files.push(Surveyed { name, is_kept_aside: true, report });
            }
        }
        Ok(survey)
    }

    fn held(&self, survey: &mut Survey) -> HeldList {
        held_list::read(&self.disk).unwrap_or_else(|error| {
            survey.unreadable.push(format!("{}/{error}", self.path.display()));
            HeldList::default()
        })
    }

    fn list(&self) -> Result<reader::Listing, Failure> {
        reader::list(&self.disk).map_err(|error| Failure::Refused(format!("{}: {error}", self.path.display())))
    }

    /// The report, if there is one; a file that vanished was released, and an error is noted.
    fn noted(&self, read: Result<SegmentReport, ReadError>, survey: &mut Survey) -> Option<SegmentReport> {
        match read {
            Ok(report) => Some(report),
            Err(ReadError::Io(error)) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => {
                survey.unreadable.push(format!("{}/{error}", self.path.display()));
                None
            }
        }
    }

    /// Reads the segment `before` and this one again, and keeps only the damage that is still there.
    fn confirm(&self, report: &mut SegmentReport, before: Option<(SegmentId, Chain)>, chain_before: Chain) {
        thread::sleep(SECOND_READING_AFTER);
        let mut chain = match before {
            Some((id, mut chain)) => {
                let _ = reader::read(&self.disk, id, &mut chain, &mut ignore);
                chain
            }
            None => chain_before,
        };
        let mut again = match reader::read(&self.disk, report.id, &mut chain, &mut ignore) {
            Ok(again) => again.damage,
            Err(_) => Vec::new(),
        };
        again.retain(|new| report.damage.iter().any(|old| (old.offset, old.what) == (new.offset, new.what)));
        report.damage = again;
    }
}

fn ignore(_offset: u64, _record: Record) -> ControlFlow<()> {
    ControlFlow::Continue(())
}
