//! `status`, `cluster`, `inventory`, `link`, `operation`, `event`, `tree`.

use super::args::{ClusterVerb, EventVerb, InventoryVerb, ListVerb, TreeVerb};
use super::output::{Output, age, rate, span, word};
use super::vm::{all, escaped, given, with_query};
use super::{CliError, own};
use crate::admin::client::{Ask, Client};
use crate::admin::{
    ActorState, EventView, FederationStatus, LinkView, OperationView, Page, RegionView, ResourceInventory, TreeNode,
};
use crate::types::units::human_bytes;
use crate::types::{ClusterView, ErrorCode, Resources};

pub(super) async fn status(client: &Client, out: &mut Output) -> Result<(), CliError> {
    let status: FederationStatus = client.get("/v2/federation/status").await?;
    if out.json() {
        return Ok(out.document(&status)?);
    }
    let jobs = &status.jobs;
    out.fields(&[
        ("federation", status.federation.clone()),
        ("region", format!("{}, up for {}", status.region, span(status.uptime_ms))),
        ("health", word(&status.health_status)),
        ("clusters", format!("{} of {} active", status.active_clusters, status.total_clusters)),
        ("VMs here", status.vms.to_string()),
        ("jobs", format!("{} running, {} pending, {} parked", jobs.running, jobs.pending, jobs.parked)),
        ("version", status.version.clone()),
    ])?;
    let row = |region: &RegionView| {
        let reach = match (region.this, region.reachable) {
            (true, _) => "this one",
            (false, true) => "reachable",
            (false, false) => "unreachable",
        };
        vec![
            region.name.to_string(),
            reach.to_owned(),
            region.clusters.to_string(),
            region.vms.to_string(),
            age(region.age_ms, region.stale),
        ]
    };
    let rows = status.regions.iter().map(row).collect();
    out.table(&["region", "link", "clusters", "vms", "seen"], rows, "No regions are known.")?;
    for issue in &status.issues {
        out.line(&format!("{}: {}: {} (since {})", word(&issue.severity), issue.subject, issue.message, issue.since))?;
    }
    for advice in &status.recommendations {
        out.line(&format!("do: {advice}"))?;
    }
    Ok(())
}

fn amount(r: Resources) -> String {
    format!("{} cpu, {}, {}", r.cpu, human_bytes(r.memory_bytes), human_bytes(r.disk_bytes))
}

fn cluster_rows(clusters: &[ClusterView]) -> Vec<Vec<String>> {
    let row = |cluster: &ClusterView| {
        vec![
            format!("{}/{}", cluster.region, cluster.id),
            word(&cluster.state),
            cluster.vms.to_string(),
            amount(cluster.free()),
            amount(cluster.capacity),
            age(cluster.age_ms, cluster.stale),
        ]
    };
    clusters.iter().map(row).collect()
}

const CLUSTER_HEAD: [&str; 6] = ["cluster", "state", "vms", "free", "of", "seen"];

pub(super) async fn cluster(client: &Client, out: &mut Output, verb: ClusterVerb) -> Result<(), CliError> {
    match verb {
        ClusterVerb::List { region } => {
            let page: Page<ClusterView> = all(client, "/v2/clusters", &[("region", given(&region))]).await?;
            if out.json() {
                return Ok(out.document(&page)?);
            }
            let nothing = "No clusters are known. Add a [[cluster]] to node.toml and restart the node.";
            Ok(out.table(&CLUSTER_HEAD, cluster_rows(&page.items), nothing)?)
        }
        ClusterVerb::Show { cluster } => {
            let (region, id) = match cluster.split_once('/') {
                Some((region, id)) => (Some(region.to_owned()), id.to_owned()),
                None => (None, cluster),
            };
            let path = with_query(&format!("/v2/clusters/{}", escaped(&id)), &[("region", region)]);
            let cluster: ClusterView = client.get(&path).await?;
            if out.json() {
                return Ok(out.document(&cluster)?);
            }
            Ok(out.fields(&[
                ("cluster", format!("{}/{}", cluster.region, cluster.id)),
                ("state", format!("{}: {}", word(&cluster.state), cluster.reason)),
                ("driver", format!("{} on host {}", cluster.driver, cluster.host)),
                ("capacity", amount(cluster.capacity)),
                ("used", amount(cluster.used)),
                ("reserved", amount(cluster.reserved)),
                ("free", amount(cluster.free())),
                ("VMs", cluster.vms.to_string()),
                ("seen", age(cluster.age_ms, cluster.stale)),
            ])?)
        }
    }
}

pub(super) async fn inventory(client: &Client, out: &mut Output, verb: InventoryVerb) -> Result<(), CliError> {
    let InventoryVerb::Show { region } = verb;
    let inventory: ResourceInventory = client.get(&with_query("/v2/inventory", &[("region", given(&region))])).await?;
    if out.json() {
        return Ok(out.document(&inventory)?);
    }
    let total = &inventory.total;
    out.fields(&[
        ("capacity", amount(total.capacity)),
        ("used", amount(total.used)),
        ("reserved", amount(total.reserved)),
        ("free", amount(total.free)),
        ("VMs", total.vms.to_string()),
    ])?;
    out.table(&CLUSTER_HEAD, cluster_rows(&inventory.clusters), "No clusters are known.")?;
    for warning in &inventory.warnings {
        out.line(&format!("warning: {warning}"))?;
    }
    Ok(())
}

pub(super) async fn link(client: &Client, out: &mut Output, verb: ListVerb) -> Result<(), CliError> {
    let ListVerb::List = verb;
    let page: Page<LinkView> = client.get("/v2/links").await?;
    if out.json() {
        return Ok(out.document(&page)?);
    }
    let row = |link: &LinkView| {
        vec![
            link.region.to_string(),
            link.address.clone(),
            word(&link.state),
            span(link.since_ms),
            link.rtt_us.map(|us| format!("{:.1} ms", us as f64 / 1000.0)).unwrap_or_default(),
            link.loss_permille.map(|loss| format!("{}.{} %", loss / 10, loss % 10)).unwrap_or_default(),
            link.bytes_per_second.map(rate).unwrap_or_default(),
            link.outbox.to_string(),
            age(link.age_ms, link.stale),
            link.reason.clone().unwrap_or_default(),
        ]
    };
    let head = ["region", "address", "state", "for", "round trip", "loss", "bulk", "unsent", "heard", "reason"];
    let nothing = "There are no links. Add a [[peer]] to node.toml and restart the node.";
    Ok(out.table(&head, page.items.iter().map(row).collect(), nothing)?)
}

pub(super) async fn operation(client: &Client, out: &mut Output, verb: ListVerb) -> Result<(), CliError> {
    let ListVerb::List = verb;
    let page: Page<OperationView> = all(client, "/v2/operations", &[]).await?;
    if out.json() {
        return Ok(out.document(&page)?);
    }
    let row = |operation: &OperationView| {
        vec![
            operation.id.clone(),
            operation.kind.clone(),
            operation.subject.clone(),
            operation.state.clone(),
            operation.progress.map(|done| format!("{done:.0} %")).unwrap_or_default(),
            operation.reason.clone().unwrap_or_default(),
        ]
    };
    let head = ["id", "kind", "of", "state", "done", "reason"];
    Ok(out.table(&head, page.items.iter().map(row).collect(), "Nothing is under way.")?)
}

pub(super) async fn event(client: &Client, out: &mut Output, verb: EventVerb) -> Result<(), CliError> {
    let EventVerb::List { after } = verb;
    let query = [("after", Some(after.to_string())), ("limit", Some("500".into()))];
    let page: Page<EventView> = client.get(&with_query("/v2/events", &query)).await?;
    if out.json() {
        return Ok(out.document(&page)?);
    }
    let row = |event: &EventView| {
        vec![
            event.sequence.to_string(),
            event.at.to_string(),
            event.kind.clone(),
            event.subject.clone(),
            event.message.clone(),
        ]
    };
    let head = ["event", "at", "kind", "of", "what"];
    out.table(&head, page.items.iter().map(row).collect(), "Nothing has happened yet.")?;
    if let Some(next) = page.next {
        super::output::note(&format!("there are more: novafed event list --after {next}"));
    }
    Ok(())
}

pub(super) async fn tree(client: &Client, out: &mut Output, verb: Option<TreeVerb>) -> Result<(), CliError> {
    let tree: TreeNode = match verb {
        None => client.get("/v2/tree").await?,
        Some(TreeVerb::Restart { actor }) => {
            let Some((supervisor, actor)) = actor.split_once('/') else {
                let text = format!("'{actor}' names no actor: write it as supervisor/actor");
                return Err(own(ErrorCode::InvalidArgument, text));
            };
            client.typed(Ask::post(format!("/v2/tree/{}/{}/restart", escaped(supervisor), escaped(actor)))).await?
        }
    };
    if out.json() {
        return Ok(out.document(&tree)?);
    }
    let mut lines = Vec::new();
    grow(&tree, "", "", &mut lines);
    let width = lines.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    for (name, rest) in lines {
        out.line(&format!("{name:width$}  {rest}"))?;
    }
    Ok(())
}

/// One line for each actor: its branch with its name, and what is to be said of it.
fn grow(node: &TreeNode, branch: &str, below: &str, lines: &mut Vec<(String, String)>) {
    let mut rest = format!("{} for {}", word(&node.state), span(node.since_ms));
    if node.restarts > 0 {
        rest.push_str(&format!(", {} restarts", node.restarts));
    }
    if node.queue > 0 {
        let oldest = node.oldest_message_ms.map(|ms| format!(", the oldest for {}", span(ms))).unwrap_or_default();
        rest.push_str(&format!(", {} waiting{oldest}", node.queue));
    }
    if let (Some(reason), true) = (&node.reason, node.state != ActorState::Running) {
        rest.push_str(&format!(": {reason}"));
    }
    lines.push((format!("{branch}{}", node.name), rest));
    for (i, child) in node.children.iter().enumerate() {
        let (turn, on) = if i + 1 == node.children.len() { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        grow(child, &format!("{below}{turn}"), &format!("{below}{on}"), lines);
    }
}
