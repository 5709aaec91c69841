use std::{sync::Arc, time::Duration};

use tokio::{
    sync::Mutex,
    time::{Instant, sleep, sleep_until},
};

use crate::{
    BoxError,
    event::{Event, Instant as Stamp, Kind},
    home::Home,
    schedule::{Removal, Return, Step, StoreFault, WorkerFault},
    store::{Entry, Store},
    workers::Workers,
};

/// Interval at which the entries in the store are read.
const LOOK: Duration = Duration::from_millis(50);
/// Interval at which the store is asked for its last election.
const TERM: Duration = Duration::from_millis(500);
/// Resolution of the entries' times, which are known to the millisecond.
const GRAIN: Duration = Duration::from_millis(1);
/// A hold that lasts this long goes on for a while.
const LONG: Duration = Duration::from_millis(300);
/// Time within which clients have reported what they were told by a store that is no longer there.
const REPORTED: Duration = Duration::from_millis(500);
/// Time to look for such a hold.
const REMOVAL_LIMIT: Duration = Duration::from_secs(10);

/// The parts that are disturbed, and the home that is to know.
#[derive(Debug)]
pub(crate) struct Scene {
    pub(crate) members: usize,
    pub(crate) registers: u32,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) home: Home,
    pub(crate) longest_leader_pause: Option<Duration>,
}

/// Puts the store through all faults of a schedule, one after the other; ends with it healthy.
pub(crate) async fn disturb_store(
    begin: Instant,
    steps: Vec<Step<StoreFault>>,
    scene: Scene,
) -> Result<(), BoxError> {
    let Scene {
        members,
        store,
        home,
        longest_leader_pause,
        ..
    } = &scene;
    for Step { at, lasts, fault } in steps {
        sleep_until(begin + at).await;
        let leader = store.leader().await?;
        let pauses_leader =
            matches!(fault, StoreFault::Pause(target) if target.among(leader) == leader);
        let lasts = longest_leader_pause
            .filter(|_| pauses_leader)
            .map_or(lasts, |longest| lasts.min(longest));
        if let StoreFault::GoBack(to) = fault {
            if to == Return::Forced {
                // From now on, the member that is left behind keeps its clients waiting.
                home.record(Kind::FaultBegan {
                    fault: "leave a member behind".to_owned(),
                    majority: false,
                });
            }
            // Anything written from here on will be forgotten.
            store.back_up(to).await?;
            if to != Return::Nothing {
                home.record(Kind::BackedUp);
            }
            sleep(lasts).await;
        }
        let text = format!("{fault} for {lasts:?}, while {leader} leads");
        home.record(Kind::FaultBegan {
            fault: text.clone(),
            majority: fault.takes_majority(*members),
        });
        apply(&fault, lasts, leader, &scene).await?;
        store.wait_healthy().await?;
        home.record(Kind::FaultEnded { fault: text });
    }
    Ok(())
}

async fn apply(
    fault: &StoreFault,
    lasts: Duration,
    leader: usize,
    scene: &Scene,
) -> Result<(), BoxError> {
    let members = scene.members;
    let store = &*scene.store;
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
            let some: Vec<_> = (0..=members / 2)
                .map(|step| (leader + step) % members)
                .collect();
            kill_some(&some, lasts, store).await
        }
        StoreFault::Blackout => kill_some(&(0..members).collect::<Vec<_>>(), lasts, store).await,
        StoreFault::Act(act) => store.act(*act, lasts).await,
        StoreFault::GoBack(to) => go_back(*to, scene).await,
        StoreFault::Remove(removal) => {
            remove_held(*removal, scene.registers, store, &scene.home).await
        }
    }
}

async fn go_back(to: Return, scene: &Scene) -> Result<(), BoxError> {
    let store = &*scene.store;
    (0..scene.members).try_for_each(|at| store.kill(at))?;
    // Whatever the killed members answered belongs to the time before, even where a busy machine
    // delays the receiver's report of it.
    sleep(REPORTED).await;
    scene.home.go_back(store.forgets_tokens());
    store.put_back(to).await
}

/// Records repeatedly whether the store serves and when it elects, as far as it can tell; never
/// ends.
pub(crate) async fn watch_service(store: Arc<dyn Store>, home: Home) -> Result<(), BoxError> {
    let mut last = None;
    let mut looked = None;
    loop {
        if looked.is_none_or(|at: Instant| at.elapsed() >= TERM) {
            looked = Some(Instant::now());
            let term = store.term().await;
            if let Some(term) = term.filter(|_| term != last) {
                home.record(Kind::Elected { term });
                last = Some(term);
            }
        }
        let asked = Stamp::now();
        if store.serves().await == Some(true) {
            home.record(Kind::Served { asked });
        }
        sleep(LOOK * 2).await;
    }
}

/// Removes the entry of a lock that is held for long, if there is one: most holds end before
/// anybody could notice.
async fn remove_held(
    removal: Removal,
    registers: u32,
    store: &dyn Store,
    home: &Home,
) -> Result<(), BoxError> {
    let begin = Instant::now();
    let mut last = Vec::new();
    while begin.elapsed() < REMOVAL_LIMIT {
        let entries = store.entries(registers).await?;
        for (register, entry) in (0..).zip(&entries) {
            let Entry::Of { token, .. } = *entry else {
                continue;
            };
            let is_old = matches!(last.get(register as usize), Some(Entry::Of { token: before, .. }) if *before == token);
            let at = Stamp::now();
            if is_old && store.remove(register, token, removal).await? {
                home.add(Event {
                    at,
                    process: 0,
                    kind: Kind::Removed { register, token },
                });
                return Ok(());
            }
        }
        last = entries;
        sleep(LONG).await;
    }
    Ok(())
}

/// Records the entries of the store repeatedly, as long as it answers; never ends.
pub(crate) async fn watch_entries(
    registers: u32,
    store: Arc<dyn Store>,
    home: Home,
) -> Result<(), BoxError> {
    loop {
        let asked = Stamp::now();
        let entries = store.entries(registers).await.unwrap_or_default();
        let at = Stamp::now();
        for (register, entry) in (0..).zip(entries) {
            let (token, left) = match entry {
                Entry::Of { token, left } => (token, left),
                Entry::Foreign => (0, Duration::ZERO),
            };
            home.add(Event {
                at,
                process: 0,
                kind: Kind::Seen {
                    register,
                    asked,
                    token,
                    expires: at.plus(left + GRAIN),
                },
            });
        }
        sleep(LOOK).await;
    }
}

async fn kill_some(members: &[usize], lasts: Duration, store: &dyn Store) -> Result<(), BoxError> {
    members.iter().try_for_each(|at| store.kill(*at))?;
    sleep(lasts).await;
    members.iter().try_for_each(|at| store.start(*at))
}

/// Kills and pauses workers; ends with all of them running.
pub(crate) async fn disturb_workers(
    begin: Instant,
    steps: Vec<Step<WorkerFault>>,
    workers: Arc<Mutex<Workers>>,
    store: Arc<dyn Store>,
    home: Home,
) -> Result<(), BoxError> {
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
            WorkerFault::CutOff(worker, link) => {
                let process = workers.lock().await.number(worker)?;
                home.record(Kind::CutOff { process });
                store.cut_worker_off(worker, Some(link));
                sleep(lasts).await;
                store.cut_worker_off(worker, None);
                home.record(Kind::Rejoined { process });
            }
        }
    }
    Ok(())
}
