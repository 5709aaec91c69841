//! The queue in the store: the scripts beside three clients, every interleaving, with every message
//! on its way for as long as it pleases. What happens to a client between two messages is one step.

use std::collections::HashSet;

const CLIENTS: usize = 3;
/// A client's entry, and the how manieth of it.
type Entry = (usize, u8);

/// A client of another library, which knows no queue.
const FOREIGN: usize = CLIENTS;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Client {
    /// Has not come yet, or will come again.
    Idle,
    /// Its request is on its way to the server, or lost with the one that died.
    Asks,
    /// Its look at that entry, or else at the lock, is on its way.
    Looks(Option<Entry>),
    Sleeps(Option<Entry>),
    Holds,
    /// Gave up: what it asked, if that is still on its way, is executed before the removal.
    Leaves {
        asked: bool,
    },
    /// Died with a request on its way, or without.
    Dead {
        asked: bool,
    },
    /// Has had what it came for.
    Done,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    // The server.
    holder: Option<usize>,
    queue: Vec<usize>,
    /// Clients whose entry's key is there.
    alive: [bool; CLIENTS],
    /// Values of the entries' keys: the number of times that their clients have entered.
    arrivals: [u8; CLIENTS],
    /// Client whose turn was found not taken, and whether that is long ago.
    mark: Option<(usize, bool)>,
    tracks_lock: [bool; CLIENTS],
    /// By the client that is told, then by the entry.
    tracks_entry: [[bool; CLIENTS]; CLIENTS],
    /// On its way: that what a client sleeps on has changed. It ignores what it is told of its other
    /// keys, and what it looks at after an answer is newer than what was reported before.
    pushes: [bool; CLIENTS],
    // The clients.
    clients: [Client; CLIENTS],
    /// Told of a change while a request was on its way.
    told: [bool; CLIENTS],
    rounds: [u8; CLIENTS],
    // Faults that may still happen.
    crashes: u8,
    cancels: u8,
    losses: u8,
    foreign: u8,
    /// Number of times that a live client may be too slow to take its turn.
    skips: u8,
    /// Something went wrong.
    faulty: bool,
    /// The store lost what it had.
    lost: bool,
}

impl World {
    fn lock_changed(&mut self) {
        for at in 0..CLIENTS {
            let sleeps_on_it = self.clients[at] == Client::Sleeps(None);
            self.pushes[at] |= std::mem::take(&mut self.tracks_lock[at]) && sleeps_on_it;
        }
    }

    fn entry_changed(&mut self, entry: usize) {
        for at in 0..CLIENTS {
            let sleeps_on_it =
                matches!(self.clients[at], Client::Sleeps(Some((of, _))) if of == entry);
            self.pushes[at] |= std::mem::take(&mut self.tracks_entry[at][entry]) && sleeps_on_it;
        }
    }

    fn remove(&mut self, entry: usize) {
        self.queue.retain(|other| *other != entry);
        if self.mark.is_some_and(|(of, _)| of == entry) {
            self.mark = None;
        }
        if std::mem::take(&mut self.alive[entry]) {
            self.entry_changed(entry);
        }
    }

    /// `scripts/acquire.lua` in the mode `wait`.
    fn acquire(&mut self, client: usize) -> Result<(), Option<Entry>> {
        while let Some(first) = self.queue.first().copied().filter(|first| *first != client) {
            if self.alive[first] {
                if self.holder.is_some() {
                    break;
                }
                match self.mark {
                    Some((of, true)) if of == first => {}
                    Some((of, false)) if of == first => break,
                    _ => {
                        self.mark = Some((first, false));
                        break;
                    }
                }
            }
            self.remove(first);
        }
        let mine = self.queue.first() == Some(&client);
        let blocked = !mine && !self.queue.is_empty();
        if !blocked && self.holder.is_none() {
            self.remove(client);
            self.holder = Some(client);
            self.lock_changed();
            return Ok(());
        }
        if !self.queue.contains(&client) {
            self.queue.push(client);
            self.alive[client] = true;
            // Enough to tell them apart for as long as anybody remembers one.
            self.arrivals[client] = (self.arrivals[client] + 1) % 4;
            self.entry_changed(client);
        }
        if mine {
            self.mark = self.mark.filter(|(of, _)| *of != client);
        }
        let mut rank = self
            .queue
            .iter()
            .position(|other| *other == client)
            .unwrap();
        while blocked && rank > 0 {
            let before = self.queue[rank - 1];
            if self.alive[before] {
                return Err(Some((before, self.arrivals[before])));
            }
            self.remove(before);
            rank -= 1;
        }
        Err(None)
    }

    /// Reads over the tracking connection; returns whether it is there.
    fn look(&mut self, client: usize, before: Option<Entry>) -> bool {
        match before {
            Some((entry, arrival)) => {
                self.tracks_entry[client][entry] = true;
                self.alive[entry] && self.arrivals[entry] == arrival
            }
            None => {
                self.tracks_lock[client] = true;
                self.holder.is_some()
            }
        }
    }

    /// A waiter's turn comes: if it only knows that the entry before its own has ended, it looks at
    /// the lock at once.
    fn turn(&mut self, client: usize, before: Option<Entry>) {
        self.told[client] = false;
        self.clients[client] = match before {
            Some(_) => Client::Looks(None),
            None => Client::Asks,
        };
    }

    fn dead_client(&self, client: usize) -> bool {
        matches!(self.clients[client], Client::Dead { .. })
    }

    fn release(&mut self, client: usize) {
        if self.holder == Some(client) {
            self.holder = None;
            self.lock_changed();
        }
    }

    /// Everything that can happen next.
    fn next(&self) -> Vec<World> {
        let mut all = Vec::new();
        for at in 0..CLIENTS {
            let mut to = |change: &dyn Fn(&mut World)| {
                let mut next = self.clone();
                change(&mut next);
                all.push(next);
            };
            let client = self.clients[at];
            match client {
                Client::Idle => to(&|w| w.asks(at)),
                Client::Asks => to(&|w| {
                    w.clients[at] = match w.acquire(at) {
                        Ok(()) => Client::Holds,
                        Err(before) => Client::Looks(before),
                    };
                }),
                Client::Looks(before) => to(&|w| match (w.look(at, before), before) {
                    (true, _) if !w.told[at] => w.clients[at] = Client::Sleeps(before),
                    (false, None) => w.clients[at] = Client::Asks,
                    _ => w.turn(at, before),
                }),
                Client::Holds => to(&|w| {
                    w.release(at);
                    w.rounds[at] -= 1;
                    // It may be told of what it was interested in before.
                    w.faulty |= w.rounds[at] > 0;
                    w.clients[at] = if w.rounds[at] > 0 {
                        Client::Idle
                    } else {
                        Client::Done
                    };
                }),
                Client::Leaves { asked } => to(&|w| {
                    if asked {
                        let _ = w.acquire(at);
                        w.release(at);
                        w.clients[at] = Client::Leaves { asked: false };
                    } else {
                        w.remove(at);
                        w.clients[at] = Client::Done;
                    }
                }),
                Client::Dead { asked: true } => {
                    to(&|w| {
                        let _ = w.acquire(at);
                        w.clients[at] = Client::Dead { asked: false };
                    });
                    to(&|w| w.clients[at] = Client::Dead { asked: false });
                }
                // Its timer, which comes for certain.
                Client::Sleeps(_) if self.needs_timer() => to(&|w| w.asks(at)),
                Client::Sleeps(_) | Client::Done | Client::Dead { asked: false } => {}
            }
            if self.pushes[at] {
                to(&|w| {
                    w.pushes[at] = false;
                    match w.clients[at] {
                        Client::Sleeps(before) => w.turn(at, before),
                        Client::Asks | Client::Looks(_) => w.told[at] = true,
                        _ => {}
                    }
                });
                // Its entry is due to be renewed, so it asks.
                if matches!(client, Client::Sleeps(Some(_))) {
                    to(&|w| {
                        w.pushes[at] = false;
                        w.asks(at);
                    });
                }
            }
            if self.cancels > 0
                && !matches!(
                    client,
                    Client::Idle
                        | Client::Holds
                        | Client::Leaves { .. }
                        | Client::Dead { .. }
                        | Client::Done
                )
            {
                to(&|w| {
                    w.cancels -= 1;
                    w.faulty = true;
                    w.clients[at] = Client::Leaves {
                        asked: client == Client::Asks,
                    };
                });
            }
            if self.crashes > 0
                && !matches!(client, Client::Done | Client::Dead { .. } | Client::Idle)
            {
                to(&|w| {
                    w.crashes -= 1;
                    w.faulty = true;
                    w.clients[at] = Client::Dead {
                        asked: client == Client::Asks,
                    };
                    w.tracks_lock[at] = false;
                    w.tracks_entry[at] = [false; CLIENTS];
                    w.pushes[at] = false;
                });
            }
            // A dead client's lease and entry end, and so may the entry of a live one that paused.
            if self.holder == Some(at) && client == (Client::Dead { asked: false }) {
                to(&|w| w.release(at));
            }
            if self.alive[at] && (self.dead_client(at) || self.losses > 0) {
                to(&|w| {
                    w.losses -= u8::from(!w.dead_client(at));
                    w.faulty = true;
                    w.alive[at] = false;
                    w.entry_changed(at);
                });
            }
        }
        self.environment(&mut all);
        all
    }

    fn environment(&self, all: &mut Vec<World>) {
        if let Some((of, false)) = self.mark
            && (self.skips > 0 || self.dead_client(of))
        {
            let mut next = self.clone();
            next.skips -= u8::from(!self.dead_client(of));
            next.mark = Some((of, true));
            next.faulty = true;
            all.push(next);
        }
        if self.holder == Some(FOREIGN) {
            let mut next = self.clone();
            next.release(FOREIGN);
            all.push(next);
        } else if self.holder.is_none() && self.foreign > 0 {
            let mut next = self.clone();
            next.foreign -= 1;
            next.holder = Some(FOREIGN);
            next.lock_changed();
            all.push(next);
        }
        if self.losses > 0 {
            // FLUSHALL, or a failover to a replica that knows nothing: all are told.
            let mut next = self.clone();
            next.losses -= 1;
            (next.faulty, next.lost) = (true, true);
            (next.holder, next.mark, next.alive) = (None, None, [false; CLIENTS]);
            next.queue.clear();
            for at in 0..CLIENTS {
                next.tracks_lock[at] = false;
                next.tracks_entry[at] = [false; CLIENTS];
                next.pushes[at] = !next.dead_client(at);
            }
            all.push(next);
        }
    }

    /// Messages to clients that have gone make no difference.
    fn without_the_gone(mut self) -> Self {
        for at in 0..CLIENTS {
            let waits = !matches!(
                self.clients[at],
                Client::Holds | Client::Leaves { .. } | Client::Dead { .. } | Client::Done
            );
            self.told[at] &= waits;
            if matches!(self.clients[at], Client::Done | Client::Dead { .. }) {
                self.pushes[at] = false;
                self.tracks_lock[at] = false;
                self.tracks_entry[at] = [false; CLIENTS];
            }
        }
        self
    }

    fn asks(&mut self, client: usize) {
        self.clients[client] = Client::Asks;
        self.told[client] = false;
    }

    /// True if the queue stands still without the timers: the one whose turn it is does not come.
    fn needs_timer(&self) -> bool {
        self.is_quiet()
            && self
                .queue
                .first()
                .is_some_and(|first| self.dead_client(*first))
    }

    fn is_quiet(&self) -> bool {
        let rests = |client: &Client| {
            matches!(
                client,
                Client::Sleeps(_) | Client::Holds | Client::Done | Client::Dead { asked: false }
            )
        };
        self.clients.iter().all(rests) && !self.pushes.contains(&true)
    }

    fn check(&self) {
        let sleepers: Vec<_> = (0..CLIENTS)
            .filter(|at| matches!(self.clients[*at], Client::Sleeps(_)))
            .collect();
        let holders = self
            .clients
            .iter()
            .filter(|client| matches!(client, Client::Holds));
        // After a loss of the store's data there can be two.
        assert!(self.lost || holders.count() <= 1, "{self:?}");
        if !self.is_quiet() || sleepers.is_empty() {
            return;
        }
        // Whoever sleeps is told of the end of what it waits for.
        for at in &sleepers {
            let is_told = self.tracks_lock[*at] || self.tracks_entry[*at].contains(&true);
            assert!(is_told, "{at} is told of nothing: {self:?}");
        }
        let first_is_dead = self
            .queue
            .first()
            .is_some_and(|first| self.dead_client(*first));
        assert!(
            self.holder.is_some() || first_is_dead,
            "a free lock is not taken: {self:?}"
        );
        let told_of_lock = sleepers.iter().filter(|at| self.tracks_lock[**at]).count();
        assert!(
            told_of_lock > 0 || first_is_dead,
            "a release would wake nobody: {self:?}"
        );
        assert!(
            told_of_lock == 1 || self.faulty,
            "a release wakes many: {self:?}"
        );
    }
}

/// Explores every state; returns how many there are.
fn explore(crashes: u8, cancels: u8, losses: u8, foreign: u8, rounds: [u8; CLIENTS]) -> usize {
    let start = World {
        holder: Some(FOREIGN),
        queue: Vec::new(),
        alive: [false; CLIENTS],
        arrivals: [0; CLIENTS],
        mark: None,
        tracks_lock: [false; CLIENTS],
        tracks_entry: [[false; CLIENTS]; CLIENTS],
        pushes: [false; CLIENTS],
        clients: rounds.map(|rounds| {
            if rounds > 0 {
                Client::Idle
            } else {
                Client::Done
            }
        }),
        told: [false; CLIENTS],
        rounds,
        crashes,
        cancels,
        losses,
        foreign,
        skips: crashes + losses,
        faulty: false,
        lost: false,
    };
    let mut seen = HashSet::from([start.clone()]);
    let mut open = vec![start];
    while let Some(world) = open.pop() {
        world.check();
        let next = world.next();
        if next.is_empty() {
            let ended = |client: &Client| matches!(client, Client::Done | Client::Dead { .. });
            assert!(world.clients.iter().all(ended), "stuck: {world:?}");
            assert!(
                world.queue.iter().all(|entry| !world.alive[*entry]),
                "left behind: {world:?}"
            );
        }
        let next = next.into_iter().map(World::without_the_gone);
        open.extend(next.filter(|next| seen.insert(next.clone())));
    }
    seen.len()
}

#[test]
fn a_release_wakes_one_waiter_of_many() {
    assert!(explore(0, 0, 0, 0, [2, 2, 1]) > 1000);
}

#[test]
fn nobody_is_stranded_by_a_client_that_comes_again() {
    assert!(explore(0, 0, 0, 0, [2, 2, 0]) > 100);
}

#[test]
fn nobody_is_stranded_by_one_that_dies() {
    assert!(explore(1, 0, 0, 0, [1; CLIENTS]) > 1000);
}

#[test]
fn nobody_is_stranded_by_those_that_give_up() {
    assert!(explore(0, 1, 0, 0, [1; CLIENTS]) > 1000);
}

#[test]
fn nobody_is_stranded_by_lost_keys() {
    assert!(explore(0, 0, 1, 0, [1; CLIENTS]) > 1000);
}

#[test]
fn nobody_is_stranded_by_a_client_of_another_library() {
    assert!(explore(0, 0, 0, 1, [1; CLIENTS]) > 1000);
}

#[test]
fn nobody_is_stranded_when_one_dies_and_one_gives_up() {
    assert!(explore(1, 1, 0, 0, [1; CLIENTS]) > 1000);
}
