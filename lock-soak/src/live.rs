//! A migration as it happens, once a second.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{IsTerminal, Write},
    sync::Arc,
    time::Duration,
};

use polylock::{
    DistributedLock, LockError,
    migrate::{Operator, Phase, PlanStatus, Status},
};
use tokio::time::{Instant, interval};

use crate::{
    BoxError,
    event::{Event, Kind},
    home::Home,
};

/// Both stores and the operator that look on.
pub(crate) struct Live {
    pub(crate) operator: Operator,
    pub(crate) source: Arc<dyn DistributedLock>,
    pub(crate) target: Arc<dyn DistributedLock>,
    pub(crate) home: Home,
}

const SECOND: Duration = Duration::from_secs(1);
/// Clears a terminal, and goes to its first line.
const CLEAR: &str = "\x1b[2J\x1b[H";

impl Live {
    /// Shows a table once a second until it is dropped: in place on a terminal, else below the one
    /// before.
    pub(crate) async fn show(&self) -> Result<(), BoxError> {
        let begin = Instant::now();
        let mut ticks = interval(SECOND);
        let mut shown = 0;
        loop {
            ticks.tick().await;
            let status = self.operator.status().await?;
            let mut table = format!("after {} s\n", begin.elapsed().as_secs());
            self.home.with_history(|events| {
                let _ = write!(table, "{}", processes(&status, &events[shown..]));
                shown = events.len();
            });
            for (store, locks) in [("Redis", &self.source), ("etcd", &self.target)] {
                let held = held(&**locks).await?;
                let _ = writeln!(table, "held in {store}: {held}");
            }
            let mut out = std::io::stdout().lock();
            let clear = if out.is_terminal() { CLEAR } else { "" };
            writeln!(out, "{clear}{table}")?;
        }
    }
}

/// Plans with their phases, and what each process has done since the last look.
fn processes(status: &Status, events: &[Event]) -> String {
    let mut table = String::new();
    for plan in &status.plans {
        let settled = if plan.settled {
            "all follow"
        } else {
            "draining"
        };
        let _ = writeln!(
            table,
            "plan {:<8} {:<12} {settled}",
            plan.plan.prefix,
            plan.plan.phase.to_string()
        );
    }
    let mut done: BTreeMap<u32, (usize, u64)> = BTreeMap::new();
    for event in events {
        match &event.kind {
            Kind::Incremented { .. } => done.entry(event.process).or_default().0 += 1,
            Kind::Granted { token, .. } => done.entry(event.process).or_default().1 = *token,
            _ => {}
        }
    }
    let sum: usize = done.values().map(|(increments, _)| increments).sum();
    let _ = writeln!(table, "{sum} increments/s");
    for (process, (increments, token)) in done {
        let _ = writeln!(
            table,
            "  process {process}: {increments:>4}/s, last token {token}"
        );
    }
    for member in &status.members {
        let phases: Vec<_> = status
            .plans
            .iter()
            .map(|plan| phase_of(plan, member.seen).to_string())
            .collect();
        let _ = writeln!(table, "  member {}: {}", member.label, phases.join(" "));
    }
    table
}

/// The phase of a member that knows the plans up to this change.
fn phase_of(plan: &PlanStatus, seen: u64) -> Phase {
    match seen >= plan.plan.epoch {
        true => plan.plan.phase,
        false => plan.plan.from,
    }
}

async fn held(locks: &dyn DistributedLock) -> Result<String, LockError> {
    let mut list = locks.list("").await?;
    let mut names = Vec::new();
    while let Some(info) = list.next().await {
        let info = info?;
        names.push(info.name.to_string());
    }
    names.sort();
    Ok(if names.is_empty() {
        "nothing".to_owned()
    } else {
        names.join(" ")
    })
}
