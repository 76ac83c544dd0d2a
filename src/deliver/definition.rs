//! What an endpoint may be: one rule a field, the same for the API and the command line. Pure.
//!
//! A refusal continues a sentence that begins with the field's name, such as "must be …". Values of headers are not
//! quoted.

use super::filter::EventTypeFilter;
use super::headers;
use super::target::TargetPolicy;
use crate::limits;

/// Where requests go, as the parser of URLs understands it: what is shown is what is meant, in ASCII.
///
/// # Errors
/// What is wrong with it.
pub fn url(policy: &TargetPolicy, text: &str) -> Result<String, String> {
    let url = policy.parse_url(text)?;
    // Parsing can make a URL longer.
    if url.as_str().len() > limits::ENDPOINT_URL_BYTES_MAX {
        return Err(format!("must be at most {} bytes long", limits::ENDPOINT_URL_BYTES_MAX));
    }
    Ok(url.into())
}

/// The owner's words.
///
/// # Errors
/// What is wrong with them.
pub fn description(text: String) -> Result<String, String> {
    let fits = text.chars().count() <= limits::ENDPOINT_DESCRIPTION_CHARS_MAX && !text.chars().any(char::is_control);
    fits.then_some(text).ok_or_else(|| {
        format!(
            "must be at most {} characters, none of them control characters",
            limits::ENDPOINT_DESCRIPTION_CHARS_MAX
        )
    })
}

/// Which events.
///
/// # Errors
/// Which entry is wrong, and what would be right.
pub fn event_types(types: Vec<String>) -> Result<Vec<String>, String> {
    if types.is_empty() || types.len() > limits::ENDPOINT_EVENT_TYPES_MAX {
        return Err(format!("must have 1 to {} entries", limits::ENDPOINT_EVENT_TYPES_MAX));
    }
    for (at, event_type) in (1..).zip(&types) {
        EventTypeFilter::parse(event_type)
            .map_err(|right| format!("has a wrong entry, number {at}; it must be {right}"))?;
    }
    Ok(types)
}

/// The owner's own headers.
///
/// # Errors
/// Which one is wrong and why.
pub fn own_headers(own: Vec<(String, String)>) -> Result<Vec<(String, String)>, String> {
    let bytes: usize = own.iter().map(|(name, value)| name.len() + value.len()).sum();
    if own.len() > limits::ENDPOINT_HEADERS_MAX || bytes > limits::ENDPOINT_HEADERS_BYTES_MAX {
        return Err(format!(
            "must be at most {} headers of together {} bytes",
            limits::ENDPOINT_HEADERS_MAX,
            limits::ENDPOINT_HEADERS_BYTES_MAX
        ));
    }
    for (at, (name, _)) in own.iter().enumerate() {
        if own[..at].iter().any(|(other, _)| other.eq_ignore_ascii_case(name)) {
            return Err(format!("has a header twice: {name}"));
        }
    }
    headers::parse(&own)?;
    Ok(own)
}

/// Requests per second.
///
/// # Errors
/// What would be right.
pub fn rate_limit(per_second: u64) -> Result<u32, String> {
    let limit = u32::try_from(per_second).ok().filter(|limit| (1..=limits::ENDPOINT_RATE_LIMIT_MAX).contains(limit));
    limit.ok_or_else(|| format!("must be a whole number from 1 to {}", limits::ENDPOINT_RATE_LIMIT_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_kept_as_it_is_understood() {
        let policy = TargetPolicy::default();
        assert_eq!(url(&policy, "https://EXAMPLE.com").as_deref(), Ok("https://example.com/"));
        assert_eq!(
            url(&policy, " https://example.com/a b?ü#").map_err(|_| ()).as_deref(),
            url(&policy, "https://example.com/a%20b?%C3%BC#").map_err(|_| ()).as_deref()
        );
        assert!(url(&policy, "http://example.com/").is_err());
        let longest = limits::ENDPOINT_URL_BYTES_MAX - "https://example.com/".len();
        assert!(url(&policy, &format!("https://example.com/{}", "x".repeat(longest))).is_ok());
        assert!(url(&policy, &format!("https://example.com/{}", "x".repeat(longest + 1))).is_err());
        assert!(url(&policy, &format!("https://example.com/{}", "ü".repeat(longest / 4))).is_err());
    }

    #[test]
    fn a_description_is_short_and_visible() {
        for text in [String::new(), "Ünï 😀".to_owned(), "x".repeat(limits::ENDPOINT_DESCRIPTION_CHARS_MAX)] {
            assert_eq!(description(text.clone()), Ok(text));
        }
        for text in ["a\0", "\u{1b}[2J", "a\nb", &"x".repeat(limits::ENDPOINT_DESCRIPTION_CHARS_MAX + 1)] {
            assert!(description(text.to_owned()).is_err(), "{text:?}");
        }
    }

    #[test]
    fn filters_are_counted_and_the_wrong_one_is_named() {
        let types = |types: &[&str]| event_types(types.iter().map(|&text| text.to_owned()).collect());
        assert_eq!(types(&["user.login", "order.*"]).map(|types| types.len()), Ok(2));
        assert!(types(&[]).is_err());
        assert!(types(&["a"; limits::ENDPOINT_EVENT_TYPES_MAX + 1]).is_err());
        let refused = types(&["a", "b b"]).unwrap_err();
        assert!(refused.contains("number 2") && !refused.contains("b b"), "{refused}");
    }

    #[test]
    fn headers_are_bounded_and_there_once() {
        let headers = |pairs: &[(&str, &str)]| {
            own_headers(pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect())
        };
        assert_eq!(headers(&[("X-A", "1"), ("X-B", "2")]).map(|own| own.len()), Ok(2));
        assert!(
            headers(&[("X-A", "1"), ("x-a", "hunter2")])
                .is_err_and(|why| why.contains("x-a") && !why.contains("hunter2"))
        );
        let names: Vec<String> = (0..=limits::ENDPOINT_HEADERS_MAX).map(|n| format!("X-{n}")).collect();
        let many: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "1")).collect();
        assert!(headers(&many[1..]).is_ok());
        assert!(headers(&many).is_err());
        assert!(headers(&[("X-A", &"x".repeat(limits::ENDPOINT_HEADERS_BYTES_MAX))]).is_err());
        assert!(headers(&[("X A", "1")]).is_err());
    }

    #[test]
    fn a_rate_is_at_least_one() {
        assert_eq!(rate_limit(1), Ok(1));
        assert_eq!(rate_limit(u64::from(limits::ENDPOINT_RATE_LIMIT_MAX)), Ok(limits::ENDPOINT_RATE_LIMIT_MAX));
        for wrong in [0, u64::from(limits::ENDPOINT_RATE_LIMIT_MAX) + 1, u64::MAX] {
            assert!(rate_limit(wrong).is_err());
        }
    }
}
