use super::*;

const ACTS: &[Act] = &[Act::Compact, Act::Permission];
const RETURNS: &[Return] = &[Return::Copy, Return::Nothing];

fn shape(members: usize, ttl: u64) -> Shape {
    Shape {
        members,
        has_lone_server: false,
        workers: 4,
        ttls: Duration::from_secs(ttl).into(),
        acts: ACTS,
        returns: &[],
    }
}

fn schedule_of(members: usize, seed: u64) -> Schedule {
    Schedule::new(seed, Duration::from_secs(600), &shape(members, 10))
}

fn schedule(seed: u64) -> Schedule {
    schedule_of(3, seed)
}

fn kind(fault: &StoreFault) -> String {
    fault.to_string().replace(char::is_numeric, "")
}

/// Three members, a single server besides, and eight workers.
fn migration(seed: u64) -> Schedule {
    let shape = Shape {
        has_lone_server: true,
        workers: 8,
        ..shape(3, 10)
    };
    Schedule::new(seed, Duration::from_secs(600), &shape)
}

#[test]
fn a_migration_has_the_faults_of_both_stores_and_cuts_workers_off() {
    let mut kinds = std::collections::BTreeSet::new();
    let mut links = std::collections::BTreeSet::new();
    for schedule in (0..20).map(migration) {
        for step in schedule.store {
            let is_server = step.fault.to_string().contains("member 3");
            assert!(!is_server || step.fault.takes_majority(3), "{}", step.fault);
            kinds.insert(kind(&step.fault));
        }
        let faults = schedule.workers.iter().map(|step| &step.fault);
        links.extend(faults.filter_map(|fault| match fault {
            WorkerFault::CutOff(_, link) => Some(format!("{link:?}")),
            _ => None,
        }));
    }
    // Those of a cluster, a delay, and replies that are lost.
    assert_eq!(kinds.len(), 23, "{kinds:?}");
    assert_eq!(links.len(), 3, "{links:?}");
}

#[test]
fn follows_from_the_seed() {
    assert_eq!(schedule(7), schedule(7));
    assert_ne!(schedule(7), schedule(8));
}

#[test]
fn has_every_kind_of_fault_one_after_the_other_and_no_long_outage() {
    let mut kinds = std::collections::BTreeSet::new();
    for seed in 0..20 {
        let schedule = schedule(seed);
        for pair in schedule.store.windows(2) {
            assert!(pair[0].at + pair[0].lasts < pair[1].at);
        }
        for step in &schedule.store {
            assert!(!step.fault.takes_majority(3) || step.lasts <= Duration::from_secs(5));
            kinds.insert(kind(&step.fault));
        }
    }
    // Kill, pause and six cuts of two targets; three others and two acts.
    assert_eq!(kinds.len(), 21, "{kinds:?}");
}

#[test]
fn a_lone_server_has_faults_of_its_own() {
    let faults: Vec<_> = (0..20)
        .flat_map(|seed| schedule_of(1, seed).store)
        .map(|step| step.fault)
        .collect();
    let kinds: std::collections::BTreeSet<_> = faults.iter().map(kind).collect();
    // Kill, pause, three cuts, a delay, two removals and two acts.
    assert_eq!(kinds.len(), 10, "{kinds:?}");
    let is_no_outage =
        |fault: &_| matches!(fault, StoreFault::Remove(_) | StoreFault::Act(Act::Compact));
    assert!(
        faults
            .iter()
            .all(|fault| fault.takes_majority(1) != is_no_outage(fault))
    );
}

#[test]
fn goes_back_only_where_that_is_wanted() {
    let go_back = |shape: &Shape| {
        let steps = Schedule::new(1, Duration::from_secs(600), shape).store;
        steps
            .into_iter()
            .filter(|step| matches!(step.fault, StoreFault::GoBack(_)))
            .count()
    };
    assert_eq!(go_back(&shape(3, 10)), 0);
    assert!(
        go_back(&Shape {
            returns: RETURNS,
            ..shape(3, 10)
        }) > 3
    );
}

#[test]
fn a_lone_server_is_left_alone_for_long_enough_at_times() {
    let steps = Schedule::new(1, Duration::from_secs(180), &shape(1, 3)).store;
    let quiet: Duration = steps
        .windows(2)
        .map(|pair| pair[1].at - pair[0].at - pair[0].lasts)
        .filter(|gap| *gap > Duration::from_secs(6))
        .sum();
    assert!(quiet > Duration::from_secs(40), "{quiet:?}");
}
