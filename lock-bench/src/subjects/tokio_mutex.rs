use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::OwnedMutexGuard;

use crate::{
    Result,
    protocol::Job,
    subjects::{Client, Contender},
};

type Lock = Arc<tokio::sync::Mutex<()>>;

/// The map from names to mutexes that people write themselves. It never forgets a name, and has
/// neither a timeout, nor a token, nor a TTL.
#[derive(Clone, Default)]
pub(crate) struct KeyedMutexes(Arc<Mutex<HashMap<String, Lock>>>);

pub(crate) struct KeyedContender {
    mutexes: KeyedMutexes,
    name: String,
}

impl KeyedMutexes {
    fn of(&self, name: &str) -> Lock {
        let mut mutexes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lock) = mutexes.get(name) {
            return Arc::clone(lock);
        }
        Arc::clone(mutexes.entry(name.to_owned()).or_default())
    }
}

impl Client for KeyedMutexes {
    type Contender = KeyedContender;

    async fn connect(_: &Job) -> Result<Self> {
        Ok(Self::default())
    }

    async fn contender(&self, name: &str) -> Result<KeyedContender> {
        Ok(KeyedContender {
            mutexes: self.clone(),
            name: name.to_owned(),
        })
    }

    async fn close(self) {}
}

impl Contender for KeyedContender {
    type Held = OwnedMutexGuard<()>;

    async fn acquire(&self) -> Result<OwnedMutexGuard<()>> {
        Ok(self.mutexes.of(&self.name).lock_owned().await)
    }

    async fn release(&self, held: OwnedMutexGuard<()>) -> Result<()> {
        drop(held);
        Ok(())
    }
}
