//! Makes sure that a journal is replayed only into the store its events were accepted for.
//!
//! The file `store-id` in the data directory names that store. Invariant: while the journal may hold an event, the file names
//! the store that the event belongs to, and the event is replayed into no other. The name changes only where the journal
//! holds nothing or where the operator says so (`adopt`), and it is durable before the first event of the new store is
//! accepted or replayed.
//!
//! A directory without the file has a journal from before the file existed; the store of its next start becomes its store. A
//! restored or copied database has the identity of its original. To replay into it is what a restore needs, and is
//! idempotent. Runs on the main and `maintenance` threads; may block.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use crossbeam_channel::bounded;
use uuid::Uuid;

use millrace_base::limits;
use millrace_journal::Journal;
use millrace_store::{Store, StoreError, StoreId};

use super::StartError;
use crate::config::Config;

const FILE: &str = "store-id";
const UNFINISHED_FILE: &str = "store-id.new";

/// Which store the data directory names, and whether this start may use another.
pub(super) struct Ownership {
    data_dir: PathBuf,
    /// The configured store in words, without its password.
    opened: String,
    is_url_set: bool,
    journal_may_hold_events: bool,
    adopt: bool,
    named: Option<Named>,
}

/// The content of the file: a line such as `postgres 0b7c…`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Named {
    kind: String,
    id: StoreId,
}

/// The journal belongs to another store.
#[derive(Debug)]
pub(super) struct Foreign {
    directory: PathBuf,
    named: Named,
    opened: String,
    opened_id: Option<StoreId>,
    is_url_set: bool,
}

/// Why the data directory does not name its store yet.
#[derive(Debug)]
pub(super) enum NotSettled {
    /// The store did not say which one it is.
    Store(StoreError),
    /// The store has no identity.
    NoIdentity,
    /// The file cannot be written.
    File {
        /// Which.
        path: PathBuf,
        /// What the operating system says.
        error: io::Error,
    },
}

impl fmt::Display for NotSettled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store(error) => error.fmt(f),
            Self::NoIdentity => f.write_str("the database has no identity: `millrace migrate` gives it one"),
            Self::File { path, error } => write!(f, "{} cannot be written: {error}", path.display()),
        }
    }
}

impl std::error::Error for NotSettled {}

impl Ownership {
    /// Reads the file.
    pub(super) fn read(config: &Config, journal: &Journal) -> Result<Self, StartError> {
        let path = config.data_dir.join(FILE);
        let unusable = |why: &str| {
            StartError(format!(
                "{} cannot be used: {why}; it names the store that the journal belongs to: restore it, or remove it if \
                 the configured store is the right one",
                path.display()
            ))
        };
        let named = match fs::read_to_string(&path) {
            Ok(text) => Some(Named::parse(&text).ok_or_else(|| unusable("it is not a line of this program's"))?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(unusable(&error.to_string())),
        };
        if config.adopt {
            tracing::warn!("adopt is set: the journal is taken into this store whichever it belongs to; unset it now");
        }
        Ok(Self {
            data_dir: config.data_dir.clone(),
            opened: config.store_in_words(),
            is_url_set: config.database_url.is_some(),
            journal_may_hold_events: journal.may_hold_events(),
            adopt: config.adopt,
            named,
        })
    }

    /// Checks the store if it answers at once. If it does not, [`Self::check`] runs when it is reached.
    pub(super) fn check_at_start(&self, store: &Arc<dyn Store>) -> Result<(), Foreign> {
        let Some(named) = self.named_and_needed() else { return Ok(()) };
        let (answer, answers) = bounded(1);
        let store = Arc::clone(store);
        // On a thread of its own, because a store that hangs must not delay the listeners.
        let asking = thread::Builder::new().name("identity".to_owned()).spawn(move || {
            let _ = answer.send(store.identity());
        });
        match asking.ok().and_then(|_| answers.recv_timeout(limits::STORE_IDENTITY_WAIT).ok()) {
            Some(Ok(opened)) => self.compare(named, opened),
            Some(Err(_)) | None => Ok(()),
        }
    }

    /// Whether the journal may be replayed into `store`.
    pub(super) fn check(&self, store: &dyn Store) -> Result<Result<(), Foreign>, StoreError> {
        let Some(named) = self.named_and_needed() else { return Ok(Ok(())) };
        store.identity().map(|opened| self.compare(named, opened))
    }

    /// Writes the name of `store`, which is migrated and checked, into the file, durably.
    ///
    /// # Errors
    /// Why that is not done yet.
    pub(super) fn settle(&self, store: &dyn Store) -> Result<(), NotSettled> {
        let id = store.identity().map_err(NotSettled::Store)?.ok_or(NotSettled::NoIdentity)?;
        let kind = store.kind();
        let before = self.named.as_ref();
        if before.is_some_and(|named| named.id == id) {
            return Ok(());
        }
        write_durably(&self.data_dir, &format!("{kind} {id}\n"))
            .map_err(|error| NotSettled::File { path: self.data_dir.join(FILE), error })?;
        match before {
            None => tracing::info!(store = kind, %id, "the data directory belongs to this store from now on"),
            Some(named) if self.journal_may_hold_events => tracing::warn!(
                store = kind, %id, before = %named.id, before_kind = named.kind,
                "the journal of another store is taken into this one for good, as asked for"
            ),
            Some(named) => tracing::warn!(
                store = kind, %id, before = %named.id, before_kind = named.kind,
                "the data directory belonged to another store and belongs to this one from now on; its journal was empty"
            ),
        }
        Ok(())
    }

    fn named_and_needed(&self) -> Option<&Named> {
        self.named.as_ref().filter(|_| self.journal_may_hold_events && !self.adopt)
    }

    fn compare(&self, named: &Named, opened: Option<StoreId>) -> Result<(), Foreign> {
        if opened == Some(named.id) {
            return Ok(());
        }
        Err(Foreign {
            directory: self.data_dir.clone(),
            named: named.clone(),
            opened: self.opened.clone(),
            opened_id: opened,
            is_url_set: self.is_url_set,
        })
    }
}

impl Named {
    fn parse(text: &str) -> Option<Self> {
        let (kind, id) = text.trim_end().split_once(' ')?;
        Some(Self { kind: kind.to_owned(), id: StoreId(Uuid::try_parse(id).ok()?) })
    }
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { directory, named, opened, opened_id, is_url_set } = self;
        write!(
            f,
            "the journal in {} holds events that were accepted for another store: it belongs to the {} store {}, and {opened} is ",
            directory.display(),
            named.kind,
            named.id
        )?;
        match opened_id {
            Some(id) => write!(f, "{id}")?,
            None => f.write_str("a new one, or one from before stores had an identity")?,
        }
        f.write_str("; nothing was replayed\n  fix: ")?;
        f.write_str(match (named.kind.as_str(), is_url_set) {
            ("postgres", false) => "DATABASE_URL is not set: set it again (restore the environment file)",
            ("postgres", true) => "set DATABASE_URL to the database that the journal belongs to",
            (_, true) => "unset DATABASE_URL, so that the embedded store is opened",
            (_, false) => "restore the millrace.db that the journal belongs to",
        })?;
        f.write_str(
            "; or start once with --adopt (MILLRACE_ADOPT=true) to take the journal into this store for good: the other \
             will never have its events",
        )
    }
}

/// Replaces the file by one with this text, so that after a power loss the file is either the old or the new one.
fn write_durably(data_dir: &Path, text: &str) -> io::Result<()> {
    let unfinished = data_dir.join(UNFINISHED_FILE);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&unfinished, data_dir.join(FILE))?;
    File::open(data_dir)?.sync_all()
}
