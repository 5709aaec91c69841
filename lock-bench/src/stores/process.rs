use async_trait::async_trait;

use crate::{
    Result,
    stores::{Requests, Store},
};

/// No server: the locks are in the worker's own memory.
pub(crate) struct ProcessStore;

#[async_trait]
impl Store for ProcessStore {
    fn url(&self) -> &str {
        "mem://"
    }

    async fn version(&self) -> Result<String> {
        Ok("in memory".to_owned())
    }

    async fn requests(&self) -> Result<Option<Requests>> {
        Ok(None)
    }

    async fn tidy(&self) -> Result<()> {
        Ok(())
    }

    async fn leases(&self) -> Result<Option<u64>> {
        Ok(None)
    }
}
