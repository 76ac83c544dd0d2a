//! The labels of the metrics and their values.
//!
//! A label is an enum below, a name in the [route table](millrace_wire::routes), an HTTP status, or a
//! [`Code`](millrace_base::problem::Code). No value comes from a request, so the number of series is bounded. Dashboards and alert rules depend on the values.

/// A label with fixed values.
pub trait Label: Copy + 'static {
    /// Every value, in the order of [`Self::index`].
    const ALL: &'static [Self];
    /// Position in [`Self::ALL`].
    fn index(self) -> usize;
    /// The value as shown.
    fn as_str(self) -> &'static str;
}

macro_rules! labels {
    ($($(#[$doc:meta])* $name:ident { $($variant:ident = $value:literal,)* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {
            $(#[doc = concat!("`", $value, "`")] $variant,)*
        }

        impl Label for $name {
            const ALL: &'static [Self] = &[$(Self::$variant),*];

            #[inline]
            fn index(self) -> usize {
                self as usize
            }

            fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $value,)*
                }
            }
        }
    )*};
}

labels! {
    /// Label `result` of `cache_lookups_total`.
    CacheLookup {
        Hit = "hit",
        Miss = "miss",
    }

    /// Label `type` of `validation_errors_total`: the rule an event broke.
    ValidationErrorKind {
        InvalidJson = "invalid_json",
        NotAnObject = "not_an_object",
        MissingField = "missing_field",
        UnknownField = "unknown_field",
        DuplicateField = "duplicate_field",
        WrongType = "wrong_type",
        TypeInvalid = "type_invalid",
        DedupIdInvalid = "dedup_id_invalid",
        DedupConflict = "dedup_conflict",
        PayloadTooLarge = "payload_too_large",
        PayloadTooDeep = "payload_too_deep",
    }

    /// Label `phase` of `connection_timeouts_total`.
    TimeoutPhase {
        Handshake = "handshake",
        Header = "header",
        Body = "body",
        Idle = "idle",
        Write = "write",
    }

    /// Label `result` of `tls_handshakes_total`.
    TlsHandshake {
        Full = "full",
        Resumed = "resumed",
        Failed = "failed",
    }

    /// Label `operation` of `db_operations_latency_seconds`.
    DbOperation {
        StoreEvents = "store_events",
        Quarantine = "quarantine",
        FindKey = "find_key",
        ListEvents = "list_events",
        GetEvent = "get_event",
        Keys = "keys",
        Migrate = "migrate",
        Maintain = "maintain",
        Endpoints = "endpoints",
        Deliveries = "deliveries",
        ClaimDeliveries = "claim_deliveries",
        RecordAttempts = "record_attempts",
        CountDeliveries = "count_deliveries",
    }

    /// Label `status` of `webhook_deliveries_total`.
    DeliveryOutcome {
        Delivered = "delivered",
        Failed = "failed",
        Retried = "retried",
        Blocked = "blocked",
    }

    /// Label `reason` of `journal_failures_total`.
    JournalFailure {
        NoSpace = "no_space",
        Permission = "permission",
        Unsupported = "unsupported",
        Descriptors = "descriptors",
        Io = "io",
    }

    /// Label `reason` of `store_events_held`.
    HeldReason {
        Refused = "refused",
        Unexplained = "unexplained",
        TooMuch = "too_much",
    }

    /// Label `reason` of `store_batch_retries_total`.
    RetryReason {
        Unavailable = "unavailable",
        Misconfigured = "misconfigured",
        RowRefused = "row_refused",
    }

    /// Label `way` of `store_batches_total`: the statement that stored a batch. With deliveries where some were planned.
    StoreWay {
        Copy = "copy",
        Insert = "insert",
        InsertDerived = "insert_derived",
        InsertWithDeliveries = "insert_with_deliveries",
        InsertDerivedWithDeliveries = "insert_derived_with_deliveries",
    }
}

#[expect(clippy::derivable_impls, reason = "the macro that defines labels derives no default")]
impl Default for StoreWay {
    fn default() -> Self {
        Self::Insert
    }
}

/// Values of the label `status` of `http_requests_total`.
pub(super) const STATUSES: [u16; 24] = [
    200,
    201,
    202,
    204,
    400,
    401,
    403,
    404,
    405,
    408,
    409,
    411,
    413,
    414,
    415,
    417,
    422,
    429,
    431,
    500,
    501,
    503,
    505,
    OTHER_STATUS,
];
/// Stands in [`STATUSES`] for one that is not; shown as `other`.
pub(super) const OTHER_STATUS: u16 = 0;
