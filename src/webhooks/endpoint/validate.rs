//! Validates the fields of an endpoint, one function per field, the same for the API and the command line. Pure.
//!
//! An error says what is wrong and what is accepted. No header value is quoted.

use millrace_base::limits;

use crate::endpoint::target_policy::TargetPolicy;
use crate::endpoint::{filter, headers};

/// The URL, normalised to ASCII as the URL parser understands it, so that what is shown is what is used.
///
/// # Errors
/// What is wrong with the URL.
pub fn url(policy: &TargetPolicy, text: &str) -> Result<String, String> {
    policy.parse_url(text).map(String::from)
}

/// The description.
///
/// # Errors
/// The rule that it breaks.
pub fn description(text: String) -> Result<String, String> {
    let fits = text.chars().count() <= limits::ENDPOINT_DESCRIPTION_CHARS_MAX && !text.chars().any(char::is_control);
    fits.then_some(text).ok_or_else(|| {
        format!(
            "must be at most {} characters, none of them control characters",
            limits::ENDPOINT_DESCRIPTION_CHARS_MAX
        )
    })
}

/// The event type filters.
///
/// # Errors
/// Which entry is wrong, and what is accepted.
pub fn event_types(types: Vec<String>) -> Result<Vec<String>, String> {
    filter::parse_list(&types)?;
    Ok(types)
}

/// The custom headers.
///
/// # Errors
/// Which header is wrong and why.
pub fn own_headers(own: Vec<(String, String)>) -> Result<Vec<(String, String)>, String> {
    headers::parse(&own)?;
    Ok(own)
}

/// The rate limit in requests per second.
///
/// # Errors
/// The range that is accepted.
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
        for (text, kept) in [
            ("https://EXAMPLE.com", "https://example.com/"),
            ("https://example.com:443/a?b=ü", "https://example.com/a?b=%C3%BC"),
            ("https://0x08080808/", "https://8.8.8.8/"),
        ] {
            assert_eq!(url(&policy, text).as_deref(), Ok(kept));
            assert_eq!(url(&policy, kept).as_deref(), Ok(kept));
        }
        assert!(url(&policy, "http://example.com/").is_err());
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
    fn a_rate_is_at_least_one() {
        assert_eq!(rate_limit(1), Ok(1));
        assert_eq!(rate_limit(u64::from(limits::ENDPOINT_RATE_LIMIT_MAX)), Ok(limits::ENDPOINT_RATE_LIMIT_MAX));
        for wrong in [0, u64::from(limits::ENDPOINT_RATE_LIMIT_MAX) + 1, u64::MAX] {
            assert!(rate_limit(wrong).is_err());
        }
    }
}
