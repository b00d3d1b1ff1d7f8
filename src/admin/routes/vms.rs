//! VMs and where they go.

use std::collections::BTreeMap;

use axum::extract::{Path, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::IntoParams;

use crate::admin::call::{App, Call, document, invalid, ok, parse, shaped, tagged};
use crate::admin::region::{PageQuery, Target, VmFilter};
use crate::admin::views::*;
use crate::types::{ApiError, ClusterId, RegionName, VmId};

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct VmsQuery {
    /// Only of this region.
    region: Option<RegionName>,
    /// Only of this cluster.
    cluster: Option<ClusterId>,
    /// Only with this observed power.
    state: Option<ObservedPower>,
    /// Only of this name.
    name: Option<String>,
    /// Only of this namespace.
    namespace: Option<String>,
    /// Only with these labels: `key=value,key=value`.
    label: Option<String>,
    /// Where the page before ended (`next`).
    cursor: Option<String>,
    /// Items on the page, 1 to 500; default 100.
    limit: Option<usize>,
}

fn labels(text: &str) -> Result<BTreeMap<String, String>, ApiError> {
    let pair = |pair: &str| match pair.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(invalid(format!("label: '{pair}' is not key=value"))),
    };
    text.split(',').map(pair).collect()
}

/// VMs of all regions, as far as known here, ordered by id
#[utoipa::path(get, path = "/v2/vms", tag = "vms", params(VmsQuery), responses(
    (status = 200, body = Page<VmView>), (status = "default", body = ErrorDocument)))]
pub(super) async fn list(State(app): State<App>, call: Call) -> Result<Response, ApiError> {
    let q: VmsQuery = call.query()?;
    let filter = VmFilter {
        region: q.region,
        cluster: q.cluster,
        state: q.state,
        name: q.name,
        namespace: q.namespace,
        labels: q.label.as_deref().map(labels).transpose()?.unwrap_or_default(),
    };
    let page = PageQuery { cursor: q.cursor, limit: q.limit };
    page.limit()?;
    Ok(ok(&app.region.vms(filter, page).await?))
}

#[derive(Deserialize, Default, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct ChangeQuery {
    /// Decide and answer, but change nothing.
    pub(super) dry_run: bool,
}

/// The body of a creation: a `VMSpec` with, beside its fields, `placement`.
fn creation(call: &Call) -> Result<CreateVm, ApiError> {
    let mut body = call.json()?;
    let wish = body.as_object_mut().and_then(|fields| fields.remove("placement"));
    let spec: crate::types::VmSpec = shaped(body)?;
    let positive = [("cpu", u64::from(spec.cpu)), ("memoryBytes", spec.memory_bytes), ("diskBytes", spec.disk_bytes)];
    if let Some((field, _)) = positive.iter().find(|(_, value)| *value == 0) {
        return Err(invalid(format!("{field}: 0 is not an amount a VM can run with")).details(json!({"field": field})));
    }
    for (field, part, whole) in [
        ("program.residentBytes", spec.program.resident_bytes, spec.memory_bytes),
        ("program.workingSetBytes", spec.program.working_set_bytes, spec.memory_bytes),
        ("program.diskResidentBytes", spec.program.disk_resident_bytes, spec.disk_bytes),
    ] {
        if part > whole {
            return Err(invalid(format!("{field}: {part} is more than the {whole} bytes that the VM has"))
                .details(json!({"field": field, "max": whole})));
        }
    }
    let placement = match wish {
        None | Some(Value::Null) => PlacementWish::default(),
        Some(wish) => shaped(wish)?,
    };
    Ok(CreateVm { spec, placement })
}

/// Place, create and start a VM
///
/// Without `placement.region` the region that is asked keeps it.
#[utoipa::path(post, path = "/v2/vms", tag = "vms", request_body = CreateVm,
    params(ChangeQuery, ("Idempotency-Key" = Option<String>, Header)), responses(
    (status = 201, body = CreatedVm), (status = 200, description = "A dry run", body = CreatedVm),
    (status = "default", body = ErrorDocument)))]
pub(super) async fn create(State(app): State<App>, call: Call) -> Result<Response, ApiError> {
    let q: ChangeQuery = call.query()?;
    let request = creation(&call)?;
    let context = call.context(q.dry_run)?;
    if let Some(region) = &request.placement.region
        && let Some(reply) = call.elsewhere(&app, Target::Region(region.clone())).await?
    {
        return Ok(reply);
    }
    let created = app.region.create_vm(context, request).await?;
    let Some(vm) = created.vm.as_ref().map(|vm| vm.record.id) else { return Ok(ok(&created)) };
    let mut response = document(StatusCode::CREATED, &created);
    if let Ok(place) = HeaderValue::from_str(&format!("/v2/vms/{vm}")) {
        response.headers_mut().insert(header::LOCATION, place);
    }
    Ok(response)
}

/// One VM: its owner's record and what its host says
#[utoipa::path(get, path = "/v2/vms/{id}", tag = "vms", params(("id" = VmId, Path)), responses(
    (status = 200, body = VmView), (status = "default", body = ErrorDocument)))]
pub(super) async fn show(State(app): State<App>, Path(id): Path<String>, call: Call) -> Result<Response, ApiError> {
    let id: VmId = parse("id", &id)?;
    call.read(&app, Target::Vm(id), app.region.vm(id), |vm| Some(vm.record.resource_version)).await
}

/// Delete a VM and its disk
#[utoipa::path(delete, path = "/v2/vms/{id}", tag = "vms", params(("id" = VmId, Path), ChangeQuery,
    ("Idempotency-Key" = Option<String>, Header), ("If-Match" = Option<String>, Header)), responses(
    (status = 200, body = Deleted), (status = "default", body = ErrorDocument)))]
pub(super) async fn delete(State(app): State<App>, Path(id): Path<String>, call: Call) -> Result<Response, ApiError> {
    let (id, q): (VmId, ChangeQuery) = (parse("id", &id)?, call.query()?);
    let context = call.versioned_context(q.dry_run)?;
    match call.elsewhere(&app, Target::Vm(id)).await? {
        Some(reply) => Ok(reply),
        None => Ok(ok(&app.region.delete_vm(context, id).await?)),
    }
}

/// Have a VM run
#[utoipa::path(post, path = "/v2/vms/{id}/start", tag = "vms", params(("id" = VmId, Path), ChangeQuery,
    ("Idempotency-Key" = Option<String>, Header), ("If-Match" = Option<String>, Header)), responses(
    (status = 200, body = VmView), (status = "default", body = ErrorDocument)))]
pub(super) async fn start(State(app): State<App>, Path(id): Path<String>, call: Call) -> Result<Response, ApiError> {
    let (id, q): (VmId, ChangeQuery) = (parse("id", &id)?, call.query()?);
    let context = call.versioned_context(q.dry_run)?;
    if let Some(reply) = call.elsewhere(&app, Target::Vm(id)).await? {
        return Ok(reply);
    }
    let vm = app.region.start_vm(context, id).await?;
    Ok(tagged(ok(&vm), vm.record.resource_version))
}

/// Have a VM stopped; its disk stays
#[utoipa::path(post, path = "/v2/vms/{id}/stop", tag = "vms", params(("id" = VmId, Path), ChangeQuery,
    ("Idempotency-Key" = Option<String>, Header), ("If-Match" = Option<String>, Header)), responses(
    (status = 200, body = VmView), (status = "default", body = ErrorDocument)))]
pub(super) async fn stop(State(app): State<App>, Path(id): Path<String>, call: Call) -> Result<Response, ApiError> {
    let (id, q): (VmId, ChangeQuery) = (parse("id", &id)?, call.query()?);
    let context = call.versioned_context(q.dry_run)?;
    if let Some(reply) = call.elsewhere(&app, Target::Vm(id)).await? {
        return Ok(reply);
    }
    let vm = app.region.stop_vm(context, id).await?;
    Ok(tagged(ok(&vm), vm.record.resource_version))
}

/// Where a VM would go and why, with every cluster that it would not go to
///
/// Only with `dryRun=true`: a placement is made by creating the VM.
#[utoipa::path(post, path = "/v2/placements", tag = "vms", request_body = CreateVm, params(ChangeQuery), responses(
    (status = 200, body = PlacementDecision), (status = "default", body = ErrorDocument)))]
pub(super) async fn explain(State(app): State<App>, call: Call) -> Result<Response, ApiError> {
    let q: ChangeQuery = call.query()?;
    if !q.dry_run {
        return Err(invalid("placements are made by creating a VM; this path only explains")
            .hint("add ?dryRun=true, or POST the same body to /v2/vms"));
    }
    let request = creation(&call)?;
    if let Some(region) = &request.placement.region
        && let Some(reply) = call.elsewhere(&app, Target::Region(region.clone())).await?
    {
        return Ok(reply);
    }
    Ok(ok(&app.region.explain_placement(request).await?))
}
