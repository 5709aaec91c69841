use crate::{
    Case,
    defects::{networked, simulated},
};

/// A defect that the suite is proven on, and a case that finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KnownDefect {
    /// Says what is wrong.
    pub text: &'static str,
    /// Full name of the case.
    pub case: &'static str,
    /// Part of what the case says of it; empty if any failure of it counts.
    pub says: &'static str,
}

/// Lists the defects that the suite is proven on, once for each case that finds them.
///
/// A case that fails on a backend hints at the defects that it finds.
pub fn known_defects() -> impl Iterator<Item = KnownDefect> {
    let simulated = simulated::TABLE
        .iter()
        .flat_map(|(defect, cases, says)| of(defect.text(), cases, says));
    let networked = networked::TABLE
        .iter()
        .flat_map(|(defect, cases, says)| of(defect.text(), cases, says));
    simulated.chain(networked)
}

impl Case {
    /// The defects that it finds.
    pub fn known_defects(&self) -> impl Iterator<Item = KnownDefect> + use<> {
        let name = self.full_name();
        known_defects().filter(move |defect| defect.case == name)
    }
}

fn of(
    text: &'static str,
    cases: &'static [&'static str],
    says: &'static str,
) -> impl Iterator<Item = KnownDefect> {
    cases
        .iter()
        .map(move |case| KnownDefect { text, case, says })
}
