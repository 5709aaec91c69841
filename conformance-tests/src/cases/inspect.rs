//! Inspection tells who holds a lock, and gives an operator a way to take it from them.

use std::time::{Duration, SystemTime};

use lock_core::{
    AcquireOptions, DistributedLock, DistributedLockExt, ErrorKind, LockError, LockGuard,
    LockHolder, LockInfo, LockName, LockWatch, OwnerId,
};

use crate::{
    case::{Outcome, PROMPT, REQUEST, Stop, cases, ensure, fail},
    context::{Client, Ctx, throughout, tick, within},
    waiter::{becomes_free, enqueue, queued, refused, take, take_with},
};

cases! { "inspect";
    free_name_has_no_holder [Inspect];
    holder_is_told [Inspect];
    new_holder_is_told_after_a_hand_over [Inspect];
    released_name_has_no_holder [Inspect];
    expired_holder_is_not_told [Inspect];
    inspect_disturbs_nobody [Inspect];
    metadata_is_told [Inspect, Metadata];
    metadata_of_a_former_waiter_is_told [Inspect, Metadata];
    longest_metadata_is_kept [Inspect, Metadata];
    waiters_are_counted [QueueLength];
    force_release_takes_the_lock_away [ForceRelease];
    force_release_says_whether_there_was_a_holder [ForceRelease];
    force_release_grants_the_next_waiter [ForceRelease];
    force_release_leaves_the_other_waiters_in_place [ForceRelease];
    force_release_hands_over_to_the_queue [ForceRelease, Fifo];
    force_release_says_whom_it_removed [ForceRelease];
    force_release_spares_another_owner [ForceRelease];
    watch_tells_every_new_holder [Watch];
    watch_notices_a_lease_that_ends [Watch];
    watch_ends_with_its_client [Watch];
    list_tells_what_is_held_below_a_prefix [List];
    list_of_many_names_is_complete [List];
}

async fn info_of(client: &Client, name: &LockName) -> Result<LockInfo, Stop> {
    let info = client
        .inspect(name)
        .await?
        .ok_or_else(|| Stop::Fail(format!("`{name}` is held, and inspect tells of nobody")))?;
    ensure!(
        info.name == *name,
        "inspect of `{name}` tells of `{}`",
        info.name
    );
    ensure!(
        info.holders.len() == 1,
        "`{name}` has one holder, and inspect tells {:?}",
        info.holders
    );
    Ok(info)
}

async fn holder_of(client: &Client, name: &LockName) -> Result<LockHolder, Stop> {
    Ok(info_of(client, name).await?.holder().clone())
}

async fn free_name_has_no_holder(ctx: Ctx) -> Outcome {
    let client = ctx.connect().await?;
    let told = client.inspect(&ctx.name("free")).await?;
    ensure!(
        told.is_none(),
        "nobody has ever held it, and inspect tells {told:?}"
    );
    Ok(())
}

async fn holder_is_told(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("held");
    let before = SystemTime::now();
    let guard = take_with(&a, &name, ctx.short()).await?;
    for client in [&a, &b] {
        let info = info_of(client, &name).await?;
        let told = info.holder();
        ensure!(
            told.owner == *guard.owner(),
            "the owner is {}, inspect tells {}",
            guard.owner(),
            told.owner
        );
        ensure!(
            told.expires_in.is_none_or(|left| left <= ctx.ttl()),
            "{:?} are left of {:?}",
            told.expires_in,
            ctx.ttl()
        );
        ensure!(
            info.waiters.is_none_or(|count| count == 0),
            "nobody waits, inspect tells {:?}",
            info.waiters
        );
        if let Some(since) = told.since {
            // The clocks of several machines are involved: the time need only make sense.
            let apart = since
                .duration_since(before)
                .unwrap_or_else(|error| error.duration());
            ensure!(
                apart < Duration::from_secs(3600),
                "held since {since:?}, which is {apart:?} off"
            );
        }
    }
    Ok(guard.release().await?)
}

async fn new_holder_is_told_after_a_hand_over(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("hand-over");
    let first = take(&a, &name).await?;
    let waiter = enqueue(&ctx, &b, &name, AcquireOptions::new(), 1).await?;
    let told = holder_of(&b, &name).await?.owner;
    ensure!(
        told == *first.owner(),
        "while one waits the holder is {}, inspect tells {told}",
        first.owner()
    );
    first.release().await?;
    let second = waiter.granted().await?;
    let told = holder_of(&a, &name).await?.owner;
    ensure!(
        told == *second.owner(),
        "the new holder is {}, inspect tells {told}",
        second.owner()
    );
    Ok(second.release().await?)
}

async fn released_name_has_no_holder(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("released");
    take(&a, &name).await?.release().await?;
    let told = b.inspect(&name).await?;
    ensure!(
        told.is_none(),
        "it was released, and inspect tells {told:?}"
    );
    Ok(())
}

async fn expired_holder_is_not_told(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("expired");
    let _guard = take_with(&a, &name, ctx.short().without_renewal()).await?;
    let gone = within(ctx.expiry_bound(), async {
        while b.inspect(&name).await?.is_some() {
            tick().await;
        }
        Ok(())
    });
    gone.await.unwrap_or_else(|| {
        Err(Stop::Fail(
            "inspect tells of a holder whose lease has ended".into(),
        ))
    })
}

async fn inspect_disturbs_nobody(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("undisturbed");
    let guard = take_with(&a, &name, ctx.short()).await?;
    for _ in 0..20 {
        holder_of(&b, &name).await?;
    }
    throughout("the holder holds", ctx.ttl() * 3 / 2, || !guard.is_lost()).await?;
    guard.release().await?;
    b.inspect(&name).await?;
    drop(take(&b, &name).await?);
    Ok(())
}

async fn metadata_is_told(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    for (i, note) in [
        "host-7 \"nightly\"",
        "",
        "多行\nzwei Zeilen\t\0",
        "{json: [1]}",
    ]
    .into_iter()
    .enumerate()
    {
        let name = ctx.name(&format!("metadata-{i}"));
        let guard = take_with(&a, &name, AcquireOptions::new().with_metadata(note)).await?;
        let told = holder_of(&b, &name).await?.metadata;
        let kept = told.as_deref() == Some(note) || (note.is_empty() && told.is_none());
        ensure!(kept, "the metadata {note:?} became {told:?}");
        guard.release().await?;
    }
    let plain = take(&a, &ctx.name("plain")).await?;
    let told = holder_of(&b, plain.name()).await?.metadata;
    ensure!(
        told.as_deref().unwrap_or_default().is_empty(),
        "no metadata was given, inspect tells {told:?}"
    );
    Ok(())
}

async fn metadata_of_a_former_waiter_is_told(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("former-waiter");
    let first = take_with(&a, &name, AcquireOptions::new().with_metadata("first")).await?;
    let waiter = enqueue(
        &ctx,
        &b,
        &name,
        AcquireOptions::new().with_metadata("second"),
        1,
    )
    .await?;
    let told = holder_of(&b, &name).await?.metadata;
    ensure!(
        told.as_deref() == Some("first"),
        "the holder's metadata is told as {told:?}"
    );
    first.release().await?;
    let second = waiter.granted().await?;
    let told = holder_of(&a, &name).await?.metadata;
    ensure!(
        told.as_deref() == Some("second"),
        "the new holder's metadata is told as {told:?}"
    );
    Ok(second.release().await?)
}

async fn longest_metadata_is_kept(ctx: Ctx) -> Outcome {
    let client = ctx.connect().await?;
    let note = "é".repeat(AcquireOptions::MAX_METADATA / 2);
    let guard = take_with(
        &client,
        &ctx.name("longest"),
        ctx.short().with_metadata(note.clone()),
    )
    .await?;
    throughout("it is renewed", ctx.ttl() * 3 / 2, || !guard.is_lost()).await?;
    let told = holder_of(&client, guard.name())
        .await?
        .metadata
        .unwrap_or_default();
    ensure!(
        told == note,
        "{} bytes of metadata became {}",
        note.len(),
        told.len()
    );
    Ok(guard.release().await?)
}

async fn waiters_are_counted(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("counted");
    let guard = take(&a, &name).await?;
    let mut waiters = Vec::new();
    for count in 1..=4 {
        let client = if count % 2 == 0 { &a } else { &b };
        waiters.push(enqueue(&ctx, client, &name, AcquireOptions::new(), count).await?);
    }
    for waiter in waiters.drain(1..) {
        waiter.give_up().await;
    }
    queued(&ctx, &b, &name, 1).await?;
    guard.release().await?;
    for waiter in waiters {
        let next = waiter.granted().await?;
        queued(&ctx, &a, &name, 0).await?;
        next.release().await?;
    }
    Ok(())
}

async fn force_release_takes_the_lock_away(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("forced");
    let guard = take_with(&a, &name, ctx.short()).await?;
    ensure!(
        !b.force_release(&name).await?.is_empty(),
        "there was a holder"
    );
    let next = becomes_free(&b, &name, PROMPT).await?;
    let Some(_) = within(PROMPT.max(ctx.ttl()), guard.lost()).await else {
        fail!("the old guard was not lost")
    };
    refused(&a, &name).await?;
    ensure!(!next.is_lost(), "the new guard was lost too");
    Ok(next.release().await?)
}

async fn force_release_says_whether_there_was_a_holder(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("whether");
    ensure!(
        b.force_release(&name).await?.is_empty(),
        "a name that nobody ever held had a holder"
    );
    let _guard = take(&a, &name).await?;
    ensure!(
        !b.force_release(&name).await?.is_empty(),
        "a held name had no holder"
    );
    ensure!(
        b.force_release(&name).await?.is_empty(),
        "a name that was just freed had a holder"
    );
    Ok(())
}

async fn force_release_grants_the_next_waiter(ctx: Ctx) -> Outcome {
    let (a, b, c) = ctx.connect_three().await?;
    let name = ctx.name("next");
    let _guard = take(&a, &name).await?;
    let waiter = enqueue(&ctx, &b, &name, AcquireOptions::new(), 1).await?;
    ensure!(
        !c.force_release(&name).await?.is_empty(),
        "there was a holder"
    );
    let next = waiter.granted().await?;
    refused(&c, &name).await?;
    Ok(next.release().await?)
}

async fn force_release_hands_over_to_the_queue(ctx: Ctx) -> Outcome {
    let (a, b, c) = ctx.connect_three().await?;
    let name = ctx.name("queue");
    let _guard = take(&a, &name).await?;
    let waiter = enqueue(&ctx, &b, &name, AcquireOptions::new(), 1).await?;
    ensure!(
        !c.force_release(&name).await?.is_empty(),
        "there was a holder"
    );
    // The waiter came first, whether or not it has heard by now.
    refused(&c, &name).await?;
    Ok(waiter.granted().await?.release().await?)
}

async fn force_release_leaves_the_other_waiters_in_place(ctx: Ctx) -> Outcome {
    let (a, b, c) = ctx.connect_three().await?;
    let name = ctx.name("in-place");
    let _guard = take(&a, &name).await?;
    let first = enqueue(&ctx, &b, &name, AcquireOptions::new(), 1).await?;
    let second = enqueue(&ctx, &c, &name, AcquireOptions::new(), 2).await?;
    ensure!(
        !a.force_release(&name).await?.is_empty(),
        "there was a holder"
    );
    let (granted, waiting) = loop {
        match (first.is_pending(), second.is_pending()) {
            (false, true) => break (first, second),
            (true, false) => break (second, first),
            (false, false) => fail!("both waiters were granted"),
            (true, true) => tick().await,
        }
    };
    let guard = granted.granted().await?;
    throughout("the other waits", Duration::from_millis(300), || {
        waiting.is_pending()
    })
    .await?;
    guard.release().await?;
    Ok(waiting.granted().await?.release().await?)
}

async fn force_release_says_whom_it_removed(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("whom");
    let guard = take(&a, &name).await?;
    let removed = b.force_release(&name).await?;
    let owners: Vec<_> = removed.iter().map(|holder| &holder.owner).collect();
    ensure!(
        owners == [guard.owner()],
        "{} was removed, and force-release tells {owners:?}",
        guard.owner()
    );
    Ok(())
}

async fn force_release_spares_another_owner(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("spared");
    let first = take(&a, &name).await?;
    let seen = first.owner().clone();
    first.release().await?;
    ensure!(
        b.force_release_from(&name, &seen).await?.is_none(),
        "nobody held it, and a holder was removed"
    );
    let second = take(&a, &name).await?;
    let removed = b.force_release_from(&name, &seen).await?;
    ensure!(
        removed.is_none(),
        "the owner that was seen had released, and {removed:?} was removed"
    );
    refused(&b, &name).await?;
    ensure!(!second.is_lost(), "the new holder's guard was lost");
    let removed = b.force_release_from(&name, second.owner()).await?;
    ensure!(
        removed.is_some_and(|holder| holder.owner == *second.owner()),
        "the owner that was asked for was not removed"
    );
    drop(becomes_free(&b, &name, PROMPT).await?);
    Ok(())
}

/// The owner in the next state that a watch reports, without its other data.
async fn told(watch: &mut LockWatch, bound: Duration) -> Result<Option<OwnerId>, Stop> {
    match within(bound, watch.next()).await {
        Some(Some(Ok(info))) => Ok(info.map(|info| info.holder().owner.clone())),
        Some(Some(Err(error))) => Err(error.into()),
        Some(None) => fail!("the watch has ended"),
        None => fail!("the watch told nothing within {bound:?}"),
    }
}

async fn watch_tells_every_new_holder(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("watched");
    let mut watch = b.watch(&name).await?;
    ensure!(
        told(&mut watch, PROMPT).await?.is_none(),
        "nobody has ever held it, and the watch tells of somebody"
    );
    for round in 0..3 {
        let guard = take(&a, &name).await?;
        let seen = told(&mut watch, PROMPT).await?;
        ensure!(
            seen.as_ref() == Some(guard.owner()),
            "in round {round} {} holds it, the watch tells {seen:?}",
            guard.owner()
        );
        guard.release().await?;
        let seen = told(&mut watch, PROMPT).await?;
        ensure!(
            seen.is_none(),
            "in round {round} it was released, the watch tells {seen:?}"
        );
    }
    let guard = take(&a, &name).await?;
    let mut late = b.watch(&name).await?;
    let seen = told(&mut late, PROMPT).await?;
    ensure!(
        seen.as_ref() == Some(guard.owner()),
        "a watch that begins late tells {seen:?} first"
    );
    Ok(guard.release().await?)
}

async fn watch_notices_a_lease_that_ends(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("watched-lease");
    let guard = take_with(&a, &name, ctx.short().without_renewal()).await?;
    let mut watch = b.watch(&name).await?;
    ensure!(
        told(&mut watch, PROMPT).await?.as_ref() == Some(guard.owner()),
        "the watch does not tell of the holder"
    );
    ensure!(
        told(&mut watch, ctx.expiry_bound()).await?.is_none(),
        "the lease has ended, and the watch tells of somebody"
    );
    Ok(())
}

async fn watch_ends_with_its_client(ctx: Ctx) -> Outcome {
    let client = ctx.connect().await?;
    let mut watch = client.watch(&ctx.name("watched-client")).await?;
    told(&mut watch, PROMPT).await?;
    client.shutdown().await?;
    let ends = within(PROMPT, async {
        while let Some(told) = watch.next().await {
            if let Err(error) = told {
                ensure!(
                    error.kind() == ErrorKind::Shutdown,
                    "after the shutdown the watch tells {error:?}"
                );
            }
        }
        Ok(())
    });
    ends.await
        .unwrap_or_else(|| fail!("a watch goes on after the shutdown of its client"))
}

async fn listed(client: &Client, prefix: &str) -> Result<Vec<LockInfo>, Stop> {
    let mut list = client.list(prefix).await?;
    let mut infos = Vec::new();
    let all = within(REQUEST, async {
        while let Some(info) = list.next().await {
            infos.push(info?);
        }
        Ok::<_, LockError>(())
    });
    all.await
        .ok_or_else(|| Stop::Fail("the list does not end".into()))??;
    Ok(infos)
}

async fn list_tells_what_is_held_below_a_prefix(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let held = ["list/a", "list/a/b", "list/B", "list/\u{fc}*?[x]"].map(|name| ctx.name(name));
    let mut guards = Vec::new();
    for name in held
        .iter()
        .chain(&[ctx.name("lis"), ctx.name("list"), ctx.name("listen")])
    {
        guards.push(take(&a, name).await?);
    }
    take(&a, &ctx.name("list/released"))
        .await?
        .release()
        .await?;
    let waiter = enqueue(&ctx, &b, &held[0], AcquireOptions::new(), 1).await?;
    let infos = listed(&b, ctx.name("list/").as_str()).await?;
    let mut names: Vec<_> = infos.iter().map(|info| info.name.clone()).collect();
    names.sort();
    let mut expected = held.to_vec();
    expected.sort();
    ensure!(
        names == expected,
        "{expected:?} are held, the list tells {names:?}"
    );
    for info in &infos {
        let guard = guards.iter().find(|guard| *guard.name() == info.name);
        let owner = guard.map(LockGuard::owner);
        ensure!(
            owner == Some(&info.holder().owner),
            "`{}` is held by {owner:?}, the list tells {:?}",
            info.name,
            info.holder()
        );
    }
    waiter.give_up().await;
    let none = listed(&b, ctx.name("list/x").as_str()).await?;
    ensure!(
        none.is_empty(),
        "nothing is held there, the list tells {none:?}"
    );
    Ok(())
}

async fn list_of_many_names_is_complete(ctx: Ctx) -> Outcome {
    let client = ctx.connect().await?;
    let names: Vec<_> = (0..300)
        .map(|i| ctx.name(&format!("many/{i:03}")))
        .collect();
    let mut guards = Vec::new();
    for name in &names {
        guards.push(take(&client, name).await?);
    }
    let mut told: Vec<_> = listed(&client, ctx.name("many/").as_str())
        .await?
        .into_iter()
        .map(|info| info.name)
        .collect();
    told.sort();
    ensure!(
        told == names,
        "{} names are held, the list tells {}",
        names.len(),
        told.len()
    );
    Ok(())
}
