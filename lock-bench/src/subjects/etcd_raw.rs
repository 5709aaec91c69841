use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use etcd_client::{
    Client as Etcd, Compare, CompareOp, ConnectOptions, GetOptions, KvClient, PutOptions, Txn,
    TxnOp, TxnOpResponse,
};

use crate::{
    Result,
    protocol::Job,
    subjects::{Client, Contender},
};

/// etcd's Rust client, sending the two transactions that `lock-etcd` sends for a free lock, and
/// nothing else.
pub(crate) struct EtcdRaw {
    etcd: Etcd,
    lease: i64,
    last_number: Arc<AtomicU64>,
}

pub(crate) struct RawContender {
    kv: KvClient,
    lease: i64,
    prefix: String,
    last_number: Arc<AtomicU64>,
}

pub(crate) struct RawHeld {
    key: String,
    created: i64,
}

/// Longer than any measurement, so that nothing has to be renewed.
const TTL_SECONDS: i64 = 600;

/// Makes the connection as our backend does.
pub(crate) async fn connect(url: &str) -> Result<Etcd> {
    let endpoint = url.strip_prefix("etcd://").unwrap_or(url);
    let options = ConnectOptions::new()
        .with_connect_timeout(Duration::from_secs(5))
        .with_keep_alive(Duration::from_secs(5), Duration::from_secs(2))
        .with_keep_alive_while_idle(true)
        .with_require_leader(true);
    Ok(Etcd::connect([endpoint], Some(options)).await?)
}

impl Client for EtcdRaw {
    type Contender = RawContender;

    async fn connect(job: &Job) -> Result<Self> {
        let mut etcd = connect(&job.url).await?;
        let lease = etcd.lease_grant(TTL_SECONDS, None).await?.id();
        Ok(Self {
            etcd,
            lease,
            last_number: Arc::default(),
        })
    }

    async fn contender(&self, name: &str) -> Result<RawContender> {
        let last_number = Arc::clone(&self.last_number);
        Ok(RawContender {
            kv: self.etcd.kv_client(),
            lease: self.lease,
            prefix: format!("{name}/"),
            last_number,
        })
    }

    async fn close(mut self) {
        let _ = self.etcd.lease_revoke(self.lease).await;
    }
}

impl Contender for RawContender {
    type Held = RawHeld;

    async fn acquire(&self) -> Result<RawHeld> {
        let number = self.last_number.fetch_add(1, Ordering::Relaxed);
        let key = format!("{}{:x}-{number:x}", self.prefix, self.lease);
        let put = TxnOp::put(
            key.as_str(),
            note(),
            Some(PutOptions::new().with_lease(self.lease)),
        );
        let own = TxnOp::get(key.as_str(), Some(GetOptions::new().with_keys_only()));
        let glance = TxnOp::get(
            self.prefix.as_str(),
            Some(
                GetOptions::new()
                    .with_prefix()
                    .with_keys_only()
                    .with_limit(2),
            ),
        );
        let absent = Compare::create_revision(key.as_str(), CompareOp::Equal, 0);
        let txn = Txn::new()
            .when([absent])
            .and_then([put, glance.clone()])
            .or_else([own, glance]);
        let answer = self.kv.clone().txn(txn).await?;
        let alone = matches!(answer.op_responses().get(1), Some(TxnOpResponse::Get(found)) if found.kvs().len() == 1);
        match answer.header() {
            Some(header) if answer.succeeded() && alone => Ok(RawHeld {
                key,
                created: header.revision(),
            }),
            _ => Err("a name that nobody else uses was taken".into()),
        }
    }

    async fn release(&self, held: RawHeld) -> Result<()> {
        let mine = Compare::create_revision(held.key.as_str(), CompareOp::Equal, held.created);
        let txn = Txn::new()
            .when([mine])
            .and_then([TxnOp::delete(held.key, None)]);
        match self.kv.clone().txn(txn).await?.succeeded() {
            true => Ok(()),
            false => Err("the key was gone before its release".into()),
        }
    }
}

/// A note as long as the one that our backend writes.
fn note() -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    format!("{{\"since_ms\":{}}}", now.as_millis())
}
