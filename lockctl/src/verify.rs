//! Compares what both stores of a migration hold.

use std::{collections::BTreeSet, time::Duration};

use clap::Args;
use polylock::{
    LockError,
    migrate::{Finding, Operator, Verification, Verifier},
};
use tokio::time::{Instant, sleep};

use crate::{
    Done,
    migrate::{Look, limit},
    output,
};

/// What to compare, and for how long.
#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// Start of the names of a plan, '' for all names; without it, all plans
    prefix: Option<String>,
    #[command(flatten)]
    pub(crate) look: Look,
    /// Look again and again for so long, at most 1day
    #[arg(long, value_name = "DURATION", value_parser = limit)]
    watch: Option<Duration>,
    /// Do not remember what was found for the next `advance`
    #[arg(long)]
    dry_run: bool,
}

/// Between two looks.
const PAUSE: Duration = Duration::from_secs(1);

impl Verify {
    pub(crate) async fn run(&self, operator: &Operator) -> Result<Done, LockError> {
        let prefixes = match &self.prefix {
            Some(prefix) => vec![prefix.clone()],
            None => {
                let plans = operator.status().await?.plans.into_iter();
                plans.map(|it| it.plan.prefix).collect()
            }
        };
        let mut verifications = match self.watch {
            Some(watch) => self.watch(operator, &prefixes, watch).await?,
            None => {
                let mut verifications = Vec::new();
                for prefix in &prefixes {
                    verifications.push(operator.verify(prefix, self.dry_run).await?);
                }
                verifications
            }
        };
        verifications.sort_by(|one, other| one.prefix.cmp(&other.prefix));
        output::verifications(&verifications, self.look.json);
        let is_clean = verifications.iter().all(|it| it.findings.is_empty());
        Ok(if is_clean { Done::Settled } else { Done::Found })
    }

    /// The last look of each plan, with the findings of all.
    async fn watch(
        &self,
        operator: &Operator,
        prefixes: &[String],
        watch: Duration,
    ) -> Result<Vec<Verification>, LockError> {
        let until = Instant::now() + watch;
        let verifiers = prefixes.iter();
        let mut verifiers: Vec<_> = verifiers
            .map(|prefix| (operator.verifier(prefix, self.dry_run), BTreeSet::new()))
            .collect();
        loop {
            let mut verifications = Vec::new();
            for (verifier, found) in &mut verifiers {
                verifications.push(self.look_once(verifier, found).await?);
            }
            if Instant::now() >= until {
                return Ok(verifications);
            }
            sleep(PAUSE.min(until.saturating_duration_since(Instant::now()))).await;
        }
    }

    /// Looks, and tells people at once what is new.
    async fn look_once(
        &self,
        verifier: &mut Verifier<'_>,
        found: &mut BTreeSet<Finding>,
    ) -> Result<Verification, LockError> {
        let mut verification = verifier.look().await?;
        for finding in std::mem::take(&mut verification.findings) {
            if !self.look.json && !found.contains(&finding) {
                eprintln!("{}", output::finding(&finding));
            }
            found.insert(finding);
        }
        verification.findings = found.iter().cloned().collect();
        Ok(verification)
    }
}
