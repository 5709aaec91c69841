use std::{
    collections::BTreeMap,
    io::{self, Write},
    path::Path,
    time::Duration,
};

use crate::{
    Options,
    event::{Event, Instant, Kind},
    history::History,
    invariants::Violation,
    schedule::Schedule,
};

/// Time shown before and after a violation.
const CONTEXT: Duration = Duration::from_millis(500);
const MOST_LINES: usize = 300;

pub(crate) fn begin(target: &str, options: &Options, length: Duration, schedule: &Schedule) {
    let Options {
        seed,
        clients,
        registers,
        ttl,
        ..
    } = options;
    let processes = options.processes(target);
    let store = schedule.store.len();
    let workers = schedule.workers.len();
    println!(
        "soak {target}: seed {seed}, {length:?}, {clients} clients in {processes} processes, {registers} locks, TTL {ttl} s, {store} + {workers} faults"
    );
}

pub(crate) fn schedule(schedule: &Schedule) {
    let store = schedule
        .store
        .iter()
        .map(|step| (step.at, step.lasts, step.fault.to_string()));
    let mut all: Vec<_> = store
        .chain(
            schedule
                .workers
                .iter()
                .map(|step| (step.at, step.lasts, step.fault.to_string())),
        )
        .collect();
    all.sort();
    for (at, lasts, fault) in all {
        println!(
            "  {:8.3} s  for {:6.3} s  {fault}",
            at.as_secs_f64(),
            lasts.as_secs_f64()
        );
    }
}

/// Prints the progress in one line.
pub(crate) fn progress(elapsed: Duration, length: Duration, events: &[Event]) {
    let count = |is: fn(&Kind) -> bool| events.iter().filter(|event| is(&event.kind)).count();
    let increments = count(|kind| matches!(kind, Kind::Incremented { .. }));
    let faults = count(|kind| {
        matches!(
            kind,
            Kind::FaultBegan { .. }
                | Kind::Killed { .. }
                | Kind::Paused { .. }
                | Kind::CutOff { .. }
        )
    });
    let losses = count(|kind| matches!(kind, Kind::Lost { .. }));
    let failures = count(|kind| matches!(kind, Kind::Failed { .. }));
    let now = events.iter().rev().find_map(|event| match &event.kind {
        Kind::FaultBegan { fault, .. } => Some(fault.as_str()),
        Kind::FaultEnded { .. } => Some("all is well"),
        _ => None,
    });
    println!(
        "[{:4.0}/{:.0} s] {increments} increments, {faults} faults, {losses} losses, {failures} failed calls; {}",
        elapsed.as_secs_f64(),
        length.as_secs_f64(),
        now.unwrap_or("all is well")
    );
}

pub(crate) fn summary(history: &History, schedule: &Schedule) {
    let mut faults: BTreeMap<String, usize> = BTreeMap::new();
    let kinds = schedule
        .store
        .iter()
        .map(|step| step.fault.to_string())
        .chain(schedule.workers.iter().map(|step| step.fault.to_string()));
    kinds.for_each(|kind| {
        *faults
            .entry(kind.replace(" off from its peers", " off from peers"))
            .or_default() += 1;
    });
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    history
        .events
        .iter()
        .filter_map(|event| label(&event.kind))
        .for_each(|label| *counts.entry(label).or_default() += 1);
    println!("summary:");
    for (what, count) in counts {
        println!("  {count:8} {what}");
    }
    println!(
        "  {:8} guards renewed past their first deadline",
        history.renewed()
    );
    println!("  {:8} guards lost", history.lost());
    println!(
        "  {:8.3} s longest wait",
        history.longest_wait().as_secs_f64()
    );
    for (fault, count) in faults {
        println!("  {count:8} x {fault}");
    }
}

/// The number of increments that clients were told of.
pub(crate) fn acknowledged(history: &History) -> usize {
    let is_increment = |event: &&Event| matches!(event.kind, Kind::Incremented { .. });
    history.events.iter().filter(is_increment).count()
}

fn label(kind: &Kind) -> Option<&'static str> {
    Some(match kind {
        Kind::Granted { .. } => "acquisitions",
        Kind::NotFree { .. } => "tries that found it taken",
        Kind::TimedOut { .. } => "waits that timed out",
        Kind::GaveUp { .. } => "waits given up",
        Kind::Failed { .. } => "failed acquires",
        Kind::Refused { .. } => "stale tokens refused",
        Kind::Incremented { .. } => "increments",
        Kind::Seen { .. } => "looks at entries in the store",
        Kind::Elected { .. } => "elections, at least",
        Kind::WentBack => "times that the store went back",
        Kind::Removed { .. } => "held entries removed",
        Kind::Ended { error: Some(_), .. } => "failed releases",
        Kind::CutOff { .. } => "workers cut off",
        Kind::Moved { .. } => "changes of phase",
        Kind::Settled { .. } => "changes of phase that all members followed at once",
        _ => return None,
    })
}

/// Prints the events around a violation, in milliseconds since the first event.
pub(crate) fn slice(history: &History, violation: &Violation) {
    let origin = history.events.first().map_or(Instant(0), |event| event.at);
    let from = violation.from.minus(CONTEXT);
    let to = violation.to.plus(CONTEXT);
    let shown: Vec<_> = history
        .events
        .iter()
        .filter(|event| event.at >= from && event.at <= to && !is_routine(&event.kind))
        .collect();
    let left_out = shown.len().saturating_sub(MOST_LINES);
    println!(
        "  history from {:?} to {:?}:",
        from.since(origin),
        to.since(origin)
    );
    if left_out > 0 {
        println!("    ... {left_out} earlier events left out");
    }
    for event in &shown[left_out..] {
        println!(
            "    {:12.3} ms  process {:3}  {}",
            event.at.since(origin).as_secs_f64() * 1000.0,
            event.process,
            describe(&event.kind, origin)
        );
    }
}

fn is_routine(kind: &Kind) -> bool {
    matches!(
        kind,
        Kind::Incremented { .. }
            | Kind::NotFree { .. }
            | Kind::Seen { .. }
            | Kind::Served { .. }
            | Kind::Elected { .. }
    )
}

fn describe(kind: &Kind, origin: Instant) -> String {
    let millis = |at: &Instant| at.since(origin).as_secs_f64() * 1000.0;
    match kind {
        Kind::Granted {
            ask,
            token,
            valid_until,
        } => format!(
            "{ask} granted with token {token}, valid until {:.3} ms",
            millis(valid_until)
        ),
        Kind::Held { ask, valid_until } => {
            format!("{ask} still valid, until {:.3} ms", millis(valid_until))
        }
        kind => match kind.ask() {
            Some(ask) => format!("{ask} {kind:?}"),
            None => format!("{kind:?}"),
        },
    }
}

pub(crate) fn write_history(path: &Path, history: &History) -> io::Result<()> {
    let mut file = io::BufWriter::new(std::fs::File::create(path)?);
    for event in &history.events {
        serde_json::to_writer(&mut file, event)?;
        file.write_all(b"\n")?;
    }
    file.flush()
}

pub(crate) fn failure(target: &str, options: &Options, length: Duration, schedule: &Schedule) {
    println!("FAILED with seed {}; its schedule:", options.seed);
    self::schedule(schedule);
    let Options {
        seed,
        clients,
        registers,
        ttl,
        ..
    } = options;
    let processes = options.processes(target);
    let minutes = length.as_secs_f64() / 60.0;
    let flags = [
        (options.long_leader_pauses, " --long-leader-pauses"),
        (options.no_rollback, " --no-rollback"),
        (options.no_faults, " --no-faults"),
    ];
    let flags: String = flags
        .into_iter()
        .filter_map(|(is_set, flag)| is_set.then_some(flag))
        .collect();
    println!(
        "to replay it:\n  scripts/soak.sh {target} --seed {seed} --minutes {minutes} --clients {clients} --processes {processes} --registers {registers} --ttl {ttl}{flags}"
    );
}
