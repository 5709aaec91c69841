use std::{
    num::NonZeroUsize,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use lock_core::backend::locked;

use crate::{Case, CaseResult, Judgement, Suite, Verdict, seed, started::Shared};

impl Suite {
    /// Runs cases, so many at a time, and judges the claims; for programs that have a command line
    /// and an output of their own.
    ///
    /// `excluded` gives the reason for which a case is not to be run, and the claims that rest on it
    /// stay unproven. `each` is told of every result, on the thread that the case ran on. A program
    /// that calls this calls [`serve_child`](Self::serve_child) before anything else.
    pub fn judge(
        &self,
        jobs: NonZeroUsize,
        excluded: impl Fn(&Case) -> Option<String>,
        each: impl Fn(&CaseResult) + Sync,
    ) -> Judgement {
        seed::choose();
        let shared = Arc::new(Shared::new(Arc::clone(&self.start)));
        let results = Mutex::new(Vec::new());
        let mut selected = Vec::new();
        for case in Self::cases() {
            match excluded(&case) {
                Some(reason) => {
                    let not_run = Ok(Verdict::NotRun(reason));
                    locked(&results).push(CaseResult::new(case, not_run, Duration::ZERO));
                }
                None => selected.push(case),
            }
        }
        let waiting = Mutex::new(selected.into_iter());
        let next = || locked(&waiting).next();
        thread::scope(|scope| {
            for _ in 0..jobs.get() {
                scope.spawn(|| {
                    while let Some(case) = next() {
                        let result = shared.result(case, self.known_verdict(&case));
                        each(&result);
                        locked(&results).push(result);
                    }
                });
            }
        });
        let results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
        let judgement = self.judgement(&shared, results);
        shared.end();
        judgement
    }
}
