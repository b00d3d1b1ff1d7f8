//! Shell of a link's durable half: delivers the outbox to one peer, in order, and tells it what this region has.
//! Owns: when to try again: at once when a command was given or the link came up, after a pause when it was not taken.
//! Always: a command is acknowledged in the store only after the peer answered; the id was given
//! in the transaction that enqueued it, so a repeat is known as one. Not here: the connection (`protocol/`).

use std::sync::Arc;

use tokio::sync::watch;

use super::cluster::ClusterMessage;
use super::context::Context;
use super::inbound::Receiver;
use super::mailbox::{Class, SendError};
use super::serve::{Ctx, HandlerError, Serve};
use crate::planted::{self, Bug};
use crate::protocol::bodies::DirectoryMessage;
use crate::protocol::envelope;
use crate::protocol::link::{Inbound as _, Link, LinkError, PeerId, Request};
use crate::protocol::messages::Kind;
use crate::store::{MessageId, StoreError, Work};
use crate::types::{ClusterView, Millis, RegionName, limits};

/// When a command that was not taken is tried again.
const DELIVER_AGAIN: Millis = Millis(100);
/// How often a region tells the others of its clusters.
const TELL_EVERY: Millis = Millis(1_000);

/// What a deliverer is told, by its own timers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkMessage {
    /// Deliver what waits.
    Deliver,
    /// The same, after a pause.
    Again,
    /// Tell the peer what this region has.
    Tell,
}

/// Delivers to one peer.
pub struct Deliverer {
    ctx: Arc<Context>,
    peer: RegionName,
    /// None for this region itself: what it tells itself goes through the same table.
    link: Option<Arc<dyn Link>>,
    receiver: Arc<Receiver>,
    generation: u64,
    told: Option<MessageId>,
    /// The peer was told of this region since the link came up.
    introduced: bool,
    /// Why the first command that waits was not taken.
    refused: Option<String>,
    /// It is tried again soon.
    again: bool,
}

impl Deliverer {
    /// For a peer with a link, or for this region itself.
    pub fn new(ctx: Arc<Context>, peer: RegionName, receiver: Arc<Receiver>) -> Deliverer {
        let link = ctx.link(&peer);
        Deliverer {
            ctx,
            peer,
            link,
            receiver,
            generation: 0,
            told: None,
            introduced: false,
            refused: None,
            again: false,
        }
    }

    /// Tells whether nothing waits that could be delivered now.
    async fn deliver(&mut self) -> Result<bool, StoreError> {
        let cut_off = self.link.as_ref().is_some_and(|link| !*link.connected().borrow());
        if cut_off {
            self.introduced = false;
            return Ok(true);
        }
        if !self.introduced {
            // A link that just came up knows nothing of this region: not only at the next beat.
            self.introduced = true;
            self.tell().await;
        }
        for (id, body) in self.ctx.store.outbox(&self.peer)? {
            if !self.send(id, body).await && !planted::is(Bug::LostOutboxEntry) {
                // In order: what comes after waits for it.
                return Ok(false);
            }
            let (peer, to_itself) = (self.peer.clone(), self.link.is_none());
            self.ctx
                .store
                .transact(Work::Finish, move |txn| {
                    if to_itself {
                        txn.prune_seen(&peer, id)?;
                    }
                    txn.acknowledge(&peer, id)
                })
                .await
                .map_err(crate::store::TransactError::flatten)?;
        }
        Ok(true)
    }

    async fn send(&mut self, id: MessageId, body: Vec<u8>) -> bool {
        let wire = envelope::MessageId { incarnation: id.incarnation, number: id.number };
        let request = Request::command(wire, Kind::ANNOUNCE, "region", body, limits::REQUEST_MS);
        let answered = match &self.link {
            Some(link) => link.request(request).await.map_err(|error| match error {
                LinkError::Refused { refusal, .. } => refusal.to_string(),
                other => other.to_string(),
            }),
            None => {
                let own = PeerId { region: self.ctx.region.clone(), incarnation: self.ctx.store.incarnation() };
                self.receiver.request(own, request).await.map_err(|refusal| refusal.to_string())
            }
        };
        match (&answered, &self.refused) {
            (Ok(_), _) => self.refused = None,
            // Once per reason, or the log would say it ten times a second.
            (Err(why), known) if known.as_ref() != Some(why) => {
                tracing::warn!(peer = %self.peer, %id, why, "a command is not delivered; it is tried again");
                self.refused = Some(why.clone());
            }
            (Err(_), _) => {}
        }
        answered.is_ok()
    }

    /// The watermark of answered commands, if it rose since it was last told.
    fn acknowledged_news(&mut self) -> Option<(u64, u64)> {
        let mark = self.ctx.store.acknowledged(&self.peer).ok().flatten()?;
        let news = self.told != Some(mark);
        self.told = Some(mark);
        news.then_some((mark.incarnation, mark.number))
    }

    async fn tell(&mut self) {
        let Some(link) = self.link.clone() else { return };
        if !*link.connected().borrow() {
            return;
        }
        self.generation += 1;
        let message = DirectoryMessage {
            generation: self.generation,
            // Only told on change: the receiver writes for it.
            acknowledged: self.acknowledged_news(),
            clusters: own_clusters(&self.ctx).await,
        };
        let Ok(body) = postcard::to_stdvec(&message) else { return };
        let request = Request::query(Kind::DIRECTORY, "directory", body, limits::REQUEST_MS);
        if let Err(error) = link.request(request).await {
            self.told = None;
            tracing::debug!(peer = %self.peer, %error, "the directory was not told");
        }
    }
}

impl Serve for Deliverer {
    type Message = LinkMessage;

    async fn started(&mut self, ctx: &mut Ctx<LinkMessage>) -> Result<(), HandlerError> {
        let (mut changes, this) = (self.ctx.store.outbox_changes(), ctx.this());
        let mut up = self.link.as_ref().map(|link| link.connected());
        ctx.spawn(async move {
            while this.cast(Class::Control, LinkMessage::Deliver) != Err(SendError::Gone) {
                tokio::select! {
                    biased;
                    changed = changes.changed() => if changed.is_err() { return },
                    () = changed(&mut up) => {}
                }
            }
        });
        if self.link.is_some() {
            ctx.send_every(TELL_EVERY, Class::Telemetry, || LinkMessage::Tell);
        }
        Ok(())
    }

    async fn handle(&mut self, message: LinkMessage, ctx: &mut Ctx<LinkMessage>) -> Result<(), HandlerError> {
        match message {
            LinkMessage::Deliver => {}
            LinkMessage::Again => self.again = false,
            LinkMessage::Tell => {
                self.tell().await;
                return Ok(());
            }
        }
        if !self.deliver().await? && !std::mem::replace(&mut self.again, true) {
            ctx.send_after(DELIVER_AGAIN, Class::Control, LinkMessage::Again);
        }
        Ok(())
    }
}

/// Resolves when the link came up or went down.
async fn changed(up: &mut Option<watch::Receiver<bool>>) {
    if let Some(up) = up
        && up.changed().await.is_ok()
    {
        return;
    }
    // A region is never cut off from itself, and a link that is gone does not come back.
    std::future::pending().await
}

/// What this region's clusters say of themselves now. One that does not answer is left out rather than waited for.
pub async fn own_clusters(ctx: &Context) -> Vec<ClusterView> {
    let mut views = Vec::new();
    for id in ctx.cluster_ids() {
        let Some(cluster) = ctx.cluster(&id) else { continue };
        if let Ok(view) = cluster.actor.call(Class::Control, limits::HEARTBEAT_MS, ClusterMessage::View).await {
            views.push(view);
        }
    }
    views
}
