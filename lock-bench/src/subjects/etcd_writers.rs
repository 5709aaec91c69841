use etcd_client::{Client as Etcd, KvClient};

use crate::{
    Result,
    protocol::Job,
    subjects::{Client, Contender, etcd_raw},
};

/// Clients that write to keys of their own, as the load beside the measurement.
pub(crate) struct Writers(Etcd);

pub(crate) struct Writer {
    kv: KvClient,
    key: String,
}

impl Client for Writers {
    type Contender = Writer;

    async fn connect(job: &Job) -> Result<Self> {
        etcd_raw::connect(&job.url).await.map(Self)
    }

    async fn contender(&self, name: &str) -> Result<Writer> {
        Ok(Writer {
            kv: self.0.kv_client(),
            key: name.to_owned(),
        })
    }

    async fn close(self) {}
}

impl Contender for Writer {
    type Held = ();

    async fn acquire(&self) -> Result<()> {
        self.kv
            .clone()
            .put(self.key.as_str(), "written by others", None)
            .await?;
        Ok(())
    }

    async fn release(&self, (): ()) -> Result<()> {
        Ok(())
    }
}
