//! How one process reaches another inside this one. Owns: that nothing of a dead caller goes through any more.
//! Always: once a port is closed its calls never return and its streams are cut, at that moment, for the other end;
//! what had gone through before goes on. Not here: what goes through (`local.rs`).

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio_util::sync::{CancellationToken, DropGuard};

/// The way of one caller to its hosts: open until its token is cancelled, which means that the caller's process died.
#[derive(Debug, Clone, Default)]
pub struct Port {
    closed: CancellationToken,
}

impl From<CancellationToken> for Port {
    fn from(closed: CancellationToken) -> Port {
        Port { closed }
    }
}

impl Port {
    /// Does `work` for the caller; once the port is closed this never returns, and `work` is not polled any more.
    pub async fn through<F: Future>(&self, work: F) -> F::Output {
        tokio::select! {
            biased;
            () = self.closed.cancelled() => std::future::pending().await,
            output = work => output,
        }
    }

    /// The caller's end of `stream`.
    pub fn stream(&self, stream: DuplexStream) -> PortStream {
        let stream = Arc::new(Mutex::new(Some(stream)));
        let dropped = CancellationToken::new();
        let (cut, closed, over) = (Arc::clone(&stream), self.closed.clone(), dropped.clone());
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = closed.cancelled() => drop(locked(&cut).take()),
                () = over.cancelled() => {}
            }
        });
        PortStream { stream, closed: self.closed.clone(), _dropped: dropped.drop_guard() }
    }
}

fn locked(stream: &Mutex<Option<DuplexStream>>) -> MutexGuard<'_, Option<DuplexStream>> {
    stream.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A stream that is cut when its port closes: the other end sees its end, this one never hears again.
pub struct PortStream {
    /// `None` once it is cut.
    stream: Arc<Mutex<Option<DuplexStream>>>,
    closed: CancellationToken,
    _dropped: DropGuard,
}

impl PortStream {
    fn poll<T>(&self, work: impl FnOnce(Pin<&mut DuplexStream>) -> Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        let mut stream = locked(&self.stream);
        if self.closed.is_cancelled() {
            *stream = None;
        }
        // Nobody is there whom a waker would wake.
        stream.as_mut().map_or(Poll::Pending, |stream| work(Pin::new(stream)))
    }
}

impl AsyncRead for PortStream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.poll(|stream| stream.poll_read(context, out))
    }
}

impl AsyncWrite for PortStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll(|stream| stream.poll_write(context, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll(|stream| stream.poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll(|stream| stream.poll_shutdown(context))
    }
}
