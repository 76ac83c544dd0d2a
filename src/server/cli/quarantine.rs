//! `millrace quarantine`: lists events that the database refused for their data, stores them again, or drops them.

use clap::{Args, Subcommand};
use serde::Serialize;
use uuid::Uuid;

use millrace_base::limits;
use millrace_store::StoreError;
use millrace_store::quarantine::{QuarantineId, QuarantineQuery, Quarantined, Retried};
use millrace_webhooks::plan::planner::plan_for_any_server;

use super::Invocation;
use super::failure::Failure;
use super::output::{fields, json_line_of, show, show_json, table, to_the_second, write};
use super::session::Session;
use crate::config::Flags;

#[derive(Args)]
#[command(after_help = "\
Examples:
  millrace quarantine list acme
  millrace quarantine show 0197e1c3-0a4f-7d55-b1c2-9e8d7c6b5a40
  millrace quarantine retry --all                 once the cause is gone

A retry stores the event under the id its sender was told, and makes deliveries for the endpoints as they are now.")]
pub struct Quarantine {
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: QuarantineCommand,
}

#[derive(Subcommand)]
enum QuarantineCommand {
    /// List what the database refused, newest first
    List {
        /// Only this organisation's: its name or id
        org: Option<String>,
        /// At most this many
        #[arg(long, value_name = "N", default_value_t = limits::LIST_LIMIT_DEFAULT,
              value_parser = clap::value_parser!(u32).range(1..=i64::from(limits::LIST_LIMIT_MAX)))]
        limit: u32,
    },
    /// Show one event with its payload
    Show {
        /// Its id in the list
        #[arg(value_name = "ID")]
        id: Uuid,
    },
    /// Store events again
    Retry {
        /// Their ids in the list
        #[arg(value_name = "ID", required_unless_present = "all", conflicts_with = "all")]
        ids: Vec<Uuid>,
        /// Everything there is, the oldest first
        #[arg(long)]
        all: bool,
        /// With --all: only this organisation's
        #[arg(long, value_name = "ORG", requires = "all")]
        org: Option<String>,
    },
    /// Delete events for good; they are stored nowhere then
    Drop {
        /// Their ids in the list
        #[arg(value_name = "ID", required = true)]
        ids: Vec<Uuid>,
    },
}

pub fn run(invocation: &Invocation, quarantine: Quarantine) -> Result<(), Failure> {
    let json = quarantine.json;
    let session = Session::open(invocation, Flags::default())?;
    match quarantine.command {
        QuarantineCommand::List { org, limit } => list(&session, org.as_deref(), limit, json),
        QuarantineCommand::Show { id } => show_one(&session, QuarantineId(id), json),
        QuarantineCommand::Retry { ids, all, org } => {
            let mut retries = Retries { session: &session, json, stored: 0, left: 0 };
            if all {
                retries.all(org.as_deref())?;
            }
            for id in ids {
                retries.one(QuarantineId(id))?;
            }
            retries.end()
        }
        QuarantineCommand::Drop { ids } => drop_all(&session, &ids, json),
    }
}

#[derive(Serialize)]
struct RowJson<'a> {
    id: String,
    event_id: String,
    org_id: String,
    r#type: &'a str,
    dedup_id: Option<&'a str>,
    payload_bytes: u64,
    reason: &'a str,
    received_at: String,
    quarantined_at: String,
}

impl<'a> From<&'a Quarantined> for RowJson<'a> {
    fn from(row: &'a Quarantined) -> Self {
        Self {
            id: row.id.to_string(),
            event_id: row.event.to_string(),
            org_id: row.org.to_string(),
            r#type: &row.event_type,
            dedup_id: row.dedup_id.as_deref(),
            payload_bytes: row.payload_bytes,
            reason: &row.reason,
            received_at: row.received_at.to_rfc3339(),
            quarantined_at: row.quarantined_at.to_rfc3339(),
        }
    }
}

#[derive(Serialize)]
struct OutcomeJson {
    id: String,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    deliveries: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

fn list(session: &Session, org: Option<&str>, limit: u32, json: bool) -> Result<(), Failure> {
    let org = org.map(|org| session.done(session.store.organization(org))).transpose()?.map(|org| org.id);
    let query = QuarantineQuery { org, limit, ..QuarantineQuery::default() };
    let (rows, more) = session.done(session.store.quarantined(&query))?;
    if json {
        return show_json(&rows.iter().map(RowJson::from).collect::<Vec<_>>());
    }
    if rows.is_empty() {
        return show("Nothing is in quarantine.\n");
    }
    let cells = |row: &Quarantined| {
        let refused = to_the_second(row.quarantined_at);
        [row.id.to_string(), row.org.to_string(), row.event_type.clone(), refused, printable(&row.reason)]
    };
    let mut text = table(["ID", "ORG", "TYPE", "REFUSED", "REASON"], &rows.iter().map(cells).collect::<Vec<_>>());
    if more {
        text.push_str("There are more: --limit shows up to 1000.\n");
    }
    show(&text)
}

fn show_one(session: &Session, id: QuarantineId, json: bool) -> Result<(), Failure> {
    let (row, payload) = session.done(session.store.quarantined_event(id))?.ok_or_else(|| not_there(id))?;
    if json {
        // The payload is JSON already, and is copied as it was sent.
        let mut document = serde_json::to_vec(&RowJson::from(&row)).expect("strings and numbers");
        document.pop();
        return show(&json_line_of([&document, br#","payload":"#.as_slice(), payload.as_bytes(), b"}"].concat()));
    }
    let bytes = row.payload_bytes.to_string();
    let text = fields(&[
        ("event", &row.event.to_string()),
        ("organisation", &row.org.to_string()),
        ("type", &row.event_type),
        ("dedup_id", row.dedup_id.as_deref().unwrap_or("-")),
        ("received", &row.received_at.to_rfc3339()),
        ("refused", &row.quarantined_at.to_rfc3339()),
        ("reason", &printable(&row.reason)),
        ("payload bytes", &bytes),
    ]);
    show(&format!("{id}\n{text}\n{payload}\n"))
}

/// A run of retries. Each prints its result, and one that fails does not stop the others.
struct Retries<'a> {
    session: &'a Session,
    json: bool,
    stored: u64,
    left: u64,
}

impl Retries<'_> {
    fn all(&mut self, org: Option<&str>) -> Result<(), Failure> {
        let store = &self.session.store;
        let org = org.map(|org| self.session.done(store.organization(org))).transpose()?.map(|org| org.id);
        let mut query = QuarantineQuery { org, oldest_first: true, limit: limits::LIST_LIMIT_MAX, cursor: None };
        loop {
            // Events that stay are behind the cursor, so the loop ends.
            let (rows, more) = self.session.done(store.quarantined(&query))?;
            for row in &rows {
                self.one(row.id)?;
            }
            query.cursor = rows.last().map(|row| (row.quarantined_at, row.id));
            if !more {
                return Ok(());
            }
        }
    }

    /// Retries one. Only an error that concerns all events ends the run, such as a database that is away.
    fn one(&mut self, id: QuarantineId) -> Result<(), Failure> {
        let (outcome, deliveries, reason) = match self.retry(id) {
            Ok(Retried::Stored(deliveries)) => ("stored", Some(deliveries), None),
            Ok(Retried::StoredBefore) => ("stored_before", None, None),
            Ok(Retried::IdTaken) => ("id_taken", None, None),
            Ok(Retried::NotThere) => ("not_there", None, None),
            Err(StoreError::RowRefused(refusal) | StoreError::Unexplained(refusal)) => {
                ("refused", None, Some(refusal.to_string()))
            }
            Err(error) => return self.session.done(Err(error)),
        };
        let is_stored = matches!(outcome, "stored" | "stored_before");
        self.stored += u64::from(is_stored);
        self.left += u64::from(!is_stored);
        if self.json {
            return show_json(&OutcomeJson { id: id.to_string(), outcome, deliveries, reason });
        }
        let said = match (outcome, deliveries, reason) {
            ("stored", Some(deliveries), _) => format!("stored, with {deliveries} deliveries"),
            ("stored_before", ..) => "the same event is stored already; removed from quarantine".to_owned(),
            ("id_taken", ..) => "another event with its id is stored, so this one cannot be; it stays".to_owned(),
            ("not_there", ..) => "is not in quarantine".to_owned(),
            (_, _, reason) => format!("refused again, it stays: {}", printable(&reason.unwrap_or_default())),
        };
        show(&format!("{id}  {said}\n"))
    }

    fn retry(&self, id: QuarantineId) -> Result<Retried, StoreError> {
        let store = &*self.session.store;
        let Some((row, _)) = store.quarantined_event(id)? else { return Ok(Retried::NotThere) };
        let planned = plan_for_any_server(store, row.org, row.event, &row.event_type)?;
        store.retry_quarantined(id, &planned)
    }

    fn end(self) -> Result<(), Failure> {
        if !self.json {
            write(&format!("{} stored, {} not.\n", self.stored, self.left)).map_err(Failure::Output)?;
        }
        if self.left == 0 {
            return Ok(());
        }
        Err(Failure::Refused(format!(
            "{} events are not stored\n  fix: what the reason names, then `millrace quarantine retry` again; or \
             `millrace quarantine drop ID`",
            self.left
        )))
    }
}

fn drop_all(session: &Session, ids: &[Uuid], json: bool) -> Result<(), Failure> {
    let mut missing = None;
    for id in ids.iter().copied().map(QuarantineId) {
        if !session.done(session.store.drop_quarantined(id))? {
            missing.get_or_insert(id);
            continue;
        }
        if json {
            show_json(&OutcomeJson { id: id.to_string(), outcome: "dropped", deliveries: None, reason: None })?;
        } else {
            show(&format!("{id}  dropped\n"))?;
        }
    }
    missing.map_or(Ok(()), |id| Err(not_there(id)))
}

fn not_there(id: QuarantineId) -> Failure {
    Failure::Refused(format!("{id} is not in quarantine\n  fix: find its id with `millrace quarantine list`"))
}

/// Replaces control characters: the database's message may quote an event, and this may be a terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
