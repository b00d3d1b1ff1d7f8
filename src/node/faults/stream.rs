//! A bulk stream as injected faults have it. Owns: holding its bytes back.
//! Always: what it holds back it does not lose: a stream is whole or broken. Not here: how much passes (`ways.rs`).

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::ways::{Allowance, Ways};
use crate::protocol::link::BulkStream;
use crate::types::{RegionName, Toward};

type Wait = Option<Pin<Box<dyn Future<Output = ()> + Send>>>;

/// The stream.
pub struct FaultyStream {
    ways: Arc<Ways>,
    peer: RegionName,
    inner: BulkStream,
    waits: [Wait; 2],
}

impl FaultyStream {
    /// `inner`, a stream with `peer`.
    pub fn of(ways: &Arc<Ways>, peer: &RegionName, inner: BulkStream) -> BulkStream {
        Box::new(FaultyStream { ways: ways.clone(), peer: peer.clone(), inner, waits: [None, None] })
    }

    /// How many bytes may pass.
    fn poll_allowance(&mut self, toward: Toward, cx: &mut Context<'_>) -> Poll<usize> {
        let slot = match toward {
            Toward::Out => 0,
            Toward::In => 1,
        };
        loop {
            if let Some(wait) = &mut self.waits[slot] {
                ready!(wait.as_mut().poll(cx));
                self.waits[slot] = None;
            }
            match self.ways.allowance(&self.peer, toward) {
                Allowance::Bytes(bytes) => return Poll::Ready(bytes),
                Allowance::Wait(time) => {
                    let ways = self.ways.clone();
                    self.waits[slot] = Some(Box::pin(async move { ways.changed_within(time).await }));
                }
            }
        }
    }
}

impl AsyncRead for FaultyStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let most = ready!(this.poll_allowance(Toward::In, cx)).min(buf.remaining());
        let mut part = ReadBuf::new(buf.initialize_unfilled_to(most));
        ready!(Pin::new(&mut this.inner).poll_read(cx, &mut part))?;
        let read = part.filled().len();
        buf.advance(read);
        this.ways.passed(&this.peer, Toward::In, read);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for FaultyStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let most = ready!(this.poll_allowance(Toward::Out, cx)).min(bytes.len());
        let written = ready!(Pin::new(&mut this.inner).poll_write(cx, &bytes[..most]))?;
        this.ways.passed(&this.peer, Toward::Out, written);
        Poll::Ready(Ok(written))
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_allowance(Toward::Out, cx));
        Pin::new(&mut this.inner).poll_shutdown(cx)
    }
}
