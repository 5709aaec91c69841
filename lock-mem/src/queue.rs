use std::{collections::BTreeMap, time::Duration};

use lock_core::backend::Moment;

/// A request's place in a store's order of arrival. Grants follow that order, so it is the
/// acquisition's fencing token too, unless a holder has raised its own.
pub(crate) type Number = u64;

/// Holder of one name and those who wait for it, in order of arrival: events and an instant in,
/// grants out, no I/O.
///
/// A request that must look again, because it was granted or because the holder expires earlier
/// than it knew, is pushed to `wake`. `T` stands for the request's owner.
#[derive(Clone, Debug)]
pub(crate) struct Queue<T> {
    holder: Option<Holder<T>>,
    waiters: BTreeMap<Number, Waiter<T>>,
    /// The last token.
    token: u64,
}

/// The acquisition that holds a name.
#[derive(Clone, Debug)]
pub(crate) struct Holder<T> {
    pub(crate) number: Number,
    pub(crate) since: Moment,
    pub(crate) expires: Moment,
    pub(crate) token: u64,
    pub(crate) entry: T,
}

#[derive(Clone, Debug)]
struct Waiter<T> {
    ttl: Duration,
    /// Instant at which it looks again by itself.
    looks: Moment,
    entry: T,
}

/// Standing of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// It holds the name, for one TTL from the instant of this answer.
    Holding,
    /// Others are before it; it must look again at this instant, or when it is woken.
    Waiting { look: Moment },
    /// It has no place: it was not to wait, or its grant has expired or was evicted.
    None,
}

impl<T: Clone> Queue<T> {
    pub(crate) fn new() -> Self {
        Self {
            holder: None,
            waiters: BTreeMap::new(),
            token: 0,
        }
    }

    /// A new request; its number must be larger than all before. It is queued only if it is to
    /// wait.
    pub(crate) fn request(
        &mut self,
        now: Moment,
        number: Number,
        ttl: Duration,
        entry: T,
        wait: bool,
        wake: &mut Vec<T>,
    ) -> Place {
        self.settle(now, wake);
        match &self.holder {
            None => {
                self.grant(now, number, now + ttl, entry);
                Place::Holding
            }
            Some(holder) if wait => {
                let looks = holder.expires.min(now + ttl);
                self.waiters.insert(number, Waiter { ttl, looks, entry });
                Place::Waiting { look: looks }
            }
            Some(_) => Place::None,
        }
    }

    /// Tells a waiting request its standing; one that holds starts its TTL here.
    pub(crate) fn look(
        &mut self,
        now: Moment,
        number: Number,
        ttl: Duration,
        wake: &mut Vec<T>,
    ) -> Place {
        if self.renew(now, number, ttl, wake) {
            return Place::Holding;
        }
        match (&self.holder, self.waiters.get_mut(&number)) {
            (Some(holder), Some(waiter)) => {
                // Not later than its own TTL either: a waiter before it that nobody polls delays it
                // no longer.
                waiter.looks = holder.expires.min(now + ttl);
                Place::Waiting { look: waiter.looks }
            }
            _ => Place::None,
        }
    }

    /// Extends the holder's lease; `false` if that request does not hold.
    pub(crate) fn renew(
        &mut self,
        now: Moment,
        number: Number,
        ttl: Duration,
        wake: &mut Vec<T>,
    ) -> bool {
        self.settle(now, wake);
        match &mut self.holder {
            Some(holder) if holder.number == number => {
                holder.expires = holder.expires.max(now + ttl);
                true
            }
            _ => false,
        }
    }

    /// Releases, or gives up waiting; says whether the request held.
    pub(crate) fn leave(&mut self, now: Moment, number: Number, wake: &mut Vec<T>) -> bool {
        self.settle(now, wake);
        self.waiters.remove(&number);
        let held = self
            .holder
            .as_ref()
            .is_some_and(|holder| holder.number == number);
        if held {
            self.holder = None;
            self.advance(now, wake);
        }
        held
    }

    /// Takes the name away from its holder, or only from this one.
    pub(crate) fn evict(
        &mut self,
        now: Moment,
        only: Option<Number>,
        wake: &mut Vec<T>,
    ) -> Option<Holder<T>> {
        self.settle(now, wake);
        let evicted = self
            .holder
            .take_if(|holder| only.is_none_or(|only| only == holder.number))?;
        self.advance(now, wake);
        Some(evicted)
    }

    /// Raises the holder's token, and with it all later ones of this name; `None` if that request
    /// does not hold.
    pub(crate) fn raise(
        &mut self,
        now: Moment,
        number: Number,
        at_least: u64,
        wake: &mut Vec<T>,
    ) -> Option<u64> {
        self.settle(now, wake);
        let holder = self
            .holder
            .as_mut()
            .filter(|holder| holder.number == number)?;
        holder.token = holder.token.max(at_least);
        self.token = holder.token;
        Some(self.token)
    }

    /// The last token that was granted.
    pub(crate) fn token(&self) -> u64 {
        self.token
    }

    /// Takes away the places of all who wait; says how many.
    pub(crate) fn evict_waiters(&mut self, wake: &mut Vec<T>) -> usize {
        let evicted = std::mem::take(&mut self.waiters);
        wake.extend(evicted.values().map(|waiter| waiter.entry.clone()));
        evicted.len()
    }

    /// Returns the holder.
    pub(crate) fn holder(&mut self, now: Moment, wake: &mut Vec<T>) -> Option<&Holder<T>> {
        self.settle(now, wake);
        self.holder.as_ref()
    }

    /// Number of the request that holds, as of the last change.
    pub(crate) fn guards(&self) -> Option<Number> {
        self.holder.as_ref().map(|holder| holder.number)
    }

    /// Number of those who wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiters.len()
    }

    /// Returns true if nobody holds or waits: nothing needs to be remembered.
    pub(crate) fn is_idle(&self) -> bool {
        self.holder.is_none() && self.waiters.is_empty()
    }

    fn grant(&mut self, now: Moment, number: Number, expires: Moment, entry: T) {
        // A raised token may be beyond the numbers of requests that had come before.
        self.token = number.max(self.token + 1);
        self.holder = Some(Holder {
            number,
            since: now,
            expires,
            token: self.token,
            entry,
        });
    }

    fn settle(&mut self, now: Moment, wake: &mut Vec<T>) {
        if self
            .holder
            .as_ref()
            .is_some_and(|holder| holder.expires <= now)
        {
            self.holder = None;
            self.advance(now, wake);
        }
    }

    fn advance(&mut self, now: Moment, wake: &mut Vec<T>) {
        let Some((number, Waiter { ttl, entry, .. })) = self.waiters.pop_first() else {
            return;
        };
        let expires = now + ttl;
        wake.push(entry.clone());
        self.grant(now, number, expires, entry);
        // The next waiter would oversleep the expiry of a holder with a shorter TTL than the last.
        if let Some(mut next) = self.waiters.first_entry()
            && next.get().looks > expires
        {
            next.get_mut().looks = expires;
            wake.push(next.get().entry.clone());
        }
    }
}

#[cfg(test)]
mod tests;
