//! Organisations and keys in Postgres.
//!
//! Every change notifies `millrace_credentials` in its own transaction, so that listeners hear of it exactly when it is
//! committed. Calls that create keys of one organisation run one after the other, so that the keys can be counted.

use std::time::Duration;

use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use millrace_base::clock::Timestamp;
use millrace_base::event::OrgId;
use millrace_base::key::{KeyId, KeyVerifier};
use millrace_base::limits;

use super::error::CallError;
use super::session::{Conversation, Session};
use super::values::Timestamptz;
use crate::{
    KeyInfo, KeyRecord, Organization, OrganizationChange, Rejection, StoreError, check_organization_name, cut_keys,
};

const LIVE_MAX: i64 = limits::LIVE_KEYS_PER_ORG_MAX as i64;
const ENDED_MAX: i64 = limits::ENDED_KEYS_PER_ORG_MAX as i64;
const DELETED_MAX: i64 = limits::ENDED_KEYS_DELETED_MAX as i64;

const FIND_KEY: &str = "
    SELECT k.id, k.org_id, k.created_at, k.last_used_at, k.expires_at, k.revoked_at, k.digest, k.phc,
        o.disabled, o.rate_limit_per_minute
    FROM api_keys k JOIN organizations o ON o.id = k.org_id WHERE k.id = $1";

/// `$8`: only if there is no organisation. The key's row references the organisation's; one statement inserts both, and
/// the reference is checked at its end.
const CREATE_ORGANIZATION: &str = "
    WITH organization AS (
        INSERT INTO organizations (id, name, rate_limit_per_minute, created_at)
        SELECT $1::uuid, $2::text, $3::bigint, $4::timestamptz WHERE NOT $8 OR NOT EXISTS (SELECT 1 FROM organizations)
        RETURNING id, name, rate_limit_per_minute, disabled, created_at
    ), key AS (
        INSERT INTO api_keys (id, org_id, digest, phc, created_at)
        SELECT $5::text, id, $6::bytea, $7::text, $4::timestamptz FROM organization
    )
    SELECT * FROM organization";

const ORGANIZATIONS: &str =
    "SELECT id, name, rate_limit_per_minute, disabled, created_at FROM organizations ORDER BY name";
const ORGANIZATION: &str = "
    SELECT id, name, rate_limit_per_minute, disabled, created_at FROM organizations WHERE id = $1 OR name = $2";
const UPDATE_ORGANIZATION: &str = "
    UPDATE organizations SET name = COALESCE($2, name), disabled = COALESCE($3, disabled),
        rate_limit_per_minute = CASE WHEN $4 THEN $5 ELSE rate_limit_per_minute END
    WHERE id = $1
    RETURNING id, name, rate_limit_per_minute, disabled, created_at,
        pg_notify('millrace_credentials', 'org:' || id)";

const LOCK_ORGANIZATION: &str = "SELECT id FROM organizations WHERE id = $1 FOR NO KEY UPDATE";
const LOCK_ORGANIZATION_OF: &str = "
    SELECT id FROM organizations WHERE id = (SELECT org_id FROM api_keys WHERE id = $1) FOR NO KEY UPDATE";
const CREATE_KEY: &str = "INSERT INTO api_keys (id, org_id, digest, phc, created_at) VALUES ($1, $2, $3, $4, $5)";
const LIVE_KEYS: &str = "
    SELECT count(*) FROM api_keys
    WHERE org_id = $1 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > $2)";
/// LEAST ignores nulls.
const DELETE_OLDEST_ENDED: &str = "
    DELETE FROM api_keys WHERE id IN (
        SELECT id FROM api_keys WHERE org_id = $1 AND LEAST(revoked_at, expires_at) <= $2
        ORDER BY LEAST(revoked_at, expires_at) DESC OFFSET $3 LIMIT $4)";
const DELETE_ENDED: &str = "
    WITH page AS (
        SELECT id FROM api_keys WHERE $2::text IS NULL OR id > $2 ORDER BY id LIMIT $3
    ), gone AS (
        DELETE FROM api_keys USING page WHERE api_keys.id = page.id AND LEAST(revoked_at, expires_at) < $1
    )
    SELECT id FROM page ORDER BY id DESC LIMIT 1";
const KEYS: &str = "
    SELECT id, org_id, created_at, last_used_at, expires_at, revoked_at FROM api_keys WHERE org_id = $1
    ORDER BY revoked_at IS NULL AND (expires_at IS NULL OR expires_at > $2) DESC, created_at DESC, id LIMIT $3";
const ROTATE_KEY: &str = "
    WITH old AS (
        UPDATE api_keys SET expires_at = LEAST(expires_at, $3::timestamptz)
        WHERE id = $1 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > $2)
        RETURNING id, org_id, expires_at
    ), new AS (
        INSERT INTO api_keys (id, org_id, digest, phc, created_at) SELECT $4::text, org_id, $5::bytea, $6::text, $2::timestamptz FROM old
    )
    SELECT expires_at, pg_notify('millrace_credentials', 'key:' || id) FROM old";
const REVOKE_KEY: &str = "
    UPDATE api_keys SET revoked_at = COALESCE(revoked_at, $3::timestamptz)
    WHERE id = $1 AND ($2::uuid IS NULL OR org_id = $2)
    RETURNING pg_notify('millrace_credentials', 'key:' || id)";
const TOUCH_KEY: &str = "UPDATE api_keys SET last_used_at = GREATEST(last_used_at, $2::timestamptz) WHERE id = $1";

pub(super) fn find_key(session: &mut Session, id: KeyId) -> Result<Option<KeyRecord>, StoreError> {
    let Some(row) = session.query_opt(FIND_KEY, &[&id.as_str()])? else { return Ok(None) };
    let digest: Vec<u8> = get(&row, "digest")?;
    let digest = digest.try_into().map_err(|_| unexpected(&"a key's digest has the wrong length"))?;
    Ok(Some(KeyRecord {
        info: key_info(&row)?,
        verifier: KeyVerifier { digest, phc: get(&row, "phc")? },
        org_disabled: get(&row, "disabled")?,
        rate_limit_per_minute: rate_limit(&row)?,
    }))
}

pub(super) fn touch_key(session: &mut Session, id: KeyId) -> Result<(), StoreError> {
    session.execute(TOUCH_KEY, &[&id.as_str(), &Timestamptz(Timestamp::now())])?;
    Ok(())
}

/// Creates an organisation with its key; with `only_first`, `None` if there is an organisation already.
pub(super) fn create_organization(
    session: &mut Session,
    name: &str,
    rate_limit_per_minute: Option<u32>,
    (key, verifier): (KeyId, &KeyVerifier),
    only_first: bool,
) -> Result<Option<Organization>, StoreError> {
    check_organization_name(name)?;
    let rows = session.within(async |conversation: &mut Conversation| {
        let statement = conversation.prepare(CREATE_ORGANIZATION).await?;
        let transaction = conversation.client.transaction().await?;
        if only_first {
            // Keeps out every other insert; the next statement sees the earlier ones.
            transaction.batch_execute("LOCK TABLE organizations IN SHARE ROW EXCLUSIVE MODE").await?;
        }
        let rows = transaction
            .query(
                &statement,
                &[
                    &Uuid::now_v7(),
                    &name,
                    &rate_limit_per_minute.map(i64::from),
                    &Timestamptz(Timestamp::now()),
                    &key.as_str(),
                    &&verifier.digest[..],
                    &verifier.phc,
                    &only_first,
                ],
            )
            .await?;
        transaction.commit().await?;
        Ok(rows)
    });
    rows.map_err(|error| rejection(error, name))?.first().map(organization_of).transpose()
}

pub(super) fn organizations(session: &mut Session) -> Result<Vec<Organization>, StoreError> {
    session.query(ORGANIZATIONS, &[])?.iter().map(organization_of).collect()
}

pub(super) fn organization(session: &mut Session, name_or_id: &str) -> Result<Organization, StoreError> {
    let id = Uuid::try_parse(name_or_id).ok();
    match session.query_opt(ORGANIZATION, &[&id, &name_or_id])? {
        Some(row) => organization_of(&row),
        None => Err(Rejection::NoSuchOrganization(name_or_id.to_owned()).into()),
    }
}

pub(super) fn update_organization(
    session: &mut Session,
    id: OrgId,
    change: &OrganizationChange,
) -> Result<Organization, StoreError> {
    let name = change.name.as_deref();
    name.map_or(Ok(()), check_organization_name)?;
    let limit = change.rate_limit_per_minute;
    let row = session.query_opt(
        UPDATE_ORGANIZATION,
        &[&id.0, &name, &change.disabled, &limit.is_some(), &limit.flatten().map(i64::from)],
    );
    match row.map_err(|error| rejection(error, name.unwrap_or_default()))? {
        Some(row) => organization_of(&row),
        None => Err(Rejection::NoSuchOrganization(id.to_string()).into()),
    }
}

pub(super) fn create_key(
    session: &mut Session,
    org: OrgId,
    (key, verifier): (KeyId, &KeyVerifier),
) -> Result<(), StoreError> {
    let now = Timestamp::now();
    let live = session.within(async |conversation: &mut Conversation| {
        let lock = conversation.prepare(LOCK_ORGANIZATION).await?;
        let count = conversation.prepare(LIVE_KEYS).await?;
        let create = conversation.prepare(CREATE_KEY).await?;
        let clear = conversation.prepare(DELETE_OLDEST_ENDED).await?;
        let transaction = conversation.client.transaction().await?;
        transaction.query(&lock, &[&org.0]).await?;
        let live: i64 = transaction.query_one(&count, &[&org.0, &Timestamptz(now)]).await?.try_get(0)?;
        if live < LIVE_MAX {
            let params: [&(dyn ToSql + Sync); 5] =
                [&key.as_str(), &org.0, &&verifier.digest[..], &verifier.phc, &Timestamptz(now)];
            transaction.execute(&create, &params).await?;
            transaction.execute(&clear, &[&org.0, &Timestamptz(now), &ENDED_MAX, &DELETED_MAX]).await?;
            transaction.commit().await?;
        } else {
            transaction.rollback().await?;
        }
        Ok(live)
    });
    let live = live.map_err(|error| rejection(error, &org.to_string()))?;
    if live < LIVE_MAX { Ok(()) } else { Err(Rejection::TooManyKeys.into()) }
}

pub(super) fn keys(session: &mut Session, org: OrgId, limit: usize) -> Result<(Vec<KeyInfo>, bool), StoreError> {
    let rows = session.query(KEYS, &[&org.0, &Timestamptz(Timestamp::now()), &(limit as i64 + 1)])?;
    let keys = rows.iter().map(key_info).collect::<Result<_, _>>()?;
    Ok(cut_keys(keys, limit))
}

pub(super) fn rotate_key(
    session: &mut Session,
    old: KeyId,
    (new, verifier): (KeyId, &KeyVerifier),
    grace: Duration,
) -> Result<Timestamp, StoreError> {
    enum Rotated {
        Until(Row),
        NotValid,
        TooMany,
    }
    let now = Timestamp::now();
    let rotated = session.within(async |conversation: &mut Conversation| {
        let lock = conversation.prepare(LOCK_ORGANIZATION_OF).await?;
        let rotate = conversation.prepare(ROTATE_KEY).await?;
        let count = conversation.prepare(LIVE_KEYS).await?;
        let clear = conversation.prepare(DELETE_OLDEST_ENDED).await?;
        let transaction = conversation.client.transaction().await?;
        let Some(org) = transaction.query_opt(&lock, &[&old.as_str()]).await? else {
            transaction.rollback().await?;
            return Ok(Rotated::NotValid);
        };
        let org: Uuid = org.try_get(0)?;
        let params: [&(dyn ToSql + Sync); 6] = [
            &old.as_str(),
            &Timestamptz(now),
            &Timestamptz(now.plus(grace)),
            &new.as_str(),
            &&verifier.digest[..],
            &verifier.phc,
        ];
        let Some(row) = transaction.query_opt(&rotate, &params).await? else {
            transaction.rollback().await?;
            return Ok(Rotated::NotValid);
        };
        let live: i64 = transaction.query_one(&count, &[&org, &Timestamptz(now)]).await?.try_get(0)?;
        // Without a grace the number stays.
        if live > LIVE_MAX && !grace.is_zero() {
            transaction.rollback().await?;
            return Ok(Rotated::TooMany);
        }
        transaction.execute(&clear, &[&org, &Timestamptz(now), &ENDED_MAX, &DELETED_MAX]).await?;
        transaction.commit().await?;
        Ok(Rotated::Until(row))
    });
    match rotated.map_err(|error| rejection(error, ""))? {
        Rotated::Until(row) => Ok(get::<Timestamptz>(&row, "expires_at")?.0),
        Rotated::NotValid => Err(Rejection::KeyNotValid(old).into()),
        Rotated::TooMany => Err(Rejection::TooManyKeys.into()),
    }
}

pub(super) fn delete_ended_keys(
    session: &mut Session,
    ended_before: Timestamp,
    after: Option<KeyId>,
) -> Result<Option<KeyId>, StoreError> {
    let after = after.as_ref().map(KeyId::as_str);
    let last =
        session.query_opt(DELETE_ENDED, &[&Timestamptz(ended_before), &after, &(limits::ENDED_KEYS_PAGE as i64)])?;
    last.map(|row| key_id(&row)).transpose()
}

pub(super) fn revoke_key(session: &mut Session, org: Option<OrgId>, id: KeyId) -> Result<bool, StoreError> {
    let org = org.map(|org| org.0);
    Ok(session.query_opt(REVOKE_KEY, &[&id.as_str(), &org, &Timestamptz(Timestamp::now())])?.is_some())
}

/// The rejection that a violated constraint stands for, if it stands for one. `name` is that of the organisation.
fn rejection(error: CallError, name: &str) -> StoreError {
    match error.constraint() {
        Some("organizations_name_key") => Rejection::NameTaken(name.to_owned()).into(),
        Some("api_keys_org_id_fkey") => Rejection::NoSuchOrganization(name.to_owned()).into(),
        Some("api_keys_pkey") => Rejection::KeyIdTaken.into(),
        _ => error.into(),
    }
}

fn organization_of(row: &Row) -> Result<Organization, StoreError> {
    Ok(Organization {
        id: OrgId(get(row, "id")?),
        name: get(row, "name")?,
        rate_limit_per_minute: rate_limit(row)?,
        disabled: get(row, "disabled")?,
        created_at: get::<Timestamptz>(row, "created_at")?.0,
    })
}

fn key_info(row: &Row) -> Result<KeyInfo, StoreError> {
    let at = |column| get::<Option<Timestamptz>>(row, column).map(|at| at.map(|at| at.0));
    Ok(KeyInfo {
        id: key_id(row)?,
        org: OrgId(get(row, "org_id")?),
        created_at: get::<Timestamptz>(row, "created_at")?.0,
        last_used_at: at("last_used_at")?,
        expires_at: at("expires_at")?,
        revoked_at: at("revoked_at")?,
    })
}

fn key_id(row: &Row) -> Result<KeyId, StoreError> {
    KeyId::parse(get(row, "id")?).ok_or_else(|| unexpected(&"a key's id is no key id"))
}

fn rate_limit(row: &Row) -> Result<Option<u32>, StoreError> {
    let limit: Option<i64> = get(row, "rate_limit_per_minute")?;
    Ok(limit.map(|limit| u32::try_from(limit).unwrap_or(u32::MAX)))
}

pub(super) fn get<'a, T: tokio_postgres::types::FromSql<'a>>(row: &'a Row, column: &str) -> Result<T, StoreError> {
    row.try_get(column).map_err(|error| unexpected(&error))
}

/// The error of a row that does not match this program's schema.
pub(super) fn unexpected(why: &dyn std::fmt::Display) -> StoreError {
    StoreError::Misconfigured(format!("the database's tables are not this program's: {why}"))
}
