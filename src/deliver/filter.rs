//! Which events an endpoint wants.

/// One entry of an endpoint's `event_types`: an exact type, or `prefix.*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventTypeFilter(String);

impl EventTypeFilter {
    /// Reads an exact type (1-128 of `A-Z a-z 0-9 _ . : / -`) or a prefix of one followed by `.*`.
    ///
    /// # Errors
    /// What would be right.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let _ = text;
        todo!()
    }

    /// Whether an event of this type is wanted.
    pub fn matches(&self, event_type: &str) -> bool {
        let _ = event_type;
        todo!()
    }
}

/// Whether any of `filters` wants it.
pub fn matches_any(filters: &[EventTypeFilter], event_type: &str) -> bool {
    filters.iter().any(|filter| filter.matches(event_type))
}
