//! Links as injected faults have them, from this end: what is sent over one, and what comes in.
//! Always: a message that gets lost is one of which nothing is known: it may have been done; an answer never comes for
//! one that was not sent. Not here: what is lost or late (`ways.rs`).

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::watch;

use super::stream::FaultyStream;
use super::ways::Ways;
use crate::protocol::link::{
    BoxFuture, BulkOffer, BulkStream, Inbound, Link, LinkError, LinkState, PeerId, Refusal, Request,
};
use crate::protocol::messages::Kind;
use crate::types::limits::REQUEST_MS;
use crate::types::{IncarnationVerdict, Lineage, Millis, RegionName, Toward};

/// A link.
pub struct FaultyLink {
    ways: Arc<Ways>,
    inner: Arc<dyn Link>,
}

impl FaultyLink {
    /// `inner` by `ways`.
    pub fn by(ways: &Arc<Ways>, inner: Arc<dyn Link>) -> Arc<dyn Link> {
        Arc::new(FaultyLink { ways: ways.clone(), inner })
    }

    /// There and back, within `deadline`.
    async fn there_and_back<T>(
        &self,
        deadline: Millis,
        work: impl Future<Output = Result<T, LinkError>>,
    ) -> Result<T, LinkError> {
        let peer = self.inner.peer();
        let both_ways = async {
            self.ways.cross(peer, Toward::Out).await;
            let done = work.await?;
            self.ways.cross(peer, Toward::In).await;
            Ok(done)
        };
        // What the sender of a lost message knows is that no answer came.
        let silence = |_| Err(LinkError::Unknown { peer: peer.clone(), why: "no answer came by its deadline" });
        tokio::time::timeout(deadline.duration(), both_ways).await.unwrap_or_else(silence)
    }
}

impl Link for FaultyLink {
    fn peer(&self) -> &RegionName {
        self.inner.peer()
    }
    fn request(&self, request: Request) -> BoxFuture<'_, Result<Bytes, LinkError>> {
        let deadline = request.deadline;
        Box::pin(self.there_and_back(deadline, self.inner.request(request)))
    }
    fn datagram(&self, kind: Kind, body: Bytes) -> Result<(), LinkError> {
        let way = self.ways.way(self.inner.peer(), Toward::Out);
        if way.cut || self.ways.loses(way.lose_permille) {
            return Ok(());
        }
        if way.delay.0 == 0 {
            return self.inner.datagram(kind, body);
        }
        let (inner, late) = (self.inner.clone(), way.delay);
        tokio::spawn(async move {
            tokio::time::sleep(late.duration()).await;
            // Handed over is all that was promised.
            let _ = inner.datagram(kind, body);
        });
        Ok(())
    }
    fn open_bulk(&self, hello: Bytes, deadline: Millis) -> BoxFuture<'_, Result<BulkStream, LinkError>> {
        Box::pin(async move {
            let stream = self.there_and_back(deadline, self.inner.open_bulk(hello, deadline)).await?;
            Ok(FaultyStream::of(&self.ways, self.inner.peer(), stream))
        })
    }
    fn state(&self) -> LinkState {
        let late = [Toward::Out, Toward::In].map(|toward| self.ways.way(self.inner.peer(), toward).delay.0);
        let state = self.inner.state();
        // The way is as long as what passes it finds it: estimates rest on that.
        let rtt_us = state.rtt_us.map(|rtt| rtt + late.iter().sum::<u64>() * 1_000);
        LinkState { rtt_us, ..state }
    }
    fn connected(&self) -> watch::Receiver<bool> {
        self.inner.connected()
    }
    fn sever(&self) {
        self.inner.sever();
    }
}

/// What a region serves.
pub struct FaultyInbound {
    ways: Arc<Ways>,
    inner: Arc<dyn Inbound>,
}

impl FaultyInbound {
    /// `inner` by `ways`.
    pub fn by(ways: &Arc<Ways>, inner: Arc<dyn Inbound>) -> Arc<dyn Inbound> {
        Arc::new(FaultyInbound { ways: ways.clone(), inner })
    }
}

impl Inbound for FaultyInbound {
    fn request(&self, from: PeerId, request: Request) -> BoxFuture<'static, Result<Bytes, Refusal>> {
        let (ways, inner) = (self.ways.clone(), self.inner.clone());
        Box::pin(async move {
            let peer = from.region.clone();
            ways.cross(&peer, Toward::In).await;
            let answer = inner.request(from, request).await;
            ways.cross(&peer, Toward::Out).await;
            answer
        })
    }
    fn bulk(&self, from: PeerId, hello: Bytes, offer: BulkOffer) -> BoxFuture<'static, ()> {
        let (ways, inner) = (self.ways.clone(), self.inner.clone());
        Box::pin(async move {
            let peer = from.region.clone();
            // Whoever offered it does not wait longer, and an offer that is dropped is refused.
            if tokio::time::timeout(REQUEST_MS.duration(), ways.cross(&peer, Toward::In)).await.is_err() {
                return;
            }
            let wrapped = offer.wrapped(move |stream| FaultyStream::of(&ways, &peer, stream));
            inner.bulk(from, hello, wrapped).await;
        })
    }
    fn datagram(&self, from: PeerId, kind: Kind, body: Bytes) {
        let way = self.ways.way(&from.region, Toward::In);
        if !way.cut && !self.ways.loses(way.lose_permille) {
            self.inner.datagram(from, kind, body);
        }
    }
    fn incarnation_seen(&self, peer: RegionName, lineage: Lineage) -> BoxFuture<'static, IncarnationVerdict> {
        let (ways, inner) = (self.ways.clone(), self.inner.clone());
        Box::pin(async move {
            // No connection comes about: whoever dials hears nothing until it gives up.
            ways.joined(&peer).await;
            inner.incarnation_seen(peer, lineage).await
        })
    }
}
