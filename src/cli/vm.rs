//! `vm` and `placement`.

use std::fmt::Display;

use super::args::{ChangeArgs, CreateArgs, PlacementVerb, SpecArgs, VmVerb};
use super::output::{Output, age, note, word};
use super::{CliError, own};
use crate::admin::client::{Ask, Client};
use crate::admin::{CreateVm, CreatedVm, Page, PlacementDecision, PlacementWish, VmView};
use crate::types::units::human_bytes;
use crate::types::{ErrorCode, GuestProgram, VmId, VmSpec};

/// A path with a query of those values that are given.
pub(super) fn with_query(path: &str, query: &[(&str, Option<String>)]) -> String {
    let mut text = path.to_owned();
    let mut mark = '?';
    for (name, value) in query.iter().filter_map(|(name, value)| value.as_ref().map(|value| (name, value))) {
        text.push_str(&format!("{mark}{name}={}", escaped(value)));
        mark = '&';
    }
    text
}

/// A text as it may stand in a path or query.
pub(super) fn escaped(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

pub(super) fn given(value: &Option<impl Display>) -> Option<String> {
    value.as_ref().map(ToString::to_string)
}

/// All pages of a list.
pub(super) async fn all<T: serde::de::DeserializeOwned>(
    client: &Client,
    path: &str,
    query: &[(&str, Option<String>)],
) -> Result<Page<T>, CliError> {
    let (mut items, mut warnings) = (Vec::new(), Vec::new());
    let mut cursor = None;
    loop {
        let mut query = query.to_vec();
        query.extend([("limit", Some("500".to_owned())), ("cursor", cursor)]);
        let page: Page<T> = client.get(&with_query(path, &query)).await?;
        items.extend(page.items);
        cursor = page.next;
        // Each page says it anew.
        warnings = if page.warnings.is_empty() { warnings } else { page.warnings };
        if cursor.is_none() {
            return Ok(Page { items, next: None, warnings });
        }
    }
}

/// The VM that somebody calls `name`: by its id, or by its name if only one has it.
pub(super) async fn find(client: &Client, name: &str) -> Result<VmId, CliError> {
    if let Ok(id) = name.parse() {
        return Ok(id);
    }
    let page: Page<VmView> = all(client, "/v2/vms", &[("name", Some(name.to_owned()))]).await?;
    match page.items.as_slice() {
        [vm] => Ok(vm.record.id),
        [] if !page.warnings.is_empty() => {
            let text = format!("no VM of the regions that answered is called '{name}'; {}", page.warnings.join("; "));
            let hint = "try again when they answer (novafed link list), or name it by its id";
            Err(CliError::Own(crate::types::ApiError::new(ErrorCode::Unavailable, text).hint(hint)))
        }
        [] => Err(CliError::Own(
            crate::types::ApiError::new(ErrorCode::NotFound, format!("no VM is called '{name}'"))
                .hint("novafed vm list shows those that this region knows of"),
        )),
        many => {
            let which: Vec<_> = many.iter().map(|vm| format!("{} at {}", vm.record.id, vm.place)).collect();
            Err(own(ErrorCode::InvalidArgument, format!("several VMs are called '{name}': {}", which.join(", "))))
        }
    }
}

fn request(args: SpecArgs) -> CreateVm {
    let program = args.program;
    CreateVm {
        spec: VmSpec {
            name: args.name,
            namespace: args.namespace,
            cpu: args.cpu,
            memory_bytes: args.memory,
            disk_bytes: args.disk,
            labels: args.label.into_iter().collect(),
            program: GuestProgram {
                seed: program.seed,
                tick_ms: u32::try_from(program.tick.0).unwrap_or(u32::MAX),
                resident_bytes: program.resident,
                working_set_bytes: program.working_set.unwrap_or(program.resident),
                dirty_bytes_per_second: program.dirty_rate,
                pattern: program.pattern.into(),
                disk_resident_bytes: program.disk_resident,
                disk_bytes_per_second: program.disk_rate,
            },
        },
        placement: PlacementWish { region: args.region, cluster: args.cluster },
    }
}

pub(super) async fn vm(client: &Client, out: &mut Output, verb: VmVerb) -> Result<(), CliError> {
    match verb {
        VmVerb::Create(args) => create(client, out, args).await,
        VmVerb::List { region, cluster, state, label } => {
            let label = (!label.is_empty()).then(|| label.join(","));
            let query = [("region", given(&region)), ("cluster", given(&cluster)), ("state", state), ("label", label)];
            let filtered = query.iter().any(|(_, value)| value.is_some());
            list(out, all(client, "/v2/vms", &query).await?, filtered)
        }
        VmVerb::Show { vm } => {
            let id = find(client, &vm).await?;
            let vm: VmView = client.get(&format!("/v2/vms/{id}")).await?;
            show(out, &vm)
        }
        VmVerb::Start(args) => change(client, out, args, "start").await,
        VmVerb::Stop(args) => change(client, out, args, "stop").await,
        VmVerb::Delete(ChangeArgs { vm, dry_run }) => {
            let id = find(client, &vm).await?;
            let path = with_query(&format!("/v2/vms/{id}"), &[("dryRun", dry_run.then(|| "true".into()))]);
            let answer = client.ask(Ask::delete(path)).await?;
            if out.json() {
                return Ok(out.document(&answer)?);
            }
            let did = if dry_run { "would be deleted" } else { "is deleted" };
            Ok(out.line(&format!("{id} {did}, its disk included"))?)
        }
    }
}

async fn create(client: &Client, out: &mut Output, args: CreateArgs) -> Result<(), CliError> {
    let path = with_query("/v2/vms", &[("dryRun", args.dry_run.then(|| "true".into()))]);
    let made: CreatedVm = client.typed(Ask::post(path).body(&request(args.spec))).await?;
    if out.json() {
        return Ok(out.document(&made)?);
    }
    match &made.vm {
        Some(vm) => {
            let (id, place) = (vm.record.id, &vm.place);
            Ok(out.line(&format!("{id} is {} at {place}: {}", vm.power.word(), made.placement.reasoning))?)
        }
        None => explain(out, &made.placement),
    }
}

async fn change(client: &Client, out: &mut Output, args: ChangeArgs, verb: &str) -> Result<(), CliError> {
    let id = find(client, &args.vm).await?;
    let path = with_query(&format!("/v2/vms/{id}/{verb}"), &[("dryRun", args.dry_run.then(|| "true".into()))]);
    let vm: VmView = client.typed(Ask::post(path)).await?;
    let wanted = word(&vm.record.desired);
    if out.json() {
        out.document(&vm)?;
    } else {
        out.line(&format!("{id} is {} at {} (wanted: {wanted})", vm.power.word(), vm.place))?;
    }
    if args.dry_run || vm.power.word() == wanted {
        return Ok(());
    }
    let text = format!("{id} is not {wanted} yet; that it shall be is recorded, and goes on being tried");
    Err(CliError::Own(
        crate::types::ApiError::new(ErrorCode::DeadlineExceeded, text)
            .hint(format!("what stands in the way: novafed vm show {id}")),
    ))
}

fn list(out: &mut Output, page: Page<VmView>, filtered: bool) -> Result<(), CliError> {
    if out.json() {
        return Ok(out.document(&page)?);
    }
    let row = |vm: &VmView| {
        let spec = &vm.record.spec;
        vec![
            vm.record.id.to_string(),
            spec.name.to_string(),
            vm.place.to_string(),
            if vm.held { "paused (held)".to_owned() } else { vm.power.word().to_owned() },
            spec.cpu.to_string(),
            human_bytes(spec.memory_bytes),
            human_bytes(spec.disk_bytes),
            vm.record.job.map(|job| job.to_string()).unwrap_or_default(),
            age(vm.power_age_ms, vm.stale),
        ]
    };
    let head = ["id", "name", "place", "power", "cpu", "memory", "disk", "moving", "seen"];
    let nothing = match (page.warnings.is_empty(), filtered) {
        (true, false) => "There are no VMs. Make one: novafed vm create NAME",
        (true, true) => "There are no such VMs.",
        (false, _) => "No VM is known to the regions that answered.",
    };
    out.table(&head, page.items.iter().map(row).collect(), nothing)?;
    for warning in &page.warnings {
        note(&format!("warning: {warning}"));
    }
    Ok(())
}

fn show(out: &mut Output, vm: &VmView) -> Result<(), CliError> {
    if out.json() {
        return Ok(out.document(vm)?);
    }
    let (record, spec) = (&vm.record, &vm.record.spec);
    let labels: Vec<_> = spec.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let held = if vm.held { ", held until the decision of its move is known" } else { "" };
    Ok(out.fields(&[
        ("id", record.id.to_string()),
        ("name", format!("{} in namespace {}", spec.name, spec.namespace)),
        ("place", vm.place.to_string()),
        ("why there", record.reasoning.clone()),
        ("wanted", word(&record.desired)),
        ("power", format!("{}{held}, seen {}", vm.power.word(), age(vm.power_age_ms, false))),
        ("cpu", spec.cpu.to_string()),
        ("memory", human_bytes(spec.memory_bytes)),
        ("disk", human_bytes(spec.disk_bytes)),
        ("labels", labels.join(", ")),
        ("moving", record.job.map(|job| job.to_string()).unwrap_or_default()),
        ("fence", record.fence.to_string()),
        ("version", record.resource_version.to_string()),
        ("created", record.created_at.to_string()),
        ("trouble", vm.trouble.clone().unwrap_or_default()),
        ("record seen", age(Some(vm.age_ms), vm.stale)),
    ])?)
}

pub(super) async fn placement(client: &Client, out: &mut Output, verb: PlacementVerb) -> Result<(), CliError> {
    let PlacementVerb::Explain(args) = verb;
    let ask = Ask::post("/v2/placements?dryRun=true").body(&request(args));
    let decision: PlacementDecision = client.typed(ask).await?;
    if out.json() {
        return Ok(out.document(&decision)?);
    }
    explain(out, &decision)
}

fn explain(out: &mut Output, decision: &PlacementDecision) -> Result<(), CliError> {
    let (target, score) = (&decision.target_cluster, decision.score);
    out.line(&format!("It would go to {target} (score {score:.2}): {}", decision.reasoning))?;
    if decision.alternatives.is_empty() {
        return Ok(());
    }
    let row = |other: &crate::admin::ClusterScore| {
        let why = match &other.rejected_by {
            Some(rule) => format!("does not fit: {rule}"),
            None => other.reasons.join(", "),
        };
        vec![other.cluster.to_string(), format!("{:.2}", other.score), why]
    };
    let rows = decision.alternatives.iter().map(row).collect();
    Ok(out.table(&["instead of", "score", "because"], rows, "")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_type_can_not_break_out_of_a_query() {
        let path = with_query("/v2/vms", &[("name", Some("a&b=c d/é".into())), ("x", None)]);
        assert_eq!(path, "/v2/vms?name=a%26b%3Dc%20d%2F%C3%A9");
    }
}
