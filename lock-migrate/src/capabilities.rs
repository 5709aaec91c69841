use lock_core::{Capabilities, Consistency, ErrorKind, LockError, TtlRange};

use crate::Phase;

/// What errors and reports call a lock in two stores.
pub(crate) const BACKEND: &str = "migrate";

/// What a [`MigratingLock`](crate::MigratingLock) can do in a phase: what its store can, and in
/// [`Phase::Dual`] what both can.
///
/// # Errors
///
/// [`ErrorKind::InvalidConfig`] if a store that the phase needs is missing, or cannot take part.
pub fn capabilities(
    phase: Phase,
    source: Option<&Capabilities>,
    target: Option<&Capabilities>,
) -> Result<Capabilities, LockError> {
    let source = phase
        .takes_source()
        .then(|| source.ok_or_else(|| missing("source", phase)))
        .transpose()?;
    let target = phase
        .takes_target()
        .then(|| target.ok_or_else(|| missing("target", phase)))
        .transpose()?;
    match (source, target) {
        (Some(source), Some(target)) => of_both(source, target),
        (Some(source), None) => Ok(source.clone()),
        (None, Some(target)) => of_target(target),
        (None, None) => Err(missing("store", phase)),
    }
}

fn missing(what: &str, phase: Phase) -> LockError {
    invalid(format!("the phase {phase} needs a {what}; give one"))
}

fn invalid(message: impl Into<std::borrow::Cow<'static, str>>) -> LockError {
    LockError::new(ErrorKind::InvalidConfig, message)
}

fn of_target(target: &Capabilities) -> Result<Capabilities, LockError> {
    if target.fencing.is_none() {
        return Err(invalid(format!(
            "the target, {}, has no fencing tokens that could continue the source's",
            target.backend
        )));
    }
    let mut capabilities = target.clone();
    // The token is the target's and the floor.
    capabilities.raise_token = false;
    Ok(capabilities)
}

fn of_both(source: &Capabilities, target: &Capabilities) -> Result<Capabilities, LockError> {
    let target = of_target(target)?;
    if source.fencing.is_none() || !source.raise_token {
        return Err(invalid(format!(
            "the source, {}, has no fencing tokens that can be raised, so a way back would repeat some",
            source.backend
        )));
    }
    let mut both = Capabilities::new(BACKEND, weaker(source.consistency, target.consistency));
    both.fencing = source.fencing.min(target.fencing);
    both.ttl = ttl(source.ttl, target.ttl)?;
    both.push_wake_up = source.push_wake_up && target.push_wake_up;
    both.push_loss = source.push_loss && target.push_loss;
    both.inspect = source.inspect && target.inspect;
    both.queue_length = source.queue_length && target.queue_length;
    both.force_release = source.force_release && target.force_release && both.inspect;
    both.watch = source.watch && target.watch && both.inspect;
    both.list = source.list && target.list && both.inspect;
    both.metadata = source.metadata && target.metadata;
    both.crash_bound = source.crash_bound.max(target.crash_bound);
    // Not in order of arrival: others may queue in one of the stores only. Not in shared mode: the
    // floor is raised by whoever is alone.
    Ok(both)
}

fn weaker(one: Consistency, other: Consistency) -> Consistency {
    let rank = |consistency| match consistency {
        Consistency::Linearizable => 2,
        Consistency::BestEffort => 1,
        _ => 0,
    };
    if rank(one) <= rank(other) { one } else { other }
}

fn ttl(one: TtlRange, other: TtlRange) -> Result<TtlRange, LockError> {
    let both = TtlRange::new(
        one.min.max(other.min),
        one.max.min(other.max),
        one.granularity.max(other.granularity),
    );
    if both.min > both.max {
        return Err(invalid("no TTL is in the range of both stores"));
    }
    Ok(both)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn both() -> (Capabilities, Capabilities) {
        (lock_redis::capabilities(), lock_mem::capabilities())
    }

    #[test]
    fn a_phase_can_do_what_its_stores_can() {
        let (redis, mem) = both();
        let of = |phase| capabilities(phase, Some(&redis), Some(&mem)).unwrap();
        assert_eq!(of(Phase::SourceOnly), redis);
        let dual = of(Phase::Dual);
        assert_eq!(dual.backend, BACKEND);
        assert_eq!(dual.consistency, Consistency::ProcessLocal);
        assert!(!dual.fifo && !dual.raise_token && !dual.queue_length);
        assert!(dual.inspect && dual.watch && dual.list && dual.metadata && dual.force_release);
        assert_eq!(dual.ttl.min, Duration::from_millis(100));
        for phase in [Phase::TargetOnly, Phase::Final] {
            let target = of(phase);
            assert!(target.fifo && !target.raise_token && target.queue_length);
        }
    }

    #[test]
    fn stores_that_cannot_continue_each_others_tokens_are_refused() {
        let (redis, mem) = both();
        let mut fixed = redis.clone();
        fixed.raise_token = false;
        let mut without = mem.clone();
        without.fencing = None;
        for (phase, source, target) in [
            (Phase::Dual, Some(&fixed), Some(&mem)),
            (Phase::Dual, Some(&redis), Some(&without)),
            (Phase::Final, None, Some(&without)),
            (Phase::Dual, None, Some(&mem)),
            (Phase::Dual, Some(&redis), None),
            (Phase::SourceOnly, None, Some(&mem)),
        ] {
            let error = capabilities(phase, source, target).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
        }
    }
}
