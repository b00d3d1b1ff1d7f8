//! Starting a region, part by part. Owns: which part needs which.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::api::RegionApi;
use super::exit::NodeError;
use crate::actors::cluster::{Cluster, ClusterMessage, ServedBy};
use crate::actors::context::{Context, LocalCluster, Settings};
use crate::actors::crash_rows::StoredCrashes;
use crate::actors::host_keeper::HostKeeper;
use crate::actors::inbound::{ApiServer, Receiver};
use crate::actors::kill::KillSwitch;
use crate::actors::outbox::{Deliverer, LinkMessage};
use crate::actors::vms::Ledgers;
use crate::actors::{Admission, ChildSpec, Handle, Root, Supervisor, SupervisorSpec, jobs};
use crate::admin::telemetry::Metrics;
use crate::admin::{Api, Forwarded, ForwardedReply, Server};
use crate::clock::Clock;
use crate::config::{Config, Driver, KeySource};
use crate::decision::migration::defaults::Defaults;
use crate::decision::supervision::{Restart, Strategy};
use crate::drivers::Hypervisor;
use crate::drivers::embedded::client::{DriverOptions, EmbeddedDriver};
use crate::drivers::embedded::launch::Launch;
use crate::protocol::bodies::{ApiMessage, ApiReply};
use crate::protocol::quic::{QuicConfig, QuicNode};
use crate::protocol::trust::{Identity, Leaf, RegionCa, TrustStore, keep_renewed};
use crate::store::{Opened, Store, StoreKey, StoreOptions, load_keys};
use crate::types::{HostName, Millis, RegionName, limits};

/// A region that runs.
pub struct Running {
    /// What its actors share.
    pub ctx: Arc<Context>,
    /// Its root supervisor.
    pub root: Root,
    /// Its links.
    pub quic: QuicNode,
}

/// Starts the region in `dir`.
///
/// # Errors
/// Why it can't.
pub async fn start(
    dir: &Path,
    config: &Config,
    metrics: Metrics,
    stop: CancellationToken,
) -> Result<Running, NodeError> {
    let clock = Clock::start();
    let run_dir = dir.join("run");
    let server = Server::bind(&run_dir).await?;
    let (store, opened) = open_store(dir, config).await?;
    tracing::info!(
        region = %config.region.name, incarnation = %opened.incarnation, created = opened.created, "the store is open"
    );
    let ctx = Arc::new(context(dir, config, clock, store)?);
    let seed = random();
    let receiver = Arc::new(Receiver::new(ctx.clone()));
    let quic = links(dir, config, &ctx, receiver.clone(), seed, &stop)?;
    for peer in &config.peers {
        ctx.add_link(quic.link(&peer.region));
    }
    let crashes = Arc::new(StoredCrashes::new(ctx.store.clone(), clock));
    let root = Root::start(SupervisorSpec::new("root", Strategy::OneForOne), clock, seed, crashes)
        .await
        .map_err(|error| NodeError::Actors(error.to_string()))?;
    let actors = |error: crate::actors::SupervisorError| NodeError::Actors(error.to_string());
    let group = |id: &'static str| SupervisorSpec::new(id, Strategy::OneForOne);
    let links = root.add_supervisor(group("links"), Restart::Permanent).await.map_err(actors)?;
    let clusters = root.add_supervisor(group("clusters"), Restart::Permanent).await.map_err(actors)?;
    let migrations = root.add_supervisor(group("migrations"), Restart::Permanent).await.map_err(actors)?;
    start_clusters(dir, config, &ctx, &clusters).await?;
    jobs::line_up(&ctx)?;
    // From here on other regions are answered about moves.
    ctx.run_jobs_under(migrations.clone());
    start_deliverers(&ctx, &links, &receiver).await.map_err(actors)?;
    let addresses = config.peers.iter().map(|peer| (peer.region.clone(), peer.address.clone())).collect();
    let groups = BTreeMap::from([("links", links), ("clusters", clusters), ("migrations", migrations)]);
    let api = serve_api(&ctx, &root, groups, metrics, &receiver, addresses);
    tokio::spawn(server.serve(api, stop));
    let open = jobs::run_all(&ctx).await?;
    tracing::info!(region = %ctx.region, jobs = open, "the region runs");
    Ok(Running { ctx, root, quic })
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

fn context(dir: &Path, config: &Config, clock: Clock, store: Store) -> Result<Context, NodeError> {
    let capacities = config.clusters.iter().map(|c| (c.id.clone(), c.capacity.resources())).collect();
    let ledgers = Ledgers::load(&store, capacities)?;
    let settings = Settings {
        moves: Defaults {
            downtime_max: config.migration.max_downtime,
            deadline: config.migration.switch_deadline,
            rounds_max: config.migration.rounds_max,
            patience: limits::RESERVATION_MS,
            bytes_per_second_max: config.migration.bandwidth_max,
            retention: config.migration.retention,
            store_reserve_bytes: config.store.reserve,
        },
        running_max: config.migration.running_max,
    };
    let numbers = config.peers.iter().map(|peer| (peer.number, peer.region.clone())).collect();
    Ok(Context::new(
        config.region.name.clone(),
        config.region.number,
        config.region.federation.clone(),
        dir.to_owned(),
        clock,
        store,
        settings,
        ledgers,
        KillSwitch::new(config.chaos.kill_at, &dir.join("run")),
        numbers,
    ))
}

/// How long a leaf lives (law 8.1).
const LEAF_LIFE: Millis = Millis(24 * 3_600_000);

fn links(
    dir: &Path,
    config: &Config,
    ctx: &Arc<Context>,
    receiver: Arc<Receiver>,
    seed: u64,
    stop: &CancellationToken,
) -> Result<QuicNode, NodeError> {
    let federation = &config.region.federation;
    let wall = Arc::new(ctx.clock);
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
    Ok(QuicNode::start(quic, identity, trust, wall, receiver)?)
}

async fn start_clusters(
    dir: &Path,
    config: &Config,
    ctx: &Arc<Context>,
    supervisor: &Supervisor,
) -> Result<(), NodeError> {
    let names: BTreeSet<HostName> = config.clusters.iter().map(|cluster| cluster.host()).collect();
    let mut keepers = BTreeMap::new();
    for name in names {
        let directory = dir.join("hosts").join(name.as_str());
        let launch = Launch {
            program: None,
            directory: directory.clone(),
            name: name.clone(),
            allow_faults: config.chaos.allow,
        };
        keepers.insert(name, (HostKeeper::new(launch), directory));
    }
    for cluster in &config.clusters {
        let Some((keeper, directory)) = keepers.get(&cluster.host()) else { continue };
        let driver: Arc<dyn Hypervisor> = match cluster.driver {
            Driver::Embedded => Arc::new(EmbeddedDriver::new(DriverOptions {
                directory: directory.clone(),
                region: config.region.name.clone(),
                lineage: ctx.store.lineage().clone(),
                cluster: cluster.id.clone(),
                capacity: cluster.capacity.resources(),
            })),
        };
        let handle: Handle<ClusterMessage> = Handle::new(ctx.clock, Admission::default());
        ctx.add_cluster(cluster.id.clone(), LocalCluster { driver: driver.clone(), actor: handle.clone() });
        let (ctx, keeper, me) = (ctx.clone(), keeper.clone(), handle.clone());
        let (id, host, kind) = (cluster.id.clone(), cluster.host(), cluster.driver.name());
        let spec = ChildSpec::actor(format!("cluster-{id}"), &handle, move |_| {
            let keeper = keeper.clone();
            let look_after = Arc::new(move || keeper.look_after());
            let served_by = ServedBy { host: host.clone(), kind, driver: driver.clone(), look_after };
            std::future::ready(Ok(Cluster::new(ctx.clone(), me.clone(), id.clone(), served_by)))
        });
        supervisor.add_child(spec).await.map_err(|error| NodeError::Actors(error.to_string()))?;
    }
    for (keeper, _) in keepers.values() {
        keeper.look_after();
    }
    Ok(())
}

/// One per peer, and one for what this region tells itself.
async fn start_deliverers(
    ctx: &Arc<Context>,
    supervisor: &Supervisor,
    receiver: &Arc<Receiver>,
) -> Result<(), crate::actors::SupervisorError> {
    let mut peers: Vec<RegionName> = ctx.peers();
    peers.push(ctx.region.clone());
    for peer in peers {
        let handle: Handle<LinkMessage> = Handle::new(ctx.clock, Admission::default());
        let (ctx, receiver, id) = (ctx.clone(), receiver.clone(), format!("link-{peer}"));
        let spec = ChildSpec::actor(id, &handle, move |_| {
            std::future::ready(Ok(Deliverer::new(ctx.clone(), peer.clone(), receiver.clone())))
        });
        supervisor.add_child(spec).await?;
    }
    Ok(())
}

fn serve_api(
    ctx: &Arc<Context>,
    root: &Supervisor,
    groups: BTreeMap<&'static str, Supervisor>,
    metrics: Metrics,
    receiver: &Receiver,
    addresses: BTreeMap<RegionName, String>,
) -> Api {
    let region = Arc::new(RegionApi {
        ctx: ctx.clone(),
        root: root.clone(),
        groups,
        metrics: Arc::new(move || metrics.render()),
        started: ctx.clock.now(),
        addresses,
    });
    let api = Api::new(region, ctx.clock);
    let forwarded = api.clone();
    let server: ApiServer = Arc::new(move |from, message| {
        let api = forwarded.clone();
        Box::pin(async move { answer(&api, &from, message).await })
    });
    receiver.serve_api(server);
    api
}

/// Executes what another region forwarded, by the same router as the socket's.
async fn answer(api: &Api, from: &RegionName, message: ApiMessage) -> ApiReply {
    let reply = match postcard::from_bytes::<Forwarded>(&message.request) {
        // Who passed it on is known from the link, not from what it says.
        Ok(mut request) => {
            request.caller.via = Some(from.clone());
            api.dispatch(request).await
        }
        Err(error) => plain(400, &format!("the request that {from} forwarded can't be read: {error}")),
    };
    ApiReply { reply: postcard::to_stdvec(&reply).unwrap_or_default() }
}

fn plain(status: u16, text: &str) -> ForwardedReply {
    let error = serde_json::json!({ "error": { "code": "INTERNAL", "message": text, "details": null, "hint": "" } });
    ForwardedReply { status, headers: Vec::new(), body: error.to_string().into_bytes() }
}
