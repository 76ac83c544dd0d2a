//! An endpoint's custom headers, which are sent with every request to it, such as `Authorization`. Pure; runs when an endpoint
//! is created or changed, and when the cache loads it.
//!
//! **A custom header never changes message framing, content type, signature or origin.** Names that belong to HTTP framing, the
//! connection, the sender's own headers and the forwarding chain are refused. The last ones matter because a private receiver
//! may trust them when they come from this server's address.
//!
//! Every value may be a password: all values are marked sensitive and no error quotes one. An error quotes a name only if it
//! is a valid one, because a client may have put a whole header line there.
//!
//! Limits: [`limits::ENDPOINT_HEADERS_MAX`] headers, [`limits::ENDPOINT_HEADERS_BYTES_MAX`] bytes in all.

use hyper::header::{Entry, HeaderMap, HeaderName, HeaderValue};

use millrace_base::limits;

/// Refused names, in lower case.
const REFUSED: [&str; 23] = [
    "accept-encoding",
    "cf-connecting-ip",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "expect",
    "forwarded",
    "host",
    "http2-settings",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "true-client-ip",
    "upgrade",
    "user-agent",
    "via",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-forwarded",
    "x-original-url",
    "x-real-ip",
];
/// Refused prefixes of names.
const REFUSED_PREFIXES: [&str; 3] = ["proxy-", "webhook-", "x-forwarded-"];

/// Checks custom headers: names are tokens, values are visible, and none is one that the sender sets.
///
/// # Errors
/// Which header is wrong and why. Values are not quoted.
pub fn parse(headers: &[(String, String)]) -> Result<HeaderMap, String> {
    if headers.len() > limits::ENDPOINT_HEADERS_MAX {
        return Err(format!("holds {} headers; {} are allowed", headers.len(), limits::ENDPOINT_HEADERS_MAX));
    }
    let bytes: usize = headers.iter().map(|(name, value)| name.len() + value.len()).sum();
    if bytes > limits::ENDPOINT_HEADERS_BYTES_MAX {
        return Err(format!(
            "names and values are {bytes} bytes together; {} are allowed",
            limits::ENDPOINT_HEADERS_BYTES_MAX
        ));
    }
    let mut map = HeaderMap::with_capacity(headers.len());
    for (at, (name, value)) in headers.iter().enumerate() {
        // This also converts the name to lower case.
        let Ok(name) = HeaderName::from_bytes(name.as_bytes()) else {
            return Err(format!("the name of header {} must be letters, digits and !#$%&'*+-.^_`|~", at + 1));
        };
        if is_refused(name.as_str()) {
            return Err(format!("`{name}` cannot be set: the server, HTTP or a proxy does"));
        }
        let value = sensitive(value).map_err(|why| format!("the value of `{name}` {why}"))?;
        match map.entry(name) {
            Entry::Vacant(place) => place.insert(value),
            Entry::Occupied(place) => return Err(format!("`{}` is there more than once", place.key())),
        };
    }
    Ok(map)
}

fn is_refused(name: &str) -> bool {
    REFUSED.contains(&name) || REFUSED_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// Visible ASCII. Spaces and tabs are allowed inside only: HTTP drops them at the ends.
fn sensitive(value: &str) -> Result<HeaderValue, &'static str> {
    let visible = |byte: &u8| byte.is_ascii_graphic();
    if value.is_empty() {
        return Err("is empty");
    }
    if !value.bytes().all(|byte| visible(&byte) || byte == b' ' || byte == b'\t') {
        return Err("must be visible ASCII characters, spaces and tabs");
    }
    if !(value.as_bytes().first().is_some_and(visible) && value.as_bytes().last().is_some_and(visible)) {
        return Err("must not begin or end with white space");
    }
    let mut value = HeaderValue::from_str(value).expect("visible ASCII, spaces and tabs are a header value");
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn what_an_owner_may_say_is_taken_and_never_shown() {
        let list = [("Authorization", "Bearer hunter2"), ("X-Tenant", "a\tb c"), ("cookie", "hunter2=~!")];
        let map = parse(&headers(&list)).unwrap();
        assert_eq!(map.len(), list.len());
        for (name, value) in list {
            assert_eq!(map[name], value);
            assert!(map[name].is_sensitive());
        }
        assert!(!format!("{map:?}").contains("hunter2"), "{map:?}");
        assert!(parse(&[]).unwrap().is_empty());
    }

    #[test]
    fn names_that_are_not_the_owners_are_refused() {
        let others = ["Webhook-Id", "WEBHOOK-SIGNATURE", "webhook-", "Proxy-Authorization", "X-Forwarded-For", "Host"];
        for name in REFUSED.into_iter().chain(others) {
            let refused = parse(&headers(&[(name, "hunter2")])).unwrap_err();
            assert!(refused.contains("cannot be set") && !refused.contains("hunter2"), "{refused}");
        }
        for name in ["hosts", "webhook", "proxy", "x-forward", "tea", "content-language", "x-webhook-id"] {
            assert!(parse(&headers(&[(name, "v")])).is_ok(), "{name}");
        }
    }

    #[test]
    fn junk_is_refused_without_being_quoted() {
        for name in ["", " ", "a b", "a:", ":path", "Authorization: hunter2", "a\r\nb", "ä", "a\0", "(a)"] {
            let refused = parse(&headers(&[("x-good", "v"), (name, "v")])).unwrap_err();
            assert!(refused.starts_with("the name of header 2 ") && !refused.contains("hunter2"), "{refused}");
        }
        for value in ["hunter2\r\nHost: x", "hunter2\n", "hunter2\0", "hunter2\x7f", "hünter2", "hunter2\u{85}"] {
            let refused = parse(&headers(&[("X-Key", value)])).unwrap_err();
            assert!(refused.contains("`x-key` must be visible"), "{refused}");
        }
        for value in [" v", "v ", "\tv", "v\t", " "] {
            assert!(parse(&headers(&[("x-key", value)])).unwrap_err().contains("white space"), "{value:?}");
        }
        assert!(parse(&headers(&[("x-key", "")])).unwrap_err().contains("empty"));
        let twice = parse(&headers(&[("X-Key", "v"), ("x-kEY", "w")])).unwrap_err();
        assert_eq!(twice, "`x-key` is there more than once");
    }

    #[test]
    fn count_and_size_are_bounded() {
        let many = |count| (0..count).map(|n| (format!("x-{n}"), "v".to_owned())).collect::<Vec<_>>();
        assert_eq!(parse(&many(limits::ENDPOINT_HEADERS_MAX)).unwrap().len(), limits::ENDPOINT_HEADERS_MAX);
        assert!(parse(&many(limits::ENDPOINT_HEADERS_MAX + 1)).unwrap_err().contains("16 are allowed"));
        let large = |bytes: usize| headers(&[("x-key", &"v".repeat(bytes - 5))]);
        assert!(parse(&large(limits::ENDPOINT_HEADERS_BYTES_MAX)).is_ok());
        assert!(parse(&large(limits::ENDPOINT_HEADERS_BYTES_MAX + 1)).unwrap_err().contains("4097 bytes"));
    }
}
