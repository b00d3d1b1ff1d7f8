//! A host inside this process, as a driver. Owns: the same contract without a socket, for tests, benches and simulated
//! federations. Always: the same host as the process runs, the same refusals, and of what it can't say the same as
//! `client.rs`: *unknown* for a call, *failed* for a channel that was not opened.
//! Not here: `client.rs`, which nodes use; simulated hosts (`sim.rs`); who dies with its node (`port.rs`).

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{oneshot, watch};

use super::host::{Host, HostOpenError, Session};
use super::port::Port;
use super::wire::ClusterOffer;
use crate::drivers::{BoxFuture, Channel, Duplex, End, HostCall, HostError, HostReply, Hypervisor, SwitchKey};
use crate::types::limits::{BLOCK_BYTES_MAX, REDIAL_MS_MIN, REQUEST_MS};
use crate::types::{ClusterId, HostName, Lineage, Millis, OperationId, RegionName, Resources};

/// Where a host's processes follow one another: the present one, and how long the way to it takes.
pub struct Home {
    host: watch::Sender<Option<Arc<Host>>>,
    latency_ms_max: AtomicU64,
    random: Mutex<fastrand::Rng>,
}

impl Home {
    /// A home in which nothing runs yet.
    pub fn new(seed: u64) -> Home {
        let random = Mutex::new(fastrand::Rng::with_seed(seed));
        Home { host: watch::Sender::new(None), latency_ms_max: AtomicU64::new(0), random }
    }

    /// The present process.
    pub fn host(&self) -> Option<Arc<Host>> {
        self.host.borrow().clone()
    }

    /// From now on this is the present process.
    pub fn set(&self, host: Option<Arc<Host>>) {
        self.host.send_replace(host);
    }

    /// From now on each call and each answer is on its way for up to so long.
    pub fn set_latency(&self, most: Millis) {
        self.latency_ms_max.store(most.0, Ordering::Relaxed);
    }

    /// A number up to `most`.
    pub(super) fn draw(&self, most: u64) -> u64 {
        if most == 0 {
            return 0;
        }
        self.random.lock().unwrap_or_else(PoisonError::into_inner).u64(0..=most)
    }

    /// How long a call is on its way, and its answer.
    fn latency(&self) -> (Millis, Millis) {
        let most = self.latency_ms_max.load(Ordering::Relaxed);
        (Millis(self.draw(most)), Millis(self.draw(most)))
    }

    /// Returns when it is time to dial once more: some time after a process is there.
    async fn dial_again(&self) {
        // An error would mean that the home is gone; it is not, it is borrowed.
        let _ = self.host.subscribe().wait_for(Option::is_some).await;
        wait(Millis(1 + self.draw(REDIAL_MS_MIN.0 - 1))).await;
    }
}

async fn wait(time: Millis) {
    // Even a sleep of nothing would wait for a timer.
    if time.0 > 0 {
        tokio::time::sleep(time.duration()).await;
    }
}

/// What a driver says of its node and its cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalOptions {
    /// The node's region.
    pub region: RegionName,
    /// Of the node's store.
    pub lineage: Lineage,
    /// The cluster.
    pub cluster: ClusterId,
    /// What the cluster may use of the host.
    pub capacity: Resources,
}

/// A session with one process of the host.
struct Link {
    host: Arc<Host>,
    session: Session,
}

impl Link {
    fn is_broken(&self) -> bool {
        self.host.life().is_over() || self.session.is_superseded()
    }

    /// Returns when the host would close the connection.
    async fn broken(&self) {
        let mut session = self.session.clone();
        tokio::select! {
            biased;
            () = self.host.life().over() => {}
            () = session.superseded() => {}
        }
    }
}

/// A driver whose host lives in this process.
pub struct LocalDriver {
    home: Arc<Home>,
    options: LocalOptions,
    port: Port,
    link: tokio::sync::Mutex<Option<Arc<Link>>>,
}

fn broke() -> HostError {
    HostError::Unknown { why: "the connection to the host broke before it answered".into() }
}

fn unreachable(error: Option<HostError>) -> HostError {
    error.unwrap_or(HostError::Failed { why: "the host can't be reached; nothing was opened".into() })
}

impl LocalDriver {
    /// A driver of the host at `home`; it dials when it is first used.
    pub fn new(home: Arc<Home>, options: LocalOptions, port: Port) -> LocalDriver {
        LocalDriver { home, options, port, link: tokio::sync::Mutex::new(None) }
    }

    /// Opens the host `name` in `directory` and attaches one cluster of `region` to it.
    pub async fn open(
        name: HostName,
        directory: &Path,
        region: &RegionName,
        lineage: impl Into<Lineage>,
        cluster: ClusterId,
        capacity: Resources,
    ) -> Result<Result<LocalDriver, HostError>, HostOpenError> {
        let host = Host::open(name, directory).await?;
        Ok(LocalDriver::attach(host, region, lineage, cluster, capacity).await)
    }

    /// Attaches one more cluster to a host that is open.
    pub async fn attach(
        host: Arc<Host>,
        region: &RegionName,
        lineage: impl Into<Lineage>,
        cluster: ClusterId,
        capacity: Resources,
    ) -> Result<LocalDriver, HostError> {
        let home = Home::new(0);
        home.set(Some(host));
        let options = LocalOptions { region: region.clone(), lineage: lineage.into(), cluster, capacity };
        let driver = LocalDriver::new(Arc::new(home), options, Port::default());
        driver.link().await.map_err(unreachable)?;
        Ok(driver)
    }

    /// Its host, while it lives.
    pub fn host(&self) -> Option<Arc<Host>> {
        self.home.host()
    }

    /// What SIGKILL does to a host process: nothing ticks or is sent any more, and nothing was written down for it.
    pub fn crash(self) {
        if let Some(host) = self.home.host() {
            host.crash();
        }
        self.home.set(None);
    }

    /// The link, dialled if there is none. `Err(None)`: the host can't be reached now.
    async fn link(&self) -> Result<Arc<Link>, Option<HostError>> {
        let mut current = self.link.lock().await;
        if let Some(link) = current.as_ref().filter(|link| !link.is_broken()) {
            return Ok(Arc::clone(link));
        }
        *current = None;
        let host = self.home.host().ok_or(None)?;
        let (there, back) = self.home.latency();
        let LocalOptions { region, lineage, cluster, capacity } = self.options.clone();
        let (answer, answered) = oneshot::channel();
        let greeted = Arc::clone(&host);
        host.life().spawn(async move {
            wait(there).await;
            let attached = greeted.attach(&region, &lineage, &[ClusterOffer { cluster, capacity }]).await;
            drop(greeted);
            wait(back).await;
            let _ = answer.send(attached);
        });
        let session = heard(answered).await?;
        let link = Arc::new(Link { host, session });
        *current = Some(Arc::clone(&link));
        Ok(link)
    }

    async fn call_now(&self, operation: OperationId, call: HostCall) -> Result<HostReply, HostError> {
        let link = loop {
            match self.link().await {
                Ok(link) => break link,
                Err(Some(refused)) => return Err(refused),
                // The host is restarting, or not there; the deadline of the call ends this.
                Err(None) => self.home.dial_again().await,
            }
        };
        let (there, back) = self.home.latency();
        let cluster = self.options.cluster.clone();
        let (answer, answered) = oneshot::channel();
        // In a task of its own: what is on its way arrives, whether its caller waits for it or not.
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = link.broken() => return,
                () = wait(there) => {}
            }
            let result = tokio::select! {
                biased;
                result = link.host.call(&link.session, &cluster, operation, call) => result,
                // The call goes on, nobody is left to be told.
                () = link.broken() => return,
            };
            if link.host.life().is_over() {
                return;
            }
            // Whoever has the answer may end the host at once: nothing here keeps it.
            drop(link);
            wait(back).await;
            let _ = answer.send(result);
        });
        answered.await.unwrap_or_else(|_| Err(broke()))
    }

    async fn open_now(&self, key: SwitchKey, channel: Channel, end: End) -> Result<Box<dyn Duplex>, HostError> {
        // The session introduces the cluster to the host; a channel may be the first thing that a node opens.
        let link = self.link().await.map_err(unreachable)?;
        let (there, back) = self.home.latency();
        let LocalOptions { region, lineage, cluster, .. } = self.options.clone();
        let (ours, theirs) = tokio::io::duplex(BLOCK_BYTES_MAX);
        let (answer, answered) = oneshot::channel();
        let host = Arc::downgrade(&link.host);
        link.host.life().spawn(async move {
            wait(there).await;
            // Not kept: a host that nobody knows any more need not wait for its channels.
            let Some(host) = host.upgrade() else { return };
            let opened = match host.attach(&region, &lineage, &[]).await {
                Ok(session) => host.channel(&session, &cluster, key, channel, end).map(|open| (session, open)),
                Err(error) => Err(error),
            };
            drop(host);
            wait(back).await;
            let (mut session, open) = match opened {
                Ok(opened) => opened,
                Err(error) => {
                    let _ = answer.send(Err(error));
                    return;
                }
            };
            let _ = answer.send(Ok(()));
            let served = tokio::select! {
                biased;
                () = session.superseded() => return,
                served = open.serve(ours) => served,
            };
            if let Err(error) = served {
                tracing::debug!(vm = %key.vm, %error, "a channel ended");
            }
        });
        // Made before anything can be lost: whoever stops waiting leaves nothing open.
        let stream = self.port.stream(theirs);
        heard(answered).await.map_err(unreachable)?;
        Ok(Box::new(stream))
    }
}

/// What the host answers to a hello; `Err(None)` if it does not.
async fn heard<T>(answered: oneshot::Receiver<Result<T, HostError>>) -> Result<T, Option<HostError>> {
    match tokio::time::timeout(REQUEST_MS.duration(), answered).await {
        Ok(Ok(answer)) => answer.map_err(Some),
        Ok(Err(_)) | Err(_) => Err(None),
    }
}

impl Hypervisor for LocalDriver {
    fn call(
        &self,
        operation: OperationId,
        call: HostCall,
        deadline: Millis,
    ) -> BoxFuture<'_, Result<HostReply, HostError>> {
        Box::pin(self.port.through(async move {
            let outcome = tokio::time::timeout(deadline.duration(), self.call_now(operation, call)).await;
            outcome.unwrap_or_else(|_| Err(HostError::Unknown { why: format!("no answer within {deadline}") }))
        }))
    }

    fn open_channel(
        &self,
        key: SwitchKey,
        channel: Channel,
        end: End,
    ) -> BoxFuture<'_, Result<Box<dyn Duplex>, HostError>> {
        Box::pin(self.port.through(self.open_now(key, channel, end)))
    }
}
