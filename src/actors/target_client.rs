//! How a source reaches its target: over the link, or inside the region. Owns: that both look the same to a job.

use std::sync::Arc;

use super::context::Context;
use super::source_job::SourceJob;
use crate::decision::migration::{Offer, TargetAnswer, TargetRequest};
use crate::drivers::{Channel, Duplex, End};
use crate::protocol::TraceId;
use crate::protocol::bodies::{BulkHello, MigrationMessage, MigrationReply};
use crate::protocol::link::{LinkError, RefusalCode, Request};
use crate::protocol::messages::Kind;
use crate::types::{Attempt, JobId, Place, SwitchKey, VmId, limits};

/// Who asks whom about what.
#[derive(Debug, Clone)]
pub struct Asked {
    job: JobId,
    attempt: Attempt,
    vm: VmId,
    from: Place,
    /// The target.
    pub to: Place,
    offer: Offer,
}

impl Asked {
    /// For the present attempt of a job.
    pub fn of(job: &SourceJob) -> Asked {
        let s = &job.state;
        Asked {
            job: s.job,
            attempt: s.attempt,
            vm: s.vm,
            from: s.from.clone(),
            to: s.to.clone(),
            offer: Offer { spec: job.record.spec.clone(), next_fence: s.next_fence },
        }
    }
}

/// Asks once. `None`: it is under way there.
///
/// # Errors
/// In words, if there is no answer; asking again is safe.
pub async fn ask(ctx: &Arc<Context>, asked: &Asked, request: &TargetRequest) -> Result<Option<TargetAnswer>, String> {
    let message = MigrationMessage::Ask {
        job: asked.job,
        attempt: asked.attempt,
        vm: asked.vm,
        from: asked.from.clone(),
        to: asked.to.clone(),
        request: request.clone(),
        offer: (*request == TargetRequest::Reserve).then(|| Box::new(asked.offer.clone())),
    };
    let reply = if asked.to.region == ctx.region {
        super::inbound::migration(ctx, &ctx.region, message).await.map_err(|refusal| refusal.to_string())
    } else {
        send(ctx, asked, &message).await
    };
    match reply? {
        MigrationReply::Target(answer) => Ok(Some(answer)),
        MigrationReply::Pending => Ok(None),
        MigrationReply::Decision(_) => Err("an answer to another question".into()),
    }
}

async fn send(ctx: &Arc<Context>, asked: &Asked, message: &MigrationMessage) -> Result<MigrationReply, String> {
    let link = ctx.link(&asked.to.region).ok_or_else(|| format!("no peer {} is configured", asked.to.region))?;
    let body = postcard::to_stdvec(message).map_err(|error| error.to_string())?;
    let request = Request::query(Kind::MIGRATION, asked.job.to_string(), body, limits::REQUEST_MS)
        .traced(TraceId::of_job(asked.job));
    match link.request(request).await {
        Ok(bytes) => postcard::from_bytes(&bytes).map_err(|error| format!("its answer can't be read: {error}")),
        // It never heard of the job: what was received, if anything, is gone with its store.
        Err(LinkError::Refused { refusal, .. }) if refusal.code == RefusalCode::NOT_FOUND => {
            Ok(MigrationReply::Target(TargetAnswer::Lost { why: refusal.reason }))
        }
        Err(LinkError::Refused { refusal, .. }) if refusal.code == RefusalCode::FORBIDDEN => {
            Ok(MigrationReply::Target(TargetAnswer::Refused { why: refusal.reason }))
        }
        Err(error) => Err(error.to_string()),
    }
}

/// Opens the target's end of a channel.
///
/// # Errors
/// In words; opening again is safe.
pub async fn open_channel(
    ctx: &Arc<Context>,
    asked: &Asked,
    key: SwitchKey,
    channel: Channel,
) -> Result<Box<dyn Duplex>, String> {
    if asked.to.region == ctx.region {
        let driver = ctx.driver(&asked.to.cluster).ok_or("the target cluster is not configured here")?;
        return driver.open_channel(key, channel, End::Target).await.map_err(|error| error.to_string());
    }
    let link = ctx.link(&asked.to.region).ok_or_else(|| format!("no peer {} is configured", asked.to.region))?;
    let hello = postcard::to_stdvec(&BulkHello { key, channel }).map_err(|error| error.to_string())?;
    let stream = link.open_bulk(hello.into(), limits::REQUEST_MS).await.map_err(|error| error.to_string())?;
    Ok(Box::new(stream))
}
