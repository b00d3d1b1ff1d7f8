//! Injected faults: always of the region that is asked, never of another one.

use axum::extract::{Path, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Value, json};

use super::vms::ChangeQuery;
use crate::admin::call::{App, Call, document, invalid, ok, parse, shaped};
use crate::admin::chaos::{ChaosFault, ChaosFaults, InjectFault};
use crate::admin::views::ErrorDocument;
use crate::types::limits::CHAOS_REASON_CHARS_MAX;
use crate::types::suggest::nearest;
use crate::types::{ApiError, ErrorCode, FaultId, FaultSpec, Millis};

/// What a request says beside the fault itself.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Beside {
    #[serde(default)]
    duration_ms: Option<Millis>,
    reason: String,
}

fn bad_field(field: &str, rule: impl std::fmt::Display) -> ApiError {
    invalid(format!("{field}: {rule}")).details(json!({ "field": field }))
}

/// The fault that a body asks for.
fn asked(call: &Call) -> Result<InjectFault, ApiError> {
    let mut body = call.json()?;
    let Some(fields) = body.as_object_mut() else { return Err(invalid("body: it is not a JSON object")) };
    let known = FaultSpec::KINDS;
    let kind = match fields.remove("kind") {
        Some(Value::String(kind)) => kind,
        _ => return Err(bad_field("kind", format!("it is missing; there are {}", known.join(", ")))),
    };
    if !known.contains(&kind.as_str()) {
        let shown: String = kind.chars().take(80).collect();
        let meant = nearest(&kind, known);
        let hint = match meant {
            Some(meant) => format!("did you mean '{meant}'?"),
            None => format!("there are {}", known.join(", ")),
        };
        let details = json!({ "field": "kind", "nearest": meant, "known": known });
        return Err(invalid(format!("kind: there is no kind '{shown}' of fault")).details(details).hint(hint));
    }
    let parameters = fields.remove("parameters").unwrap_or_else(|| json!({}));
    let Beside { duration_ms, reason } = shaped(body)?;
    let reason = reason.trim().to_owned();
    if reason.is_empty() || reason.chars().count() > CHAOS_REASON_CHARS_MAX {
        return Err(bad_field("reason", format!("say why, in 1 to {CHAOS_REASON_CHARS_MAX} characters")));
    }
    let spec: FaultSpec = shaped(json!({ "kind": kind, "parameters": parameters }))?;
    if spec.lasts() && duration_ms.is_none_or(|ms| ms.0 == 0) {
        return Err(bad_field("durationMs", format!("a fault '{kind}' needs a time after which it ends")));
    }
    Ok(InjectFault { spec, duration_ms, reason })
}

/// Another region's word does not disturb this one: whoever wants that comes to its own socket.
fn at_home(call: &Call) -> Result<(), ApiError> {
    match &call.arrival.caller.via {
        None => Ok(()),
        Some(via) => {
            let text = format!("region {via} passed this on, and no other region injects faults here");
            Err(ApiError::new(ErrorCode::PermissionDenied, text).hint("ask at the region's own socket"))
        }
    }
}

/// Injected faults: those that are active, and the last that were
#[utoipa::path(get, path = "/v2/chaos/faults", tag = "chaos", responses(
    (status = 200, body = ChaosFaults), (status = "default", body = ErrorDocument)))]
pub(super) async fn list(State(app): State<App>) -> Result<Response, ApiError> {
    Ok(ok(&app.region.chaos_faults().await?))
}

/// Inject a fault into this region, for a time
///
/// Refused unless `[chaos] allow` is true in the region's configuration. It ends by itself, and with the node.
#[utoipa::path(post, path = "/v2/chaos/faults", tag = "chaos", request_body = InjectFault,
    params(ChangeQuery, ("Idempotency-Key" = Option<String>, Header)), responses(
    (status = 201, body = ChaosFault), (status = 200, description = "A dry run", body = ChaosFault),
    (status = "default", body = ErrorDocument)))]
pub(super) async fn inject(State(app): State<App>, call: Call) -> Result<Response, ApiError> {
    at_home(&call)?;
    let q: ChangeQuery = call.query()?;
    let request = asked(&call)?;
    let fault = app.region.inject_fault(call.context(q.dry_run)?, request).await?;
    let mut response = document(if q.dry_run { StatusCode::OK } else { StatusCode::CREATED }, &fault);
    if let Ok(place) = HeaderValue::from_str(&format!("/v2/chaos/faults/{}", fault.id)) {
        response.headers_mut().insert(header::LOCATION, place);
    }
    Ok(response)
}

/// End a fault before its time
#[utoipa::path(delete, path = "/v2/chaos/faults/{id}", tag = "chaos",
    params(("id" = FaultId, Path), ChangeQuery, ("Idempotency-Key" = Option<String>, Header)), responses(
    (status = 200, body = ChaosFault), (status = "default", body = ErrorDocument)))]
pub(super) async fn stop(State(app): State<App>, Path(id): Path<String>, call: Call) -> Result<Response, ApiError> {
    at_home(&call)?;
    let (id, q): (FaultId, ChangeQuery) = (parse("id", &id)?, call.query()?);
    Ok(ok(&app.region.stop_fault(call.context(q.dry_run)?, id).await?))
}
