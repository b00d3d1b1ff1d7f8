//! A job's journal as people read it. Owns: the word and the sentence for each entry. Always: words are stable, for
//! programs; figures stand in the sentence. Not here: what an entry leads to (`decision/migration/`).

use super::{RegionApi, not_found};
use crate::actors::tables::{self, JobEntry};
use crate::admin::*;
use crate::decision::migration::source::{Event as Source, HostView};
use crate::decision::migration::target::Event as Target;
use crate::decision::migration::{TargetRequest, steps::Side};
use crate::decision::ownership::{Decision, DecisionAnswer};
use crate::types::*;

impl RegionApi {
    pub(super) fn journal_of(&self, id: JobId, after: u64, limit: usize) -> Result<Vec<EventView>, ApiError> {
        let journal = tables::journal(&self.ctx.store, id)?;
        let unknown = journal.is_empty()
            && tables::source_job(&self.ctx.store, id)?.is_none()
            && tables::source_ended(&self.ctx.store, id)?.is_none();
        if unknown {
            return Err(not_found("migration", id));
        }
        let shown = journal.into_iter().filter(|(sequence, _)| *sequence > after).take(limit);
        Ok(shown
            .map(|(sequence, entry)| {
                let (side, attempt, at, (kind, message)) = match entry {
                    JobEntry::Source(e) => (Side::Source, e.input.attempt, e.at, source(&e.input.event)),
                    JobEntry::Target(e) => (Side::Target, e.input.attempt, e.at, target(&e.input.event)),
                };
                EventView {
                    sequence,
                    at,
                    region: self.ctx.region.clone(),
                    kind: kind.into(),
                    subject: id.to_string(),
                    message,
                    data: serde_json::json!({ "side": side.name(), "attempt": attempt }),
                }
            })
            .collect())
    }
}

type Words = (&'static str, String);

fn decision(decided: Decision) -> &'static str {
    match decided {
        Decision::Transfer => "the VM belongs to the target",
        Decision::Abort => "the attempt is void, the VM stays",
    }
}

fn host(view: &HostView) -> String {
    let mut seen = Vec::new();
    seen.extend(view.gone.then_some("the VM is not there any more"));
    seen.extend((!view.alive && !view.gone).then_some("the guest's memory is gone"));
    seen.extend((view.alive && !view.paused && !view.held).then_some("the guest runs"));
    seen.extend(view.paused.then_some("the guest is paused under its watchdog"));
    seen.extend(view.held.then_some("the attempt holds the guest"));
    seen.extend(view.spent.then_some("the attempt can't pause or hold any more"));
    format!("the source's host was looked at: {}", seen.join(", "))
}

fn source(event: &Source) -> Words {
    let plain = |word, text: &str| (word, text.to_owned());
    match event {
        Source::Go => plain("go", "there is a place among the running jobs"),
        Source::Reserved => plain("reserved", "the target promised room"),
        Source::Prepared => plain("prepared", "the target's host is ready to receive"),
        Source::Round(round) => (
            "round",
            format!(
                "after {} rounds {} are left at {}/s, the guest writes {}/s: a blackout of {} ms is expected",
                round.rounds,
                human_bytes(round.remaining_bytes),
                human_bytes(round.bytes_per_second),
                human_bytes(round.dirty_bytes_per_second),
                round.downtime_us() / 1_000,
            ),
        ),
        Source::Paused => plain("paused", "the guest is paused, its watchdog armed"),
        Source::Sealed => plain("sealed", "the target has everything, verified and on its disk"),
        Source::Held => plain("held", "only the decision frees the guest now"),
        Source::Decided(decided) => ("decided", format!("it is decided: {}", decision(*decided))),
        Source::Retired => plain("retired", "the source's copy is destroyed, its disk kept for a while"),
        Source::Started => plain("started", "the target started the VM"),
        Source::Verified => plain("verified", "the target saw it run"),
        Source::Resumed => plain("resumed", "the guest goes on at the source, the attempt is given up"),
        Source::Revived => plain("revived", "the hold is released, the guest goes on at the source"),
        Source::TargetRefused { why } => ("target-refused", format!("the target refused: {why}")),
        Source::TargetLost { why } => ("target-lost", format!("the target lost what it had: {why}")),
        Source::SourceRefused { why } => ("source-refused", format!("the source's host refused: {why}")),
        Source::SourceLost { why } => ("source-lost", format!("the source's host lost the guest: {why}")),
        Source::TimedOut => plain("timed-out", "nothing advanced for as long as this step may wait"),
        Source::Unknown => plain("unknown", "whether the host did it is not known"),
        Source::Observed(view) => ("observed", host(view)),
        Source::Cancel => plain("cancel", "somebody cancelled it"),
        Source::Retry => plain("retry", "somebody let it go on"),
        Source::Probe => plain("probe", "somebody let it look first"),
        Source::Undo => plain("undo", "somebody had it undone"),
        Source::Abandon => plain("abandon", "somebody gave it up"),
        Source::Quarantined => plain("quarantined", "its actor crashed too often"),
    }
}

fn asked(request: &TargetRequest) -> &'static str {
    match request {
        TargetRequest::Reserve => "to promise room",
        TargetRequest::Prepare => "to make ready",
        TargetRequest::Seal => "to seal what it has",
        TargetRequest::Start { cold: false } => "to start the VM",
        TargetRequest::Start { cold: true } => "to start the VM, from its disk if its memory is lost",
        TargetRequest::Verify => "whether it runs",
        TargetRequest::Discard => "to throw away what it has",
    }
}

fn target(event: &Target) -> Words {
    let plain = |word, text: &str| (word, text.to_owned());
    match event {
        Target::Asked(request) => ("asked", format!("the source asks {}", asked(request))),
        Target::Told(DecisionAnswer::Undecided) => plain("told", "it is not decided yet"),
        Target::Told(DecisionAnswer::Decided(decided)) => ("told", format!("it is decided: {}", decision(*decided))),
        Target::Told(DecisionAnswer::Superseded) => plain("told", "a later attempt was decided since"),
        Target::HostPrepared => plain("host-prepared", "the host is ready to receive"),
        Target::HostSealed { tick, .. } => {
            ("host-sealed", format!("everything up to tick {tick} is there, verified, and on the disk"))
        }
        Target::HostIncomplete => plain("host-incomplete", "something is still on its way"),
        Target::HostStarted => plain("host-started", "the host started the VM"),
        Target::HostRuns { tick } => ("host-runs", format!("the VM was seen running at tick {tick}")),
        Target::HostDiscarded => plain("host-discarded", "the host threw away what it had received"),
        Target::HostRefused { why } => ("host-refused", format!("the host refused: {why}")),
        Target::HostLost { why } => ("host-lost", format!("the host lost what it had: {why}")),
        Target::TimedOut => plain("timed-out", "nobody asked for anything for so long"),
    }
}
