//! The client. Its requests block the thread, so that none can be dropped half-way: short, and good
//! enough for a test.

use std::{
    collections::BTreeSet,
    io::{self, BufRead, BufReader, Write},
    net::{SocketAddr, TcpStream},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use lock_conformance::Operator;
use lock_core::{
    AcquireOptions, Capabilities, Connector, Consistency, DistributedLock, ErrorKind, FencingToken,
    LockError, LockGuard, LockName, LockUrl, Operation, OwnerId, Terms, TokenDurability,
    backend::{
        Clock, Entry, Grant, GuardSet, LeaseKeeper, RenewOutcome, Renewer, StoreHealth, Tasks,
        WaitLimit, bounded, locked,
    },
};

use crate::defect::Defect;

const POLL: Duration = Duration::from_millis(10);
/// Time for an answer.
const PATIENCE: Duration = Duration::from_millis(400);

pub(crate) fn declared() -> Capabilities {
    let mut tcp = Capabilities::new("tcp", Consistency::Linearizable);
    tcp.ttl.min = Duration::from_millis(100);
    tcp.fencing = Some(TokenDurability::Process);
    tcp.crash_bound = Duration::from_millis(500);
    tcp
}

/// Connections to one server.
#[derive(Debug)]
pub(crate) struct Server {
    address: SocketAddr,
    idle: Mutex<Vec<BufReader<TcpStream>>>,
}

impl Server {
    pub(crate) fn at(address: SocketAddr) -> Self {
        Self {
            address,
            idle: Mutex::default(),
        }
    }

    fn ask(&self, verb: &str, name: &LockName, rest: &str) -> Result<String, LockError> {
        let name: String = name
            .as_str()
            .bytes()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let line = format!("{verb} {name} {rest}\n");
        // After a request without an answer, so that it cannot overtake it.
        let farewell = (verb == "take").then(|| format!("release {name} {rest}\n"));
        let asked = self
            .try_ask(&line, farewell.as_deref())
            .or_else(|error| match error.kind() {
                // The server has closed an idle connection.
                io::ErrorKind::UnexpectedEof
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::BrokenPipe
                    if verb != "take" =>
                {
                    locked(&self.idle).clear();
                    self.try_ask(&line, None)
                }
                _ => Err(error),
            });
        asked.map_err(|error| {
            LockError::new(ErrorKind::Unavailable, "the server does not answer")
                .caused_by(error)
                .indeterminate()
        })
    }

    fn try_ask(&self, line: &str, farewell: Option<&str>) -> io::Result<String> {
        let idle = locked(&self.idle).pop();
        let mut connection = match idle {
            Some(connection) => connection,
            None => {
                let stream = TcpStream::connect_timeout(&self.address, PATIENCE)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                BufReader::new(stream)
            }
        };
        connection.get_mut().write_all(line.as_bytes())?;
        let mut answer = String::new();
        match connection.read_line(&mut answer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(error) => {
                let farewell = farewell.unwrap_or_default().as_bytes();
                connection.get_mut().write_all(farewell)?;
                return Err(error);
            }
        }
        locked(&self.idle).push(connection);
        Ok(answer.trim_end().to_owned())
    }
}

#[async_trait]
impl Operator for Server {
    async fn entries(&self, name: &LockName) -> Result<Vec<String>, LockError> {
        let holder = self.ask("holder", name, "")?;
        Ok(holder
            .strip_prefix("held ")
            .map(str::to_owned)
            .into_iter()
            .collect())
    }

    async fn remove(&self, name: &LockName) -> Result<(), LockError> {
        self.ask("remove", name, "").map(drop)
    }
}

#[derive(Debug)]
pub(crate) struct TcpConnector(pub(crate) Defect);

#[async_trait]
impl Connector for TcpConnector {
    fn schemes(&self) -> &'static [&'static str] {
        &["tcp"]
    }

    fn capabilities(&self, _: &LockUrl) -> Result<Capabilities, LockError> {
        Ok(declared())
    }

    async fn connect(&self, url: &LockUrl) -> Result<Arc<dyn DistributedLock>, LockError> {
        let address = url.endpoints().first().map(|server| server.authority(1));
        let address = address.and_then(|address| address.parse().ok());
        let address = address
            .ok_or_else(|| LockError::new(ErrorKind::InvalidUrl, "write tcp://127.0.0.1:port"))?;
        let server = Arc::new(Server::at(address));
        Ok(Arc::new(TcpLock::at(server, self.0)))
    }
}

#[derive(Debug)]
struct TcpLock {
    server: Arc<Server>,
    defect: Defect,
    guards: Arc<GuardSet>,
    keeper: Arc<LeaseKeeper<Renewals>>,
}

/// Names that are held in this process, for a defect.
static HELD_HERE: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

impl TcpLock {
    fn at(server: Arc<Server>, defect: Defect) -> Self {
        Self {
            server,
            defect,
            guards: GuardSet::new("tcp", Tasks::current()),
            keeper: LeaseKeeper::new(Clock::Suspend, Renewals, Tasks::current()),
        }
    }

    fn terms(&self, options: AcquireOptions) -> Result<Terms, LockError> {
        self.guards.ensure_open()?;
        options.resolve(&declared(), Duration::from_secs(30))
    }

    /// Makes the guard, or tells who has the lock.
    fn take(
        &self,
        name: &LockName,
        terms: &Terms,
    ) -> Result<Result<LockGuard, OwnerId>, LockError> {
        let sent = Clock::Suspend.now();
        let entry = TcpEntry {
            server: Arc::clone(&self.server),
            name: name.clone(),
            owner: OwnerId::random(),
            ttl: terms.ttl,
            defect: self.defect,
        };
        let token = match entry.take() {
            Ok(Ok(token)) => token,
            Ok(Err(holder)) => return Ok(Err(holder)),
            Err(error) => {
                // It may have been granted.
                let _ = entry.let_go();
                return Err(error);
            }
        };
        let (lease, renewal) =
            self.keeper
                .register(Arc::new(entry.clone()), sent, terms.ttl, terms);
        let grant = Grant::new(name.clone(), entry.owner.clone(), lease, Arc::new(entry));
        let grant = grant.with_token(token).with_renewal(renewal);
        Ok(Ok(self.guards.grant(grant)))
    }

    async fn wait(
        &self,
        name: &LockName,
        terms: &Terms,
        wait_limit: &WaitLimit,
    ) -> Result<LockGuard, LockError> {
        loop {
            wait_limit.asked();
            match self.take(name, terms) {
                Ok(Ok(guard)) => return Ok(guard),
                Ok(Err(holder)) => {
                    wait_limit.answered();
                    wait_limit.held_by(&holder, None);
                }
                Err(failure) => wait_limit.failed(failure)?,
            }
            tokio::time::sleep(POLL.mul_f64(0.5 + rand::random::<f64>())).await;
        }
    }
}

#[async_trait]
impl DistributedLock for TcpLock {
    fn capabilities(&self) -> Capabilities {
        declared()
    }

    async fn acquire_named(
        &self,
        name: &LockName,
        options: AcquireOptions,
    ) -> Result<LockGuard, LockError> {
        let acquired = match self.terms(options) {
            Ok(terms) => {
                let health = StoreHealth::new(Clock::Suspend);
                let limit = WaitLimit::new(health, &terms, Duration::from_secs(1));
                bounded(&self.guards, Some(&limit), self.wait(name, &terms, &limit)).await
            }
            Err(error) => Err(error),
        };
        acquired.map_err(|error| error.during(Operation::Acquire).on("tcp").of(name))
    }

    async fn try_acquire_named(
        &self,
        name: &LockName,
        options: AcquireOptions,
    ) -> Result<Option<LockGuard>, LockError> {
        let taken = self
            .terms(options)
            .and_then(|terms| self.take(name, &terms));
        taken
            .map(Result::ok)
            .map_err(|error| error.during(Operation::TryAcquire).on("tcp").of(name))
    }

    async fn shutdown(&self) -> Result<(), LockError> {
        self.guards.shutdown().await
    }
}

/// One acquisition.
#[derive(Clone, Debug)]
struct TcpEntry {
    server: Arc<Server>,
    name: LockName,
    owner: OwnerId,
    ttl: Duration,
    defect: Defect,
}

impl TcpEntry {
    fn take(&self) -> Result<Result<FencingToken, OwnerId>, LockError> {
        if self.defect == Defect::LocksInsideTheProcess
            && !locked(&HELD_HERE).insert(self.name.to_string())
        {
            return Ok(Err(OwnerId::new("somebody here")));
        }
        if self.defect == Defect::LocksInsideTheProcess {
            return Ok(Ok(FencingToken::new(1)));
        }
        let in_two_steps = self.defect == Defect::TtlInASecondStep;
        let ttl = self.ttl.as_millis();
        let taken = match in_two_steps {
            true => self.server.ask("take", &self.name, self.owner.as_str())?,
            false => self
                .server
                .ask("take", &self.name, &format!("{} {ttl}", self.owner))?,
        };
        if let Some(holder) = taken.strip_prefix("held ") {
            return Ok(Err(OwnerId::new(holder)));
        }
        if in_two_steps {
            // Long enough for a kill to hit it.
            std::thread::sleep(Duration::from_millis(5));
            self.renew_now()?;
        }
        let token = taken
            .strip_prefix("taken ")
            .and_then(|token| token.parse().ok());
        let token = token
            .ok_or_else(|| LockError::new(ErrorKind::Unavailable, format!("it says `{taken}`")))?;
        Ok(Ok(FencingToken::new(token)))
    }

    fn renew_now(&self) -> Result<bool, LockError> {
        if self.defect == Defect::LocksInsideTheProcess {
            return Ok(true);
        }
        let rest = format!("{} {}", self.owner, self.ttl.as_millis());
        Ok(self.server.ask("renew", &self.name, &rest)? == "yes")
    }

    fn let_go(&self) -> Result<bool, LockError> {
        if self.defect == Defect::LocksInsideTheProcess {
            return Ok(locked(&HELD_HERE).remove(self.name.as_str()));
        }
        let released = self
            .server
            .ask("release", &self.name, self.owner.as_str())?;
        Ok(released == "yes")
    }
}

#[async_trait]
impl Entry for TcpEntry {
    async fn release(&self) -> Result<bool, LockError> {
        self.let_go()
    }
}

#[derive(Debug)]
struct Renewals;

#[async_trait]
impl Renewer for Renewals {
    type Item = TcpEntry;

    async fn renew(&self, batch: &[Arc<TcpEntry>]) -> Vec<RenewOutcome> {
        let renew = |entry: &Arc<TcpEntry>| match entry.renew_now() {
            Ok(true) => RenewOutcome::Renewed(entry.ttl),
            Ok(false) => RenewOutcome::NotHeld,
            Err(error) => RenewOutcome::Failed(error),
        };
        batch.iter().map(renew).collect()
    }
}
