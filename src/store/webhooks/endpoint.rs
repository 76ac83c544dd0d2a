//! Endpoints as the stores keep them.

use std::fmt;

use millrace_base::clock::Timestamp;
use millrace_base::event::{EndpointId, OrgId};

/// A webhook secret as it rests: encrypted and authenticated, bound to its endpoint.
#[derive(Clone, PartialEq, Eq)]
pub struct SealedSecret(pub Vec<u8>);

impl fmt::Debug for SealedSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealedSecret({} bytes)", self.0.len())
    }
}

/// Which key seals: eight bytes of a hash of it. They stand in every sealed secret, behind one byte for its version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyFingerprint(pub [u8; 8]);

/// Why a secret is not kept that was sealed with another key than the endpoints of this store have.
pub(crate) const FOREIGN_KEY: &str = "webhook_secret_key is not the key that endpoints' secrets are sealed with here";

/// A row of an endpoint that is not one of this program's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// Which.
    pub id: EndpointId,
    /// Whose; nil where that cannot be read either.
    pub org: OrgId,
    /// What is wrong with it; quotes nothing.
    pub why: String,
}

/// One endpoint of many: one that cannot be read does not keep the others from being.
pub type EndpointRow = Result<Endpoint, Unreadable>;

/// A secret to replace an endpoint's.
#[derive(Clone, Copy, Debug)]
pub struct Rotation<'a> {
    /// The new one.
    pub secret: &'a SealedSecret,
    /// As [`NewEndpoint::keys`].
    pub keys: &'a [KeyFingerprint],
    /// Until when the one before it signs too.
    pub previous_until: Timestamp,
    /// Secrets of the endpoint that cannot be opened: not to be kept. Where that is the present one, the one before
    /// it goes on signing for as long as it would have.
    pub unusable: &'a [SealedSecret],
}

/// Where an organisation wants its events.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Stable id.
    pub id: EndpointId,
    /// Whose it is.
    pub org: OrgId,
    /// Where to.
    pub url: String,
    /// The owner's words.
    pub description: String,
    /// Which events: exact types and `prefix.*`; `None` is all.
    pub event_types: Option<Vec<String>>,
    /// Sent with every request, in this order.
    pub headers: Vec<(String, String)>,
    /// Whether anything is planned for it or sent to it. What is pending waits while it is not.
    pub enabled: bool,
    /// When it was enabled last; `None` where that has not been since it was made.
    pub enabled_at: Option<Timestamp>,
    /// Why the server disabled it; `None` where the owner did.
    pub disabled_reason: Option<String>,
    /// Whether its organisation is disabled: what is planned for it waits until that is enabled.
    pub org_disabled: bool,
    /// Requests a second at most; `None` is no limit.
    pub rate_limit_per_second: Option<u32>,
    /// Signs every request.
    pub secret: SealedSecret,
    /// The one before it, which signs beside it until then.
    pub previous_secret: Option<(SealedSecret, Timestamp)>,
    /// Since when every attempt has failed, as far as clocks can tell.
    pub failing_since: Option<Timestamp>,
    /// When it was made.
    pub created_at: Timestamp,
}

impl fmt::Debug for Endpoint {
    /// Without the URL and the headers: both may hold what the receiver takes for a password.
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
    /// The keys of whoever sealed it; it is sealed with the first.
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
    /// Enabling forgets why it was disabled and since when it failed, as another URL does, and makes what waited due.
    pub enabled: Option<bool>,
    /// New limit: `Some(None)` is none.
    pub rate_limit_per_second: Option<Option<u32>>,
}
