//! Proves the suite: a sound backend passes every case, and the named cases find the defect of each
//! deliberately broken one.
//!
//! `cargo test -p lock-conformance --test mutants -- --list` prints which case finds which defect.

mod client;
#[path = "../../src/defects.rs"]
#[expect(dead_code, reason = "the library's own use of it")]
mod defects;
mod entry;
mod harness;
mod state;
mod store;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};
use lock_conformance::{Case, Need, Suite, Verdict, run_case};

use crate::{
    client::capabilities,
    defects::simulated::{Defect, TABLE},
    harness::Sim,
};

fn main() -> ExitCode {
    let sound = capabilities(Defect::None);
    let possible = |case: &Case| {
        let beyond = [Need::OtherProcess, Need::Proxy];
        case.inapplicable_to(&sound).is_none()
            && !case.needs.iter().any(|need| beyond.contains(need))
    };
    let sound = Suite::cases().filter(possible).map(passes);
    let broken = TABLE
        .iter()
        .flat_map(|(defect, cases, says)| cases.iter().map(|case| is_caught(*defect, case, says)));
    libtest_mimic::run(&Arguments::from_args(), sound.chain(broken).collect()).exit_code()
}

/// The backend without a defect must pass the case.
fn passes(case: Case) -> Trial {
    let name = case.full_name();
    Trial::test(format!("sound::{name}"), move || {
        match run_case(Sim::new(Defect::None), &name) {
            Ok(Verdict::Passed) => Ok(()),
            Ok(other) => Err(Failed::from(format!(
                "the sound backend can do everything, yet: {other:?}"
            ))),
            Err(failure) => Err(Failed::from(failure)),
        }
    })
}

/// The case must find the defect.
fn is_caught(defect: Defect, case: &'static str, says: &'static str) -> Trial {
    Trial::test(
        format!("mutant::{defect:?}::is_caught_by::{case}"),
        move || match run_case(Sim::new(defect), case) {
            Err(failure) if !Suite::cases().any(|known| known.full_name() == case) => {
                Err(Failed::from(failure))
            }
            Err(failure) if failure.to_string().contains(says) => {
                println!("{defect:?}: {failure}");
                Ok(())
            }
            Err(failure) => Err(Failed::from(format!(
                "{case} does not say `{says}`: {failure}"
            ))),
            Ok(verdict) => Err(Failed::from(format!(
                "{case} did not find {defect:?}: {verdict:?}"
            ))),
        },
    )
}
