//! Measurements for each kind of store.

#[cfg(feature = "etcd")]
pub(crate) mod etcd;
#[cfg(feature = "layers")]
pub(crate) mod layers;
#[cfg(feature = "mem")]
pub(crate) mod mem;
#[cfg(feature = "migrate")]
pub(crate) mod migrate;
#[cfg(feature = "redis")]
pub(crate) mod redis;

use std::collections::BTreeMap;

use crate::{
    Result,
    cli::Options,
    fleet::Program,
    holding::{Held, HoldingPlan},
    idling::{Idle, IdlePlan},
    measure::{Bench, Figures, Row},
    passing::{Passed, PassingPlan},
    plan::{Group, Key, Subject},
    progress::Progress,
    report::{plot::Chart, targets::Target},
    stores::{Requests, Store},
};

/// Everything that one run measures.
pub(crate) struct Suite {
    /// Name of the result files.
    pub(crate) name: &'static str,
    pub(crate) store: Box<dyn Store>,
    pub(crate) programs: BTreeMap<Subject, Program>,
    pub(crate) writers: Option<Program>,
    /// Number of cycles to time together.
    pub(crate) batch: fn(&Key) -> u64,
    /// Number of cycles that each task does before it waits for the others; 0 if none waits for
    /// another.
    pub(crate) share: fn(&Key) -> u64,
    /// Picks, of all requests that the store received, those that the locks sent.
    pub(crate) relevant: fn(&Key, Requests) -> Requests,
    pub(crate) groups: Vec<Group>,
    pub(crate) holding: Option<HoldingPlan>,
    pub(crate) passing: Option<PassingPlan>,
    pub(crate) idling: Option<IdlePlan>,
    pub(crate) targets: Vec<Target>,
    pub(crate) charts: Vec<Chart>,
    /// Subjects that cannot be measured here, each with the reason.
    pub(crate) left_out: Vec<String>,
}

#[derive(Debug, Default)]
pub(crate) struct Results {
    pub(crate) rows: Vec<Row>,
    pub(crate) held: Vec<Held>,
    pub(crate) passed: Option<Passed>,
    pub(crate) idle: Option<Idle>,
}

impl Suite {
    pub(crate) async fn run(&self, options: &Options) -> Result<Results> {
        let groups = self.selected(options);
        let holding = self.holding.filter(|_| options.selects("held"));
        let passing = self.passing.filter(|_| options.selects("passed"));
        let idling = self.idling.filter(|_| options.selects("idle"));
        if groups.is_empty() && holding.is_none() && passing.is_none() && idling.is_none() {
            return Err(format!(
                "nothing has the text of --only in its name; there are: {}",
                self.titles()
            )
            .into());
        }
        let settings = options.settings();
        let steps = groups.iter().map(|group| group.runs.len()).sum::<usize>()
            + holding.map_or(0, |_| HoldingPlan::STEPS)
            + passing.map_or(0, |_| PassingPlan::STEPS)
            + idling.map_or(0, |_| IdlePlan::STEPS);
        let progress = Progress::new(settings.rounds * steps);
        let store = &*self.store;
        let programs = &self.programs;
        let bench = Bench {
            store,
            programs,
            writers: self.writers.clone(),
            batch: self.batch,
            share: self.share,
            relevant: self.relevant,
            settings,
        };
        let mut results = Results::default();
        for group in &groups {
            results.rows.extend(bench.group(group, &progress).await?);
        }
        if let Some(holding) = holding {
            results.held = holding.measure(store, settings.rounds, &progress).await?;
        }
        if let Some(passing) = passing {
            results.passed = Some(passing.measure(store, settings.rounds, &progress).await?);
        }
        if let Some(idling) = idling {
            results.idle = Some(idling.measure(store, settings.rounds, &progress).await?);
        }
        progress.finish();
        results.rows.sort_by_key(|row| {
            (
                row.key.scenario,
                row.key.processes,
                row.key.tasks,
                row.key.subject,
            )
        });
        Ok(results)
    }

    /// The groups that were asked for, with the subjects that are available.
    fn selected(&self, options: &Options) -> Vec<Group> {
        let mut groups = self.groups.clone();
        for group in &mut groups {
            group
                .runs
                .retain(|key| self.programs.contains_key(&key.subject));
        }
        groups.retain(|group| options.selects(&group.title) && !group.runs.is_empty());
        groups
    }

    fn titles(&self) -> String {
        let titles = self.groups.iter().map(|group| group.title.as_str());
        titles
            .chain(self.holding.map(|_| "held"))
            .chain(self.passing.map(|_| "passed"))
            .chain(self.idling.map(|_| "idle"))
            .collect::<Vec<_>>()
            .join("; ")
    }
}

impl Results {
    pub(crate) fn figures(&self, key: Key) -> Option<&Figures> {
        self.rows
            .iter()
            .find(|row| row.key == key)
            .map(|row| &row.figures)
    }

    pub(crate) fn held(&self, names: usize) -> Option<&Held> {
        self.held.iter().find(|held| held.names == names)
    }
}
