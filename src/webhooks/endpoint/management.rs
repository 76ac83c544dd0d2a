//! What managing endpoints needs of this room: the control threads hold it, and whoever tests them.

use std::fmt;
use std::sync::Arc;

use millrace_base::event::OrgId;
use millrace_store::StoreError;

use crate::endpoint::secret::SecretBox;
use crate::endpoint::target_policy::TargetPolicy;

/// Where endpoints may be, what seals their secrets, and who is told of changes.
pub struct EndpointManagement {
    /// Judges the URLs of new and changed endpoints.
    pub policy: TargetPolicy,
    /// Seals and opens their secrets.
    pub secrets: Arc<SecretBox>,
    /// Called after every change of an organisation's endpoints and before it is answered, so that what is accepted
    /// after the answer is planned with the change. May block as a store may.
    ///
    /// # Errors
    /// The store's, where the change is not known here yet.
    pub on_change: Box<dyn Fn(OrgId) -> Result<(), StoreError> + Send + Sync>,
}

impl fmt::Debug for EndpointManagement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Management").field("policy", &self.policy).finish_non_exhaustive()
    }
}
