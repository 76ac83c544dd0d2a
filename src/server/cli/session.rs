//! A command's access to the store: opened, migrated, and with an advice for each of its errors.

use std::sync::Arc;

use millrace_base::key::ApiKey;
use millrace_store::open::{is_there, open};
use millrace_store::{Rejection, Store, StoreError};
use millrace_webhooks::endpoint::secret::SecretBox;

use super::Invocation;
use super::failure::Failure;
use super::output;
use crate::config::{Config, Flags};

/// Connections: one to work on, and one for a migration's lock.
const CONNECTIONS: u32 = 2;

/// An open store, migrated.
pub struct Session {
    /// The store.
    pub store: Arc<dyn Store>,
    config: Config,
    /// How many migrations the opening applied.
    pub migrated: u32,
}

impl Session {
    /// Opens the configured store and brings its schema up to date.
    pub fn open(invocation: &Invocation, flags: Flags) -> Result<Self, Failure> {
        Self::with(invocation.load(flags)?.config)
    }

    /// The same with a loaded configuration. Prints which store it is, and creates none: in a wrong directory a new store would
    /// look as if all data were gone.
    pub fn with(config: Config) -> Result<Self, Failure> {
        let directory = config.data_dir.display();
        match is_there(&config.store(CONNECTIONS)) {
            Ok(true) => output::say_store(&config.store_in_words()),
            Ok(false) => {
                return Err(Failure::Refused(format!(
                    "there is no store in {directory}\n  fix: name its directory with --data-dir, or the database with \
                     DATABASE_URL; `millrace serve` makes a new store"
                )));
            }
            Err(error) => {
                return Err(Failure::Refused(format!(
                    "the data directory {directory} cannot be looked into: {error}\n  fix: run this as the user that the \
                     server runs as, or name another with --data-dir"
                )));
            }
        }
        let store = open(&config.store(CONNECTIONS)).map_err(|error| explain(&config, &error))?;
        let migrated = store.migrate().map_err(|error| explain(&config, &error))?;
        Ok(Self { store, config, migrated })
    }

    /// Passes a store's answer on, or says why there is none and how to fix that.
    pub fn done<T>(&self, answer: Result<T, StoreError>) -> Result<T, Failure> {
        answer.map_err(|error| self.explain(&error))
    }

    /// Why the store did not do what it was asked, and what to do about it.
    pub fn explain(&self, error: &StoreError) -> Failure {
        explain(&self.config, error)
    }

    /// A new key, and the verifier that the store keeps.
    pub fn generate_key(&self) -> Result<(ApiKey, millrace_base::key::KeyVerifier), Failure> {
        let key = ApiKey::generate()
            .map_err(|error| Failure::Refused(format!("the operating system gives no random bytes: {error}")))?;
        let verifier = key.verifier(self.config.argon2());
        Ok((key, verifier))
    }

    /// What seals endpoints' secrets. With Postgres no key is made here: it would not be the servers' key.
    pub fn secrets(&self) -> Result<SecretBox, Failure> {
        let Config { data_dir, database_url, .. } = &self.config;
        let webhooks = self.config.webhooks();
        if database_url.is_some() && !webhooks.has_secret_key(data_dir) {
            return Err(Failure::Refused(format!(
                "the key that the servers seal webhook secrets with is neither configured nor in {}\n  fix: set \
                 MILLRACE_WEBHOOK_SECRET_KEY as the servers have it, or name their data directory with --data-dir",
                data_dir.display()
            )));
        }
        webhooks.open_secrets(data_dir).map_err(Failure::Refused)
    }
}

fn explain(config: &Config, error: &StoreError) -> Failure {
    let remedy = match (error, &config.database_url) {
        (StoreError::Rejected(Rejection::TooManyKeys), _) => {
            "revoke one with `millrace key revoke KEY_ID`; `millrace key list ORG` has their ids".to_owned()
        }
        (StoreError::Rejected(_) | StoreError::RowRefused(_), _) => return Failure::Refused(error.to_string()),
        (
            StoreError::Unavailable(_) | StoreError::TooMuch(_) | StoreError::Locked(_) | StoreError::Unexplained(_),
            Some(url),
        ) => {
            format!("check that {url} is up and can be reached: psql \"$DATABASE_URL\" -c 'select 1'")
        }
        (StoreError::Misconfigured(_), Some(url)) => {
            format!("check user, password, database and permissions of {url}: psql \"$DATABASE_URL\" -c 'select 1'")
        }
        (_, None) => {
            format!(
                "check that {} is a directory this user can write, or name another with --data-dir",
                config.data_dir.display()
            )
        }
    };
    Failure::Refused(format!("{error}\n  fix: {remedy}"))
}
