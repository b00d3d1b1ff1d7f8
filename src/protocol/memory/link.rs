//! [`Link`] over a [`Net`]. Owns: how a message travels, gets lost, is doubled or overtaken.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{oneshot, watch};
use tokio::time::{sleep, timeout};

use super::super::envelope::{Head, frame};
use super::super::link::{
    BULK_HELLO_BYTES_MAX, BoxFuture, BulkOffer, BulkStream, Link, LinkError, LinkState, PeerId, Refusal, RefusalCode,
    Request,
};
use super::super::messages::Kind;
use super::super::refusals::Refusals;
use super::pipe;
use super::{Net, Node};
use crate::types::{IncarnationVerdict, Millis, RegionName};

/// One end of a link in memory.
pub(super) struct MemoryLink {
    net: Net,
    from: RegionName,
    to: RegionName,
    refusals: Arc<Refusals>,
}

/// What the dice said about one message.
struct Fate {
    out: Millis,
    back: Millis,
    lost: bool,
    reply_lost: bool,
    /// A second copy arrives so much later.
    again: Option<Millis>,
}

impl MemoryLink {
    pub(super) fn new(net: Net, from: RegionName, to: RegionName) -> MemoryLink {
        MemoryLink { net, from, to, refusals: Arc::default() }
    }

    fn not_sent(&self, why: &'static str) -> LinkError {
        LinkError::NotSent { peer: self.to.clone(), why }
    }
    fn refused(&self, refusal: Refusal) -> LinkError {
        self.refusals.count(refusal.code.name(), &self.to, &refusal.reason);
        LinkError::Refused { peer: self.to.clone(), refusal }
    }

    fn fate(&self, bytes: usize) -> Fate {
        let mut state = self.net.lock();
        let (from, to) = (&self.from, &self.to);
        let faults = state.direction(from, to).faults;
        let back_faults = state.direction(to, from).faults;
        state.direction(from, to).bytes += bytes as u64;
        let mut out = state.travel(from, to);
        if state.chance(faults.reorder_permille) {
            out.0 += state.rng.u64(0..=3 * faults.delay.0 + 1);
        }
        let again = state.chance(faults.duplicate_permille);
        let again = again.then(|| Millis(state.rng.u64(0..=2 * faults.delay.0 + 1)));
        let (lost, reply_lost) = (state.chance(faults.loss_permille), state.chance(back_faults.loss_permille));
        Fate { out, back: state.travel(to, from), lost, reply_lost, again }
    }

    /// Both ends, once each has accepted the other's incarnation, which it has so long for.
    async fn session(&self, within: Millis) -> Result<(Node, Node), LinkError> {
        let greeted = timeout(within.duration(), self.greet()).await;
        greeted.unwrap_or_else(|_| Err(self.not_sent("the other end did not say hello within the deadline")))
    }

    async fn greet(&self) -> Result<(Node, Node), LinkError> {
        let (us, them) = {
            let state = self.net.lock();
            (state.nodes.get(&self.from).cloned(), state.nodes.get(&self.to).cloned())
        };
        let us = us.ok_or_else(|| self.not_sent("this region has left"))?;
        let them = them.ok_or_else(|| self.not_sent("not connected"))?;
        let key = (us.id.clone().min(them.id.clone()), us.id.clone().max(them.id.clone()));
        if self.net.lock().sessions.contains(&key) {
            return Ok((us, them));
        }
        for (judge, judged) in [(&them, &us), (&us, &them)] {
            let judging = judge.inbound.incarnation_seen(judged.id.region.clone(), judged.lineage.clone());
            let Some(verdict) = judge.stop.run_until_cancelled(judging).await else {
                return Err(self.not_sent("an end died before it had judged the other"));
            };
            match verdict {
                IncarnationVerdict::Accept => {}
                IncarnationVerdict::NotNow => {
                    let reason = "the incarnation can't be judged now".to_owned();
                    return Err(self.refused(Refusal::new(RefusalCode::BUSY, reason)));
                }
                IncarnationVerdict::Stale => {
                    let reason = format!("{} knows a later life of the store of {}", judge.id.region, judged.id.region);
                    return Err(self.refused(Refusal::new(RefusalCode::STALE_INCARNATION, reason)));
                }
            }
        }
        self.net.lock().sessions.insert(key);
        Ok((us, them))
    }

    fn is_up(&self) -> bool {
        *self.net.lock().up(&self.from, &self.to).borrow()
    }
}

/// Whether something sent from `from` arrives at `to` now; notes that it was heard.
fn arrives(net: &Net, from: &RegionName, to: &RegionName) -> bool {
    let now = net.clock.now();
    let mut state = net.lock();
    let direction = state.direction(from, to);
    let arrives = !*direction.cut.borrow();
    if arrives {
        direction.heard = Some(now);
    }
    arrives
}

/// Takes in a frame as the QUIC link does: envelope first, then identity, then kind.
fn take_in(frame: &Bytes, peer: &PeerId) -> Result<Request, Refusal> {
    let malformed = |e: super::super::envelope::DecodeError| Refusal::new(RefusalCode::MALFORMED, e.to_string());
    let (head, length) = Head::decode(frame).map_err(malformed)?;
    if head.region != peer.region || head.incarnation != peer.incarnation {
        return Err(Refusal::new(RefusalCode::IDENTITY, "the sender is not who it says"));
    }
    if head.kind.name().is_none() {
        return Err(Refusal::new(RefusalCode::UNKNOWN_KIND, format!("{} is not known here", head.kind)));
    }
    Ok(Request::from_parts(head, frame.slice(length..)))
}

/// Has `node` answer `frame`; no answer if it dies or panics meanwhile.
async fn serve(node: Node, from: PeerId, frame: Bytes) -> Option<Result<Bytes, Refusal>> {
    let request = match take_in(&frame, &from) {
        Ok(request) => request,
        Err(refusal) => return Some(Err(refusal)),
    };
    let deadline = request.deadline;
    let stop = node.stop.clone();
    let task = tokio::spawn(async move {
        let answer = timeout(deadline.duration(), node.inbound.request(from, request));
        stop.run_until_cancelled(answer).await
    });
    task.await.ok().flatten().and_then(Result::ok)
}

impl Link for MemoryLink {
    fn peer(&self) -> &RegionName {
        &self.to
    }

    fn request(&self, request: Request) -> BoxFuture<'_, Result<Bytes, LinkError>> {
        Box::pin(async move {
            request.check().map_err(|refusal| self.refused(refusal))?;
            if !self.is_up() {
                return Err(self.not_sent("not connected"));
            }
            let (us, them) = self.session(request.deadline).await?;
            let unknown = |why| LinkError::Unknown { peer: self.to.clone(), why };
            let frame = frame(&request.head(&us.id), &request.body);
            let fate = self.fate(frame.len());
            let net = self.net.clone();
            let (from, to) = (self.from.clone(), self.to.clone());
            let (answer, mut answered) = oneshot::channel();
            // In a task of its own: a caller that gives up does not call back what it has sent.
            let deadline = request.deadline.duration();
            tokio::spawn(async move {
                sleep(fate.out.duration()).await;
                if fate.lost || !arrives(&net, &from, &to) {
                    // The caller waits in vain, as it does for a lost packet.
                    return sleep(deadline).await;
                }
                if let Some(after) = fate.again {
                    let (node, id, frame) = (them.clone(), us.id.clone(), frame.clone());
                    tokio::spawn(async move {
                        sleep(after.duration()).await;
                        serve(node, id, frame).await
                    });
                }
                let Some(result) = serve(them, us.id, frame).await else { return };
                sleep(fate.back.duration()).await;
                if fate.reply_lost || !arrives(&net, &to, &from) {
                    return sleep(deadline).await;
                }
                // A caller that has given up does not care.
                let _ = answer.send(result);
            });
            let mut up = self.connected();
            let answer = tokio::select! {
                biased;
                answer = &mut answered => answer.map_err(|_| unknown("it broke off")),
                _ = up.wait_for(|up| !up) => Err(unknown("the connection broke")),
                () = sleep(deadline) => Err(unknown("no answer within the deadline")),
            };
            answer?.map_err(|refusal| self.refused(refusal))
        })
    }

    fn datagram(&self, kind: Kind, body: Bytes) -> Result<(), LinkError> {
        if !self.is_up() {
            return Err(self.not_sent("not connected"));
        }
        let (us, them) = {
            let state = self.net.lock();
            match (state.nodes.get(&self.from).cloned(), state.nodes.get(&self.to).cloned()) {
                (Some(us), Some(them)) => (us.id, them),
                _ => return Err(self.not_sent("not connected")),
            }
        };
        let fate = self.fate(body.len());
        let copies: Vec<Millis> = [Some(fate.out), fate.again.map(|again| Millis(fate.out.0 + again.0))]
            .into_iter()
            .flatten()
            .filter(|_| !fate.lost)
            .collect();
        for after in copies {
            let (net, us, them, body) = (self.net.clone(), us.clone(), them.clone(), body.clone());
            tokio::spawn(async move {
                sleep(after.duration()).await;
                if arrives(&net, &us.region, &them.id.region) && !them.stop.is_cancelled() {
                    them.inbound.datagram(us, kind, body);
                }
            });
        }
        Ok(())
    }

    fn open_bulk(&self, hello: Bytes, deadline: Millis) -> BoxFuture<'_, Result<BulkStream, LinkError>> {
        Box::pin(async move {
            if hello.len() > BULK_HELLO_BYTES_MAX {
                return Err(
                    self.refused(Refusal::new(RefusalCode::TOO_LARGE, "the hello of a bulk stream is too long"))
                );
            }
            if !self.is_up() {
                return Err(self.not_sent("not connected"));
            }
            let (us, them) = self.session(deadline).await?;
            let opening = async {
                sleep(self.fate(hello.len()).out.duration()).await;
                if !arrives(&self.net, &self.from, &self.to) {
                    return Err(LinkError::Unknown { peer: self.to.clone(), why: "the link is cut" });
                }
                let (offer, answer) = oneshot::channel();
                let (stop, inbound) = (them.stop.clone(), Arc::clone(&them.inbound));
                let serving = inbound.bulk(us.id.clone(), hello, BulkOffer(offer));
                tokio::spawn(async move { stop.run_until_cancelled(serving).await });
                let declined = || Refusal::new(RefusalCode::DECLINED, "the stream was declined");
                let take = answer.await.unwrap_or_else(|_| Err(declined())).map_err(|r| self.refused(r))?;
                let travel = self.net.lock().travel(&self.to, &self.from);
                sleep(travel.duration()).await;
                let (ours, theirs) = pipe::pair(&self.net, &us, &them);
                // Who accepted and went away is told by the broken stream.
                let _ = take.send(theirs);
                Ok(ours)
            };
            match timeout(deadline.duration(), opening).await {
                Ok(opened) => opened,
                Err(_) => Err(LinkError::Unknown { peer: self.to.clone(), why: "no answer within the deadline" }),
            }
        })
    }

    fn state(&self) -> LinkState {
        let now = self.net.clock.now();
        let mut state = self.net.lock();
        let up = *state.up(&self.from, &self.to).borrow();
        let rtt =
            state.direction(&self.from, &self.to).faults.delay.0 + state.direction(&self.to, &self.from).faults.delay.0;
        let back = state.direction(&self.to, &self.from);
        let (last_heard, bytes_received) = (back.heard.map(|heard| now.since(heard)), back.bytes + back.bulk_bytes);
        let there = state.direction(&self.from, &self.to);
        let (bytes_sent, bandwidth_bytes_s) = (there.bytes + there.bulk_bytes, there.faults.bulk_bytes_s);
        let reconnects = state.reconnects.get(&super::pair(&self.from, &self.to)).copied().unwrap_or(0);
        LinkState {
            connected: up,
            bulk_connected: up,
            incarnation: state.nodes.get(&self.to).map(|node| node.id.incarnation),
            rtt_us: Some(rtt * 1000),
            last_heard,
            bytes_sent,
            bytes_received,
            bandwidth_bytes_s,
            reconnects: reconnects.saturating_sub(1),
            refusals: BTreeMap::from_iter(self.refusals.snapshot()),
            last_error: None,
            refused: None,
            since: Millis(0),
            loss_permille: None,
        }
    }

    fn connected(&self) -> watch::Receiver<bool> {
        self.net.lock().up(&self.from, &self.to).subscribe()
    }
}
