//! `POST /api/events/batch`: a JSON array or NDJSON lines, each item answered for itself, in order.
//!
//! The body is cut into items first and every item is parsed before the first is accepted, so a body that is
//! not a JSON array is refused whole. The shard goes back to its other connections every
//! [`BYTES_PER_TURN`] bytes of parsing: a large batch must not hold up small events.

use std::borrow::Cow;
use std::rc::Rc;
use std::time::Duration;

use super::connection::{Connection, Stop};
use super::envelope::skip_value;
use super::http::{ContentType, Head};
use super::{Standing, Stream, accept, admit, count_invalid, expect_json, identify, parse};
use crate::event::{Event, EventId};
use crate::handoff::journal::{Ticket, Trouble};
use crate::limits;
use crate::metrics::ValidationErrorKind;
use crate::problem::{FieldError, Problem};

/// Parsed between two turns of the other connections; about 100 µs.
const BYTES_PER_TURN: usize = 64 * 1024;
/// Turns between two looks of the runtime at its timers, for which it finds time only when no task is ready: batches
/// that only yielded to each other would stop every deadline of the shard.
const TURNS_PER_TICK: usize = 8;

/// Answers a batch with the body of its 202.
pub(super) async fn post_events<S: Stream>(
    connection: &mut Connection<S>,
    head: &Head,
    standing: &mut Standing,
) -> Result<Vec<u8>, Stop> {
    let tenant = identify(connection, head, std::time::Instant::now(), standing).await?;
    // One request of the minute is taken before the body is read; each further event takes its own below.
    admit(&connection.shard, &tenant, standing)?;
    expect_json(head, ContentType::Ndjson)?;
    let read = connection.read_body(head, limits::BATCH_BODY_BYTES_MAX).await?;
    let is_ndjson = head.content_type == ContentType::Ndjson;
    let mut events: Vec<Result<Event, Problem>> = Vec::new();
    {
        let body = connection.body(&read);
        let items = if is_ndjson { lines(body) } else { elements(body)? };
        if items.is_empty() || items.len() > limits::BATCH_EVENTS_MAX {
            count_invalid(&connection.shard, ValidationErrorKind::NotAnObject);
            let message = format!("holds {} events; it must hold 1 to {}", items.len(), limits::BATCH_EVENTS_MAX);
            let field = FieldError { field: "".into(), message: Cow::Owned(message) };
            return Err(Problem::InvalidEvent(vec![field]).into());
        }
        events.reserve_exact(items.len());
        let (mut parsed_bytes, mut turns) = (0, 0);
        for item in items {
            let event = parse(&connection.shard, &tenant, None, &body[item.clone()]);
            if let (Err(Problem::InvalidJson { offset, detail }), false) = (&event, is_ndjson) {
                // One broken element means the body is not a JSON array at all.
                let offset = offset.map(|offset| item.start + offset);
                return Err(Problem::InvalidJson { offset, detail: detail.clone() }.into());
            }
            events.push(event);
            parsed_bytes += item.len();
            if parsed_bytes >= BYTES_PER_TURN {
                parsed_bytes = 0;
                turns += 1;
                connection.wait_for_server();
                if turns % TURNS_PER_TICK == 0 {
                    monoio::time::sleep(Duration::ZERO).await;
                } else {
                    turn().await;
                }
            }
        }
    }
    let ticket = Rc::new(Ticket::default());
    let mut is_first = true;
    let mut results: Vec<Result<_, Problem>> = events
        .into_iter()
        .map(|event| {
            let event = event?;
            if !std::mem::take(&mut is_first) {
                admit(&connection.shard, &tenant, standing)?;
            }
            accept(&connection.shard, event, &ticket)
        })
        .collect();
    connection.wait_for_server();
    ticket.settled().await;
    let mut taken = results.iter_mut().filter(|result| result.is_ok());
    let mut next = 0;
    for (position, trouble) in ticket.clear() {
        let Trouble::Refused(why) = trouble else { return Err(Stop::Gone) };
        let broken = taken.nth((position - next) as usize).expect("a ticket settles what was accepted with it");
        *broken = Err(why.into());
        next = position + 1;
    }
    // Nothing of it was taken, for want of room: the clear no that a single event would get.
    if let Some(Err(problem @ (Problem::QueueFull | Problem::JournalUnavailable(_) | Problem::RateLimited { .. }))) =
        results.first()
        && results.iter().all(Result::is_err)
    {
        return Err(problem.clone().into());
    }
    Ok(render(&connection.shard, &results))
}

fn render(shard: &super::Shard, results: &[Result<EventId, Problem>]) -> Vec<u8> {
    /// Of one item that was accepted, and of what is around all of them.
    const ITEM_BYTES: usize = r#"{"id":"00000000-0000-0000-0000-000000000000"},"#.len();
    const FRAME_BYTES: usize = 64;
    #[derive(serde::Serialize)]
    struct Body<'a> {
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
    let accepted = results.iter().filter(|result| result.is_ok()).count();
    let items = results.iter().map(|result| match result {
        Ok(id) => Item::Id(*id),
        Err(problem) => {
            shard.metrics.rejected_total.inc(problem);
            Item::Error { code: problem.row().code, detail: item_detail(problem) }
        }
    });
    let body = Body { accepted, rejected: results.len() - accepted, results: items.collect() };
    let mut text = Vec::with_capacity(FRAME_BYTES + results.len() * ITEM_BYTES);
    serde_json::to_writer(&mut text, &body).expect("writing plain text into memory cannot fail");
    text
}

/// An id as text, without a `String` for each.
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
        return Err(wrong(at, "expected an array of events"));
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

/// Lets the shard's other tasks run.
async fn turn() {
    let mut is_second = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut is_second, true) {
            return std::task::Poll::Ready(());
        }
        context.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await;
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
