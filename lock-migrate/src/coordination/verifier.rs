//! Looks at both stores for an operator.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, SystemTime},
};

use lock_core::{DistributedLock, ErrorKind, FencingToken, LockError, LockInfo, LockName};
use serde::Serialize;
use tokio::time::sleep;

use super::{
    Finding, Operator, Plans, RecordWrite, Sighting, Verified, Write,
    floor::record_name,
    operator::{OWN, PROBE_LIMIT},
    seen::Seen,
    verify::{Comparison, Picture},
};
use crate::{FloorStore, Phase, prepare::probe};

/// What both stores hold of a plan's names, as far as it is not as it should be.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Verification {
    /// The prefix of the plan.
    pub prefix: String,
    /// The plan's phase.
    pub phase: Phase,
    /// All members had followed the plan.
    pub settled: bool,
    /// The number of names held in the source.
    pub in_source: usize,
    /// The number of names held in the target.
    pub in_target: usize,
    /// The number of names that one holder has in both.
    pub pairs: usize,
    /// What is not as it should be, as two looks have confirmed it.
    pub findings: Vec<Finding>,
    /// The plan's record, with all who were seen to lock in the source without being members.
    pub verified: Verified,
}

/// Compares both stores again and again.
#[derive(Debug)]
pub struct Verifier<'a> {
    operator: &'a Operator,
    prefix: String,
    comparison: Comparison,
    tokens: Option<(u64, u64)>,
    records: bool,
}

/// Between the two looks of a verification.
const PAUSE: Duration = Duration::from_millis(500);

impl Operator {
    /// Compares what both stores hold of a plan's names, twice, and remembers who locks in the source
    /// without being a member, unless `dry_run` is set.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidConfig`] for an unknown prefix, [`ErrorKind::Unsupported`] if the source
    /// cannot list its locks; those of the stores.
    pub async fn verify(&self, prefix: &str, dry_run: bool) -> Result<Verification, LockError> {
        let mut verifier = self.verifier(prefix, dry_run);
        let mut first = verifier.look().await?;
        sleep(PAUSE).await;
        let mut second = verifier.look().await?;
        first.findings.append(&mut second.findings);
        first.findings.sort();
        first.findings.dedup();
        second.findings = first.findings;
        Ok(second)
    }

    /// As [`verify`](Self::verify), for as many looks as the caller takes.
    #[must_use]
    pub fn verifier(&self, prefix: &str, dry_run: bool) -> Verifier<'_> {
        Verifier {
            operator: self,
            prefix: prefix.to_owned(),
            comparison: Comparison::default(),
            tokens: None,
            records: !dry_run,
        }
    }

    /// Those who lock in the source without being members, now and within the window.
    pub(super) async fn foreign_lockers(
        &self,
        prefix: &str,
        dry_run: bool,
    ) -> Result<Vec<Sighting>, LockError> {
        let verified = self.verify(prefix, dry_run).await?.verified;
        Ok(verified.within(self.foreign_window, now_ms()))
    }

    pub(super) async fn verified(&self, prefix: &str) -> Result<(Verified, i64), LockError> {
        let record = self.records.read(&verified_name(prefix)).await?;
        let verified = Verified::parse(record.as_ref().map(|record| &*record.value))?;
        Ok((verified, record.map_or(0, |record| record.revision)))
    }
}

impl Verifier<'_> {
    /// Looks once. What needs two looks is found by the second one at the earliest.
    ///
    /// # Errors
    ///
    /// As [`Operator::verify`].
    pub async fn look(&mut self) -> Result<Verification, LockError> {
        loop {
            let seen = self.operator.look().await?;
            let picture = self.picture(&seen).await?;
            let compared = self.comparison.look(&picture);
            let tokens = self.tokens(&picture).await?;
            let Some(verified) = self.remember(&seen, &compared.findings, tokens).await? else {
                // The plans have changed meanwhile.
                continue;
            };
            return Ok(Verification {
                prefix: self.prefix.clone(),
                phase: picture.plan.phase,
                settled: picture.is_settled,
                in_source: compared.in_source,
                in_target: compared.in_target,
                pairs: compared.pairs,
                findings: compared.findings,
                verified,
            });
        }
    }

    async fn picture(&self, seen: &Seen) -> Result<Picture, LockError> {
        let operator = self.operator;
        let plan = seen.plan(&self.prefix)?.clone();
        let source = listable("source", operator.source.get().await?)?;
        let target = listable("target", &operator.target)?;
        let target = self.list(target, &seen.plans).await?;
        let source = self.list(source, &seen.plans).await?;
        let floors = self.floors(&source, &target).await?;
        let after = operator.look().await?;
        let epoch = after.plans.plan(&self.prefix).map(|plan| plan.epoch);
        let marks = after.members.into_iter();
        let members = marks
            .map(|(_, member)| (member.mark, member.label))
            .collect();
        Ok(Picture {
            is_settled: plan.is_settled(&seen.reports()) && epoch == Some(plan.epoch),
            plan,
            source,
            target,
            members,
            floors,
        })
    }

    /// What is held of the plan's names.
    async fn list(
        &self,
        store: &Arc<dyn DistributedLock>,
        plans: &Plans,
    ) -> Result<Vec<LockInfo>, LockError> {
        let mut list = store.list(&self.prefix).await?;
        let mut held = Vec::new();
        while let Some(info) = list.next().await {
            let info = info?;
            let name = info.name.as_str();
            let plan = plans.of_name(name);
            if !name.starts_with(OWN) && plan.is_some_and(|plan| plan.prefix == self.prefix) {
                held.push(info);
            }
        }
        Ok(held)
    }

    /// The floors at the grants in the target, where the floor as it is now leaves a doubt.
    async fn floors(
        &self,
        source: &[LockInfo],
        target: &[LockInfo],
    ) -> Result<BTreeMap<LockName, u64>, LockError> {
        if !self.operator.records.keeps_history() {
            return Ok(BTreeMap::new());
        }
        let floor = self.operator.floor(&self.prefix);
        let now = floor.read().await?;
        let tokens = |infos: &[LockInfo]| -> HashMap<LockName, FencingToken> {
            let token = |info: &LockInfo| Some((info.name.clone(), info.holder().token?));
            infos.iter().filter_map(token).collect()
        };
        let source = tokens(source);
        let mut floors = BTreeMap::new();
        for (name, token) in tokens(target) {
            let presented = token.as_u64().saturating_add(now);
            let is_doubtful = source.get(&name).is_some_and(|it| it.as_u64() < presented);
            if !is_doubtful {
                continue;
            }
            match floor.read_at(token).await {
                Ok(floor) => drop(floors.insert(name, floor)),
                // The store has forgotten; the holder is told the same.
                Err(error) if error.kind() == ErrorKind::Lost => {}
                Err(error) => return Err(error),
            }
        }
        Ok(floors)
    }

    /// The tokens that the stores had come to at the first look.
    async fn tokens(&mut self, picture: &Picture) -> Result<(u64, u64), LockError> {
        if let Some(tokens) = self.tokens {
            return Ok(tokens);
        }
        let source = probe(self.operator.source.get().await, PROBE_LIMIT).await?;
        let target = probe(Ok(&self.operator.target), PROBE_LIMIT).await?;
        let floor = match picture.plan.complete {
            Some(floor) => floor,
            None => self.operator.floor(&self.prefix).read().await?,
        };
        Ok(*self.tokens.insert((source, target.saturating_add(floor))))
    }

    /// Puts what was found into the plan's record; `None` if the plans have changed.
    async fn remember(
        &self,
        seen: &Seen,
        findings: &[Finding],
        (source, target): (u64, u64),
    ) -> Result<Option<Verified>, LockError> {
        let (mut verified, revision) = self.operator.verified(&self.prefix).await?;
        verified.saw(findings, now_ms());
        verified.source_token = Some(source);
        verified.target_token = Some(target);
        if !self.records {
            return Ok(Some(verified));
        }
        let name = verified_name(&self.prefix);
        let value = verified.to_bytes()?;
        let writes = [
            RecordWrite {
                name: &name,
                if_revision: revision,
                write: Write::Put(&value),
            },
            // So that no record outlives its plan.
            RecordWrite {
                name: Plans::RECORD,
                if_revision: seen.revision,
                write: Write::Check,
            },
        ];
        let written = self.operator.records.write(&writes).await?;
        Ok(written.map(|_| verified))
    }
}

fn listable<'s>(
    what: &str,
    store: &'s Arc<dyn DistributedLock>,
) -> Result<&'s Arc<dyn DistributedLock>, LockError> {
    let capabilities = store.capabilities();
    if capabilities.list && capabilities.metadata {
        return Ok(store);
    }
    let message = format!(
        "the {what}, {}, cannot tell who holds its locks; make sure that nobody but the members locks there, and go on with a foreign window of zero",
        capabilities.backend
    );
    Err(LockError::new(ErrorKind::Unsupported, message))
}

/// The record of a plan's verifications.
pub(super) fn verified_name(prefix: &str) -> String {
    record_name("verified", prefix)
}

pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}
