//! From body bytes to a row. The envelope is borrowed from the body; the payload is validated and goes to Postgres as
//! the client's own text.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;
use sqlx::PgPool;
use sqlx::types::Json;
use time::OffsetDateTime;
use uuid::Uuid;

const TYPE_BYTES_MAX: usize = 128;
const DEDUP_ID_CHARS_MAX: usize = 255;

/// One statement, one row, one transaction. sqlx prepares it once on each connection.
const INSERT: &str = "INSERT INTO events (id, org_id, received_at, type, dedup_id, payload) \
     VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope<'a> {
    #[serde(rename = "type", borrow)]
    event_type: Cow<'a, str>,
    #[serde(borrow)]
    dedup_id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    payload: &'a RawValue,
}

pub struct Event<'a> {
    id: Uuid,
    org: Uuid,
    received_at: OffsetDateTime,
    envelope: Envelope<'a>,
}

pub enum Invalid {
    Json(serde_json::Error),
    Field(&'static str),
}

impl<'a> Event<'a> {
    pub fn parse(org: Uuid, body: &'a [u8]) -> Result<Self, Invalid> {
        let envelope: Envelope = serde_json::from_slice(body).map_err(Invalid::Json)?;
        if !is_event_type(&envelope.event_type) {
            return Err(Invalid::Field("type"));
        }
        if envelope.dedup_id.as_deref().is_some_and(|dedup_id| !is_dedup_id(dedup_id)) {
            return Err(Invalid::Field("dedup_id"));
        }
        // The index on `id` is what finds a repeated event: a derived id is the same each time.
        let id = match &envelope.dedup_id {
            None => Uuid::now_v7(),
            Some(dedup_id) => Uuid::new_v5(&org, dedup_id.as_bytes()),
        };
        Ok(Self { id, org, received_at: OffsetDateTime::now_utc(), envelope })
    }

    /// Returns once the row is committed, which with `synchronous_commit = on` means on disk.
    pub async fn store(&self, pool: &PgPool) -> Result<Uuid, sqlx::Error> {
        sqlx::query(INSERT)
            .bind(self.id)
            .bind(self.org)
            .bind(self.received_at)
            .bind(&*self.envelope.event_type)
            .bind(self.envelope.dedup_id.as_deref())
            .bind(Json(self.envelope.payload))
            .execute(pool)
            .await?;
        Ok(self.id)
    }
}

fn is_event_type(text: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.:/-".contains(&byte);
    (1..=TYPE_BYTES_MAX).contains(&text.len()) && text.bytes().all(is_allowed)
}

fn is_dedup_id(text: &str) -> bool {
    (1..=DEDUP_ID_CHARS_MAX).contains(&text.chars().count()) && !text.chars().any(char::is_control)
}
