use std::{fmt, sync::Arc};

use redis::ConnectionInfo;

use crate::{
    error::Failure,
    transport::address::{Address, shown},
    transport::reconnect::{Connection, Shared},
    transport::sentinel::Sentinels,
};

/// Server that a link connects to.
#[derive(Clone)]
#[allow(clippy::large_enum_variant, reason = "there are two for each server")]
pub(crate) enum Upstream {
    /// Always the same.
    Fixed(ConnectionInfo),
    /// Whichever the sentinels name as the master.
    Master(Arc<Sentinels>),
}

impl Upstream {
    /// Returns where to connect now; with an address if it may become another server's turn.
    pub(crate) async fn find(&self) -> Result<(ConnectionInfo, Option<Arc<Address>>), Failure> {
        match self {
            Self::Fixed(info) => Ok((info.clone(), None)),
            Self::Master(sentinels) => {
                let master = sentinels.find_master().await?;
                Ok((sentinels.info(&master), Some(master)))
            }
        }
    }

    /// Fails unless the server may be used.
    pub(crate) async fn check(&self, connection: &Connection) -> Result<(), Failure> {
        match self {
            Self::Fixed(_) => Ok(()),
            Self::Master(_) => Sentinels::check_role(connection).await,
        }
    }

    /// Returns whether it is still this server's turn.
    pub(crate) fn is_in_charge(&self, address: Option<&Address>) -> bool {
        match (self, address) {
            (Self::Master(sentinels), Some(address)) => sentinels.is_master(address),
            _ => true,
        }
    }

    /// Until it is another server's turn.
    pub(crate) async fn until_not(&self, address: Option<&Address>) {
        match (self, address) {
            (Self::Master(sentinels), Some(address)) => sentinels.until_not(address).await,
            _ => std::future::pending().await,
        }
    }

    /// Has the connection told when its server's turn ends.
    pub(crate) fn register(&self, link: &Arc<Shared>) {
        if let Self::Master(sentinels) = self {
            sentinels.register(Arc::downgrade(link));
        }
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(info) => f.write_str(&shown(info)),
            Self::Master(sentinels) => sentinels.fmt(f),
        }
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
