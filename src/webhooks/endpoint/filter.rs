//! Event type filters: which events an endpoint receives. Pure. The planner evaluates them for every event of an organisation
//! with endpoints, so a match is one comparison without allocation.
//!
//! An entry is an event type, or a prefix followed by `.*`: `user.*` matches `user.login` and `user.login.failed`, but not
//! `user`, `user.` or `username`. Types and filters are case-sensitive.
//!
//! Limits: an entry is no longer than an event type; a list has at most [`limits::EVENT_TYPE_FILTERS_MAX`] entries and
//! [`limits::EVENT_TYPE_FILTERS_BYTES_MAX`] bytes.

use millrace_base::event::is_event_type;
use millrace_base::limits;

/// One entry of an endpoint's `event_types`: an exact type, or `prefix.*`.
///
/// Stored as written. No event type contains `*`, so a final `*` is always the wildcard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventTypeFilter(String);

impl EventTypeFilter {
    /// Parses an exact type (1-128 of `A-Z a-z 0-9 _ . : / -`) or a prefix of one followed by `.*`.
    ///
    /// # Errors
    /// The rule that the text breaks.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        if matches!(text, "*" | ".*" | "**") {
            return Err("wants all events; leave event_types out (or null) for that");
        }
        let exact = text.strip_suffix(".*").unwrap_or(text);
        if exact.contains('*') {
            return Err("may hold one `*`, at its end, behind a dot: `user.*`");
        }
        if text.len() > limits::EVENT_TYPE_BYTES_MAX || !is_event_type(exact) {
            return Err(
                "must be 1 to 128 of A-Z a-z 0-9 _ . : / - (a type, or the beginning of one with `.*` after it)",
            );
        }
        Ok(Self(text.to_owned()))
    }

    /// The filter as written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the filter matches this event type.
    pub fn matches(&self, event_type: &str) -> bool {
        match self.0.strip_suffix('*') {
            Some(beginning) => event_type.len() > beginning.len() && event_type.starts_with(beginning),
            None => self.0 == event_type,
        }
    }
}

/// Parses an endpoint's `event_types`.
///
/// # Errors
/// Which entry is wrong and what is accepted.
pub fn parse_list<T: AsRef<str>>(texts: &[T]) -> Result<Vec<EventTypeFilter>, String> {
    if texts.is_empty() {
        return Err("holds nothing, so no event would be sent; leave event_types out (or null) for all".to_owned());
    }
    if texts.len() > limits::EVENT_TYPE_FILTERS_MAX {
        return Err(format!("holds {} entries; {} are allowed", texts.len(), limits::EVENT_TYPE_FILTERS_MAX));
    }
    let bytes: usize = texts.iter().map(|text| text.as_ref().len()).sum();
    if bytes > limits::EVENT_TYPE_FILTERS_BYTES_MAX {
        return Err(format!("holds {bytes} bytes; {} are allowed", limits::EVENT_TYPE_FILTERS_BYTES_MAX));
    }
    let entry = |(at, text): (usize, &T)| {
        EventTypeFilter::parse(text.as_ref()).map_err(|why| format!("entry {} {why}", at + 1))
    };
    texts.iter().enumerate().map(entry).collect()
}

/// Whether any of `filters` matches.
pub fn matches_any(filters: &[EventTypeFilter], event_type: &str) -> bool {
    filters.iter().any(|filter| filter.matches(event_type))
}

// The error text above contains this limit.
const _: () = assert!(limits::EVENT_TYPE_BYTES_MAX == 128);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_wants_its_type_or_what_begins_with_it() {
        for (filter, event_type, wanted) in [
            ("user", "user", true),
            ("user", "User", false),
            ("user", "user.login", false),
            ("user", "use", false),
            ("user.login", "user.login", true),
            ("user.*", "user.login", true),
            ("user.*", "user.login.failed", true),
            ("user.*", "user..", true),
            ("user.*", "user.", false),
            ("user.*", "user", false),
            ("user.*", "username", false),
            ("user.*", "User.login", false),
            ("user.*", "other.user.login", false),
            ("a.b.*", "a.b.c", true),
            ("a.b.*", "a.c", false),
            ("a..*", "a..b", true),
            ("..*", "..b", true),
        ] {
            let parsed = EventTypeFilter::parse(filter).unwrap();
            assert_eq!(parsed.matches(event_type), wanted, "{filter} {event_type}");
            assert_eq!(parsed.as_str(), filter);
        }
    }

    #[test]
    fn refusals_say_what_would_be_right() {
        let longest = "a".repeat(128);
        for (text, why) in [
            ("*", "leave event_types out"),
            (".*", "leave event_types out"),
            ("**", "leave event_types out"),
            ("user*", "behind a dot"),
            ("*.login", "behind a dot"),
            ("user.*.failed", "behind a dot"),
            ("user.**", "behind a dot"),
            ("user.*.*", "behind a dot"),
            ("", "1 to 128"),
            ("user login", "1 to 128"),
            ("üser", "1 to 128"),
            ("user\0.*", "1 to 128"),
            (&format!("{longest}a"), "1 to 128"),
            (&format!("{}.*", &longest[1..]), "1 to 128"),
        ] {
            let refused = EventTypeFilter::parse(text).unwrap_err();
            assert!(refused.contains(why), "{text:?}: {refused}");
        }
        for text in [longest.as_str(), &format!("{}.*", &longest[2..]), "A-Z/a:z_0.9"] {
            assert!(EventTypeFilter::parse(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn the_longest_prefix_can_still_match() {
        let prefix = "p".repeat(126);
        let filter = EventTypeFilter::parse(&format!("{prefix}.*")).unwrap();
        let event_type = format!("{prefix}.x");
        assert!(is_event_type(&event_type) && filter.matches(&event_type));
    }

    #[test]
    fn lists_are_bounded_and_never_empty() {
        let filters = parse_list(&["user.*", "order.paid"]).unwrap();
        assert!(matches_any(&filters, "order.paid") && matches_any(&filters, "user.login"));
        assert!(!matches_any(&filters, "order.lost"));
        assert!(!matches_any(&[], "order.lost"));
        for (list, why) in [
            (vec![], "for all"),
            (vec!["a".to_owned(); 101], "101 entries; 100"),
            (vec!["a".repeat(128); 33], "4224 bytes; 4096"),
            (vec!["a".to_owned(), "*".to_owned()], "entry 2 wants all"),
        ] {
            let refused = parse_list(&list).unwrap_err();
            assert!(refused.contains(why), "{refused}");
        }
        assert_eq!(parse_list(&vec!["a"; 100]).unwrap().len(), 100);
    }
}
