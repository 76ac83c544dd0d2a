//! An in-memory copy of every enabled webhook endpoint, prepared for planning and sending: filters parsed, headers built,
//! secrets opened.
//!
//! The cache is replaced one organisation at a time. The claimer keeps it current: it reloads everything whenever it may have
//! missed a change, and one organisation when that changed (from any process, within a second). A control request that changes
//! an endpoint reloads that organisation before it responds, so the next event sees the change.
//!
//! **An endpoint is suspended while nothing can be sent to it**: its secret cannot be opened here, its organisation is
//! disabled, or its row cannot be read. That is logged and affects no other endpoint. Its deliveries are planned and wait,
//! without an attempt, for a server that can send them. For an unreadable row nothing is planned.
//!
//! Readers take one read lock per batch; an organisation without endpoints costs one look-up. About 1 KiB an endpoint, and at
//! most [`limits::ENDPOINTS_PER_ORG_MAX`] for each organisation; only the operator creates organisations.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use hyper::Uri;
use hyper::header::HeaderMap;

use millrace_base::clock::Timestamp;
use millrace_base::event::{EndpointId, Event, OrgId};
use millrace_base::limits;
use millrace_store::webhooks::{Endpoint, EndpointRow, Unreadable};
use millrace_store::{Store, StoreError};

use crate::config::SECRET_KEY_FILE;
use crate::delivery::clock::DeliveryClock;
use crate::delivery::fleet_schedule::FleetSchedule;
use crate::delivery::outcome::ErrorClass;
use crate::endpoint::filter::{self, EventTypeFilter};
use crate::endpoint::headers;
use crate::endpoint::secret::{SecretBox, WebhookSecret};
use crate::endpoint::target_policy::{TargetPolicy, request_uri};
use crate::plan::budget::EndpointUsage;

/// One endpoint, prepared for planning and sending.
pub struct CachedEndpoint {
    /// The endpoint's id.
    pub id: EndpointId,
    /// The organisation it belongs to.
    pub org: OrgId,
    /// What its requests have in common, or why no request can be built.
    pub template: Result<RequestTemplate, ErrorClass>,
    org_disabled: bool,
    /// The most requests per second; `None` is no limit.
    pub rate_limit_per_second: Option<u32>,
    /// Since when every attempt has failed, according to the database at the last reload.
    pub failing_since: Option<Timestamp>,
    /// What it uses of the budget, and whether its circuit is open. A change of the endpoint keeps this, except when the
    /// endpoint is disabled, enabled or suspended or gets another URL: then it is another receiver with a closed circuit.
    pub usage: Arc<EndpointUsage>,
    event_types: Option<Vec<EventTypeFilter>>,
    /// The URL as the owner entered it.
    given_url: String,
    enabled_at: Option<Timestamp>,
}

/// What all requests to an endpoint have in common.
pub struct RequestTemplate {
    /// The URL of the requests.
    pub url: Uri,
    /// The endpoint's own headers.
    pub headers: HeaderMap,
    secret: WebhookSecret,
    previous_secret: Option<(WebhookSecret, Timestamp)>,
}

impl RequestTemplate {
    /// The secrets that sign at `now`, the current one first.
    pub fn secrets(&self, now: Timestamp) -> impl Iterator<Item = &WebhookSecret> {
        let previous = self.previous_secret.iter().filter(move |(_, until)| now < *until).map(|(secret, _)| secret);
        std::iter::once(&self.secret).chain(previous)
    }
}

impl CachedEndpoint {
    /// Whether this server cannot send to it now: its deliveries wait.
    pub fn is_suspended(&self) -> bool {
        self.org_disabled || self.is_secret_unavailable()
    }

    /// Whether `endpoint` is still the same receiver: not suspended, re-enabled or moved to another URL since.
    fn is_same_as(&self, endpoint: &Endpoint) -> bool {
        !self.is_suspended() && self.given_url == endpoint.url && self.enabled_at == endpoint.enabled_at
    }

    fn is_secret_unavailable(&self) -> bool {
        matches!(self.template, Err(ErrorClass::SecretUnavailable))
    }

    /// Whether it receives events of this type.
    pub fn wants(&self, event_type: &str) -> bool {
        self.event_types.as_ref().is_none_or(|filters| filter::matches_any(filters, event_type))
    }
}

/// All enabled endpoints. Shared by all threads.
pub struct EndpointCache {
    entries: RwLock<CacheEntries>,
    is_loaded: AtomicBool,
    /// Whether the first load found secrets sealed with a key that this server lacks, and no later load found otherwise.
    is_key_foreign: AtomicBool,
    secrets: Arc<SecretBox>,
    policy: TargetPolicy,
    /// Synchronised by the first load, before anything is planned.
    clock: Arc<DeliveryClock>,
    /// Synchronised with it, before anything can fail for good.
    fleet_schedule: Arc<FleetSchedule>,
    /// Held from the query to the update of `entries`, so that an older result never replaces a newer one.
    refreshing: Mutex<()>,
}

#[derive(Default)]
struct CacheEntries {
    by_org: HashMap<OrgId, Vec<Arc<CachedEndpoint>>>,
    by_id: HashMap<EndpointId, Arc<CachedEndpoint>>,
    /// Endpoints whose rows cannot be read, and their organisations.
    unreadable: HashMap<EndpointId, OrgId>,
}

impl CacheEntries {
    fn replace(&mut self, org: OrgId, rows: LoadedEndpoints) {
        for endpoint in self.by_org.remove(&org).into_iter().flatten() {
            self.by_id.remove(&endpoint.id);
        }
        self.unreadable.retain(|_, of| *of != org);
        self.add(rows);
    }

    fn add(&mut self, rows: LoadedEndpoints) {
        for endpoint in rows.live {
            self.by_id.insert(endpoint.id, Arc::clone(&endpoint));
            self.by_org.entry(endpoint.org).or_default().push(endpoint);
        }
        self.unreadable.extend(rows.unreadable.into_iter().map(|row| (row.id, row.org)));
    }
}

/// The endpoints of one query.
#[derive(Default)]
struct LoadedEndpoints {
    /// The enabled endpoints.
    live: Vec<Arc<CachedEndpoint>>,
    unreadable: Vec<Unreadable>,
}

impl EndpointCache {
    /// An empty cache; [`Self::refresh_all`] fills it.
    pub fn new(
        secrets: Arc<SecretBox>,
        policy: TargetPolicy,
        clock: Arc<DeliveryClock>,
        fleet_schedule: Arc<FleetSchedule>,
    ) -> Self {
        Self {
            entries: RwLock::default(),
            is_loaded: AtomicBool::new(false),
            is_key_foreign: AtomicBool::new(false),
            secrets,
            policy,
            clock,
            fleet_schedule,
            refreshing: Mutex::default(),
        }
    }

    /// Whether all endpoints have been loaded once.
    pub fn is_loaded(&self) -> bool {
        // Pairs with the release in `refresh_all`.
        self.is_loaded.load(Ordering::Acquire)
    }

    /// Why `/ready` should report this server as not ready: it was started without the key that secrets are sealed with.
    /// `None` if the key changed while the server ran, because no tenant and no other server may take this one out of service.
    pub fn not_ready_reason(&self) -> Option<&'static str> {
        self.is_key_foreign.load(Ordering::Relaxed).then_some(
            "webhook_secret_key is not the key that seals endpoint secrets; the log says what to do. Events are \
             accepted, webhooks wait",
        )
    }

    /// The endpoint if it exists, is enabled and is not suspended.
    pub fn get(&self, id: EndpointId) -> Option<Arc<CachedEndpoint>> {
        self.read().by_id.get(&id).filter(|endpoint| !endpoint.is_suspended()).cloned()
    }

    /// Whether it exists and is enabled, but suspended.
    pub fn is_suspended(&self, id: EndpointId) -> bool {
        let entries = self.read();
        entries.unreadable.contains_key(&id) || entries.by_id.get(&id).is_some_and(|endpoint| endpoint.is_suspended())
    }

    /// The number of endpoints that this server cannot send to until an operator intervenes.
    pub fn unusable_count(&self) -> usize {
        let entries = self.read();
        entries.unreadable.len() + entries.by_id.values().filter(|endpoint| endpoint.is_secret_unavailable()).count()
    }

    /// The ids of all endpoints that [`Self::get`] returns, in no order.
    pub fn ids(&self) -> Vec<EndpointId> {
        self.read().by_id.values().filter(|endpoint| !endpoint.is_suspended()).map(|endpoint| endpoint.id).collect()
    }

    /// Calls `plan` for each event and each endpoint that receives it, in the order of the events, with the event's index.
    ///
    /// # Errors
    /// `Unavailable` until the endpoints have been read for the first time: an event stored before that would miss them.
    pub fn for_each_wanted(
        &self,
        events: &[Event],
        mut plan: impl FnMut(usize, &Arc<CachedEndpoint>),
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
        let _lock = self.lock_refresh();
        let mut log_limit = LogLimit::default();
        let found = self.rows(store.endpoints(org)?, &mut log_limit);
        self.write().replace(org, found);
        Ok(())
    }

    /// Reloads all endpoints, and synchronises the clock, the retry schedule and the key check with the other servers.
    pub fn refresh_all(&self, store: &dyn Store) -> Result<(), StoreError> {
        let _lock = self.lock_refresh();
        self.clock.sync(store)?;
        self.fleet_schedule.sync(store)?;
        self.check_key(store)?;
        let mut fresh = CacheEntries::default();
        let mut after = None;
        let mut log_limit = LogLimit::default();
        loop {
            let page = store.all_endpoints(after, limits::ENDPOINTS_PAGE)?;
            let is_last = page.len() < limits::ENDPOINTS_PAGE as usize;
            after = page.last().map(|row| row.as_ref().map_or_else(|unreadable| unreadable.id, |endpoint| endpoint.id));
            fresh.add(self.rows(page, &mut log_limit));
            if is_last {
                break;
            }
        }
        *self.write() = fresh;
        self.is_loaded.store(true, Ordering::Release);
        Ok(())
    }

    /// Checks whether secrets are sealed with a key that this server has. A store that refuses the query does not stop
    /// ingestion: deliveries that cannot be signed wait in any case.
    fn check_key(&self, store: &dyn Store) -> Result<(), StoreError> {
        let key = match store.sealing_key() {
            Err(error @ StoreError::Misconfigured(_)) => {
                tracing::warn!(%error, "cannot check whether webhook_secret_key is the key of the other servers");
                return Ok(());
            }
            key => key?,
        };
        let is_foreign = key.is_some_and(|key| !self.secrets.fingerprints().contains(&key));
        if is_foreign {
            tracing::error!(
                "webhook_secret_key is not the key that seals endpoint secrets in this database: deliveries that this server \
                 cannot sign wait for another server or another key, and it seals no secret. Set \
                 MILLRACE_WEBHOOK_SECRET_KEY to the same value on every server, or restore {SECRET_KEY_FILE}; if that key \
                 is lost: `millrace endpoint accept-key`"
            );
        }
        if !is_foreign || !self.is_loaded() {
            self.is_key_foreign.store(is_foreign, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The enabled endpoints of `read`, with the usage of those that the cache already has.
    fn rows(&self, read: Vec<EndpointRow>, log_limit: &mut LogLimit) -> LoadedEndpoints {
        let entries = self.read();
        let mut rows = LoadedEndpoints::default();
        for row in read {
            match row {
                Ok(endpoint) if endpoint.enabled => {
                    let known = entries.by_id.get(&endpoint.id);
                    let usage = known.filter(|known| known.is_same_as(&endpoint));
                    let usage: Arc<EndpointUsage> = usage.map_or_else(Arc::default, |known| Arc::clone(&known.usage));
                    usage.set_rate_limit(endpoint.rate_limit_per_second);
                    rows.live.push(Arc::new(self.live(&endpoint, usage, log_limit)));
                }
                Ok(_) => {}
                Err(unreadable) => {
                    let Unreadable { id, org, why } = &unreadable;
                    log_limit.log(|| {
                        tracing::error!(endpoint = %id, %org, why, "the row of a webhook endpoint cannot be read: nothing is planned for it or \
                            sent to it; fix it, or delete it with `millrace endpoint delete`");
                    });
                    rows.unreadable.push(unreadable);
                }
            }
        }
        rows
    }

    fn live(&self, endpoint: &Endpoint, usage: Arc<EndpointUsage>, log_limit: &mut LogLimit) -> CachedEndpoint {
        let parse = |text: &String| match EventTypeFilter::parse(text) {
            Ok(filter) => Some(filter),
            Err(why) => {
                tracing::error!(endpoint = %endpoint.id, why, "an event type of a webhook endpoint cannot be read and is left out");
                None
            }
        };
        CachedEndpoint {
            id: endpoint.id,
            org: endpoint.org,
            template: self.template(endpoint, log_limit),
            org_disabled: endpoint.org_disabled,
            rate_limit_per_second: endpoint.rate_limit_per_second,
            failing_since: endpoint.failing_since,
            usage,
            given_url: endpoint.url.clone(),
            enabled_at: endpoint.enabled_at,
            event_types: endpoint.event_types.as_ref().map(|types| types.iter().filter_map(parse).collect()),
        }
    }

    fn template(&self, endpoint: &Endpoint, log_limit: &mut LogLimit) -> Result<RequestTemplate, ErrorClass> {
        let secret = self.secrets.open(endpoint.id, &endpoint.secret).map_err(|why| {
            log_limit.log(|| {
                tracing::error!(endpoint = %endpoint.id, org = %endpoint.org, why, "a webhook endpoint's secret cannot be opened; its deliveries \
                    wait until it can, here or on another server");
            });
            ErrorClass::SecretUnavailable
        })?;
        let previous_secret = match &endpoint.previous_secret {
            Some((sealed, until)) if *until > self.clock.shown() => match self.secrets.open(endpoint.id, sealed) {
                Ok(previous) => Some((previous, *until)),
                Err(why) => {
                    log_limit.log(|| {
                        tracing::warn!(endpoint = %endpoint.id, why, "a webhook endpoint's previous secret cannot be opened; only the current one signs");
                    });
                    None
                }
            },
            _ => None,
        };
        let refused = |why: String| {
            tracing::warn!(endpoint = %endpoint.id, why, "the URL or headers of a webhook endpoint are no longer allowed; its deliveries are blocked");
            ErrorClass::AddressNotAllowed
        };
        Ok(RequestTemplate {
            url: self
                .policy
                .parse_url(&endpoint.url)
                .and_then(|url| request_uri(&url).map_err(|error| error.to_string()))
                .map_err(refused)?,
            headers: headers::parse(&endpoint.headers).map_err(refused)?,
            secret,
            previous_secret,
        })
    }

    fn lock_refresh(&self) -> MutexGuard<'_, ()> {
        self.refreshing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> RwLockReadGuard<'_, CacheEntries> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, CacheEntries> {
        self.entries.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Limits the log lines of one load: a wrong key would otherwise log one line per endpoint.
#[derive(Default)]
struct LogLimit(usize);

impl LogLimit {
    const LINES_MAX: usize = 10;

    fn log(&mut self, say: impl FnOnce()) {
        self.0 += 1;
        if self.0 <= Self::LINES_MAX {
            say();
        }
    }
}

impl Drop for LogLimit {
    fn drop(&mut self) {
        if let Some(more) = self.0.checked_sub(Self::LINES_MAX).filter(|more| *more > 0) {
            tracing::error!(more, "more log lines of this kind about webhook endpoints were left out");
        }
    }
}
