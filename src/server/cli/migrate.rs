//! `millrace migrate`: brings the schema up to date. Every command that opens a session does that as well.

use super::Invocation;
use super::failure::Failure;
use super::output::show;
use super::session::Session;
use crate::config::Flags;

pub fn run(invocation: &Invocation) -> Result<(), Failure> {
    let session = Session::open(invocation, Flags::default())?;
    let kind = session.store.kind();
    show(&match session.migrated {
        0 => format!("The {kind} schema is up to date.\n"),
        1 => format!("Applied 1 migration; the {kind} schema is up to date.\n"),
        count => format!("Applied {count} migrations; the {kind} schema is up to date.\n"),
    })
}
