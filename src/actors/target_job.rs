//! Shell of a migration's target side (`decision/migration/target.rs`). Owns: journalling an advance with what must be
//! written beside it, performing the commands of the new state, and answering the source from the state.
//! Always: readiness and ownership are durable before they are answered or acted on.
//! Not here: how the first request makes the job (`inbound.rs`), what is decided.

use std::sync::Arc;

use tokio::task::AbortHandle;

use super::call::Reply;
use super::context::Context;
use super::effect::Broken;
use super::mailbox::Handle;
use super::records::{TargetJobEnded, TargetJobRecord};
use super::serve::{Exit, HandlerError};
use super::tables::{self, JobEntry, JournalEntry, store_failed};
use super::target_effects::{self, Received};
use super::vms;
use crate::decision::migration::steps::{Moment, Side};
use crate::decision::migration::target::{self, Command, Event, Input, Phase, Target, Write};
use crate::decision::migration::{TargetAnswer, TargetRequest, Verdict};
use crate::decision::ownership::Moved;
use crate::protocol::bodies::AnnounceMessage;
use crate::store::{StoreError, Txn, Work};
use crate::types::{Attempt, OperationId, RegionName, SwitchKey};

/// What a target job is told.
pub enum TargetMessage {
    /// Something happened.
    Input(Input),
    /// A region asks; answered once the state has an answer, with `None` if the job does not come from it.
    Ask(RegionName, Attempt, TargetRequest, Reply<Option<TargetAnswer>>),
    /// Its last state, for people.
    Look(Reply<Target>),
    /// An effect panicked: nobody will tell how it ended.
    Broken,
}

/// The shell of one job.
pub struct TargetJob {
    pub(super) ctx: Arc<Context>,
    pub(super) me: Handle<TargetMessage>,
    pub(super) state: Target,
    entries: u64,
    waiting: Vec<(Attempt, TargetRequest, Reply<Option<TargetAnswer>>)>,
    tasks: Vec<AbortHandle>,
}

impl TargetJob {
    /// Reads the job back from the store.
    ///
    /// # Errors
    /// The store's, or a journal that the core does not take.
    pub fn load(ctx: Arc<Context>, me: Handle<TargetMessage>, record: TargetJobRecord) -> Result<Self, HandlerError> {
        let job = record.first.job;
        let inputs: Vec<Input> = tables::target_journal(&ctx.store, job)?.into_iter().map(|e| e.input).collect();
        let state = target::fold(record.first.clone(), &inputs).map_err(|(position, why)| {
            Exit::Poison(format!("entry {position} of the journal of {job} does not follow: {why}"))
        })?;
        let entries = inputs.len() as u64;
        Ok(TargetJob { ctx, me, state, entries, waiting: Vec::new(), tasks: Vec::new() })
    }

    /// What both ends of this attempt's transfer are fenced by.
    pub fn key(&self) -> SwitchKey {
        SwitchKey { vm: self.state.vm, job: self.state.job, attempt: self.state.attempt }
    }

    /// The operation of this attempt's `step`.
    pub fn operation(&self, step: &str) -> OperationId {
        OperationId::of_job(self.state.job, self.state.attempt, step)
    }

    /// Issues the commands of the state it was read back with.
    pub fn begin(&mut self) {
        tracing::info!(job = %self.state.job, step = self.state.phase.step().name(), "job runs on its target's side");
        self.perform();
    }

    /// One message; `true` once the job is over here.
    pub async fn handle(&mut self, message: TargetMessage) -> Result<bool, HandlerError> {
        match message {
            TargetMessage::Input(input) => {
                let _ = self.take(input).await?;
            }
            // Identity comes from the link: whoever asks must be the region that the job came from.
            TargetMessage::Ask(region, _, _, reply) if region != self.state.from.region => {
                reply.send(None);
            }
            TargetMessage::Ask(_, attempt, request, reply) => self.ask(attempt, request, reply).await?,
            TargetMessage::Broken => return Err(Broken.into()),
            TargetMessage::Look(reply) => {
                reply.send(self.state.clone());
            }
        }
        self.answer_waiting();
        Ok(matches!(self.state.phase, Phase::Running { .. } | Phase::Discarded))
    }

    async fn ask(
        &mut self,
        attempt: Attempt,
        request: TargetRequest,
        reply: Reply<Option<TargetAnswer>>,
    ) -> Result<(), HandlerError> {
        let input = Input { attempt, step: None, event: Event::Asked(request.clone()) };
        if let Err(why) = self.take(input).await? {
            reply.send(Some(TargetAnswer::Refused { why: why.into() }));
            return Ok(());
        }
        match target::answer(&self.state, attempt, &request) {
            Some(answer) => {
                reply.send(Some(answer));
            }
            None => self.waiting.push((attempt, request, reply)),
        }
        Ok(())
    }

    fn answer_waiting(&mut self) {
        for (attempt, request, reply) in std::mem::take(&mut self.waiting) {
            match target::answer(&self.state, attempt, &request) {
                Some(answer) => {
                    reply.send(Some(answer));
                }
                None if reply.is_abandoned() => {}
                None => self.waiting.push((attempt, request, reply)),
            }
        }
    }

    async fn take(&mut self, input: Input) -> Result<Result<(), &'static str>, HandlerError> {
        let next = match target::step(&self.state, &input) {
            Verdict::Advance(next) => next,
            Verdict::Ignore(why) => {
                tracing::trace!(job = %self.state.job, ?input, why, "ignored");
                return Ok(Ok(()));
            }
            Verdict::Refuse(why) => return Ok(Err(why)),
        };
        let (was, will) = (self.state.phase.step(), next.phase.step());
        if input.step == Some(was) {
            self.ctx.kill.pass(was, Side::Target, Moment::AfterEffect);
        }
        if was != will {
            self.ctx.kill.pass(will, Side::Target, Moment::BeforeWrite);
        }
        let advance = Advance {
            before: self.state.clone(),
            after: next,
            entry: JournalEntry { input, at: self.ctx.clock.wall() },
            ctx: self.ctx.clone(),
            peers: self.ctx.peers(),
        };
        let after = self
            .ctx
            .store
            .transact(Work::Finish, move |txn| {
                advance.write(txn)?;
                Ok::<_, StoreError>(advance.after)
            })
            .await
            .map_err(store_failed)?;
        if was != will {
            tracing::info!(job = %after.job, attempt = %after.attempt, step = will.name(), "step on the target's side");
        }
        let owns_now = after.owns() && !self.state.owns();
        self.state = after;
        self.entries += 1;
        self.ctx.kill.pass(will, Side::Target, Moment::AfterWrite);
        if owns_now || matches!(self.state.phase, Phase::Running { .. } | Phase::Discarded) {
            // What the cluster saw last is older than this.
            self.ctx.changed(&self.state.to.cluster);
        }
        self.perform();
        Ok(Ok(()))
    }

    fn perform(&mut self) {
        for task in self.tasks.drain(..) {
            task.abort();
        }
        for command in target::commands(&self.state) {
            let task = match command {
                Command::Patience(patience) => {
                    let (me, attempt, step) = (self.me.clone(), self.state.attempt, self.state.phase.step());
                    let received = target_effects::Receipt::of(self);
                    tokio::spawn(async move {
                        let mut before = None;
                        loop {
                            tokio::time::sleep(patience.duration()).await;
                            // While blocks arrive nobody has to say anything.
                            match received.bytes().await {
                                Received::Bytes(now) if before != Some(now) => before = Some(now),
                                Received::Bytes(_) | Received::Nothing => break,
                                // A host that does not answer is no reason to throw anything away.
                                Received::Unknown => {}
                            }
                        }
                        me.input(Input { attempt, step: Some(step), event: Event::TimedOut });
                    })
                    .abort_handle()
                }
                other => target_effects::start(self, other),
            };
            self.tasks.push(task);
        }
    }

    /// How many entries its journal has.
    pub fn entries(&self) -> u64 {
        self.entries
    }
}

impl Drop for TargetJob {
    fn drop(&mut self) {
        for task in self.tasks.drain(..) {
            task.abort();
        }
    }
}

/// An advance on its way into the store.
struct Advance {
    before: Target,
    after: Target,
    entry: JournalEntry<Input>,
    ctx: Arc<Context>,
    peers: Vec<RegionName>,
}

impl Advance {
    fn write(&self, txn: &mut Txn<'_, '_>) -> Result<(), StoreError> {
        let t = &self.after;
        tables::append(txn, t.job, &JobEntry::Target(self.entry.clone()))?;
        if matches!(t.phase, Phase::Lost { owned: true, .. }) {
            // It is this region's, its memory is gone, and no step goes on by itself: a person may start it.
            vms::unlock(txn, t.vm, t.job)?;
        }
        for write in target::writes(&self.before, t) {
            match write {
                Write::VmArrived => {
                    vms::arrive(txn, &self.ctx.ledgers, t, self.entry.at, t.from.region == self.ctx.region)?;
                    let moved = Moved { to: t.to.clone(), fence: t.offer.next_fence, attempt: t.attempt };
                    for peer in
                        self.peers.iter().filter(|peer| t.from.region != self.ctx.region && **peer != self.ctx.region)
                    {
                        tables::tell(txn, peer, &AnnounceMessage::VmArrived { vm: t.vm, moved: moved.clone() })?;
                    }
                }
                Write::FreeRoom => vms::free_room(txn, &self.ctx.ledgers, t)?,
                Write::JobEnded => {
                    if t.owns() {
                        vms::unlock(txn, t.vm, t.job)?;
                    }
                    tables::end_target(txn, t.job, &TargetJobEnded { last: t.clone(), ended_at: self.entry.at })?;
                }
            }
        }
        Ok(())
    }
}
