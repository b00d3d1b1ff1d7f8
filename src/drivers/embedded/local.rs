//! A host inside this process, as a driver. Owns: the same contract without a socket, for tests on paused time and for
//! benches. Always: the same host as the process runs, the same refusals. Not here: `client.rs`, which nodes use.

use std::path::Path;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::host::{Host, HostOpenError, Session};
use super::wire::ClusterOffer;
use crate::drivers::{BoxFuture, Channel, Duplex, End, HostCall, HostError, HostReply, Hypervisor, SwitchKey};
use crate::types::limits::BLOCK_BYTES_MAX;
use crate::types::{ClusterId, HostName, Lineage, Millis, OperationId, RegionName, Resources};

/// A driver whose host lives in this process and dies with [`LocalDriver::crash`] or the last clone of the host.
pub struct LocalDriver {
    host: Arc<Host>,
    session: Session,
    cluster: ClusterId,
    crashed: CancellationToken,
}

impl LocalDriver {
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
        let offer = ClusterOffer { cluster: cluster.clone(), capacity };
        let session = host.attach(region, &lineage.into(), &[offer]).await?;
        Ok(LocalDriver { host, session, cluster, crashed: CancellationToken::new() })
    }

    /// Its host.
    pub fn host(&self) -> &Arc<Host> {
        &self.host
    }

    /// What SIGKILL does to a host process: nothing ticks or is sent any more, and nothing was written down for it.
    pub fn crash(self) {
        self.crashed.cancel();
        self.host.crash();
    }
}

impl Hypervisor for LocalDriver {
    fn call(
        &self,
        operation: OperationId,
        call: HostCall,
        deadline: Millis,
    ) -> BoxFuture<'_, Result<HostReply, HostError>> {
        Box::pin(async move {
            let done = self.host.call(&self.session, &self.cluster, operation, call);
            let outcome = tokio::time::timeout(deadline.duration(), done).await;
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
            let open = self.host.channel(&self.session, &self.cluster, key, channel, end)?;
            let (ours, theirs) = tokio::io::duplex(BLOCK_BYTES_MAX);
            let crashed = self.crashed.clone();
            let mut session = self.session.clone();
            tokio::spawn(async move {
                let served = tokio::select! {
                    biased;
                    () = crashed.cancelled() => return,
                    () = session.superseded() => return,
                    served = open.serve(ours) => served,
                };
                if let Err(error) = served {
                    tracing::debug!(vm = %key.vm, %error, "a channel ended");
                }
            });
            Ok(Box::new(theirs) as Box<dyn Duplex>)
        })
    }
}
