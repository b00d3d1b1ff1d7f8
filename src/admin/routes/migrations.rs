//! Migrations: plan, start, follow, and what a person may tell a job.

use axum::extract::{Path, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use serde::Deserialize;
use utoipa::IntoParams;

use super::vms::ChangeQuery;
use crate::admin::call::{App, Call, document, invalid, ok, parse};
use crate::admin::region::{MigrationFilter, PageQuery, Target};
use crate::admin::stream::{Follow, FollowQuery, follow};
use crate::admin::views::*;
use crate::types::{ApiError, JobId, JobState, MigrationPlan, MigrationStatus, PlanId, VmId};

/// NovaCron's five statuses, by which migrations can be filtered.
const STATUSES: [&str; 5] = ["pending", "running", "completed", "failed", "cancelled"];

/// Assess a move and plan it
///
/// A check that blocks gives a plan with `executable: false`, which says why.
#[utoipa::path(post, path = "/v2/migration-plans", tag = "migrations", request_body = PlanRequest,
    params(ChangeQuery, ("Idempotency-Key" = Option<String>, Header)), responses(
    (status = 201, body = MigrationPlan), (status = 200, description = "A dry run", body = MigrationPlan),
    (status = "default", body = ErrorDocument)))]
pub(super) async fn plan(State(app): State<App>, call: Call) -> Result<Response, ApiError> {
    let (q, request): (ChangeQuery, PlanRequest) = (call.query()?, call.body()?);
    let context = call.context(q.dry_run)?;
    if request.source.as_ref() == Some(&request.target) {
        return Err(invalid(format!("targetClusterID: {} is where the VM is", request.target)));
    }
    if let Some(reply) = call.elsewhere(&app, Target::Vm(request.vm)).await? {
        return Ok(reply);
    }
    let plan = app.region.create_plan(context, request).await?;
    Ok(document(if q.dry_run { StatusCode::OK } else { StatusCode::CREATED }, &plan))
}

/// A plan
#[utoipa::path(get, path = "/v2/migration-plans/{id}", tag = "migrations", params(("id" = PlanId, Path)), responses(
    (status = 200, body = MigrationPlan), (status = "default", body = ErrorDocument)))]
pub(super) async fn show_plan(
    State(app): State<App>,
    Path(id): Path<String>,
    call: Call,
) -> Result<Response, ApiError> {
    let id: PlanId = parse("id", &id)?;
    call.read(&app, Target::Plan(id), app.region.plan(id), |_| None).await
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct MigrationsQuery {
    /// Only of this VM.
    vm: Option<VmId>,
    /// Only in this state.
    state: Option<JobState>,
    /// Only with this status: pending, running, completed, failed or cancelled.
    status: Option<String>,
    /// Where the page before ended (`next`).
    cursor: Option<String>,
    /// Items on the page, 1 to 500; default 100.
    limit: Option<usize>,
}

/// Migrations out of this region, ordered by id
#[utoipa::path(get, path = "/v2/migrations", tag = "migrations", params(MigrationsQuery), responses(
    (status = 200, body = Page<MigrationStatus>), (status = "default", body = ErrorDocument)))]
pub(super) async fn list(State(app): State<App>, call: Call) -> Result<Response, ApiError> {
    let q: MigrationsQuery = call.query()?;
    if let Some(status) = q.status.as_ref().filter(|s| !STATUSES.contains(&s.as_str())) {
        let shown: String = status.chars().take(80).collect();
        return Err(invalid(format!("status: '{shown}' is none of {}", STATUSES.join(", "))));
    }
    let filter = MigrationFilter { vm: q.vm, state: q.state, status: q.status };
    let page = PageQuery { cursor: q.cursor, limit: q.limit };
    page.limit()?;
    Ok(ok(&app.region.migrations(filter, page).await?))
}

/// Start what was planned
#[utoipa::path(post, path = "/v2/migrations", tag = "migrations", request_body = StartMigration,
    params(ChangeQuery, ("Idempotency-Key" = Option<String>, Header)), responses(
    (status = 202, body = MigrationStatus), (status = 200, description = "A dry run", body = MigrationStatus),
    (status = "default", body = ErrorDocument)))]
pub(super) async fn start(State(app): State<App>, call: Call) -> Result<Response, ApiError> {
    let (q, request): (ChangeQuery, StartMigration) = (call.query()?, call.body()?);
    let context = call.context(q.dry_run)?;
    if let Some(reply) = call.elsewhere(&app, Target::Plan(request.plan)).await? {
        return Ok(reply);
    }
    let job = app.region.start_migration(context, request.plan).await?;
    let mut response = document(if q.dry_run { StatusCode::OK } else { StatusCode::ACCEPTED }, &job);
    if let Ok(place) = HeaderValue::from_str(&format!("/v2/migrations/{}", job.id)) {
        response.headers_mut().insert(header::LOCATION, place);
    }
    Ok(response)
}

/// How a migration stands
#[utoipa::path(get, path = "/v2/migrations/{id}", tag = "migrations", params(("id" = JobId, Path)), responses(
    (status = 200, body = MigrationStatus), (status = "default", body = ErrorDocument)))]
pub(super) async fn show(State(app): State<App>, Path(id): Path<String>, call: Call) -> Result<Response, ApiError> {
    let id: JobId = parse("id", &id)?;
    call.read(&app, Target::Job(id), app.region.migration(id), |_| None).await
}

/// The journal of a migration; with `watch=true` as a stream of server-sent events until the job's end
#[utoipa::path(get, path = "/v2/migrations/{id}/events", tag = "migrations",
    params(("id" = JobId, Path), FollowQuery), responses(
    (status = 200, body = Page<EventView>), (status = "default", body = ErrorDocument)))]
pub(super) async fn events(State(app): State<App>, Path(id): Path<String>, call: Call) -> Result<Response, ApiError> {
    let id: JobId = parse("id", &id)?;
    if let Some(reply) = call.elsewhere(&app, Target::Job(id)).await? {
        // Another region's journal comes as a list; a client that follows asks again with `after`.
        return Ok(reply);
    }
    follow(&app, &call, Follow::Job(id)).await
}

macro_rules! steer {
    ($(#[$doc:meta])* $name:ident, $path:literal, $steer:expr) => {
        $(#[$doc])*
        #[utoipa::path(post, path = $path, tag = "migrations", request_body = Option<SteerRequest>,
            params(("id" = JobId, Path), ChangeQuery, ("Idempotency-Key" = Option<String>, Header)), responses(
            (status = 200, body = MigrationStatus), (status = "default", body = ErrorDocument)))]
        pub(super) async fn $name(
            State(app): State<App>,
            Path(id): Path<String>,
            call: Call,
        ) -> Result<Response, ApiError> {
            let (id, q): (JobId, ChangeQuery) = (parse("id", &id)?, call.query()?);
            let request: SteerRequest = call.body_or_default()?;
            let context = call.context(q.dry_run)?;
            match call.elsewhere(&app, Target::Job(id)).await? {
                Some(reply) => Ok(reply),
                None => Ok(ok(&app.region.steer_migration(context, id, $steer, request).await?)),
            }
        }
    };
}

steer!(
    /// Stop a migration before its decision; the VM stays where it is
    cancel, "/v2/migrations/{id}/cancel", Steer::Cancel
);
steer!(
    /// Try a parked job's step again
    retry, "/v2/migrations/{id}/retry", Steer::Retry
);
steer!(
    /// Find out how a step of unknown outcome ended
    probe, "/v2/migrations/{id}/probe", Steer::Probe
);
steer!(
    /// Undo to a running source, before the decision
    undo, "/v2/migrations/{id}/undo", Steer::Undo
);
steer!(
    /// Give a parked job up, leaving what it owes to be cleaned up
    abandon, "/v2/migrations/{id}/abandon", Steer::Abandon
);
