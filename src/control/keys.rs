//! The routes of an organisation's own keys: list, rotate, revoke.
//!
//! A caller may revoke any key of its organisation, also the key it uses and the last valid one: it may have leaked, and then
//! the owner wants to be locked out. The operator makes the next key with `millrace key create`.

use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use millrace_base::event::OrgId;
use millrace_base::key::{ApiKey, KeyId};
use millrace_base::limits::{KEY_ROTATION_GRACE_DEFAULT, KEY_ROTATION_GRACE_MAX, LIST_KEYS_MAX};
use millrace_base::problem::Problem;
use millrace_metrics::DbOperation;

use super::body::{check_syntax, whole};
use super::documents::{self, KeyDocument, KeyList, to_json};
use super::{Answer, Caller, HandlerError, Handlers, changes, not_found};

/// Longest part of a parser's message that is shown, because it can quote the body.
const DETAIL_SHOWN_CHARS: usize = 160;

/// `GET /api/keys`: valid, expired and revoked ones, newest first.
pub(super) fn list(handlers: &Handlers, org: OrgId) -> Result<Answer, HandlerError> {
    let (keys, has_more) = handlers.ask(DbOperation::Keys, |store| store.keys(org, LIST_KEYS_MAX))?;
    let data = keys.iter().map(KeyDocument::new).collect();
    Ok((200, to_json(&KeyList { data, has_more })))
}

/// `POST /api/keys/rotate`: a new key in place of the caller's, which stays valid for the grace.
pub(super) fn rotate(handlers: &Handlers, by: &Caller, body: &[u8]) -> Result<Answer, HandlerError> {
    let grace = parse_grace(body)?;
    let key = ApiKey::generate()?;
    let verifier = key.verifier(handlers.argon2);
    let expires_at = handlers.ask(DbOperation::Keys, |store| store.rotate_key(by.key, (key.id(), &verifier), grace))?;
    changes::log(by, "key.rotated", &key.id());
    Ok((200, documents::rotated_key(&key, expires_at)))
}

/// `DELETE /api/keys/{id}`. Another organisation's key is 404; revoking twice is no error.
pub(super) fn delete(handlers: &Handlers, by: &Caller, id: KeyId) -> Result<Answer, HandlerError> {
    if handlers.ask(DbOperation::Keys, |store| store.revoke_key(Some(by.org), id))? {
        changes::log(by, "key.revoked", &id);
        Ok((204, Vec::new()))
    } else {
        Err(not_found::KEY.into())
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RotateBody {
    #[serde(default = "default_grace_seconds", deserialize_with = "whole_number")]
    grace_seconds: u64,
}

fn whole_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let value = <&RawValue>::deserialize(deserializer)?;
    whole(value.get()).ok_or_else(|| D::Error::custom(format!("`{value}` is no whole number from 0 on")))
}

const fn default_grace_seconds() -> u64 {
    KEY_ROTATION_GRACE_DEFAULT.as_secs()
}

/// The grace in a rotation's body: `{"grace_seconds": n}`, the default where the field or the whole body is left out.
fn parse_grace(body: &[u8]) -> Result<Duration, Problem> {
    let Some(first) = body.iter().find(|byte| !b" \t\r\n".contains(byte)) else {
        return Ok(KEY_ROTATION_GRACE_DEFAULT);
    };
    check_syntax(body)?;
    // Asked here because serde would also take the fields as an array, without their names.
    if *first != b'{' {
        return Err(Problem::BadQuery("the body must be an object, or empty".into()));
    }
    let parsed: RotateBody = serde_json::from_slice(body).map_err(|error| {
        let shown: String = error.to_string().chars().take(DETAIL_SHOWN_CHARS).collect();
        Problem::BadQuery(format!("the body takes `grace_seconds`, a whole number, alone: {shown}").into())
    })?;
    if parsed.grace_seconds > KEY_ROTATION_GRACE_MAX.as_secs() {
        let max = KEY_ROTATION_GRACE_MAX.as_secs();
        return Err(Problem::BadQuery(format!("`grace_seconds` must be from 0 to {max}").into()));
    }
    Ok(Duration::from_secs(parsed.grace_seconds))
}

#[cfg(test)]
mod tests {
    use millrace_base::problem::Code;

    use super::*;

    #[test]
    fn a_grace_is_read_or_defaults_to_a_day() {
        for (body, seconds) in [
            ("", 86_400),
            (" \r\n", 86_400),
            ("{}", 86_400),
            (" { } ", 86_400),
            (r#"{"grace_seconds":0}"#, 0),
            (r#"{ "grace_seconds" : 3600 }"#, 3600),
            (r#"{"grace_seconds":3600.0}"#, 3600),
            (r#"{"grace_seconds":3.6e3}"#, 3600),
            (r#"{"grace_\u0073econds":2592000}"#, 2_592_000),
        ] {
            assert_eq!(parse_grace(body.as_bytes()), Ok(Duration::from_secs(seconds)), "{body}");
        }
    }

    #[test]
    fn a_body_that_is_json_and_wrong_is_refused_by_name() {
        let many = format!(r#"{{"{}":1}}"#, "x".repeat(5000));
        let deep = format!("{{\"grace_seconds\":{}1{}}}", "[".repeat(5000), "]".repeat(5000));
        for (body, part) in [
            (r#"{"grace":5}"#, "`grace`"),
            (r#"{"grace_seconds":5,"x":1}"#, "`x`"),
            (r#"{"grace_seconds":5,"grace_seconds":5}"#, "duplicate field `grace_seconds`"),
            (r#"{"grace_seconds":2592001}"#, "from 0 to 2592000"),
            (r#"{"grace_seconds":-1}"#, "`-1`"),
            (r#"{"grace_seconds":1.5}"#, "`1.5`"),
            (r#"{"grace_seconds":1e400}"#, "`1e400`"),
            (r#"{"grace_seconds":99999999999999999999}"#, "grace_seconds"),
            (r#"{"grace_seconds":"5"}"#, "`\"5\"`"),
            (r#"{"grace_seconds":null}"#, "null"),
            (many.as_str(), "xxx"),
            (deep.as_str(), "grace_seconds"),
            ("[]", "object"),
            ("[5]", "object"),
            ("null", "object"),
            ("5", "object"),
        ] {
            let problem = parse_grace(body.as_bytes()).expect_err(body);
            assert_eq!(problem.code(), Code::BadRequest, "{body}");
            assert!(problem.detail().contains(part), "{body}: {}", problem.detail());
            assert!(problem.detail().len() < 300);
        }
    }

    #[test]
    fn a_body_that_is_not_json_is_refused_with_its_offset() {
        for (body, at) in [
            (b"{" as &[u8], 1),
            (b"{\"grace_seconds\":05}", 18),
            (b"{} x", 3),
            (b"\xef\xbb\xbf{}", 0),
            (b"{\"\xff\":1}", 2),
            (b"grace_seconds=5", 0),
        ] {
            let problem = parse_grace(body).unwrap_err();
            assert!(matches!(problem, Problem::InvalidJson { offset: Some(o), .. } if o == at), "{problem:?}");
        }
    }
}
