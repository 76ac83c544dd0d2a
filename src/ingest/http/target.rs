//! The request target (RFC 9112, 3.2) and the Host field: which forms are taken, and what of them is used.
//!
//! Origin-form and absolute-form give a path and a query; where the target names an authority, the Host field is
//! ignored, as the RFC has it (nothing here depends on either). `*` is for OPTIONS only. Authority-form belongs to
//! CONNECT, which is refused before its target is looked at.

use std::net::Ipv6Addr;

use super::Span;
use crate::limits;
use crate::problem::Problem;
use crate::routes::Method;

/// Path and query of the target; an absolute-form target may have an empty path, which no route has.
pub(super) fn split(target: &[u8], method: Method, head: &[u8]) -> Result<(Span, Option<Span>), Problem> {
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
        [b'/', ..] => target,
        b"*" if method == Method::Options => target,
        b"*" => return Err(Problem::BadRequest("the request target `*` is for OPTIONS only")),
        _ => {
            absolute_form_path(target).ok_or(Problem::BadRequest("the request target is a path, or an http(s) URL"))?
        }
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

/// Whether `value` may be a Host field's: an authority, or nothing at all (RFC 9112, 3.2).
pub(super) fn is_host(value: &[u8]) -> bool {
    value.is_empty() || is_authority(value)
}

/// `host [":" port]` (RFC 3986, 3.2) with a host and without user information. A comma, which a name may hold, is not
/// taken: it is what two Host fields leave that something on the way made one of.
fn is_authority(text: &[u8]) -> bool {
    let (is_host, port) = if let Some(rest) = text.strip_prefix(b"[") {
        let Some(end) = memchr::memchr(b']', rest) else { return false };
        (is_ipv6(&rest[..end]), &rest[end + 1..])
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

fn is_ipv6(text: &[u8]) -> bool {
    std::str::from_utf8(text).is_ok_and(|text| text.parse::<Ipv6Addr>().is_ok())
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
            "[fe80::1%25eth0]",
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
