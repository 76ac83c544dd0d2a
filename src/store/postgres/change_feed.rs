//! The change feed of the Postgres store: a session of its own that listens to `millrace_credentials`.
//!
//! Postgres does not keep notifications for a client that is away. So every connection begins with
//! [`StoreChange::Everything`], after LISTEN has taken effect. A ping from time to time finds a dead connection.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use futures_channel::mpsc;
use futures_util::StreamExt;

use millrace_base::event::{EndpointId, OrgId};
use millrace_base::key::KeyId;
use millrace_base::limits;

use super::session::{Session, Timeouts};
use super::target::Target;
use crate::{StoreChange, StoreError};

/// Reports changes until `stop` is set or the connection fails.
pub(super) fn watch(
    target: &Target,
    stop: &AtomicBool,
    on_change: &mut dyn FnMut(StoreChange),
) -> Result<(), StoreError> {
    let (sender, mut changes) = mpsc::channel(limits::STORE_CHANGES_MAX);
    let mut session = match Session::connect(target, Timeouts::USUAL, Some(sender), Some(stop)) {
        Err(_) if stop.load(Ordering::Relaxed) => return Ok(()),
        connected => connected?,
    };
    session.begin_call();
    session.execute("LISTEN millrace_credentials", &[])?;
    on_change(StoreChange::Everything);
    let mut pinged = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        match session.wait(limits::STOP_POLL_INTERVAL, changes.next()) {
            Some(Some(payload)) => on_change(parse(&payload)),
            Some(None) => return Err(StoreError::Unavailable("the listening connection was lost".to_owned())),
            None => {}
        }
        if pinged.elapsed() >= limits::STORE_CHANGE_PING_INTERVAL {
            match session.ping(stop) {
                Some(alive) => alive?,
                None => break,
            }
            pinged = Instant::now();
        }
    }
    Ok(())
}

/// The change in a notification. A word that is not known here, of a newer version, may concern anything.
fn parse(payload: &str) -> StoreChange {
    let uuid = |id| uuid::Uuid::try_parse(id).ok();
    let known = match payload.split_once(':') {
        Some(("key", id)) => KeyId::parse(id).map(StoreChange::Key),
        Some(("org", id)) => uuid(id).map(|id| StoreChange::Organization(OrgId(id))),
        Some(("endpoints", id)) => uuid(id).map(|id| StoreChange::Endpoints(OrgId(id))),
        Some(("due", id)) => uuid(id).map(|id| StoreChange::DeliveriesDue(EndpointId(id))),
        _ => None,
    };
    known.unwrap_or(StoreChange::Everything)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_word_drops_everything() {
        let org = OrgId(uuid::Uuid::from_u128(7));
        assert_eq!(parse("key:abcdefghijkl"), StoreChange::Key(KeyId::parse("abcdefghijkl").unwrap()));
        assert_eq!(parse(&format!("org:{org}")), StoreChange::Organization(org));
        assert_eq!(parse(&format!("endpoints:{org}")), StoreChange::Endpoints(org));
        assert_eq!(parse(&format!("due:{org}")), StoreChange::DeliveriesDue(EndpointId(org.0)));
        for payload in ["", "key:", "key:short", "org:7", "due:7", "endpoints:", "weather:7"] {
            assert_eq!(parse(payload), StoreChange::Everything, "{payload}");
        }
    }
}
