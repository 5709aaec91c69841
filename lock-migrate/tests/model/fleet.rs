//! What may happen next.

mod act;

use lock_migrate::{Attempt, Phase, Step};
use stateright::{Model, Property};

use crate::{
    coordination::Coordinate,
    flaw::{COMPLETE, EXCLUSION, Flaw, NO_DEADLOCK, TOKENS},
    state::{Does, Grant, Limits, PROCESSES, Process, SOURCE, State, TARGET},
};

/// One unit, so that raises show in short histories.
const HEAD_ROOM: u64 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Begin(usize),
    Step(usize),
    /// Gives up what it has taken.
    Undo(usize),
    EndUse(usize),
    Release(usize, usize),
    Enter(usize, Phase),
    Crash(usize),
    Deadline(usize, usize),
    Expire(usize),
    Remove(usize),
    Told(usize, usize),
    LoseSource,
    Elsewhere,
    /// A process in `Dual` looks how far the source's tokens have come.
    Lead,
    Coordinate(Coordinate),
}

pub(crate) struct Fleet {
    limits: Limits,
    flaw: Option<Flaw>,
}

impl Fleet {
    pub(crate) fn new(limits: Limits, flaw: Option<Flaw>) -> Self {
        Self { limits, flaw }
    }

    pub(crate) fn has(&self, flaw: Flaw) -> bool {
        self.flaw == Some(flaw)
    }

    fn may_enter(&self, state: &State, at: usize, phase: Phase) -> bool {
        // Whoever has lost its lock with the source's data learns of it within a TTL.
        let is_told = |(at, process): (usize, &Process)| {
            process.took[SOURCE].is_none()
                || !process.believes[SOURCE]
                || state.holders[SOURCE] == Some(at)
        };
        if phase == Phase::SourceOnly
            && self.limits.losses > state.left.losses
            && !state.processes.iter().enumerate().all(is_told)
        {
            return false;
        }
        if phase > Phase::Dual && !state.is_led && !self.has(Flaw::NoLead) {
            return false;
        }
        let reach = usize::from(self.has(Flaw::FinalTooEarly) && phase == Phase::Final) + 1;
        let others = state.processes.iter().enumerate();
        self.has(Flaw::SkipsDual)
            || others
                .filter(|(other, process)| *other != at && process.is_alive())
                .all(|(_, other)| (other.phase as usize).abs_diff(phase as usize) <= reach)
    }

    /// The store whose lock a step takes.
    fn takes(&self, at: usize, step: Step, process: &Process) -> Option<usize> {
        match step {
            Step::TakeSource
                if self.has(Flaw::TakesTargetFirst)
                    && at == 0
                    && process.phase == Phase::Dual
                    && process.took[TARGET].is_none() =>
            {
                Some(TARGET)
            }
            Step::TakeSource => Some(SOURCE),
            Step::TakeTarget => Some(TARGET),
            _ => None,
        }
    }

    fn is_blocked(&self, state: &State, at: usize) -> bool {
        let process = &state.processes[at];
        let Does::Acquires { attempt, .. } = &process.does else {
            return false;
        };
        self.takes(at, attempt.clone().step(), process)
            .is_some_and(|store| state.holders[store].is_some())
    }

    /// Somebody waits, and nobody can do anything that frees what he waits for.
    fn is_deadlocked(&self, state: &State) -> bool {
        let expires = |store: usize| {
            state.holders[store].is_some_and(|holder| !state.processes[holder].believes[store])
        };
        let is_waiting = (0..PROCESSES).any(|at| self.is_blocked(state, at));
        let can_go_on = |at: usize| {
            let process = &state.processes[at];
            match process.does {
                Does::Holds | Does::Releases => true,
                Does::Acquires { .. } => !self.is_blocked(state, at) || state.may_undo(at),
                Does::Nothing | Does::Crashed => false,
            }
        };
        is_waiting && !(0..PROCESSES).any(can_go_on) && !(0..2).any(expires)
    }

    fn step(&self, state: &mut State, at: usize) -> Option<()> {
        let process = state.processes[at].clone();
        let Does::Acquires {
            mut attempt,
            early_floor,
        } = process.does.clone()
        else {
            return None;
        };
        let step = attempt.step();
        if let Some(store) = self.takes(at, step, &process) {
            take(state, at, store, &mut attempt)?;
            let hands_out = self.has(Flaw::HandsOutBeforeTarget) && process.phase == Phase::Dual;
            if hands_out {
                return self.hand_out(state, at, state.counters[SOURCE]);
            }
        } else if !process.is_valid() && !is_on_its_way(state, step) {
            return None;
        } else {
            match step {
                Step::ReadFloor { owned_at } => {
                    let floor = self.read_floor(state, at, owned_at, early_floor);
                    attempt.floor_read(floor);
                }
                Step::RaiseSource { to } if self.has(Flaw::SourceNotRaised) => {
                    attempt.source_raised(to);
                }
                // The script compares the owner.
                Step::RaiseSource { .. } if state.holders[SOURCE] != Some(at) => return None,
                Step::RaiseSource { to } => {
                    state.counters[SOURCE] = state.counters[SOURCE].max(to);
                    attempt.source_raised(state.counters[SOURCE]);
                }
                Step::RaiseFloor { to } if self.has(Flaw::FloorNotRaised) => {
                    attempt.floor_raised(to);
                }
                Step::RaiseFloor { to } => {
                    // The store compares the plan.
                    let plan = state.coordination.as_ref().map(|it| &it.plan);
                    let may_raise = plan.is_none_or(|plan| plan.allows(Phase::Dual));
                    if !may_raise {
                        return None;
                    }
                    state.raise_floor(to);
                    attempt.floor_raised(state.floor());
                }
                Step::ConfirmTarget => {
                    if state.holders[TARGET] != Some(at) && !self.has(Flaw::NotConfirmed) {
                        return None;
                    }
                    attempt.target_confirmed();
                }
                Step::HandOut { token } => return self.hand_out(state, at, token),
                Step::TakeSource | Step::TakeTarget => return None,
            }
        }
        state.processes[at].does = Does::Acquires {
            attempt,
            early_floor,
        };
        Some(())
    }

    fn read_floor(&self, state: &mut State, at: usize, owned_at: u64, early: u64) -> u64 {
        if self.has(Flaw::NoFloor) {
            return 0;
        }
        let floor = state.floor();
        if state.processes[at].phase == Phase::Final {
            return *state.processes[at].final_floor.get_or_insert(floor);
        }
        match self.flaw {
            Some(Flaw::ReadsFloorEarly) => early,
            Some(Flaw::ReadsFloorLate) => floor,
            _ => state.floor_at(owned_at),
        }
    }

    fn hand_out(&self, state: &mut State, at: usize, token: u64) -> Option<()> {
        let process = &mut state.processes[at];
        process.does = Does::Holds;
        let took = process.took;
        state.grants.push(Grant { took, token });
        Some(())
    }
}

/// A request may reach the store after its sender has lost its membership.
fn is_on_its_way(state: &State, step: Step) -> bool {
    state.coordination.is_some() && matches!(step, Step::RaiseFloor { .. })
}

fn take(state: &mut State, at: usize, store: usize, attempt: &mut Attempt) -> Option<()> {
    if state.holders[store].is_some() {
        return None;
    }
    state.counters[store] += 1;
    state.holders[store] = Some(at);
    state.processes[at].took[store] = Some(state.takes);
    state.processes[at].believes[store] = true;
    state.takes += 1;
    match store {
        SOURCE => attempt.source_taken(state.counters[SOURCE]),
        _ => attempt.target_taken(state.counters[TARGET]),
    }
    Some(())
}

impl Model for Fleet {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let mut state = State::new(self.limits);
        self.normalize(&mut state);
        vec![state]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let left = &state.left;
        let is_coordinated = state.coordination.is_some();
        if let Some(coordination) = &state.coordination {
            let mut coordinate = Vec::new();
            coordination.actions(state, &mut coordinate);
            actions.extend(coordinate.into_iter().map(Action::Coordinate));
        }
        for (at, process) in state.processes.iter().enumerate() {
            match process.does {
                Does::Nothing => {
                    if left.acquisitions > 0 {
                        actions.push(Action::Begin(at));
                    }
                    if !is_coordinated {
                        actions.extend(Phase::ALL.map(|phase| Action::Enter(at, phase)));
                    }
                }
                Does::Acquires { .. } => actions.extend([Action::Step(at), Action::Undo(at)]),
                Does::Holds => actions.push(Action::EndUse(at)),
                Does::Releases => {}
                Does::Crashed if is_coordinated => {}
                Does::Crashed => {
                    actions.extend(Phase::ALL.map(|phase| Action::Enter(at, phase)));
                }
            }
            if left.crashes > 0 && process.is_alive() {
                actions.push(Action::Crash(at));
            }
            for store in 0..2 {
                if process.took[store].is_some() {
                    actions.push(Action::Release(at, store));
                    actions.push(Action::Told(at, store));
                    if left.pauses > 0 {
                        actions.push(Action::Deadline(at, store));
                    }
                }
            }
        }
        actions.extend((0..2).map(Action::Expire));
        if left.removals > 0 {
            actions.extend((0..2).map(Action::Remove));
        }
        if left.losses > 0 {
            actions.push(Action::LoseSource);
        }
        let raises = |process: &Process| process.is_alive() && process.phase == Phase::Dual;
        let source_only =
            |process: &Process| process.is_alive() && process.phase == Phase::SourceOnly;
        if !is_coordinated
            && !state.is_led
            && state.processes.iter().any(raises)
            && !state.processes.iter().any(source_only)
        {
            actions.push(Action::Lead);
        }
        if left.elsewhere > 0 && state.processes.iter().any(raises) {
            actions.push(Action::Elsewhere);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        self.act(&mut state, action)?;
        self.report(&mut state);
        self.normalize(&mut state);
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(EXCLUSION, |_, state: &State| state.is_exclusive()),
            Property::always(TOKENS, |_, state: &State| state.tokens_are_in_order()),
            Property::always(NO_DEADLOCK, |fleet: &Self, state: &State| {
                !fleet.is_deadlocked(state)
            }),
            Property::always(COMPLETE, |_, state: &State| {
                let coordination = state.coordination.as_ref();
                !coordination.is_some_and(|it| it.is_complete_too_early(&state.processes))
            }),
            Property::sometimes(
                "two are granted in the last phase",
                |fleet: &Self, state: &State| {
                    let mut processes = state.processes.iter();
                    let are_all = processes.all(|process| process.phase == Phase::Final);
                    match &state.coordination {
                        // More than any limit allows with several faults.
                        Some(_) if fleet.limits.orders < 3 => true,
                        Some(it) => it.plan.phase == Phase::Final && !state.grants.is_empty(),
                        None => state.grants.len() == 2 && are_all,
                    }
                },
            ),
        ]
    }
}
