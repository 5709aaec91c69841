//! Contents of the store: queues of places, one per name. Synchronous; the defects of the store
//! itself are here.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, SystemTime},
};

use lock_core::{FencingToken, LockHolder, LockInfo, LockName, OwnerId, backend::Moment};

use crate::defects::simulated::Defect;

#[derive(Debug)]
pub(crate) struct State {
    defect: Defect,
    queues: BTreeMap<String, VecDeque<Place>>,
    tokens: BTreeMap<String, u64>,
    /// Holders that were removed by somebody else, and have to be told.
    pub(crate) removed: Vec<OwnerId>,
    /// Grows with every change.
    pub(crate) version: u64,
}

/// One acquisition's entry; the first of a queue is the holder.
#[derive(Clone, Debug)]
struct Place {
    request: Request,
    expires: Moment,
    since: SystemTime,
    token: u64,
    /// The moment since which its client has known that it holds the lock.
    told: Option<Moment>,
}

/// Request of a client.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) name: LockName,
    pub(crate) owner: OwnerId,
    pub(crate) client: u64,
    pub(crate) ttl: Duration,
    pub(crate) metadata: Option<String>,
}

/// Standing of an acquisition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Granted(FencingToken),
    Waiting { behind: OwnerId },
    Gone,
}

impl State {
    pub(crate) fn new(defect: Defect) -> Self {
        Self {
            defect,
            queues: BTreeMap::new(),
            tokens: BTreeMap::new(),
            removed: Vec::new(),
            version: 0,
        }
    }

    /// Drops the entries that have expired, and names that nobody has.
    pub(crate) fn expire(&mut self, now: Moment) {
        if self.defect == Defect::StoreNeverExpires {
            return;
        }
        let before: usize = self.queues.values().map(VecDeque::len).sum();
        for queue in self.queues.values_mut() {
            queue.retain(|place| now < place.expires);
        }
        self.queues.retain(|_, queue| !queue.is_empty());
        if self.queues.values().map(VecDeque::len).sum::<usize>() != before {
            self.version += 1;
        }
    }

    pub(crate) fn enqueue(&mut self, request: Request, now: Moment) -> Standing {
        let key = self.key(&request.name);
        let client = request.client;
        let owner = request.owner.clone();
        if let Some(standing) = self.quirk(&key, &request, now) {
            return standing;
        }
        let place = self.place(request, now);
        let queue = self.queues.entry(key.clone()).or_default();
        if self.defect == Defect::LossOnContention
            && let Some(head) = queue.front()
        {
            self.removed.push(head.request.owner.clone());
        }
        match self.defect {
            Defect::LastInFirstOut if !queue.is_empty() => queue.insert(1, place),
            Defect::SessionIsReentrant
                if queue
                    .front()
                    .is_some_and(|head| head.request.client == client) =>
            {
                queue.push_front(place);
            }
            _ => queue.push_back(place),
        }
        self.version += 1;
        self.standing(&key, &owner, now)
    }

    /// Takes a free lock; `None` if it is not free.
    pub(crate) fn take(&mut self, request: Request, now: Moment) -> Option<FencingToken> {
        let key = self.key(&request.name);
        let client = request.client;
        let owner = request.owner.clone();
        let head = self.queues.get(&key).and_then(VecDeque::front);
        let free = match self.defect {
            Defect::SessionIsReentrant => head.is_none_or(|head| head.request.client == client),
            Defect::TryJumpsTheQueue => head.is_none_or(|head| {
                head.token > 1
                    && head
                        .told
                        .is_none_or(|told| now < told + Duration::from_millis(5))
            }),
            _ => head.is_none(),
        };
        if !free || self.nested(&key) {
            if self.defect == Defect::TryLeavesAnEntry {
                self.enqueue(request, now);
            }
            return None;
        }
        let place = self.place(request, now);
        self.queues
            .entry(key.clone())
            .or_default()
            .push_front(place);
        self.version += 1;
        match self.standing(&key, &owner, now) {
            Standing::Granted(token) => Some(token),
            _ => None,
        }
    }

    /// Renews the acquisition and returns its standing.
    pub(crate) fn check(&mut self, request: &Request, behind: &OwnerId, now: Moment) -> Standing {
        let key = self.key(&request.name);
        if self.defect != Defect::WaiterIsNotRenewed {
            self.renew(request, now);
        }
        let standing = self.standing(&key, &request.owner, now);
        let predecessor = self
            .queues
            .get(&key)
            .is_some_and(|queue| queue.iter().any(|place| place.request.owner == *behind));
        match (&standing, self.defect) {
            (Standing::Waiting { .. }, Defect::PredecessorIsProof) if !predecessor => {
                Standing::Granted(self.mint(&key, request.client))
            }
            (Standing::Gone, Defect::EvictedWaiterIsGranted) if predecessor => Standing::Waiting {
                behind: behind.clone(),
            },
            (Standing::Gone, Defect::EvictedWaiterIsGranted) => {
                Standing::Granted(self.mint(&key, request.client))
            }
            (Standing::Gone, Defect::EvictedWaiterWaitsOn) => Standing::Waiting {
                behind: behind.clone(),
            },
            _ => standing,
        }
    }

    pub(crate) fn renew(&mut self, request: &Request, now: Moment) -> bool {
        let key = self.key(&request.name);
        let queue = self.queues.entry(key.clone()).or_default();
        if let Some(place) = queue
            .iter_mut()
            .find(|place| place.request.owner == request.owner)
        {
            place.expires = now + request.ttl;
            return true;
        }
        if self.defect == Defect::RenewalWithoutOwnerCheck
            && let Some(place) = queue.front_mut()
        {
            place.expires = now + request.ttl;
            return true;
        }
        if queue.is_empty() {
            self.queues.remove(&key);
        }
        if self.defect == Defect::RenewalRecreatesTheEntry {
            let place = self.place(request.clone(), now);
            self.queues.entry(key).or_default().push_front(place);
            return true;
        }
        false
    }

    pub(crate) fn remove(&mut self, name: &LockName, owner: &OwnerId) -> bool {
        let key = self.key(name);
        let Some(queue) = self.queues.get_mut(&key) else {
            return self.defect == Defect::ReleaseAlwaysSaysHeld;
        };
        let found = match self.defect {
            Defect::ReleaseWithoutOwnerCheck => queue.pop_front().is_some(),
            _ => match queue.iter().position(|place| place.request.owner == *owner) {
                Some(at) => queue.remove(at).is_some(),
                None => false,
            },
        };
        self.tidy(&key);
        found || self.defect == Defect::ReleaseAlwaysSaysHeld
    }

    /// Removes the holder, whoever it is.
    pub(crate) fn evict_holder(&mut self, name: &LockName) -> bool {
        let key = self.key(name);
        let Some(place) = self.queues.get_mut(&key).and_then(VecDeque::pop_front) else {
            return false;
        };
        self.removed.push(place.request.owner);
        self.tidy(&key);
        true
    }

    pub(crate) fn evict_waiters(&mut self, name: &LockName) {
        if let Some(queue) = self.queues.get_mut(&self.key(name)) {
            queue.truncate(1);
        }
        self.version += 1;
    }

    pub(crate) fn force(
        &mut self,
        name: &LockName,
        only: Option<&OwnerId>,
        now: Moment,
    ) -> Vec<LockHolder> {
        let holder = self.inspect(name, now).map(|info| info.holder().clone());
        let spared = |holder: &LockHolder| only.is_some_and(|only| *only != holder.owner);
        if self.defect != Defect::ForceTakesAnybody && holder.as_ref().is_some_and(spared) {
            return Vec::new();
        }
        let forced = self.force_any(name);
        match self.defect {
            Defect::ForceAlwaysSaysYes => {
                vec![holder.unwrap_or_else(|| LockHolder::new(OwnerId::new("nobody")))]
            }
            Defect::ForceNamesAnother => holder
                .map(|_| LockHolder::new(OwnerId::random()))
                .into_iter()
                .collect(),
            _ => holder.filter(|_| forced).into_iter().collect(),
        }
    }

    fn force_any(&mut self, name: &LockName) -> bool {
        match self.defect {
            Defect::ForceDoesNothing => self.queues.contains_key(&self.key(name)),
            Defect::ForceTakesNestedNames => {
                let inner: Vec<_> = self
                    .queues
                    .keys()
                    .filter(|key| key.starts_with(&format!("{name}/")))
                    .cloned()
                    .collect();
                for key in inner {
                    self.queues.remove(&key);
                }
                self.evict_holder(name)
            }
            Defect::ForceClearsTheQueue => {
                self.evict_waiters(name);
                self.evict_holder(name)
            }
            _ => self.evict_holder(name),
        }
    }

    pub(crate) fn inspect(&self, name: &LockName, now: Moment) -> Option<LockInfo> {
        let queue = self.queues.get(&self.key(name))?;
        let place = if self.defect == Defect::InspectTellsTheLast {
            queue.back()?
        } else {
            queue.front()?
        };
        let mut holder = LockHolder::new(place.request.owner.clone());
        holder.token = Some(FencingToken::new(
            place.token + u64::from(self.defect == Defect::InspectTellsAnotherToken),
        ));
        holder.since = Some(place.since);
        holder.metadata = place
            .request
            .metadata
            .clone()
            .filter(|_| self.defect != Defect::MetadataIsDropped);
        holder.expires_in = Some(place.expires.saturating_since(now));
        let mut info = LockInfo::new(name.clone(), holder);
        let counted = queue.len() - usize::from(self.defect != Defect::QueueLengthCountsTheHolder);
        info.waiters = Some(counted as u64);
        Some(info)
    }

    pub(crate) fn list(&self, prefix: &str, now: Moment) -> Vec<LockInfo> {
        let prefix = if self.defect == Defect::ListIgnoresThePrefix {
            ""
        } else {
            prefix
        };
        let most = if self.defect == Defect::ListIsCutShort {
            100
        } else {
            usize::MAX
        };
        let names = self
            .queues
            .values()
            .filter_map(|queue| queue.front())
            .map(|place| place.request.name.clone());
        names
            .filter(|name| name.as_str().starts_with(prefix))
            .filter_map(|name| self.inspect(&name, now))
            .take(most)
            .collect()
    }

    /// Raises the holder's token, and the counter with it.
    pub(crate) fn raise(
        &mut self,
        request: &Request,
        at_least: FencingToken,
    ) -> Option<FencingToken> {
        let key = self.key(&request.name);
        let holder = self.queues.get_mut(&key)?.front_mut()?;
        if holder.request.owner != request.owner {
            return None;
        }
        let counter = self.tokens.entry(key).or_default();
        let raised = at_least.as_u64().max(*counter);
        if self.defect != Defect::RaiseIsForgotten {
            *counter = raised;
        }
        holder.token = raised;
        Some(FencingToken::new(raised))
    }

    pub(crate) fn entries(&self, name: &LockName) -> Vec<String> {
        let queue = self.queues.get(&self.key(name));
        queue
            .into_iter()
            .flatten()
            .map(|place| place.request.owner.to_string())
            .collect()
    }

    /// Loses what a restart loses.
    pub(crate) fn restart(&mut self) {
        match self.defect {
            Defect::RestartForgetsTokens => self.tokens.clear(),
            Defect::RestartForgetsLocks => self.queues.clear(),
            _ => {}
        }
        self.version += 1;
    }

    fn standing(&mut self, key: &str, owner: &OwnerId, now: Moment) -> Standing {
        let Some(queue) = self.queues.get(key) else {
            return Standing::Gone;
        };
        let Some(at) = queue.iter().position(|place| place.request.owner == *owner) else {
            return Standing::Gone;
        };
        let client = queue[at].request.client;
        if at > 0 {
            return Standing::Waiting {
                behind: queue[at - 1].request.owner.clone(),
            };
        }
        if self.nested(key) {
            return Standing::Waiting {
                behind: owner.clone(),
            };
        }
        let token = match queue[0].token {
            0 => self.mint(key, client),
            minted => FencingToken::new(minted),
        };
        if let Some(head) = self.queues.get_mut(key).and_then(VecDeque::front_mut) {
            head.token = token.as_u64();
            head.told.get_or_insert(now);
        }
        Standing::Granted(token)
    }

    fn mint(&mut self, key: &str, client: u64) -> FencingToken {
        let counter = if self.defect == Defect::TokenPerClient {
            format!("{key}\0{client}")
        } else {
            key.to_owned()
        };
        let token = self.tokens.entry(counter).or_default();
        *token += 1;
        FencingToken::new(*token)
    }

    fn place(&self, request: Request, now: Moment) -> Place {
        Place {
            expires: now + request.ttl,
            since: SystemTime::now(),
            token: 0,
            told: None,
            request,
        }
    }

    fn tidy(&mut self, key: &str) {
        self.version += 1;
        if self.queues.get(key).is_some_and(VecDeque::is_empty) {
            self.queues.remove(key);
            if self.defect == Defect::ReleaseDeletesTheToken {
                self.tokens.remove(key);
            }
        }
    }

    fn key(&self, name: &LockName) -> String {
        let name = name.as_str();
        match self.defect {
            Defect::CaseIsIgnored => name.to_lowercase(),
            Defect::NamesAreTruncated => name.chars().take(200).collect(),
            Defect::SpacesAreTrimmed => name.trim().to_owned(),
            Defect::SlashesAreTrimmed => name.trim_matches('/').to_owned(),
            Defect::BracesAreTheName => match name
                .split_once('{')
                .and_then(|(_, rest)| rest.split_once('}'))
            {
                Some((tag, _)) => format!("{}{tag}", name.split('{').next().unwrap_or_default()),
                None => name.to_owned(),
            },
            _ => name.to_owned(),
        }
    }

    /// True if the holder of a nested name is in the way.
    fn nested(&self, key: &str) -> bool {
        self.defect == Defect::PrefixInterferes
            && self
                .queues
                .keys()
                .any(|other| other.starts_with(&format!("{key}/")))
    }

    fn quirk(&mut self, key: &str, request: &Request, now: Moment) -> Option<Standing> {
        let head = self.queues.get(key).and_then(VecDeque::front)?;
        if self.defect == Defect::OwnerPerClient && head.request.owner == request.owner {
            // The store takes it for a retry.
            self.renew(request, now);
            return Some(self.standing(key, &request.owner, now));
        }
        None
    }
}
