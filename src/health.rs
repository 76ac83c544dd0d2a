//! The answers of `/health` and `/ready`, the same on the public listener and on the ops listener.
//!
//! `/health` says that the process runs and answers; `/ready` that it can do its work. The words of both are
//! made here, so that a load balancer and a person read the same thing wherever they ask.

use std::borrow::Cow;

/// Body of `/health`, always with status 200.
pub const HEALTH_BODY: &str = concat!(r#"{"status":"ok","version":""#, env!("CARGO_PKG_VERSION"), r#""}"#);

/// Whether the server can do its work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// Listeners bound, the database reached, its schema applied, and events are accepted.
    Ready,
    /// Not yet, or no longer; with the reason in a few words.
    NotReady(Cow<'static, str>),
}

impl Readiness {
    /// Status of `/ready`.
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
