//! Distinct names never interfere: not by prefix, case, length, braces or script.

use std::time::Duration;

use lock_core::{AcquireOptions, DistributedLockExt, LockName};

use crate::{
    case::{Outcome, PROMPT, cases, ensure},
    context::{Client, Ctx, throughout},
    waiter::{Waiter, becomes_free, enqueue, refused, take},
};

cases! { "names";
    name_and_nested_name_do_not_interfere [];
    waiting_on_nested_names_does_not_interfere [];
    slashes_count [];
    case_counts [];
    braces_count [];
    unicode_form_counts [];
    spaces_and_punctuation_count [];
    pattern_characters_match_nothing_else [];
    names_like_a_stores_own_entries_do_not_interfere [];
    names_of_any_script_work [];
    longest_names_differ_in_their_last_byte [];
    name_of_a_thousand_characters_works [];
    forced_release_takes_one_name_only [ForceRelease];
    inspect_tells_of_one_name_only [Inspect];
    entries_of_nested_names_are_told_apart [Entries];
}

/// Holds each of the names, and checks that all the others can be held beside it while it alone is
/// refused.
async fn all_distinct(a: &Client, b: &Client, names: &[LockName]) -> Outcome {
    for held in names {
        let guard = take(a, held).await?;
        for other in names {
            if other == held {
                refused(b, other).await?;
            } else {
                take(b, other).await?.release().await?;
            }
        }
        ensure!(!guard.is_lost(), "`{held}` was lost to another name");
        guard.release().await?;
    }
    // All at once, and each of them once.
    let mut guards = Vec::new();
    for name in names {
        guards.push(take(a, name).await?);
    }
    for name in names {
        refused(b, name).await?;
    }
    for guard in guards {
        guard.release().await?;
    }
    Ok(())
}

async fn distinct(ctx: &Ctx, suffixes: &[&str]) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let names: Vec<_> = suffixes.iter().map(|suffix| ctx.name(suffix)).collect();
    all_distinct(&a, &b, &names).await
}

async fn name_and_nested_name_do_not_interfere(ctx: Ctx) -> Outcome {
    distinct(&ctx, &["a", "a/b", "a/b/c", "ab", "a-b", "b"]).await
}

async fn waiting_on_nested_names_does_not_interfere(ctx: Ctx) -> Outcome {
    let (a, b, c) = ctx.connect_three().await?;
    let outer = ctx.name("a");
    let inner = ctx.name("a/b");
    for (held, free) in [(&outer, &inner), (&inner, &outer)] {
        let guard = take(&a, held).await?;
        let waiter = enqueue(&ctx, &b, held, AcquireOptions::new(), 1).await?;
        // Neither the holder nor the waiter of the one name delays the other, and its release wakes
        // no waiter of the other.
        Waiter::start(&c, free, AcquireOptions::new())
            .granted()
            .await?
            .release()
            .await?;
        let other = take(&c, free).await?;
        let behind = enqueue(&ctx, &a, free, AcquireOptions::new(), 1).await?;
        other.release().await?;
        let behind = behind.granted().await?;
        throughout(
            "it still waits for its own name",
            Duration::from_millis(200),
            || waiter.is_pending(),
        )
        .await?;
        guard.release().await?;
        waiter.granted().await?.release().await?;
        behind.release().await?;
    }
    Ok(())
}

async fn slashes_count(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let base = ctx.prefix();
    let names = ["", "/", "//", "/x", "//x", "/x/", "/x//"]
        .map(|suffix| ctx.raw_name(&format!("{base}{suffix}")));
    let leading = [
        ctx.raw_name(&format!("/{base}")),
        ctx.raw_name(&format!("//{base}")),
    ];
    all_distinct(&a, &b, &[&names[..], &leading[..]].concat()).await
}

async fn case_counts(ctx: Ctx) -> Outcome {
    distinct(
        &ctx,
        &["name", "Name", "NAME", "straße", "STRASSE", "ǆ", "Ǆ"],
    )
    .await
}

async fn braces_count(ctx: Ctx) -> Outcome {
    distinct(
        &ctx,
        &[
            "{t}", "{t}x", "{t}y", "x{t}", "t", "{t", "t}", "}t{", "{}", "{}t", "{{t}}",
        ],
    )
    .await
}

async fn unicode_form_counts(ctx: Ctx) -> Outcome {
    distinct(
        &ctx,
        &["\u{e9}", "e\u{301}", "e", "\u{212b}", "\u{c5}", "\u{200b}e"],
    )
    .await
}

async fn spaces_and_punctuation_count(ctx: Ctx) -> Outcome {
    distinct(
        &ctx,
        &[
            "a b", "a  b", " a b", "a b ", "a+b", "a%20b", "a\\b", "a\\\\b", "a'b", "a\"b", "a`b",
            "a$b", "a:b", "a;b", "a,b", "a=b",
        ],
    )
    .await
}

async fn pattern_characters_match_nothing_else(ctx: Ctx) -> Outcome {
    distinct(
        &ctx,
        &[
            "a*", "ab", "a?", "a[b]", "a.", "a.b", "^a", "a$", "(a|b)", "*",
        ],
    )
    .await
}

async fn names_like_a_stores_own_entries_do_not_interfere(ctx: Ctx) -> Outcome {
    distinct(
        &ctx,
        &[
            "a",
            "a/694da1faeab38205",
            "a/694da1faeab38205/0",
            "a:token",
            "a:fence",
            "a:fencing",
            "a/token",
            "a/queue",
            "a:queue",
            "a:waiters",
            "a.lock",
            "a\u{ff}",
            "token:a",
            "{a}:token",
            "{a}",
        ],
    )
    .await
}

async fn names_of_any_script_work(ctx: Ctx) -> Outcome {
    distinct(
        &ctx,
        &[
            "🔒",
            "🔓",
            "👩‍👩‍👧",
            "鎖",
            "锁",
            "замо́к",
            "قفل",
            "नाम",
            "\u{202e}a",
            "\u{10ffff}",
        ],
    )
    .await
}

async fn longest_names_differ_in_their_last_byte(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let stem = format!("{}/{}", ctx.prefix(), "x".repeat(LockName::MAX_LEN));
    let [one, two] =
        ["1", "2"].map(|last| ctx.raw_name(&format!("{}{last}", &stem[..LockName::MAX_LEN - 1])));
    let shorter = ctx.raw_name(&stem[..LockName::MAX_LEN - 1]);
    all_distinct(&a, &b, &[one, two, shorter]).await
}

async fn name_of_a_thousand_characters_works(ctx: Ctx) -> Outcome {
    distinct(
        &ctx,
        &[
            "長".repeat(1000).as_str(),
            "長".repeat(999).as_str(),
            "/x".repeat(500).as_str(),
        ],
    )
    .await
}

async fn forced_release_takes_one_name_only(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let names = ["a", "a/b", "a/b/c", "A", "a*", "{a}"].map(|suffix| ctx.name(suffix));
    let mut stale = Vec::new();
    for forced in &names {
        let mut others = Vec::new();
        for name in &names {
            let guard = take(&a, name).await?;
            if name == forced {
                stale.push(guard);
            } else {
                others.push(guard);
            }
        }
        ensure!(
            !b.force_release(forced).await?.is_empty(),
            "`{forced}` had a holder"
        );
        for guard in others {
            refused(&b, guard.name()).await?;
            ensure!(
                !guard.is_lost(),
                "forcing `{forced}` lost `{}`",
                guard.name()
            );
            guard.release().await?;
        }
        becomes_free(&b, forced, PROMPT).await?.release().await?;
    }
    Ok(())
}

async fn inspect_tells_of_one_name_only(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let names = ["a", "a/b", "A", "ab"].map(|suffix| ctx.name(suffix));
    for held in &names {
        let guard = take(&a, held).await?;
        for name in &names {
            let told = b
                .inspect(name)
                .await?
                .map(|info| info.holder().owner.clone());
            let expected = (name == held).then(|| guard.owner().clone());
            ensure!(
                told == expected,
                "while `{held}` is held by {:?}, `{name}` is told to be held by {told:?}",
                guard.owner()
            );
        }
        guard.release().await?;
    }
    Ok(())
}

async fn entries_of_nested_names_are_told_apart(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let outer = ctx.name("a");
    let inner = ctx.name("a/b");
    let guard = take(&a, &inner).await?;
    let waiter = enqueue(&ctx, &b, &inner, AcquireOptions::new(), 1).await?;
    let seen = ctx.entries(&outer).await?;
    ensure!(
        seen.is_empty(),
        "`{outer}` has the entries {seen:?}, all of them `{inner}`'s"
    );
    let held = take(&b, &outer).await?;
    ensure!(
        ctx.entries(&outer).await?.len() == 1,
        "`{outer}` has {:?}",
        ctx.entries(&outer).await?
    );
    held.release().await?;
    waiter.give_up().await;
    Ok(guard.release().await?)
}
