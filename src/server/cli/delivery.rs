//! `millrace delivery`: lists deliveries with their result, and retries one.

use clap::{Args, Subcommand};
use uuid::Uuid;

use millrace_base::event::{DeliveryId, EndpointId};
use millrace_base::limits;
use millrace_control::DeliveryDocument;
use millrace_store::webhooks::{DeliveryQuery, DeliveryRecord, DeliveryStatus};
use millrace_webhooks::delivery::outcome::split_recorded;

use super::Invocation;
use super::bad_argument::BadArgument;
use super::failure::Failure;
use super::output::{show, show_json, table, to_the_second};
use super::session::Session;
use crate::config::Flags;

#[derive(Args)]
#[command(after_help = "\
Examples:
  millrace delivery list acme --status failed
  millrace delivery list acme --json | jq '.[].attempts[-1]'
  millrace delivery retry acme 0197e1c3-0a4f-7d55-b1c2-9e8d7c6b5a40")]
pub struct Delivery {
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: DeliveryCommand,
}

#[derive(Subcommand)]
enum DeliveryCommand {
    /// List an organisation's deliveries, newest first
    List {
        /// The organisation's name or id
        org: String,
        /// Only pending, delivered, failed or blocked ones
        #[arg(long, value_parser = status)]
        status: Option<DeliveryStatus>,
        /// Only those to the endpoint with this id
        #[arg(long, value_name = "ID")]
        endpoint: Option<Uuid>,
        /// At most this many
        #[arg(long, value_name = "N", default_value_t = limits::LIST_LIMIT_DEFAULT,
              value_parser = clap::value_parser!(u32).range(1..=i64::from(limits::LIST_LIMIT_MAX)))]
        limit: u32,
    },
    /// Make a delivery again, at once, whatever came of it
    Retry {
        /// The organisation's name or id
        org: String,
        /// The delivery's id
        #[arg(value_name = "ID")]
        id: Uuid,
    },
}

pub fn run(invocation: &Invocation, delivery: Delivery) -> Result<(), Failure> {
    let json = delivery.json;
    let session = Session::open(invocation, Flags::default())?;
    match delivery.command {
        DeliveryCommand::List { org, status, endpoint, limit } => {
            let query = DeliveryQuery { status, endpoint: endpoint.map(EndpointId), cursor: None, limit };
            list(&session, &org, query, json)
        }
        DeliveryCommand::Retry { org, id } => retry(&session, &org, DeliveryId(id), json),
    }
}

fn list(session: &Session, org: &str, mut query: DeliveryQuery, json: bool) -> Result<(), Failure> {
    let org = session.done(session.store.organization(org))?;
    let mut records: Vec<DeliveryRecord> = Vec::new();
    // The store cuts a page short where it is too large or takes too long.
    loop {
        let (page, next) = session.done(session.store.deliveries(org.id, &query))?;
        query.limit -= page.len() as u32;
        query.cursor = next;
        records.extend(page);
        if next.is_none() || query.limit == 0 {
            break;
        }
    }
    if json {
        return show_json(&records.iter().map(DeliveryDocument::new).collect::<Vec<_>>());
    }
    if records.is_empty() {
        return show("There is no such delivery.\n");
    }
    let headings = ["ID", "STATUS", "EVENT", "ENDPOINT", "ATTEMPTS", "LAST", "NEXT"];
    show(&table(headings, &records.iter().map(row).collect::<Vec<_>>()))
}

/// A line of the table. It leaves out receivers' answers and the details of errors, which may quote them: receivers are
/// untrusted, and this may be a terminal.
fn row(record: &DeliveryRecord) -> [String; 7] {
    let delivery = &record.delivery;
    let last = record.attempts.last().map_or("-".to_owned(), |attempt| match (&attempt.error, attempt.status_code) {
        (Some(error), _) => split_recorded(error).0.to_owned(),
        (None, Some(status)) => status.to_string(),
        (None, None) => "-".to_owned(),
    });
    [
        delivery.id.to_string(),
        delivery.status.as_str().to_owned(),
        delivery.event.to_string(),
        delivery.endpoint.to_string(),
        delivery.attempts_made.to_string(),
        last,
        delivery.next_attempt_at.map_or("-".to_owned(), to_the_second),
    ]
}

fn retry(session: &Session, org: &str, id: DeliveryId, json: bool) -> Result<(), Failure> {
    let org = session.done(session.store.organization(org))?;
    let not_there = || {
        Failure::Refused(format!(
            "there is no delivery {id} of this organisation\n  fix: find its id with `millrace delivery list ORG`"
        ))
    };
    let record = session.done(session.store.delivery(org.id, id))?.ok_or_else(not_there)?;
    let due = session.done(session.store.time())?;
    let retried = session.done(session.store.retry_delivery(org.id, id, due))?.ok_or_else(not_there)?;
    if json {
        let record = DeliveryRecord { delivery: retried, ..record };
        return show_json(&DeliveryDocument::new(&record));
    }
    show(&format!("The delivery {id} is due; a running server makes it.\n"))
}

fn status(text: &str) -> Result<DeliveryStatus, BadArgument> {
    DeliveryStatus::parse(text).ok_or(BadArgument::DeliveryStatus)
}
