//! A region put together from its parts, as a process (`start.rs`) and as one of many in a simulation. Owns: which part
//! needs which, and the order in which they start.
//! Always: nothing here knows a file, a socket or the machine's time: whoever assembles brings them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;

use super::api::RegionApi;
use super::exit::NodeError;
use super::faults::{Faults, FaultyInbound, FaultyLink, Ways};
use crate::actors::cluster::{Cluster, ClusterMessage, ServedBy};
use crate::actors::context::{Context, LocalCluster, Settings};
use crate::actors::crash_rows::StoredCrashes;
use crate::actors::inbound::{ApiServer, Receiver};
use crate::actors::kill::KillSwitch;
use crate::actors::outbox::{Deliverer, LinkMessage};
use crate::actors::recovery::{self, Recovery};
use crate::actors::vms::Ledgers;
use crate::actors::{Admission, ChildSpec, Handle, Root, Supervisor, SupervisorError, SupervisorSpec, jobs};
use crate::admin::{Api, Forwarded, ForwardedReply};
use crate::clock::Clock;
use crate::config::{ClusterConfig, Config};
use crate::decision::migration::defaults::Defaults;
use crate::decision::supervision::{Restart, Strategy};
use crate::drivers::Hypervisor;
use crate::protocol::bodies::{ApiMessage, ApiReply};
use crate::protocol::link::{Inbound, Link};
use crate::store::Store;
use crate::types::{RegionName, limits};

/// What serves a cluster, and how its host is looked after when it does not answer.
pub struct Served {
    /// The driver.
    pub driver: Arc<dyn Hypervisor>,
    /// Adopts the host, or starts it if it died; returns at once.
    pub look_after: Arc<dyn Fn() + Send + Sync>,
}

/// What a region is made of beside its configuration.
pub struct Parts {
    /// Its directory.
    pub dir: PathBuf,
    /// Time.
    pub clock: Clock,
    /// Its store, open.
    pub store: Store,
    /// Kill points.
    pub kill: KillSwitch,
    /// Seed of the jitter of restarts.
    pub seed: u64,
    /// Its metrics as text.
    pub metrics: Arc<dyn Fn() -> String + Send + Sync>,
}

/// A region that is assembled and answers; its open jobs do not go on yet.
pub struct Assembled<L> {
    /// What its actors share.
    pub ctx: Arc<Context>,
    /// Its root supervisor.
    pub root: Root,
    /// Its API.
    pub api: Api,
    /// What carries its links.
    pub links: L,
    /// Faults that a person injects, if that is allowed.
    pub faults: Option<Arc<Faults>>,
}

/// Puts a region together. `connect` makes its links: it is given what serves the other end of them. `serve` names what
/// serves a cluster.
///
/// # Errors
/// Why it can't be.
pub async fn assemble<L>(
    config: &Config,
    parts: Parts,
    connect: impl FnOnce(&Arc<Context>, Arc<dyn Inbound>) -> Result<(L, Vec<Arc<dyn Link>>), NodeError>,
    serve: impl Fn(&ClusterConfig) -> Option<Served>,
) -> Result<Assembled<L>, NodeError> {
    let Parts { dir, clock, store, kill, seed, metrics } = parts;
    let capacities = config.clusters.iter().map(|c| (c.id.clone(), c.capacity.resources())).collect();
    let ledgers = Ledgers::load(&store, capacities)?;
    let numbers = config.peers.iter().map(|peer| (peer.number, peer.region.clone())).collect();
    let region = &config.region;
    let ctx = Arc::new(Context::new(
        region.name.clone(),
        region.number,
        region.federation.clone(),
        dir,
        clock.clone(),
        store,
        settings(config),
        ledgers,
        kill,
        numbers,
    ));
    let receiver = Arc::new(Receiver::new(ctx.clone()));
    // Without leave to be disturbed, nothing stands between a region and its links.
    let ways = config.chaos.allow.then(|| Arc::new(Ways::new(clock.clone(), config.chaos.max, seed)));
    let inbound: Arc<dyn Inbound> = receiver.clone();
    let (links, all) = connect(&ctx, ways.as_ref().map_or(inbound.clone(), |ways| FaultyInbound::by(ways, inbound)))?;
    for link in all {
        ctx.add_link(ways.as_ref().map_or(link.clone(), |ways| FaultyLink::by(ways, link)));
    }
    let crashes = Arc::new(StoredCrashes::new(ctx.store.clone(), clock.clone()));
    let actors = |error: SupervisorError| NodeError::Actors(error.to_string());
    let root = Root::start(SupervisorSpec::new("root", Strategy::OneForOne), clock, seed, crashes);
    let root = root.await.map_err(actors)?;
    let group = |id: &'static str| SupervisorSpec::new(id, Strategy::OneForOne);
    let deliverers = root.add_supervisor(group("links"), Restart::Permanent).await.map_err(actors)?;
    let clusters = root.add_supervisor(group("clusters"), Restart::Permanent).await.map_err(actors)?;
    let migrations = root.add_supervisor(group("migrations"), Restart::Permanent).await.map_err(actors)?;
    start_clusters(config, &ctx, &clusters, serve).await.map_err(actors)?;
    jobs::line_up(&ctx)?;
    // From here on other regions are answered about moves.
    ctx.run_jobs_under(migrations.clone());
    start_deliverers(&ctx, &deliverers, &receiver).await.map_err(actors)?;
    let groups = BTreeMap::from([("links", deliverers), ("clusters", clusters), ("migrations", migrations)]);
    let faults = ways.map(|ways| Faults::start(ctx.clone(), ways, groups.clone(), &config.clusters));
    let api = make_api(config, &ctx, &root, groups, faults.clone(), metrics, &receiver);
    Ok(Assembled { ctx, root, api, links, faults })
}

impl<L> Assembled<L> {
    /// Lets the jobs go on that were open when the region was last up; tells how many.
    ///
    /// # Errors
    /// The store's.
    pub async fn run_jobs(&self) -> Result<usize, NodeError> {
        let open = jobs::run_all(&self.ctx).await?;
        let handle: Handle<recovery::Look> = Handle::new(self.ctx.clock.clone(), Admission::default());
        let ctx = self.ctx.clone();
        let spec = ChildSpec::actor("recovery", &handle, move |_| std::future::ready(Ok(Recovery::new(ctx.clone()))));
        if let Some(migrations) = self.ctx.migrations() {
            migrations.add_child(spec).await.map_err(|error| NodeError::Actors(error.to_string()))?;
        }
        Ok(open)
    }

    /// Resolves when the region can't keep its promises any more, with the reason: its process must end.
    pub async fn failed(&self) -> NodeError {
        let mut refused = self.ctx.failure();
        tokio::select! {
            biased;
            error = self.ctx.store.failed() => error.into(),
            why = reason(&mut refused) => NodeError::Refused { why },
            ended = self.root.ended() => NodeError::Ended { ended },
        }
    }
}

async fn reason(refused: &mut watch::Receiver<Option<String>>) -> String {
    if let Ok(why) = refused.wait_for(Option::is_some).await {
        return why.clone().unwrap_or_default();
    }
    // The sender lives in the context, which outlives this.
    std::future::pending().await
}

fn settings(config: &Config) -> Settings {
    let moves = &config.migration;
    Settings {
        moves: Defaults {
            downtime_max: moves.max_downtime,
            deadline: moves.switch_deadline,
            rounds_max: moves.rounds_max,
            patience: limits::RESERVATION_MS,
            bytes_per_second_max: moves.bandwidth_max,
            retention: moves.retention,
            store_reserve_bytes: config.store.reserve,
        },
        running_max: moves.running_max,
    }
}

async fn start_clusters(
    config: &Config,
    ctx: &Arc<Context>,
    supervisor: &Supervisor,
    serve: impl Fn(&ClusterConfig) -> Option<Served>,
) -> Result<(), SupervisorError> {
    for cluster in &config.clusters {
        let Some(Served { driver, look_after }) = serve(cluster) else { continue };
        let handle: Handle<ClusterMessage> = Handle::new(ctx.clock.clone(), Admission::default());
        ctx.add_cluster(cluster.id.clone(), LocalCluster { driver: driver.clone(), actor: handle.clone() });
        let (ctx, me) = (ctx.clone(), handle.clone());
        let (id, host, kind) = (cluster.id.clone(), cluster.host(), cluster.driver.name());
        let spec = ChildSpec::actor(format!("cluster-{id}"), &handle, move |_| {
            let served_by =
                ServedBy { host: host.clone(), kind, driver: driver.clone(), look_after: look_after.clone() };
            std::future::ready(Ok(Cluster::new(ctx.clone(), me.clone(), id.clone(), served_by)))
        });
        supervisor.add_child(spec).await?;
    }
    Ok(())
}

/// One per peer, and one for what this region tells itself.
async fn start_deliverers(
    ctx: &Arc<Context>,
    supervisor: &Supervisor,
    receiver: &Arc<Receiver>,
) -> Result<(), SupervisorError> {
    let mut peers: Vec<RegionName> = ctx.peers();
    peers.push(ctx.region.clone());
    for peer in peers {
        let handle: Handle<LinkMessage> = Handle::new(ctx.clock.clone(), Admission::default());
        let (ctx, receiver, id) = (ctx.clone(), receiver.clone(), format!("link-{peer}"));
        let spec = ChildSpec::actor(id, &handle, move |_| {
            std::future::ready(Ok(Deliverer::new(ctx.clone(), peer.clone(), receiver.clone())))
        });
        supervisor.add_child(spec).await?;
    }
    Ok(())
}

fn make_api(
    config: &Config,
    ctx: &Arc<Context>,
    root: &Supervisor,
    groups: BTreeMap<&'static str, Supervisor>,
    faults: Option<Arc<Faults>>,
    metrics: Arc<dyn Fn() -> String + Send + Sync>,
    receiver: &Receiver,
) -> Api {
    let addresses = config.peers.iter().map(|peer| (peer.region.clone(), peer.address.clone())).collect();
    let started = ctx.clock.now();
    let root = root.clone();
    let region = Arc::new(RegionApi { ctx: ctx.clone(), root, groups, faults, metrics, started, addresses });
    let api = Api::new(region, ctx.clock.clone());
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
