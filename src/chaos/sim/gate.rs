//! What stands between one life of a simulated node and the world. Owns: that a dead life reaches nobody any more, and
//! that one which is held (SIGSTOP) reaches nobody until it goes on.
//! Always: everything that a node does to others or hears from them goes through its gate: links, hosts, clients. Its
//! disk is stopped beside it. So a life that was killed may still compute, but has no effect, as if it did not.
//! Not here: who kills or holds whom (`faults.rs`), what the disk keeps (`region.rs`).

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::drivers::{self, Channel, Duplex, End, HostCall, HostError, HostReply, Hypervisor, SwitchKey};
use crate::protocol::link::{
    BoxFuture, BulkOffer, BulkStream, Inbound, Link, LinkError, LinkState, PeerId, Refusal, Request,
};
use crate::protocol::messages::Kind;
use crate::types::{IncarnationVerdict, Lineage, Millis, OperationId, RegionName};

/// One life's way to the world. A copy is the same one.
#[derive(Debug, Clone)]
pub struct Gate {
    dead: CancellationToken,
    held: Arc<watch::Sender<bool>>,
}

impl Gate {
    /// Of a life that begins. `held`: it begins stopped.
    pub fn open(held: bool) -> Gate {
        Gate { dead: CancellationToken::new(), held: Arc::new(watch::Sender::new(held)) }
    }
    /// Ends the life.
    pub fn kill(&self) {
        self.dead.cancel();
    }
    /// Whether it has ended.
    pub fn is_dead(&self) -> bool {
        self.dead.is_cancelled()
    }
    /// Cancelled when it ends.
    pub fn token(&self) -> CancellationToken {
        self.dead.clone()
    }
    /// Resolves when it has ended.
    pub async fn died(&self) {
        self.dead.cancelled().await;
    }
    /// Stops it, or lets it go on.
    pub fn hold(&self, held: bool) {
        self.held.send_replace(held);
    }

    /// Resolves when the life goes on; never if it has ended.
    pub async fn pass(&self) {
        let mut held = self.held.subscribe();
        tokio::select! {
            biased;
            () = self.dead.cancelled() => {}
            // The sender lives in the gate.
            _ = held.wait_for(|held| !held) => return,
        }
        std::future::pending().await
    }

    /// Does `work` as far as the life reaches: begins it when it goes on, and hears of its end when it does.
    pub async fn through<T>(&self, work: impl Future<Output = T>) -> T {
        self.pass().await;
        let done = tokio::select! {
            biased;
            () = self.dead.cancelled() => std::future::pending().await,
            done = work => done,
        };
        self.pass().await;
        done
    }
}

/// A link as a life has it.
pub struct GatedLink {
    gate: Gate,
    inner: Arc<dyn Link>,
}

impl GatedLink {
    /// `inner` behind `gate`.
    pub fn behind(gate: &Gate, inner: Arc<dyn Link>) -> Arc<dyn Link> {
        Arc::new(GatedLink { gate: gate.clone(), inner })
    }
}

impl Link for GatedLink {
    fn peer(&self) -> &RegionName {
        self.inner.peer()
    }
    fn request(&self, request: Request) -> BoxFuture<'_, Result<Bytes, LinkError>> {
        Box::pin(self.gate.through(self.inner.request(request)))
    }
    fn datagram(&self, kind: Kind, body: Bytes) -> Result<(), LinkError> {
        if self.gate.is_dead() { Ok(()) } else { self.inner.datagram(kind, body) }
    }
    fn open_bulk(&self, hello: Bytes, deadline: Millis) -> BoxFuture<'_, Result<BulkStream, LinkError>> {
        Box::pin(async move {
            let stream = self.gate.through(self.inner.open_bulk(hello, deadline)).await?;
            Ok(Box::new(GatedStream::behind(&self.gate, stream)) as BulkStream)
        })
    }
    fn state(&self) -> LinkState {
        self.inner.state()
    }
    fn connected(&self) -> watch::Receiver<bool> {
        self.inner.connected()
    }
}

/// What a life serves.
pub struct GatedInbound {
    gate: Gate,
    inner: Arc<dyn Inbound>,
}

impl GatedInbound {
    /// `inner` behind `gate`.
    pub fn behind(gate: &Gate, inner: Arc<dyn Inbound>) -> Arc<dyn Inbound> {
        Arc::new(GatedInbound { gate: gate.clone(), inner })
    }
}

impl Inbound for GatedInbound {
    fn request(&self, from: PeerId, request: Request) -> BoxFuture<'static, Result<Bytes, Refusal>> {
        let (gate, inner) = (self.gate.clone(), self.inner.clone());
        Box::pin(async move {
            gate.pass().await;
            let answer = inner.request(from, request);
            gate.through(answer).await
        })
    }
    fn bulk(&self, from: PeerId, hello: Bytes, offer: BulkOffer) -> BoxFuture<'static, ()> {
        let (gate, inner) = (self.gate.clone(), self.inner.clone());
        Box::pin(async move {
            gate.pass().await;
            let serving = inner.bulk(from, hello, offer);
            gate.through(serving).await;
        })
    }
    fn datagram(&self, from: PeerId, kind: Kind, body: Bytes) {
        if !self.gate.is_dead() {
            self.inner.datagram(from, kind, body);
        }
    }
    fn incarnation_seen(&self, peer: RegionName, lineage: Lineage) -> BoxFuture<'static, IncarnationVerdict> {
        let (gate, inner) = (self.gate.clone(), self.inner.clone());
        Box::pin(async move {
            gate.pass().await;
            let judged = inner.incarnation_seen(peer, lineage);
            gate.through(judged).await
        })
    }
}

/// A host as a life reaches it.
pub struct GatedDriver {
    gate: Gate,
    inner: Arc<dyn Hypervisor>,
}

impl GatedDriver {
    /// `inner` behind `gate`.
    pub fn behind(gate: &Gate, inner: Arc<dyn Hypervisor>) -> Arc<dyn Hypervisor> {
        Arc::new(GatedDriver { gate: gate.clone(), inner })
    }
}

impl Hypervisor for GatedDriver {
    fn call(
        &self,
        operation: OperationId,
        call: HostCall,
        deadline: Millis,
    ) -> drivers::BoxFuture<'_, Result<HostReply, HostError>> {
        Box::pin(async move { self.gate.through(self.inner.call(operation, call, deadline)).await })
    }
    fn open_channel(
        &self,
        key: SwitchKey,
        channel: Channel,
        end: End,
    ) -> drivers::BoxFuture<'_, Result<Box<dyn Duplex>, HostError>> {
        Box::pin(async move {
            let stream = self.gate.through(self.inner.open_channel(key, channel, end)).await?;
            Ok(Box::new(GatedStream::behind(&self.gate, stream)) as Box<dyn Duplex>)
        })
    }
}

/// A stream whose bytes pass only while the life goes on; broken when it ends.
struct GatedStream<S> {
    gate: Gate,
    inner: S,
    /// Waits while the life is held: one for each direction.
    waits: [Option<Pin<Box<dyn Future<Output = ()> + Send>>>; 2],
}

impl<S> GatedStream<S> {
    fn behind(gate: &Gate, inner: S) -> GatedStream<S> {
        GatedStream { gate: gate.clone(), inner, waits: [None, None] }
    }

    fn poll_pass(&mut self, direction: usize, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.gate.is_dead() {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::BrokenPipe, "this life has ended")));
        }
        if self.waits[direction].is_none() && *self.gate.held.borrow() {
            let gate = self.gate.clone();
            self.waits[direction] = Some(Box::pin(async move { gate.pass().await }));
        }
        if let Some(wait) = &mut self.waits[direction] {
            ready!(wait.as_mut().poll(cx));
            self.waits[direction] = None;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for GatedStream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_pass(0, cx))?;
        Pin::new(&mut this.inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for GatedStream<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_pass(1, cx))?;
        Pin::new(&mut this.inner).poll_write(cx, bytes)
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_pass(1, cx))?;
        Pin::new(&mut this.inner).poll_shutdown(cx)
    }
}
