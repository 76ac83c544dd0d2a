//! DIRECTORY: every enabled webhook endpoint, as planning and sending need it: filters parsed, headers built, secrets
//! opened.
//!
//! A copy of the `endpoints` table in memory, replaced one organisation at a time. The claiming thread keeps it current:
//! all of it whenever changes may have been missed, an organisation's part when it changed (from any process, within a
//! second). A control request that changes an endpoint refreshes that organisation itself before it is answered, so what
//! was just created takes the next event.
//!
//! Readers take one read lock for a batch; an organisation without endpoints costs them one lookup. About 1 KiB an
//! endpoint, and [`limits::ENDPOINTS_PER_ORG_MAX`] of them for each organisation, which only the operator makes.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use hyper::Uri;
use hyper::header::HeaderMap;

use super::filter::{self, EventTypeFilter};
use super::headers;
use super::outcome::ErrorClass;
use super::room::Share;
use super::secret::{SecretBox, WebhookSecret};
use super::target::{TargetPolicy, request_uri};
use crate::clock::Timestamp;
use crate::event::{EndpointId, Event, OrgId};
use crate::limits;
use crate::store::webhooks::Endpoint;
use crate::store::{Store, StoreError};

/// One endpoint, ready for use.
pub struct LiveEndpoint {
    /// Its id.
    pub id: EndpointId,
    /// Whose it is.
    pub org: OrgId,
    /// What its requests are made of; or why none can be made.
    pub outfit: Result<Outfit, ErrorClass>,
    /// Requests per second, at most.
    pub rate_limit_per_second: Option<u32>,
    /// Since when nothing but failures came back, as noted in the database when it was last read.
    pub failing_since: Option<Timestamp>,
    /// What it holds of the room; outlives changes of the endpoint.
    pub share: Arc<Share>,
    event_types: Option<Vec<EventTypeFilter>>,
}

/// What an endpoint's requests are made of.
pub struct Outfit {
    /// Where they go.
    pub url: Uri,
    /// What each carries besides the standard fields.
    pub headers: HeaderMap,
    secret: WebhookSecret,
    previous_secret: Option<(WebhookSecret, Timestamp)>,
}

impl Outfit {
    /// The secrets to sign with at `now`, the current one first.
    pub fn secrets(&self, now: Timestamp) -> impl Iterator<Item = &WebhookSecret> {
        let previous = self.previous_secret.iter().filter(move |(_, until)| now < *until).map(|(secret, _)| secret);
        std::iter::once(&self.secret).chain(previous)
    }
}

impl LiveEndpoint {
    /// Whether events of this type go to it.
    pub fn wants(&self, event_type: &str) -> bool {
        self.event_types.as_ref().is_none_or(|filters| filter::matches_any(filters, event_type))
    }
}

/// All of them.
pub struct Directory {
    entries: RwLock<Entries>,
    is_loaded: AtomicBool,
    secrets: Arc<SecretBox>,
    policy: TargetPolicy,
    /// Held from the question to the store until its answer is in `entries`: an older answer never replaces a newer one.
    refreshing: Mutex<()>,
}

#[derive(Default)]
struct Entries {
    by_org: HashMap<OrgId, Vec<Arc<LiveEndpoint>>>,
    by_id: HashMap<EndpointId, Arc<LiveEndpoint>>,
}

impl Entries {
    fn put(&mut self, org: OrgId, endpoints: Vec<Arc<LiveEndpoint>>) {
        for endpoint in self.by_org.remove(&org).into_iter().flatten() {
            self.by_id.remove(&endpoint.id);
        }
        if !endpoints.is_empty() {
            self.by_id.extend(endpoints.iter().map(|endpoint| (endpoint.id, Arc::clone(endpoint))));
            self.by_org.insert(org, endpoints);
        }
    }
}

impl Directory {
    /// An empty one, which knows nothing until the first refresh of all.
    pub fn new(secrets: Arc<SecretBox>, policy: TargetPolicy) -> Self {
        Self {
            entries: RwLock::default(),
            is_loaded: AtomicBool::new(false),
            secrets,
            policy,
            refreshing: Mutex::default(),
        }
    }

    /// Whether it has been read at all.
    pub fn is_loaded(&self) -> bool {
        // Pairs with the release in `refresh_all`.
        self.is_loaded.load(Ordering::Acquire)
    }

    /// The endpoint, where it is there and enabled.
    pub fn get(&self, id: EndpointId) -> Option<Arc<LiveEndpoint>> {
        self.read().by_id.get(&id).cloned()
    }

    /// Calls `plan` with each event's place and each endpoint that wants it, event by event.
    ///
    /// # Errors
    /// `Unavailable` until the endpoints have been read for the first time: an event stored before that would miss them.
    pub fn for_each_wanted(
        &self,
        events: &[Event],
        mut plan: impl FnMut(usize, &Arc<LiveEndpoint>),
    ) -> Result<(), StoreError> {
        if !self.is_loaded() {
            return Err(StoreError::Unavailable("the webhook endpoints have not been read yet".to_owned()));
        }
        let entries = self.read();
        if entries.by_org.is_empty() {
            return Ok(());
        }
        for (index, event) in events.iter().enumerate() {
            for endpoint in entries.by_org.get(&event.org).into_iter().flatten() {
                if endpoint.wants(event.type_text()) {
                    plan(index, endpoint);
                }
            }
        }
        Ok(())
    }

    /// Reads one organisation's endpoints again.
    pub fn refresh(&self, store: &dyn Store, org: OrgId) -> Result<(), StoreError> {
        let _turn = self.turn();
        let found = self.with_shares(store.endpoints(org)?);
        self.write().put(org, found);
        Ok(())
    }

    /// Reads all endpoints again.
    pub fn refresh_all(&self, store: &dyn Store) -> Result<(), StoreError> {
        let _turn = self.turn();
        let mut fresh = Entries::default();
        let mut after = None;
        loop {
            let page = store.all_endpoints(after, limits::ENDPOINTS_PAGE)?;
            let is_last = page.len() < limits::ENDPOINTS_PAGE as usize;
            after = page.last().map(|endpoint| endpoint.id);
            for endpoint in self.with_shares(page) {
                fresh.by_id.insert(endpoint.id, Arc::clone(&endpoint));
                fresh.by_org.entry(endpoint.org).or_default().push(endpoint);
            }
            if is_last {
                break;
            }
        }
        *self.write() = fresh;
        self.is_loaded.store(true, Ordering::Release);
        Ok(())
    }

    /// The enabled ones, with the shares they already have.
    fn with_shares(&self, endpoints: Vec<Endpoint>) -> Vec<Arc<LiveEndpoint>> {
        let entries = self.read();
        let share = |id| entries.by_id.get(&id).map_or_else(Arc::default, |known| Arc::clone(&known.share));
        endpoints
            .into_iter()
            .filter(|endpoint| endpoint.enabled)
            .map(|endpoint| {
                let share = share(endpoint.id);
                Arc::new(self.live(&endpoint, share))
            })
            .collect()
    }

    fn live(&self, endpoint: &Endpoint, share: Arc<Share>) -> LiveEndpoint {
        let parse = |text: &String| match EventTypeFilter::parse(text) {
            Ok(filter) => Some(filter),
            Err(why) => {
                tracing::error!(endpoint = %endpoint.id, why, "an event type of a webhook endpoint cannot be read and is left out");
                None
            }
        };
        LiveEndpoint {
            id: endpoint.id,
            org: endpoint.org,
            outfit: self.outfit(endpoint),
            rate_limit_per_second: endpoint.rate_limit_per_second,
            failing_since: endpoint.failing_since,
            share,
            event_types: endpoint.event_types.as_ref().map(|types| types.iter().filter_map(parse).collect()),
        }
    }

    fn outfit(&self, endpoint: &Endpoint) -> Result<Outfit, ErrorClass> {
        let open = |sealed| {
            self.secrets.open(endpoint.id, sealed).map_err(|why| {
                tracing::error!(endpoint = %endpoint.id, why, "a webhook endpoint's secret cannot be opened; what is sent to it fails until it can");
                ErrorClass::SecretUnavailable
            })
        };
        let refused = |why: String| {
            tracing::warn!(endpoint = %endpoint.id, why, "a webhook endpoint is not allowed any more; what is sent to it is blocked");
            ErrorClass::AddressNotAllowed
        };
        let previous_secret = match &endpoint.previous_secret {
            Some((sealed, until)) if *until > Timestamp::now() => Some((open(sealed)?, *until)),
            _ => None,
        };
        Ok(Outfit {
            url: self
                .policy
                .parse_url(&endpoint.url)
                .and_then(|url| request_uri(&url).map_err(|error| error.to_string()))
                .map_err(refused)?,
            headers: headers::parse(&endpoint.headers).map_err(refused)?,
            secret: open(&endpoint.secret)?,
            previous_secret,
        })
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        self.refreshing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> RwLockReadGuard<'_, Entries> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Entries> {
        self.entries.write().unwrap_or_else(PoisonError::into_inner)
    }
}
