//! Recovery is a loop, not a phase of the start. Owns: that an open job which no actor runs does not wait for the next
//! start of the process, whatever lost it its actor.
//! Always: a job that runs is left alone. Not here: what a job does when it goes on (`source_job.rs`, `target_job.rs`).

use std::sync::Arc;

use super::context::Context;
use super::jobs;
use super::mailbox::Class;
use super::serve::{Ctx, HandlerError, Serve};
use crate::types::Millis;

/// How often open jobs are compared with those that run.
const LOOK_EVERY: Millis = Millis(5_000);

/// Time to look.
pub struct Look;

/// Looks for jobs that nobody runs.
pub struct Recovery {
    ctx: Arc<Context>,
}

impl Recovery {
    /// Of the region's jobs.
    pub fn new(ctx: Arc<Context>) -> Recovery {
        Recovery { ctx }
    }
}

impl Serve for Recovery {
    type Message = Look;

    async fn started(&mut self, ctx: &mut Ctx<Look>) -> Result<(), HandlerError> {
        ctx.send_every(LOOK_EVERY, Class::Migration, || Look);
        Ok(())
    }

    async fn handle(&mut self, _: Look, _: &mut Ctx<Look>) -> Result<(), HandlerError> {
        let lost = jobs::run_all(&self.ctx).await?;
        if lost > 0 {
            tracing::warn!(jobs = lost, "open jobs that nobody ran go on");
        }
        Ok(())
    }
}
