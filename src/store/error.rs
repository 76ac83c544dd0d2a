//! Why a store could not do what it was asked.
//!
//! The variants of [`StoreError`] tell the caller whose turn it is: the same call may be made again, this row will never be
//! stored, an operator has to look, or the request cannot be done. The stores sort their databases' codes into them.

use std::fmt;

use millrace_base::key::KeyId;
use millrace_base::limits;

/// Why a store could not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreError {
    /// The database is away, overloaded or shutting down: no call succeeds. Try again, with backoff.
    Unavailable(String),
    /// The call ran out of time (57014, or no answer before the client's deadline), or the embedded store's disk is full. A
    /// smaller batch may succeed.
    TooMuch(String),
    /// Another session kept a lock for too long (55P03). Try again, with backoff.
    Locked(String),
    /// The database refuses the data of a row (SQLSTATE classes 22, 23, 54 and P0001): the row will never be stored. For a
    /// batch it says only that at least one row is at fault.
    RowRefused(DatabaseError),
    /// An error that does not tell whether it concerns one row (a damaged page, a faulty trigger) or all. Events are held
    /// until they can be stored.
    Unexplained(DatabaseError),
    /// The database answers, but this server is not configured for it: wrong password, missing table or permission (classes
    /// 28, 42, 3D, 3F). An operator has to act; accepted events are held meanwhile. In a batch one row may be at fault,
    /// because one partition may lack what the others have.
    Misconfigured(String),
    /// The database works, and what the caller asks for cannot be done. Nothing was changed.
    Rejected(Rejection),
}

/// Why a store rejects a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// There is no organisation with this name or id.
    NoSuchOrganization(String),
    /// Another organisation has this name.
    NameTaken(String),
    /// An organisation cannot have this name; with what is wrong with it.
    InvalidName(&'static str),
    /// A key with this id exists.
    KeyIdTaken,
    /// The key to rotate does not exist, or it was revoked or has expired.
    KeyNotValid(KeyId),
    /// The organisation has [`limits::LIVE_KEYS_PER_ORG_MAX`] live keys.
    TooManyKeys,
    /// An endpoint with this id exists.
    EndpointIdTaken,
    /// The organisation has [`limits::ENDPOINTS_PER_ORG_MAX`] endpoints.
    TooManyEndpoints,
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchOrganization(name_or_id) => write!(f, "there is no organisation {name_or_id}"),
            Self::NameTaken(name) => write!(f, "the name {name} is taken"),
            Self::InvalidName(why) => write!(f, "an organisation's name {why}"),
            Self::KeyIdTaken => f.write_str("the key id is taken"),
            Self::KeyNotValid(key) => write!(f, "{key} is not a valid key"),
            Self::TooManyKeys => {
                write!(f, "the organisation has {} live keys, as many as it may", limits::LIVE_KEYS_PER_ORG_MAX)
            }
            Self::EndpointIdTaken => f.write_str("the endpoint id is taken"),
            Self::TooManyEndpoints => {
                write!(f, "an organisation has at most {} endpoints", limits::ENDPOINTS_PER_ORG_MAX)
            }
        }
    }
}

impl From<Rejection> for StoreError {
    fn from(rejection: Rejection) -> Self {
        Self::Rejected(rejection)
    }
}

/// An error of the database, as it reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatabaseError {
    /// The code: an SQLSTATE, or `SQLite`'s extended result code.
    pub code: String,
    /// The message, with the code. Never holds a client's data.
    pub message: String,
}

impl DatabaseError {
    /// An error with this code and message.
    pub fn new(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into() }
    }
}

impl fmt::Display for DatabaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unavailable(why) | Self::TooMuch(why) | Self::Locked(why) => {
                write!(f, "the database is unavailable: {why}")
            }
            Self::RowRefused(error) => write!(f, "the database refuses the row: {error}"),
            Self::Unexplained(error) => write!(f, "the database fails: {error}"),
            Self::Misconfigured(why) => write!(f, "the database refuses this server: {why}"),
            Self::Rejected(rejection) => rejection.fmt(f),
        }
    }
}

impl std::error::Error for StoreError {}
