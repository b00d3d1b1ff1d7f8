//! Bulk streams in memory. Owns: how their bytes are delayed, slowed and cut at an exact count.
//! Always: what was cut ends in an error at both ends, never in an end of file.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::super::link::BulkStream;
use super::{Net, Node};
use crate::types::{Millis, RegionName, Tick};

const CHUNK_BYTES: usize = 64 * 1024;
/// Chunks under way in one direction.
const CHUNKS_MAX: usize = 64;

/// What both pumps of a stream share.
#[derive(Clone, Default)]
struct Shared {
    /// Whether the two directions end in an error.
    broken: [Arc<AtomicBool>; 2],
    cancel: CancellationToken,
}

impl Shared {
    fn break_off(&self) {
        for broken in &self.broken {
            broken.store(true, Ordering::SeqCst);
        }
        self.cancel.cancel();
    }
}

/// A user's end of a stream.
struct End {
    inner: DuplexStream,
    finished: bool,
    read_broken: Arc<AtomicBool>,
    write_broken: Arc<AtomicBool>,
}

impl Drop for End {
    /// Who goes away without having closed the stream has not completed it.
    fn drop(&mut self) {
        if !self.finished {
            self.write_broken.store(true, Ordering::SeqCst);
        }
    }
}

fn reset() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, "the link was cut")
}

impl AsyncRead for End {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.inner).poll_read(cx, buf))?;
        let ended = buf.filled().len() == before && buf.remaining() > 0;
        Poll::Ready(if ended && this.read_broken.load(Ordering::SeqCst) { Err(reset()) } else { Ok(()) })
    }
}

impl AsyncWrite for End {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(cx, bytes)
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.finished = true;
        Pin::new(&mut this.inner).poll_shutdown(cx)
    }
}

/// The two ends of a new stream between two regions.
pub(super) fn pair(net: &Net, a: &Node, b: &Node) -> (BulkStream, BulkStream) {
    let (a_user, a_net) = tokio::io::duplex(CHUNK_BYTES);
    let (b_user, b_net) = tokio::io::duplex(CHUNK_BYTES);
    let shared = Shared::default();
    let (a_read, a_write) = tokio::io::split(a_net);
    let (b_read, b_write) = tokio::io::split(b_net);
    for (from, to, read, write) in [(a, b, a_read, b_write), (b, a, b_read, a_write)] {
        let (sender, receiver) = mpsc::channel(CHUNKS_MAX);
        let (from, to) = (from.id.region.clone(), to.id.region.clone());
        let take = take_in(net.clone(), from.clone(), to.clone(), read, sender);
        let give = give_out(net.clone(), from, to, write, receiver, shared.clone());
        let cancel = shared.cancel.clone();
        tokio::spawn(async move { cancel.run_until_cancelled(async { tokio::join!(take, give) }).await });
    }
    let (net, stop) = (net.clone(), (a.clone(), b.clone()));
    let watched = shared.clone();
    tokio::spawn(async move {
        let (a, b) = stop;
        let mut up = net.lock().up(&a.id.region, &b.id.region).subscribe();
        tokio::select! {
            biased;
            () = watched.cancel.cancelled() => {}
            () = a.stop.cancelled() => watched.break_off(),
            () = b.stop.cancelled() => watched.break_off(),
            _ = up.wait_for(|up| !up) => watched.break_off(),
        }
    });
    let end = |inner, read: usize| {
        let [read_broken, write_broken] = [read, 1 - read].map(|at| Arc::clone(&shared.broken[at]));
        Box::new(End { inner, finished: false, read_broken, write_broken }) as BulkStream
    };
    (end(a_user, 0), end(b_user, 1))
}

/// A chunk under way.
enum Chunk {
    Bytes {
        due: Tick,
        bytes: Bytes,
    },
    /// The link is cut behind the last chunk.
    Cut,
}

/// Takes bytes from their sender and stamps them with the moment at which they arrive.
async fn take_in(
    net: Net,
    from: RegionName,
    to: RegionName,
    mut read: ReadHalf<DuplexStream>,
    chunks: mpsc::Sender<Chunk>,
) {
    loop {
        let mut buffer = BytesMut::with_capacity(CHUNK_BYTES);
        match read.read_buf(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let (chunk, cut) = {
            let now = net.clock.now();
            let mut state = net.lock();
            let travel = state.travel(&from, &to);
            let direction = state.direction(&from, &to);
            let cut = direction.bulk_cut_at.is_some_and(|at| at <= direction.bulk_bytes + buffer.len() as u64);
            if cut && let Some(at) = direction.bulk_cut_at.take() {
                buffer.truncate((at - direction.bulk_bytes) as usize);
            }
            direction.bulk_bytes += buffer.len() as u64;
            (Chunk::Bytes { due: now.plus(travel), bytes: buffer.freeze() }, cut)
        };
        if chunks.send(chunk).await.is_err() || (cut && chunks.send(Chunk::Cut).await.is_err()) {
            return;
        }
    }
}

/// Gives bytes to their receiver when they are due, and not while the link is cut.
async fn give_out(
    net: Net,
    from: RegionName,
    to: RegionName,
    mut write: WriteHalf<DuplexStream>,
    mut chunks: mpsc::Receiver<Chunk>,
    shared: Shared,
) {
    let mut cut = net.lock().direction(&from, &to).cut.subscribe();
    while let Some(chunk) = chunks.recv().await {
        let Chunk::Bytes { due, bytes } = chunk else { return shared.break_off() };
        sleep(due.since(net.clock.now()).duration()).await;
        let rate = net.lock().direction(&from, &to).faults.bulk_bytes_s;
        if let Some(rate) = rate {
            sleep(Millis(bytes.len() as u64 * 1000 / rate.max(1)).duration()).await;
        }
        if cut.wait_for(|cut| !cut).await.is_err() || write.write_all(&bytes).await.is_err() {
            return;
        }
        net.lock().direction(&from, &to).heard = Some(net.clock.now());
    }
    // Nothing left to tell an end that has gone.
    let _ = write.shutdown().await;
}
