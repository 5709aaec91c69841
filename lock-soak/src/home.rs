use std::{
    collections::HashMap,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard},
};

use lock_core::backend::locked;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use crate::{
    event::{Ask, Event, Instant, Kind},
    wire::{Answer, Line, Request},
};

/// The registers that clients add to, and the history of everything that is reported.
#[derive(Clone, Debug)]
pub(crate) struct Home(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    registers: Vec<Register>,
    history: Vec<Event>,
    /// The moment at which each guard that has not ended was granted.
    granted: HashMap<Ask, Instant>,
    /// The last time at which the store went back and forgot its tokens.
    went_back: Option<Instant>,
}

/// A number that is guarded by tokens and by nothing else: it believes any client that comes with a
/// token at least as large as all before.
#[derive(Clone, Copy, Debug, Default)]
struct Register {
    value: u64,
    token: u64,
}

impl State {
    /// A read counts as well: otherwise a client that read before it was overtaken could still
    /// write.
    fn admitted(&mut self, ask: Ask, register: u32, token: u64) -> Option<&mut Register> {
        // Tokens from before the store went back are of another era: whoever restores the store
        // must see to that.
        if self
            .went_back
            .is_some_and(|at| self.granted.get(&ask).is_some_and(|granted| *granted <= at))
        {
            return None;
        }
        let register = self
            .registers
            .get_mut(register as usize)
            .filter(|register| token >= register.token)?;
        register.token = token;
        Some(register)
    }
}

impl Home {
    pub(crate) fn new(registers: u32) -> Self {
        Self(Arc::new(Mutex::new(State {
            registers: vec![Register::default(); registers as usize],
            ..State::default()
        })))
    }

    /// Records that the store starts again with older data. If it forgets tokens, those handed out
    /// since then no longer count.
    pub(crate) fn go_back(&self, forgets_tokens: bool) {
        self.record(Kind::WentBack);
        if forgets_tokens {
            let mut state = self.state();
            state.went_back = Some(Instant::now());
            state
                .registers
                .iter_mut()
                .for_each(|register| register.token = 0);
        }
    }

    pub(crate) fn record(&self, kind: Kind) {
        self.add(Event::of_home(kind));
    }

    pub(crate) fn add(&self, event: Event) {
        let mut state = self.state();
        match &event.kind {
            Kind::Granted { ask, .. } => drop(state.granted.insert(*ask, event.at)),
            Kind::Ended { ask, .. } => drop(state.granted.remove(ask)),
            _ => {}
        }
        state.history.push(event);
    }

    /// Looks at the history so far.
    pub(crate) fn with_history<T>(&self, look: impl FnOnce(&[Event]) -> T) -> T {
        look(&self.state().history)
    }

    /// Takes the history; later events are lost.
    pub(crate) fn take_history(&self) -> Vec<Event> {
        std::mem::take(&mut self.state().history)
    }

    /// Sum of all registers.
    pub(crate) fn sum(&self) -> u64 {
        self.state()
            .registers
            .iter()
            .map(|register| register.value)
            .sum()
    }

    /// Serves clients until it is dropped.
    pub(crate) async fn serve(&self) -> io::Result<(SocketAddr, JoinSet<()>)> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let home = self.clone();
        let mut server = JoinSet::new();
        server.spawn(async move {
            let mut clients = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let home = home.clone();
                clients.spawn(async move { home.serve_one(stream).await });
                while clients.try_join_next().is_some() {}
            }
        });
        Ok((address, server))
    }

    async fn serve_one(&self, stream: TcpStream) -> io::Result<()> {
        let mut line = Line::new(stream)?;
        while let Some(request) = line.receive().await? {
            if let Some(answer) = self.take(request) {
                line.send(&answer).await?;
            }
        }
        Ok(())
    }

    fn take(&self, request: Request) -> Option<Answer> {
        match request {
            Request::Report(event) => {
                self.add(event);
                None
            }
            Request::Read {
                ask,
                register,
                token,
            } => Some(self.read(ask, register, token)),
            Request::Write {
                ask,
                register,
                token,
                value,
            } => Some(self.write(ask, register, token, value)),
        }
    }

    fn read(&self, ask: Ask, register: u32, token: u64) -> Answer {
        self.state()
            .admitted(ask, register, token)
            .map_or(Answer::Refused, |register| Answer::Value(register.value))
    }

    fn write(&self, ask: Ask, register: u32, token: u64, value: u64) -> Answer {
        let mut state = self.state();
        let Some(admitted) = state.admitted(ask, register, token) else {
            return Answer::Refused;
        };
        // Not compared with the old value: the lock is there to ensure that no increment is lost.
        admitted.value = value;
        state.history.push(Event::of_home(Kind::Wrote {
            ask,
            register,
            token,
            value,
        }));
        Answer::Value(value)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        locked(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_register_believes_the_largest_token_and_no_smaller_one() {
        let home = Home::new(1);
        assert_eq!(home.read(Ask(9), 0, 5), Answer::Value(0));
        assert_eq!(home.write(Ask(1), 0, 5, 1), Answer::Value(1));
        assert_eq!(home.read(Ask(9), 0, 7), Answer::Value(1));
        assert_eq!(
            home.write(Ask(1), 0, 5, 2),
            Answer::Refused,
            "another has read since"
        );
        assert_eq!(home.read(Ask(9), 0, 6), Answer::Refused);
        assert_eq!(
            home.write(Ask(2), 0, 7, 9),
            Answer::Value(9),
            "what is written is not checked"
        );
        assert_eq!(home.with_history(<[Event]>::len), 2);
    }

    #[test]
    fn who_was_granted_before_the_store_went_back_is_refused_and_smaller_tokens_come_again() {
        let home = Home::new(1);
        let grant = |ask, token, at| {
            home.add(Event {
                at,
                process: 1,
                kind: Kind::Granted {
                    ask: Ask(ask),
                    token,
                    valid_until: at,
                },
            });
        };
        grant(1, 7, Instant(0));
        assert_eq!(home.read(Ask(1), 0, 7), Answer::Value(0));
        home.go_back(true);
        grant(2, 5, Instant(u64::MAX));
        assert_eq!(home.read(Ask(2), 0, 5), Answer::Value(0));
        assert_eq!(home.write(Ask(1), 0, 7, 1), Answer::Refused);
        home.go_back(false);
        assert_eq!(home.write(Ask(2), 0, 5, 1), Answer::Value(1));
    }
}
