//! The shards: one pinned thread per core, each with its own runtime, listener, auth cache and scratch space.
//!
//! Nothing on a shard blocks, touches a database or takes a lock of ours. A request that needs another thread (a key
//! that this shard does not know, a control request) awaits a oneshot channel. An event that must not be lost crosses
//! to the journal. Shard state is `Rc`, `Cell` and `RefCell`, and no borrow is held across an await.
//!
//! [`post_event`] is the whole way of an event, top to bottom.

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
use millrace_tenant::rate_window::{Decision, RatePolicy};
use millrace_wire::http::{ContentType, Framing, Head};
use millrace_wire::response::{Policy, RateLimit};
use millrace_wire::routes::{Scope, ShardRoute};

use address_sketch::SketchCells;
use connection::{Abort, Connection};
use pending_acks::Accepted;
use shard::Shard;

/// The tenant of a request and what is left of its rate limit, which the response shows.
#[derive(Default)]
struct RequestContext {
    tenant: Option<Rc<Tenant>>,
    decision: Option<(RatePolicy, Decision)>,
}

impl RequestContext {
    /// The request, if it was counted against the organisation's limit of events.
    fn charge(&self) -> Option<Charge> {
        let tenant = self.tenant.as_ref()?;
        let (_, decision) =
            self.decision.filter(|(policy, decision)| *policy == RatePolicy::Events && decision.is_admitted)?;
        Some(Charge { tenant: Rc::clone(tenant), decision })
    }

    /// The rate limit as the response shows it.
    fn rate_limit(&self) -> Option<RateLimit<'_>> {
        let (tenant, (policy, decision)) = self.tenant.as_deref().zip(self.decision)?;
        let Decision { remaining, reset_seconds, .. } = decision;
        let shown = match policy {
            RatePolicy::Events => Policy::Line(&tenant.policy_field),
            RatePolicy::Control | RatePolicy::Keys => Policy::PerMinute(control_limit(policy)),
        };
        Some(RateLimit { name: policy.name(), policy: shown, remaining, reset_seconds })
    }

    /// Uncounts the request if it was refused because there was no room for it.
    fn settle(&mut self, abort: &Abort) {
        if let Abort::Refuse(problem) = abort
            && problem.is_for_want_of_room()
            && let Some(charge) = self.charge()
        {
            self.decision = Some((RatePolicy::Events, charge.give_back()));
        }
    }
}

/// One request that counts against its organisation's limit.
struct Charge {
    tenant: Rc<Tenant>,
    decision: Decision,
}

impl Charge {
    /// Uncounts it, because its event was refused for want of room. Returns what is left of the limit now.
    fn give_back(self) -> Decision {
        let grant = &self.tenant.grant;
        grant.windows.events.give_back(self.decision, grant.rate_limit_per_minute)
    }
}

/// The refusal that a client gets when the journal takes no events.
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
    context: &mut RequestContext,
) -> Result<Accepted, Abort> {
    const BODY_BYTES_MAX: usize = ShardRoute::PostEvent.row().body.max();
    let started = Instant::now();
    let tenant = identify(connection, head, started, context).await?;
    admit(&connection.shard, &tenant, context)?;
    expect_json(head, ContentType::Json)?;
    let body = connection.read_body(head, BODY_BYTES_MAX).await?;
    let key = connection.idempotency_key(head);
    let event = parse(&connection.shard, &tenant, key, None, connection.body(&body))?;
    let id = accept(&connection.shard, event, connection.ack_token())?;
    Ok(Accepted { id, started })
}

/// Finds the tenant of the key that the request carries. Waits only for a key that is not in this shard's cache.
async fn identify<S: Stream>(
    connection: &Connection<S>,
    head: &Head,
    now: Instant,
    context: &mut RequestContext,
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
        // Boxed, so that a request with a cached key does not carry the state of a verification.
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
    context.tenant = Some(Rc::clone(&tenant));
    Ok(tenant)
}

/// Asks the verifier. Requests of this shard with the same key share one question. An address that sent too many wrong
/// keys is throttled first.
///
/// Only a refusal by the verifier counts as a wrong key, once for all requests that shared the question. A key of the
/// wrong shape costs nothing and is no guess, and a key in the cache of refused ones is answered from there. Neither
/// counts, so that one forgotten client with an old key does not lock out the others behind its gateway.
async fn verify(
    shard: &Rc<Shard>,
    hash: auth_cache::KeyHash,
    presented: &[u8; API_KEY_LEN],
    (from, address): (Option<SketchCells>, IpAddr),
) -> Result<Rc<Tenant>, Problem> {
    let id = key::parse(presented).ok_or(Problem::MalformedApiKey)?;
    let addresses = &shard.shared.clients.addresses;
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

/// Waits until a whole number of [`limits::AUTH_REFUSAL_STEP`]s has passed since a lookup began. A known key id takes
/// some microseconds longer than an unknown one; the time of a refusal must not show which it was.
async fn even_out(begun: Instant) {
    let taken = begun.elapsed();
    let steps = taken.as_micros() / limits::AUTH_REFUSAL_STEP.as_micros() + 1;
    monoio::time::sleep((limits::AUTH_REFUSAL_STEP * steps as u32).saturating_sub(taken)).await;
}

/// Verifies a cached key again before its entry expires, while the request goes on. If the verifier is busy nothing
/// happens: the entry stays valid for some time, and the next request tries again.
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
    // In its own task: the verdict must reach the other requests even if this connection ends first.
    let shard = Rc::clone(shard);
    monoio::spawn(async move {
        let verdict = verdict.await.unwrap_or(Verdict::Unavailable(None));
        shard.auth.borrow_mut().complete(hash, verdict, Instant::now());
    });
    Ok(answer)
}

/// Counts the request against its organisation's limit of events a minute.
fn admit(shard: &Shard, tenant: &Tenant, context: &mut RequestContext) -> Result<(), Problem> {
    let limit = tenant.grant.rate_limit_per_minute;
    if limit == 0 {
        return Ok(());
    }
    let started = Instant::now();
    let decision = tenant.grant.windows.events.admit(shard.second(started), limit);
    context.decision = Some((RatePolicy::Events, decision));
    shard.metrics.rate_limit_check_latency_seconds.observe_nanos(started.elapsed().as_nanos() as u64);
    if decision.is_admitted { Ok(()) } else { Err(Problem::RateLimited { retry_after: decision.reset_seconds }) }
}

/// Counts a control request against the limit of its scope, which is the same for every organisation.
fn admit_control(shard: &Shard, tenant: &Tenant, context: &mut RequestContext, scope: Scope) -> Result<(), Problem> {
    let windows = &tenant.grant.windows;
    let (policy, window) = match scope {
        Scope::Keys => (RatePolicy::Keys, &windows.keys),
        Scope::Public | Scope::Ingest | Scope::Control => (RatePolicy::Control, &windows.control),
    };
    let limit = control_limit(policy);
    let decision = window.admit(shard.second(Instant::now()), limit);
    context.decision = Some((policy, decision));
    let retry_after = decision.reset_seconds;
    if decision.is_admitted { Ok(()) } else { Err(Problem::ControlLimited { limit, retry_after }) }
}

/// Control requests that an organisation may send in a minute.
const fn control_limit(policy: RatePolicy) -> u32 {
    match policy {
        RatePolicy::Keys => limits::KEY_REQUESTS_PER_MINUTE_MAX,
        RatePolicy::Events | RatePolicy::Control => limits::CONTROL_REQUESTS_PER_MINUTE_MAX,
    }
}

/// Refuses a request whose head shows that its body cannot be an event, before the body is read.
fn expect_json(head: &Head, wanted: ContentType) -> Result<(), Problem> {
    if head.framing == Framing::None {
        return Err(Problem::LengthRequired);
    }
    refuse_other_media(head, wanted)
}

/// Refuses a body whose declared type is neither JSON nor `wanted`.
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

/// Parses a body into an event, or says what is wrong with it. `of_batch` is the `dedup_id` for an event of a batch
/// that carries none itself.
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

/// Reserves a slot for the event and appends it to the journal. Its 202 may be sent when `ack_token` says that the
/// event is durable. Without a journal the event goes to the writers' queue at once.
fn accept(shard: &Shard, event: Event, ack_token: &Rc<AckToken>) -> Result<EventId, Problem> {
    let id = event.id;
    if let Some(journal) = &shard.journal {
        journal.accept(event, ack_token).map_err(journal_refusal)?;
    } else {
        shard.queue.offer(event).map_err(|_| Problem::QueueFull)?;
        shard.metrics.events_ingested_total.inc();
    }
    Ok(id)
}

/// Counts an invalid batch item.
fn count_invalid(shard: &Shard, kind: ValidationErrorKind) {
    shard.metrics.validation_errors_total.inc(kind);
}
