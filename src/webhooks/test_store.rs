//! A store with one endpoint, for tests.

use std::sync::Arc;

use tempfile::TempDir;
use uuid::Uuid;

use millrace_base::event::{EndpointId, OrgId};
use millrace_base::key::{ApiKey, Argon2Cost};
use millrace_store::Store;
use millrace_store::open::{StoreConfig, open};
use millrace_store::webhooks::{KeyFingerprint, NewEndpoint, SealedSecret};

/// A store with one organisation and one endpoint.
pub struct TestStore {
    /// An embedded store with its schema.
    pub store: Arc<dyn Store>,
    /// An organisation without a rate limit.
    pub org: OrgId,
    /// The organisation's endpoint: enabled, without a filter.
    pub endpoint: EndpointId,
    /// The directory of the store.
    pub dir: TempDir,
}

impl TestStore {
    /// `seal` returns the endpoint's sealed secret and the fingerprints of the keys.
    pub fn new(seal: impl FnOnce(EndpointId) -> (SealedSecret, Vec<KeyFingerprint>)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = StoreConfig { database_url: None, data_dir: dir.path().to_owned(), connections_max: 2 };
        let store = open(&config).unwrap();
        store.migrate().unwrap();
        let key = ApiKey::generate().unwrap();
        let verifier = key.verifier(Argon2Cost { memory_kib: 8, iterations: 1 });
        let org = store.create_organization("acme", None, (key.id(), &verifier)).unwrap().id;
        let endpoint = EndpointId(Uuid::now_v7());
        let (secret, keys) = seal(endpoint);
        let new = NewEndpoint {
            id: endpoint,
            org,
            url: "https://receiver.test/".to_owned(),
            description: String::new(),
            event_types: None,
            headers: Vec::new(),
            enabled: true,
            rate_limit_per_second: None,
            secret,
            keys,
        };
        store.create_endpoint(&new).unwrap();
        Self { store, org, endpoint, dir }
    }
}
