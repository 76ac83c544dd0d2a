//! NAMES: every metric's name, help, label values and buckets. Dashboards and alert rules depend on them.
//!
//! Every label is one of the enums below (or a status or code of [`problem`](millrace_base::problem)): no label value
//! comes from a request, so the number of series is fixed by this file.

use super::cells::Bounds;

/// A metric's name and what it means.
#[derive(Clone, Copy, Debug)]
pub(super) struct Definition {
    pub name: &'static str,
    pub help: &'static str,
}

macro_rules! definitions {
    ($($konst:ident = $name:literal, $help:literal;)*) => {
        $(pub(super) const $konst: Definition = Definition { name: $name, help: $help };)*
    };
}

definitions! {
    // Recorded by shards.
    EVENT_INGESTION_LATENCY = "event_ingestion_latency_seconds",
        "From the last byte of an ingest request to its answer.";
    AUTH_LATENCY = "auth_latency_seconds",
        "Finding out whose an API key is, cache hits and misses together.";
    RATE_LIMIT_CHECK_LATENCY = "rate_limit_check_latency_seconds", "One rate limit decision.";
    EVENTS_INGESTED = "events_ingested_total", "Events accepted: answered with 202.";
    CACHE_LOOKUPS = "cache_lookups_total", "Lookups in the shards' caches of verified API keys.";
    VALIDATION_ERRORS = "validation_errors_total", "Events refused for their content, by the first rule they broke.";
    HTTP_REQUESTS = "http_requests_total", "Requests answered on the public listener.";
    REJECTED = "rejected_total", "Refusals, by the code of the problem document.";
    REQUEST_BODY_BYTES = "request_body_bytes_total", "Bytes of request bodies read, without framing.";
    CONNECTIONS_ACCEPTED = "connections_accepted_total", "Connections taken into service.";
    CONNECTIONS_CLOSED = "connections_closed_total", "Connections that were in service and are closed.";
    CONNECTIONS_OPEN = "connections_open", "Connections in service now.";
    CONNECTIONS_REFUSED = "connections_refused_total", "Connections turned away at a limit of their number or rate, never in service.";
    CONNECTION_TIMEOUTS = "connection_timeouts_total", "Connections closed for taking too long, by phase.";
    TLS_HANDSHAKES = "tls_handshakes_total", "TLS handshakes of clients, by what became of them.";
    // Read at scrape.
    EVENT_QUEUE_SIZE = "event_queue_size", "Events accepted and not yet stored, those in writers' hands included.";
    EVENT_QUEUE_CAPACITY = "event_queue_capacity", "Events the queue can hold.";
    SQLITE_WAL_BYTES = "sqlite_wal_bytes", "Bytes of the embedded store's log beside its file; 0 on Postgres.";
    READY = "millrace_ready", "1 when ready, as /ready says it, else 0.";
    BUILD_INFO = "millrace_build_info", "Always 1; the labels say what is running.";
    LOG_LINES_DROPPED = "log_lines_dropped_total",
        "Lines of the log that standard error did not take: nobody reads its pipe, or its disk is full.";
    PROCESS_RESIDENT_MEMORY = "process_resident_memory_bytes", "Resident memory.";
    PROCESS_OPEN_FDS = "process_open_fds", "Open file descriptors.";
    PROCESS_MAX_FDS = "process_max_fds", "Most file descriptors the process may open.";
    PROCESS_CPU = "process_cpu_seconds_total", "CPU time of all threads, user and system.";
    PROCESS_START_TIME = "process_start_time_seconds", "When the process started, in seconds since the Unix epoch.";
    // Recorded by the journal's threads.
    JOURNAL_BYTES = "journal_bytes", "Bytes of the journal's segments on disk, prepared ones included.";
    JOURNAL_SEGMENTS = "journal_segments", "Segments of the journal on disk, prepared ones included.";
    JOURNAL_OLDEST_UNRELEASED = "journal_oldest_unreleased_seconds",
        "Age of the oldest segment that holds an event which is not in the database yet, or that was not read back yet; 0 where \
         there is none.";
    JOURNAL_UNREAD = "journal_unread_segments", "Segments that earlier runs left and that were not read back yet.";
    JOURNAL_COMMIT = "journal_commit_seconds", "Making one group of events durable: its write and its fdatasync.";
    JOURNAL_GROUP_SIZE = "journal_group_size", "Events made durable together.";
    JOURNAL_REPLAYED = "journal_replayed_total", "Events read from the journal at the start and handed to the writers.";
    JOURNAL_EXPIRED = "journal_events_expired_total",
        "Events read from the journal at the start and released without storing them: their day's partition was dropped.";
    JOURNAL_SPILLED = "journal_spilled_total", "Events that waited in the journal for room in the queue, and had it.";
    JOURNAL_REWRITTEN = "journal_rewritten_total",
        "Events held by the writers that were written over into a newer segment, so that they keep no old one.";
    JOURNAL_DAMAGED_RECORDS = "journal_damaged_records_total", "Events known to be missing from a damaged journal.";
    JOURNAL_FAILURES = "journal_failures_total",
        "Operations of the journal on its disk that failed, and segments not made because only the reserve was left.";
    // Recorded by the sender of webhooks.
    WEBHOOK_DELIVERIES = "webhook_deliveries_total",
        "Attempts that were made, by what became of the delivery: delivered; retried later; failed for good, or blocked \
         because its address is not allowed.";
    WEBHOOK_ATTEMPT_LATENCY = "webhook_attempt_latency_seconds", "One attempt: from its start to the end of the answer.";
    WEBHOOK_DELIVERY_LATENCY = "webhook_delivery_latency_seconds",
        "From the acceptance of an event to the endpoint's 2xx, for deliveries that took one attempt.";
    WEBHOOK_PENDING = "webhook_pending", "Deliveries that are neither delivered nor given up, in the database.";
    WEBHOOK_OLDEST_PENDING = "webhook_oldest_pending_seconds", "Age of the oldest of them; 0 where there is none.";
    WEBHOOK_HELD = "webhook_held", "Deliveries in this server's memory, those in flight included.";
    WEBHOOK_IN_FLIGHT = "webhook_in_flight", "Requests to endpoints that wait for their answer.";
    WEBHOOK_OPEN_CIRCUITS = "webhook_open_circuits", "Endpoints that get nothing for now because they keep failing.";
    WEBHOOK_ENDPOINTS_UNUSABLE = "webhook_endpoints_unusable",
        "Enabled endpoints whose secret this server cannot open, or whose row it cannot read: what is due for them waits.";
    WEBHOOK_LEASES_LOST = "webhook_leases_lost_total",
        "Deliveries that were given back unsent after their lease had run out, and results of deliveries that somebody else had \
         claimed, retried, failed or deleted meanwhile: those may be sent twice.";
    // Recorded by writers and whoever else calls the store.
    DB_OPERATIONS_LATENCY = "db_operations_latency_seconds", "Calls of the store, failed ones included.";
    STORE_BATCHES = "store_batches_total", "Committed transactions with events, by the statement that stored them.";
    STORE_BATCH_EVENTS = "store_batch_events", "Events in a committed batch.";
    STORE_BATCH_BYTES = "store_batch_bytes", "Bytes in a committed batch.";
    STORE_BATCH_AGE = "store_batch_age_seconds", "From a batch's first event to its commit, retries included.";
    STORE_EVENTS_STORED = "store_events_stored_total", "Rows new in the database.";
    STORE_EVENTS_DEDUPLICATED = "store_events_deduplicated_total",
        "Copies of a stored event that a client sent again, skipped.";
    STORE_EVENTS_FOUND = "store_events_found_total",
        "Events that the database had already: an attempt whose answer was lost had stored them, or the journal gave them \
         back after they were stored.";
    STORE_EVENTS_HELD = "store_events_held",
        "Events that cannot be stored while others can, held beside the writers and tried again, by reason.";
    STORE_EVENTS_QUARANTINED = "store_events_quarantined_total", "Events set aside: the database refuses their data.";
    STORE_BATCH_RETRIES = "store_batch_retries_total", "Attempts to store a batch that failed and are made again.";
}

/// Buckets of `event_ingestion_latency_seconds`: 1 µs to 10 s. The alert on p95 needs 100 ms among them.
pub(super) static INGESTION_BOUNDS: Bounds<23> = Bounds::new([
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000, // up to 0.5 ms
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
    u64::MAX,
]);

/// Buckets of `auth_latency_seconds`: a cache hit takes well under 1 µs, a miss waits for Argon2id.
pub(super) static AUTH_BOUNDS: Bounds<26> = Bounds::new([
    100,
    250,
    500, // hits
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000, // up to 0.5 ms
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
    u64::MAX,
]);

/// Buckets of `rate_limit_check_latency_seconds`: some atomics; milliseconds only where the thread was preempted.
pub(super) static RATE_LIMIT_BOUNDS: Bounds<15> = Bounds::new([
    25,
    50,
    100,
    250,
    500, // as it should be
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    1_000_000,
    10_000_000,
    u64::MAX,
]);

/// Buckets of `db_operations_latency_seconds` and `store_batch_age_seconds`, in seconds; the longest call is
/// bounded by [`limits::STORE_CALL_TIMEOUT`](millrace_base::limits::STORE_CALL_TIMEOUT).
pub(super) const STORE_SECONDS: &[f64] =
    &[0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0];
/// Buckets of `store_batch_events`.
pub(super) const STORE_BATCH_EVENTS_BUCKETS: &[f64] =
    &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 750.0, 1000.0];
/// Buckets of `store_batch_bytes`: 1 KiB to 16 MiB.
pub(super) const STORE_BATCH_BYTES_BUCKETS: &[f64] =
    &[1024.0, 4096.0, 16_384.0, 65_536.0, 262_144.0, 1_048_576.0, 4_194_304.0, 8_388_608.0, 16_777_216.0];

/// Buckets of the webhooks' latencies, in seconds.
pub(super) const WEBHOOK_SECONDS: &[f64] =
    &[0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 30.0, 60.0];

/// Buckets of `journal_commit_seconds`: a good disk takes 0.1 ms.
pub(super) const JOURNAL_COMMIT_SECONDS: &[f64] = &[
    0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25,
    0.5, 1.0, 2.5,
];
/// Buckets of `journal_group_size`.
pub(super) const JOURNAL_GROUP_BUCKETS: &[f64] =
    &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2500.0, 5000.0, 10_000.0];

/// A label whose values are fixed here.
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
    /// Label `route` of `http_requests_total`.
    Route {
        EventsPost = "events_post",
        EventsBatch = "events_batch",
        EventsList = "events_list",
        EventGet = "event_get",
        Keys = "keys",
        KeysRotate = "keys_rotate",
        KeyDelete = "key_delete",
        Endpoints = "endpoints",
        Endpoint = "endpoint",
        EndpointRotateSecret = "endpoint_rotate_secret",
        EndpointTest = "endpoint_test",
        EndpointRecover = "endpoint_recover",
        EventDeliveries = "event_deliveries",
        Deliveries = "deliveries",
        DeliveryRetry = "delivery_retry",
        Root = "root",
        Health = "health",
        Ready = "ready",
        Metrics = "metrics",
        Openapi = "openapi",
        Other = "other",
    }

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

impl Route {
    /// The status of an answer with nothing wrong; its series is there before the first request.
    pub(super) const fn usual_status(self) -> u16 {
        match self {
            Self::EventsPost | Self::EventsBatch | Self::EndpointTest | Self::EndpointRecover | Self::DeliveryRetry => {
                202
            }
            Self::KeyDelete => 204,
            Self::Other => 404,
            _ => 200,
        }
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
