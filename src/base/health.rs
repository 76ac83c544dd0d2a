//! The responses of `/health` and `/ready`, the same on the main listener and on the ops listener.
//!
//! `/health` tells that the process runs and answers, `/ready` that it can do its work. Both are worded here, so that a load
//! balancer and a person read the same wherever they ask.

use std::borrow::Cow;
use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};

/// Body of `/health`, always with status 200.
pub const HEALTH_BODY: &str = concat!(r#"{"status":"ok","version":""#, env!("CARGO_PKG_VERSION"), r#""}"#);

/// Whether the server can do its work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// Listeners are bound, the database is reached and its schema applied, and events are accepted.
    Ready,
    /// Not yet, or no longer; with the reason.
    NotReady(Cow<'static, str>),
}

impl Readiness {
    /// HTTP status of `/ready`.
    pub const fn status(&self) -> u16 {
        match self {
            Self::Ready => 200,
            Self::NotReady(_) => 503,
        }
    }

    /// Body of `/ready`.
    pub fn body(&self) -> String {
        match self {
            Self::Ready => r#"{"status":"ready"}"#.to_owned(),
            Self::NotReady(reason) => serde_json::json!({"status": "starting", "reason": reason}).to_string(),
        }
    }
}

/// The stage between start and end of the server, for `/ready`.
#[derive(Debug, Default)]
pub struct Stage {
    at: AtomicU8,
    /// What keeps the start from going on; empty before anything was tried.
    obstacle: Mutex<String>,
}

impl Stage {
    /// Nothing is stored or delivered yet.
    pub const PREPARING: u8 = 0;
    /// Everything runs.
    pub const READY: u8 = 1;
    /// A signal to stop came.
    pub const DRAINING: u8 = 2;
    /// The journal belongs to another store.
    pub const FOREIGN: u8 = 3;

    /// The answer of `/ready`.
    pub fn readiness(&self) -> Readiness {
        match self.at.load(Ordering::Relaxed) {
            // Shards call this, and they never wait for a lock.
            Self::PREPARING => match self.obstacle.try_lock() {
                Ok(obstacle) if !obstacle.is_empty() => Readiness::NotReady(obstacle.clone().into()),
                _ => Readiness::NotReady("the database has not been reached yet".into()),
            },
            Self::FOREIGN => {
                Readiness::NotReady("the journal belongs to another store; the log says what to do".into())
            }
            Self::READY => Readiness::Ready,
            _ => Readiness::NotReady("shutting down".into()),
        }
    }

    /// Moves from one stage to the next; `false` if a signal to stop came meanwhile.
    pub fn advance(&self, from: u8, to: u8) -> bool {
        self.at.compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Notes what keeps the server from being ready, for `/ready`.
    pub fn note_obstacle(&self, obstacle: &impl fmt::Display) {
        *self.obstacle.lock().unwrap_or_else(PoisonError::into_inner) = obstacle.to_string();
    }

    /// Moves to the last stage: no longer ready.
    pub fn drain(&self) {
        self.at.store(Self::DRAINING, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_json_with_the_fixed_members() {
        let health: serde_json::Value = serde_json::from_str(HEALTH_BODY).unwrap();
        assert_eq!(health, serde_json::json!({"status": "ok", "version": env!("CARGO_PKG_VERSION")}));
        assert_eq!((Readiness::Ready.status(), Readiness::Ready.body().as_str()), (200, r#"{"status":"ready"}"#));
        let not_ready = Readiness::NotReady(r#"the database says "no""#.into());
        let body: serde_json::Value = serde_json::from_str(&not_ready.body()).unwrap();
        assert_eq!(not_ready.status(), 503);
        assert_eq!(body, serde_json::json!({"status": "starting", "reason": r#"the database says "no""#}));
    }
}
