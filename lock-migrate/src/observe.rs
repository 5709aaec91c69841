//! Looks at the locks of both stores, and takes them away.

use std::{collections::HashMap, sync::Arc};

use futures_util::{Stream, StreamExt, TryStreamExt, future::try_join, stream};
use lock_core::{
    DistributedLock, FencingToken, LockError, LockHolder, LockInfo, LockList, LockName, LockWatch,
    OwnerId,
};

use crate::{
    FloorStore, Phase,
    link::{strip_mark, without_mark},
    merge::{OfTarget, merge},
    stores::Stores,
};

/// The floor that a name's tokens in the target are presented with.
pub(crate) type Floors = Arc<dyn Fn(&LockName) -> Arc<dyn FloorStore> + Send + Sync>;

/// Tells who holds a lock.
pub(crate) async fn inspect(
    stores: &Stores,
    phase: Phase,
    name: &LockName,
) -> Result<Option<LockInfo>, LockError> {
    Ok(match phase {
        Phase::SourceOnly => of_source(stores, name).await?,
        Phase::TargetOnly | Phase::Final => of_target(stores, name).await?.map(|seen| seen.info),
        Phase::Dual => {
            let seen = try_join(of_source(stores, name), of_target(stores, name));
            let (source, target) = seen.await?;
            merge(source, target)
        }
    })
}

async fn of_source(stores: &Stores, name: &LockName) -> Result<Option<LockInfo>, LockError> {
    let info = stores.source()?.inspect_named(name).await?;
    Ok(info.map(without_mark))
}

async fn of_target(stores: &Stores, name: &LockName) -> Result<Option<OfTarget>, LockError> {
    match stores.target()?.inspect_named(name).await? {
        Some(info) => Ok(Some(present(&*stores.floor, info).await?)),
        None => Ok(None),
    }
}

/// Adds the floor to the token.
async fn present(floor: &dyn FloorStore, info: LockInfo) -> Result<OfTarget, LockError> {
    let mut seen = OfTarget::new(info);
    for holder in &mut seen.info.holders {
        if let Some(token) = holder.token {
            let floor = floor.read_at(token).await?;
            holder.token = Some(FencingToken::new(token.as_u64().saturating_add(floor)));
        }
    }
    Ok(seen)
}

/// Takes a lock away, in both stores where it is in both.
pub(crate) async fn force_release(
    stores: &Stores,
    phase: Phase,
    name: &LockName,
    only: Option<&OwnerId>,
) -> Result<Vec<LockHolder>, LockError> {
    match phase {
        Phase::SourceOnly => {
            let mut removed = stores.source()?.force_release_named(name, only).await?;
            for holder in &mut removed {
                strip_mark(holder);
            }
            return Ok(removed);
        }
        Phase::TargetOnly | Phase::Final => {
            let removed = stores.target()?.force_release_named(name, only).await?;
            return present_holders(stores, name, removed).await;
        }
        Phase::Dual => {}
    }
    let source = stores.source()?;
    let target = stores.target()?;
    let seen = try_join(of_source(stores, name), of_target(stores, name));
    let (in_source, in_target) = seen.await?;
    let linked = in_target.as_ref().and_then(|seen| seen.source.clone());
    let in_source = in_source.map(|info| info.holder().clone());
    let in_target = in_target.map(|seen| seen.info.holder().clone());
    let is_pair =
        linked.is_some() && linked.as_ref() == in_source.as_ref().map(|holder| &holder.owner);
    // A pair is known by its owner in the source.
    let is_wanted = |holder: &&LockHolder| only.is_none_or(|only| *only == holder.owner);
    let of_source = in_source.as_ref().filter(is_wanted);
    let of_target = match is_pair {
        true => in_target.as_ref().filter(|_| of_source.is_some()),
        false => in_target.as_ref().filter(is_wanted),
    };
    let (from_source, from_target) = try_join(
        remove(source, name, of_source),
        remove(target, name, of_target),
    )
    .await?;
    Ok(match (from_source, from_target) {
        (Some(source), Some(_)) if is_pair => vec![source],
        (source, target) => source.into_iter().chain(target).collect(),
    })
}

async fn remove(
    store: &Arc<dyn DistributedLock>,
    name: &LockName,
    holder: Option<&LockHolder>,
) -> Result<Option<LockHolder>, LockError> {
    let Some(holder) = holder else {
        return Ok(None);
    };
    let removed = store.force_release_named(name, Some(&holder.owner)).await?;
    Ok((!removed.is_empty()).then(|| holder.clone()))
}

async fn present_holders(
    stores: &Stores,
    name: &LockName,
    holders: Vec<LockHolder>,
) -> Result<Vec<LockHolder>, LockError> {
    let mut presented = Vec::with_capacity(holders.len());
    for holder in holders {
        let seen = present(&*stores.floor, LockInfo::new(name.clone(), holder)).await?;
        presented.extend(seen.info.holders);
    }
    Ok(presented)
}

/// Tells who holds a lock, now and whenever that changes.
pub(crate) async fn watch(
    stores: &Stores,
    phase: Phase,
    name: &LockName,
    floors: Floors,
) -> Result<LockWatch, LockError> {
    if phase == Phase::SourceOnly {
        return Ok(LockWatch::new(watch_source(stores, name).await?));
    }
    let target = stores.target()?.watch_named(name).await?;
    let target = target.then(move |seen| {
        let floors = Arc::clone(&floors);
        async move {
            match seen? {
                Some(info) => present(&*floors(&info.name), info).await.map(Some),
                None => Ok(None),
            }
        }
    });
    if phase != Phase::Dual {
        let infos = target.map_ok(|seen: Option<OfTarget>| seen.map(|seen| seen.info));
        return Ok(LockWatch::new(infos));
    }
    let source = watch_source(stores, name).await?;
    Ok(LockWatch::new(both(source, target)))
}

async fn watch_source(
    stores: &Stores,
    name: &LockName,
) -> Result<
    impl Stream<Item = Result<Option<LockInfo>, LockError>> + Send + 'static + use<>,
    LockError,
> {
    let watch = stores.source()?.watch_named(name).await?;
    Ok(watch.map_ok(|info| info.map(without_mark)))
}

/// What one of two watches has told.
enum Told {
    Source(Result<Option<LockInfo>, LockError>),
    Target(Result<Option<OfTarget>, LockError>),
    Ended,
}

/// What both watches have told last, from when both have told something until one of them ends.
fn both(
    source: impl Stream<Item = Result<Option<LockInfo>, LockError>> + Send + 'static,
    target: impl Stream<Item = Result<Option<OfTarget>, LockError>> + Send + 'static,
) -> impl Stream<Item = Result<Option<LockInfo>, LockError>> + Send + 'static {
    let end = || stream::iter([Told::Ended]);
    let told = stream::select(
        source.map(Told::Source).chain(end()),
        target.map(Told::Target).chain(end()),
    );
    let merged = told.scan(Watched::default(), |watched, told| {
        std::future::ready(match told {
            Told::Ended => None,
            Told::Source(Err(error)) | Told::Target(Err(error)) => Some(Some(Err(error))),
            Told::Source(Ok(info)) => {
                watched.source = Some(info);
                Some(watched.news().map(Ok))
            }
            Told::Target(Ok(seen)) => {
                watched.target = Some(seen);
                Some(watched.news().map(Ok))
            }
        })
    });
    merged.filter_map(std::future::ready)
}

/// What both watches have told last, and what was told of it.
#[derive(Default)]
struct Watched {
    source: Option<Option<LockInfo>>,
    target: Option<Option<OfTarget>>,
    told: Option<Seen>,
}

impl Watched {
    /// Who holds the lock, if that was not told before.
    fn news(&mut self) -> Option<Option<LockInfo>> {
        let info = merge(self.source.clone()?, self.target.clone()?);
        let owners = |info: &LockInfo| -> Vec<_> {
            info.holders
                .iter()
                .map(|holder| holder.owner.clone())
                .collect()
        };
        let seen = info.as_ref().map(|info| (owners(info), info.waiters));
        if self.told.as_ref() == Some(&seen) {
            return None;
        }
        self.told = Some(seen);
        Some(info)
    }
}

/// Owners and waiters; `None` if nobody holds the lock.
type Seen = Option<(Vec<OwnerId>, Option<u64>)>;

/// Tells of all locks that somebody holds.
pub(crate) async fn list(
    stores: &Stores,
    phase: Phase,
    prefix: &str,
    floors: Floors,
) -> Result<LockList, LockError> {
    if phase == Phase::SourceOnly {
        let source = stores.source()?.list(prefix).await?;
        return Ok(LockList::new(source.map_ok(without_mark)));
    }
    let target = stores.target()?.list(prefix).await?;
    let target = target.and_then(move |info| {
        let floors = Arc::clone(&floors);
        async move { present(&*floors(&info.name), info).await }
    });
    if phase != Phase::Dual {
        return Ok(LockList::new(target.map_ok(|seen| seen.info)));
    }
    let source = stores.source()?.list(prefix).await?;
    let mut of_target: HashMap<_, _> = target
        .map_ok(|seen| (seen.info.name.clone(), seen))
        .try_collect()
        .await?;
    let mut infos = Vec::new();
    let mut source = source;
    while let Some(info) = source.next().await {
        let info = without_mark(info?);
        let target = of_target.remove(&info.name);
        infos.extend(merge(Some(info), target));
    }
    infos.extend(of_target.into_values().map(|seen| seen.info));
    Ok(LockList::new(stream::iter(infos.into_iter().map(Ok))))
}
