//! The cases, one file per guarantee.

mod cancellation;
mod crash;
mod errors;
mod exclusion;
mod fencing;
mod hooks;
mod inspect;
mod leaks;
mod loss;
mod names;
mod order;
mod outage;
mod partition;
mod processes;
mod release;
mod renewal;
mod runtimes;
mod shutdown;
mod unsupported;
mod waiting;

use crate::Case;

pub(crate) fn all() -> impl Iterator<Item = Case> {
    [
        hooks::CASES,
        exclusion::CASES,
        release::CASES,
        shutdown::CASES,
        runtimes::CASES,
        waiting::CASES,
        outage::CASES,
        partition::CASES,
        cancellation::CASES,
        renewal::CASES,
        loss::CASES,
        order::CASES,
        fencing::CASES,
        names::CASES,
        inspect::CASES,
        crash::CASES,
        processes::CASES,
        errors::CASES,
        unsupported::CASES,
        leaks::CASES,
    ]
    .into_iter()
    .flatten()
    .copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique() {
        let names: Vec<_> = all().map(|case| case.full_name()).collect();
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
    }
}
