//! Soak test: clients in several processes add to fenced registers under locks, while a schedule
//! causes faults. The schedule follows from a seed. It kills, pauses, cuts off and restarts members
//! of the store, slows down their answers, restores older data, removes entries of held locks, does
//! what operators do, and kills and pauses clients. Each acquisition has a TTL of its own.
//!
//! ```text
//! lock-soak etcd --seed 1 --minutes 3
//! lock-soak redis --seed 1 --minutes 3
//! lock-soak migrate --seed 1 --minutes 3
//! ```
//!
//! This process is the *home*: it runs the store and the faults, keeps the registers, and records
//! what everybody reports, in one history on one clock. Its *workers*, other processes of this
//! program, run the clients. In the end the history is checked against each of the [`invariants`].
//! The faults, and what each client wants to do, follow from the seed alone. How they interleave
//! does not, so a failing seed is likely to fail again, but not certain to.
//!
//! A run longer than ten minutes consists of rounds of ten minutes, with the seeds N, N + 1, ...:
//! each can be replayed on its own.

mod client;
mod event;
mod faults;
mod history;
mod home;
mod invariants;
mod live;
mod migration;
mod report;
mod rng;
mod round;
mod schedule;
mod store;
mod ttls;
mod wire;
mod worker;
mod workers;

use std::{error::Error, process::ExitCode, time::Duration};

use clap::{Parser, Subcommand};

pub(crate) type BoxError = Box<dyn Error + Send + Sync>;

#[derive(Debug, Parser)]
#[command(about = "Soaks a lock backend in faults and checks what happened")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// A cluster of three etcd members.
    Etcd(Options),
    /// One Redis server that has every write on disk before its reply.
    Redis(Options),
    /// Both, while operators take the locks from Redis to etcd and back, again and again.
    Migrate(Options),
    /// Runs a worker; the other commands start this themselves.
    #[command(hide = true)]
    Worker(worker::Assignment),
}

/// Options of a soak.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Seed of the faults; a run with the same seed and length has the same ones.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Length of the run, in minutes.
    #[arg(long, default_value_t = 3.0)]
    minutes: f64,
    /// Number of clients in all, each with a connection of its own.
    #[arg(long, default_value_t = 8)]
    clients: u32,
    /// Number of processes that the clients are spread over; default: 4, of a migration 8.
    #[arg(long)]
    processes: Option<u32>,
    /// Number of registers, each with a lock of its own.
    #[arg(long, default_value_t = 4)]
    registers: u32,
    /// TTL of the locks, in seconds, or a range from which each acquisition takes one, mostly one
    /// of the shortest.
    #[arg(long, default_value = "2..30")]
    ttl: ttls::Ttls,
    /// Never lets the store go back: to an older copy of its data, to a snapshot, to the data of a
    /// member that was left behind, or to nothing.
    #[arg(long)]
    no_rollback: bool,
    /// Causes no faults, and holds locks only briefly: then no acquire may fail, and increments go
    /// on all the time.
    #[arg(long)]
    no_faults: bool,
    /// Shows a migration once a second, which then goes more slowly.
    #[arg(long)]
    show: bool,
    /// Pauses leaders for as long as the schedule says, even if the server is known not to survive
    /// it.
    #[arg(long)]
    long_leader_pauses: bool,
    /// Writes the history of the last round to this file, one JSON object per line.
    #[arg(long)]
    history: Option<std::path::PathBuf>,
    /// Only print the schedule.
    #[arg(long)]
    dry_run: bool,
}

impl Options {
    fn processes(&self, target: &str) -> u32 {
        let usual = if target == "migrate" { 8 } else { 4 };
        self.processes.unwrap_or(usual)
    }

    fn schedule(&self, target: &str, length: Duration) -> schedule::Schedule {
        match self.no_faults {
            true => schedule::Schedule::default(),
            false => schedule::Schedule::new(self.seed, length, &self.shape(target)),
        }
    }

    fn shape(&self, target: &str) -> schedule::Shape {
        let members = store::members(target);
        let acts = store::acts(target, self.seed);
        let returns = store::returns(target, self.seed);
        let returns = if self.no_rollback { &[] } else { returns };
        schedule::Shape {
            members,
            has_lone_server: target == "migrate",
            workers: self.processes(target) as usize,
            ttls: self.ttl,
            acts,
            returns,
        }
    }
}

const ROUND: Duration = Duration::from_secs(600);

fn main() -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error.into()),
    };
    let outcome = match Arguments::parse().command {
        Command::Worker(assignment) => runtime.block_on(worker::work(assignment)).map(|()| true),
        Command::Etcd(options) => runtime.block_on(soak("etcd", options)),
        Command::Redis(options) => runtime.block_on(soak("redis", options)),
        Command::Migrate(options) => runtime.block_on(soak("migrate", options)),
    };
    // The thread that reads a worker's input cannot be ended otherwise.
    runtime.shutdown_background();
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => fail(&error),
    }
}

fn fail(error: &BoxError) -> ExitCode {
    eprintln!("lock-soak: {error}");
    ExitCode::FAILURE
}

/// Runs all rounds; `false` as soon as one has violated an invariant.
async fn soak(target: &'static str, options: Options) -> Result<bool, BoxError> {
    let total = Duration::try_from_secs_f64(options.minutes * 60.0)?;
    let processes = options.processes(target);
    let options = Options {
        processes: Some(processes),
        ..options
    };
    if processes == 0 || options.clients < processes || options.registers == 0 || total.is_zero() {
        return Err(
            "at least one process, one client in each, one register and some time are needed"
                .into(),
        );
    }
    let mut left = total;
    let mut seed = options.seed;
    while !left.is_zero() {
        let length = left.min(ROUND);
        let round = Options {
            seed,
            minutes: length.as_secs_f64() / 60.0,
            ..options.clone()
        };
        if options.dry_run {
            report::schedule(&round.schedule(target, length));
        } else if !round::run(target, &round, length).await? {
            return Ok(false);
        }
        left -= length;
        seed = seed.wrapping_add(1);
    }
    Ok(true)
}
