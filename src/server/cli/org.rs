//! `millrace org`: organisations, each with its keys and its limit.

use clap::{ArgGroup, Args, Subcommand};
use serde::Serialize;
use uuid::Uuid;

use millrace_base::limits;
use millrace_store::{Organization, OrganizationChange};

use super::Invocation;
use super::bad_argument::BadArgument;
use super::failure::Failure;
use super::output::{fields, json_line, show, show_json, show_key, table};
use super::session::Session;
use crate::config::{Flags, KeyFlags};

#[derive(Args)]
#[command(after_help = "\
Examples:
  millrace org create acme --rate-limit 60000
  millrace org create acme --json | jq -r .api_key
  millrace org update acme --rate-limit default
  millrace org disable acme
  millrace org enable acme")]
pub struct Org {
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: OrgCommand,
}

#[derive(Subcommand)]
enum OrgCommand {
    /// Make an organisation and its first API key, which is shown once
    Create {
        /// A name no other organisation has, 1-128 characters
        #[arg(value_parser = org_name)]
        name: String,
        /// Requests per minute; 0 is unlimited; without it the server's default holds
        #[arg(long, value_name = "N", value_parser = rate_limit)]
        rate_limit: Option<u32>,
        #[command(flatten)]
        key_flags: KeyFlags,
    },
    /// List organisations, by name
    List,
    /// Change an organisation; running servers notice within a second
    #[command(group = ArgGroup::new("change").required(true).multiple(true))]
    Update {
        /// Its name or id
        #[arg(value_name = "NAME_OR_ID")]
        org: String,
        /// Its new name
        #[arg(long, group = "change", value_parser = org_name)]
        name: Option<String>,
        /// Requests per minute; 0 is unlimited; `default` returns to the server's default
        #[arg(long, group = "change", value_name = "N|default", value_parser = rate_limit_or_default)]
        rate_limit: Option<RateLimit>,
        /// Accept its events again, and send what waited
        #[arg(long, group = "change")]
        enable: bool,
    },
    /// Refuse an organisation's requests with 403 and hold its webhooks, within a second
    Disable {
        /// Its name or id
        #[arg(value_name = "NAME_OR_ID")]
        org: String,
    },
    /// Accept its requests again, and send what waited
    Enable {
        /// Its name or id
        #[arg(value_name = "NAME_OR_ID")]
        org: String,
    },
}

/// A limit in requests per minute; `None` is the server's default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct RateLimit(Option<u32>);

#[derive(Serialize)]
struct CreatedOrgJson<'a> {
    org_id: String,
    name: &'a str,
    rate_limit_per_minute: Option<u32>,
    api_key: &'a str,
}

#[derive(Serialize)]
struct OrgJson<'a> {
    org_id: String,
    name: &'a str,
    rate_limit_per_minute: Option<u32>,
    disabled: bool,
    created_at: String,
}

pub fn run(invocation: &Invocation, org: Org) -> Result<(), Failure> {
    let json = org.json;
    match org.command {
        OrgCommand::Create { name, rate_limit, key_flags } => {
            create(&Session::open(invocation, key_flags.0)?, &name, rate_limit, json)
        }
        OrgCommand::List => list(&Session::open(invocation, Flags::default())?, json),
        OrgCommand::Update { org, name, rate_limit, enable } => {
            let change = OrganizationChange {
                name,
                rate_limit_per_minute: rate_limit.map(|RateLimit(limit)| limit),
                disabled: enable.then_some(false),
            };
            update(&Session::open(invocation, Flags::default())?, &org, &change, json)
        }
        OrgCommand::Disable { org } => set_disabled(invocation, &org, true, json),
        OrgCommand::Enable { org } => set_disabled(invocation, &org, false, json),
    }
}

fn create(session: &Session, name: &str, rate_limit: Option<u32>, json: bool) -> Result<(), Failure> {
    let (key, verifier) = session.generate_key()?;
    let org = session.done(session.store.create_organization(name, rate_limit, (key.id(), &verifier)))?;
    let text = if json {
        json_line(&CreatedOrgJson {
            org_id: org.id.to_string(),
            name: &org.name,
            rate_limit_per_minute: org.rate_limit_per_minute,
            api_key: key.reveal(),
        })
    } else {
        format!(
            "Made the organisation {}.\n\n{}\nThe key is shown only this once.\n",
            org.name,
            fields(&[
                ("id", &org.id.to_string()),
                ("rate limit", &limit_in_words(org.rate_limit_per_minute)),
                ("API key", key.reveal()),
            ])
        )
    };
    show_key(&text, key.id().as_str())
}

fn list(session: &Session, json: bool) -> Result<(), Failure> {
    let orgs = session.done(session.store.organizations())?;
    if json {
        return show_json(&orgs.iter().map(to_json).collect::<Vec<_>>());
    }
    if orgs.is_empty() {
        return show("There is no organisation yet; make one with `millrace org create NAME`.\n");
    }
    let row = |org: &Organization| {
        let state = if org.disabled { "disabled" } else { "enabled" };
        [org.name.clone(), org.id.to_string(), limit_in_words(org.rate_limit_per_minute), state.to_owned()]
    };
    show(&table(["NAME", "ID", "RATE LIMIT", "STATE"], &orgs.iter().map(row).collect::<Vec<_>>()))
}

fn set_disabled(invocation: &Invocation, org: &str, disabled: bool, json: bool) -> Result<(), Failure> {
    let change = OrganizationChange { disabled: Some(disabled), ..OrganizationChange::default() };
    update(&Session::open(invocation, Flags::default())?, org, &change, json)
}

fn update(session: &Session, name_or_id: &str, change: &OrganizationChange, json: bool) -> Result<(), Failure> {
    let org = session.done(session.store.organization(name_or_id))?;
    let org = session.done(session.store.update_organization(org.id, change))?;
    if json {
        return show_json(&to_json(&org));
    }
    show(&fields(&[
        ("name", &org.name),
        ("id", &org.id.to_string()),
        ("rate limit", &limit_in_words(org.rate_limit_per_minute)),
        ("state", if org.disabled { "disabled" } else { "enabled" }),
    ]))
}

fn to_json(org: &Organization) -> OrgJson<'_> {
    OrgJson {
        org_id: org.id.to_string(),
        name: &org.name,
        rate_limit_per_minute: org.rate_limit_per_minute,
        disabled: org.disabled,
        created_at: org.created_at.to_rfc3339(),
    }
}

fn limit_in_words(limit: Option<u32>) -> String {
    match limit {
        None => "the server's default".to_owned(),
        Some(0) => "unlimited".to_owned(),
        Some(limit) => format!("{limit} per minute"),
    }
}

fn org_name(text: &str) -> Result<String, BadArgument> {
    if !(1..=limits::ORGANIZATION_NAME_CHARS_MAX).contains(&text.chars().count()) {
        return Err(BadArgument::NameLength);
    }
    if text.chars().any(char::is_control) || text.trim() != text {
        return Err(BadArgument::NameCharacters);
    }
    // Every command that takes a name takes an id as well.
    if Uuid::try_parse(text).is_ok() {
        return Err(BadArgument::NameLikeId);
    }
    Ok(text.to_owned())
}

fn rate_limit(text: &str) -> Result<u32, BadArgument> {
    let limit = text.parse().ok().filter(|limit| u64::from(*limit) <= limits::RATE_LIMIT_PER_MINUTE_MAX);
    limit.ok_or(BadArgument::RateLimit)
}

fn rate_limit_or_default(text: &str) -> Result<RateLimit, BadArgument> {
    if text == "default" {
        return Ok(RateLimit(None));
    }
    rate_limit(text).map(|limit| RateLimit(Some(limit))).map_err(|_| BadArgument::RateLimitOrDefault)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_visible_and_no_ids() {
        for name in ["a", "acme", "Ünï côrp", &"x".repeat(128)] {
            assert_eq!(org_name(name).as_deref(), Ok(name));
        }
        for name in ["", " a", "a ", "a\nb", "\u{1b}[2J", &"x".repeat(129), "0191d2c0-0000-7000-8000-000000000000"] {
            assert!(org_name(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn limits_are_whole_numbers_zero_or_default() {
        assert_eq!(rate_limit("0"), Ok(0));
        assert_eq!(rate_limit("1000000000"), Ok(1_000_000_000));
        for text in ["", "-1", "1.5", "1000000001", "default", "none"] {
            assert!(rate_limit(text).is_err(), "{text:?}");
        }
        assert_eq!(rate_limit_or_default("default"), Ok(RateLimit(None)));
        assert_eq!(rate_limit_or_default("0"), Ok(RateLimit(Some(0))));
        assert!(rate_limit_or_default("many").is_err());
    }
}
