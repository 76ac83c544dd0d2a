//! SHARDS: one pinned thread per core, each with its own runtime, listener, auth cache and scratch space.
//!
//! Nothing in here takes a lock, blocks, or touches a database. What must wait for another thread (a key seen
//! for the first time, a control request) is awaited through a oneshot; what must not be lost crosses
//! the journal. Shard state is `Rc`, `Cell` and `RefCell`; no borrow is held across an await.
//!
//! The way of an event is [`post_event`], top to bottom.

mod accept_loop;
mod address_sketch;
pub mod batch;
pub mod batch_key;
pub mod certificates;
pub mod client_identity;
mod connection;
mod connection_table;
pub mod envelope;
mod pending_acks;
pub mod reply;
pub mod shard;
mod stream;
mod tls_stream;
mod wipe;
mod work_budget;

pub use stream::Stream;

use std::net::IpAddr;
use std::rc::Rc;
use std::time::Instant;

use millrace_base::event::{Event, EventId};
use millrace_base::key::{self, API_KEY_LEN, KeyId};
use millrace_base::limits;
use millrace_base::problem::Problem;
use millrace_journal::{AckToken, ClosedReason};
use millrace_metrics::{CacheLookup, ValidationErrorKind};
use millrace_tenant::Verdict;
use millrace_tenant::auth_cache::{self, Lookup, Tenant};
use millrace_tenant::rate_window::{Decision, Minute};
use millrace_wire::http::{ContentType, Framing, Head};
use millrace_wire::routes::{Scope, ShardRoute};

use address_sketch::Cells;
use connection::{Connection, Stop};
use pending_acks::Accepted;
use shard::Shard;

/// Whom a request is from and what is left of their minute, for the answer's fields.
#[derive(Default)]
struct Standing {
    tenant: Option<Rc<Tenant>>,
    decision: Option<(Minute, Decision)>,
}

impl Standing {
    /// What the request has taken of its organisation's minute of events, where that is limited.
    fn charge(&self) -> Option<Charge> {
        let tenant = self.tenant.as_ref()?;
        let (_, decision) =
            self.decision.filter(|(minute, decision)| *minute == Minute::Events && decision.is_admitted)?;
        Some(Charge { tenant: Rc::clone(tenant), decision })
    }

    /// Takes the charge back where the request was refused for want of room.
    fn settle(&mut self, stop: &Stop) {
        if let Stop::Refuse(problem) = stop
            && problem.is_for_want_of_room()
            && let Some(charge) = self.charge()
        {
            self.decision = Some((Minute::Events, charge.give_back()));
        }
    }
}

/// One request of an organisation's minute.
struct Charge {
    tenant: Rc<Tenant>,
    decision: Decision,
}

impl Charge {
    /// Its event was refused for want of room. Returns what is left of the minute now.
    fn give_back(self) -> Decision {
        let grant = &self.tenant.grant;
        grant.minutes.events.give_back(self.decision, grant.rate_limit_per_minute)
    }
}

/// What a client is told where the journal takes nothing.
fn journal_refusal(why: ClosedReason) -> Problem {
    match why {
        ClosedReason::Full => Problem::QueueFull,
        why => Problem::JournalUnavailable(why.reason()),
    }
}

/// One event: identify → admit → parse → accept. The body is read only for a known organisation within its limit.
async fn post_event<S: Stream>(
    connection: &mut Connection<S>,
    head: &Head,
    standing: &mut Standing,
) -> Result<Accepted, Stop> {
    let started = Instant::now();
    let tenant = identify(connection, head, started, standing).await?;
    admit(&connection.shard, &tenant, standing)?;
    expect_json(head, ContentType::Json)?;
    let body = connection.read_body(head, ShardRoute::PostEvent.row().body.max()).await?;
    let key = connection.idempotency_key(head);
    let event = parse(&connection.shard, &tenant, key, None, connection.body(&body))?;
    let id = accept(&connection.shard, event, connection.ticket())?;
    Ok(Accepted { id, started })
}

/// Finds out whose key the request carries. Waits only for a key this shard has not seen lately.
async fn identify<S: Stream>(
    connection: &Connection<S>,
    head: &Head,
    now: Instant,
    standing: &mut Standing,
) -> Result<Rc<Tenant>, Problem> {
    let shard = &connection.shard;
    let presented = head.api_key.ok_or(Problem::MissingApiKey)?.slice(connection.request());
    let presented: &[u8; API_KEY_LEN] = presented.try_into().map_err(|_| match presented {
        b"" => Problem::MissingApiKey,
        _ => Problem::MalformedApiKey,
    })?;
    let (hash, lookup) = {
        let mut cache = shard.auth.borrow_mut();
        let hash = cache.hash(presented);
        (hash, cache.lookup(hash, now))
    };
    let is_miss = matches!(lookup, Lookup::Miss);
    shard.metrics.cache_lookups_total.inc(if is_miss { CacheLookup::Miss } else { CacheLookup::Hit });
    let tenant = match lookup {
        Lookup::Hit(tenant) => tenant,
        Lookup::Aging(tenant) => {
            refresh(shard, hash, presented);
            tenant
        }
        Lookup::Refused => return Err(Problem::InvalidApiKey),
        // Boxed: the way of a cached key should not carry the state of the other.
        Lookup::Miss => {
            connection.wait_for_server();
            let from = (connection.client(head), connection.client_address(head));
            Box::pin(verify(shard, hash, presented, from)).await?
        }
    };
    shard.metrics.auth_latency_seconds.observe_nanos(now.elapsed().as_nanos() as u64);
    if tenant.grant.is_org_disabled {
        return Err(Problem::OrgDisabled);
    }
    standing.tenant = Some(Rc::clone(&tenant));
    Ok(tenant)
}

/// Asks the verifier, together with all requests of this shard that carry the same key. An address that sent many wrong
/// ones lately has to wait.
///
/// Counted is what the verifier refused, once for all who asked together. A key of the wrong shape costs nothing and is
/// no guess, and one that was refused lately is answered from the cache: neither counts, so that one forgotten client
/// with an old key does not shut out the others behind its gateway.
async fn verify(
    shard: &Rc<Shard>,
    hash: auth_cache::KeyHash,
    presented: &[u8; API_KEY_LEN],
    (from, address): (Option<Cells>, IpAddr),
) -> Result<Rc<Tenant>, Problem> {
    let id = key::parse(presented).ok_or(Problem::MalformedApiKey)?;
    let addresses = &shard.neighbours.clients.addresses;
    if let Some(wait) = from.and_then(|from| addresses.must_wait(from, Instant::now())) {
        return Err(Problem::AuthThrottled { retry_after: wait.as_secs() as u32 + 1 });
    }
    let begun = Instant::now();
    let under_way = shard.auth.borrow_mut().join(hash);
    let is_first = under_way.is_none();
    let answer = match under_way {
        Some(joined) => joined?,
        None => begin_verification(shard, hash, id, presented)?,
    };
    let verdict = answer.await.unwrap_or(Err(Problem::ShuttingDown));
    if verdict.as_ref().is_err_and(|problem| *problem == Problem::InvalidApiKey) {
        if is_first {
            shard.log_wrong_key(id, address);
            if let Some(from) = from {
                addresses.note_failure(from, Instant::now());
            }
        }
        even_out(begun).await;
    }
    verdict
}

/// Waits until whole steps have passed since a lookup began, so that the time of a refusal does not tell what was found: a
/// known id takes longer than an unknown one by some microseconds.
async fn even_out(begun: Instant) {
    let taken = begun.elapsed();
    let steps = taken.as_micros() / limits::AUTH_REFUSAL_STEP.as_micros() + 1;
    monoio::time::sleep((limits::AUTH_REFUSAL_STEP * steps as u32).saturating_sub(taken)).await;
}

/// Has a key in use verified again before it expires, beside the request. Nothing comes of it where the verifier is
/// busy: the entry is good for a while yet, and the next request tries again.
fn refresh(shard: &Rc<Shard>, hash: auth_cache::KeyHash, presented: &[u8; API_KEY_LEN]) {
    if let Some(id) = key::parse(presented)
        && !shard.auth.borrow().is_pending(hash)
    {
        let _ = begin_verification(shard, hash, id, presented);
    }
}

fn begin_verification(
    shard: &Rc<Shard>,
    hash: auth_cache::KeyHash,
    id: KeyId,
    presented: &[u8; API_KEY_LEN],
) -> Result<auth_cache::Awaited, Problem> {
    let verdict = shard.verifier.submit(id, presented.to_vec().into())?;
    let answer = shard.auth.borrow_mut().begin(hash, id);
    // A task of its own: the verdict must reach the others even if this connection ends first.
    let shard = Rc::clone(shard);
    monoio::spawn(async move {
        let verdict = verdict.await.unwrap_or(Verdict::Unavailable(None));
        shard.auth.borrow_mut().complete(hash, verdict, Instant::now());
    });
    Ok(answer)
}

/// Counts the request against its organisation's minute.
fn admit(shard: &Shard, tenant: &Tenant, standing: &mut Standing) -> Result<(), Problem> {
    let limit = tenant.grant.rate_limit_per_minute;
    if limit == 0 {
        return Ok(());
    }
    let started = Instant::now();
    let decision = tenant.grant.minutes.events.admit(shard.second(started), limit);
    standing.decision = Some((Minute::Events, decision));
    shard.metrics.rate_limit_check_latency_seconds.observe_nanos(started.elapsed().as_nanos() as u64);
    if decision.is_admitted { Ok(()) } else { Err(Problem::RateLimited { retry_after: decision.reset_seconds }) }
}

/// Counts a control request against a minute of its own, which every organisation has.
fn admit_control(shard: &Shard, tenant: &Tenant, standing: &mut Standing, scope: Scope) -> Result<(), Problem> {
    let minutes = &tenant.grant.minutes;
    let (minute, window) = match scope {
        Scope::Keys => (Minute::Keys, &minutes.keys),
        Scope::Public | Scope::Ingest | Scope::Control => (Minute::Control, &minutes.control),
    };
    let limit = control_limit(minute);
    let decision = window.admit(shard.second(Instant::now()), limit);
    standing.decision = Some((minute, decision));
    let retry_after = decision.reset_seconds;
    if decision.is_admitted { Ok(()) } else { Err(Problem::ControlLimited { limit, retry_after }) }
}

/// Requests of a minute that is the same for every organisation.
const fn control_limit(minute: Minute) -> u32 {
    match minute {
        Minute::Keys => limits::KEY_REQUESTS_PER_MINUTE_MAX,
        Minute::Events | Minute::Control => limits::CONTROL_REQUESTS_PER_MINUTE_MAX,
    }
}

/// Refuses a body that cannot be an event before it is read.
fn expect_json(head: &Head, wanted: ContentType) -> Result<(), Problem> {
    if head.framing == Framing::None {
        return Err(Problem::LengthRequired);
    }
    refuse_other_media(head, wanted)
}

/// Refuses a body that is not declared to be JSON, or what is wanted instead.
fn refuse_other_media(head: &Head, wanted: ContentType) -> Result<(), Problem> {
    if head.is_encoded {
        return Err(Problem::UnsupportedContentCoding);
    }
    match head.content_type {
        ContentType::Json | ContentType::Missing => Ok(()),
        declared if declared == wanted => Ok(()),
        _ => Err(Problem::UnsupportedMediaType(match wanted {
            ContentType::Ndjson => "application/json, application/x-ndjson",
            ContentType::Json | ContentType::Missing | ContentType::Other => "application/json",
        })),
    }
}

/// Makes an event of a body, or says what is wrong with it. `of_batch` is the `dedup_id` of an event that has none.
fn parse(
    shard: &Shard,
    tenant: &Tenant,
    idempotency_key: Option<&[u8]>,
    of_batch: Option<&str>,
    body: &[u8],
) -> Result<Event, Problem> {
    shard.metrics.request_body_bytes_total.add(body.len() as u64);
    let mut scratch = shard.scratch.borrow_mut();
    let envelope = envelope::parse(&mut scratch, body, idempotency_key).map_err(|invalid| {
        shard.metrics.validation_errors_total.inc(invalid.kind);
        invalid.problem
    })?;
    let org = tenant.grant.org;
    let dedup_id = envelope.dedup_id.as_deref().or(of_batch);
    let (received_at, id) = match dedup_id {
        None => shard.ids.next(),
        Some(dedup_id) => (millrace_base::clock::Timestamp::now(), EventId::derived(org, dedup_id)),
    };
    Ok(Event::new(id, org, received_at, &envelope.event_type, dedup_id, envelope.payload))
}

/// Takes a slot for the event and appends it to the journal; its 202 may leave when `ticket` says that it is durable.
/// Without a journal it is handed over at once.
fn accept(shard: &Shard, event: Event, ticket: &Rc<AckToken>) -> Result<EventId, Problem> {
    let id = event.id;
    if let Some(journal) = &shard.journal {
        journal.accept(event, ticket).map_err(journal_refusal)?;
    } else {
        shard.queue.offer(event).map_err(|_| Problem::QueueFull)?;
        shard.metrics.events_ingested_total.inc();
    }
    Ok(id)
}

/// What a refused batch item counts as.
fn count_invalid(shard: &Shard, kind: ValidationErrorKind) {
    shard.metrics.validation_errors_total.inc(kind);
}
