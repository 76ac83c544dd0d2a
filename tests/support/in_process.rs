//! What a shard needs around it, in the process of a test or a bench: an embedded store with one organisation, the
//! verifier of its key, the control pool, the queue. No writers: whoever holds `accepted` plays them.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use tempfile::TempDir;

use millrace_base::health::Readiness;
use millrace_base::key::{ApiKey, Argon2Cost};
use millrace_base::limits;
use millrace_control::ControlPool;
use millrace_ingest::client_identity::Clients;
use millrace_ingest::shard::SharedState;
use millrace_journal::queue::{Accepted, queue};
use millrace_metrics::Metrics;
use millrace_store::open::{StoreConfig, open};
use millrace_tenant::change_feed::ChangeFeed;
use millrace_tenant::verifier::Verifier;
use millrace_webhooks::endpoint::management::EndpointManagement;
use millrace_webhooks::endpoint::secret::SecretBox;
use millrace_webhooks::endpoint::target_policy::TargetPolicy;
use millrace_wire::forwarded::Trust;

/// Far above what can be sent in a minute: every request is counted against it, none is refused.
const RATE_LIMIT_PER_MINUTE: u32 = limits::RATE_LIMIT_PER_MINUTE_MAX as u32;

/// See the module.
pub struct InProcess {
    /// For a shard; without a journal.
    pub shared: SharedState,
    /// The writers' end of the queue.
    pub accepted: Accepted,
    /// The organisation's.
    pub key: ApiKey,
    /// The embedded store's, until the end.
    pub data_dir: TempDir,
}

impl InProcess {
    /// Surroundings of `shards` shards.
    pub fn new(shards: usize) -> Self {
        let data_dir = tempfile::tempdir().expect("a temporary directory");
        let config = StoreConfig { database_url: None, data_dir: data_dir.path().to_owned(), connections_max: 4 };
        let store = open(&config).expect("an embedded store");
        store.migrate().expect("a fresh schema");
        let key = ApiKey::generate().expect("randomness");
        store
            .create_organization(
                "in-process",
                Some(RATE_LIMIT_PER_MINUTE),
                (key.id(), &key.verifier(Argon2Cost::default())),
            )
            .expect("a first organisation");
        let metrics = Metrics::new(shards);
        let feed = ChangeFeed::new(shards);
        let (queue, accepted) = queue(limits::QUEUE_EVENTS_DEFAULT);
        let secrets = SecretBox::from_config("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=").expect("a key");
        let management = EndpointManagement {
            policy: TargetPolicy::default(),
            secrets: Arc::new(secrets),
            on_change: Box::new(|_| Ok(())),
        };
        let control = ControlPool::start(
            Arc::clone(&store),
            Arc::clone(&metrics),
            Argon2Cost::default(),
            Arc::new(management),
            1,
            1,
        )
        .expect("a thread");
        let verifier = Verifier::start(&store, &feed, RATE_LIMIT_PER_MINUTE, &metrics).expect("threads");
        let state = SharedState {
            batch_keys: Arc::default(),
            queue,
            journal: None,
            may_spill: false,
            started: verifier.started(),
            verifier,
            feed,
            control: Arc::new(control),
            metrics,
            are_metrics_public: true,
            keep_alive_timeout: limits::KEEP_ALIVE_TIMEOUT_DEFAULT,
            ready: Arc::new(|| Readiness::Ready),
            draining: Arc::new(AtomicBool::new(false)),
            leaving: Arc::new(AtomicBool::new(false)),
            clients: Clients::new(64, 64, Trust::default()),
            certificates: None,
        };
        Self { shared: state, accepted, key, data_dir }
    }
}
