//! The retry schedules of the servers on one database, so that each server knows the others'.

use millrace_base::limits;

use super::credentials::get;
use super::error::CallError;
use super::session::Session;
use crate::StoreError;

/// A schedule that was not noted for long belongs to no server any more, and is deleted.
const NOTE: &str = "
    WITH noted AS (
        INSERT INTO webhook_retry_schedules (schedule, seen_at) VALUES ($1, clock_timestamp())
        ON CONFLICT (schedule) DO UPDATE SET seen_at = excluded.seen_at
    ), forgotten AS (
        DELETE FROM webhook_retry_schedules
        WHERE schedule <> $1 AND seen_at < clock_timestamp() - $2 * interval '1 second'
    )
    SELECT schedule FROM webhook_retry_schedules
    WHERE schedule <> $1 AND seen_at >= clock_timestamp() - $2 * interval '1 second' ORDER BY schedule";
const FORGET: &str = "DELETE FROM webhook_retry_schedules WHERE schedule = $1";

/// Notes that a server has this schedule; returns the others'.
pub(super) fn note(session: &mut Session, schedule: &str) -> Result<Vec<String>, StoreError> {
    let alive = limits::RETRY_SCHEDULE_ALIVE.as_secs_f64();
    session.query(NOTE, &[&schedule, &alive])?.iter().map(|row| get(row, "schedule")).collect()
}

/// Notes that a server with this schedule ends. Another server with the same one notes it again.
pub(super) fn forget(session: &mut Session, schedule: &str) -> Result<(), CallError> {
    session.execute(FORGET, &[&schedule]).map(drop)
}
