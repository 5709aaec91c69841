//! The coordinator's store, its operators and the members.

use std::hash::{DefaultHasher, Hash, Hasher};

use lock_core::LockName;
use lock_migrate::{Evidence, Member, MemberReport, Order, Phase, Plan, PlanStep, Preparation};

use crate::{
    flaw::Flaw,
    fleet::Fleet,
    state::{Does, PROCESSES, Process, SOURCE, State},
};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Coordination {
    pub(crate) plan: Plan,
    /// What the members have reported, as long as their leases last.
    pub(crate) reports: [Option<MemberReport>; PROCESSES],
    /// What an operator is about to write.
    pending: [Option<Pending>; 2],
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Pending {
    /// The plan that it has seen.
    seen: u64,
    step: PlanStep,
    floor: u64,
}

/// A report that is lost or late, a lease that ends late, or a plan that is read late only keeps
/// operators waiting; so here each is as early as it can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Coordinate {
    /// A process registers, and reads the plan; a new one after a crash.
    Join(usize),
    /// A member reads the plan, and reports.
    Read(usize),
    /// A member is paused until its lease has ended.
    Lapse(usize),
    /// An operator reads plan and reports, and decides.
    Look(usize, Order),
    /// It writes what it decided, unless it dies before.
    Write(usize),
}

impl Coordination {
    /// All but one are members.
    pub(crate) fn new(processes: &mut [Process; PROCESSES]) -> Self {
        let plan = Plan::new("", 1);
        let mut reports = [const { None }; PROCESSES];
        for at in 0..PROCESSES - 1 {
            let member = &mut processes[at];
            member.is_member = true;
            member.member.told([plan.clone()].into(), plan.epoch);
            reports[at] = member.member.report();
        }
        Self {
            plan,
            reports,
            pending: [None, None],
        }
    }

    pub(crate) fn actions(&self, state: &State, actions: &mut Vec<Coordinate>) {
        for (at, process) in state.processes.iter().enumerate() {
            actions.push(Coordinate::Read(at));
            if !process.is_member {
                actions.push(Coordinate::Join(at));
            } else if state.left.pauses > 0 {
                actions.push(Coordinate::Lapse(at));
            }
        }
        for (at, pending) in self
            .pending
            .iter()
            .take(state.left.operators.into())
            .enumerate()
        {
            if pending.is_some() {
                actions.push(Coordinate::Write(at));
            } else if state.left.orders > 0 {
                actions.extend(
                    [Order::Advance, Order::RollBack, Order::Complete]
                        .map(|order| Coordinate::Look(at, order)),
                );
            }
        }
    }

    /// The rule "complete only when nobody can be behind".
    pub(crate) fn is_complete_too_early(&self, processes: &[Process]) -> bool {
        let is_behind = |process: &Process| {
            let acquires = matches!(process.does, Does::Holds) && process.is_valid();
            acquires && process.phase != Phase::Final
        };
        self.plan.complete.is_some() && processes.iter().any(is_behind)
    }
}

pub(crate) fn name() -> LockName {
    "n".parse().unwrap()
}

impl Fleet {
    pub(crate) fn coordinate(&self, state: &mut State, action: Coordinate) -> Option<()> {
        let mut coordination = state.coordination.take()?;
        let done = self.coordinated(state, &mut coordination, action);
        state.coordination = Some(coordination);
        done
    }

    /// What the members' records say now.
    pub(crate) fn report(&self, state: &mut State) {
        let Some(coordination) = &mut state.coordination else {
            return;
        };
        for (process, report) in state.processes.iter_mut().zip(&mut coordination.reports) {
            if process.does == Does::Holds && !process.is_valid() {
                process.end_ticket();
            }
            *report = None;
            if process.is_member {
                let known = report.insert(process.member.report().unwrap_or_default());
                if self.has(Flaw::ReportsEarly) {
                    known.draining.clear();
                }
            }
        }
    }

    /// One of the states that differ only in the order of the processes, and in what does not
    /// matter any more.
    pub(crate) fn normalize(&self, state: &mut State) {
        if state.coordination.is_none() {
            return;
        }
        for process in &mut state.processes {
            process.forget_past();
        }
        let key = |state: &State, at: usize| {
            let mut hasher = DefaultHasher::new();
            let holds = state.holders.map(|holder| holder == Some(at));
            (&state.processes[at], holds).hash(&mut hasher);
            hasher.finish()
        };
        let mut order: [usize; PROCESSES] = std::array::from_fn(|at| at);
        order.sort_by_key(|at| key(state, *at));
        state.processes = order.map(|at| state.processes[at].clone());
        for holder in state.holders.iter_mut().flatten() {
            *holder = order.iter().position(|at| at == holder).unwrap();
        }
        self.report(state);
    }

    fn coordinated(
        &self,
        state: &mut State,
        coordination: &mut Coordination,
        action: Coordinate,
    ) -> Option<()> {
        match action {
            Coordinate::Join(at) => {
                let process = &mut state.processes[at];
                if !process.is_alive() {
                    *process = Process::new(Phase::SourceOnly);
                }
                if self.has(Flaw::PhaseCached) && process.member.report().is_some() {
                    return None;
                }
                process.is_member = true;
                if !self.has(Flaw::ReadsBeforeJoin) {
                    process.read(&coordination.plan);
                }
            }
            Coordinate::Read(at) => {
                let process = &mut state.processes[at];
                let is_early = self.has(Flaw::ReadsBeforeJoin) && process.is_alive();
                if !process.is_member && !is_early {
                    return None;
                }
                process.read(&coordination.plan);
            }
            Coordinate::Lapse(at) => {
                state.left.pauses -= 1;
                let process = &mut state.processes[at];
                process.is_member = false;
                if !self.has(Flaw::PhaseCached) {
                    process.expelled();
                }
            }
            Coordinate::Look(at, order) => {
                state.left.orders -= 1;
                coordination.pending[at] = Some(self.look(state, coordination, order)?);
            }
            Coordinate::Write(at) => {
                let pending = coordination.pending[at].take()?;
                if pending.seen == coordination.plan.epoch {
                    state.raise_floor(pending.floor);
                    coordination.plan = pending.step.plan?;
                }
            }
        }
        Some(())
    }

    fn look(
        &self,
        state: &mut State,
        coordination: &Coordination,
        order: Order,
    ) -> Option<Pending> {
        let mut reports: Vec<_> = coordination.reports.iter().flatten().cloned().collect();
        if self.has(Flaw::AdvancesUnsettled) {
            reports.clear();
        }
        let plan = &coordination.plan;
        let evidence = Evidence::new(&reports).without_members(true);
        let mut step = plan.decide(order, evidence, plan.epoch + 1).ok()?;
        let mut floor = 0;
        match step.preparation {
            Preparation::None => {}
            Preparation::RaiseFloor if self.has(Flaw::NoLead) => {}
            // The least that will do keeps the check finite.
            Preparation::RaiseFloor => floor = state.highest().min(state.counters[SOURCE]),
            Preparation::AwaitSource if self.has(Flaw::BackTooSoon) => {}
            Preparation::AwaitSource => {
                state.counters[SOURCE] = state.counters[SOURCE].max(state.highest());
            }
            Preparation::ReadFloor => {
                let plan = step.plan.as_mut()?;
                plan.complete = Some(state.floor());
                plan.epoch += 1;
            }
        }
        Some(Pending {
            seen: plan.epoch,
            step,
            floor,
        })
    }
}

impl Process {
    /// Takes a ticket for an acquisition in the phase that the member knows.
    pub(crate) fn admit(&mut self, flaw: Option<Flaw>) -> Option<()> {
        let is_cached = flaw == Some(Flaw::PhaseCached) && !self.is_member;
        let (ticket, phase) = (self.member)
            .begin(&name(), self.is_member || is_cached)
            .ok()?;
        let is_complete = (self.member.plan_of(&name())).is_some_and(|it| it.complete.is_some());
        self.ticket = Some(ticket);
        self.has_lapsed = false;
        self.phase = phase;
        self.is_bound = !is_cached && !is_complete && flaw != Some(Flaw::MembershipNotInDeadline);
        Some(())
    }

    /// Numbers of tickets matter while there are some.
    fn forget_past(&mut self) {
        if self.ticket.is_none()
            && let Some(known) = self.member.report()
            && self.member.tickets() == 0
        {
            let plans = self.member.plan_of(&name()).cloned();
            self.member = Member::default();
            self.member.told(plans.into_iter().collect(), known.seen);
        }
        if self.does == Does::Nothing {
            self.has_lapsed = false;
            self.is_bound = false;
            self.is_evicted = false;
        }
    }

    fn read(&mut self, plan: &Plan) {
        if self.member.report().is_none_or(|it| it.seen != plan.epoch) {
            self.final_floor = None;
        }
        self.member.told([plan.clone()].into(), plan.epoch);
    }

    pub(crate) fn end_ticket(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            self.member.end(ticket);
        }
    }

    fn expelled(&mut self) {
        self.member.expelled();
        self.ticket = None;
        // Its guard is lost, unless it does not depend on the membership.
        self.has_lapsed = self.is_bound;
    }

    /// Its attempt is of no use any more.
    pub(crate) fn is_superseded(&self) -> bool {
        !self
            .ticket
            .is_some_and(|ticket| self.member.is_current(ticket))
    }
}
