use std::{sync::Arc, time::Duration};

use tokio::{
    sync::Mutex,
    time::{Instant, sleep, sleep_until},
};

use crate::{
    BoxError,
    event::Kind,
    home::Home,
    schedule::{Step, StoreFault, WorkerFault},
    store::Store,
    workers::Workers,
};

/// Puts the store into all trouble of a schedule, one after the other; ends with it healthy.
pub(crate) async fn disturb_store(
    begin: Instant,
    steps: Vec<Step<StoreFault>>,
    members: usize,
    store: Arc<dyn Store>,
    home: Home,
    longest_leader_pause: Option<Duration>,
) -> Result<(), BoxError> {
    for Step { at, lasts, fault } in steps {
        sleep_until(begin + at).await;
        let leader = store.leader().await?;
        let pauses_leader = matches!(fault, StoreFault::Pause(target) if target.among(leader) == leader);
        let lasts = longest_leader_pause.filter(|_| pauses_leader).map_or(lasts, |longest| lasts.min(longest));
        let text = format!("{fault} for {lasts:?}, while {leader} leads");
        home.record(Kind::FaultBegan { fault: text.clone(), majority: fault.takes_majority(members) });
        apply(&fault, lasts, leader, members, &*store).await?;
        store.wait_healthy().await?;
        home.record(Kind::FaultEnded { fault: text });
    }
    Ok(())
}

async fn apply(fault: &StoreFault, lasts: Duration, leader: usize, members: usize, store: &dyn Store) -> Result<(), BoxError> {
    match fault {
        StoreFault::Kill(target) => kill_some(&[target.among(leader)], lasts, store).await,
        StoreFault::Pause(target) => {
            store.pause(target.among(leader))?;
            sleep(lasts).await;
            store.resume(target.among(leader))
        }
        StoreFault::Cut(target, side, cut) => {
            store.cut(target.among(leader), *side, *cut);
            sleep(lasts).await;
            store.heal(target.among(leader));
            Ok(())
        }
        StoreFault::Delay(target, by) => {
            store.delay(target.among(leader), *by);
            sleep(lasts).await;
            store.heal(target.among(leader));
            Ok(())
        }
        StoreFault::RollingRestart => {
            for at in 0..members {
                kill_some(&[at], Duration::ZERO, store).await?;
                store.wait_healthy().await?;
            }
            Ok(())
        }
        StoreFault::Majority => {
            let some: Vec<_> = (0..=members / 2).map(|step| (leader + step) % members).collect();
            kill_some(&some, lasts, store).await
        }
        StoreFault::Blackout => kill_some(&(0..members).collect::<Vec<_>>(), lasts, store).await,
        StoreFault::Chore => store.chore().await,
    }
}

async fn kill_some(members: &[usize], lasts: Duration, store: &dyn Store) -> Result<(), BoxError> {
    members.iter().try_for_each(|at| store.kill(*at))?;
    sleep(lasts).await;
    members.iter().try_for_each(|at| store.start(*at))
}

/// Kills and pauses workers; ends with all of them running.
pub(crate) async fn disturb_workers(begin: Instant, steps: Vec<Step<WorkerFault>>, workers: Arc<Mutex<Workers>>) -> Result<(), BoxError> {
    for Step { at, lasts, fault } in steps {
        sleep_until(begin + at).await;
        match fault {
            WorkerFault::Kill(worker) => {
                workers.lock().await.kill(worker).await?;
                sleep(lasts).await;
                workers.lock().await.start(worker)?;
            }
            WorkerFault::Pause(worker) => {
                workers.lock().await.pause(worker)?;
                sleep(lasts).await;
                workers.lock().await.resume(worker)?;
            }
        }
    }
    Ok(())
}
