use std::sync::Arc;

use lock_core::{LockError, Secret, backend::Tasks};
use redis::ConnectionInfo;

use crate::{
    config::{RedisLockBuilder, invalid},
    transport::address::Address,
    transport::cluster::Cluster,
    transport::reconnect::{Listener, Timeouts},
    transport::routing::Servers,
    transport::sentinel::Sentinels,
    transport::upstream::Upstream,
};

/// Servers that keep the locks, and those that know where they are.
#[derive(Clone, Debug)]
pub(crate) enum Topology {
    Server(Address),
    Sentinels {
        sentinels: Vec<Address>,
        service: String,
    },
    Cluster(Vec<Address>),
}

/// Credentials of a client.
#[derive(Clone, Debug, Default)]
pub(crate) struct Credentials {
    pub(crate) user: Option<String>,
    pub(crate) password: Option<Secret>,
}

impl Topology {
    /// The connections that `settings` ask for; none is made yet.
    pub(crate) fn servers(
        settings: &RedisLockBuilder,
        timeouts: Timeouts,
        tasks: &Tasks,
        listener: Arc<dyn Listener>,
    ) -> Result<Servers, LockError> {
        match &settings.topology {
            Self::Server(address) => Ok(Servers::one(
                Upstream::Fixed(settings.info(address)?),
                timeouts,
                tasks,
                listener,
            )),
            Self::Sentinels { sentinels, service } => {
                let first = non_empty(sentinels, "sentinel")?;
                if service.is_empty() || service.contains(char::is_whitespace) {
                    return Err(invalid(
                        "the sentinels need the service's name, without spaces",
                    ));
                }
                // Sentinels have neither the servers' users nor databases.
                let like = settings.info_with(
                    first,
                    settings
                        .sentinel_credentials
                        .as_ref()
                        .unwrap_or(&Credentials::default()),
                    0,
                )?;
                let sentinels: Vec<ConnectionInfo> = sentinels
                    .iter()
                    .map(|sentinel| sentinel.with_settings_of(&like))
                    .collect();
                // Silent ones leave time to connect to the master.
                let limit = timeouts.response.min(timeouts.connect / 3);
                let sentinels =
                    Sentinels::new(service.clone(), sentinels, settings.info(first)?, limit);
                Ok(Servers::one(
                    Upstream::Master(sentinels),
                    timeouts,
                    tasks,
                    listener,
                ))
            }
            Self::Cluster(seeds) => {
                let info = settings.info(non_empty(seeds, "server")?)?;
                if info.redis_settings().db() != 0 {
                    return Err(invalid("a cluster has no database but 0"));
                }
                Ok(Servers::Cluster(Cluster::new(
                    seeds.clone(),
                    info,
                    timeouts,
                    tasks.clone(),
                    listener,
                )))
            }
        }
    }
}

fn non_empty<'a>(addresses: &'a [Address], what: &str) -> Result<&'a Address, LockError> {
    addresses.first().ok_or_else(|| {
        invalid(format!(
            "there is no address of a {what}; give at least one, better all"
        ))
    })
}
