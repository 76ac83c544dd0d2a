//! What the control handlers need to create and change endpoints.

use std::fmt;
use std::sync::Arc;

use millrace_base::event::OrgId;
use millrace_store::StoreError;

use crate::endpoint::secret::SecretBox;
use crate::endpoint::target_policy::TargetPolicy;

/// The target policy, the secret keys and the notification of changes. Shared by the control threads.
pub struct EndpointManagement {
    /// Checks the URLs of new and changed endpoints.
    pub policy: TargetPolicy,
    /// Seals and opens endpoint secrets.
    pub secrets: Arc<SecretBox>,
    /// Called after every change of an organisation's endpoints, before the response: events accepted after the response are
    /// planned with the change. May block like a call of the store.
    ///
    /// # Errors
    /// The store's, if the endpoint cache does not have the change yet.
    pub on_change: Box<dyn Fn(OrgId) -> Result<(), StoreError> + Send + Sync>,
}

impl fmt::Debug for EndpointManagement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Management").field("policy", &self.policy).finish_non_exhaustive()
    }
}
