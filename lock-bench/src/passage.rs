use serde::Serialize;

use crate::{measure::median, protocol::Tally};

/// How a lock went from one process to another while all of them wanted it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Passage {
    /// Time from the release of one process to the grant to another, if any were measured.
    pub(crate) hand_over_p50_ms: f64,
    pub(crate) hand_over_p99_ms: f64,
    /// Share of the grants that followed the release of another process, from 0 to 1.
    pub(crate) handed_over: f64,
    /// Number of grants of the process that had the fewest.
    pub(crate) smallest_share: f64,
    /// The same of the one that had most.
    pub(crate) largest_share: f64,
}

impl Passage {
    /// `None` for one process, or without a grant.
    pub(crate) fn of(processes: &[Tally]) -> Option<Self> {
        let shares = processes.iter().map(|tally| tally.cycles_ns.len());
        let smallest = shares.clone().min()?;
        let largest = shares.max()?;
        if processes.len() < 2 || largest == 0 {
            return None;
        }
        let hand_overs = hand_overs(processes);
        let at = |quantile: f64| {
            let place = (hand_overs.len() as f64 * quantile) as usize;
            hand_overs
                .get(place.min(hand_overs.len().saturating_sub(1)))
                .map_or(0.0, |nanos| *nanos as f64 / 1e6)
        };
        let grants: usize = processes.iter().map(|tally| tally.grants_ns.len()).sum();
        Some(Self {
            hand_over_p50_ms: at(0.5),
            hand_over_p99_ms: at(0.99),
            handed_over: hand_overs.len() as f64 / grants.saturating_sub(1).max(1) as f64,
            smallest_share: smallest as f64,
            largest_share: largest as f64,
        })
    }

    pub(crate) fn medians(windows: &[Self]) -> Option<Self> {
        let of = |figure: fn(&Self) -> f64| median(windows.iter().map(figure));
        Some(Self {
            hand_over_p50_ms: of(|window| window.hand_over_p50_ms)?,
            hand_over_p99_ms: of(|window| window.hand_over_p99_ms)?,
            handed_over: of(|window| window.handed_over)?,
            smallest_share: of(|window| window.smallest_share)?,
            largest_share: of(|window| window.largest_share)?,
        })
    }

    /// Largest share against the smallest; infinite if somebody had nothing.
    pub(crate) fn unfairness(&self) -> f64 {
        self.largest_share / self.smallest_share
    }
}

/// Times from a release to the next grant, if that is another process's; sorted.
fn hand_overs(processes: &[Tally]) -> Vec<u64> {
    let mut grants: Vec<_> = processes
        .iter()
        .enumerate()
        .flat_map(|(process, tally)| tally.grants_ns.iter().map(move |grant| (grant, process)))
        .collect();
    grants.sort_unstable();
    let mut hand_overs: Vec<_> = grants
        .windows(2)
        .filter(|pair| pair[0].1 != pair[1].1)
        .map(|pair| pair[1].0[0].saturating_sub(pair[0].0[1]))
        .collect();
    hand_overs.sort_unstable();
    hand_overs
}

/// Time from the first grant to the beginning of the last release, in seconds.
pub(crate) fn seconds(processes: &[Tally]) -> Option<f64> {
    let grants = || processes.iter().flat_map(|tally| &tally.grants_ns);
    let first = grants().map(|[granted, _]| granted).min()?;
    let last = grants().map(|[_, released]| released).max()?;
    Some((last - first) as f64 / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(grants_ms: &[[u64; 2]]) -> Tally {
        Tally {
            batch: 1,
            cycles_ns: vec![1; grants_ms.len()],
            grants_ns: grants_ms
                .iter()
                .map(|grant| grant.map(|ms| ms * 1_000_000))
                .collect(),
            ..Tally::default()
        }
    }

    #[test]
    fn only_the_way_to_another_process_is_a_hand_over() {
        let processes = [tally(&[[0, 5], [7, 12], [13, 18]]), tally(&[[22, 27]])];
        let passage = Passage::of(&processes).unwrap();
        assert_eq!(
            (passage.hand_over_p50_ms, passage.hand_over_p99_ms),
            (4.0, 4.0)
        );
        assert!((passage.handed_over - 1.0 / 3.0).abs() < 1e-9);
        assert_eq!(passage.unfairness(), 3.0);
        assert_eq!(seconds(&processes), Some(0.027));
    }

    #[test]
    fn one_process_hands_nothing_over() {
        assert_eq!(Passage::of(&[tally(&[[0, 5]])]), None);
        assert_eq!(Passage::of(&[tally(&[]), tally(&[])]), None);
        assert_eq!(seconds(&[Tally::default()]), None);
    }
}
