//! Effects of a migration's target side. Owns: calls to the target's host, the question for the decision.
//! Always: each effect is a task tied to the state that asked for it and tells its outcome to the job.
//! Not here: what an outcome means (`decision/migration/target.rs`).

use std::sync::Arc;
use std::time::Duration;

use tokio::task::AbortHandle;

use super::context::Context;
use super::mailbox::{Class, Handle};
use super::target_job::{TargetJob, TargetMessage};
use crate::decision::migration::target::{Command, Event, Input, Target};
use crate::decision::ownership::DecisionAnswer;
use crate::drivers::{HostCall, HostError, HostReply, Hypervisor, SwitchKey, VmObservation};
use crate::protocol::TraceId;
use crate::protocol::bodies::{MigrationMessage, MigrationReply};
use crate::protocol::link::Request;
use crate::protocol::messages::Kind;
use crate::types::{Attempt, GuestPower, Millis, OperationId, limits};

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
            Command::DiscardReceive => effect.discard().await,
            Command::AskDecision => effect.ask_decision().await,
            // A timer of the job itself.
            Command::Patience(_) => {}
        }
    };
    tokio::spawn(task).abort_handle()
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
    async fn settle(&self, call: HostCall) -> Result<HostReply, Event> {
        let mut pause = AGAIN_FIRST;
        loop {
            match self.call(call.clone(), limits::REQUEST_MS).await {
                Ok(reply) => return Ok(reply),
                Err(HostError::Unknown { why } | HostError::Failed { why }) => {
                    tracing::debug!(job = %self.key.job, why, "the target's host did not say yes or no");
                    again(&mut pause).await;
                }
                Err(error @ HostError::NotFound { .. }) => return Err(Event::HostLost { why: error.to_string() }),
                Err(HostError::StaleIncarnation { known, .. }) => {
                    self.ctx.stop_as_older_copy(&self.state.to.cluster, known);
                    std::future::pending::<()>().await;
                }
                Err(
                    error @ (HostError::Fenced { .. }
                    | HostError::Refused { .. }
                    | HostError::NoRoom { .. }
                    | HostError::Unsupported { .. }),
                ) => return Err(Event::HostRefused { why: error.to_string() }),
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
        match self.settle(call).await {
            Ok(_) => self.tell(Event::HostPrepared),
            Err(event) => self.tell(event),
        }
    }

    async fn seal(&self) {
        match self.settle(HostCall::SealReceive { key: self.key }).await {
            Ok(HostReply::Sealed(report)) => {
                self.tell(Event::HostSealed { digest: report.digest, tick: report.tick });
            }
            Ok(other) => self.tell(Event::HostRefused { why: format!("an answer of another kind: {other:?}") }),
            Err(Event::HostRefused { why }) => match self.look().await.and_then(|seen| seen.receiving) {
                // It still receives: something is on its way, and the source is told to ask again.
                Some((key, false)) if key == self.key => self.tell(Event::HostIncomplete),
                Some(_) => self.tell(Event::HostRefused { why }),
                None => self.tell(Event::HostLost { why }),
            },
            Err(event) => self.tell(event),
        }
    }

    async fn activate(&self) {
        let fence = self.state.offer.next_fence;
        match self.settle(HostCall::Activate { key: self.key, fence }).await {
            Ok(_) => self.tell(Event::HostStarted),
            Err(Event::HostRefused { why } | Event::HostLost { why }) => {
                self.tell(Event::HostLost { why: format!("the target's host can't run what it received: {why}") });
            }
            Err(event) => self.tell(event),
        }
    }

    /// From the disk, by a person's word: by the receipt if the host still has it, else as a VM of its own.
    async fn start_cold(&self) {
        let (vm, fence) = (self.key.vm, self.state.offer.next_fence);
        match self.look().await {
            None => {
                let why = "its disk is not at the target's host either".into();
                return self.tell(Event::HostLost { why });
            }
            Some(seen) if seen.receiving.is_some_and(|(key, _)| key == self.key) => return self.activate().await,
            Some(_) => {}
        }
        match self.settle(HostCall::Start { vm, fence }).await {
            Ok(_) => self.tell(Event::HostStarted),
            Err(Event::HostRefused { why } | Event::HostLost { why }) => self.tell(Event::HostLost { why }),
            Err(event) => self.tell(event),
        }
    }

    async fn see_it_run(&self) {
        let mut pause = Duration::from_millis(2);
        loop {
            let seen = self.look().await;
            match seen.as_ref().map(|s| s.power) {
                Some(GuestPower::Running) => {
                    self.tell(Event::HostRuns { tick: seen.map_or(0, |s| s.tick) });
                }
                Some(GuestPower::Lost) | None => {
                    let why = "the target's host died after it started the VM; it can be started from its disk".into();
                    return self.tell(Event::HostLost { why });
                }
                // Stopped by its owner meanwhile: it ran, or it would not be stopped.
                Some(GuestPower::Stopped) => return self.tell(Event::HostRuns { tick: u64::MAX }),
                Some(GuestPower::Paused | GuestPower::Receiving | GuestPower::Retired) => {}
            }
            again(&mut pause).await;
        }
    }

    async fn discard(&self) {
        match self.settle(HostCall::DiscardReceive { key: self.key }).await {
            Ok(_) | Err(Event::HostLost { .. }) => self.tell(Event::HostDiscarded),
            Err(event) => {
                // A later attempt or a running VM stands there: nothing of this job is left to throw away.
                tracing::warn!(job = %self.key.job, ?event, "nothing was discarded");
                self.tell(Event::HostDiscarded);
            }
        }
    }

    /// Law 6.3 f: the target is told by the decision itself; a lost message is made up for by asking.
    async fn ask_decision(&self) {
        let mut pause = Duration::from_millis(500);
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
