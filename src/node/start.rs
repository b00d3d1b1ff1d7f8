//! Starting a region as a process. Owns: its files, sockets and hosts, which the region is then assembled from.
//! Not here: which part of a region needs which (`assemble.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::assemble::{Assembled, Parts, Served, assemble};
use super::exit::NodeError;
use crate::actors::context::Context;
use crate::actors::host_keeper::HostKeeper;
use crate::actors::kill::KillSwitch;
use crate::admin::Server;
use crate::admin::telemetry::Metrics;
use crate::clock::Clock;
use crate::config::{ClusterConfig, Config, Driver, KeySource};
use crate::drivers::embedded::client::{self, DriverOptions, EmbeddedDriver};
use crate::drivers::embedded::launch::Launch;
use crate::drivers::embedded::wire::AdminCall;
use crate::protocol::link::{Inbound, Link};
use crate::protocol::quic::{QuicConfig, QuicNode};
use crate::protocol::trust::{Identity, Leaf, RegionCa, TrustStore, keep_renewed};
use crate::store::{Opened, Store, StoreKey, StoreOptions, load_keys};
use crate::types::{HostName, Lineage, Millis};

/// Starts the region in `dir`.
///
/// # Errors
/// Why it can't.
pub async fn start(
    dir: &Path,
    config: &Config,
    metrics: Metrics,
    stop: CancellationToken,
) -> Result<Assembled<QuicNode>, NodeError> {
    let clock = Clock::start();
    let run_dir = dir.join("run");
    let server = Server::bind(&run_dir).await?;
    let (store, opened) = open_store(dir, config).await?;
    tracing::info!(
        region = %config.region.name, incarnation = %opened.incarnation, created = opened.created, "the store is open"
    );
    let lineage = store.lineage().clone();
    let seed = random();
    let parts = Parts {
        dir: dir.to_owned(),
        clock,
        store,
        kill: KillSwitch::new(config.chaos.kill_at, &run_dir),
        seed,
        metrics: Arc::new(move || metrics.render()),
    };
    let keepers = keepers(dir, config);
    make_hosts_well(dir, keepers.keys()).await;
    let connect = |ctx: &Arc<Context>, inbound: Arc<dyn Inbound>| {
        let quic = links(dir, config, ctx, inbound, seed, &stop)?;
        let all: Vec<Arc<dyn Link>> = config.peers.iter().map(|peer| quic.link(&peer.region)).collect();
        Ok((quic, all))
    };
    let serve = |cluster: &ClusterConfig| serve(dir, config, &lineage, cluster, keepers.get(&cluster.host())?);
    let region = assemble(config, parts, connect, serve).await?;
    for keeper in keepers.values() {
        keeper.look_after();
    }
    tokio::spawn(server.serve(region.api.clone(), stop.clone()));
    let open = region.run_jobs().await?;
    tracing::info!(region = %region.ctx.region, jobs = open, "the region runs");
    Ok(region)
}

fn random() -> u64 {
    let mut bytes = [0; 8];
    // Without randomness two lives of a store could not be told apart: better not to start.
    getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
    u64::from_le_bytes(bytes)
}

async fn open_store(dir: &Path, config: &Config) -> Result<(Store, Opened), NodeError> {
    let keys = match &config.store.key {
        KeySource::File(path) => load_keys(&dir.join(path))?,
        KeySource::Command(command) => vec![StoreKey::from_command(command).await?],
    };
    let mut options = StoreOptions::file(dir.join("state.redb"), config.region.name.clone(), keys);
    options.cache_bytes = usize::try_from(config.store.cache).unwrap_or(usize::MAX);
    options.reserve_bytes = config.store.reserve;
    let nonce = random();
    let opened = tokio::task::spawn_blocking(move || Store::open(options, nonce)).await;
    Ok(opened.map_err(|error| NodeError::Actors(format!("opening the store: {error}")))??)
}

/// How long a leaf lives (law 8.1).
const LEAF_LIFE: Millis = Millis(24 * 3_600_000);

fn links(
    dir: &Path,
    config: &Config,
    ctx: &Arc<Context>,
    inbound: Arc<dyn Inbound>,
    seed: u64,
    stop: &CancellationToken,
) -> Result<QuicNode, NodeError> {
    let federation = &config.region.federation;
    let wall = Arc::new(ctx.clock.clone());
    let ca = RegionCa::load(dir, federation, &config.region.name)?;
    let leaf_path = dir.join("leaf.pem");
    let leaf = match Leaf::load(&leaf_path) {
        Ok(leaf) => leaf,
        // A region signs for itself: a missing leaf is issued anew.
        Err(_) => ca.issue_leaf(ctx.clock.wall(), LEAF_LIFE)?,
    };
    let identity = Arc::new(Identity::new(leaf));
    tokio::spawn(keep_renewed(identity.clone(), ca, wall.clone(), LEAF_LIFE, Some(leaf_path), stop.clone()));
    let trust = Arc::new(TrustStore::new(federation.clone()));
    for peer in &config.peers {
        let path = dir.join(&peer.ca);
        let pem = std::fs::read_to_string(&path).map_err(|source| NodeError::File {
            doing: "reading the CA of a peer",
            path,
            source,
        })?;
        trust.set(peer.region.clone(), &pem)?;
    }
    let quic = QuicConfig {
        us: config.region.name.clone(),
        lineage: ctx.store.lineage().clone(),
        listen: config.listen.address,
        peers: config.peers.iter().map(|peer| (peer.region.clone(), peer.address.clone())).collect(),
        version_floor: 0,
        seed,
    };
    Ok(QuicNode::start(quic, identity, trust, wall, inbound)?)
}

/// Each host process with what keeps it alive.
fn keepers(dir: &Path, config: &Config) -> BTreeMap<HostName, Arc<HostKeeper>> {
    let names: BTreeSet<HostName> = config.clusters.iter().map(ClusterConfig::host).collect();
    let keeper = |name: HostName| {
        let directory = dir.join("hosts").join(name.as_str());
        let launch = Launch { program: None, directory, name: name.clone(), allow_faults: config.chaos.allow };
        (name, HostKeeper::new(launch))
    };
    names.into_iter().map(keeper).collect()
}

/// How long a host may take to forget what was planned for it.
const WELL_MS_MAX: Millis = Millis(1_000);

/// Takes back the failures that an earlier life of this node has planned at its hosts, which outlive it. A host that is
/// not there has none, and one that takes no plans says so.
async fn make_hosts_well(dir: &Path, hosts: impl Iterator<Item = &HostName>) {
    let clearing: JoinSet<()> = hosts
        .map(|host| {
            let directory = dir.join("hosts").join(host.as_str());
            async move {
                let asked = client::admin(&directory, AdminCall::ClearFaults);
                let _ = tokio::time::timeout(WELL_MS_MAX.duration(), asked).await;
            }
        })
        .collect();
    clearing.join_all().await;
}

/// What serves a cluster: the driver to its host, and the keeper of that.
fn serve(
    dir: &Path,
    config: &Config,
    lineage: &Lineage,
    cluster: &ClusterConfig,
    keeper: &Arc<HostKeeper>,
) -> Option<Served> {
    let driver = match cluster.driver {
        Driver::Embedded => Arc::new(EmbeddedDriver::new(DriverOptions {
            directory: dir.join("hosts").join(cluster.host().as_str()),
            region: config.region.name.clone(),
            lineage: lineage.clone(),
            cluster: cluster.id.clone(),
            capacity: cluster.capacity.resources(),
        })),
    };
    let keeper = keeper.clone();
    Some(Served { driver, look_after: Arc::new(move || keeper.look_after()) })
}
