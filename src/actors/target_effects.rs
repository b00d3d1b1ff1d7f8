//! Effects of a migration's target side. Owns: calls to the target's host, the question for the decision.
//! Always: each effect is a task tied to the state that asked for it and tells its outcome to the job.
//! Not here: which event an answer is (`decision/migration/outcomes.rs`), what follows (`target.rs`).

use std::sync::Arc;
use std::time::Duration;

use tokio::task::AbortHandle;

use super::context::Context;
use super::effect;
use super::mailbox::{Class, Handle};
use super::source_effects::said;
use super::tables;
use super::target_job::{TargetJob, TargetMessage};
use crate::decision::migration::outcomes::{self, Cold};
use crate::decision::migration::target::{Command, Event, Input, Target};
use crate::decision::ownership::DecisionAnswer;
use crate::drivers::{HostCall, HostError, HostReply, Hypervisor, SwitchKey, VmObservation};
use crate::planted::{self, Bug};
use crate::protocol::TraceId;
use crate::protocol::bodies::{MigrationMessage, MigrationReply};
use crate::protocol::link::Request;
use crate::protocol::messages::Kind;
use crate::types::{Attempt, Millis, OperationId, limits};

const AGAIN_FIRST: Duration = Duration::from_millis(5);
const AGAIN_LAST: Duration = Duration::from_millis(1_000);

impl Handle<TargetMessage> {
    /// Tells the job what happened. A job that is gone has no use for it.
    pub fn input(&self, input: Input) {
        self.told(Class::Migration, TargetMessage::Input(input));
    }
}

struct Effect {
    ctx: Arc<Context>,
    me: Handle<TargetMessage>,
    driver: Option<Arc<dyn Hypervisor>>,
    state: Target,
    key: SwitchKey,
    attempt: Attempt,
    operation: OperationId,
}

/// Starts the effect of `command`; its outcome arrives as an input of the job.
pub fn start(job: &TargetJob, command: Command) -> AbortHandle {
    let effect = Effect::of(job);
    let task = async move {
        match command {
            Command::PrepareReceive => effect.prepare().await,
            Command::SealReceive => effect.seal().await,
            Command::Activate => effect.activate().await,
            Command::StartCold => effect.start_cold().await,
            Command::SeeItRun => effect.see_it_run().await,
            Command::SeeItLookedAfter => effect.see_it_looked_after().await,
            Command::DiscardReceive => effect.discard().await,
            Command::AskDecision => effect.ask_decision().await,
            // A timer of the job itself.
            Command::Patience(_) => {}
        }
    };
    let me = job.me.clone();
    effect::spawn(task, move || me.told(Class::Migration, TargetMessage::Broken))
}

/// What a job receives, to be asked of its host while it waits for its source.
pub struct Receipt(Effect);

/// What the host says of a receipt.
pub enum Received {
    /// It has stored so many bytes.
    Bytes(u64),
    /// It receives nothing of this job.
    Nothing,
    /// It does not say.
    Unknown,
}

impl Receipt {
    /// Of the job's present attempt.
    pub fn of(job: &TargetJob) -> Receipt {
        Receipt(Effect::of(job))
    }

    /// How much of it is there.
    pub async fn bytes(&self) -> Received {
        match self.0.call(HostCall::Progress { key: self.0.key }, limits::REQUEST_MS).await {
            Ok(HostReply::Progress(progress)) => Received::Bytes(progress.acknowledged_bytes),
            Err(HostError::Unknown { .. } | HostError::Failed { .. }) => Received::Unknown,
            Ok(_) | Err(_) => Received::Nothing,
        }
    }
}

async fn again(pause: &mut Duration) {
    tokio::time::sleep(*pause).await;
    *pause = (*pause * 2).min(AGAIN_LAST);
}

impl Effect {
    fn of(job: &TargetJob) -> Effect {
        Effect {
            ctx: job.ctx.clone(),
            me: job.me.clone(),
            driver: job.ctx.driver(&job.state.to.cluster),
            state: job.state.clone(),
            key: job.key(),
            attempt: job.state.attempt,
            operation: job.operation(job.state.phase.step().name()),
        }
    }

    fn tell(&self, event: Event) {
        let step = Some(self.state.phase.step());
        self.me.input(Input { attempt: self.attempt, step, event });
    }

    async fn call(&self, call: HostCall, deadline: Millis) -> Result<HostReply, HostError> {
        match &self.driver {
            Some(driver) => driver.call(self.operation.clone(), call, deadline).await,
            None => {
                let why = format!("cluster {} is not configured in this region any more", self.state.to.cluster);
                Err(HostError::Refused { why })
            }
        }
    }

    /// Calls until the host says yes or no; "unknown" and "failed" are settled by the repeat, which the host answers
    /// from what it has recorded for (job, attempt, step).
    async fn settle(&self, call: HostCall, done: Event) -> (Option<HostReply>, Event) {
        let mut pause = AGAIN_FIRST;
        loop {
            let result = self.call(call.clone(), limits::REQUEST_MS).await;
            if let Err(HostError::StaleIncarnation { known, .. }) = &result {
                self.ctx.stop_as_older_copy(&self.state.to.cluster, *known);
                std::future::pending::<()>().await;
            }
            if let Err(error) = &result {
                tracing::debug!(job = %self.key.job, %error, "the target's host did not do it");
            }
            let (reply, said) = said(result);
            match outcomes::of_target_host(said, done.clone()) {
                Some(event) => return (reply, event),
                None => again(&mut pause).await,
            }
        }
    }

    async fn look(&self) -> Option<VmObservation> {
        let mut pause = AGAIN_FIRST;
        loop {
            match self.call(HostCall::Get { vm: self.key.vm }, limits::REQUEST_MS).await {
                Ok(HostReply::Vm(seen)) => return seen,
                Ok(_) | Err(_) => again(&mut pause).await,
            }
        }
    }

    async fn prepare(&self) {
        let call = HostCall::PrepareReceive {
            key: self.key,
            spec: self.state.offer.spec.clone(),
            fence: self.state.offer.next_fence,
        };
        let (_, event) = self.settle(call, Event::HostPrepared).await;
        self.tell(event);
    }

    async fn seal(&self) {
        let call = HostCall::SealReceive { key: self.key };
        match self.settle(call, Event::HostIncomplete).await {
            (Some(HostReply::Sealed(report)), _) => {
                self.tell(Event::HostSealed { digest: report.digest, tick: report.tick });
            }
            (Some(other), _) => {
                self.tell(Event::HostRefused { why: format!("an answer of another kind: {other:?}") });
            }
            (None, Event::HostRefused { why }) => {
                let sight = self.look().await.map(|seen| seen.sight);
                self.tell(outcomes::of_unsealed(sight.as_ref(), self.key, why));
            }
            (None, event) => self.tell(event),
        }
    }

    async fn activate(&self) {
        let call = HostCall::Activate { key: self.key, fence: self.state.offer.next_fence };
        let (_, event) = self.settle(call, Event::HostStarted).await;
        self.tell(outcomes::of_unstarted(event));
    }

    /// By a person's word: with its memory if the host has it after all, else from its disk.
    async fn start_cold(&self) {
        let sight = self.look().await.map(|seen| seen.sight);
        match outcomes::cold(sight.as_ref(), self.key, self.state.offer.next_fence) {
            Err(event) => self.tell(event),
            Ok(Cold::ByReceipt) => self.activate().await,
            Ok(Cold::ByDisk) => {
                let call = HostCall::Start { vm: self.key.vm, fence: self.state.offer.next_fence };
                let (_, event) = self.settle(call, Event::HostStarted).await;
                self.tell(outcomes::of_unstarted(event));
            }
        }
    }

    async fn see_it_run(&self) {
        let mut pause = Duration::from_millis(2);
        loop {
            let sight = self.look().await.map(|seen| seen.sight);
            match outcomes::of_started(sight.as_ref()) {
                // Its tick has to grow: it is looked at until that is seen.
                Some(event @ Event::HostRuns { tick }) if tick < u64::MAX => self.tell(event),
                Some(event) => return self.tell(event),
                None => {}
            }
            again(&mut pause).await;
        }
    }

    async fn see_it_looked_after(&self) {
        loop {
            tokio::time::sleep(AGAIN_LAST).await;
            // A store that can't be read ends the process; there is nothing to conclude from it here.
            let Ok(record) = tables::vm(&self.ctx.store, self.key.vm) else { continue };
            let sight = self.look().await.map(|seen| seen.sight);
            let (to, fence) = (&self.state.to.cluster, self.state.offer.next_fence);
            if let Some(event) = outcomes::of_looked_after(record.as_ref(), to, fence, sight.as_ref()) {
                return self.tell(event);
            }
        }
    }

    async fn discard(&self) {
        let call = HostCall::DiscardReceive { key: self.key };
        let (_, event) = self.settle(call, Event::HostDiscarded).await;
        self.tell(event);
    }

    /// Law 6.3 f: the target is told by the decision itself; a lost message is made up for by asking.
    async fn ask_decision(&self) {
        let first = if planted::is(Bug::StartBeforeCommit) { 1 } else { 500 };
        let mut pause = Duration::from_millis(first);
        loop {
            again(&mut pause).await;
            if let Some(answer) = self.decision().await {
                let told = !matches!(answer, DecisionAnswer::Undecided);
                self.tell(Event::Told(answer));
                if told {
                    pause = AGAIN_LAST;
                }
            }
        }
    }

    async fn decision(&self) -> Option<DecisionAnswer> {
        let message = MigrationMessage::AskDecision { vm: self.key.vm, attempt: self.attempt };
        let from = &self.state.from.region;
        let reply = if *from == self.ctx.region {
            super::inbound::migration(&self.ctx, &self.ctx.region, message).await.ok()?
        } else {
            let body = postcard::to_stdvec(&message).ok()?;
            let request = Request::query(Kind::MIGRATION, self.key.job.to_string(), body, limits::REQUEST_MS)
                .traced(TraceId::of_job(self.key.job));
            let bytes = self.ctx.link(from)?.request(request).await.ok()?;
            postcard::from_bytes(&bytes).ok()?
        };
        match reply {
            MigrationReply::Decision(answer) => Some(answer),
            MigrationReply::Target(_) | MigrationReply::Pending => None,
        }
    }
}
