//! `millrace endpoint`: where an organisation's events are delivered, beside running servers, which notice a change
//! within a second.
//!
//! Secrets are read from files and printed once, where they are made. URLs and headers may hold passwords: what is
//! wrong with them is said without repeating them.

mod arguments;
mod show;

use std::time::Duration;

use serde::Serialize;
use uuid::Uuid;

use millrace_base::clock::Timestamp;
use millrace_base::event::EndpointId;
use millrace_base::limits;
use millrace_control::{endpoint_document, test_event};
use millrace_store::webhooks::{self, EndpointChange, EndpointRow, KeyFingerprint, NewEndpoint, Rotation, Unreadable};
use millrace_webhooks::endpoint::secret::{SecretBox, WebhookSecret};

use super::Invocation;
use super::failure::Failure;
use super::output::{json_array, show, show_json, show_secret, table, to_the_second};
use super::session::Session;
use crate::config::Flags;
use arguments::{Checked, EndpointCommand, parse_id, read_secret};

pub use arguments::Endpoint;

#[derive(Serialize)]
struct DeletedJson {
    id: String,
    deleted: bool,
}

#[derive(Serialize)]
struct TestJson {
    event_id: String,
    delivery_id: String,
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
            let new = New {
                url: arguments::url(&config, &url)?,
                given: given.check()?,
                enabled: !disabled,
                secret: secret_file.as_deref().map(read_secret).transpose()?,
            };
            create(&Session::with(config)?, &org, new, json)
        }
        EndpointCommand::List { org } => list(&open()?, &org, json),
        EndpointCommand::Show { id } => {
            let id = parse_id(&id)?;
            show::endpoint(&find(&open()?, id)?, json)
        }
        EndpointCommand::Update { id, url, given, all_events, no_headers, no_rate_limit, flags } => {
            let id = parse_id(&id)?;
            let config = invocation.load(flags.0)?.config;
            let given = given.check()?;
            let change = EndpointChange {
                url: url.map(|url| arguments::url(&config, &url)).transpose()?,
                description: given.description,
                event_types: given.event_types.map(Some).or(all_events.then_some(None)),
                headers: given.headers.or(no_headers.then(Vec::new)),
                enabled: None,
                rate_limit_per_second: given.rate_limit.map(Some).or(no_rate_limit.then_some(None)),
            };
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

/// An endpoint to be made.
struct New {
    url: String,
    given: Checked,
    enabled: bool,
    /// `None`: to be generated.
    secret: Option<WebhookSecret>,
}

fn create(session: &Session, org: &str, new: New, json: bool) -> Result<(), Failure> {
    let org = session.done(session.store.organization(org))?;
    let secrets = session.secrets()?;
    let keys = sealing_keys(session, &secrets)?;
    let id = EndpointId(Uuid::now_v7());
    let New { url, given, enabled, secret } = new;
    let secret = secret.map_or_else(WebhookSecret::generate, Ok).map_err(no_randomness)?;
    let new = NewEndpoint {
        id,
        org: org.id,
        url,
        description: given.description.unwrap_or_default(),
        event_types: given.event_types,
        headers: given.headers.unwrap_or_default(),
        enabled,
        rate_limit_per_second: given.rate_limit,
        secret: secrets.seal(id, &secret).map_err(no_randomness)?,
        keys,
    };
    let endpoint = session.done(session.store.create_endpoint(&new))?;
    let text = show::with_secret(&format!("Made an endpoint of {}.", org.name), &endpoint, &secret, json);
    show_secret(&text, id)
}

/// The keys to seal with, where they are the servers'.
fn sealing_keys(session: &Session, secrets: &SecretBox) -> Result<Vec<KeyFingerprint>, Failure> {
    let keys = secrets.fingerprints();
    match session.done(session.store.sealing_key())? {
        Some(key) if !keys.contains(&key) => Err(Failure::Refused(
            "the servers could not sign for the endpoint: its secret would be sealed with another key than theirs\n  fix: set \
             MILLRACE_WEBHOOK_SECRET_KEY as the servers have it, or name their data directory with --data-dir; where \
             their key is lost: `millrace endpoint accept-key`"
                .to_owned(),
        )),
        _ => Ok(keys),
    }
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
        return show(&json_array(&endpoints, |endpoint| endpoint_document(endpoint, None)));
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
    let updated = session.done(session.store.update_endpoint(org, id, change))?;
    show::endpoint(&updated.ok_or_else(|| not_there(id))?, json)
}

fn enable(session: &Session, id: EndpointId, enabled: bool, json: bool) -> Result<(), Failure> {
    update(session, id, &EndpointChange { enabled: Some(enabled), ..EndpointChange::default() }, json)
}

fn delete(session: &Session, id: EndpointId, json: bool) -> Result<(), Failure> {
    let org = match row(session, id)? {
        Ok(endpoint) => endpoint.org,
        Err(unreadable) => unreadable.org,
    };
    if !session.done(session.store.delete_endpoint(org, id))? {
        return Err(not_there(id));
    }
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
    let secrets = session.secrets()?;
    let keys = sealing_keys(session, &secrets)?;
    let secret = secret.map_or_else(WebhookSecret::generate, Ok).map_err(no_randomness)?;
    let sealed = secrets.seal(id, &secret).map_err(no_randomness)?;
    let unusable = secrets.unusable(&present);
    let previous_until = Timestamp::now().plus(overlap);
    let rotation = Rotation { secret: &sealed, keys: &keys, previous_until, unusable: &unusable };
    let rotated = session.done(session.store.rotate_endpoint_secret(present.org, id, rotation))?;
    let endpoint = rotated.ok_or_else(|| not_there(id))?;
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
    if !endpoint.enabled {
        return Err(Failure::Refused(format!(
            "the endpoint is disabled, so nothing is sent to it\n  fix: enable it first: `millrace endpoint enable {id}`"
        )));
    }
    let (event, planned) = test_event(endpoint.org, id, session.done(session.store.time())?);
    session.done(session.store.insert_test(&event, &planned))?;
    if json {
        return show_json(&TestJson { event_id: event.id.to_string(), delivery_id: planned.id.to_string() });
    }
    show(&format!(
        "Stored the test event {}; a running server delivers it.\nWhat came of it: `millrace delivery list {} --endpoint {id} \
         --limit 1`\n",
        event.id, endpoint.org
    ))
}

fn recover(session: &Session, id: EndpointId, created: std::ops::Range<Timestamp>, json: bool) -> Result<(), Failure> {
    let endpoint = find(session, id)?;
    let now = session.done(session.store.time())?;
    let mut recovered = 0;
    // Ends: what is recovered is neither failed nor blocked any more, and what fails again meanwhile was made due later.
    loop {
        let some = session.done(session.store.recover_deliveries(
            endpoint.org,
            id,
            created.clone(),
            limits::RECOVER_CHUNK,
            now,
        ))?;
        recovered += some;
        if some < u64::from(limits::RECOVER_CHUNK) {
            break;
        }
    }
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
    found.filter(is_it).ok_or_else(|| not_there(id))
}

fn not_there(id: EndpointId) -> Failure {
    Failure::Refused(format!("there is no endpoint {id}\n  fix: find its id with `millrace endpoint list ORG`"))
}

#[allow(clippy::needless_pass_by_value, reason = "it is what `map_err` hands over")]
fn no_randomness(error: getrandom::Error) -> Failure {
    Failure::Refused(format!("the operating system gives no random bytes: {error}"))
}
