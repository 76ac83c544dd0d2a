//! Parses the query strings of lists, strictly.
//!
//! A parameter that is unknown, given twice or ill-formed is refused by name, because a typo must not turn a filter into
//! "everything". Names and values are percent-decoded as in RFC 3986. A `+` is a plus and not a space, so the offset of a
//! time can be written `+02:00` as well as `%2B02:00`; no value here has a space in it. Empty parameters (`a=1&&`) are
//! skipped. The request target's bound also bounds the query string.

use std::borrow::Cow;

use uuid::Uuid;

use millrace_base::clock::Timestamp;
use millrace_base::event::{DeliveryId, EndpointId, is_event_type};
use millrace_base::limits::{EVENT_TYPE_BYTES_MAX, LIST_LIMIT_DEFAULT, LIST_LIMIT_MAX};
use millrace_base::problem::Problem;
use millrace_store::EventQuery;
use millrace_store::webhooks::{DeliveryQuery, DeliveryStatus};

use super::cursor;

/// Longest part of an unknown parameter's name that is quoted.
const NAME_SHOWN_CHARS: usize = 64;

/// Reads `type`, `after`, `before`, `limit` and `cursor`.
///
/// # Errors
/// [`Problem::BadQuery`], naming the parameter.
pub(super) fn events(query: &str) -> Result<EventQuery, Problem> {
    let (mut event_type, mut after, mut before, mut limit, mut cursor) = (None, None, None, None, None);
    each(query, "type, after, before, limit and cursor", |name, value| {
        match name {
            "type" => once(&mut event_type, "type", value.and_then(type_of), TYPE_RULE)?,
            "after" => once(&mut after, "after", value.and_then(Timestamp::parse_rfc3339), TIME_RULE)?,
            "before" => once(&mut before, "before", value.and_then(Timestamp::parse_rfc3339), TIME_RULE)?,
            "limit" => once(&mut limit, "limit", value.and_then(limit_of), LIMIT_RULE)?,
            "cursor" => read_cursor(&mut cursor, value, cursor::decode)?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(EventQuery { event_type, after, before, cursor, limit: limit.unwrap_or(LIST_LIMIT_DEFAULT) })
}

/// Reads `status`, `endpoint_id`, `limit` and `cursor`.
///
/// # Errors
/// [`Problem::BadQuery`], naming the parameter.
pub(super) fn deliveries(query: &str) -> Result<DeliveryQuery, Problem> {
    let (mut status, mut endpoint, mut limit, mut cursor) = (None, None, None, None);
    each(query, "status, endpoint_id, limit and cursor", |name, value| {
        match name {
            "status" => once(&mut status, "status", value.and_then(DeliveryStatus::parse), STATUS_RULE)?,
            "endpoint_id" => once(&mut endpoint, "endpoint_id", value.and_then(id_of), ID_RULE)?,
            "limit" => once(&mut limit, "limit", value.and_then(limit_of), LIMIT_RULE)?,
            "cursor" => read_cursor(&mut cursor, value, cursor::decode_id)?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(DeliveryQuery {
        status,
        endpoint: endpoint.map(EndpointId),
        cursor: cursor.map(DeliveryId),
        limit: limit.unwrap_or(LIST_LIMIT_DEFAULT),
    })
}

/// Reads a cursor. An empty one means the first page: clients write it before they have a cursor.
fn read_cursor<T>(
    cursor: &mut Option<T>,
    value: Option<&str>,
    decode: impl FnOnce(&str) -> Option<T>,
) -> Result<(), Problem> {
    if value == Some("") { Ok(()) } else { once(cursor, "cursor", value.and_then(decode), CURSOR_RULE) }
}

/// A page of a list without filters, ordered by id.
pub(super) struct PageQuery {
    /// The last id of the page before.
    pub(super) cursor: Option<Uuid>,
    /// At most this many.
    pub(super) limit: u32,
}

/// Reads `limit` and `cursor`.
///
/// # Errors
/// [`Problem::BadQuery`], naming the parameter.
pub(super) fn page(query: &str) -> Result<PageQuery, Problem> {
    let (mut limit, mut cursor) = (None, None);
    each(query, "limit and cursor", |name, value| {
        match name {
            "limit" => once(&mut limit, "limit", value.and_then(limit_of), LIMIT_RULE)?,
            "cursor" => read_cursor(&mut cursor, value, cursor::decode_id)?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(PageQuery { cursor, limit: limit.unwrap_or(LIST_LIMIT_DEFAULT) })
}

/// Passes each parameter to `take`, decoded; the value is `None` where it cannot be decoded. `take` returns whether it knows
/// the name; `known` lists the names it knows.
fn each(
    query: &str,
    known: &str,
    mut take: impl FnMut(&str, Option<&str>) -> Result<bool, Problem>,
) -> Result<(), Problem> {
    for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        let name = percent_decoded(name).ok_or_else(|| bad("a parameter's name is not percent-encoded UTF-8"))?;
        let value = percent_decoded(value);
        if !take(&name, value.as_deref())? {
            let shown: String = name.chars().take(NAME_SHOWN_CHARS).collect();
            return Err(bad(format!("there is no parameter `{shown}` here; there are {known}")));
        }
    }
    Ok(())
}

const TYPE_RULE: &str = "1 to 128 of A-Z a-z 0-9 _ . : / -";
const TIME_RULE: &str = "an RFC 3339 time such as 2026-01-31T12:00:00Z";
const STATUS_RULE: &str = "pending, delivered, failed or blocked";
const ID_RULE: &str = "an id such as 01890a5d-ac96-774b-bcce-b302099a8057";
const LIMIT_RULE: &str = "a number from 1 to 1000";
const CURSOR_RULE: &str = "a next_cursor as a page of this list gave it";
// The rules above are text; this keeps them true.
const _: () = assert!(EVENT_TYPE_BYTES_MAX == 128 && LIST_LIMIT_MAX == 1000);

/// Stores a parsed value in `place`; refuses a second one.
fn once<T>(place: &mut Option<T>, name: &str, value: Option<T>, rule: &str) -> Result<(), Problem> {
    let value = value.ok_or_else(|| bad(format!("`{name}` must be {rule}")))?;
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(bad(format!("`{name}` is given twice"))),
    }
}

fn bad(why: impl Into<Cow<'static, str>>) -> Problem {
    Problem::BadQuery(why.into())
}

fn type_of(text: &str) -> Option<String> {
    is_event_type(text).then(|| text.to_owned())
}

/// The hyphenated form only, as in paths.
fn id_of(text: &str) -> Option<Uuid> {
    let is_hyphenated = text.len() == uuid::fmt::Hyphenated::LENGTH;
    Uuid::try_parse(text).ok().filter(|_| is_hyphenated)
}

fn limit_of(text: &str) -> Option<u32> {
    // Digits only: `parse` alone would take `+5`.
    let number = text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()?;
    (1..=LIST_LIMIT_MAX).contains(&number).then_some(number)
}

/// Undoes percent-encoding; `None` where a `%` is not followed by two hexadecimal digits, which the crate would keep as they
/// are, or where the result is not UTF-8.
fn percent_decoded(text: &str) -> Option<Cow<'_, str>> {
    let is_hex = |digits: &[u8; 2]| digits.iter().all(u8::is_ascii_hexdigit);
    let is_encoded = text.split('%').skip(1).all(|after| after.as_bytes().first_chunk().is_some_and(is_hex));
    if is_encoded { percent_encoding::percent_decode_str(text).decode_utf8().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use millrace_base::event::EventId;
    use millrace_base::problem::Code;

    use super::*;

    fn detail(query: &str) -> String {
        let problem = events(query).expect_err(query);
        assert_eq!(problem.code(), Code::BadRequest);
        problem.detail().into_owned()
    }

    #[test]
    fn every_parameter_is_read() {
        let place = (Timestamp::from_micros(77), EventId(Uuid::from_u128(9)));
        let query = format!(
            "type=user.login&after=2026-01-01T01:00:00%2B01:00&before=2026-01-02T00:00:00.5Z&limit=7&cursor={}",
            cursor::encode(place)
        );
        let read = events(&query).unwrap();
        assert_eq!(read.event_type.as_deref(), Some("user.login"));
        assert_eq!(read.after, Timestamp::parse_rfc3339("2026-01-01T00:00:00Z"));
        assert_eq!(read.before, Timestamp::parse_rfc3339("2026-01-02T00:00:00.5Z"));
        assert_eq!((read.limit, read.cursor), (7, Some(place)));
    }

    #[test]
    fn nothing_given_means_the_newest_of_every_type() {
        for query in ["", "&", "&&&", "cursor=", "cursor"] {
            let read = events(query).unwrap();
            assert_eq!((read.limit, read.cursor, read.after, read.before), (LIST_LIMIT_DEFAULT, None, None, None));
            assert_eq!(read.event_type, None);
        }
    }

    #[test]
    fn a_plus_is_a_plus_and_percent_encoding_is_undone_in_names_too() {
        let plain = events("after=2026-01-01T01:00:00+01:00").unwrap();
        assert_eq!(plain.after, Timestamp::parse_rfc3339("2026-01-01T00:00:00Z"));
        assert_eq!(events("%74ype=a%2Fb%3a1&limit=1%30").unwrap().event_type.as_deref(), Some("a/b:1"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (query, part) in [
            ("typo=1", "`typo`"),
            ("Type=a", "`Type`"),
            ("=1", "``"),
            ("%ff=1", "not percent-encoded UTF-8"),
            ("%4=1", "not percent-encoded UTF-8"),
            ("type", "`type` must be"),
            ("type=", "`type` must be"),
            ("type=a b", "`type` must be"),
            ("type=a%00", "`type` must be"),
            ("type=%zz", "`type` must be"),
            ("type=%", "`type` must be"),
            ("type=é", "`type` must be"),
            ("after=yesterday", "`after` must be"),
            ("before=2026-01-01", "`before` must be"),
            ("limit=0", "`limit` must be"),
            ("limit=1001", "`limit` must be"),
            ("limit=+5", "`limit` must be"),
            ("limit=-1", "`limit` must be"),
            ("limit=99999999999999999999", "`limit` must be"),
            ("limit=", "`limit` must be"),
            ("cursor=%zz", "`cursor` must be"),
            ("cursor=abc", "`cursor` must be"),
            ("limit=5&limit=5", "`limit` is given twice"),
            ("type=a&%74ype=b", "`type` is given twice"),
        ] {
            assert!(detail(query).contains(part), "{query}: {}", detail(query));
        }
        assert!(events(&format!("type={}", "a".repeat(128))).is_ok());
        assert!(detail(&format!("type={}", "a".repeat(129))).contains("`type` must be"));
        assert!(detail(&"é".repeat(2000)).chars().count() < 200, "an unknown name is said back only in part");
    }

    #[test]
    fn a_query_of_deliveries_is_read_or_its_fault_is_named() {
        let (endpoint, last) = (Uuid::from_u128(7), Uuid::from_u128(9));
        let cursor = cursor::encode_id(last);
        let read = deliveries(&format!("status=failed&endpoint_id={endpoint}&limit=7&cursor={cursor}")).unwrap();
        assert_eq!((read.status, read.endpoint), (Some(DeliveryStatus::Failed), Some(EndpointId(endpoint))));
        assert_eq!((read.limit, read.cursor), (7, Some(DeliveryId(last))));
        let read = page(&format!("limit=7&cursor={cursor}")).unwrap();
        assert_eq!((read.limit, read.cursor), (7, Some(last)));
        for query in ["", "cursor="] {
            assert_eq!(page(query).map(|read| (read.limit, read.cursor)), Ok((LIST_LIMIT_DEFAULT, None)));
            assert_eq!(deliveries(query).unwrap().cursor, None);
        }
        for (query, part) in [
            ("status=Failed", "`status` must be pending, delivered, failed or blocked"),
            ("status=", "`status` must be"),
            ("endpoint_id=7", "`endpoint_id` must be"),
            ("endpoint_id=00000000000000000000000000000007", "`endpoint_id` must be"),
            ("endpoint=7", "`endpoint`"),
            ("type=a", "there are status, endpoint_id, limit and cursor"),
            ("limit=1001", "`limit` must be"),
            ("cursor=01", "`cursor` must be"),
            ("status=failed&status=failed", "`status` is given twice"),
        ] {
            let problem = deliveries(query).expect_err(query);
            assert!(problem.detail().contains(part), "{query}: {}", problem.detail());
        }
        for (query, part) in [("status=failed", "there are limit and cursor"), ("limit=0", "`limit` must be")] {
            let problem = page(query).err().expect(query);
            assert!(problem.detail().contains(part), "{query}: {}", problem.detail());
        }
    }
}
