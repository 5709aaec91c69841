//! The protocol under every interleaving, with the machine that the client runs.
//!
//! Three processes lock one name while they go from phase to phase, forward and back, crash, are
//! paused past their deadlines, and while an operator takes locks away, other names raise the floor
//! and the source loses its data. Every flaw of [`Flaw`] is found.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod coordination;
mod flaw;
mod fleet;
mod state;

use flaw::Flaw;
use fleet::Fleet;
use state::Limits;
use stateright::{Checker, Expectation, HasDiscoveries, Model};

/// What may happen in one run of the check.
fn check(limits: Limits) {
    let checker = Fleet::new(limits, None)
        .checker()
        .threads(2)
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_bfs()
        .join();
    println!(
        "{limits:?}: {} states, depth {}",
        checker.unique_state_count(),
        checker.max_depth()
    );
    for property in checker.model().properties() {
        let found = checker.discovery(property.name);
        let failure = found.filter(|_| property.expectation == Expectation::Always);
        if let Some(path) = failure {
            let steps: Vec<_> = path.into_vec().into_iter().collect();
            panic!("{} fails: {steps:#?}", property.name);
        }
    }
    checker.assert_properties();
}

#[test]
fn tokens_grow_and_exclusion_holds_without_faults() {
    check(Limits {
        acquisitions: 4,
        ..Limits::default()
    });
}

#[test]
fn crashes_and_pauses_break_nothing() {
    check(Limits {
        acquisitions: 2,
        crashes: 1,
        pauses: 1,
        ..Limits::default()
    });
}

#[test]
fn an_operator_who_takes_locks_away_breaks_nothing() {
    check(Limits {
        acquisitions: 2,
        removals: 1,
        elsewhere: 1,
        ..Limits::default()
    });
}

#[test]
fn a_source_that_loses_its_data_breaks_nothing_once_all_are_in_dual() {
    check(Limits {
        acquisitions: 3,
        losses: 1,
        ..Limits::default()
    });
}

/// Some five million states more.
#[test]
#[ignore = "takes minutes"]
fn more_of_everything_breaks_nothing() {
    let three = Limits {
        acquisitions: 3,
        ..Limits::default()
    };
    check(Limits {
        crashes: 1,
        ..three
    });
    check(Limits { pauses: 1, ..three });
    check(Limits {
        removals: 1,
        ..three
    });
    check(Limits {
        elsewhere: 2,
        ..three
    });
    check(Limits {
        acquisitions: 2,
        crashes: 1,
        pauses: 2,
        ..Limits::default()
    });
}

const COORDINATED: Limits = Limits {
    acquisitions: 2,
    orders: 3,
    operators: 1,
    crashes: 0,
    pauses: 0,
    removals: 0,
    losses: 0,
    elsewhere: 0,
};

#[test]
fn a_coordinated_fleet_goes_forward_and_back() {
    check(COORDINATED);
}

#[test]
fn two_operators_at_once_break_nothing() {
    check(Limits {
        orders: 2,
        operators: 2,
        ..COORDINATED
    });
}

#[test]
fn members_that_crash_or_pause_beyond_their_leases_break_nothing() {
    for (crashes, pauses) in [(1, 0), (0, 1)] {
        check(Limits {
            orders: 2,
            crashes,
            pauses,
            ..COORDINATED
        });
    }
}

#[test]
#[ignore = "takes minutes"]
fn a_longer_way_of_a_coordinated_fleet_breaks_nothing() {
    check(Limits {
        orders: 4,
        ..COORDINATED
    });
    for (crashes, pauses) in [(1, 0), (0, 1)] {
        check(Limits {
            crashes,
            pauses,
            ..COORDINATED
        });
    }
}

#[test]
fn every_flaw_is_found() {
    are_found(&Flaw::ALL, Limits::for_flaw);
}

#[test]
fn every_flaw_of_the_coordination_is_found() {
    are_found(&Flaw::OF_COORDINATION, Limits::for_flaw_of_coordination);
}

fn are_found(flaws: &[(Flaw, &'static str)], limits: fn(Flaw) -> Limits) {
    for &(flaw, property) in flaws {
        let checker = Fleet::new(limits(flaw), Some(flaw))
            .checker()
            .threads(2)
            .finish_when(HasDiscoveries::AnyFailures)
            .spawn_bfs()
            .join();
        let found = checker.discovery(property).unwrap_or_else(|| {
            panic!(
                "{flaw:?} is not found: {} states",
                checker.unique_state_count()
            )
        });
        println!(
            "{flaw:?}: {property}, after {} steps",
            found.into_actions().len()
        );
    }
}
