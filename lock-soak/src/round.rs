use std::{sync::Arc, time::Duration};

use tokio::{
    sync::Mutex,
    time::{Instant, sleep},
};

use crate::{
    BoxError, Options,
    event::{Instant as Stamp, Kind},
    faults::{Scene, disturb_store, disturb_workers, watch_entries, watch_service},
    history::History,
    home::Home,
    invariants::{ALL, Terms},
    migration::Migration,
    report,
    store::{self, Store},
    workers::Workers,
};

/// Time after the last fault within which queues drain and leases of dead clients expire.
const DRAIN: Duration = Duration::from_secs(90);
/// Time for which a migration that is shown stays in each phase.
const REST: Duration = Duration::from_secs(2);
const PROGRESS: Duration = Duration::from_secs(10);

/// Runs one round; `false` if it violated an invariant.
pub(crate) async fn run(
    target: &str,
    options: &Options,
    length: Duration,
) -> Result<bool, BoxError> {
    let members = store::members(target);
    let schedule = options.schedule(target, length);
    report::begin(target, options, length, &schedule);
    let processes = options.processes(target);
    let store = store::start(target, options.seed, processes as usize).await?;
    let home = Home::new(options.registers);
    let (address, _server) = home.serve().await?;
    let urls = (0..processes as usize)
        .map(|worker| store.url_of_worker(worker, options.ttl.usual()))
        .collect();
    let migration = Migration {
        seed: options.seed,
        registers: options.registers,
        ttl: options.ttl.usual(),
        disturbed: !options.no_faults,
        rests: if options.show { REST } else { Duration::ZERO },
        home: home.clone(),
    };
    let workers = Arc::new(Mutex::new(Workers::start_all(
        urls,
        address,
        options,
        home.clone(),
    )?));
    let begin = Instant::now();
    let outcome = {
        let longest_leader_pause = store
            .longest_leader_pause(options.ttl.least())
            .filter(|_| !options.long_leader_pauses);
        let scene = Scene {
            members,
            registers: options.registers,
            store: Arc::clone(&store),
            home: home.clone(),
            longest_leader_pause,
        };
        let store_faults = disturb_store(begin, schedule.store.clone(), scene);
        let worker_faults = disturb_workers(
            begin,
            schedule.workers.clone(),
            Arc::clone(&workers),
            Arc::clone(&store),
            home.clone(),
        );
        let time = async {
            tokio::time::sleep_until(begin + length).await;
            Ok(())
        };
        tokio::select! {
            outcome = async { tokio::try_join!(store_faults, worker_faults, time) } => outcome.map(drop),
            outcome = progress(begin, length, &home, &workers) => outcome,
            outcome = store.show(&migration), if options.show => outcome,
            outcome = watch_entries(options.registers, Arc::clone(&store), home.clone()) => outcome,
            outcome = store.migrate(&migration) => outcome,
            outcome = watch_service(Arc::clone(&store), home.clone()) => outcome,
        }
    };
    outcome?;
    workers.lock().await.stop_all(DRAIN).await;
    store.end_migration(&migration).await?;
    look_for_leftovers(&*store, options.ttl.most(), &home).await?;
    let history = History::new(home.take_history());
    if let Some(path) = &options.history {
        report::write_history(path, &history)?;
    }
    let ttls = options.ttl;
    let clients = options.clients;
    let forgets_tokens = store.forgets_tokens();
    let terms = Terms {
        ttls,
        clients,
        wait_limit: store.wait_limit(),
        prompt: store.prompt(),
        membership: (target == "migrate").then_some(migration.ttl),
        steady: options.no_faults,
        forgets_tokens,
    };
    report::summary(&history, &schedule);
    if options.show {
        let acknowledged = report::acknowledged(&history);
        println!(
            "the registers have {}, and {acknowledged} increments were acknowledged",
            home.sum()
        );
    }
    let fine = judge(&terms, &history);
    if !fine {
        report::failure(target, options, length, &schedule);
    }
    Ok(fine)
}

/// Reports until the round is over; ends earlier only because a worker ended by itself.
async fn progress(
    begin: Instant,
    length: Duration,
    home: &Home,
    workers: &Mutex<Workers>,
) -> Result<(), BoxError> {
    let mut next = begin + PROGRESS;
    loop {
        sleep(Duration::from_millis(500)).await;
        if let Some(dead) = workers.lock().await.dead() {
            return Err(dead.into());
        }
        if Instant::now() >= next {
            home.with_history(|events| report::progress(begin.elapsed(), length, events));
            next += PROGRESS;
        }
    }
}

/// Looks soon, before leftovers can have expired, unless a process was killed too recently for
/// that.
async fn look_for_leftovers(store: &dyn Store, ttl: Duration, home: &Home) -> Result<(), BoxError> {
    let (after_end, after_kill) = store.settles(ttl);
    let is_kill = |kind: &Kind| matches!(kind, Kind::Killed { .. } | Kind::EndedBadly { .. });
    let last_kill = home.with_history(|events| {
        events
            .iter()
            .rev()
            .find(|event| is_kill(&event.kind))
            .map(|event| event.at)
    });
    let limit = Stamp::now()
        .plus(after_end)
        .max(last_kill.unwrap_or(Stamp(0)).plus(after_kill));
    loop {
        let contents = store.contents().await?;
        if contents.is_empty() {
            return Ok(());
        }
        if Stamp::now() >= limit {
            contents
                .into_iter()
                .for_each(|what| home.record(Kind::LeftBehind { what }));
            return Ok(());
        }
        sleep(Duration::from_millis(50)).await;
    }
}

fn judge(terms: &Terms, history: &History) -> bool {
    let mut fine = true;
    for (name, check) in ALL {
        match check(history, terms) {
            Ok(()) => println!("  ok       {name}"),
            Err(violation) => {
                println!("  VIOLATED {name}: {}", violation.message);
                if fine {
                    report::slice(history, &violation);
                }
                fine = false;
            }
        }
    }
    fine
}
