//! Migrations behind the API: start, steer, show. Always: a started job is durable and has locked its VM before the
//! answer; its actor is only the one that runs it.

use super::{Refused, RegionApi, api_error, key_of_another, not_found, remember, replayed};
use crate::actors::Class;
use crate::actors::records::{SourceJobRecord, TransferRecord};
use crate::actors::source_job::{RequestKey, SourceMessage};
use crate::actors::{jobs, tables, vms};
use crate::admin::*;
use crate::decision::migration::source::{Event, Goal, Phase, Source};
use crate::decision::migration::steps::{Moment, Side, Step};
use crate::drivers::TransferProgress;
use crate::store::{Minted, Work};
use crate::types::*;

impl RegionApi {
    pub(super) async fn start_migration_now(
        &self,
        context: RequestContext,
        plan: PlanId,
    ) -> Result<MigrationStatus, ApiError> {
        if let Some(key) = &context.idempotency_key
            && let Some(known) = tables::request(&self.ctx.store, key)?
        {
            // Done before; by now its plan may be forgotten.
            let same = known.fingerprint == context.fingerprint;
            return match known.subject.parse::<JobId>().ok().filter(|_| same) {
                Some(job) => self.migration_now(job).await,
                None => Err(key_of_another(key)),
            };
        }
        let plan = tables::plan(&self.ctx.store, plan)?.ok_or_else(|| not_found("migration plan", plan))?;
        let rules = self.ctx.settings.moves.rules(&plan.options);
        if rules.deadline <= rules.downtime_max {
            let text = format!("{} was made under other settings of this region ([migration])", plan.id);
            return Err(ApiError::new(ErrorCode::PreconditionFailed, text).hint("plan it again"));
        }
        let dry_run = context.dry_run;
        let ctx = self.ctx.clone();
        self.ctx.kill.pass(Step::Queue, Side::Source, Moment::BeforeWrite);
        let begun = self
            .ctx
            .store
            .transact(Work::New, move |txn| {
                if let Some(subject) = replayed(txn, &context)? {
                    let job = subject.parse::<JobId>().map_err(|error| {
                        ApiError::new(ErrorCode::Conflict, format!("the key was used for another request: {error}"))
                    })?;
                    return Ok((job, None));
                }
                let open = ctx.with_jobs(|jobs| jobs.source.len());
                if open >= limits::JOBS_OPEN_MAX {
                    let text = format!("{open} jobs are open in {} already, which is the most allowed", ctx.region);
                    return Err(ApiError::new(ErrorCode::Busy, text)
                        .details(serde_json::json!({ "retryAfterMs": 5_000 }))
                        .hint("wait for some of them to end: novafed migration list")
                        .into());
                }
                let now = ctx.clock.wall();
                check_plan(&plan, now)?;
                let mut record = vms::get(txn, plan.vm)?.ok_or_else(|| not_found("vm", plan.vm))?;
                if let Some(job) = record.job {
                    let text = format!("{} is being moved by {job} already", plan.vm);
                    let hint = format!("wait for it: novafed migration watch {job}");
                    return Err(ApiError::new(ErrorCode::Conflict, text).hint(hint).into());
                }
                if record.resource_version != plan.resource_version {
                    let text = format!(
                        "{} changed since {} was made (version {} then, {} now)",
                        plan.vm, plan.id, plan.resource_version, record.resource_version
                    );
                    return Err(ApiError::new(ErrorCode::PreconditionFailed, text).hint("plan it again").into());
                }
                let decided = tables::decisions_in(txn, plan.vm)?.decided.map(|(attempt, _)| attempt);
                let attempt = record.attempt.max(decided.unwrap_or_default()).next();
                let incarnation = txn.incarnation().counter;
                let job = JobId { region: ctx.number, incarnation, number: txn.mint(Minted::Job) };
                let first = Source {
                    job,
                    vm: plan.vm,
                    from: plan.source.clone(),
                    to: plan.target.clone(),
                    fence: record.fence,
                    next_fence: record.fence.after_move(plan.source.region != plan.target.region),
                    first_attempt: attempt,
                    attempt,
                    rules,
                    goal: Goal::Forward,
                    phase: Phase::Queued,
                    settling: false,
                    target_involved: false,
                    estimated_downtime_us: 0,
                    rounds: 0,
                    note: None,
                };
                let job_record = SourceJobRecord {
                    first,
                    spec: record.spec.clone(),
                    plan: Some(plan.id),
                    bytes_per_second_max: ctx.settings.moves.cap(&plan.options),
                    planned_downtime_us: plan.estimated_downtime / 1_000,
                    started_at: now,
                };
                if dry_run {
                    return Ok::<_, Refused>((job, Some(job_record)));
                }
                record.job = Some(job);
                record.attempt = attempt;
                vms::put(txn, record)?;
                tables::put_source_job(txn, &job_record)?;
                remember(txn, &context, job)?;
                Ok((job, Some(job_record)))
            })
            .await
            .map_err(api_error)?;
        let (job, new) = begun;
        if dry_run && let Some(record) = new {
            let nothing = (TransferRecord::default(), TransferProgress::default());
            return Ok(vms::status_of(&record.first, &record, &nothing.0, &nothing.1, self.ctx.clock.wall()));
        }
        if new.is_some() {
            self.ctx.kill.pass(Step::Queue, Side::Source, Moment::AfterWrite);
            self.ctx.events.note(self.ctx.clock.wall(), "migration.started", job, format!("{job} was started"));
            jobs::run_source(&self.ctx, job).await;
        }
        self.migration_now(job).await
    }

    pub(super) async fn migration_now(&self, id: JobId) -> Result<MigrationStatus, ApiError> {
        let mut status = self.status_of(id).await?;
        if status.target.region != self.ctx.region && !status.state.is_end() {
            status.last_heard_ms = self.ctx.link(&status.target.region).and_then(|link| link.state().last_heard);
        }
        Ok(status)
    }

    async fn status_of(&self, id: JobId) -> Result<MigrationStatus, ApiError> {
        let slot = self.ctx.with_jobs(|running| running.source.get(&id).cloned());
        if let Some(slot) = slot
            && let Ok(status) = slot.call(Class::Control, limits::HEARTBEAT_MS, SourceMessage::Status).await
        {
            return Ok(status);
        }
        if let Some(ended) = tables::source_ended(&self.ctx.store, id)? {
            return Ok(vms::status_of_ended(&ended));
        }
        // Between two lives of its actor: the store knows how far it is.
        let record = tables::source_job(&self.ctx.store, id)?.ok_or_else(|| not_found("migration", id))?;
        Ok(self.stored_status(&record)?)
    }

    fn stored_status(&self, record: &SourceJobRecord) -> Result<MigrationStatus, crate::store::StoreError> {
        let checkpoint = tables::source_checkpoint(&self.ctx.store, record.first.job)?;
        let (state, transfer) = match checkpoint {
            Some(checkpoint) => (checkpoint.state, checkpoint.transfer),
            None => (record.first.clone(), TransferRecord::default()),
        };
        Ok(vms::status_of(&state, record, &transfer, &TransferProgress::default(), self.ctx.clock.wall()))
    }

    pub(super) async fn all_migrations(&self) -> Result<Vec<MigrationStatus>, ApiError> {
        let (open, _) = tables::open_jobs(&self.ctx.store)?;
        let mut all: Vec<MigrationStatus> =
            tables::sources_ended(&self.ctx.store)?.into_iter().map(|ended| vms::status_of_ended(&ended)).collect();
        for record in open {
            all.push(self.migration_now(record.first.job).await?);
        }
        Ok(all)
    }

    pub(super) async fn steer_now(
        &self,
        context: RequestContext,
        id: JobId,
        steer: Steer,
        request: SteerRequest,
    ) -> Result<MigrationStatus, ApiError> {
        let event = match steer {
            Steer::Cancel => Event::Cancel,
            Steer::Retry => Event::Retry,
            Steer::Probe => Event::Probe,
            Steer::Undo => Event::Undo,
            Steer::Abandon => Event::Abandon,
        };
        let before = self.migration_now(id).await?;
        let key = context.idempotency_key.map(|key| RequestKey { key, fingerprint: context.fingerprint });
        if let Some(RequestKey { key, fingerprint }) = &key
            && let Some(known) = tables::request(&self.ctx.store, key)?
        {
            // Done before: the job may be elsewhere by now, where it would refuse the same words.
            return if known.fingerprint == *fingerprint { Ok(before) } else { Err(key_of_another(key)) };
        }
        if context.dry_run {
            return Ok(before);
        }
        let slot = self.ctx.with_jobs(|running| running.source.get(&id).cloned());
        let Some(slot) = slot else {
            return match (before.state, steer) {
                (JobState::Cancelled, Steer::Cancel) => Ok(before),
                (state, _) if state.is_end() => Err(over(id, steer, &before)),
                _ => {
                    let text = format!("{id} is between two lives of its actor");
                    Err(ApiError::new(ErrorCode::Busy, text).hint("try again in a second"))
                }
            };
        };
        let told =
            slot.call(Class::Control, limits::REQUEST_MS, |reply| SourceMessage::Person(event, key, reply)).await;
        match told {
            Ok(Ok(())) => {
                let why = request.reason.unwrap_or_default();
                let text = format!("{} by uid {} {why}", steer.word(), context.caller.uid);
                self.ctx.events.note(self.ctx.clock.wall(), "migration.steered", id, text);
                self.migration_now(id).await
            }
            Ok(Err(why)) => {
                Err(ApiError::new(ErrorCode::Conflict, format!("{id} can't be told to {}: {why}", steer.word()))
                    .details(serde_json::json!({ "state": before.state, "phase": before.phase }))
                    .hint(match before.commands.as_slice() {
                        [] => "nothing needs to be decided about it now".to_owned(),
                        commands => format!("what it takes now: {}", commands.join(", ")),
                    }))
            }
            Err(error) => Err(ApiError::new(ErrorCode::OutcomeUnknown, format!("{id} did not answer: {error}"))
                .hint(format!("look at it: novafed migration show {id}"))),
        }
    }
}

fn check_plan(plan: &MigrationPlan, now: WallMillis) -> Result<(), ApiError> {
    if !plan.executable {
        let failed: Vec<_> = plan
            .checks
            .iter()
            .filter(|check| check.status == CheckStatus::Failed && check.severity == Severity::Blocking)
            .map(|check| format!("{}: {}", check.id, check.message))
            .collect();
        let text = format!("{} can't be started: {}", plan.id, failed.join("; "));
        return Err(ApiError::new(ErrorCode::PreconditionFailed, text).hint("mend that, then plan it again"));
    }
    if plan.expires_at <= now {
        let text = format!("{} has expired", plan.id);
        return Err(ApiError::new(ErrorCode::PreconditionFailed, text).hint("plan it again"));
    }
    Ok(())
}

fn over(id: JobId, steer: Steer, status: &MigrationStatus) -> ApiError {
    let text = format!("{id} is over ({:?}): it can't be told to {}", status.state, steer.word());
    let hint = match status.state {
        JobState::Completed => {
            format!("to go back, move it again: novafed migration start {} --to {}", status.vm, status.source)
        }
        _ => format!("to try again: novafed migration start {} --to {}", status.vm, status.target),
    };
    ApiError::new(ErrorCode::Conflict, text).hint(hint)
}
