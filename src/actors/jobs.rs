//! The open jobs of a region. Owns: one actor per open job and side, its entry in the context and its place in the line.
//! Always: a job is in the store before it runs; after a restart every open job runs again; a job whose actor crashed
//! too often is parked by its own core, where a person sees it.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use tokio::task::JoinSet;

use super::context::Context;
use super::mailbox::{Admission, Class, Handle};
use super::records::SourceJobRecord;
use super::serve::{Ctx, Exit, HandlerError, Serve, Start};
use super::source_job::{SourceJob, SourceMessage};
use super::target_job::{TargetJob, TargetMessage};
use super::{ChildSpec, tables};
use crate::decision::line::Standing;
use crate::decision::migration::source::{Event, Input};
use crate::decision::migration::steps::Side;
use crate::store::StoreError;
use crate::types::{JobId, limits};

/// Jobs whose actors are started at once: a start folds a journal.
const STARTS_AT_ONCE: usize = 32;

/// Puts every open job where it stood: before anybody can ask for another one. Those that ran go on in any case, and
/// only then is there a place for those that waited.
///
/// # Errors
/// The store's.
pub fn line_up(ctx: &Context) -> Result<(), StoreError> {
    for SourceJobRecord { first, .. } in tables::open_jobs(&ctx.store)?.0 {
        let checkpoint = tables::source_checkpoint(&ctx.store, first.job)?;
        let phase = checkpoint.map_or(first.phase, |checkpoint| checkpoint.state.phase);
        ctx.with_jobs(|jobs| jobs.line.stand(first.job, Standing::of(phase.step())));
    }
    Ok(())
}

/// Runs every open job that nobody runs: all of them at the start of a process. Tells how many there were.
///
/// # Errors
/// The store's.
pub async fn run_all(ctx: &Arc<Context>) -> Result<usize, StoreError> {
    let (source, target) = tables::open_jobs(&ctx.store)?;
    // The target's side first: a source asks at once.
    let target = target.iter().map(|record| (Side::Target, record.first.job));
    let open = target.chain(source.iter().map(|record| (Side::Source, record.first.job)));
    let all: Vec<_> = ctx.with_jobs(|running| {
        let runs = |(side, job): &(Side, JobId)| match side {
            Side::Source => running.source.contains_key(job),
            Side::Target => running.target.contains_key(job),
        };
        open.filter(|job| !runs(job)).collect()
    });
    for some in all.chunks(STARTS_AT_ONCE) {
        let mut starting = JoinSet::new();
        for (side, job) in some.iter().copied() {
            let ctx = ctx.clone();
            starting.spawn(async move {
                match side {
                    Side::Target => run_target(&ctx, job).await,
                    Side::Source => run_source(&ctx, job).await,
                }
            });
        }
        starting.join_all().await;
    }
    Ok(all.len())
}

/// Takes note of where a job stands, and lets those go for which there is a place now.
pub fn stand(ctx: &Context, job: JobId, standing: Standing) {
    let go: Vec<_> = ctx.with_jobs(|jobs| {
        jobs.line.stand(job, standing);
        jobs.line.admit().iter().filter_map(|job| jobs.source.get(job).cloned()).collect()
    });
    for job in go {
        // One that is between two lives of its actor is told when it begins.
        job.told(Class::Migration, SourceMessage::Go);
    }
}

fn source_id(job: JobId) -> String {
    format!("job-source-{job}")
}

fn target_id(job: JobId) -> String {
    format!("job-target-{job}")
}

/// Takes a job's place among the running ones of its side; `None` if it runs already.
fn take_place<M: Send + 'static>(
    ctx: &Context,
    running: &mut BTreeMap<JobId, Handle<M>>,
    job: JobId,
) -> Option<Handle<M>> {
    match running.entry(job) {
        Entry::Occupied(_) => None,
        Entry::Vacant(place) => Some(place.insert(Handle::new(ctx.clock.clone(), Admission::default())).clone()),
    }
}

/// Runs a job on its source's side, if it does not run.
pub async fn run_source(ctx: &Arc<Context>, job: JobId) {
    let Some(handle) = ctx.with_jobs(|running| take_place(ctx, &mut running.source, job)) else { return };
    let inner = ctx.clone();
    let spec = ChildSpec::actor(source_id(job), &handle, move |start: Start| {
        let ctx = inner.clone();
        async move { Ok(SourceActor { ctx, job, crashes: start.crashes, shell: None }) }
    });
    if !add(ctx, spec.job(), job).await {
        ctx.with_jobs(|running| running.source.remove(&job));
    }
}

/// Runs a job on its target's side, if it does not run.
pub async fn run_target(ctx: &Arc<Context>, job: JobId) {
    let Some(handle) = ctx.with_jobs(|running| take_place(ctx, &mut running.target, job)) else { return };
    let inner = ctx.clone();
    let spec = ChildSpec::actor(target_id(job), &handle, move |_: Start| {
        let ctx = inner.clone();
        async move { Ok(TargetActor { ctx, job, shell: None }) }
    });
    if !add(ctx, spec.job(), job).await {
        ctx.with_jobs(|running| running.target.remove(&job));
    }
}

/// Whether the job has an actor now. If not it stays in the store: whoever asks for it, or the next start of the
/// process, runs it again.
async fn add(ctx: &Arc<Context>, spec: ChildSpec, job: JobId) -> bool {
    let Some(supervisor) = ctx.migrations() else { return false };
    match supervisor.add_child(spec).await {
        Ok(_) => true,
        Err(error) => {
            tracing::error!(%job, %error, "the job can't be run now");
            false
        }
    }
}

/// Forgets a job that is over: its actor ends by itself right after.
fn forget(ctx: &Arc<Context>, id: String) {
    let ctx = ctx.clone();
    tokio::spawn(async move {
        if let Some(supervisor) = ctx.migrations()
            && let Err(error) = supervisor.remove_child(id.clone()).await
        {
            tracing::debug!(id, %error, "an ended job stays listed");
        }
    });
}

struct SourceActor {
    ctx: Arc<Context>,
    job: JobId,
    crashes: u32,
    shell: Option<SourceJob>,
}

impl SourceActor {
    async fn over(&mut self) -> Result<(), HandlerError> {
        self.ctx.with_jobs(|running| running.source.remove(&self.job));
        stand(&self.ctx, self.job, Standing::Away);
        forget(&self.ctx, source_id(self.job));
        Err(Exit::Normal.into())
    }
}

impl Serve for SourceActor {
    type Message = SourceMessage;

    async fn started(&mut self, ctx: &mut Ctx<SourceMessage>) -> Result<(), HandlerError> {
        let Some(record) = tables::source_job(&self.ctx.store, self.job)? else {
            return self.over().await;
        };
        let mut shell = match SourceJob::load(self.ctx.clone(), ctx.this(), record) {
            Ok(shell) => shell,
            Err(error) => {
                // It can't run; nobody else need wait for its place.
                stand(&self.ctx, self.job, Standing::Away);
                return Err(error);
            }
        };
        if self.crashes >= limits::JOB_CRASHES_MAX {
            // Also if it does not even get as far as to park.
            stand(&self.ctx, self.job, Standing::Away);
            // One more and its supervisor gives the actor up: the job parks itself before, with words for a person.
            let input = Input { attempt: shell.state.attempt, step: None, event: Event::Quarantined };
            ctx.this().cast(Class::Fencing, SourceMessage::Input(input))?;
        } else {
            shell.begin().await?;
        }
        self.shell = Some(shell);
        Ok(())
    }

    async fn handle(&mut self, message: SourceMessage, ctx: &mut Ctx<SourceMessage>) -> Result<(), HandlerError> {
        let Some(shell) = &mut self.shell else { return Ok(()) };
        let before = shell.entries();
        let over = shell.handle(message).await?;
        if shell.entries() > before {
            ctx.progress();
        }
        if over { self.over().await } else { Ok(()) }
    }
}

struct TargetActor {
    ctx: Arc<Context>,
    job: JobId,
    shell: Option<TargetJob>,
}

impl Serve for TargetActor {
    type Message = TargetMessage;

    async fn started(&mut self, ctx: &mut Ctx<TargetMessage>) -> Result<(), HandlerError> {
        let Some(record) = tables::target_job(&self.ctx.store, self.job)? else {
            self.ctx.with_jobs(|running| running.target.remove(&self.job));
            forget(&self.ctx, target_id(self.job));
            return Err(Exit::Normal.into());
        };
        let mut shell = TargetJob::load(self.ctx.clone(), ctx.this(), record)?;
        shell.begin();
        self.shell = Some(shell);
        Ok(())
    }

    async fn handle(&mut self, message: TargetMessage, ctx: &mut Ctx<TargetMessage>) -> Result<(), HandlerError> {
        let Some(shell) = &mut self.shell else { return Ok(()) };
        let before = shell.entries();
        let over = shell.handle(message).await?;
        if shell.entries() > before {
            ctx.progress();
        }
        if over {
            self.ctx.with_jobs(|running| running.target.remove(&self.job));
            forget(&self.ctx, target_id(self.job));
            return Err(Exit::Normal.into());
        }
        Ok(())
    }
}
