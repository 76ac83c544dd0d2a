//! stub
use std::path::PathBuf;
use std::sync::Arc;
use super::{Store, StoreError};
/// x
pub struct StoreConfig {
    /// x
    pub database_url: Option<String>,
    /// x
    pub data_dir: PathBuf,
    /// x
    pub connections_max: u32,
}
/// x
pub fn open(_: &StoreConfig) -> Result<Arc<dyn Store>, StoreError> { Err(StoreError::Conflict("stub".into())) }
