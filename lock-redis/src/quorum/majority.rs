/// Number of the independent servers that must agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Majority {
    servers: usize,
}

impl Majority {
    pub(crate) const fn of(servers: usize) -> Self {
        Self { servers }
    }

    pub(crate) const fn servers(self) -> usize {
        self.servers
    }

    /// So many decide: any two such groups have a server in common.
    pub(crate) const fn needed(self) -> usize {
        self.servers / 2 + 1
    }

    /// So many prevent a majority of the others.
    pub(crate) const fn blocking(self) -> usize {
        self.servers - self.needed() + 1
    }
}

/// The answers of the servers to a question that is yes or no.
#[derive(Clone, Debug)]
pub(crate) struct Count {
    majority: Majority,
    yes: usize,
    no: usize,
    failed: usize,
}

impl Count {
    pub(crate) fn new(majority: Majority) -> Self {
        Self {
            majority,
            yes: 0,
            no: 0,
            failed: 0,
        }
    }

    /// Takes one server's answer; `None` for a server that gave none.
    pub(crate) fn count(&mut self, answer: Option<bool>) {
        match answer {
            Some(true) => self.yes += 1,
            Some(false) => self.no += 1,
            None => self.failed += 1,
        }
    }

    /// Returns what holds whatever the others may say: a majority says yes, or none can.
    pub(crate) fn verdict(&self) -> Option<bool> {
        if self.yes >= self.majority.needed() {
            Some(true)
        } else if self.no >= self.majority.blocking() {
            Some(false)
        } else {
            None
        }
    }

    fn open(&self) -> usize {
        self.majority.servers() - self.yes - self.no - self.failed
    }

    /// Returns whether all have answered, or will not.
    pub(crate) fn is_all_in(&self) -> bool {
        self.open() == 0
    }

    /// Returns whether no further answer can bring a verdict.
    pub(crate) fn is_complete(&self) -> bool {
        let open = self.open();
        self.verdict().is_some()
            || (self.yes + open < self.majority.needed()
                && self.no + open < self.majority.blocking())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn majorities_intersect_and_the_rest_is_none() {
        for servers in 1..=9 {
            let majority = Majority::of(servers);
            assert!(majority.needed() * 2 > servers);
            assert!(servers - majority.blocking() < majority.needed());
            assert!(
                servers - (majority.blocking() - 1) >= majority.needed(),
                "fewer do not block"
            );
        }
    }

    /// Every sequence of answers: a verdict is never taken back, and contradicts no possible
    /// majority.
    #[test]
    fn a_verdict_is_final() {
        for servers in 1..=6_u32 {
            for history in 0..3_u32.pow(servers) {
                let majority = Majority::of(servers as usize);
                let mut last = None;
                let mut count = Count::new(majority);
                for at in 0..servers {
                    count.count(
                        [Some(true), Some(false), None][(history / 3_u32.pow(at) % 3) as usize],
                    );
                    if last.is_some() {
                        assert_eq!(count.verdict(), last);
                    }
                    last = count.verdict();
                    match last {
                        Some(true) => {
                            assert!(count.yes >= majority.needed() && count.is_complete());
                        }
                        Some(false) => assert!(
                            servers as usize - count.no < majority.needed() && count.is_complete()
                        ),
                        None => assert!(count.is_complete() || at + 1 < servers),
                    }
                }
            }
        }
    }
}
