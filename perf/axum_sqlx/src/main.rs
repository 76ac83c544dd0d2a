//! Baseline: an event server of the obvious design, axum + tokio + sqlx, one insert a request.
//!
//! What it owns: `POST /api/events` with Millrace's key, envelope and `events` table, on the same Postgres. A 202 is
//! sent after the commit, so it is as durable as Millrace's `fsync`. No queue, no journal, no batches: the pool's
//! connections are the bound on what is under way, and Postgres' own group commit is all that is shared between
//! requests. README.md says why each choice is what a good team would make.
//!
//! Limits: a body of 278,528 bytes, [`KEYS_CACHED_MAX`] keys for [`KEY_TTL`], `POOL_SIZE` connections, a wait of
//! [`ACQUIRE_TIMEOUT`] for one of them.
//!
//! `DATABASE_URL=… POOL_SIZE=20 axum_sqlx 127.0.0.1:PORT` prints a line `ready` and runs until SIGTERM.

mod auth;
mod event;

use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::serve::ListenerExt;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::auth::{Keys, Refusal};
use crate::event::{Event, Invalid};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A payload of 256 KiB and its envelope.
const BODY_BYTES_MAX: usize = 272 * 1024;
/// Over it a request is told to come back: the database is too slow for what is offered.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);

struct App {
    pool: PgPool,
    keys: Keys,
}

/// Why there is no 202.
enum Problem {
    Refused(Refusal),
    Invalid(Invalid),
    Database(sqlx::Error),
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<Invalid> for Problem {
    fn from(invalid: Invalid) -> Self {
        Self::Invalid(invalid)
    }
}

impl From<sqlx::Error> for Problem {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (status, detail) = match self {
            Self::Refused(Refusal::MissingKey) => (StatusCode::UNAUTHORIZED, "no API key".to_owned()),
            Self::Refused(Refusal::InvalidKey) => (StatusCode::UNAUTHORIZED, "not a valid API key".to_owned()),
            Self::Refused(Refusal::OrgDisabled) => (StatusCode::FORBIDDEN, "the organisation is disabled".to_owned()),
            Self::Refused(Refusal::Database(error)) | Self::Database(error) => {
                eprintln!("database: {error}");
                (StatusCode::SERVICE_UNAVAILABLE, "the database is away or too slow".to_owned())
            }
            Self::Invalid(Invalid::Json(error)) => (StatusCode::BAD_REQUEST, error.to_string()),
            Self::Invalid(Invalid::Field(name)) => (StatusCode::UNPROCESSABLE_ENTITY, format!("`{name}` is not valid")),
        };
        (status, detail).into_response()
    }
}

async fn post_event(State(app): State<Arc<App>>, headers: HeaderMap, body: Bytes) -> Result<Response, Problem> {
    let org = app.keys.organisation(&app.pool, &headers).await?;
    let event = Event::parse(org, &body)?;
    let id = event.store(&app.pool).await?;
    let answer = format!(r#"{{"id":"{id}","status":"accepted"}}"#);
    Ok((StatusCode::ACCEPTED, [(header::CONTENT_TYPE, "application/json")], answer).into_response())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let usage = "usage: DATABASE_URL=… POOL_SIZE=20 axum_sqlx 127.0.0.1:PORT";
    let listen: SocketAddr = std::env::args().nth(1).ok_or(usage)?.parse()?;
    let pool_size: u32 = std::env::var("POOL_SIZE").map_err(|_| usage)?.parse()?;
    let database: PgConnectOptions = std::env::var("DATABASE_URL").map_err(|_| usage)?.parse()?;
    let pool = PgPoolOptions::new()
        .min_connections(pool_size)
        .max_connections(pool_size)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        // A ping before every use would be a second round trip for each event; a dead connection is an error here, too.
        .test_before_acquire(false)
        .connect_with(database)
        .await?;
    let app = Arc::new(App { pool, keys: Keys::default() });
    let limit = DefaultBodyLimit::max(BODY_BYTES_MAX);
    let router = Router::new().route("/api/events", post(post_event)).layer(limit).with_state(app);
    let listener = TcpListener::bind(listen).await?.tap_io(|stream| {
        if let Err(error) = stream.set_nodelay(true) {
            eprintln!("TCP_NODELAY: {error}");
        }
    });
    println!("ready listen={listen}");
    let mut terminate = signal(SignalKind::terminate())?;
    axum::serve(listener, router)
        .with_graceful_shutdown(async move {
            let _ = terminate.recv().await;
        })
        .await?;
    Ok(())
}
