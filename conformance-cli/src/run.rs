use std::{num::NonZeroUsize, path::PathBuf, process::ExitCode, time::Duration};

use clap::{Args, ValueEnum};
use lock_conformance::{Badge, Case, Claim, Level, Need};

use crate::{store, terminal, write};

/// Options of `run`.
#[derive(Debug, Args)]
pub(crate) struct Run {
    /// URL of a store without other users, such as redis://127.0.0.1:6379
    #[arg(env = "LOCK_URL", hide_env_values = true)]
    url: String,
    /// Level or badge to prove; may be given several times
    #[arg(long = "claim", value_name = "CLAIM")]
    claims: Vec<ClaimName>,
    /// Extent of the run
    #[arg(long, default_value = "faults")]
    profile: Profile,
    /// Run only the cases whose name contains this
    #[arg(long, value_name = "TEXT", conflicts_with = "claims")]
    only: Option<String>,
    /// Seed of the cases' random choices [default: a fresh one, which the report tells]
    #[arg(long, env = lock_conformance::SEED)]
    seed: Option<u64>,
    /// Cases that run at a time
    #[arg(long, default_value = "6")]
    jobs: NonZeroUsize,
    /// Time to live in timing cases, such as 2s [default: 2s, or the store's least]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    short_ttl: Option<Duration>,
    /// Directory for report.json, junit.xml and index.html; it is made if it is missing
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// Levels, each of which includes those before it, and badges.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum ClaimName {
    /// Exclusion among the tasks and clients of one process
    Local,
    /// Exclusion among processes, which may die
    Exclusive,
    /// Exclusion through cut, silent and slow connections
    PartitionSafe,
    /// Exclusion through restarts of the store
    RestartSafe,
    /// Fencing tokens grow with each acquisition
    Fenced,
    /// Waiters are granted in the order of their arrival
    Fifo,
    /// A release wakes the next waiter at once
    Push,
    /// Nothing is left behind
    Clean,
}

impl From<ClaimName> for Claim {
    fn from(name: ClaimName) -> Self {
        match name {
            ClaimName::Local => Level::Local.into(),
            ClaimName::Exclusive => Level::Exclusive.into(),
            ClaimName::PartitionSafe => Level::PartitionSafe.into(),
            ClaimName::RestartSafe => Level::RestartSafe.into(),
            ClaimName::Fenced => Badge::Fenced.into(),
            ClaimName::Fifo => Badge::Fifo.into(),
            ClaimName::Push => Badge::Push.into(),
            ClaimName::Clean => Badge::Clean.into(),
        }
    }
}

/// Extent of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Profile {
    /// Cases without faults on the way to the store
    Quick,
    /// All cases
    Faults,
}

impl Profile {
    fn excludes(self, case: &Case) -> bool {
        let of_a_fault = |need: &Need| {
            matches!(
                need,
                Need::Isolated
                    | Need::Freeze
                    | Need::Restart
                    | Need::Stop
                    | Need::DelayReplies
                    | Need::Residue
                    | Need::Proxy
            )
        };
        self == Self::Quick && case.needs.iter().any(of_a_fault)
    }
}

impl Run {
    pub(crate) fn run(self) -> Result<ExitCode, String> {
        let mut backend = store::suite(&self.url)?;
        if let Some(ttl) = self.short_ttl {
            backend = backend.short_ttl(ttl);
        }
        for claim in &self.claims {
            backend = backend.claims(*claim);
        }
        let excluded = |case: &Case| self.excluded(case);
        let cases = lock_conformance::Suite::cases();
        let progress =
            terminal::Progress::of(cases.filter(|case| excluded(case).is_none()).count());
        let judgement = backend
            .suite()
            .with_seed(self.seed)
            .judge(self.jobs, excluded, |result| progress.note(result));
        progress.end();
        let json = judgement.to_json();
        if let Some(directory) = &self.report {
            write::all(&json, directory)?;
        }
        match self.json {
            true => println!("{json:#}"),
            false => terminal::print(&judgement),
        }
        if let Some(directory) = &self.report {
            eprintln!("report: {}", directory.join(write::PAGE).display());
        }
        Ok(judgement.exit_code())
    }

    fn excluded(&self, case: &Case) -> Option<String> {
        if self.profile.excludes(case) {
            return Some("not in the profile `quick`".to_owned());
        }
        let only = self.only.as_ref()?;
        (!case.full_name().contains(only)).then(|| format!("not selected by `--only {only}`"))
    }
}
