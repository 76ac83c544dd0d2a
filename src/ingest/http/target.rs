//! The request target (RFC 9112, 3.2) and the Host field: which forms are taken, and what of them is used.

use super::Span;
use crate::limits;
use crate::problem::Problem;

/// Path and query of an origin-form or absolute-form target.
pub(super) fn split(target: &[u8], head: &[u8]) -> Result<(Span, Option<Span>), Problem> {
    if target.len() > limits::REQUEST_TARGET_BYTES_MAX {
        return Err(Problem::UriTooLong);
    }
    if target
        .iter()
        .any(|b| *b >= 0x7f || matches!(b, b'#' | b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}'))
    {
        return Err(Problem::BadRequest("the request target holds a character that must be percent-encoded"));
    }
    let origin = match target {
        [b'/', ..] | b"*" => target,
        _ => {
            absolute_form_path(target).ok_or(Problem::BadRequest("the request target is a path, or an http(s) URL"))?
        }
    };
    let path_end = memchr::memchr(b'?', origin).unwrap_or(origin.len());
    let query = origin.get(path_end + 1..).map(|query| Span::of(query, head));
    Ok((Span::of(&origin[..path_end], head), query))
}

/// `/path?query` of `http://authority/path?query`; the authority is not ours to check (RFC 9112, 3.2.2).
fn absolute_form_path(target: &[u8]) -> Option<&[u8]> {
    let colon = memchr::memchr(b':', target)?;
    let (scheme, rest) = target.split_at(colon);
    if !scheme.eq_ignore_ascii_case(b"http") && !scheme.eq_ignore_ascii_case(b"https") {
        return None;
    }
    let authority = rest.strip_prefix(b"://")?;
    let slash = memchr::memchr(b'/', authority)?;
    (slash > 0 && is_host(&authority[..slash])).then(|| &authority[slash..])
}

pub(super) fn is_host(host: &[u8]) -> bool {
    host.iter().all(|b| b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:[]%".contains(b))
}
