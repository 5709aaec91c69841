//! Proves the suite: a sound backend passes every case, and of each deliberately broken one the named cases find the defect.
//!
//! `cargo test -p conformance-tests --test mutants -- --list` prints which case finds which defect.

mod client;
mod defect;
mod entry;
mod harness;
mod state;
mod store;

use std::process::ExitCode;

use conformance_tests::{Case, Need, Suite, Verdict, run_case};
use libtest_mimic::{Arguments, Failed, Trial};

use crate::{
    client::capabilities,
    defect::{Defect, TABLE},
    harness::Sim,
};

fn main() -> ExitCode {
    let sound = capabilities(Defect::None);
    let possible = |case: &Case| case.inapplicable_to(&sound).is_none() && !case.needs.contains(&Need::OtherProcess);
    let sound = Suite::cases().filter(possible).map(passes);
    let broken = TABLE.iter().flat_map(|(defect, cases)| cases.iter().map(|case| is_caught(*defect, case)));
    libtest_mimic::run(&Arguments::from_args(), sound.chain(broken).collect()).exit_code()
}

/// The backend without a defect passes the case.
fn passes(case: Case) -> Trial {
    let name = case.full_name();
    Trial::test(format!("sound::{name}"), move || match run_case(Sim::new(Defect::None), &name) {
        Ok(Verdict::Passed) => Ok(()),
        Ok(Verdict::Skipped(reason)) => Err(Failed::from(format!("the sound backend can do everything, yet: {reason}"))),
        Err(failure) => Err(Failed::from(failure)),
    })
}

/// The case finds the defect.
fn is_caught(defect: Defect, case: &'static str) -> Trial {
    Trial::test(format!("mutant::{defect:?}::is_caught_by::{case}"), move || match run_case(Sim::new(defect), case) {
        Err(failure) if Suite::cases().any(|known| known.full_name() == case) => {
            println!("{defect:?}: {failure}");
            Ok(())
        }
        Err(failure) => Err(Failed::from(failure)),
        Ok(verdict) => Err(Failed::from(format!("{case} did not find {defect:?}: {verdict:?}"))),
    })
}
