use std::fmt;

use crate::{plan::Key, suites::Results};

/// A value that a run should reach.
pub(crate) struct Target {
    pub(crate) what: String,
    pub(crate) bound: Bound,
    value: Value,
    /// The two throughputs, if the target is their ratio.
    compared: Option<[Key; 2]>,
}

type Value = Box<dyn Fn(&Results) -> Option<f64> + Send + Sync>;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

impl Target {
    pub(crate) fn new(
        what: impl Into<String>,
        bound: Bound,
        value: impl Fn(&Results) -> Option<f64> + Send + Sync + 'static,
    ) -> Self {
        Self {
            what: what.into(),
            bound,
            value: Box::new(value),
            compared: None,
        }
    }

    /// A target for the throughput of one subject against that of another.
    pub(crate) fn ratio(what: impl Into<String>, bound: Bound, of: Key, against: Key) -> Self {
        let ratio = move |results: &Results| {
            let of = results.figures(of)?.cycles_per_s;
            let against = results.figures(against)?.cycles_per_s;
            (against > 0.0).then(|| of / against)
        };
        Self {
            compared: Some([of, against]),
            ..Self::new(what, bound, ratio)
        }
    }

    /// A target for the largest share of a process against the smallest.
    pub(crate) fn unfairness(bound: Bound, of: Key) -> Self {
        Self::new(
            format!("{of}: largest share against smallest"),
            bound,
            move |results| Some(results.figures(of)?.passage?.unfairness()),
        )
    }

    /// `None` if this run did not measure it.
    pub(crate) fn measured(&self, results: &Results) -> Option<f64> {
        (self.value)(results)
    }

    /// The lowest and the highest ratio of any round, which show how far to trust the measured one.
    pub(crate) fn spread(&self, results: &Results) -> Option<(f64, f64)> {
        let [of, against] = self
            .compared?
            .map(|key| results.rows.iter().find(|row| row.key == key));
        let ratios = of?
            .rounds
            .iter()
            .zip(&against?.rounds)
            .map(|(of, against)| of / against);
        ratios
            .map(|ratio| (ratio, ratio))
            .reduce(|(low, high), (ratio, _)| (low.min(ratio), high.max(ratio)))
    }
}

impl Bound {
    pub(crate) fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtLeast(least) => value >= least,
            Self::AtMost(most) => value <= most,
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(least) => write!(f, "at least {least}"),
            Self::AtMost(most) => write!(f, "at most {most}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{plan::Subject, report::tests::row};

    #[test]
    fn a_ratio_needs_both_sides() {
        let ours = Key::uncontended(Subject::Ours, 1);
        let raw = Key::uncontended(Subject::Raw, 1);
        let target = Target::ratio("x", Bound::AtLeast(0.95), ours, raw);
        let mut results = Results {
            rows: vec![row(ours)],
            ..Results::default()
        };
        assert_eq!(target.measured(&results), None);
        results.rows.push(row(raw));
        results.rows[1].figures.cycles_per_s *= 2.0;
        assert_eq!(target.measured(&results), Some(0.5));
        results.rows[1].rounds = vec![600.0, 1234.5, 2600.0];
        assert_eq!(target.spread(&results), Some((0.5, 2.0)));
        assert!(!target.bound.is_met(0.5) && target.bound.is_met(0.95));
        assert!(Bound::AtMost(2.5).is_met(2.5) && !Bound::AtMost(2.5).is_met(2.51));
    }
}
