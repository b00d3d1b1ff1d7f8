//! What runs, what happened, what is counted.

use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use utoipa::IntoParams;

use crate::admin::call::{App, Call, ok};
use crate::admin::region::PageQuery;
use crate::admin::stream::{Follow, FollowQuery, follow};
use crate::admin::views::*;
use crate::types::ApiError;

/// The process answers
#[utoipa::path(get, path = "/livez", tag = "health", responses((status = 200, body = Object)))]
pub(super) async fn livez() -> Response {
    ok(&serde_json::json!({ "alive": true }))
}

/// The region takes new work
#[utoipa::path(get, path = "/readyz", tag = "health", responses(
    (status = 200, body = Object), (status = "default", body = ErrorDocument)))]
pub(super) async fn readyz(State(app): State<App>) -> Result<Response, ApiError> {
    app.region.ready().await?;
    Ok(ok(&serde_json::json!({ "ready": true })))
}

/// What happened in this region; with `watch=true` as a stream of server-sent events
#[utoipa::path(get, path = "/v2/events", tag = "observe", params(FollowQuery), responses(
    (status = 200, body = Page<EventView>), (status = "default", body = ErrorDocument)))]
pub(super) async fn events(State(app): State<App>, call: Call) -> Result<Response, ApiError> {
    follow(&app, &call, Follow::Region).await
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ListQuery {
    /// Where the page before ended (`next`).
    cursor: Option<String>,
    /// Items on the page, 1 to 500; default 100.
    limit: Option<usize>,
}

/// Jobs and owed clean-ups, ordered by id
#[utoipa::path(get, path = "/v2/operations", tag = "observe", params(ListQuery), responses(
    (status = 200, body = Page<OperationView>), (status = "default", body = ErrorDocument)))]
pub(super) async fn operations(State(app): State<App>, call: Call) -> Result<Response, ApiError> {
    let q: ListQuery = call.query()?;
    let page = PageQuery { cursor: q.cursor, limit: q.limit };
    page.limit()?;
    Ok(ok(&app.region.operations(page).await?))
}

/// The live tree of actors
#[utoipa::path(get, path = "/v2/tree", tag = "observe", responses(
    (status = 200, body = TreeNode), (status = "default", body = ErrorDocument)))]
pub(super) async fn tree(State(app): State<App>) -> Result<Response, ApiError> {
    Ok(ok(&app.region.tree().await?))
}

/// A query without anything in it: what can't be tried dry must not be taken for it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NothingElse {}

/// Start an actor anew and forgive its crashes: the way out of a parked one
#[utoipa::path(post, path = "/v2/tree/{supervisor}/{actor}/restart", tag = "observe",
    params(("supervisor" = String, Path), ("actor" = String, Path)), responses(
    (status = 200, body = TreeNode), (status = "default", body = ErrorDocument)))]
pub(super) async fn restart_actor(
    State(app): State<App>,
    Path((supervisor, actor)): Path<(String, String)>,
    call: Call,
) -> Result<Response, ApiError> {
    let NothingElse {} = call.query()?;
    Ok(ok(&app.region.restart_actor(supervisor, actor).await?))
}

/// The region's store
#[utoipa::path(get, path = "/v2/store", tag = "observe", responses(
    (status = 200, body = StoreStats), (status = "default", body = ErrorDocument)))]
pub(super) async fn store(State(app): State<App>) -> Result<Response, ApiError> {
    Ok(ok(&app.region.store().await?))
}

/// Metrics as Prometheus text
#[utoipa::path(get, path = "/v2/metrics", tag = "observe", responses(
    (status = 200, body = String, content_type = "text/plain"), (status = "default", body = ErrorDocument)))]
pub(super) async fn metrics(State(app): State<App>) -> Result<Response, ApiError> {
    let text = app.region.metrics().await?;
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response())
}

/// This description
#[utoipa::path(get, path = "/v2/openapi.json", tag = "observe", responses((status = 200, body = Object)))]
pub(super) async fn openapi() -> Response {
    ok(&super::openapi())
}
