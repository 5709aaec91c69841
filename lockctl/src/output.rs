//! Tables and sentences for people, JSON for programs.

pub(crate) mod held;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, UNIX_EPOCH},
};

use comfy_table::{Table, presets::UTF8_FULL_CONDENSED};
use polylock::migrate::{Finding, HistoryEntry, Plan, PlanStatus, Status, Verification, Verified};
use serde::Serialize;

/// Members by label, with names of guards that still drain.
pub(crate) type Behind = BTreeMap<String, BTreeSet<String>>;

/// The result of a change.
#[derive(Debug, Serialize)]
pub(crate) struct Outcome {
    pub(crate) prefix: String,
    pub(crate) dry_run: bool,
    /// None if the plan is removed.
    pub(crate) plan: Option<Plan>,
    /// None if nobody waited for the members.
    pub(crate) behind: Option<Behind>,
}

impl Outcome {
    pub(crate) fn print(&self) {
        let names = names(&self.prefix);
        let is = if self.dry_run { "would be" } else { "is" };
        let Some(plan) = &self.plan else {
            return println!("the plan for {names} {is} removed; its names are in the source");
        };
        let phase = plan.phase;
        let paused = if plan.paused { ", paused" } else { "" };
        match plan.complete {
            Some(floor) => println!("{names} {is} complete in {phase}, with the floor {floor}"),
            None => println!("{names} {is} in {phase}{paused}"),
        }
    }
}

fn names(prefix: &str) -> String {
    match prefix.is_empty() {
        true => "every name".to_owned(),
        false => format!("`{prefix}`"),
    }
}

pub(crate) fn json(value: &impl Serialize) {
    match serde_json::to_string_pretty(value) {
        Ok(text) => println!("{text}"),
        Err(error) => eprintln!("lockctl: {error}"),
    }
}

/// The same on one line, for a stream of them.
pub(crate) fn json_line(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}"))
}

pub(crate) fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header(header);
    table
}

/// Names the members that have not followed, and what they still hold.
pub(crate) fn behind(behind: &Behind) -> String {
    let members = behind.iter().map(|(member, names)| {
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        match names.is_empty() {
            true => member.clone(),
            false => format!("{member} (holds {})", names.join(", ")),
        }
    });
    let members: Vec<_> = members.collect();
    match members.is_empty() {
        true => "all members have followed".to_owned(),
        false => format!("not followed yet: {}", members.join(", ")),
    }
}

pub(crate) fn status(status: &Status, as_json: bool) {
    if as_json {
        return json(status);
    }
    match status.plans.is_empty() {
        true => println!("no plans: every name is in the source"),
        false => println!("{}", plans(&status.plans)),
    }
    if status.members.is_empty() {
        return println!("no live members; a process with another URL is none, and is not seen");
    }
    let mut members = table(["member", "id", "has seen change"]);
    for it in &status.members {
        members.add_row([it.label.clone(), it.id.clone(), it.seen.to_string()]);
    }
    println!("{members}");
}

/// A sentence.
pub(crate) fn finding(finding: &Finding) -> String {
    let Finding {
        name, kind, owner, ..
    } = finding;
    let whose = match (&finding.member, finding.token) {
        (Some(member), _) => format!(", of {member}"),
        (None, None) => ", of another library".to_owned(),
        (None, Some(_)) => String::new(),
    };
    format!("{kind}: `{name}` by {owner}{whose}")
}

/// What was compared, and what was found.
pub(crate) fn verifications(verifications: &[Verification], as_json: bool) {
    if as_json {
        return json(&verifications);
    }
    if verifications.is_empty() {
        return println!("no plans: there is nothing to compare");
    }
    let mut compared = table([
        "prefix",
        "phase",
        "settled",
        "in source",
        "in target",
        "in both",
        "findings",
    ]);
    for it in verifications {
        compared.add_row([
            prefix(&it.prefix),
            it.phase.to_string(),
            yes(it.settled),
            it.in_source.to_string(),
            it.in_target.to_string(),
            it.pairs.to_string(),
            it.findings.len().to_string(),
        ]);
    }
    println!("{compared}");
    let findings = verifications.iter().flat_map(|it| &it.findings);
    findings.for_each(|it| println!("{}", finding(it)));
}

fn prefix(prefix: &str) -> String {
    match prefix.is_empty() {
        true => "(every name)".to_owned(),
        false => prefix.to_owned(),
    }
}

fn yes(is_so: bool) -> String {
    if is_so { "yes" } else { "no" }.to_owned()
}

/// The tokens that the stores had come to, and the foreign lockers.
fn verified(verified: &Verified) -> Vec<String> {
    let mut notes = Vec::new();
    if let (Some(source), Some(target)) = (verified.source_token, verified.target_token) {
        notes.push(format!(
            "tokens {source} and {target} at {}",
            instant(verified.at_ms)
        ));
    }
    let shown = verified.foreign.iter().take(FOREIGN);
    notes.extend(shown.map(|it| {
        let last = instant(it.last_ms);
        format!("foreign: {it}, last seen {last}")
    }));
    let more = verified.foreign.len().saturating_sub(FOREIGN);
    notes.extend((more > 0).then(|| format!("foreign: {more} more, see --json")));
    notes
}

/// The number of foreign lockers that the status of a plan names.
const FOREIGN: usize = 3;

fn plans(plans: &[PlanStatus]) -> Table {
    let mut table = table([
        "prefix", "phase", "from", "change", "settled", "floor", "notes",
    ]);
    for it in plans {
        let mut notes = Vec::new();
        notes.extend(it.plan.paused.then(|| "paused".to_owned()));
        notes.extend(it.plan.complete.map(|_| "complete".to_owned()));
        notes.extend((!it.settled).then(|| behind(&it.behind)));
        notes.extend(verified(&it.verified));
        table.add_row([
            prefix(&it.plan.prefix),
            it.plan.phase.to_string(),
            it.plan.from.to_string(),
            it.plan.epoch.to_string(),
            yes(it.settled),
            it.floor.to_string(),
            notes.join("\n"),
        ]);
    }
    table
}

/// The end of the year 9999, beyond which no instant is printed.
const LATEST_MS: u64 = 253_402_300_799_000;

fn instant(ms: u64) -> String {
    let at = UNIX_EPOCH + Duration::from_millis(ms.min(LATEST_MS));
    humantime::format_rfc3339_seconds(at).to_string()
}

pub(crate) fn history(history: &[HistoryEntry], as_json: bool) {
    if as_json {
        return json(&history);
    }
    if history.is_empty() {
        return println!("no operator has done anything yet");
    }
    let mut changes = table(["at", "by", "prefix", "what", "phase"]);
    for it in history {
        let phase = it.phase.map(|phase| phase.to_string());
        changes.add_row([
            instant(it.at_ms),
            it.by.clone(),
            it.prefix.clone(),
            it.what.clone(),
            phase.unwrap_or_default(),
        ]);
    }
    println!("{changes}");
}
