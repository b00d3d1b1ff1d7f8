//! Shell of a migration's source side (`decision/migration/source/`). Owns: journalling an advance with what must be
//! written beside it, then performing the commands of the new state.
//! Always: a state is durable before its effects begin; an outcome that no state waits for is dropped by the core.
//! Not here: the effects themselves (`source_effects.rs`), what is decided.

use std::sync::Arc;

use tokio::task::AbortHandle;

use super::call::Reply;
use super::context::Context;
use super::effect::Broken;
use super::mailbox::Handle;
use super::records::{Cleanup, CleanupKind, SourceCheckpoint, SourceJobEnded, SourceJobRecord, TransferRecord};
use super::serve::{Exit, HandlerError};
use super::tables::{self, JobEntry, JournalEntry, store_failed};
use super::{jobs, source_effects, vms};
use crate::decision::line::{Standing, Waiting};
use crate::decision::migration::Verdict;
use crate::decision::migration::source::{self, Command, Event, Input, Phase, Source, Write};
use crate::decision::migration::steps::{Moment, Side, Step};
use crate::decision::ownership::{Decision, Proposed};
use crate::drivers::TransferProgress;
use crate::protocol::bodies::AnnounceMessage;
use crate::store::{StoreError, Txn, Work};
use crate::types::{Attempt, MigrationStatus, OperationId, SwitchKey, Tick};

/// What a source job is told.
pub enum SourceMessage {
    /// There is a place for it among the running jobs.
    Go,
    /// Something happened.
    Input(Input),
    /// How the transfer of this attempt stands.
    Progress(Attempt, TransferProgress),
    /// A channel of this attempt was cut; it is opened again.
    Cut(Attempt),
    /// A person says something, with the key of the request; the answer tells whether it was taken.
    Person(Event, Option<RequestKey>, Reply<Result<(), &'static str>>),
    /// How does it stand?
    Status(Reply<MigrationStatus>),
    /// An effect panicked: nobody will tell how it ended.
    Broken,
}

/// What a client gave its request, so that a repeat of it is known as one.
#[derive(Debug, Clone)]
pub struct RequestKey {
    /// The client's key.
    pub key: String,
    /// Of what was asked.
    pub fingerprint: u64,
}

/// The shell of one job.
pub struct SourceJob {
    pub(super) ctx: Arc<Context>,
    pub(super) me: Handle<SourceMessage>,
    pub(super) state: Source,
    pub(super) record: SourceJobRecord,
    pub(super) transfer: TransferRecord,
    progress: TransferProgress,
    entries: u64,
    checkpointed: u64,
    tasks: Vec<AbortHandle>,
    patience: Option<AbortHandle>,
    pump: Option<AbortHandle>,
    paused_since: Option<Tick>,
    resumed: bool,
}

impl SourceJob {
    /// Reads the job back from the store: the record, then the fold of its journal.
    ///
    /// # Errors
    /// The store's, or a journal that the core does not take.
    pub fn load(ctx: Arc<Context>, me: Handle<SourceMessage>, record: SourceJobRecord) -> Result<Self, HandlerError> {
        let job = record.first.job;
        let journal = tables::source_journal(&ctx.store, job)?;
        let inputs: Vec<Input> = journal.iter().map(|entry| entry.input.clone()).collect();
        let state = source::fold(record.first.clone(), &inputs).map_err(|(position, why)| {
            Exit::Poison(format!("entry {position} of the journal of {job} does not follow: {why}"))
        })?;
        let checkpoint: Option<SourceCheckpoint> = tables::source_checkpoint(&ctx.store, job)?;
        let mut transfer = checkpoint.map(|c| c.transfer).unwrap_or_default();
        let resumed = !journal.is_empty();
        if resumed {
            transfer.resumes += 1;
        }
        Ok(SourceJob {
            ctx,
            me,
            state,
            record,
            transfer,
            progress: TransferProgress::default(),
            entries: journal.len() as u64,
            checkpointed: transfer.acknowledged,
            tasks: Vec::new(),
            patience: None,
            pump: None,
            paused_since: None,
            resumed,
        })
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
    pub async fn begin(&mut self) -> Result<(), HandlerError> {
        tracing::info!(job = %self.state.job, step = self.state.phase.step().name(), resumed = self.resumed, "job runs");
        jobs::stand(&self.ctx, self.state.job, Standing::of(self.state.phase.step()));
        self.perform();
        Ok(())
    }

    /// How many entries its journal has.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// One message; `true` once the job is over.
    pub async fn handle(&mut self, message: SourceMessage) -> Result<bool, HandlerError> {
        match message {
            SourceMessage::Go => {
                let input = Input { attempt: self.state.attempt, step: Some(Step::Queue), event: Event::Go };
                let _ = self.take(input, None).await?;
            }
            SourceMessage::Input(input) => {
                let _ = self.take(input, None).await?;
            }
            SourceMessage::Progress(attempt, progress) if attempt == self.state.attempt => {
                self.note_progress(progress).await?;
            }
            SourceMessage::Progress(..) => {}
            SourceMessage::Broken => return Err(Broken.into()),
            SourceMessage::Cut(attempt) => {
                let copying = matches!(self.state.phase, Phase::Copying | Phase::Pausing | Phase::Sealing);
                if attempt == self.state.attempt && copying && !self.resumed && self.transfer.sent > 0 {
                    // What the target has is learnt with the next connection; the record then says where it went on.
                    self.resumed = true;
                    self.transfer.resumes += 1;
                }
            }
            SourceMessage::Person(event, key, reply) => {
                let input = Input { attempt: self.state.attempt, step: None, event };
                let taken = self.take(input, key).await?;
                reply.send(taken);
            }
            SourceMessage::Status(reply) => {
                reply.send(self.status());
            }
        }
        Ok(matches!(self.state.phase, Phase::Ended(_)))
    }

    /// Steps the core; journals and performs an advance. The inner result is the refusal for who asked.
    async fn take(&mut self, input: Input, key: Option<RequestKey>) -> Result<Result<(), &'static str>, HandlerError> {
        let next = match source::step(&self.state, &input) {
            Verdict::Advance(next) => next,
            Verdict::Ignore(why) => {
                tracing::trace!(job = %self.state.job, ?input, why, "ignored");
                return Ok(Ok(()));
            }
            Verdict::Refuse(why) => return Ok(Err(why)),
        };
        let before = self.state.phase.step();
        if input.step == Some(before) {
            self.ctx.kill.pass(before, Side::Source, Moment::AfterEffect);
        }
        self.journal(input, next, key).await?;
        self.perform();
        Ok(Ok(()))
    }

    /// Makes an advance durable, with all that belongs to it. If all that its state wants is a decision, that is recorded
    /// in the same transaction: the guest stands still meanwhile.
    async fn journal(&mut self, input: Input, next: Source, key: Option<RequestKey>) -> Result<(), HandlerError> {
        let (was, will) = (self.state.phase.step(), next.phase.step());
        if was != will {
            self.ctx.kill.pass(will, Side::Source, Moment::BeforeWrite);
        }
        self.note_switch(&input, &next);
        let proposal = match source::commands(&next)[..] {
            [Command::Decide(decision)] => Some(decision),
            _ => None,
        };
        if proposal == Some(Decision::Transfer) {
            // The entry of the next step is written by the same transaction.
            self.ctx.kill.pass(Step::Switch, Side::Source, Moment::BeforeWrite);
        }
        let advance = Advance { key, ..self.prepare_write(input, next) };
        let (entered, decided) = self
            .ctx
            .store
            .transact(Work::Finish, move |txn| {
                advance.write(txn)?;
                let decided = proposal.map(|decision| advance.then().decide(txn, decision)).transpose()?;
                Ok::<_, StoreError>((advance.after, decided))
            })
            .await
            .map_err(store_failed)?;
        self.entered(entered, was != will);
        if let Some(decided) = decided {
            self.decided(decided);
        }
        Ok(())
    }

    fn decided(&mut self, after: Source) {
        self.ctx.kill.pass(Step::Decide, Side::Source, Moment::AfterEffect);
        let changed = after.phase.step() != Step::Decide;
        self.entered(after, changed);
    }

    fn prepare_write(&self, input: Input, after: Source) -> Advance {
        Advance {
            before: self.state.clone(),
            after,
            entry: JournalEntry { input, at: self.ctx.clock.wall() },
            entries: self.entries + 1,
            transfer: self.transfer,
            ctx: self.ctx.clone(),
            retention_ms: self.ctx.settings.moves.retention.0,
            record: self.record.clone(),
            key: None,
        }
    }

    /// The state is durable: the effects of the last one are nobody's any more.
    fn entered(&mut self, next: Source, step_changed: bool) {
        self.entries += 1;
        if step_changed {
            tracing::info!(
                job = %next.job, attempt = %next.attempt, step = next.phase.step().name(), note = next.note, "step"
            );
            self.ctx.events.job(self.ctx.clock.wall(), next.job, next.phase.step().name());
        }
        self.state = next;
        jobs::stand(&self.ctx, self.state.job, Standing::of(self.state.phase.step()));
        self.ctx.kill.pass(self.state.phase.step(), Side::Source, Moment::AfterWrite);
        if matches!(self.state.phase, Phase::Ended(_)) {
            self.ctx.changed(&self.state.from.cluster);
        }
    }

    fn stop_tasks(&mut self) {
        for task in self.tasks.drain(..).chain(self.patience.take()) {
            task.abort();
        }
        let pumping = matches!(self.state.phase, Phase::Copying | Phase::Pausing | Phase::Sealing | Phase::Holding);
        if !pumping && let Some(pump) = self.pump.take() {
            pump.abort();
        }
    }

    fn perform(&mut self) {
        self.stop_tasks();
        for command in source::commands(&self.state) {
            self.issue(command);
        }
    }

    fn issue(&mut self, command: Command) {
        let needs_pump = matches!(command, Command::Copy | Command::Pause | Command::FinishCopy);
        if needs_pump && self.pump.as_ref().is_none_or(AbortHandle::is_finished) {
            self.pump = Some(source_effects::pump(self));
        }
        match command {
            Command::Patience(patience) => {
                let (me, attempt, step) = (self.me.clone(), self.state.attempt, self.state.phase.step());
                let task = tokio::spawn(async move {
                    tokio::time::sleep(patience.duration()).await;
                    me.input(Input { attempt, step: Some(step), event: Event::TimedOut });
                });
                self.patience = Some(task.abort_handle());
            }
            other => self.tasks.push(source_effects::start(self, other)),
        }
    }

    /// Progress is kept beside the journal: a checkpoint each few MiB, so that a restart can say where it resumed.
    async fn note_progress(&mut self, progress: TransferProgress) -> Result<(), HandlerError> {
        const CHECKPOINT_EVERY_BYTES: u64 = 4 * crate::types::MIB;
        if progress.acknowledged_bytes > self.progress.acknowledged_bytes && self.state.phase == Phase::Copying {
            // It moves: the patience of this phase begins anew.
            if let Some(patience) = self.patience.take() {
                patience.abort();
            }
            self.issue(Command::Patience(self.state.rules.patience));
        }
        self.progress = progress;
        if self.resumed && progress.connected {
            self.resumed = false;
            self.transfer.resumed_from = progress.acknowledged_bytes;
        }
        self.transfer.acknowledged = self.transfer.acknowledged.max(progress.acknowledged_bytes);
        self.transfer.sent = self.transfer.sent.max(progress.sent_bytes);
        self.transfer.sent_twice = self.transfer.sent_twice.max(progress.sent_twice_bytes);
        self.transfer.total = self.transfer.total.max(progress.total_bytes);
        if self.transfer.acknowledged >= self.checkpointed + CHECKPOINT_EVERY_BYTES {
            self.checkpointed = self.transfer.acknowledged;
            let checkpoint =
                SourceCheckpoint { state: self.state.clone(), entries: self.entries, transfer: self.transfer };
            let job = self.state.job;
            self.ctx
                .store
                .transact(Work::Finish, move |txn| tables::put_source_checkpoint(txn, job, &checkpoint))
                .await
                .map_err(store_failed)?;
        }
        Ok(())
    }

    fn note_switch(&mut self, input: &Input, next: &Source) {
        match input.event {
            Event::Paused => {
                self.paused_since = Some(self.ctx.clock.now());
                self.transfer.paused_at = self.ctx.clock.wall().0;
            }
            Event::Started if next.decided_transfer() => {
                self.transfer.downtime_us = match self.paused_since {
                    Some(since) => self.ctx.clock.now().since(since).0 * 1_000,
                    // Paused in an earlier life of this process: only the wall clock spans it.
                    None => self.ctx.clock.wall().0.saturating_sub(self.transfer.paused_at) * 1_000,
                };
            }
            _ => {}
        }
    }

    /// How it stands, for the API.
    pub fn status(&self) -> MigrationStatus {
        let mut status =
            vms::status_of(&self.state, &self.record, &self.transfer, &self.progress, self.ctx.clock.wall());
        if let Some(Waiting { ahead, running, limit }) = self.ctx.with_jobs(|jobs| jobs.line.waiting(self.state.job)) {
            status.reason = Some(format!(
                "in line, {ahead} before it: {running} of at most {limit} jobs run in {} (migration.running_max)",
                self.ctx.region
            ));
        }
        status
    }
}

impl Drop for SourceJob {
    fn drop(&mut self) {
        for task in self.tasks.drain(..).chain(self.patience.take()).chain(self.pump.take()) {
            task.abort();
        }
    }
}

/// An advance on its way into the store.
#[derive(Clone)]
struct Advance {
    before: Source,
    after: Source,
    entry: JournalEntry<Input>,
    entries: u64,
    transfer: TransferRecord,
    ctx: Arc<Context>,
    retention_ms: u64,
    record: SourceJobRecord,
    /// Of the request that caused it.
    key: Option<RequestKey>,
}

/// The input by which a decision becomes known to `state`; which one is written once it is recorded.
fn deciding(state: &Source) -> Input {
    Input { attempt: state.attempt, step: Some(Step::Decide), event: Event::Decided(Decision::Abort) }
}

impl Advance {
    /// The one that comes next, if this one's state waits for a decision.
    fn then(&self) -> Advance {
        Advance {
            before: self.after.clone(),
            entry: JournalEntry { input: deciding(&self.after), at: self.entry.at },
            entries: self.entries + 1,
            key: None,
            ..self.clone()
        }
    }

    /// Proposes `decision`, and journals what stands then: the first recorded wins. The state after that.
    fn decide(&self, txn: &mut Txn<'_, '_>, decision: Decision) -> Result<Source, StoreError> {
        let state = &self.before;
        let known = tables::decisions_in(txn, state.vm)?;
        let (stands, record) = match known.propose(state.attempt, decision, &state.to, state.next_fence) {
            Proposed::Recorded(record) => (decision, Some(record)),
            Proposed::Stands(stands) => (stands, None),
            // An attempt below the highest decided one can never become a transfer.
            Proposed::Superseded(_) => (Decision::Abort, None),
        };
        if let Some(record) = record {
            tables::put_decisions(txn, state.vm, &record)?;
        }
        let mut advance = self.clone();
        advance.entry.input.event = Event::Decided(stands);
        match source::step(state, &advance.entry.input) {
            Verdict::Advance(next) => advance.after = next,
            Verdict::Ignore(why) | Verdict::Refuse(why) => {
                return Err(StoreError::Damaged {
                    what: format!("journal of {}", state.job),
                    detail: format!("it can't take {stands:?}: {why}"),
                });
            }
        }
        advance.write(txn)?;
        Ok(advance.after)
    }

    fn write(&self, txn: &mut Txn<'_, '_>) -> Result<(), StoreError> {
        let job = self.after.job;
        tables::append(txn, job, &JobEntry::Source(self.entry.clone()))?;
        let checkpoint = SourceCheckpoint { state: self.after.clone(), entries: self.entries, transfer: self.transfer };
        tables::put_source_checkpoint(txn, job, &checkpoint)?;
        if let Some(RequestKey { key, fingerprint }) = &self.key {
            tables::put_request(txn, key, *fingerprint, &job.to_string())?;
        }
        for write in source::writes(&self.before, &self.after) {
            match write {
                Write::VmLeft => self.vm_left(txn)?,
                Write::VmStays => vms::unlock(txn, self.after.vm, job)?,
                Write::OweDiscard => self.owe_discard(txn)?,
                Write::JobEnded => {
                    let ended = SourceJobEnded {
                        record: self.record.clone(),
                        last: self.after.clone(),
                        transfer: self.transfer,
                        ended_at: self.entry.at,
                    };
                    tables::end_source(txn, job, &ended)?;
                }
            }
        }
        Ok(())
    }

    fn vm_left(&self, txn: &mut Txn<'_, '_>) -> Result<(), StoreError> {
        let s = &self.after;
        let due = crate::types::WallMillis(self.entry.at.0.saturating_add(self.retention_ms));
        let cleanup = Cleanup {
            kind: CleanupKind::Purge,
            job: Some(s.job),
            vm: s.vm,
            cluster: s.from.cluster.clone(),
            fence: s.next_fence,
            due,
        };
        tables::owe(txn, &cleanup)?;
        vms::leave(txn, &self.ctx.ledgers, s, s.to.region == self.ctx.region)
    }

    fn owe_discard(&self, txn: &mut Txn<'_, '_>) -> Result<(), StoreError> {
        let s = &self.after;
        let discard = AnnounceMessage::Discard { job: s.job, vm: s.vm, attempt: s.attempt };
        tables::tell(txn, &s.to.region, &discard)
    }
}
