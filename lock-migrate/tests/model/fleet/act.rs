//! What an action changes.

use lock_migrate::{Attempt, Phase};

use crate::{
    flaw::Flaw,
    fleet::{Action, Fleet, HEAD_ROOM},
    state::{Does, Process, SOURCE, State, TARGET},
};

impl Fleet {
    pub(super) fn act(&self, state: &mut State, action: Action) -> Option<()> {
        match action {
            Action::Begin(at) => {
                state.left.acquisitions -= 1;
                if state.coordination.is_some() {
                    state.processes[at].admit(self.flaw)?;
                }
                state.processes[at].is_evicted = false;
                state.processes[at].does = Does::Acquires {
                    attempt: Attempt::new(state.processes[at].phase, HEAD_ROOM),
                    early_floor: state.floor(),
                };
            }
            Action::Step(at) => self.step(state, at)?,
            Action::Undo(at) => {
                if !state.may_undo(at) {
                    return None;
                }
                state.processes[at].end_ticket();
                state.processes[at].does = Does::Releases;
                state.settle(at);
            }
            Action::EndUse(at) => {
                state.processes[at].end_ticket();
                state.processes[at].does = Does::Releases;
                state.settle(at);
            }
            Action::Release(at, store) => {
                let early = self.has(Flaw::ReleasesSourceEarly)
                    && store == SOURCE
                    && state.processes[at].does == Does::Holds;
                if state.processes[at].does != Does::Releases && !early {
                    return None;
                }
                state.remove_own(at, store);
                if !early {
                    state.processes[at].took[store] = None;
                    state.settle(at);
                }
            }
            Action::Enter(at, phase) => {
                if !self.may_enter(state, at, phase) {
                    return None;
                }
                state.processes[at] = Process::new(phase);
                if phase == Phase::SourceOnly {
                    state.is_led = false;
                    if !self.has(Flaw::BackTooSoon) {
                        // The source's clock goes on while it waits.
                        state.counters[SOURCE] = state.counters[SOURCE].max(state.highest());
                    }
                }
            }
            Action::Crash(at) => {
                state.left.crashes -= 1;
                let process = &mut state.processes[at];
                process.does = Does::Crashed;
                process.believes = [false; 2];
                process.took = [None; 2];
                process.is_member = false;
                process.member.expelled();
            }
            Action::Coordinate(action) => self.coordinate(state, action)?,
            Action::Deadline(at, store) => {
                state.left.pauses -= 1;
                state.processes[at].believes[store] = false;
            }
            Action::Expire(store) => {
                let holder = state.holders[store]?;
                if state.processes[holder].believes[store] {
                    return None;
                }
                state.holders[store] = None;
            }
            Action::Remove(store) => {
                let holder = state.holders[store].take()?;
                state.processes[holder].is_evicted = true;
                state.left.removals -= 1;
            }
            Action::Told(at, store) => {
                if state.holders[store] == Some(at) {
                    return None;
                }
                state.processes[at].believes[store] = false;
            }
            Action::LoseSource => {
                let relies =
                    |process: &Process| process.is_alive() && process.phase == Phase::SourceOnly;
                let was_in_dual =
                    (state.grants.last()).is_none_or(|last| last.took[TARGET].is_some());
                if state.processes.iter().any(relies) || !was_in_dual {
                    return None;
                }
                state.left.losses -= 1;
                state.holders[SOURCE] = None;
                state.counters[SOURCE] = 0;
            }
            Action::Lead => {
                state.is_led = true;
                // What a look shows is beyond that; the least that will do keeps the check finite.
                state.raise_floor(state.highest().min(state.counters[SOURCE]));
            }
            Action::Elsewhere => {
                state.left.elsewhere -= 1;
                let ahead = state.floor() + HEAD_ROOM;
                state.raise_floor(ahead);
            }
        }
        Some(())
    }
}
