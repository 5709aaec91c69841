use crate::{
    Result,
    protocol::Job,
    subjects::{
        Client,
        ours::{OurContender, Ours},
    },
};

/// Our locks in two stores, of which [`MigrateStore`](crate::stores::migrate::MigrateStore) gives
/// both URLs.
pub(crate) struct Migrating<const IN: usize>(Ours);

/// In the source without a migration.
pub(crate) const SOURCE: usize = 0;
/// In the target without a migration.
pub(crate) const TARGET: usize = 1;
/// In the first phase.
pub(crate) const SOURCE_ONLY: usize = 2;
/// In the phase with both.
pub(crate) const DUAL: usize = 3;
/// In the last phase.
pub(crate) const FINAL: usize = 4;

/// Separates the URLs of the two stores.
pub(crate) const SEPARATOR: char = '|';

fn url_in(store: usize, source: &str, target: &str) -> String {
    let phase = match store {
        SOURCE => return source.to_owned(),
        TARGET => return target.to_owned(),
        SOURCE_ONLY => "source-only",
        DUAL => "dual",
        _ => "final",
    };
    let target = target.replace('&', "%26");
    format!("migrate+{source}?phase={phase}&target={target}")
}

impl<const IN: usize> Client for Migrating<IN> {
    type Contender = OurContender;

    async fn connect(job: &Job) -> Result<Self> {
        let (source, target) = job
            .url
            .split_once(SEPARATOR)
            .ok_or("a migration needs the URLs of two stores")?;
        let locks = polylock::connect(&url_in(IN, source, target)).await?;
        Ok(Self(Ours::over(locks)))
    }

    async fn contender(&self, name: &str) -> Result<OurContender> {
        self.0.contender(name).await
    }

    async fn close(self) {
        self.0.close().await;
    }
}
