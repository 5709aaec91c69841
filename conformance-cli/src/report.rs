//! The suite's report, as its JSON has it.

use std::collections::BTreeMap;

use serde::Deserialize;

/// Report of a run.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Report {
    pub(crate) backend: String,
    pub(crate) seed: u64,
    /// None if nothing was claimed.
    pub(crate) verdict: Option<Standing>,
    pub(crate) claims: Vec<Claim>,
    pub(crate) cases: Vec<Case>,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Standing {
    Proven,
    Unproven,
    Violated,
}

impl Standing {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Proven => "proven",
            Self::Unproven => "unproven",
            Self::Violated => "violated",
        }
    }
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Claim {
    pub(crate) claim: String,
    pub(crate) claimed: bool,
    pub(crate) standing: Standing,
    pub(crate) cases_held: usize,
    pub(crate) cases_needed: usize,
    pub(crate) violated_by: Vec<String>,
    /// Reasons, each with the number of cases; 0 if no case can prove the claim.
    pub(crate) missing: BTreeMap<String, usize>,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Outcome {
    Violated,
    Unchecked,
    Held,
    #[serde(rename = "not applicable")]
    NotApplicable,
}

impl Outcome {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Violated => "violated",
            Self::Unchecked => "unchecked",
            Self::Held => "held",
            Self::NotApplicable => "not applicable",
        }
    }
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Case {
    pub(crate) case: String,
    pub(crate) level: String,
    pub(crate) badge: Option<String>,
    pub(crate) outcome: Outcome,
    /// The failure, or the reason why it was not checked.
    pub(crate) message: Option<String>,
    pub(crate) seconds: f64,
    /// Defects on which the case fails alike.
    #[serde(default)]
    pub(crate) likely_defects: Vec<String>,
}

impl Case {
    /// The guarantee that the case belongs to.
    pub(crate) fn group(&self) -> &str {
        self.case.split("::").next().unwrap_or_default()
    }

    /// The statement that the case checks, in words.
    pub(crate) fn statement(&self) -> String {
        let name = self.case.split("::").nth(1).unwrap_or(&self.case);
        name.replace('_', " ")
    }
}

impl Report {
    /// The cases by guarantee, those first that need attention.
    pub(crate) fn groups(&self) -> BTreeMap<&str, Vec<&Case>> {
        let mut groups: BTreeMap<&str, Vec<&Case>> = BTreeMap::new();
        for case in &self.cases {
            groups.entry(case.group()).or_default().push(case);
        }
        for cases in groups.values_mut() {
            cases.sort_by(|a, b| (a.outcome, &a.case).cmp(&(b.outcome, &b.case)));
        }
        groups
    }

    pub(crate) fn violations(&self) -> impl Iterator<Item = &Case> {
        self.cases
            .iter()
            .filter(|case| case.outcome == Outcome::Violated)
    }
}
