//! Streams. Owns: that a stream which was dropped before it was finished shows as broken at the other end, where quinn
//! would end it in good order.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use quinn::{RecvStream, SendStream, VarInt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::conn::InUse;
use crate::protocol::messages::Kind;

/// Code with which a stream is given up.
const CANCELLED: VarInt = VarInt::from_u32(1);

/// The sending half of a stream.
pub(super) struct Sending {
    pub stream: SendStream,
    finished: bool,
}

impl Sending {
    pub fn new(stream: SendStream) -> Sending {
        Sending { stream, finished: false }
    }
    /// Sends it before or after others, as its kind wants.
    pub fn prioritise(&self, kind: Kind) {
        if kind.priority() != 0 {
            // Fails on a stream that is closed already, where it does not matter.
            let _ = self.stream.set_priority(kind.priority());
        }
    }
    /// All that is to be sent has been written.
    pub fn finish(&mut self) {
        self.finished = true;
        // Fails if the other end has stopped the stream, which it knows.
        let _ = self.stream.finish();
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        if !self.finished {
            // Fails if the connection is gone, which the other end knows.
            let _ = self.stream.reset(CANCELLED);
        }
    }
}

/// A bulk stream, and what keeps its connection from being drained.
pub(super) struct QuicStream {
    send: Sending,
    recv: RecvStream,
    _used: InUse,
}

impl QuicStream {
    pub fn new(send: Sending, recv: RecvStream, used: InUse) -> QuicStream {
        QuicStream { send, recv, _used: used }
    }
}

impl AsyncRead for QuicStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        AsyncRead::poll_read(Pin::new(&mut self.get_mut().recv), cx, buf)
    }
}

impl AsyncWrite for QuicStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        AsyncWrite::poll_write(Pin::new(&mut self.get_mut().send.stream), cx, bytes)
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_flush(Pin::new(&mut self.get_mut().send.stream), cx)
    }
    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().send.finish();
        Poll::Ready(Ok(()))
    }
}
