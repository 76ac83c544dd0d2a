//! The statements of `deliveries`.
//!
//! They read by index, in its order. Where the caller names a time to begin at (`due_from`), nothing before it is read: an
//! index keeps the entries of rows that ended until a vacuum, and the left edge of the queue is full of them. A subquery
//! that locks a row, or has an OFFSET, is not pulled up into a join.

use tokio_postgres::types::Type;

/// A skip scan: goes from one endpoint to the next in the index of pending deliveries, and finds the earliest of each.
pub(super) const DUE_ENDPOINTS: &str = "
    WITH RECURSIVE waiting (endpoint_id) AS (
        (SELECT endpoint_id FROM delivery_queue WHERE endpoint_id > $2 ORDER BY endpoint_id LIMIT 1)
        UNION ALL
        SELECT (SELECT endpoint_id FROM delivery_queue WHERE endpoint_id > waiting.endpoint_id
                ORDER BY endpoint_id LIMIT 1)
        FROM waiting WHERE waiting.endpoint_id IS NOT NULL
    )
    SELECT waiting.endpoint_id, earliest.next_attempt_at AS since FROM waiting CROSS JOIN LATERAL (
        SELECT next_attempt_at FROM delivery_queue WHERE endpoint_id = waiting.endpoint_id
        ORDER BY next_attempt_at LIMIT 1
    ) AS earliest
    WHERE earliest.next_attempt_at <= $1
        AND NOT EXISTS (SELECT FROM endpoints WHERE id = waiting.endpoint_id AND (NOT enabled
            OR EXISTS (SELECT FROM organizations WHERE organizations.id = endpoints.org_id AND disabled)))
    LIMIT $3";
/// Entries before the given time are not read, however many of them are dead.
pub(super) const DUE_SINCE: &str = "
    SELECT asked.endpoint_id, earliest.next_attempt_at AS since
    FROM unnest($2::uuid[], $3::timestamptz[]) AS asked (endpoint_id, due_from) CROSS JOIN LATERAL (
        SELECT next_attempt_at FROM delivery_queue
        WHERE endpoint_id = asked.endpoint_id AND next_attempt_at >= asked.due_from AND next_attempt_at <= $1
        ORDER BY next_attempt_at LIMIT 1
    ) AS earliest
    WHERE NOT EXISTS (SELECT FROM endpoints WHERE id = asked.endpoint_id AND (NOT enabled
        OR EXISTS (SELECT FROM organizations WHERE organizations.id = endpoints.org_id AND disabled)))";

/// The inner look-ups stay inner, because they lock a row or have an OFFSET.
macro_rules! claim {
    () => {
        "WITH picked AS MATERIALIZED (
        SELECT due.id FROM unnest($1::uuid[], $2::bigint[], $5::timestamptz[])
            AS wanted (endpoint_id, most, due_from)
        CROSS JOIN LATERAL (
            SELECT delivery.id FROM delivery_queue AS queued CROSS JOIN LATERAL (
                SELECT id FROM deliveries
                WHERE id = queued.delivery_id AND status = 0 AND next_attempt_at <= $3 FOR UPDATE SKIP LOCKED
            ) AS delivery
            WHERE queued.endpoint_id = wanted.endpoint_id
                AND queued.next_attempt_at >= wanted.due_from AND queued.next_attempt_at <= $3
            ORDER BY queued.next_attempt_at LIMIT wanted.most
        ) AS due
    ), claimed AS (
        UPDATE deliveries SET next_attempt_at = $4 WHERE id = ANY (ARRAY(SELECT id FROM picked))
        RETURNING id, endpoint_id, org_id, event_id, event_received_at, attempts_made, attempts_before
    ), queued AS (
        INSERT INTO delivery_queue (org_id, delivery_id, endpoint_id, next_attempt_at)
        SELECT org_id, id, endpoint_id, $4 FROM claimed
        ON CONFLICT (org_id, delivery_id) DO UPDATE SET next_attempt_at = excluded.next_attempt_at
    ) "
    };
}
pub(super) const CLAIM: &str = concat!(
    claim!(),
    "SELECT claimed.*, event.type, event.payload FROM claimed
    LEFT JOIN LATERAL (
        SELECT type, payload FROM events WHERE id = claimed.event_id AND received_at = claimed.event_received_at OFFSET 0
    ) AS event ON true"
);
/// The same without the events. They are read by range of time if there are many partitions.
pub(super) const CLAIM_ONLY: &str = concat!(claim!(), "SELECT * FROM claimed");
pub(super) const EVENTS: &str = "
    SELECT event.id, event.type, event.payload FROM unnest($1::uuid[], $2::timestamptz[]) AS claimed (id, received_at)
    CROSS JOIN LATERAL (
        SELECT id, type, payload FROM events
        WHERE id = claimed.id AND received_at = claimed.received_at AND received_at >= $3 AND received_at < $4 OFFSET 0
    ) AS event";
pub(super) const EVENTS_TYPES: [Type; 4] =
    [Type::UUID_ARRAY, Type::TIMESTAMPTZ_ARRAY, Type::TIMESTAMPTZ, Type::TIMESTAMPTZ];

/// Corrects rows of the queue that call a delivery due although it is not. A statement deletes the rows that it saw when it
/// began; if it waited for another that put the delivery back, a wrong row stays.
pub(super) const REPAIR_QUEUE: &str = "
    WITH wrong AS MATERIALIZED (
        SELECT delivery.* FROM (
            SELECT delivery_id FROM unnest($1::uuid[], $4::timestamptz[]) AS wanted (endpoint_id, due_from)
            CROSS JOIN LATERAL (
                SELECT delivery_id FROM delivery_queue
                WHERE endpoint_id = wanted.endpoint_id AND next_attempt_at >= wanted.due_from AND next_attempt_at <= $2
                ORDER BY next_attempt_at LIMIT $3
            ) AS due LIMIT $3
        ) AS queued CROSS JOIN LATERAL (
            SELECT id, org_id, next_attempt_at FROM deliveries
            WHERE id = queued.delivery_id AND (status <> 0 OR next_attempt_at > $2) FOR UPDATE SKIP LOCKED
        ) AS delivery
    ), gone AS (
        DELETE FROM delivery_queue USING wrong
        WHERE wrong.next_attempt_at IS NULL AND delivery_queue.org_id = wrong.org_id AND delivery_id = wrong.id
    )
    UPDATE delivery_queue SET next_attempt_at = wrong.next_attempt_at FROM wrong
    WHERE wrong.next_attempt_at IS NOT NULL AND delivery_queue.org_id = wrong.org_id AND delivery_id = wrong.id";

/// The results as rows. `is_inline`: the attempt is kept in the delivery's own row, which has room for a short first one.
macro_rules! with_results {
    () => {
        "WITH result AS MATERIALIZED (
            SELECT *, number = 1 AND COALESCE(octet_length(error), 0) + COALESCE(octet_length(response_body), 0) <= 32
                AS is_inline
            FROM unnest($1::uuid[], $2::integer[], $3::timestamptz[], $4::integer[], $5::smallint[],
                    $6::text[], $7::text[], $8::timestamptz[], $9::smallint[], $10::timestamptz[])
                AS result (id, number, at, latency_ms, status_code, error, response_body, lease, status,
                    next_attempt_at)
        )"
    };
}

/// What every result writes to its delivery `old`: the number of attempts, and once the first of them. A success replaces
/// the note that the endpoint was deleted meanwhile.
macro_rules! attempted {
    () => {
        "attempts_made = GREATEST(old.attempts_made, result.number),
            first_at = CASE WHEN is_inline AND (old.first_at IS NULL OR old.first_error = 'endpoint_deleted' AND result.status = 1)
                THEN result.at ELSE old.first_at END,
            first_latency_ms = CASE WHEN is_inline AND (old.first_at IS NULL OR old.first_error = 'endpoint_deleted' AND result.status = 1)
                THEN result.latency_ms
                ELSE old.first_latency_ms END,
            first_status_code = CASE WHEN is_inline AND (old.first_at IS NULL OR old.first_error = 'endpoint_deleted' AND result.status = 1)
                THEN result.status_code
                ELSE old.first_status_code END,
            first_error = CASE WHEN is_inline AND (old.first_at IS NULL OR old.first_error = 'endpoint_deleted' AND result.status = 1)
                THEN result.error ELSE old.first_error END,
            first_response_body = CASE WHEN is_inline AND (old.first_at IS NULL OR old.first_error = 'endpoint_deleted' AND result.status = 1)
                THEN result.response_body
                ELSE old.first_response_body END"
    };
}

/// `$11`: whether the leases are known to be lost; then only successes count.
pub(super) const RECORD: &str = concat!(
    with_results!(),
    ", attempted AS (
        INSERT INTO delivery_attempts (delivery_id, at, number, latency_ms, status_code, error, response_body)
        SELECT id, at, number, latency_ms, status_code, error, response_body FROM result
        WHERE NOT is_inline AND EXISTS (SELECT FROM deliveries WHERE deliveries.id = result.id)
        ON CONFLICT (delivery_id, number) DO UPDATE SET at = excluded.at, latency_ms = excluded.latency_ms,
            status_code = excluded.status_code, error = excluded.error, response_body = excluded.response_body
        WHERE delivery_attempts.error = 'endpoint_deleted' AND excluded.error IS NULL
            AND excluded.status_code BETWEEN 200 AND 299
    ), changed AS (
        UPDATE deliveries AS old SET status = result.status, next_attempt_at = result.next_attempt_at, ",
    attempted!(),
    " FROM result
        WHERE old.id = result.id
            AND (old.next_attempt_at = result.lease OR ($11 AND result.status = 1 AND old.status <> 1))
        RETURNING old.id, old.org_id, old.endpoint_id, old.status, old.next_attempt_at
    ), ended AS (
        DELETE FROM delivery_queue USING changed
        WHERE changed.status <> 0 AND delivery_queue.org_id = changed.org_id AND delivery_id = changed.id
    ), queued AS (
        INSERT INTO delivery_queue (org_id, delivery_id, endpoint_id, next_attempt_at)
        SELECT org_id, id, endpoint_id, next_attempt_at FROM changed WHERE status = 0
        ON CONFLICT (org_id, delivery_id) DO UPDATE SET next_attempt_at = excluded.next_attempt_at
    ), failed AS (
        INSERT INTO failed_deliveries (org_id, status, delivery_id, endpoint_id)
        SELECT org_id, status, id, endpoint_id FROM changed WHERE status IN (2, 3)
        ON CONFLICT DO NOTHING
    ), no_more_failed AS (
        DELETE FROM failed_deliveries AS failed USING changed, (VALUES (2::smallint), (3)) AS code (status)
        WHERE $11 AND failed.org_id = changed.org_id AND failed.status = code.status AND failed.delivery_id = changed.id
            AND changed.status = 1
    )
    SELECT id FROM changed"
);

/// Of the results that found another lease, those that an earlier call recorded: the delivery is as they leave it, and has
/// their attempt.
pub(super) const RECORDED_BEFORE: &str = concat!(
    with_results!(),
    " SELECT old.id FROM result JOIN deliveries AS old ON old.id = result.id
    WHERE old.status = result.status AND old.next_attempt_at IS NOT DISTINCT FROM result.next_attempt_at
        AND old.attempts_made = result.number
        AND (
            (result.number = 1 AND old.first_at = result.at) OR EXISTS (
                SELECT FROM delivery_attempts
                WHERE delivery_id = result.id AND delivery_attempts.number = result.number
                    AND delivery_attempts.at = result.at
            )
        )"
);

/// A late result that is no success only shows that there was an attempt.
pub(super) const RECORD_ATTEMPTED: &str = concat!(
    with_results!(),
    " UPDATE deliveries AS old SET ",
    attempted!(),
    " FROM result
    WHERE old.id = result.id
        AND (old.attempts_made < result.number OR (is_inline AND old.first_at IS NULL))"
);

/// Ends the next deliveries that are pending for a deleted endpoint. Rows of the queue whose delivery is not pending any
/// more are deleted, too.
pub(in crate::postgres) const END_DELETED: &str = "
    WITH seen AS MATERIALIZED (
        SELECT delivery_id, next_attempt_at FROM delivery_queue
        WHERE endpoint_id = $1 AND next_attempt_at >= $2 AND NOT EXISTS (SELECT FROM endpoints WHERE id = $1)
        ORDER BY next_attempt_at LIMIT $3
    ), locked AS MATERIALIZED (
        SELECT delivery.* FROM seen CROSS JOIN LATERAL (
            SELECT id, org_id, status, attempts_made FROM deliveries WHERE id = seen.delivery_id FOR UPDATE SKIP LOCKED
        ) AS delivery
    ), attempted AS (
        INSERT INTO delivery_attempts (delivery_id, at, number, latency_ms, error)
        SELECT id, $4, attempts_made + 1, 0, $5 FROM locked WHERE status = 0 AND attempts_made > 0
        ON CONFLICT DO NOTHING
    ), failed AS (
        UPDATE deliveries AS old SET status = 2, next_attempt_at = NULL, attempts_made = old.attempts_made + 1,
            first_at = CASE WHEN old.attempts_made = 0 THEN $4 ELSE old.first_at END,
            first_latency_ms = CASE WHEN old.attempts_made = 0 THEN 0 ELSE old.first_latency_ms END,
            first_error = CASE WHEN old.attempts_made = 0 THEN $5 ELSE old.first_error END
        WHERE id = ANY (ARRAY(SELECT id FROM locked WHERE status = 0))
        RETURNING id, org_id, endpoint_id
    ), ended AS (
        DELETE FROM delivery_queue USING locked
        WHERE delivery_queue.org_id = locked.org_id AND delivery_id = locked.id
    ), listed AS (
        INSERT INTO failed_deliveries (org_id, status, delivery_id, endpoint_id)
        SELECT org_id, 2, id, endpoint_id FROM failed ON CONFLICT DO NOTHING
    )
    SELECT (SELECT count(*) FROM seen) AS seen, (SELECT count(*) FROM failed) AS ended,
        (SELECT next_attempt_at FROM seen ORDER BY next_attempt_at DESC LIMIT 1) AS last";

pub(super) const RELEASE: &str = "
    WITH moved AS (
        UPDATE deliveries SET next_attempt_at = $3 FROM unnest($1::uuid[], $2::timestamptz[]) AS held (id, lease)
        WHERE deliveries.id = held.id AND deliveries.next_attempt_at = held.lease
        RETURNING deliveries.id, org_id, endpoint_id
    )
    INSERT INTO delivery_queue (org_id, delivery_id, endpoint_id, next_attempt_at)
    SELECT org_id, id, endpoint_id, $3 FROM moved
    ON CONFLICT (org_id, delivery_id) DO UPDATE SET next_attempt_at = excluded.next_attempt_at";

/// The oldest of an organisation is the first row of its pending ones. One of the two estimates is -1 until the first
/// ANALYZE, the other is 0 after a crash.
pub(super) const PENDING: &str = "
    SELECT (SELECT count(*) FROM (SELECT FROM delivery_queue LIMIT $1) AS counted),
        (SELECT GREATEST(reltuples::bigint, pg_stat_get_live_tuples(oid)) FROM pg_class
            WHERE oid = 'delivery_queue'::regclass),
        (SELECT oldest.delivery_id FROM (
                SELECT DISTINCT org_id FROM endpoints
                WHERE NOT EXISTS (SELECT FROM organizations WHERE organizations.id = org_id AND disabled)
            ) AS org CROSS JOIN LATERAL (
            SELECT delivery_id FROM delivery_queue WHERE delivery_queue.org_id = org.org_id
            ORDER BY delivery_id LIMIT 1
        ) AS oldest ORDER BY oldest.delivery_id LIMIT 1)";

/// The time of the database's server, not that of the transaction.
pub(super) const CLOCK: &str = "SELECT clock_timestamp() AS now";

/// A skip scan as in [`DUE_ENDPOINTS`] that takes what is due after `$2` from each endpoint.
pub(super) const RECALL_STRANDED: &str = "
    WITH RECURSIVE waiting (endpoint_id) AS (
        (SELECT endpoint_id FROM delivery_queue ORDER BY endpoint_id LIMIT 1)
        UNION ALL
        SELECT (SELECT endpoint_id FROM delivery_queue WHERE endpoint_id > waiting.endpoint_id
                ORDER BY endpoint_id LIMIT 1)
        FROM waiting WHERE waiting.endpoint_id IS NOT NULL
    ), stranded AS MATERIALIZED (
        SELECT delivery.id FROM waiting CROSS JOIN LATERAL (
            SELECT locked.id FROM delivery_queue AS queued CROSS JOIN LATERAL (
                SELECT id FROM deliveries
                WHERE id = queued.delivery_id AND status = 0 AND next_attempt_at > $2 FOR UPDATE SKIP LOCKED
            ) AS locked
            WHERE queued.endpoint_id = waiting.endpoint_id AND queued.next_attempt_at > $2
            ORDER BY queued.next_attempt_at LIMIT $3
        ) AS delivery LIMIT $3
    ), moved AS (
        UPDATE deliveries SET next_attempt_at = $1 WHERE id = ANY (ARRAY(SELECT id FROM stranded))
        RETURNING id, org_id, endpoint_id
    ), queued AS (
        INSERT INTO delivery_queue (org_id, delivery_id, endpoint_id, next_attempt_at)
        SELECT org_id, id, endpoint_id, $1 FROM moved
        ON CONFLICT (org_id, delivery_id) DO UPDATE SET next_attempt_at = excluded.next_attempt_at
    )
    SELECT count(*) AS count FROM moved";
