//! `millrace endpoint`: manages webhook endpoints of any organisation. Running servers notice a change within a second.
//!
//! The checks and the work are those of the API ([`EndpointInput`], [`EndpointService`]). Secrets are read from files and
//! printed once, where they are made. URLs and headers may hold passwords, so no message repeats them.

mod arguments;
mod show;

use std::time::Duration;

use serde::Serialize;
use uuid::Uuid;

use millrace_base::clock::Timestamp;
use millrace_base::event::EndpointId;
use millrace_base::limits;
use millrace_control::{EndpointDocument, EndpointError, EndpointInput, EndpointService};
use millrace_store::webhooks::{self, EndpointChange, EndpointRow, Unreadable};
use millrace_webhooks::endpoint::secret::WebhookSecret;

use super::Invocation;
use super::failure::Failure;
use super::output::{show, show_json, show_secret, table, to_the_second};
use super::session::Session;
use crate::config::Flags;
use arguments::{EndpointCommand, check, parse_id, read_secret};

pub use arguments::Endpoint;

#[derive(Serialize)]
struct DeletedJson {
    id: String,
    deleted: bool,
}

#[derive(Serialize)]
struct AcceptedJson {
    /// Endpoints whose secrets this key does not open.
    to_rotate: Vec<String>,
}

#[derive(Serialize)]
struct RecoveredJson {
    recovered: u64,
}

pub fn run(invocation: &Invocation, endpoint: Endpoint) -> Result<(), Failure> {
    let json = endpoint.json;
    let open = || Session::open(invocation, Flags::default());
    match endpoint.command {
        EndpointCommand::Create { org, url, given, disabled, secret_file, flags } => {
            let config = invocation.load(flags.0)?.config;
            let input = EndpointInput { url: Some(url), enabled: Some(!disabled), ..given.input()? };
            let given = check(&config, input)?;
            let secret = secret_file.as_deref().map(read_secret).transpose()?;
            create(&Session::with(config)?, &org, given, secret, json)
        }
        EndpointCommand::List { org } => list(&open()?, &org, json),
        EndpointCommand::Show { id } => {
            let id = parse_id(&id)?;
            show::endpoint(&find(&open()?, id)?, json)
        }
        EndpointCommand::Update { id, url, given, all_events, no_headers, no_rate_limit, flags } => {
            let id = parse_id(&id)?;
            let config = invocation.load(flags.0)?.config;
            let given = given.input()?;
            let input = EndpointInput {
                url,
                event_types: given.event_types.or(all_events.then_some(None)),
                headers: given.headers.or(no_headers.then_some(None)),
                rate_limit_per_second: given.rate_limit_per_second.or(no_rate_limit.then_some(None)),
                ..given
            };
            let change = check(&config, input)?;
            update(&Session::with(config)?, id, &change, json)
        }
        EndpointCommand::Enable { id } => enable(&open()?, parse_id(&id)?, true, json),
        EndpointCommand::Disable { id } => enable(&open()?, parse_id(&id)?, false, json),
        EndpointCommand::Delete { id } => delete(&open()?, parse_id(&id)?, json),
        EndpointCommand::RotateSecret { id, secret_file, overlap, flags } => {
            let id = parse_id(&id)?;
            let secret = secret_file.as_deref().map(read_secret).transpose()?;
            rotate_secret(&Session::open(invocation, flags.0)?, id, secret, overlap.0, json)
        }
        EndpointCommand::AcceptKey { flags } => accept_key(&Session::open(invocation, flags.0)?, json),
        EndpointCommand::Test { id } => test(&open()?, parse_id(&id)?, json),
        EndpointCommand::Recover { id, since, until } => {
            // The clock that made the newest may have been ahead of what it says now.
            let until = until.unwrap_or(Timestamp::MAX);
            recover(&open()?, parse_id(&id)?, since..until, json)
        }
    }
}

/// The service of the API, on this command's store.
fn service(session: &Session) -> EndpointService<'_> {
    EndpointService { store: &*session.store, metrics: None }
}

/// Passes the service's answer on, or says what to do about an endpoint where there is none.
fn done<T>(session: &Session, id: EndpointId, answer: Result<T, EndpointError>) -> Result<T, Failure> {
    answer.map_err(|error| match error {
        EndpointError::NotFound => not_found(id),
        EndpointError::Disabled => {
            Failure::Refused(format!("{error}\n  fix: enable it first: `millrace endpoint enable {id}`"))
        }
        EndpointError::ForeignKey => Failure::Refused(format!(
            "{error}\n  fix: set MILLRACE_WEBHOOK_SECRET_KEY as the servers have it, or name their data directory with \
             --data-dir; where their key is lost: `millrace endpoint accept-key`"
        )),
        EndpointError::Randomness(_) => Failure::Refused(error.to_string()),
        EndpointError::Store(error) => session.explain(&error),
    })
}

fn create(
    session: &Session,
    org: &str,
    given: EndpointChange,
    secret: Option<WebhookSecret>,
    json: bool,
) -> Result<(), Failure> {
    let org = session.done(session.store.organization(org))?;
    let created = service(session).create(org.id, given, secret, &session.secrets()?);
    // No answer about a new endpoint names one, so the id is never shown.
    let (endpoint, secret) = done(session, EndpointId(Uuid::nil()), created)?;
    let text = show::with_secret(&format!("Made an endpoint of {}.", org.name), &endpoint, &secret, json);
    show_secret(&text, endpoint.id)
}

/// Makes the configured key the one that secrets are sealed with.
fn accept_key(session: &Session, json: bool) -> Result<(), Failure> {
    let secrets = session.secrets()?;
    let key = *secrets.fingerprints().first().expect("a box has a key");
    session.done(session.store.accept_sealing_key(key))?;
    let mut to_rotate = Vec::new();
    let mut after = None;
    loop {
        let page = session.done(session.store.all_endpoints(after, limits::ENDPOINTS_PAGE))?;
        let is_last = page.len() < limits::ENDPOINTS_PAGE as usize;
        after = page.last().map(|row| row.as_ref().map_or_else(|unreadable| unreadable.id, |endpoint| endpoint.id));
        let closed = page.into_iter().flatten().filter(|endpoint| secrets.open(endpoint.id, &endpoint.secret).is_err());
        to_rotate.extend(closed.map(|endpoint| endpoint.id.to_string()));
        if is_last {
            break;
        }
    }
    if json {
        return show_json(&AcceptedJson { to_rotate });
    }
    let opened = if to_rotate.is_empty() {
        "It opens the secrets of all endpoints.\n".to_owned()
    } else {
        format!(
            "It cannot open the secrets of these; what is due for them waits until `millrace endpoint rotate-secret ID`:\n{}\n",
            to_rotate.join("\n")
        )
    };
    show(&format!("Secrets are sealed with this key from now on; it belongs on every server.\n{opened}"))
}

fn list(session: &Session, org: &str, json: bool) -> Result<(), Failure> {
    let org = session.done(session.store.organization(org))?;
    let (endpoints, unreadable): (Vec<_>, Vec<_>) =
        session.done(session.store.endpoints(org.id))?.into_iter().partition(Result::is_ok);
    let endpoints: Vec<webhooks::Endpoint> = endpoints.into_iter().flatten().collect();
    let unreadable: Vec<Unreadable> = unreadable.into_iter().filter_map(Result::err).collect();
    if json {
        return show_json(&endpoints.iter().map(EndpointDocument::new).collect::<Vec<_>>());
    }
    if endpoints.is_empty() && unreadable.is_empty() {
        return show("The organisation has no endpoint; make one with `millrace endpoint create ORG URL`.\n");
    }
    let row = |endpoint: &webhooks::Endpoint| {
        [endpoint.id.to_string(), show::state(endpoint), show::events(endpoint), endpoint.url.clone()]
    };
    let out = |row: &Unreadable| [row.id.to_string(), "unreadable".to_owned(), "-".to_owned(), "-".to_owned()];
    let rows = endpoints.iter().map(row).chain(unreadable.iter().map(out));
    show(&table(["ID", "STATE", "EVENTS", "URL"], &rows.collect::<Vec<_>>()))
}

fn update(session: &Session, id: EndpointId, change: &EndpointChange, json: bool) -> Result<(), Failure> {
    let org = find(session, id)?.org;
    show::endpoint(&done(session, id, service(session).update(org, id, change))?, json)
}

fn enable(session: &Session, id: EndpointId, enabled: bool, json: bool) -> Result<(), Failure> {
    update(session, id, &EndpointChange { enabled: Some(enabled), ..EndpointChange::default() }, json)
}

fn delete(session: &Session, id: EndpointId, json: bool) -> Result<(), Failure> {
    let org = match row(session, id)? {
        Ok(endpoint) => endpoint.org,
        Err(unreadable) => unreadable.org,
    };
    done(session, id, service(session).delete(org, id))?;
    if json {
        show_json(&DeletedJson { id: id.to_string(), deleted: true })
    } else {
        show(&format!("Deleted the endpoint {id}; what it had pending fails.\n"))
    }
}

fn rotate_secret(
    session: &Session,
    id: EndpointId,
    secret: Option<WebhookSecret>,
    overlap: Duration,
    json: bool,
) -> Result<(), Failure> {
    let present = find(session, id)?;
    let rotated = service(session).rotate_secret((present.org, id), secret, overlap, &session.secrets()?);
    let (endpoint, secret) = done(session, id, rotated)?;
    let said = match &endpoint.previous_secret {
        Some((_, until)) => {
            format!("Replaced the secret of {id}; the one before signs too until {}.", to_the_second(*until))
        }
        None => format!("Replaced the secret of {id}; the one before cannot be opened and signs no more."),
    };
    show_secret(&show::with_secret(&said, &endpoint, &secret, json), id)
}

fn test(session: &Session, id: EndpointId, json: bool) -> Result<(), Failure> {
    let endpoint = find(session, id)?;
    let sent = done(session, id, service(session).test(&endpoint))?;
    if json {
        return show_json(&sent);
    }
    show(&format!(
        "Stored the test event {}; a running server delivers it.\nWhat came of it: `millrace delivery list {} --endpoint {id} \
         --limit 1`\n",
        sent.event_id, endpoint.org
    ))
}

fn recover(session: &Session, id: EndpointId, created: std::ops::Range<Timestamp>, json: bool) -> Result<(), Failure> {
    let endpoint = find(session, id)?;
    let recovered = service(session).recover((endpoint.org, id), &created, |_| false);
    let (recovered, _) = done(session, id, recovered)?;
    if json {
        show_json(&RecoveredJson { recovered })
    } else {
        show(&format!("{recovered} deliveries are due again.\n"))
    }
}

/// An endpoint of any organisation.
fn find(session: &Session, id: EndpointId) -> Result<webhooks::Endpoint, Failure> {
    row(session, id)?.map_err(|Unreadable { why, .. }| {
        Failure::Refused(format!(
            "the endpoint {id} cannot be read: {why}\n  fix: mend its row in the table `endpoints`, or delete it: `millrace \
             endpoint delete {id}`"
        ))
    })
}

fn row(session: &Session, id: EndpointId) -> Result<EndpointRow, Failure> {
    let before = EndpointId(Uuid::from_u128(id.0.as_u128().saturating_sub(1)));
    let found = session.done(session.store.all_endpoints(Some(before), 1))?.pop();
    let is_it = |row: &EndpointRow| row.as_ref().map_or_else(|unreadable| unreadable.id, |endpoint| endpoint.id) == id;
    found.filter(is_it).ok_or_else(|| not_found(id))
}

fn not_found(id: EndpointId) -> Failure {
    Failure::Refused(format!("there is no endpoint {id}\n  fix: find its id with `millrace endpoint list ORG`"))
}
