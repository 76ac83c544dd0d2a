//! The arguments of `millrace endpoint`, and their checks.

use std::fmt::Display;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use clap::{ArgGroup, Args, Subcommand};
use uuid::Uuid;
use zeroize::Zeroizing;

use millrace_base::clock::Timestamp;
use millrace_base::event::EndpointId;
use millrace_base::limits;
use millrace_base::problem::FieldError;
use millrace_control::EndpointInput;
use millrace_store::webhooks::EndpointChange;
use millrace_webhooks::endpoint::secret::WebhookSecret;
use millrace_webhooks::endpoint::target_policy::DatabaseAddresses;

use crate::cli::bad_argument::BadArgument;
use crate::cli::failure::Failure;
use crate::cli::time::{self, Time};
use crate::config::{Config, EndpointFlags};

#[derive(Args)]
#[command(after_help = "\
Examples:
  millrace endpoint create acme https://example.com/hooks --event-type 'invoice.*' --event-type refund.made
  millrace endpoint create acme https://example.com/hooks --json | jq -r .secret
  millrace endpoint list acme
  millrace endpoint update 0197e1c2-8d2e-7a10-8c3b-5b1f0e9d4a21 --rate-limit 20
  millrace endpoint test 0197e1c2-8d2e-7a10-8c3b-5b1f0e9d4a21
  millrace endpoint recover 0197e1c2-8d2e-7a10-8c3b-5b1f0e9d4a21 --since 2026-01-31T12:00:00Z")]
pub struct Endpoint {
    /// Print JSON
    #[arg(long, global = true)]
    pub(super) json: bool,
    #[command(subcommand)]
    pub(super) command: EndpointCommand,
}

#[derive(Subcommand)]
pub(super) enum EndpointCommand {
    /// Make an endpoint; its secret is shown once
    Create {
        /// The organisation's name or id
        org: String,
        /// Where its events go: https, at a public address
        url: String,
        #[command(flatten)]
        given: Given,
        /// Send nothing to it until it is enabled
        #[arg(long)]
        disabled: bool,
        /// Read the secret (whsec_…) from this file, or from standard input with `-`; else one is generated
        #[arg(long, value_name = "FILE")]
        secret_file: Option<String>,
        #[command(flatten)]
        flags: EndpointFlags,
    },
    /// List an organisation's endpoints, newest first
    List {
        /// The organisation's name or id
        org: String,
    },
    /// Show an endpoint
    Show {
        /// The endpoint's id
        id: String,
    },
    /// Change an endpoint; what is not named stays
    #[command(group = ArgGroup::new("change").required(true).multiple(true).args([
        "url", "description", "event_types", "all_events", "headers", "no_headers", "rate_limit", "no_rate_limit",
    ]))]
    Update {
        /// The endpoint's id
        id: String,
        /// Where its events go from now on
        #[arg(long)]
        url: Option<String>,
        #[command(flatten)]
        given: Given,
        /// Deliver events of all types
        #[arg(long, conflicts_with = "event_types")]
        all_events: bool,
        /// Send no headers of its own
        #[arg(long, conflicts_with = "headers")]
        no_headers: bool,
        /// Send as fast as it answers
        #[arg(long, conflicts_with = "rate_limit")]
        no_rate_limit: bool,
        #[command(flatten)]
        flags: EndpointFlags,
    },
    /// Send to it again, first what waited
    Enable {
        /// The endpoint's id
        id: String,
    },
    /// Send nothing to it; what is pending waits
    Disable {
        /// The endpoint's id
        id: String,
    },
    /// Delete it; what is pending fails
    Delete {
        /// The endpoint's id
        id: String,
    },
    /// Replace its secret by a new one, which is shown once
    RotateSecret {
        /// The endpoint's id
        id: String,
        /// Read the secret (whsec_…) from this file, or from standard input with `-`; else one is generated
        #[arg(long, value_name = "FILE")]
        secret_file: Option<String>,
        /// How long the old secret signs beside the new one
        #[arg(long, value_name = "TIME", default_value_t = Time(limits::SECRET_OVERLAP_DEFAULT),
              value_parser = time::up_to(limits::SECRET_OVERLAP_MAX))]
        overlap: Time,
        #[command(flatten)]
        flags: EndpointFlags,
    },
    /// Seal secrets with this configuration's key from now on: where the key of before is lost
    ///
    /// It is refused to seal with a key that is not the servers', because they could not sign. Where the key of before is
    /// lost for good this makes the configured one theirs, and lists the endpoints whose secrets it does not open: what
    /// is due for those waits until `millrace endpoint rotate-secret ID`.
    AcceptKey {
        #[command(flatten)]
        flags: EndpointFlags,
    },
    /// Send a test event to it alone
    Test {
        /// The endpoint's id
        id: String,
    },
    /// Make its failed and blocked deliveries again
    Recover {
        /// The endpoint's id
        id: String,
        /// Those made from then on, such as 2026-01-31T12:00:00Z
        #[arg(long, value_name = "TIME", value_parser = time)]
        since: Timestamp,
        /// And before then; now, where it is left out
        #[arg(long, value_name = "TIME", value_parser = time)]
        until: Option<Timestamp>,
    },
}

/// The flags of an endpoint that is made or changed.
#[derive(Args)]
pub(super) struct Given {
    /// Words for people, at most 500 characters
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// Deliver events of this type, or of all types that begin so: `invoice.*`; may be repeated; all without it
    #[arg(long = "event-type", value_name = "TYPE", id = "event_types")]
    event_types: Vec<String>,
    /// Send this with every request, as 'Name: value'; may be repeated (other users can see flags in the process list)
    #[arg(long = "header", value_name = "HEADER", id = "headers")]
    headers: Vec<String>,
    /// Requests per second at most
    #[arg(long, value_name = "N", id = "rate_limit",
          value_parser = clap::value_parser!(u32).range(1..=i64::from(limits::ENDPOINT_RATE_LIMIT_MAX)))]
    rate_limit: Option<u32>,
}

impl Given {
    /// The same as the API takes it. A flag that is not given leaves its field out.
    pub(super) fn input(self) -> Result<EndpointInput, Failure> {
        let header = |header: &String| {
            let (name, value) = header.split_once(':')?;
            Some((name.trim().to_owned(), value.trim().to_owned()))
        };
        let headers: Option<Vec<_>> = self.headers.iter().map(header).collect();
        let headers = headers.ok_or_else(|| wrong("--header", &"must be 'Name: value'"))?;
        Ok(EndpointInput {
            description: self.description.map(Some),
            event_types: some(self.event_types).map(Some),
            headers: some(headers).map(Some),
            rate_limit_per_second: self.rate_limit.map(|limit| Some(u64::from(limit))),
            ..EndpointInput::default()
        })
    }
}

/// Checks what is given by the rules of the API, as far as they hold without a server.
pub(super) fn check(config: &Config, input: EndpointInput) -> Result<EndpointChange, Failure> {
    let (change, errors) = input.check(&config.webhooks().policy(&[], &DatabaseAddresses::default()));
    match errors.first() {
        None => Ok(change),
        Some(FieldError { field, message }) => Err(wrong(argument(field), message)),
    }
}

/// The argument that gives a field.
fn argument(field: &str) -> &str {
    match field {
        "url" => "the URL",
        "description" => "--description",
        "event_types" => "--event-type",
        "headers" => "--header",
        "rate_limit_per_second" => "--rate-limit",
        field => field,
    }
}

/// The list, if it has any entry.
fn some<T>(list: Vec<T>) -> Option<Vec<T>> {
    Some(list).filter(|list| !list.is_empty())
}

fn wrong(argument: &str, why: &dyn Display) -> Failure {
    Failure::Argument(format!("{argument} cannot be used: {why}"))
}

/// Reads an endpoint's id.
pub(super) fn parse_id(text: &str) -> Result<EndpointId, Failure> {
    Uuid::try_parse(text).map(EndpointId).map_err(|_| {
        Failure::Argument("that is no endpoint id\n  fix: find it with `millrace endpoint list ORG`".to_owned())
    })
}

/// Reads a secret from a file, or from standard input where it is `-`. White space around it is dropped.
pub(super) fn read_secret(file: &str) -> Result<WebhookSecret, Failure> {
    const FILE_BYTES_MAX: u64 = 1024;
    let mut text = Zeroizing::new(String::with_capacity(FILE_BYTES_MAX as usize));
    let read = |from: &mut dyn Read, text: &mut String| from.take(FILE_BYTES_MAX).read_to_string(text);
    let done = match file {
        "-" => read(&mut io::stdin().lock(), &mut text),
        path => File::open(Path::new(path)).and_then(|mut file| read(&mut file, &mut text)),
    };
    done.map_err(|error| Failure::Argument(format!("--secret-file {file} cannot be read: {error}")))?;
    WebhookSecret::parse(text.trim()).map_err(|rule| wrong("the secret in --secret-file", &rule))
}

fn time(text: &str) -> Result<Timestamp, BadArgument> {
    Timestamp::parse_rfc3339(text).ok_or(BadArgument::Timestamp)
}

#[cfg(test)]
mod tests {
    use millrace_webhooks::endpoint::target_policy::TargetPolicy;

    use super::*;

    fn given() -> Given {
        Given { description: None, event_types: Vec::new(), headers: Vec::new(), rate_limit: None }
    }

    fn checked(given: Given) -> EndpointChange {
        let (change, errors) = given.input().unwrap().check(&TargetPolicy::default());
        assert_eq!(errors, []);
        change
    }

    #[test]
    fn what_is_not_given_is_told_from_what_is() {
        let change = checked(given());
        assert!(change.description.is_none() && change.event_types.is_none());
        assert!(change.headers.is_none() && change.rate_limit_per_second.is_none());
        let change = checked(Given {
            description: Some(String::new()),
            event_types: vec!["a.*".to_owned()],
            headers: vec!["X-A:1:2 ".to_owned(), "X-B: b".to_owned()],
            rate_limit: Some(7),
        });
        let headers = [("X-A", "1:2"), ("X-B", "b")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(change.headers.as_deref(), Some(&headers[..]));
        assert_eq!((change.description.as_deref(), change.rate_limit_per_second), (Some(""), Some(Some(7))));
        assert_eq!(change.event_types, Some(Some(vec!["a.*".to_owned()])));
    }

    #[test]
    fn a_refusal_names_the_argument_and_quotes_no_value() {
        for (wrong, argument) in [
            (Given { headers: vec!["hunter2".to_owned()], ..given() }, "--header"),
            (Given { headers: vec!["Host: hunter2".to_owned()], ..given() }, "--header"),
            (Given { headers: vec!["X-A: hunter2\u{1}".to_owned()], ..given() }, "--header"),
            (Given { event_types: vec!["hunter2 ".to_owned()], ..given() }, "--event-type"),
            (Given { description: Some("hunter2\n".to_owned()), ..given() }, "--description"),
        ] {
            let refused = wrong.input().and_then(|input| match input.check(&TargetPolicy::default()).1.first() {
                Some(error) => Err(super::wrong(super::argument(&error.field), &error.message)),
                None => Ok(()),
            });
            let message = refused.unwrap_err().message().unwrap();
            assert!(message.starts_with(argument) && !message.contains("hunter2"), "{message}");
        }
    }
}
