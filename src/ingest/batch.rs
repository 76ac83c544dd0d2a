//! `POST /api/events/batch`: a JSON array or NDJSON lines; each event gets its own result, in order.
//!
//! The body is cut into items first, and every item is parsed before the first is accepted, so a body that is not a
//! JSON array is refused whole. With an `Idempotency-Key` the ids of the events follow from it ([`batch_key`]). A
//! batch yields to the other connections of its shard every [`BYTES_PER_YIELD`] bytes of parsing, so that it does not
//! hold up small events.

use std::borrow::Cow;
use std::hash::Hasher as _;
use std::rc::Rc;

use millrace_base::event::{Event, EventId};
use millrace_base::limits;
use millrace_base::problem::{FieldError, Problem, reason_phrase};
use millrace_journal::{AckToken, AppendError};
use millrace_metrics::ValidationErrorKind;
use millrace_tenant::auth_cache::Tenant;
use millrace_tenant::rate_window::RatePolicy;
use millrace_wire::http::{ContentType, Head};
use millrace_wire::routes::ShardRoute;

use super::batch_key::Use;
use super::connection::{Abort, Connection};
use super::envelope::skip_value;
use super::{
    Charge, RequestContext, Stream, accept, admit, batch_key, count_invalid, expect_json, identify, journal_refusal,
    parse, work_budget,
};

/// Bytes parsed before the shard's other connections run; about 100 µs of work.
const BYTES_PER_YIELD: usize = 64 * 1024;

/// The outcome of a batch, with the body of its response.
pub(super) enum Outcome {
    /// At least one event was accepted.
    Taken(Vec<u8>),
    /// No event was accepted, each because of its own fault: a problem document.
    NothingTaken(Vec<u8>),
}

/// An event that was accepted, and its charge against the rate limit.
struct Taken {
    id: EventId,
    charge: Option<Charge>,
}

/// Answers a batch.
pub(super) async fn post_events<S: Stream>(
    connection: &mut Connection<S>,
    head: &Head,
    context: &mut RequestContext,
) -> Result<Outcome, Abort> {
    let tenant = identify(connection, head, std::time::Instant::now(), context).await?;
    // One event is counted before the body is read; each further event is counted below.
    admit(&connection.shard, &tenant, context)?;
    expect_json(head, ContentType::Ndjson)?;
    let read = connection.read_body(head, ShardRoute::PostEventBatch.row().body.max()).await;
    let read = read.inspect_err(|abort| context.settle(abort))?;
    let (events, using) = parse_events(connection, head, &tenant, connection.body(&read)).await?;
    let ack_token = Rc::new(AckToken::default());
    let mut is_first = true;
    let mut results: Vec<Result<Taken, Problem>> = events
        .into_iter()
        .map(|event| {
            let event = event?;
            if !std::mem::take(&mut is_first) {
                admit(&connection.shard, &tenant, context)?;
            }
            let charge = context.charge();
            match accept(&connection.shard, event, &ack_token) {
                Ok(id) => Ok(Taken { id, charge }),
                Err(problem) => {
                    give_back(charge, context);
                    Err(problem)
                }
            }
        })
        .collect();
    if let Some(using) = using
        && results.iter().any(Result::is_ok)
    {
        connection.shard.shared.batch_keys.remember(using);
    }
    connection.wait_for_server();
    settle(&ack_token, &mut results, context).await?;
    if results.iter().any(Result::is_ok) {
        return Ok(Outcome::Taken(render(&connection.shard, &results)));
    }
    // Nothing was accepted. If an event was refused only for want of room, the batch gets the refusal that a single
    // event would get, and the client may send all of it again.
    let may_pass = |problem: &&Problem| problem.is_for_want_of_room() || matches!(problem, Problem::RateLimited { .. });
    match results.iter().filter_map(|result| result.as_ref().err()).find(may_pass) {
        Some(problem) => Err(problem.clone().into()),
        None => Ok(Outcome::NothingTaken(render(&connection.shard, &results))),
    }
}

/// Cuts the body into items and parses each: an event, or why it is none. With an `Idempotency-Key` also returns the use
/// of that key for this body.
async fn parse_events<S: Stream>(
    connection: &Connection<S>,
    head: &Head,
    tenant: &Tenant,
    body: &[u8],
) -> Result<(Vec<Result<Event, Problem>>, Option<Use>), Abort> {
    let is_ndjson = head.content_type == ContentType::Ndjson;
    let keys = &connection.shard.shared.batch_keys;
    let mut digest = keys.hasher();
    let mut key = None;
    let mut events: Vec<Result<Event, Problem>> = Vec::new();
    let items = if is_ndjson { lines(body) } else { elements(body)? };
    if items.is_empty() || items.len() > limits::BATCH_EVENTS_MAX {
        count_invalid(&connection.shard, ValidationErrorKind::NotAnObject);
        let message = format!("holds {} events; it must hold 1 to {}", items.len(), limits::BATCH_EVENTS_MAX);
        let field = FieldError { field: "".into(), message: Cow::Owned(message) };
        return Err(Problem::InvalidEvent(vec![field]).into());
    }
    if let Some(raw) = connection.idempotency_key(head) {
        key = Some(batch_key::read(raw).map_err(|why| bad_key(&connection.shard, why))?);
    }
    events.reserve_exact(items.len());
    let mut parsed_bytes = 0;
    for (number, item) in items.into_iter().enumerate() {
        let dedup_id = key.as_deref().map(|key| {
            digest.write(&body[item.clone()]);
            digest.write_usize(item.len());
            batch_key::dedup_id(key, number)
        });
        let event = parse(&connection.shard, tenant, None, dedup_id.as_deref(), &body[item.clone()]);
        if let (Err(Problem::InvalidJson { offset, detail }), false) = (&event, is_ndjson) {
            // One broken element means the body is not a JSON array at all.
            let offset = offset.map(|offset| item.start + offset);
            return Err(Problem::InvalidJson { offset, detail: detail.clone() }.into());
        }
        events.push(event);
        parsed_bytes += item.len();
        if parsed_bytes >= BYTES_PER_YIELD {
            parsed_bytes = 0;
            connection.wait_for_server();
            work_budget::yield_now().await;
        }
    }
    let using = key.map(|key| keys.using(tenant.grant.org, &key, digest.finish()));
    if using.is_some_and(|using| keys.is_for_another(using)) {
        return Err(bad_key(&connection.shard, "came with other events before; a key stands for one batch").into());
    }
    Ok((events, using))
}

/// Waits until every accepted event is durable or refused, and turns the refused ones into refusals.
async fn settle(
    ack_token: &AckToken,
    results: &mut [Result<Taken, Problem>],
    context: &mut RequestContext,
) -> Result<(), Abort> {
    ack_token.settled().await;
    let mut taken = results.iter_mut().filter(|result| result.is_ok());
    let mut next = 0;
    for (position, failure) in ack_token.clear() {
        let AppendError::Refused(why) = failure else { return Err(Abort::Gone) };
        let broken = taken.nth((position - next) as usize).expect("a token settles what was accepted with it");
        if let Ok(Taken { charge, .. }) = std::mem::replace(broken, Err(journal_refusal(why))) {
            give_back(charge, context);
        }
        next = position + 1;
    }
    Ok(())
}

/// Uncounts an event against the rate limit.
fn give_back(charge: Option<Charge>, context: &mut RequestContext) {
    if let Some(charge) = charge {
        context.decision = Some((RatePolicy::Events, charge.give_back()));
    }
}

/// Refuses a batch because of its `Idempotency-Key`.
fn bad_key(shard: &super::Shard, why: &'static str) -> Problem {
    count_invalid(shard, ValidationErrorKind::DedupIdInvalid);
    Problem::InvalidEvent(vec![FieldError { field: "Idempotency-Key".into(), message: why.into() }])
}

/// The body of a 202, or a problem document with the same members if nothing was accepted.
fn render(shard: &super::Shard, results: &[Result<Taken, Problem>]) -> Vec<u8> {
    /// The size of one accepted item, and of the text around all items.
    const ITEM_BYTES: usize = r#"{"id":"00000000-0000-0000-0000-000000000000"},"#.len();
    const FRAME_BYTES: usize = 64;
    #[derive(serde::Serialize)]
    struct BatchResult<'a> {
        #[serde(flatten)]
        refusal: Option<Refusal>,
        accepted: usize,
        rejected: usize,
        results: Vec<Item<'a>>,
    }
    #[derive(serde::Serialize)]
    #[serde(rename_all = "snake_case")]
    enum Item<'a> {
        Id(#[serde(serialize_with = "id_text")] EventId),
        Error { code: &'a str, detail: String },
    }
    /// The members of a problem document.
    #[derive(serde::Serialize)]
    struct Refusal {
        r#type: &'static str,
        title: &'static str,
        status: u16,
        code: &'static str,
        detail: &'static str,
    }
    let accepted = results.iter().filter(|result| result.is_ok()).count();
    let refusal = (accepted == 0).then(|| {
        let row = Problem::InvalidEvent(Vec::new()).row();
        let (status, code) = (row.status, row.code.as_str());
        let detail = "no event of the batch was accepted; `results` says why, one by one";
        Refusal { r#type: "about:blank", title: reason_phrase(status), status, code, detail }
    });
    let items = results.iter().map(|result| match result {
        Ok(taken) => Item::Id(taken.id),
        Err(problem) => {
            shard.metrics.rejected_total.inc(problem);
            Item::Error { code: problem.code().as_str(), detail: item_detail(problem) }
        }
    });
    let body = BatchResult { refusal, accepted, rejected: results.len() - accepted, results: items.collect() };
    let mut text = Vec::with_capacity(FRAME_BYTES + results.len() * ITEM_BYTES);
    serde_json::to_writer(&mut text, &body).expect("writing plain text into memory cannot fail");
    text
}

/// Writes an id as text without allocating a `String`.
fn id_text<S: serde::Serializer>(id: &EventId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(id.0.hyphenated().encode_lower(&mut uuid::Uuid::encode_buffer()))
}

/// A batch item has no `errors` member: its detail names the fields.
fn item_detail(problem: &Problem) -> String {
    match problem {
        Problem::InvalidEvent(fields) => {
            let named: Vec<String> = fields.iter().map(|f| format!("{} {}", f.field, f.message)).collect();
            named.join("; ").trim_start().to_owned()
        }
        other => other.detail().into_owned(),
    }
}

/// The non-empty lines of an NDJSON body. Stops one past the most a batch may hold.
pub fn lines(body: &[u8]) -> Vec<std::ops::Range<usize>> {
    let mut at = 0;
    body.split(|b| *b == b'\n')
        .map(|line| {
            let range = at..at + line.len();
            at = range.end + 1;
            (range, line)
        })
        .filter(|(_, line)| !line.trim_ascii().is_empty())
        .map(|(range, _)| range)
        .take(limits::BATCH_EVENTS_MAX + 1)
        .collect()
}

/// Cuts a JSON array into its elements, checking brackets and commas; the elements are checked as they are
/// parsed. Stops one past the most a batch may hold.
pub fn elements(body: &[u8]) -> Result<Vec<std::ops::Range<usize>>, Problem> {
    let wrong =
        |at: usize, expected: &'static str| Problem::InvalidJson { offset: Some(at), detail: Cow::Borrowed(expected) };
    let space = |mut at: usize| {
        while body.get(at).is_some_and(|b| matches!(b, b' ' | b'\t' | b'\n' | b'\r')) {
            at += 1;
        }
        at
    };
    let mut at = space(0);
    if body.get(at) != Some(&b'[') {
        return Err(wrong(at, "expected an array of events (lines of them are `Content-Type: application/x-ndjson`)"));
    }
    at = space(at + 1);
    let mut found = Vec::new();
    if body.get(at) == Some(&b']') {
        at += 1;
    } else {
        loop {
            let end = skip_value(body, at);
            found.push(at..end);
            at = space(end);
            match body.get(at) {
                Some(b',') if found.len() > limits::BATCH_EVENTS_MAX => return Ok(found),
                Some(b',') => at = space(at + 1),
                Some(b']') => {
                    at += 1;
                    break;
                }
                _ => return Err(wrong(at, "expected `,` or `]` after an event")),
            }
        }
    }
    match space(at) {
        end if end == body.len() => Ok(found),
        junk => Err(wrong(junk, "expected nothing after the array")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(body: &str) -> Option<Vec<&str>> {
        elements(body.as_bytes()).ok().map(|ranges| ranges.into_iter().map(|range| &body[range]).collect())
    }

    #[test]
    fn an_array_is_cut_at_its_own_commas_only() {
        assert_eq!(cut("[]"), Some(vec![]));
        assert_eq!(cut(" [ ] \n"), Some(vec![]));
        assert_eq!(cut(r#"[{"a":[1,2]},{"b":"],["} , 3]"#), Some(vec![r#"{"a":[1,2]}"#, r#"{"b":"],["}"#, "3"]));
        for bad in ["", "{}", "[", "[1", "[1 2]", "[1]]", "[1],", "[{]", "nope", "[\"]"] {
            assert_eq!(cut(bad), None, "{bad}");
        }
        // Broken elements are found when they are parsed; here they only must not run past the end.
        for odd in ["[,]", "[1,]", "[}]", "[{\"a\":]}]", "[\"\\"] {
            let _ = cut(odd);
        }
    }

    #[test]
    fn lines_skip_empty_ones() {
        let body = b"{}\n\r\n  \n[1]\r\nx";
        let found: Vec<&[u8]> = lines(body).into_iter().map(|range| &body[range]).collect();
        assert_eq!(found, [b"{}".as_slice(), b"[1]\r", b"x"]);
    }
}
