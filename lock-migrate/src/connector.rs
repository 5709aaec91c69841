use std::{borrow::Cow, sync::Arc};

use async_trait::async_trait;
use lock_core::{
    Capabilities, Connector, DistributedLock, ErrorKind, LockError, LockUrl, Registry,
};
use lock_etcd::EtcdConnector;

use crate::{EtcdFloor, MigratingLock, Operator, Phase, capabilities, coordination::is_complete};

/// Opens URLs of a migration to etcd: the source's own URL with `migrate+` before its scheme, and
/// the parameters `phase` and `target`.
///
/// `migrate+redis://user:password@h:6379/0?phase=dual&target=etcd://h1:2379,h2:2379/namespace`
///
/// | parameter | meaning |
/// | --- | --- |
/// | `phase` | `source-only`, `dual`, `target-only` or `final`, see [`Phase`]; or `coordinated`: for each name the one that [operators](crate::Operator) have set in the target |
/// | `target` | the target's URL; write `@`, `#`, `&` and `%` in it as `%40`, `%23`, `%26` and `%25` |
/// | `way_back=true` | with `phase=source-only`: wait until the source's tokens are beyond the target's |
///
/// All other parameters are the source's. Only the stores that the phase needs are connected: with
/// `source-only` etcd need not be there, from `target-only` on the source need not; with
/// `coordinated` both must be, until the migration of all names is complete. The membership of a
/// process then has the target's `ttl`.
#[derive(Clone, Debug)]
pub struct MigrateConnector {
    sources: Registry,
}

impl MigrateConnector {
    /// For sources that this registry opens.
    #[must_use]
    pub fn new(sources: Registry) -> Self {
        Self { sources }
    }
}

/// Settings that a URL gives.
struct Parsed {
    /// None if the coordinator says so.
    phase: Option<Phase>,
    source: LockUrl,
    target: LockUrl,
    is_way_back: bool,
}

/// The value of `phase` that leaves it to the coordinator.
const COORDINATED: &str = "coordinated";

const OWN: &[&str] = &["phase", "target", "way_back"];

const PREFIX: &str = "migrate+";

impl Parsed {
    fn new(url: &LockUrl) -> Result<Self, LockError> {
        let phase = url.param("phase").ok_or_else(|| {
            invalid("the URL has no phase; add phase=coordinated, source-only, dual, target-only or final")
        })?;
        let phase = match phase {
            COORDINATED => None,
            phase => Some(phase.parse().map_err(|error: LockError| {
                invalid(format!("{}, or coordinated", error.message()))
            })?),
        };
        let target = url.param("target").ok_or_else(|| {
            invalid("the URL has no target; add target=etcd://host:2379/namespace")
        })?;
        let target: LockUrl = target.parse()?;
        if !EtcdConnector.schemes().contains(&target.scheme()) {
            return Err(invalid("the target is not etcd; write etcd:// or etcds://"));
        }
        let scheme = url.scheme().strip_prefix(PREFIX).unwrap_or(url.scheme());
        let source = url.rewritten(scheme, OWN);
        let is_same = EtcdConnector.schemes().contains(&source.scheme())
            && source.path() == target.path()
            && (source.endpoints().iter()).any(|endpoint| target.endpoints().contains(endpoint));
        if is_same {
            return Err(invalid("source and target are the same; give two stores"));
        }
        let is_way_back = url.flag("way_back")?.unwrap_or_default();
        if is_way_back && phase != Some(Phase::SourceOnly) {
            return Err(invalid(
                "`way_back` goes with phase=source-only; leave it out",
            ));
        }
        Ok(Self {
            phase,
            source,
            target,
            is_way_back,
        })
    }
}

fn invalid(message: impl Into<Cow<'static, str>>) -> LockError {
    LockError::new(ErrorKind::InvalidUrl, message)
}

#[async_trait]
impl Connector for MigrateConnector {
    fn schemes(&self) -> &'static [&'static str] {
        &[
            "migrate+redis",
            "migrate+rediss",
            "migrate+redis+sentinel",
            "migrate+rediss+sentinel",
            "migrate+redis+cluster",
            "migrate+rediss+cluster",
            "migrate+etcd",
            "migrate+etcds",
            "migrate+mem",
        ]
    }

    fn capabilities(&self, url: &LockUrl) -> Result<Capabilities, LockError> {
        let parsed = Parsed::new(url)?;
        let source = self.sources.capabilities(&parsed.source)?;
        let target = EtcdConnector.capabilities(&parsed.target)?;
        // Under a coordinator it can do what all phases can.
        let phase = parsed.phase.unwrap_or(Phase::Dual);
        capabilities(phase, Some(&source), Some(&target))
    }

    async fn connect(&self, url: &LockUrl) -> Result<Arc<dyn DistributedLock>, LockError> {
        let parsed = Parsed::new(url)?;
        let Some(phase) = parsed.phase else {
            return self.coordinated(&parsed).await;
        };
        let mut builder = MigratingLock::builder(phase);
        if phase.takes_source() {
            builder = builder.with_source(self.sources.open(&parsed.source).await?);
        }
        if phase.takes_target() || parsed.is_way_back {
            let target = EtcdConnector.open(&parsed.target).await?;
            let floor = Arc::new(EtcdFloor::new(&target));
            builder = builder.with_target(Arc::new(target), floor);
        }
        Ok(Arc::new(builder.build()?))
    }
}

impl MigrateConnector {
    async fn coordinated(&self, parsed: &Parsed) -> Result<Arc<dyn DistributedLock>, LockError> {
        let target = EtcdConnector.open(&parsed.target).await?;
        let records = Arc::new(target.records());
        if is_complete(&*records).await? {
            let floor = Arc::new(EtcdFloor::new(&target));
            let last = MigratingLock::builder(Phase::Final).with_target(Arc::new(target), floor);
            return Ok(Arc::new(last.build()?));
        }
        let source = self.sources.open(&parsed.source).await?;
        let client = MigratingLock::coordinated(source, Arc::new(target), records).build()?;
        client.joined().await?;
        Ok(Arc::new(client))
    }

    /// Opens both stores of a URL of a migration for an operator, which history calls `by`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidUrl`] for a URL without `phase=coordinated`, whose processes follow no
    /// plans; those of the stores.
    pub async fn operator(&self, url: &LockUrl, by: &str) -> Result<Operator, LockError> {
        if !url.scheme().starts_with(PREFIX) {
            return Err(invalid(
                "the URL is not one of a migration; write migrate+redis://...?phase=coordinated&target=etcd://...",
            ));
        }
        let parsed = Parsed::new(url)?;
        if let Some(phase) = parsed.phase {
            return Err(invalid(format!(
                "processes with phase={phase} follow no plans; write phase=coordinated, as the members have it"
            )));
        }
        let target = EtcdConnector.open(&parsed.target).await?;
        let records = Arc::new(target.records());
        let sources = self.sources.clone();
        Ok(Operator::with_source_at(
            sources,
            parsed.source,
            Arc::new(target),
            records,
            by,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(url: &str) -> Result<Parsed, LockError> {
        Parsed::new(&url.parse().unwrap())
    }

    #[test]
    fn a_url_is_the_sources_and_says_where_to() {
        let parsed = parsed(
            "migrate+redis+sentinel://u:p@s1,s2/main/0?ttl=5s&phase=dual&target=etcd://a:b%40h1:2379,h2/prod?ttl=9s",
        );
        let parsed = parsed.unwrap();
        assert_eq!(parsed.phase, Some(Phase::Dual));
        let source: LockUrl = "redis+sentinel://u:p@s1,s2/main/0?ttl=5s".parse().unwrap();
        let target: LockUrl = "etcd://a:b@h1:2379,h2/prod?ttl=9s".parse().unwrap();
        assert!(parsed.source == source && parsed.target == target && !parsed.is_way_back);
    }

    #[test]
    fn the_coordinator_stands_in_for_a_phase() {
        let url = "migrate+redis://h?phase=coordinated&target=etcd://e/prod";
        assert_eq!(parsed(url).unwrap().phase, None);
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for (url, says) in [
            ("migrate+redis://h?target=etcd://e", "no phase"),
            ("migrate+redis://h?phase=both&target=etcd://e", "a phase is"),
            ("migrate+redis://h?phase=dual", "no target"),
            ("migrate+redis://h?phase=dual&target=redis://e", "not etcd"),
            (
                "migrate+etcd://e/a?phase=dual&target=etcd://e/a",
                "the same",
            ),
            (
                "migrate+redis://h?phase=dual&target=etcd://e&way_back=true",
                "way_back",
            ),
        ] {
            let error = parsed(url).err().unwrap();
            assert_eq!(error.kind(), ErrorKind::InvalidUrl);
            assert!(error.to_string().contains(says), "{error}");
        }
    }
}
