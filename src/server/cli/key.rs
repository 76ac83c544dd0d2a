//! `millrace key`: the API keys of an organisation.
//!
//! A key is named by its id, the twelve characters after `mr_`. Where somebody gives the whole key instead, the error names
//! the id and does not repeat the key.

use std::time::Duration;

use clap::{Args, Subcommand};
use serde::Serialize;

use millrace_base::clock::Timestamp;
use millrace_base::key::{self, KeyId};
use millrace_base::limits;
use millrace_store::KeyInfo;

use super::Invocation;
use super::failure::Failure;
use super::output::{fields, json_line, note, show, show_json, show_key, table, to_the_second};
use super::session::Session;
use super::time::{self, Time};
use crate::config::{Flags, KeyFlags};

#[derive(Args)]
#[command(after_help = "\
Examples:
  millrace key create acme
  millrace key list acme
  millrace key rotate 4fK2mPq81xYz                   the old key works for one more day
  millrace key rotate 4fK2mPq81xYz --grace 0         the old key has leaked: it works no more
  millrace key revoke 4fK2mPq81xYz")]
pub struct Key {
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: KeyCommand,
}

#[derive(Subcommand)]
enum KeyCommand {
    /// Make another API key, which is shown once
    Create {
        /// The organisation's name or id
        org: String,
        #[command(flatten)]
        key_flags: KeyFlags,
    },
    /// List an organisation's keys, newest first, at most 1000
    List {
        /// The organisation's name or id
        org: String,
    },
    /// Replace a key by a new one, which is shown once
    Rotate {
        /// The key's id: the 12 characters after mr_
        key_id: String,
        /// How long the old key stays valid; 0 where it has leaked
        #[arg(long, value_name = "TIME", default_value_t = Time(limits::KEY_ROTATION_GRACE_DEFAULT),
              value_parser = time::up_to(limits::KEY_ROTATION_GRACE_MAX))]
        grace: Time,
        #[command(flatten)]
        key_flags: KeyFlags,
    },
    /// Refuse a key from now on, within a second on running servers
    Revoke {
        /// The key's id: the 12 characters after mr_
        key_id: String,
    },
}

#[derive(Serialize)]
struct CreatedKeyJson<'a> {
    key_id: &'a str,
    org_id: String,
    api_key: &'a str,
}

#[derive(Serialize)]
struct RotatedJson<'a> {
    key_id: &'a str,
    api_key: &'a str,
    previous_expires_at: String,
}

#[derive(Serialize)]
struct RevokedJson<'a> {
    key_id: &'a str,
    revoked: bool,
}

#[derive(Serialize)]
struct KeyJson<'a> {
    key_id: &'a str,
    org_id: String,
    created_at: String,
    last_used_at: Option<String>,
    expires_at: Option<String>,
    revoked_at: Option<String>,
}

pub fn run(invocation: &Invocation, key: Key) -> Result<(), Failure> {
    let json = key.json;
    match key.command {
        KeyCommand::Create { org, key_flags } => create(&Session::open(invocation, key_flags.0)?, &org, json),
        KeyCommand::List { org } => list(&Session::open(invocation, Flags::default())?, &org, json),
        KeyCommand::Rotate { key_id, grace, key_flags } => {
            let old = parse_key_id(&key_id)?;
            rotate(&Session::open(invocation, key_flags.0)?, old, grace.0, json)
        }
        KeyCommand::Revoke { key_id } => {
            let id = parse_key_id(&key_id)?;
            revoke(&Session::open(invocation, Flags::default())?, id, json)
        }
    }
}

fn create(session: &Session, org: &str, json: bool) -> Result<(), Failure> {
    let org = session.done(session.store.organization(org))?;
    let (key, verifier) = session.generate_key()?;
    session.done(session.store.create_key(org.id, (key.id(), &verifier)))?;
    let key_id = key.id();
    let text = if json {
        json_line(&CreatedKeyJson { key_id: key_id.as_str(), org_id: org.id.to_string(), api_key: key.reveal() })
    } else {
        format!(
            "Made a key for the organisation {}.\n\n{}\nThe key is shown only this once.\n",
            org.name,
            fields(&[("key id", key_id.as_str()), ("API key", key.reveal())])
        )
    };
    show_key(&text, key_id.as_str())
}

fn list(session: &Session, org: &str, json: bool) -> Result<(), Failure> {
    let org = session.done(session.store.organization(org))?;
    let (keys, has_more) = session.done(session.store.keys(org.id, limits::LIST_KEYS_MAX))?;
    if has_more {
        note(&format!("the organisation has more keys; shown are {}, the live ones first", keys.len()));
    }
    if json {
        return show_json(&keys.iter().map(to_json).collect::<Vec<_>>());
    }
    if keys.is_empty() {
        return show("The organisation has no key; make one with `millrace key create`.\n");
    }
    let now = Timestamp::now();
    let row = |key: &KeyInfo| {
        let last_used = key.last_used_at.map_or_else(|| "never".to_owned(), to_the_second);
        [key.id.to_string(), state(key, now), to_the_second(key.created_at), last_used]
    };
    show(&table(["KEY ID", "STATE", "CREATED", "LAST USED"], &keys.iter().map(row).collect::<Vec<_>>()))
}

fn rotate(session: &Session, old: KeyId, grace: Duration, json: bool) -> Result<(), Failure> {
    let (key, verifier) = session.generate_key()?;
    let expires_at = session.done(session.store.rotate_key(old, (key.id(), &verifier), grace))?;
    let key_id = key.id();
    let text = if json {
        let previous_expires_at = expires_at.to_rfc3339();
        json_line(&RotatedJson { key_id: key_id.as_str(), api_key: key.reveal(), previous_expires_at })
    } else {
        format!(
            "Replaced the key {old}, which is valid until {}.\n\n{}\nThe key is shown only this once.\n",
            to_the_second(expires_at),
            fields(&[("key id", key_id.as_str()), ("API key", key.reveal())])
        )
    };
    show_key(&text, key_id.as_str())
}

fn revoke(session: &Session, id: KeyId, json: bool) -> Result<(), Failure> {
    if !session.done(session.store.revoke_key(None, id))? {
        return Err(Failure::Refused(format!("there is no key {id}\n  fix: find its id with `millrace key list ORG`")));
    }
    if json {
        show_json(&RevokedJson { key_id: id.as_str(), revoked: true })
    } else {
        show(&format!("Revoked the key {id}.\n"))
    }
}

fn to_json(key: &KeyInfo) -> KeyJson<'_> {
    KeyJson {
        key_id: key.id.as_str(),
        org_id: key.org.to_string(),
        created_at: key.created_at.to_rfc3339(),
        last_used_at: key.last_used_at.map(Timestamp::to_rfc3339),
        expires_at: key.expires_at.map(Timestamp::to_rfc3339),
        revoked_at: key.revoked_at.map(Timestamp::to_rfc3339),
    }
}

fn state(key: &KeyInfo, now: Timestamp) -> String {
    match (key.revoked_at, key.expires_at) {
        (Some(at), _) => format!("revoked {}", to_the_second(at)),
        (None, Some(at)) if at <= now => format!("expired {}", to_the_second(at)),
        (None, Some(at)) => format!("valid until {}", to_the_second(at)),
        (None, None) => "valid".to_owned(),
    }
}

/// Reads a key id. The error never repeats the text, which may be a whole key.
fn parse_key_id(text: &str) -> Result<KeyId, Failure> {
    let why = || match key::parse(text.as_bytes()) {
        Some(id) => {
            format!("that is a whole API key\n  fix: give its id, {id}, and keep the key out of the shell's history")
        }
        None => "that is no key id: 12 letters and digits, the part of a key between mr_ and the second _\n  \
                 fix: find it with `millrace key list ORG`"
            .to_owned(),
    };
    KeyId::parse(text).ok_or_else(|| Failure::Argument(why()))
}

#[cfg(test)]
mod tests {
    use millrace_base::event::OrgId;
    use millrace_base::key::ApiKey;

    use super::*;

    #[test]
    fn a_whole_key_is_refused_by_its_id_and_not_repeated() {
        let key = ApiKey::generate().unwrap();
        assert_eq!(parse_key_id(key.id().as_str()).unwrap(), key.id());
        for text in [key.reveal(), &key.reveal()[3..], "", "short"] {
            let message = parse_key_id(text).unwrap_err().message().unwrap();
            assert!(!message.contains(&key.reveal()[16..]), "{message}");
        }
        let message = parse_key_id(key.reveal()).unwrap_err().message().unwrap();
        assert!(message.contains(key.id().as_str()), "{message}");
    }

    #[test]
    fn a_key_is_valid_until_it_expires_or_is_revoked() {
        let at = Timestamp::from_micros;
        let key = |expires_at, revoked_at| KeyInfo {
            id: KeyId::parse("000000000000").unwrap(),
            org: OrgId(uuid::Uuid::nil()),
            created_at: at(0),
            last_used_at: None,
            expires_at,
            revoked_at,
        };
        let now = at(5_000_000);
        assert_eq!(state(&key(None, None), now), "valid");
        assert_eq!(state(&key(Some(at(9_000_000)), None), now), "valid until 1970-01-01T00:00:09Z");
        assert_eq!(state(&key(Some(at(5_000_000)), None), now), "expired 1970-01-01T00:00:05Z");
        assert_eq!(state(&key(Some(at(9_000_000)), Some(at(1_000_000))), now), "revoked 1970-01-01T00:00:01Z");
    }
}
