//! Endpoints as the stores keep them.

use std::fmt;

use millrace_base::clock::Timestamp;
use millrace_base::event::{EndpointId, OrgId};

/// A webhook secret, encrypted and authenticated, and bound to its endpoint.
#[derive(Clone, PartialEq, Eq)]
pub struct SealedSecret(pub Vec<u8>);

impl fmt::Debug for SealedSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealedSecret({} bytes)", self.0.len())
    }
}

/// Identifies a sealing key: eight bytes of a hash of it. Every sealed secret has them after its version byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyFingerprint(pub [u8; 8]);

/// Why a secret that was sealed with another key than the store's is not stored.
pub(crate) const FOREIGN_KEY: &str = "webhook_secret_key is not the key that endpoints' secrets are sealed with here";

/// A row of the table of endpoints that this program cannot read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// The endpoint.
    pub id: EndpointId,
    /// The organisation; nil if that cannot be read either.
    pub org: OrgId,
    /// What is wrong with it; quotes nothing.
    pub why: String,
}

/// One endpoint of a list. One that cannot be read does not hide the others.
pub type EndpointRow = Result<Endpoint, Unreadable>;

/// A secret to replace an endpoint's.
#[derive(Clone, Copy, Debug)]
pub struct Rotation<'a> {
    /// The new one.
    pub secret: &'a SealedSecret,
    /// As [`NewEndpoint::keys`].
    pub keys: &'a [KeyFingerprint],
    /// Until when the previous secret signs as well.
    pub previous_until: Timestamp,
    /// Secrets of the endpoint that cannot be opened, and are dropped. If the current one is among them, the previous one
    /// goes on signing for as long as it would have.
    pub unusable: &'a [SealedSecret],
}

/// A receiver of an organisation's events.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Stable id.
    pub id: EndpointId,
    /// The organisation.
    pub org: OrgId,
    /// The URL that requests are sent to.
    pub url: String,
    /// The owner's description.
    pub description: String,
    /// The types of events that it gets: exact ones and `prefix.*`; `None` is all.
    pub event_types: Option<Vec<String>>,
    /// Sent with every request, in this order.
    pub headers: Vec<(String, String)>,
    /// Whether deliveries are planned for it and sent to it. Pending deliveries wait while it is disabled.
    pub enabled: bool,
    /// When it was enabled last; `None` if it was not since it was created.
    pub enabled_at: Option<Timestamp>,
    /// Why the server disabled it; `None` if the owner did.
    pub disabled_reason: Option<String>,
    /// Whether its organisation is disabled; its deliveries wait until that is enabled.
    pub org_disabled: bool,
    /// Requests a second at most; `None` is no limit.
    pub rate_limit_per_second: Option<u32>,
    /// Signs every request.
    pub secret: SealedSecret,
    /// The previous secret, and until when it signs as well.
    pub previous_secret: Option<(SealedSecret, Timestamp)>,
    /// Since when every attempt has failed.
    pub failing_since: Option<Timestamp>,
    /// When it was created.
    pub created_at: Timestamp,
}

impl fmt::Debug for Endpoint {
    /// Without the URL and the headers, which may hold passwords for the receiver.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("id", &self.id)
            .field("org", &self.org)
            .field("enabled", &self.enabled)
            .field("failing_since", &self.failing_since)
            .finish_non_exhaustive()
    }
}

/// What [`WebhookStore::create_endpoint`](super::WebhookStore::create_endpoint) needs; the caller makes the id, because the secret is sealed with it.
#[derive(Clone)]
#[allow(missing_docs, reason = "the fields are those of Endpoint")]
pub struct NewEndpoint {
    pub id: EndpointId,
    pub org: OrgId,
    pub url: String,
    pub description: String,
    pub event_types: Option<Vec<String>>,
    pub headers: Vec<(String, String)>,
    pub enabled: bool,
    pub rate_limit_per_second: Option<u32>,
    pub secret: SealedSecret,
    /// The sealing keys of the caller; the secret is sealed with the first.
    pub keys: Vec<KeyFingerprint>,
}

/// What [`WebhookStore::update_endpoint`](super::WebhookStore::update_endpoint) may change; `None` leaves a field as it is.
#[derive(Clone, Default)]
pub struct EndpointChange {
    /// New URL.
    pub url: Option<String>,
    /// New description.
    pub description: Option<String>,
    /// New filter: `Some(None)` is all events.
    pub event_types: Option<Option<Vec<String>>>,
    /// New headers, instead of all those before.
    pub headers: Option<Vec<(String, String)>>,
    /// Enables or disables. Enabling clears the reason and the failing time, as another URL does, and makes waiting
    /// deliveries due.
    pub enabled: Option<bool>,
    /// New limit: `Some(None)` is none.
    pub rate_limit_per_second: Option<Option<u32>>,
}
