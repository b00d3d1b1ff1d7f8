//! Effects of a migration's source side. Owns: calls to the source's host, questions to the target, the pump of bytes.
//! Always: each effect is a task tied to the state that asked for it and tells its outcome to the job; an outcome that is
//! not known is told as such. Waiting for an absent peer has its way out in the job's patience.
//! Not here: which event an answer is (`decision/migration/outcomes.rs`), what follows (`source/step.rs`).

use std::sync::Arc;
use std::time::Duration;

use tokio::task::AbortHandle;

use super::context::Context;
use super::effect;
use super::mailbox::{Class, Handle};
use super::source_job::{SourceJob, SourceMessage};
use super::target_client::{self, Asked};
use crate::decision::migration::TargetRequest;
use crate::decision::migration::outcomes::{self, Said};
use crate::decision::migration::source::{Command, Event, HostView, Input, Round};
use crate::decision::migration::steps::Step;
use crate::drivers::{End, HostCall, HostError, HostReply, Hypervisor, SwitchKey, TransferProgress, VmObservation};
use crate::types::{Attempt, ClusterId, Millis, OperationId, limits};

/// Longest pause between two looks at a transfer.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// The shortest: of a round that is about to end.
const LOOK_SOON: Duration = Duration::from_millis(5);
/// So many looks in a row at a cut channel, about a second, before the target is asked about it; then after twice as many
/// each time, up to the last: a channel may also wait for a free stream for long, and each question is journalled.
const LOOKS_BEFORE_ASKING: u32 = 20;
const LOOKS_BETWEEN_MAX: u32 = 200;
/// First and last pause before asking again.
const AGAIN_FIRST: Duration = Duration::from_millis(5);
const AGAIN_LAST: Duration = Duration::from_millis(1_000);
/// Pause after a host said that it failed.
const FAILED_PAUSE: Duration = Duration::from_millis(500);

impl Handle<SourceMessage> {
    /// Tells the job what happened. A job that is gone has no use for it.
    pub fn input(&self, input: Input) {
        self.told(Class::Migration, SourceMessage::Input(input));
    }
}

/// Everything an effect needs; a copy, since the job may be elsewhere when the effect ends.
#[derive(Clone)]
struct Effect {
    ctx: Arc<Context>,
    me: Handle<SourceMessage>,
    driver: Arc<dyn Hypervisor>,
    key: SwitchKey,
    attempt: Attempt,
    step: Step,
    operation: OperationId,
    asked: Asked,
    bytes_per_second_max: Option<u64>,
    from: ClusterId,
}

impl Effect {
    fn of(job: &SourceJob) -> Option<Effect> {
        let step = job.state.phase.step();
        Some(Effect {
            ctx: job.ctx.clone(),
            me: job.me.clone(),
            driver: job.ctx.driver(&job.state.from.cluster)?,
            key: job.key(),
            attempt: job.state.attempt,
            step,
            operation: job.operation(step.name()),
            asked: Asked::of(job),
            bytes_per_second_max: job.record.bytes_per_second_max,
            from: job.state.from.cluster.clone(),
        })
    }

    fn tell(&self, event: Event) {
        self.me.input(Input { attempt: self.attempt, step: Some(self.step), event });
    }

    async fn call(&self, call: HostCall, deadline: Millis) -> Result<HostReply, HostError> {
        self.driver.call(self.operation.clone(), call, deadline).await
    }

    async fn look(&self) -> Result<Option<VmObservation>, HostError> {
        match self.call(HostCall::Get { vm: self.key.vm }, limits::REQUEST_MS).await? {
            HostReply::Vm(vm) => Ok(vm),
            other => Err(HostError::Failed { why: format!("an answer of another kind: {other:?}") }),
        }
    }
}

/// Starts the effect of `command`; its outcome arrives as an input of the job.
pub fn start(job: &SourceJob, command: Command) -> AbortHandle {
    let state = job.state.clone();
    let Some(effect) = Effect::of(job) else {
        let (me, attempt, step) = (job.me.clone(), state.attempt, state.phase.step());
        let why = format!("cluster {} is not configured in this region any more", state.from.cluster);
        return tokio::spawn(async move {
            me.input(Input { attempt, step: Some(step), event: Event::SourceRefused { why } });
        })
        .abort_handle();
    };
    let key = effect.key;
    let task = async move {
        match command {
            Command::AskTarget(request) => ask(&effect, request).await,
            Command::FinishCopy => finish_copy(&effect).await,
            Command::Copy => copy(&effect).await,
            Command::Pause => {
                let call = HostCall::PauseForSwitch { key, fence: state.fence, deadline: state.rules.deadline };
                host(&effect, call, Event::Paused).await;
            }
            Command::Hold => host(&effect, HostCall::Hold { key }, Event::Held).await,
            Command::CancelPause => host(&effect, HostCall::CancelPause { key }, Event::Resumed).await,
            Command::ReleaseHold => host(&effect, HostCall::ReleaseHold { key }, Event::Revived).await,
            Command::Retire => {
                // Owed anyway (the cluster's clean-up does it too): here it only happens sooner.
                let call = HostCall::Retire { key, fence: state.next_fence };
                if effect.call(call, limits::REQUEST_MS).await.is_ok() {
                    effect.tell(Event::Retired);
                }
            }
            Command::Observe => observe(&effect).await,
            // Performed by the job itself.
            Command::Decide(_) | Command::Patience(_) => {}
        }
    };
    let me = job.me.clone();
    effect::spawn(task, move || me.told(Class::Migration, SourceMessage::Broken))
}

async fn again(pause: &mut Duration) {
    tokio::time::sleep(*pause).await;
    *pause = (*pause * 2).min(AGAIN_LAST);
}

/// One call to the source's host, and a look at it where its answer needs one.
async fn host(effect: &Effect, call: HostCall, done: Event) {
    let said = match effect.call(call, limits::REQUEST_MS).await {
        // Another life of this region's store is in charge: this one must not act at all.
        Err(HostError::StaleIncarnation { known, .. }) => return effect.ctx.stop_as_older_copy(&effect.from, known),
        Err(HostError::Failed { why }) => {
            tracing::warn!(job = %effect.key.job, step = effect.step.name(), why, "the host failed");
            // It is looked at, then tried again, but not as fast as it fails.
            tokio::time::sleep(FAILED_PAUSE).await;
            Said::Unclear
        }
        other => said(other).1,
    };
    let event = match outcomes::of_source_host(said, done) {
        Ok(event) => event,
        Err(why) => match effect.look().await {
            Ok(seen) => {
                let sight = seen.map(|seen| seen.sight);
                outcomes::of_refusal(sight.as_ref(), effect.key, effect.step, why)
            }
            // A refusal that is not understood settles nothing.
            Err(_) => Event::Unknown,
        },
    };
    effect.tell(event);
}

/// How a call ended, and what came with it.
pub(super) fn said(result: Result<HostReply, HostError>) -> (Option<HostReply>, Said) {
    match result {
        Ok(reply) => (Some(reply), Said::Done),
        Err(HostError::Unknown { .. } | HostError::Failed { .. }) => (None, Said::Unclear),
        Err(error @ HostError::NotFound { .. }) => (None, Said::NotFound { why: error.to_string() }),
        Err(
            error @ (HostError::Refused { .. }
            | HostError::Fenced { .. }
            | HostError::NoRoom { .. }
            | HostError::Unsupported { .. }
            | HostError::StaleIncarnation { .. }),
        ) => (None, Said::Refused { why: error.to_string() }),
    }
}

/// Looks at the host until it answers.
async fn observe(effect: &Effect) {
    let mut pause = AGAIN_FIRST;
    loop {
        match effect.look().await {
            Ok(seen) => return effect.tell(Event::Observed(view(seen.as_ref(), effect.key))),
            Err(HostError::NotFound { .. }) => return effect.tell(Event::Observed(view(None, effect.key))),
            Err(error) => {
                tracing::debug!(job = %effect.key.job, %error, "the source's host does not answer yet");
                again(&mut pause).await;
            }
        }
    }
}

fn view(seen: Option<&VmObservation>, key: SwitchKey) -> HostView {
    outcomes::view(seen.map(|seen| seen.sight).as_ref(), key)
}

/// Asks the target until it answers.
async fn ask(effect: &Effect, request: TargetRequest) {
    let mut pause = AGAIN_FIRST;
    loop {
        let answer = target_client::ask(&effect.ctx, &effect.asked, &request).await;
        let event = match answer {
            Ok(Some(answer)) => match outcomes::of_target(answer) {
                Some(event) => event,
                None => {
                    tokio::time::sleep(AGAIN_FIRST).await;
                    continue;
                }
            },
            // Under way there.
            Ok(None) => {
                again(&mut pause).await;
                continue;
            }
            Err(error) => {
                tracing::debug!(job = %effect.key.job, ?request, %error, "the target does not answer yet");
                again(&mut pause).await;
                continue;
            }
        };
        return effect.tell(event);
    }
}

/// The guest is paused: the target is asked to seal, which it does once the last round is there. Meanwhile the host is
/// watched, since the watchdog may end this.
async fn finish_copy(effect: &Effect) {
    let watch = async {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let Ok(seen) = effect.look().await else { continue };
            if let Some(event) = outcomes::while_sealing(view(seen.as_ref(), effect.key)) {
                return event;
            }
            report(effect).await;
        }
    };
    tokio::select! {
        biased;
        () = ask(effect, TargetRequest::Seal) => {}
        event = watch => effect.tell(event),
    }
}

/// Tells the job how the transfer stands.
async fn report(effect: &Effect) -> Option<TransferProgress> {
    match effect.call(HostCall::Progress { key: effect.key }, limits::REQUEST_MS).await {
        Ok(HostReply::Progress(progress)) => {
            effect.me.told(Class::Telemetry, SourceMessage::Progress(effect.attempt, progress));
            Some(progress)
        }
        _ => None,
    }
}

/// Rounds of pre-copy: the host sends by itself through the pump; here it is watched.
async fn copy(effect: &Effect) {
    let (mut cut_looks, mut ask_after) = (0_u32, LOOKS_BEFORE_ASKING);
    let mut pause = LOOK_SOON;
    loop {
        tokio::time::sleep(std::mem::replace(&mut pause, LOOK_EVERY)).await;
        let Some(progress) = report(effect).await else {
            if let Ok(seen) = effect.look().await
                && let Some(event) = outcomes::while_copying(view(seen.as_ref(), effect.key))
            {
                return effect.tell(event);
            }
            continue;
        };
        if !progress.connected {
            cut_looks += 1;
            // Also a guest that died with nothing else of its host cuts the channel, and then nothing is sent any more.
            if (cut_looks == 1 || cut_looks >= ask_after)
                && let Ok(seen) = effect.look().await
                && let Some(event) = outcomes::while_copying(view(seen.as_ref(), effect.key))
            {
                return effect.tell(event);
            }
            if cut_looks >= ask_after {
                (cut_looks, ask_after) = (0, (ask_after * 2).min(LOOKS_BETWEEN_MAX));
                if let Some(event) = target_still_there(effect).await {
                    return effect.tell(event);
                }
            }
            continue;
        }
        (cut_looks, ask_after) = (0, LOOKS_BEFORE_ASKING);
        pause = until_next_look(&progress);
        effect.tell(Event::Round(Round {
            rounds: progress.rounds,
            remaining_bytes: progress.remaining_bytes,
            bytes_per_second: progress.bytes_per_second,
            dirty_bytes_per_second: progress.dirty_bytes_per_second,
            overhead_us: effect.ctx.path(&effect.asked.to.region, progress.bytes_per_second).overhead_us(),
            decider_reachable: effect.ctx.store_works(),
        }));
    }
}

/// Half of what is left of the round, so that its end is not slept over: the guest dirties more meanwhile.
fn until_next_look(progress: &TransferProgress) -> Duration {
    let half_us = progress.remaining_bytes.saturating_mul(500_000) / progress.bytes_per_second.max(1);
    Duration::from_micros(half_us).clamp(LOOK_SOON, LOOK_EVERY)
}

/// While the channel is cut: a target whose host died makes it ready again when it is asked to prepare, or says that
/// it can't; the next connection then shows what is left there.
async fn target_still_there(effect: &Effect) -> Option<Event> {
    match target_client::ask(&effect.ctx, &effect.asked, &TargetRequest::Prepare).await {
        Ok(Some(answer)) => outcomes::of_target_while_cut(answer),
        Ok(None) | Err(_) => None,
    }
}

/// Relays the bytes of a transfer between the two hosts, again and again after each cut, until it is aborted.
/// Nodes do not look into a channel: what was received and acknowledged is known to the hosts alone.
pub fn pump(job: &SourceJob) -> AbortHandle {
    let effect = Effect::of(job);
    let task = async move {
        let Some(effect) = effect else { return };
        let send = HostCall::Send { key: effect.key, bytes_per_second_max: effect.bytes_per_second_max };
        let mut pause = AGAIN_FIRST;
        loop {
            match relay(&effect, &send).await {
                Ok(()) => tracing::debug!(job = %effect.key.job, "a channel ended"),
                Err(error) => tracing::debug!(job = %effect.key.job, error, "a channel was cut"),
            }
            effect.me.told(Class::Migration, SourceMessage::Cut(effect.attempt));
            again(&mut pause).await;
        }
    };
    let me = job.me.clone();
    effect::spawn(task, move || me.told(Class::Migration, SourceMessage::Broken))
}

async fn relay(effect: &Effect, send: &HostCall) -> Result<(), String> {
    let operation = OperationId::of_job(effect.key.job, effect.attempt, "send");
    effect.driver.call(operation, send.clone(), limits::REQUEST_MS).await.map_err(|e| e.to_string())?;
    let channel = crate::drivers::Channel::Blocks;
    let mut far = target_client::open_channel(&effect.ctx, &effect.asked, effect.key, channel).await?;
    let mut near =
        effect.driver.open_channel(effect.key, channel, End::Source).await.map_err(|error| error.to_string())?;
    const BUFFER: usize = 256 * 1024;
    tokio::io::copy_bidirectional_with_sizes(&mut near, &mut far, BUFFER, BUFFER)
        .await
        .map(|_| ())
        .map_err(|error| error.to_string())
}
