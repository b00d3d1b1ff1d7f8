//! Injected faults behind the API. Owns: what may be injected here, and what is told to whom names something else.
//! Always: refused unless the configuration allows it; the key is bound before anything is done, so that a fault which
//! kills the node is not repeated by a client that asks again. Not here: doing it (`node/faults/`).

use std::sync::Arc;

use super::issues::{Found, chaos_fault};
use super::{Refused, RegionApi, api_error, key_of_another, remember, replayed};
use crate::actors::tables;
use crate::admin::*;
use crate::decision::chaos::{Entry, Gone, Refusal};
use crate::decision::migration::steps::KillPoint;
use crate::drivers::HostError;
use crate::drivers::embedded::faults::{CallKind, Fault};
use crate::node::faults::{Asked, Faults, HostFault, Unable, call_named};
use crate::store::Work;
use crate::types::limits::{CHAOS_COMMIT_MS_MAX, CHAOS_DELAY_MS_MAX, CHAOS_FAULTS_MAX};
use crate::types::suggest::nearest;
use crate::types::*;

/// How a call of a host can go wrong, as it is written.
const HOWS: [&str; 6] = ["slow", "refuses", "hangs", "saysFailed", "dies", "forgets"];

fn bad(field: &str, rule: impl std::fmt::Display) -> ApiError {
    ApiError::new(ErrorCode::InvalidArgument, format!("{field}: {rule}")).details(serde_json::json!({ "field": field }))
}

/// A name that nothing here has, with the nearest that something has.
fn unknown(field: &str, what: &str, given: &str, known: &[String]) -> ApiError {
    let shown: String = given.chars().take(80).collect();
    let meant = nearest(given, known.iter().map(String::as_str));
    let hint = match meant {
        Some(meant) => format!("did you mean '{meant}'?"),
        None if known.is_empty() => format!("there is no {what} here"),
        None => format!("there are {}", known.join(", ")),
    };
    ApiError::new(ErrorCode::InvalidArgument, format!("{field}: there is no {what} '{shown}'"))
        .details(serde_json::json!({ "field": field, "nearest": meant, "known": known }))
        .hint(hint)
}

fn within(field: &str, value: u64, range: std::ops::RangeInclusive<u64>) -> Result<(), ApiError> {
    if range.contains(&value) {
        return Ok(());
    }
    Err(bad(field, format!("{value} is not {} to {}", range.start(), range.end())))
}

fn refused(refusal: &Refusal) -> ApiError {
    let text = refusal.to_string();
    match refusal {
        // Not BUSY: clients would ask again and again until one of them has ended.
        Refusal::Full => ApiError::new(ErrorCode::Conflict, text)
            .details(serde_json::json!({ "max": CHAOS_FAULTS_MAX }))
            .hint("end some first: novafed chaos list, novafed chaos stop ID"),
        Refusal::TooLong { most, .. } => bad("durationMs", text)
            .details(serde_json::json!({ "field": "durationMs", "maxMs": most }))
            .hint("ask for less, or set [chaos] max in node.toml and restart the node"),
        Refusal::NoTime => bad("durationMs", text),
        Refusal::Taken(other) => {
            ApiError::new(ErrorCode::Conflict, text).hint(format!("end it first: novafed chaos stop {other}"))
        }
    }
}

fn unable(unable: Unable) -> ApiError {
    let text = format!("the fault could not be injected: {unable}");
    match unable {
        Unable::Host(HostError::Refused { .. } | HostError::Unsupported { .. }) => ApiError::new(
            ErrorCode::PreconditionFailed,
            text,
        )
        .hint(
            "a host takes plans of failures if it was started while [chaos] allow was true: novafed host stop HOST, \
                 and the node starts it anew",
        ),
        Unable::Host(_) => {
            ApiError::new(ErrorCode::Unavailable, text).hint("see whether the host runs: novafed cluster list")
        }
        Unable::NotRunning(_) => ApiError::new(ErrorCode::PreconditionFailed, text).hint("see its state: novafed tree"),
        Unable::Unknown(_) => ApiError::new(ErrorCode::NotFound, text).hint("it went away meanwhile: novafed tree"),
    }
}

fn who(caller: &Caller) -> String {
    match caller.pid {
        Some(pid) => format!("user {} (process {pid})", caller.uid),
        None => format!("user {}", caller.uid),
    }
}

impl RegionApi {
    fn allowed(&self) -> Result<&Arc<Faults>, ApiError> {
        self.faults.as_ref().ok_or_else(|| {
            let text = format!("region {} takes no faults: its configuration does not allow them", self.ctx.region);
            ApiError::new(ErrorCode::PreconditionFailed, text)
                .details(serde_json::json!({ "key": "chaos.allow" }))
                .hint("set allow = true in section [chaos] of its node.toml and restart the node")
        })
    }

    pub(super) fn chaos_faults_now(&self) -> ChaosFaults {
        let Some(faults) = &self.faults else {
            return ChaosFaults { allowed: false, max_ms: None, active: Vec::new(), ended: Vec::new() };
        };
        faults.ways().board_quietly(|board, now| ChaosFaults {
            allowed: true,
            max_ms: Some(board.most()),
            active: board.active(now).map(|entry| shown(entry, now)).collect(),
            ended: board.ended().map(shown_gone).collect(),
        })
    }

    /// An issue for each fault that is active.
    pub(super) fn faults_active(&self) -> Vec<Found> {
        let Some(faults) = &self.faults else { return Vec::new() };
        faults.ways().board_quietly(|board, now| {
            let issue = |entry: &Entry<Asked>| {
                let (left, asked) = (entry.ends.since(now), &entry.asked);
                let message = format!(
                    "injected on purpose ({}, {}): {}; {:.1} s left; asked for by {}: {}",
                    entry.id,
                    entry.spec.kind(),
                    entry.spec,
                    left.0 as f64 / 1_000.0,
                    who(&asked.caller),
                    asked.reason
                );
                chaos_fault(entry.spec.subject(), message, asked.at)
            };
            board.active(now).map(issue).collect()
        })
    }

    pub(super) async fn inject_fault_now(
        &self,
        context: RequestContext,
        request: InjectFault,
    ) -> Result<ChaosFault, ApiError> {
        let faults = self.allowed()?.clone();
        let InjectFault { spec, duration_ms: lasting, reason } = request;
        let lasting = lasting.filter(|_| spec.lasts());
        let asked = Asked { caller: context.caller.clone(), reason, at: self.ctx.clock.wall(), lasting };
        let request = context.request_id;
        let id = FaultId { region: request.region, incarnation: request.incarnation, number: request.number };
        // Before what is asked for is looked at: it may be gone since it was injected.
        if let Some(before) = self.known_key(&context)? {
            return Ok(self.as_it_came_out(before, spec, asked));
        }
        let host = self.check_fault(&faults, &spec)?;
        if context.dry_run {
            let takes = faults.takes(&spec);
            let may = faults.ways().board_quietly(|board, now| board.may_begin(&spec, takes.as_deref(), now, lasting));
            may.map_err(|refusal| refused(&refusal))?;
            return Ok(ChaosFault { state: FaultState::Planned, ..plain(id, spec, asked) });
        }
        let (board, what, who) = (faults.clone(), spec.clone(), asked.clone());
        let made = self
            .ctx
            .store
            .transact(Work::New, move |txn| {
                if let Some(subject) = replayed(txn, &context)? {
                    return Ok::<_, Refused>(Some(subject));
                }
                remember(txn, &context, id)?;
                // Last, because it is in memory: nothing after it refuses.
                board.begin(id, what, lasting, who).map_err(|refusal| Refused::Api(refused(&refusal)))?;
                Ok(None)
            })
            .await
            .map_err(api_error)?;
        match made {
            Some(before) => return Ok(self.as_it_came_out(fault_id(&before)?, spec, asked)),
            None => faults.perform(id, &spec, host).await.map_err(unable)?,
        }
        Ok(self.as_it_came_out(id, spec, asked))
    }

    pub(super) async fn stop_fault_now(&self, context: RequestContext, id: FaultId) -> Result<ChaosFault, ApiError> {
        let faults = self.allowed()?.clone();
        let _ = self.known_key(&context)?;
        let Some(fault) = self.fault_on_board(id) else {
            let text = format!("there is no injected fault {id} here: it is long over, or never was");
            return Err(ApiError::new(ErrorCode::NotFound, text).hint("list what there is with: novafed chaos list"));
        };
        if context.dry_run {
            return Ok(fault);
        }
        // First, and harmless to repeat: a fault may be what keeps the store from committing.
        faults.end(id, &format!("ended by {}", who(&context.caller)));
        let bound = self.ctx.store.transact(Work::Finish, move |txn| {
            if replayed(txn, &context)?.is_none() {
                remember(txn, &context, id)?;
            }
            Ok::<_, Refused>(())
        });
        bound.await.map_err(api_error)?;
        Ok(self.fault_on_board(id).unwrap_or(fault))
    }

    /// The fault that the same request came to before.
    fn known_key(&self, context: &RequestContext) -> Result<Option<FaultId>, ApiError> {
        let Some(key) = &context.idempotency_key else { return Ok(None) };
        match tables::request(&self.ctx.store, key)? {
            Some(before) if before.fingerprint != context.fingerprint => Err(key_of_another(key)),
            Some(before) => fault_id(&before.subject).map(Some),
            None => Ok(None),
        }
    }

    fn fault_on_board(&self, id: FaultId) -> Option<ChaosFault> {
        self.faults.as_ref()?.ways().board_quietly(|board, now| {
            let gone = board.ended().find(|gone| gone.entry.id == id).map(shown_gone);
            gone.or_else(|| board.find(id).map(|entry| shown(entry, now)))
        })
    }

    /// A fault as it is now. One that this life of the node does not know is over with the life that did.
    fn as_it_came_out(&self, id: FaultId, spec: FaultSpec, asked: Asked) -> ChaosFault {
        self.fault_on_board(id).unwrap_or_else(|| ChaosFault {
            state: FaultState::Ended,
            left_ms: Millis(0),
            began_at: None,
            ended_because: Some("it is no longer kept, or the node was started anew since".into()),
            ..plain(id, spec, asked)
        })
    }

    /// Refuses what can't be done here. What a host is to do is returned as it understands it.
    fn check_fault(&self, faults: &Faults, spec: &FaultSpec) -> Result<Option<HostFault>, ApiError> {
        match spec {
            FaultSpec::Cut(cut) => self.check_peer(&cut.peer)?,
            FaultSpec::Delay(delay) => {
                self.check_peer(&delay.peer)?;
                within("parameters.delayMs", delay.delay_ms.0, 1..=CHAOS_DELAY_MS_MAX.0)?;
                within("parameters.jitterMs", delay.jitter_ms.0, 0..=CHAOS_DELAY_MS_MAX.0)?;
            }
            FaultSpec::Lose(lose) => {
                self.check_peer(&lose.peer)?;
                within("parameters.permille", lose.permille.into(), 1..=1_000)?;
            }
            FaultSpec::Narrow(narrow) => {
                self.check_peer(&narrow.peer)?;
                within("parameters.bytesPerSecond", narrow.bytes_per_second, 1..=u64::MAX)?;
            }
            FaultSpec::Host(host) => return self.check_host(host).map(Some),
            FaultSpec::SlowStore(slow) => within("parameters.delayMs", slow.delay_ms.0, 1..=CHAOS_COMMIT_MS_MAX.0)?,
            FaultSpec::Crash(crash) => {
                let children = |(group, supervisor): (&&str, &crate::actors::Supervisor)| {
                    let tree = supervisor.tree();
                    tree.children.into_iter().map(|child| format!("{group}/{}", child.id)).collect::<Vec<_>>()
                };
                let known: Vec<String> = faults.groups().iter().flat_map(children).collect();
                if !known.contains(&crash.actor) {
                    return Err(unknown("parameters.actor", "actor", &crash.actor, &known));
                }
            }
            FaultSpec::Kill(kill) => {
                if !self.ctx.kill.is_real() {
                    let text = "this region has no process of its own that could be killed";
                    return Err(ApiError::new(ErrorCode::PreconditionFailed, text));
                }
                if let Some(point) = &kill.at
                    && point.parse::<KillPoint>().is_err()
                {
                    let known: Vec<String> = KillPoint::all().iter().map(KillPoint::to_string).collect();
                    return Err(unknown("parameters.at", "kill point", point, &known));
                }
            }
        }
        Ok(None)
    }

    fn check_peer(&self, peer: &RegionName) -> Result<(), ApiError> {
        let known = self.ctx.peers();
        if known.contains(peer) {
            return Ok(());
        }
        let known: Vec<String> = known.iter().map(RegionName::to_string).collect();
        Err(unknown("parameters.peer", "peer", peer.as_str(), &known))
    }

    fn check_host(&self, host: &HostParameters) -> Result<HostFault, ApiError> {
        if self.ctx.cluster(&host.cluster).is_none() {
            let known: Vec<String> = self.ctx.cluster_ids().iter().map(ClusterId::to_string).collect();
            return Err(unknown("parameters.cluster", "cluster", host.cluster.as_str(), &known));
        }
        let Some(call) = call_named(&host.call) else {
            let known: Vec<String> = CallKind::ALL.iter().map(|kind| kind.name().to_owned()).collect();
            return Err(unknown("parameters.call", "call of a host", &host.call, &known));
        };
        let late = host.late_ms.unwrap_or_default();
        let how = match host.how.as_str() {
            "slow" => {
                within("parameters.lateMs", late.0, 1..=CHAOS_DELAY_MS_MAX.0)?;
                Fault::Slow(late)
            }
            "refuses" => Fault::Refuses,
            "hangs" => Fault::Hangs,
            "saysFailed" => Fault::SaysFailed,
            "dies" => Fault::Dies,
            "forgets" => Fault::Forgets,
            other => {
                let known: Vec<String> = HOWS.iter().map(|how| (*how).to_owned()).collect();
                return Err(unknown("parameters.how", "way to go wrong", other, &known));
            }
        };
        if host.late_ms.is_some() && !matches!(how, Fault::Slow(_)) {
            return Err(bad("parameters.lateMs", "it belongs to how = 'slow'"));
        }
        if matches!(how, Fault::Forgets) && !matches!(call, CallKind::Inventory | CallKind::Get) {
            return Err(bad("parameters.how", "only inventory and get can forget"));
        }
        if matches!(how, Fault::Dies) && call.only_looks() {
            return Err(bad("parameters.how", format!("no guest dies of '{}', which only looks", call.name())));
        }
        within("parameters.times", host.times.into(), 1..=1_000_000)?;
        Ok(HostFault { call, how, times: host.times })
    }
}

fn fault_id(subject: &str) -> Result<FaultId, ApiError> {
    subject.parse().map_err(|error| {
        ApiError::new(ErrorCode::Conflict, format!("the idempotency key was used for another kind of request: {error}"))
            .hint("use a new key for a new request")
    })
}

fn plain(id: FaultId, spec: FaultSpec, asked: Asked) -> ChaosFault {
    ChaosFault {
        id,
        effect: spec.to_string(),
        subject: spec.subject(),
        spec,
        state: FaultState::Active,
        duration_ms: asked.lasting,
        left_ms: asked.lasting.unwrap_or_default(),
        began_at: Some(asked.at),
        ended_at: None,
        ended_because: None,
        caller: asked.caller,
        reason: asked.reason,
    }
}

fn shown(entry: &Entry<Asked>, now: Tick) -> ChaosFault {
    let over = entry.spec.lasts() && entry.ends <= now;
    ChaosFault {
        state: if over { FaultState::Ended } else { FaultState::Active },
        left_ms: entry.ends.since(now),
        ..plain(entry.id, entry.spec.clone(), entry.asked.clone())
    }
}

fn shown_gone(gone: &Gone<Asked>) -> ChaosFault {
    let lasted = gone.at.since(gone.entry.began);
    ChaosFault {
        state: FaultState::Ended,
        left_ms: Millis(0),
        ended_at: Some(WallMillis(gone.entry.asked.at.0.saturating_add(lasted.0))),
        ended_because: Some(gone.why.clone()),
        ..plain(gone.entry.id, gone.entry.spec.clone(), gone.entry.asked.clone())
    }
}
