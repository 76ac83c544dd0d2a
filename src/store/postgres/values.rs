//! Values as parameters and results of statements, in Postgres' binary format.
//!
//! A batch of events is six arrays, one for each column, written straight from the events into the message. Nothing is
//! copied or allocated for each row.

use std::error::Error;
use std::fmt;

use bytes::{BufMut, BytesMut};
use tokio_postgres::types::{IsNull, Kind, ToSql, Type, to_sql_checked};

use millrace_base::clock::Timestamp;
use millrace_base::event::Event;

/// 2000-01-01T00:00:00Z, where Postgres counts its microseconds from, in Unix microseconds.
const POSTGRES_EPOCH_MICROS: i64 = 946_684_800_000_000;

/// One field of all events of a batch, in the batch's order.
pub(super) struct Column<'a> {
    pub(super) rows: &'a [&'a Event],
    pub(super) field: Field,
}

/// A field of an event.
#[derive(Clone, Copy, Debug)]
pub(super) enum Field {
    Id,
    Org,
    ReceivedAt,
    Type,
    DedupId,
    Payload,
}

impl Field {
    /// The order in which the statements name the columns.
    pub(super) const ALL: [Self; 6] = [Self::Id, Self::Org, Self::ReceivedAt, Self::Type, Self::DedupId, Self::Payload];

    fn array(self) -> (Type, Type) {
        match self {
            Self::Id | Self::Org => (Type::UUID_ARRAY, Type::UUID),
            Self::ReceivedAt => (Type::TIMESTAMPTZ_ARRAY, Type::TIMESTAMPTZ),
            Self::Type | Self::DedupId => (Type::TEXT_ARRAY, Type::TEXT),
            Self::Payload => (Type::JSON_ARRAY, Type::JSON),
        }
    }
}

impl fmt::Debug for Column<'_> {
    /// The driver logs parameters at debug level: never the values.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} of {} events", self.field, self.rows.len())
    }
}

impl ToSql for Column<'_> {
    fn to_sql(&self, ty: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        let (array, element) = self.field.array();
        if *ty != array {
            return Err(format!("{:?} is no {ty}", self.field).into());
        }
        let count = i32::try_from(self.rows.len())?;
        out.put_i32(i32::from(count > 0)); // dimensions
        out.put_i32(i32::from(matches!(self.field, Field::DedupId))); // may hold nulls
        out.put_u32(element.oid());
        if count > 0 {
            out.put_i32(count);
            out.put_i32(1); // lower bound
        }
        for event in self.rows {
            match self.field {
                Field::Id => put(out, event.id.0.as_bytes()),
                Field::Org => put(out, event.org.0.as_bytes()),
                Field::ReceivedAt => put(out, &to_postgres(event.received_at).to_be_bytes()),
                Field::Type => put(out, event.event_type()),
                Field::DedupId => match event.dedup_id() {
                    Some(dedup_id) => put(out, dedup_id),
                    None => out.put_i32(-1),
                },
                Field::Payload => put(out, event.payload()),
            }
        }
        Ok(IsNull::No)
    }

    fn accepts(ty: &Type) -> bool {
        matches!(ty.kind(), Kind::Array(_))
    }

    to_sql_checked!();
}

/// Writes a value after its length. No field of an event comes near the format's 2 GiB.
pub(super) fn put(out: &mut BytesMut, value: &[u8]) {
    out.put_i32(value.len() as i32);
    out.put_slice(value);
}

/// A `timestamptz`; the extremes are -infinity and infinity.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timestamptz(pub(super) Timestamp);

impl Timestamptz {
    pub(super) const MIN: Self = Self(Timestamp::from_micros(i64::MIN));
    pub(super) const MAX: Self = Self(Timestamp::from_micros(i64::MAX));
}

/// Microseconds as Postgres counts them.
pub(super) fn to_postgres(at: Timestamp) -> i64 {
    match at.as_micros() {
        extreme @ (i64::MIN | i64::MAX) => extreme,
        micros => micros.saturating_sub(POSTGRES_EPOCH_MICROS),
    }
}

impl ToSql for Timestamptz {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        out.put_i64(to_postgres(self.0));
        Ok(IsNull::No)
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::TIMESTAMPTZ
    }

    to_sql_checked!();
}

impl tokio_postgres::types::FromSql<'_> for Timestamptz {
    fn from_sql(_: &Type, raw: &[u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        let micros = i64::from_be_bytes(raw.try_into()?);
        Ok(Self(Timestamp::from_micros(micros.saturating_add(POSTGRES_EPOCH_MICROS))))
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::TIMESTAMPTZ
    }
}

/// Bytes that are known to be UTF-8, for `text` or `json`.
#[derive(Clone, Copy)]
pub(super) struct Text<'a>(pub(super) &'a [u8]);

impl fmt::Debug for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl ToSql for Text<'_> {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        out.put_slice(self.0);
        Ok(IsNull::No)
    }

    fn accepts(ty: &Type) -> bool {
        matches!(*ty, Type::TEXT | Type::JSON)
    }

    to_sql_checked!();
}

/// The text of a `json` value as it was sent.
pub(super) struct JsonText(pub(super) String);

impl tokio_postgres::types::FromSql<'_> for JsonText {
    fn from_sql(_: &Type, raw: &[u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        Ok(Self(std::str::from_utf8(raw)?.to_owned()))
    }

    fn accepts(ty: &Type) -> bool {
        matches!(*ty, Type::TEXT | Type::JSON)
    }
}
