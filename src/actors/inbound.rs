//! What other regions send. Owns: who answers which message, and that a durable command is done once.
//! Always: identity comes from the link (a certificate), never from a message: a source speaks for VMs that it has,
//! a target for jobs that came from it. Not here: the wire (`protocol/`), the jobs themselves.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use tokio::io::AsyncWriteExt as _;

use super::call::CallError;
use super::context::Context;
use super::mailbox::Class;
use super::records::TargetJobRecord;
use super::target_job::TargetMessage;
use super::{jobs, tables, vms};
use crate::decision::migration::steps::{Moment, Side, Step};
use crate::decision::migration::target::{self, Event, Input, Target};
use crate::decision::migration::{Offer, TargetAnswer, TargetRequest};
use crate::decision::ownership::VmDecisions;
use crate::drivers::End;
use crate::protocol::bodies::{
    AnnounceMessage, ApiMessage, ApiReply, BulkHello, DirectoryMessage, MigrationMessage, MigrationReply,
};
use crate::protocol::link::{BoxFuture, BulkOffer, Inbound, PeerId, Refusal, RefusalCode, Request};
use crate::protocol::messages::Kind;
use crate::store::{MessageId, Seen, StoreError, TransactError, Work};
use crate::types::{Attempt, IncarnationVerdict, JobId, Lineage, Millis, Place, RegionName, VmId, limits};

/// Answers API requests that were forwarded here; supplied by the assembler once the API stands.
pub type ApiServer = Arc<dyn Fn(RegionName, ApiMessage) -> BoxFuture<'static, ApiReply> + Send + Sync>;

/// The receiving end of all links of a region.
pub struct Receiver {
    ctx: Arc<Context>,
    api: OnceLock<ApiServer>,
}

impl Receiver {
    /// Without an API yet: until there is one, API requests are refused as unavailable.
    pub fn new(ctx: Arc<Context>) -> Receiver {
        Receiver { ctx, api: OnceLock::new() }
    }
    /// The API stands.
    pub fn serve_api(&self, server: ApiServer) {
        // Set once by the assembler; a second time would be its bug and changes nothing.
        let _ = self.api.set(server);
    }
}

fn decode<'a, T: serde::Deserialize<'a>>(body: &'a [u8]) -> Result<T, Refusal> {
    postcard::from_bytes(body).map_err(|error| Refusal::new(RefusalCode::MALFORMED, format!("the body: {error}")))
}

fn encode<T: serde::Serialize>(value: &T) -> Result<Bytes, Refusal> {
    postcard::to_stdvec(value)
        .map(Bytes::from)
        .map_err(|error| Refusal::new(RefusalCode::TOO_LARGE, format!("the answer: {error}")))
}

impl Inbound for Receiver {
    fn request(&self, from: PeerId, request: Request) -> BoxFuture<'static, Result<Bytes, Refusal>> {
        let (ctx, api) = (self.ctx.clone(), self.api.get().cloned());
        Box::pin(async move {
            let acts = matches!(request.kind, Kind::MIGRATION | Kind::ANNOUNCE);
            if acts && ctx.migrations().is_none() {
                // The clusters are still being started: nothing of this can be decided yet.
                return Err(Refusal::busy(Millis(200)));
            }
            match request.kind {
                Kind::MIGRATION => encode(&migration(&ctx, &from.region, decode(&request.body)?).await?),
                Kind::DIRECTORY => {
                    let message: DirectoryMessage = decode(&request.body)?;
                    if let Some((incarnation, number)) = message.acknowledged {
                        forget_answered(&ctx, &from.region, MessageId { incarnation, number }).await?;
                    }
                    ctx.directory.learn(&from.region, from.incarnation, message, ctx.clock.now());
                    Ok(Bytes::new())
                }
                Kind::ANNOUNCE => announced(&ctx, &from, request).await,
                Kind::API => {
                    let message: ApiMessage = decode(&request.body)?;
                    let Some(api) = api else {
                        return Err(Refusal::busy(Millis(200)));
                    };
                    encode(&api(from.region, message).await)
                }
                kind => Err(Refusal::new(RefusalCode::UNKNOWN_KIND, format!("{kind} is not answered here"))),
            }
        })
    }

    fn bulk(&self, from: PeerId, hello: Bytes, offer: BulkOffer) -> BoxFuture<'static, ()> {
        let ctx = self.ctx.clone();
        Box::pin(async move {
            match receive(&ctx, &from.region, &hello).await {
                Ok(mut near) => {
                    let Ok(mut far) = offer.accept().await else { return };
                    const BUFFER: usize = 256 * 1024;
                    let relayed = tokio::io::copy_bidirectional_with_sizes(&mut far, &mut near, BUFFER, BUFFER).await;
                    if let Err(error) = relayed {
                        tracing::debug!(peer = %from, %error, "a channel was cut");
                    }
                    let _ = near.shutdown().await;
                }
                Err(refusal) => offer.refuse(refusal),
            }
        })
    }

    fn datagram(&self, _from: PeerId, _kind: Kind, _body: Bytes) {
        // Heartbeats are the link's own: that one arrived is all that they say.
    }

    fn incarnation_seen(&self, peer: RegionName, lineage: Lineage) -> BoxFuture<'static, IncarnationVerdict> {
        let ctx = self.ctx.clone();
        Box::pin(async move {
            let judged = ctx.store.transact(Work::Finish, move |txn| txn.admit_peer(&peer, &lineage)).await;
            // What can't be remembered can't be accepted.
            judged.unwrap_or(IncarnationVerdict::NotNow)
        })
    }
}

/// Opens the target host's end for a bulk stream of `from`.
async fn receive(
    ctx: &Arc<Context>,
    from: &RegionName,
    hello: &[u8],
) -> Result<Box<dyn crate::drivers::Duplex>, Refusal> {
    let hello: BulkHello = decode(hello)?;
    let key = hello.key;
    let target = look(ctx, key.job)
        .await
        .ok_or_else(|| Refusal::new(RefusalCode::NOT_FOUND, format!("no job {} is received here", key.job)))?;
    if target.from.region != *from {
        return Err(forbidden(from, key.job));
    }
    if target.attempt != key.attempt || target.vm != key.vm {
        let reason = format!("this side is at attempt {} of {}, not at {}", target.attempt, target.vm, key.attempt);
        return Err(Refusal::new(RefusalCode::FENCED, reason));
    }
    let driver = ctx.driver(&target.to.cluster).ok_or_else(|| {
        Refusal::new(RefusalCode::NOT_FOUND, format!("cluster {} is not configured here", target.to.cluster))
    })?;
    driver
        .open_channel(key, hello.channel, End::Target)
        .await
        .map_err(|error| Refusal::new(RefusalCode::DECLINED, error.to_string()))
}

fn forbidden(from: &RegionName, job: JobId) -> Refusal {
    Refusal::new(RefusalCode::FORBIDDEN, format!("{job} does not come from {from}"))
}

async fn look(ctx: &Arc<Context>, job: JobId) -> Option<Target> {
    let slot = ctx.with_jobs(|running| running.target.get(&job).cloned())?;
    slot.call(Class::Migration, limits::REQUEST_MS, TargetMessage::Look).await.ok()
}

/// Answers a message between the sides of a migration, of another region or of this one.
///
/// # Errors
/// A refusal: surely not done.
pub async fn migration(
    ctx: &Arc<Context>,
    from: &RegionName,
    message: MigrationMessage,
) -> Result<MigrationReply, Refusal> {
    match message {
        MigrationMessage::AskDecision { vm, attempt } => {
            let decisions: VmDecisions = tables::decisions(&ctx.store, vm).map_err(store_refusal)?;
            Ok(MigrationReply::Decision(decisions.answer(attempt)))
        }
        MigrationMessage::Ask { job, attempt, vm, from: place, to, request, offer } => {
            if place.region != *from {
                return Err(forbidden(from, job));
            }
            if to.region != ctx.region {
                return Err(Refusal::new(RefusalCode::FORBIDDEN, format!("{to} is not in {}", ctx.region)));
            }
            let asked = AskedTarget { job, attempt, vm, from: place, to };
            asked.answer(ctx, request, offer.map(|offer| *offer)).await
        }
    }
}

fn store_refusal(error: StoreError) -> Refusal {
    Refusal { retry_after: Some(Millis(500)), ..Refusal::new(RefusalCode::BUSY, error.to_string()) }
}

struct AskedTarget {
    job: JobId,
    attempt: Attempt,
    vm: VmId,
    from: Place,
    to: Place,
}

impl AskedTarget {
    async fn answer(
        self,
        ctx: &Arc<Context>,
        request: TargetRequest,
        offer: Option<Offer>,
    ) -> Result<MigrationReply, Refusal> {
        if request == TargetRequest::Reserve
            && let Some(offer) = offer
            && let Some(refused) = self.reserve(ctx, offer).await?
        {
            return Ok(MigrationReply::Target(refused));
        }
        let slot = ctx.with_jobs(|running| running.target.get(&self.job).cloned());
        let Some(slot) = slot else {
            // Over, or never here: the last state answers.
            let ended = tables::target_ended(&ctx.store, self.job).map_err(store_refusal)?;
            let Some(ended) = ended else {
                if tables::target_job(&ctx.store, self.job).map_err(store_refusal)?.is_some() {
                    run_soon(ctx, self.job);
                    return Ok(MigrationReply::Pending);
                }
                let reason = format!("{} has no record of {}", ctx.region, self.job);
                return Err(Refusal::new(RefusalCode::NOT_FOUND, reason));
            };
            if ended.last.from.region != self.from.region {
                return Err(forbidden(&self.from.region, self.job));
            }
            return Ok(match target::answer(&ended.last, self.attempt, &request) {
                Some(answer) => MigrationReply::Target(answer),
                None => MigrationReply::Pending,
            });
        };
        // Below the link's deadline, so that "under way" is an answer and not a silence.
        let deadline = Millis(limits::REQUEST_MS.0 * 4 / 5);
        let (region, attempt) = (self.from.region.clone(), self.attempt);
        let ask = |reply| TargetMessage::Ask(region, attempt, request, reply);
        match slot.call(Class::Migration, deadline, ask).await {
            Ok(Some(answer)) => Ok(MigrationReply::Target(answer)),
            Ok(None) => Err(forbidden(&self.from.region, self.job)),
            Err(CallError::Busy { retry_after_ms }) => Err(Refusal::busy(Millis(retry_after_ms))),
            Err(CallError::Deadline | CallError::Gone) => Ok(MigrationReply::Pending),
        }
    }

    /// The first request makes the job, in one transaction with the promise of room. `Some`: refused.
    async fn reserve(&self, ctx: &Arc<Context>, offer: Offer) -> Result<Option<TargetAnswer>, Refusal> {
        let first = Target::reserved(self.job, self.vm, self.from.clone(), self.to.clone(), offer, self.attempt);
        let record = TargetJobRecord { first, started_at: ctx.clock.wall() };
        if tables::target_job(&ctx.store, self.job).map_err(store_refusal)?.is_some()
            || tables::target_ended(&ctx.store, self.job).map_err(store_refusal)?.is_some()
        {
            return Ok(None);
        }
        ctx.kill.pass(Step::Reserve, Side::Target, Moment::BeforeWrite);
        let inner = ctx.clone();
        let written = ctx
            .store
            .transact(Work::New, move |txn| {
                let job = record.first.job;
                if tables::target_job_in(txn, job)?.is_some() || tables::target_ended_in(txn, job)?.is_some() {
                    return Ok(Ok(()));
                }
                let first = &record.first;
                if first.from.region != inner.region && vms::get(txn, first.vm)?.is_some() {
                    return Ok(Err(format!("{} belongs to this region already", first.vm)));
                }
                let promised = vms::reserve(txn, &inner.ledgers, first)?;
                if promised.is_ok() {
                    tables::put_target_job(txn, &record)?;
                }
                Ok::<_, StoreError>(promised)
            })
            .await;
        match written {
            Ok(Ok(())) => {}
            Ok(Err(why)) => return Ok(Some(TargetAnswer::Refused { why })),
            // Below the reserve of free space new work is refused, and says so.
            Err(TransactError::Store(error @ StoreError::NoSpace { .. })) => {
                return Ok(Some(TargetAnswer::Refused { why: error.to_string() }));
            }
            Err(error) => return Err(store_refusal(error.flatten())),
        }
        ctx.kill.pass(Step::Reserve, Side::Target, Moment::AfterWrite);
        // In a task of its own: the asker's deadline must not leave a job without its actor.
        let (inner, job) = (ctx.clone(), self.job);
        let _ = tokio::spawn(async move { jobs::run_target(&inner, job).await }).await;
        ctx.kill.pass(Step::Reserve, Side::Target, Moment::AfterEffect);
        Ok(None)
    }
}

/// What the sender knows to be answered need not be remembered here.
async fn forget_answered(ctx: &Arc<Context>, from: &RegionName, upto: MessageId) -> Result<(), Refusal> {
    let from = from.clone();
    let pruned = ctx.store.transact(Work::Finish, move |txn| txn.prune_seen(&from, upto)).await;
    pruned.map(|_| ()).map_err(|error| store_refusal(error.flatten()))
}

/// A durable command: done in the same transaction as its dedup row, so once.
async fn announced(ctx: &Arc<Context>, from: &PeerId, request: Request) -> Result<Bytes, Refusal> {
    let message: AnnounceMessage = decode(&request.body)?;
    let Some(id) = request.id else {
        return Err(Refusal::new(RefusalCode::MALFORMED, "a command without an id"));
    };
    let region = from.region.clone();
    let id = MessageId { incarnation: id.incarnation, number: id.number };
    let own = ctx.region.clone();
    let kept = message.clone();
    ctx.store
        .transact(Work::Finish, move |txn| {
            if txn.seen(&region, id)? != Seen::New {
                return Ok(());
            }
            txn.mark_seen(&region, id, &[])?;
            if let AnnounceMessage::VmArrived { vm, moved } = &kept {
                note_arrival(txn, &own, &region, *vm, moved)?;
            }
            Ok::<_, StoreError>(())
        })
        .await
        .map_err(|error| store_refusal(error.flatten()))?;
    // Telling a job is repeatable, and done after each delivery: a crash in between is made up for by the next one.
    if let AnnounceMessage::Discard { job, attempt, .. } = message {
        discard(ctx, &from.region, job, attempt).await?;
    }
    Ok(Bytes::new())
}

/// Another region says that it has a VM: kept as the place to ask, if this region does not own it itself.
fn note_arrival(
    txn: &mut crate::store::Txn<'_, '_>,
    own: &RegionName,
    from: &RegionName,
    vm: VmId,
    moved: &crate::decision::ownership::Moved,
) -> Result<(), StoreError> {
    if moved.to.region != *from || moved.to.region == *own || vms::get(txn, vm)?.is_some() {
        return Ok(());
    }
    let known = tables::decisions_in(txn, vm)?;
    if known.moved.as_ref().is_some_and(|known| known.fence < moved.fence) || known == VmDecisions::default() {
        tables::put_decisions(txn, vm, &VmDecisions { moved: Some(moved.clone()), ..known })?;
    }
    Ok(())
}

/// Tells the target's side that there is no next attempt, and waits until it is journalled.
async fn discard(ctx: &Arc<Context>, from: &RegionName, job: JobId, attempt: Attempt) -> Result<(), Refusal> {
    let slot = ctx.with_jobs(|running| running.target.get(&job).cloned());
    let Some(slot) = slot else {
        let open = tables::target_job(&ctx.store, job).map_err(store_refusal)?.is_some();
        // Not running yet: the sender tries again.
        if open {
            run_soon(ctx, job);
            return Err(Refusal::busy(Millis(200)));
        }
        return Ok(());
    };
    let Ok(target) = slot.call(Class::Migration, limits::REQUEST_MS, TargetMessage::Look).await else {
        return Err(Refusal::busy(Millis(200)));
    };
    if target.from.region != *from {
        return Err(forbidden(from, job));
    }
    // The source's last attempt may never have been prepared here: what is here belongs to the one that was.
    let attempt = attempt.min(target.attempt);
    let input = Input { attempt, step: None, event: Event::Asked(TargetRequest::Discard) };
    slot.cast(Class::Migration, TargetMessage::Input(input)).map_err(|_| Refusal::busy(Millis(200)))?;
    // Behind it in the same class: what it says is journalled. A job that ended meanwhile is answered the next time.
    match slot.call(Class::Migration, limits::REQUEST_MS, TargetMessage::Look).await {
        Ok(t) if t.owns() || matches!(t.phase, target::Phase::Discarding { .. } | target::Phase::Discarded) => Ok(()),
        Ok(_) | Err(_) => Err(Refusal::busy(Millis(200))),
    }
}

/// A job that is in the store and has no actor gets one.
fn run_soon(ctx: &Arc<Context>, job: JobId) {
    let ctx = ctx.clone();
    tokio::spawn(async move { jobs::run_target(&ctx, job).await });
}
