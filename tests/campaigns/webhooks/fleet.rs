//! The endpoints: for each organisation a good one, and one of another kind that is changed while all goes on.

use std::sync::atomic::Ordering;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use support::certificates::Authority;
use support::draws::Draws;
use support::receiver::{Receiver, answer};

use crate::webhooks::inbox::Turn;
use crate::webhooks::receivers::{Kind, Listener, OTHERS};
use crate::webhooks::site::{Site, Tenant};

/// How long the secret before a rotation signs.
const OVERLAP_SECONDS: u64 = 2;

/// What an endpoint wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wants {
    All,
    /// Types that begin so: `order.` is `order.*`, `user.new` itself.
    Some(&'static [&'static str]),
    Nothing,
    /// It was changed meanwhile, and different servers know of that at different moments.
    Unknown,
}

impl Wants {
    /// Whether an event of this type; `None` where that depends.
    pub fn has(self, event_type: &str) -> Option<bool> {
        match self {
            Self::All => Some(true),
            Self::Some(types) => Some(types.iter().any(|wanted| event_type.starts_with(wanted))),
            Self::Nothing => Some(false),
            Self::Unknown => None,
        }
    }

    fn filter(self) -> Value {
        match self {
            Self::Some(types) => {
                let filter = |name: &&str| if name.ends_with('.') { format!("{name}*") } else { (*name).to_owned() };
                types.iter().map(filter).collect()
            }
            _ => Value::Null,
        }
    }
}

const FILTERS: [Wants; 2] = [Wants::Some(&["order."]), Wants::Some(&["user.new", "misc"])];

pub struct Endpoint {
    pub id: String,
    /// Which organisation's.
    pub org: usize,
    pub kind: Kind,
    pub listener: usize,
    /// What it wanted, stretch of time by stretch of time.
    pub history: Vec<Wants>,
    pub is_deleted: bool,
    now: Wants,
    version: u32,
}

pub struct Fleet {
    pub endpoints: Vec<Endpoint>,
    pub listeners: Vec<Listener>,
    /// When each stretch began, and what happened in it. What is posted in one is stored before the next begins.
    pub stretches: Vec<(u64, &'static str)>,
    pub trap: Receiver,
    authority: Authority,
    secrets: u64,
}

impl Fleet {
    /// Good endpoints only.
    pub fn open(site: &Site, tenants: &[Tenant], authority: Authority) -> Self {
        let trap = Receiver::forgetful(|_| answer(200, ""));
        let (endpoints, listeners, stretches) = (Vec::new(), Vec::new(), Vec::new());
        let mut fleet = Self { endpoints, listeners, stretches, trap, authority, secrets: 0 };
        for (org, tenant) in tenants.iter().enumerate() {
            let wants = if org % 5 == 4 { FILTERS[org / 5 % 2] } else { Wants::All };
            let listener = fleet.listen(Kind::Good, org == 3);
            fleet.create(site, tenant, org, Kind::Good, listener, wants);
        }
        fleet
    }

    /// One of each other kind, the bad ones disabled until [`Self::switch_bad`].
    pub fn add_others(&mut self, site: &Site, tenants: &[Tenant]) {
        for (number, kind) in OTHERS.into_iter().enumerate() {
            let org = number.min(tenants.len() - 1);
            let tenant = &tenants[org];
            let listener = self.listen(kind, false);
            let wants = if kind == Kind::Filtered { FILTERS[0] } else { Wants::All };
            let endpoint = self.create(site, tenant, org, kind, listener, wants);
            if kind.is_bad() {
                self.patch(site, tenants, endpoint, &json!({ "enabled": false }));
                self.wants(endpoint, Wants::Nothing);
            }
        }
    }

    fn listen(&mut self, kind: Kind, is_tls: bool) -> usize {
        let listener = Listener::start(kind, &self.authority, is_tls, &self.trap.url("/trap"));
        self.listeners.push(listener);
        self.listeners.len() - 1
    }

    fn create(&mut self, site: &Site, tenant: &Tenant, org: usize, kind: Kind, listener: usize, wants: Wants) -> usize {
        let secret = self.new_secret(listener);
        let mut body = kind.fields();
        body["url"] = self.listeners[listener].url(0).into();
        body["secret"] = secret.into();
        body["event_types"] = wants.filter();
        let made = site.call(org, "POST", "/api/endpoints", &tenant.key, Some(&body.to_string()));
        assert_eq!(made.status, 201, "{}", made.json());
        let id = made.json()["id"].as_str().unwrap().to_owned();
        let mut history = vec![Wants::Nothing; self.stretches.len()];
        // Made while a stretch is under way.
        if let Some(last) = history.last_mut() {
            *last = Wants::Unknown;
        }
        let endpoint = Endpoint { id, org, kind, listener, history, is_deleted: false, now: wants, version: 0 };
        self.endpoints.push(endpoint);
        self.endpoints.len() - 1
    }

    /// A secret that the receiver knows before the server does.
    fn new_secret(&mut self, listener: usize) -> String {
        self.secrets += 1;
        let secret =
            format!("whsec_{}", BASE64_STANDARD.encode(format!("the campaign's secret number {:08}", self.secrets)));
        self.listeners[listener].inbox.secrets.lock().unwrap().push(secret.clone());
        secret
    }

    fn patch(&mut self, site: &Site, tenants: &[Tenant], endpoint: usize, change: &Value) {
        let Endpoint { id, org, .. } = &self.endpoints[endpoint];
        let path = format!("/api/endpoints/{id}");
        let done =
            site.call(self.stretches.len() + endpoint, "PATCH", &path, &tenants[*org].key, Some(&change.to_string()));
        assert_eq!(done.status, 200, "{}", done.json());
    }

    /// A new stretch of time begins now, with nobody posting and everything stored.
    pub fn begin_stretch(&mut self, at: u64, name: &'static str) {
        self.stretches.push((at, name));
        for endpoint in &mut self.endpoints {
            endpoint.history.push(endpoint.now);
            let listener = &self.listeners[endpoint.listener];
            // From here on every server knows.
            listener.inbox.version_min.store(endpoint.version, Ordering::SeqCst);
            let mut secrets = listener.inbox.secrets.lock().unwrap();
            let old = secrets.len() - 1;
            secrets.drain(..old);
        }
    }

    /// From now on what it wants is this; in this stretch, who knows.
    fn wants(&mut self, endpoint: usize, wants: Wants) {
        let endpoint = &mut self.endpoints[endpoint];
        endpoint.now = wants;
        *endpoint.history.last_mut().expect("a stretch is under way") = Wants::Unknown;
    }

    fn others(&self) -> Vec<usize> {
        let is_other = |endpoint: &Endpoint| endpoint.kind != Kind::Good && !endpoint.is_deleted;
        (0..self.endpoints.len()).filter(|at| is_other(&self.endpoints[*at])).collect()
    }

    /// The bad ones are enabled, or disabled.
    pub fn switch_bad(&mut self, site: &Site, tenants: &[Tenant], is_on: bool) {
        for endpoint in self.others() {
            let kind = self.endpoints[endpoint].kind;
            if kind.is_bad() {
                self.patch(site, tenants, endpoint, &json!({ "enabled": is_on }));
                self.wants(
                    endpoint,
                    match (kind, is_on) {
                        (_, false) => Wants::Nothing,
                        // It is disabled by the server, whenever that has its answer.
                        (Kind::Gone, true) => Wants::Unknown,
                        (_, true) => Wants::All,
                    },
                );
            }
        }
    }

    /// What happens to endpoints in each stretch, among the posting: those that fail get another URL, so that their
    /// circuits are closed and they are asked again; some of the others are changed, as drawn.
    pub fn change(&mut self, site: &Site, tenants: &[Tenant], draws: &mut Draws) {
        for endpoint in self.others() {
            let Endpoint { id, org, kind, listener, now, version, .. } = &self.endpoints[endpoint];
            let (id, org, kind, listener, now, version) = (id.clone(), *org, *kind, *listener, *now, version + 1);
            let (key, path) = (&tenants[org].key, format!("/api/endpoints/{id}"));
            let is_drawn = draws.below(2) == 0;
            let url = json!({ "url": self.listeners[listener].url(version) });
            match kind {
                Kind::Gone => {
                    self.patch(site, tenants, endpoint, &json!({ "enabled": true }));
                    self.wants(endpoint, Wants::Unknown);
                }
                Kind::Moved if is_drawn => {
                    self.patch(site, tenants, endpoint, &url);
                    self.endpoints[endpoint].version = version;
                }
                Kind::Moody => self.listeners[listener].is_sick.store(is_drawn, Ordering::Relaxed),
                Kind::Switched if is_drawn => {
                    let is_on = now == Wants::Nothing;
                    self.patch(site, tenants, endpoint, &json!({ "enabled": is_on }));
                    self.wants(endpoint, if is_on { Wants::All } else { Wants::Nothing });
                }
                Kind::Rotated if is_drawn => {
                    let body = json!({ "secret": self.new_secret(listener), "overlap_seconds": OVERLAP_SECONDS });
                    let rotated =
                        site.call(endpoint, "POST", &format!("{path}/rotate-secret"), key, Some(&body.to_string()));
                    assert_eq!(rotated.status, 200, "{}", rotated.json());
                }
                Kind::Filtered if is_drawn => {
                    let wants = if now == FILTERS[0] { FILTERS[1] } else { FILTERS[0] };
                    self.patch(site, tenants, endpoint, &json!({ "event_types": wants.filter() }));
                    self.wants(endpoint, wants);
                }
                Kind::Deleted if is_drawn => {
                    let deleted = site.call(endpoint, "DELETE", &path, key, None);
                    assert_eq!(deleted.status, 204);
                    self.wants(endpoint, Wants::Nothing);
                    self.endpoints[endpoint].is_deleted = true;
                    let listener = self.listen(kind, false);
                    self.create(site, &tenants[org], org, kind, listener, Wants::All);
                }
                _ if kind.takes_nothing() => {
                    self.patch(site, tenants, endpoint, &url);
                    self.endpoints[endpoint].version = version;
                }
                _ => {}
            }
        }
    }

    /// For the end: everybody is as well as may be.
    pub fn heal(&mut self, site: &Site, tenants: &[Tenant]) {
        for endpoint in self.others() {
            let Endpoint { kind, listener, now, .. } = self.endpoints[endpoint];
            match kind {
                Kind::Moody => self.listeners[listener].is_sick.store(false, Ordering::Relaxed),
                Kind::Switched if now == Wants::Nothing => {
                    self.patch(site, tenants, endpoint, &json!({ "enabled": true }));
                    self.wants(endpoint, Wants::All);
                }
                _ => {}
            }
        }
    }

    /// Each good receiver's p99 beside the bad ones and alone, in microseconds, and how many arrived in both turns.
    pub fn p99s(&self) -> Vec<(u64, u64, usize)> {
        let good = self.endpoints.iter().filter(|endpoint| endpoint.kind == Kind::Good);
        good.map(|endpoint| {
            let of = |turn| self.listeners[endpoint.listener].inbox.latencies(turn);
            let p99 = |sorted: &[u64]| sorted.get(sorted.len() * 99 / 100).copied().unwrap_or_default();
            let (beside, alone) = (of(Turn::Beside), of(Turn::Alone));
            (p99(&beside), p99(&alone), beside.len().min(alone.len()))
        })
        .collect()
    }
}
