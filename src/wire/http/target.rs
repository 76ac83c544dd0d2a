//! The request target (RFC 9112, 3.2) and the Host field: which forms are accepted, and what is used of them.
//!
//! Origin-form and absolute-form give a path and a query. If the target names an authority, the Host field is
//! ignored, as the RFC says; nothing here depends on either. `*` is for OPTIONS only. Authority-form is for CONNECT,
//! which no route takes.

use std::net::Ipv6Addr;

use millrace_base::limits;
use millrace_base::problem::Problem;

use super::{Span, fault};
use crate::routes::Method;

/// The path and query of the target. An absolute-form target may have an empty path, which no route has.
pub(super) fn split(target: &[u8], method: Method, head: &[u8]) -> Result<(Span, Option<Span>), Problem> {
    if target.len() > limits::REQUEST_TARGET_BYTES_MAX {
        return Err(Problem::UriTooLong);
    }
    if let Some(byte) = target
        .iter()
        .find(|b| **b >= 0x7f || matches!(b, b'#' | b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}'))
    {
        return Err(fault::in_target(*byte));
    }
    let origin = match target {
        [b'/', ..] => target,
        b"*" if method == Method::Options => target,
        b"*" if method != Method::Connect => {
            return Err(Problem::BadRequest("the request target `*` is for OPTIONS only"));
        }
        _ => absolute_form_path(target).ok_or(match method {
            Method::Connect => Problem::UnknownMethod,
            _ => Problem::BadRequest("the request target is a path, or an http(s) URL"),
        })?,
    };
    let path_end = memchr::memchr(b'?', origin).unwrap_or(origin.len());
    let query = origin.get(path_end + 1..).map(|query| Span::of(query, head));
    Ok((Span::of(&origin[..path_end], head), query))
}

/// `/path?query` of `http://authority/path?query`.
fn absolute_form_path(target: &[u8]) -> Option<&[u8]> {
    let colon = memchr::memchr(b':', target)?;
    let (scheme, rest) = target.split_at(colon);
    if !scheme.eq_ignore_ascii_case(b"http") && !scheme.eq_ignore_ascii_case(b"https") {
        return None;
    }
    let rest = rest.strip_prefix(b"://")?;
    let authority_end = memchr::memchr2(b'/', b'?', rest).unwrap_or(rest.len());
    let (authority, origin) = rest.split_at(authority_end);
    is_authority(authority).then_some(origin)
}

/// Whether `value` is valid in a Host field: an authority, or empty (RFC 9112, 3.2).
pub(super) fn is_host(value: &[u8]) -> bool {
    value.is_empty() || is_authority(value)
}

/// `host [":" port]` (RFC 3986, 3.2) with a host and without user information. A comma is valid in a name but refused
/// here: it is what remains when a proxy joins two Host fields.
fn is_authority(text: &[u8]) -> bool {
    let (is_host, port) = if let Some(rest) = text.strip_prefix(b"[") {
        let Some(end) = memchr::memchr(b']', rest) else { return false };
        (is_zoned_ipv6(&rest[..end]), &rest[end + 1..])
    } else {
        let end = memchr::memchr(b':', text).unwrap_or(text.len());
        (is_name(&text[..end]), &text[end..])
    };
    is_host
        && match port {
            [] => true,
            [b':', digits @ ..] => digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit),
            _ => false,
        }
}

/// An address, perhaps with the zone that it is good in: `%25` and its name as RFC 6874 has it, or a bare `%`, as
/// people and some clients write it.
fn is_zoned_ipv6(text: &[u8]) -> bool {
    let (address, zone) = match memchr::memchr(b'%', text) {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    };
    let is_zone = |zone: &[u8]| {
        let name = zone.strip_prefix(b"25").filter(|name| !name.is_empty()).unwrap_or(zone);
        !name.is_empty() && name.iter().all(|b| b.is_ascii_alphanumeric() || b"-._~".contains(b))
    };
    std::str::from_utf8(address).is_ok_and(|text| text.parse::<Ipv6Addr>().is_ok()) && zone.is_none_or(is_zone)
}

/// A `reg-name`, of which an IPv4 address is a special case. Percent signs come with their two digits.
fn is_name(mut text: &[u8]) -> bool {
    if text.is_empty() {
        return false;
    }
    while let [first, rest @ ..] = text {
        text = match (first, rest) {
            (b'%', [high, low, rest @ ..]) if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => rest,
            (b'-' | b'.' | b'_' | b'~' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b';' | b'=', _) => {
                rest
            }
            (first, _) if first.is_ascii_alphanumeric() => rest,
            _ => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_a_name_or_an_address_and_perhaps_a_port() {
        for host in [
            "",
            "a",
            "a.example",
            "a_b-c~d",
            "xn--bcher-kva.example.",
            "127.0.0.1",
            "t:",
            "t:0",
            "t:65535",
            "[::1]",
            "[::ffff:1.2.3.4]:80",
            "[fe80::1%25eth0]",
            "[fe80::1%eth0.5]:3000",
            "[fe80::1%2]",
            "[fe80::1%25]",
            "a%20b",
            "!$&'()*+;=",
        ] {
            assert!(is_host(host.as_bytes()), "{host}");
        }
        for other in [
            ":80",
            ":",
            "a b",
            " a",
            "a/b",
            "a?b",
            "a#b",
            "u@a",
            "a,b",
            "a:b",
            "a:80:80",
            "a:+80",
            "a:-1",
            "a:0x50",
            "a:808080",
            "[",
            "]",
            "[]",
            "[a]",
            "[::1",
            "::1",
            "[::1]80",
            "[::1]:x",
            "[v1.a]",
            "[fe80::1%]",
            "[fe80::1%25eth0%25]",
            "[fe80::1%eth 0]",
            "[fe80::1%eth]0]",
            "[%25eth0]",
            "a%",
            "a%2",
            "a%zz",
            "a\"",
            "a\\b",
            "<a>",
            "\u{e9}",
            "a\t",
        ] {
            assert!(!is_host(other.as_bytes()), "{other}");
        }
    }

    #[test]
    fn each_form_of_a_target_gives_path_and_query_or_a_refusal() {
        let parts = |target: &str, method| {
            let (path, query) = split(target.as_bytes(), method, target.as_bytes()).ok()?;
            let text = |span: Span| String::from_utf8(span.slice(target.as_bytes()).to_vec()).unwrap();
            Some((text(path), query.map(text)))
        };
        for (target, path, query) in [
            ("/", "/", None),
            ("/a?", "/a", Some("")),
            ("/a?b?c=/", "/a", Some("b?c=/")),
            ("//a", "//a", None),
            ("http://t/a?b", "/a", Some("b")),
            ("HTTPS://t:443/", "/", None),
            ("http://t", "", None),
            ("http://t?q", "", Some("q")),
            ("http://[::1]:80//x", "//x", None),
        ] {
            let expected = Some((path.to_owned(), query.map(str::to_owned)));
            assert_eq!(parts(target, Method::Get), expected, "{target}");
        }
        assert_eq!(parts("*", Method::Options), Some(("*".to_owned(), None)));
        for target in [
            "",
            "*",
            "**",
            "*/",
            "a",
            "?q",
            "t:80",
            "http:",
            "http:/t",
            "http:///a",
            "http://:80/",
            "http://u@t/",
            "http://u:p@t/",
            "http://t:x/",
            "http://a,b/",
            "ftp://t/",
            "file:///",
            "/#f",
            "/\"",
            "/{}",
            "/\\",
            "/^`|",
            "/\u{e9}",
            "/\x7f",
        ] {
            assert_eq!(parts(target, Method::Get), None, "{target}");
        }
    }
}
