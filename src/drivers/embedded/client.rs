//! The driver of an embedded cluster, as a node uses it. Owns: the connection to the host process.
//! Always: a call without an answer by its deadline is *unknown*, never failed; calls share one connection and are
//! matched by serial number; a broken connection is dialled again by the next call.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::oneshot;

use super::faults::{CallKind, Fault};
use super::process::dial;
use super::wire::{self, AdminCall, ClusterOffer, HOST_PROTOCOL, Hello, Purpose, Request, Response, WireError};
use crate::drivers::{BoxFuture, Channel, Duplex, End, HostCall, HostError, HostReply, Hypervisor, SwitchKey};
use crate::types::limits::{REDIAL_MS_MIN, REQUEST_MS};
use crate::types::{ClusterId, Lineage, Millis, OperationId, RegionName, Resources};

/// How long somebody who only looks waits.
const OBSERVE_MS_MAX: Millis = Millis(30_000);

/// What a driver says of its node and its cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriverOptions {
    /// Directory of the host that serves the cluster.
    pub directory: PathBuf,
    /// The node's region.
    pub region: RegionName,
    /// Of the node's store.
    pub lineage: Lineage,
    /// The cluster.
    pub cluster: ClusterId,
    /// What the cluster may use of the host.
    pub capacity: Resources,
}

type Waiting = HashMap<u64, oneshot::Sender<Result<HostReply, HostError>>>;

/// A connection that answers calls. Its reader task fails all that wait when it breaks.
struct Link {
    writer: tokio::sync::Mutex<OwnedWriteHalf>,
    /// `None` once it is broken.
    waiting: Mutex<Option<Waiting>>,
}

impl Link {
    fn waiting(&self) -> MutexGuard<'_, Option<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_broken(&self) -> bool {
        self.waiting().is_none()
    }

    fn break_off(&self) {
        // Dropping the senders tells everybody who waits.
        drop(self.waiting().take());
    }
}

/// The driver.
pub struct EmbeddedDriver {
    options: DriverOptions,
    serial: AtomicU64,
    link: tokio::sync::Mutex<Option<Arc<Link>>>,
}

impl Drop for EmbeddedDriver {
    fn drop(&mut self) {
        if let Some(link) = self.link.get_mut() {
            link.break_off();
        }
    }
}

impl EmbeddedDriver {
    /// A driver; it dials when it is first used.
    pub fn new(options: DriverOptions) -> EmbeddedDriver {
        EmbeddedDriver { options, serial: AtomicU64::new(1), link: tokio::sync::Mutex::new(None) }
    }

    /// The link, dialled if there is none. `Err(None)`: the host can't be reached now.
    async fn link(&self) -> Result<Arc<Link>, Option<HostError>> {
        let mut current = self.link.lock().await;
        if let Some(link) = current.as_ref().filter(|link| !link.is_broken()) {
            return Ok(Arc::clone(link));
        }
        let purpose = Purpose::Session {
            region: self.options.region.clone(),
            lineage: self.options.lineage.clone(),
            clusters: vec![ClusterOffer { cluster: self.options.cluster.clone(), capacity: self.options.capacity }],
        };
        let stream = self.greet(purpose).await?;
        let (reader, writer) = stream.into_split();
        let link =
            Arc::new(Link { writer: tokio::sync::Mutex::new(writer), waiting: Mutex::new(Some(HashMap::new())) });
        tokio::spawn(read_answers(reader, Arc::clone(&link)));
        *current = Some(Arc::clone(&link));
        Ok(link)
    }

    async fn greet(&self, purpose: Purpose) -> Result<UnixStream, Option<HostError>> {
        let mut stream = dial(&self.options.directory).await.map_err(|_| None)?;
        let answer = say_hello(&mut stream, purpose).await.map_err(|_| None)?;
        answer.map_err(Some)?;
        Ok(stream)
    }

    async fn call_now(&self, operation: OperationId, call: HostCall) -> Result<HostReply, HostError> {
        let link = loop {
            match self.link().await {
                Ok(link) => break link,
                Err(Some(refused)) => return Err(refused),
                // The host is restarting, or not there; the deadline of the call ends this.
                Err(None) => tokio::time::sleep(REDIAL_MS_MIN.duration()).await,
            }
        };
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        let request = Request { serial, cluster: self.options.cluster.clone(), operation, call };
        let frame = wire::frame(&request).map_err(|e| HostError::Refused { why: e.to_string() })?;
        let broke = || HostError::Unknown { why: "the connection to the host broke before it answered".into() };
        let (sender, answer) = oneshot::channel();
        let _forget = Forget { link: &link, serial };
        link.waiting().as_mut().ok_or_else(broke)?.insert(serial, sender);
        // In a task of its own: a caller that gives up halfway must not leave half a frame on the stream.
        let sending = Arc::clone(&link);
        let sent = tokio::spawn(async move {
            let mut writer = sending.writer.lock().await;
            let result = tokio::io::AsyncWriteExt::write_all(&mut *writer, &frame).await;
            if result.is_err() {
                sending.break_off();
            }
            result
        });
        sent.await.map_err(|_| broke())?.map_err(|_: io::Error| broke())?;
        answer.await.map_err(|_| broke())?
    }

    async fn open_now(&self, key: SwitchKey, channel: Channel, end: End) -> Result<UnixStream, HostError> {
        // The session introduces the cluster to the host; a channel may be the first thing that a node opens.
        self.link().await.map_err(unreachable)?;
        let purpose = Purpose::Channel {
            region: self.options.region.clone(),
            lineage: self.options.lineage.clone(),
            cluster: self.options.cluster.clone(),
            key,
            channel,
            end,
        };
        self.greet(purpose).await.map_err(unreachable)
    }
}

fn unreachable(error: Option<HostError>) -> HostError {
    error.unwrap_or(HostError::Failed { why: "the host can't be reached; nothing was opened".into() })
}

struct Forget<'a> {
    link: &'a Link,
    serial: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        if let Some(waiting) = self.link.waiting().as_mut() {
            waiting.remove(&self.serial);
        }
    }
}

async fn read_answers(mut reader: OwnedReadHalf, link: Arc<Link>) {
    while let Ok(Some(Response { serial, result })) = wire::read(&mut reader).await {
        let sender = link.waiting().as_mut().and_then(|waiting| waiting.remove(&serial));
        // An answer that nobody waits for came after its deadline.
        if let Some(sender) = sender {
            let _ = sender.send(result);
        }
        if link.is_broken() {
            return;
        }
    }
    link.break_off();
}

/// Says hello and hears the answer.
async fn say_hello(stream: &mut UnixStream, purpose: Purpose) -> Result<Result<wire::Welcome, HostError>, WireError> {
    let exchange = async {
        wire::write(stream, &Hello { protocol: HOST_PROTOCOL, purpose }).await?;
        let ended = || WireError::Io(io::ErrorKind::UnexpectedEof.into());
        wire::read::<Result<wire::Welcome, HostError>>(stream).await?.ok_or_else(ended)
    };
    let late = |_| WireError::Io(io::ErrorKind::TimedOut.into());
    tokio::time::timeout(REQUEST_MS.duration(), exchange).await.map_err(late)?
}

/// Asks the host that serves `directory` something that changes nothing, past the node that runs the cluster.
pub async fn observe(directory: &std::path::Path, cluster: &ClusterId, call: HostCall) -> Result<HostReply, HostError> {
    let purpose = Purpose::Observe { cluster: cluster.clone(), call };
    let exchange = async {
        let mut stream = dial(directory).await?;
        wire::write(&mut stream, &Hello { protocol: HOST_PROTOCOL, purpose }).await?;
        let ended = || WireError::Io(io::ErrorKind::UnexpectedEof.into());
        wire::read::<Result<HostReply, HostError>>(&mut stream).await?.ok_or_else(ended)
    };
    // A snapshot writes all of a guest's memory and disk.
    match tokio::time::timeout(OBSERVE_MS_MAX.duration(), exchange).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => Err(HostError::Unknown { why: error.to_string() }),
        Err(_) => Err(HostError::Unknown { why: format!("no answer within {OBSERVE_MS_MAX}") }),
    }
}

/// Asks something of the process that serves `directory`.
pub async fn admin(
    directory: &std::path::Path,
    call: AdminCall,
) -> Result<Result<wire::Welcome, HostError>, WireError> {
    let mut stream = dial(directory).await?;
    say_hello(&mut stream, Purpose::Admin(call)).await
}

impl Hypervisor for EmbeddedDriver {
    fn call(
        &self,
        operation: OperationId,
        call: HostCall,
        deadline: Millis,
    ) -> BoxFuture<'_, Result<HostReply, HostError>> {
        Box::pin(async move {
            let outcome = tokio::time::timeout(deadline.duration(), self.call_now(operation, call)).await;
            outcome.unwrap_or_else(|_| Err(HostError::Unknown { why: format!("no answer within {deadline}") }))
        })
    }

    fn open_channel(
        &self,
        key: SwitchKey,
        channel: Channel,
        end: End,
    ) -> BoxFuture<'_, Result<Box<dyn Duplex>, HostError>> {
        Box::pin(async move {
            let stream = self.open_now(key, channel, end).await?;
            Ok(Box::new(stream) as Box<dyn Duplex>)
        })
    }

    fn plan_fault(&self, kind: CallKind, fault: Fault, times: u32) -> BoxFuture<'_, Result<(), HostError>> {
        Box::pin(async move {
            match admin(&self.options.directory, AdminCall::PlanFault { kind, fault, times }).await {
                Ok(answer) => answer.map(drop),
                Err(error) => Err(HostError::Unknown { why: error.to_string() }),
            }
        })
    }
}
