//! Federation, clusters, inventory, links: what is known of everybody, with its age.

use axum::extract::{Path, State};
use axum::response::Response;
use serde::Deserialize;
use utoipa::IntoParams;

use crate::admin::call::{App, Call, ok, parse};
use crate::admin::region::{ClusterFilter, PageQuery};
use crate::admin::views::*;
use crate::types::{ApiError, ClusterState, ClusterView, RegionName};

/// The federation as this region sees it
#[utoipa::path(get, path = "/v2/federation/status", tag = "federation", responses(
    (status = 200, body = FederationStatus), (status = "default", body = ErrorDocument)))]
pub(super) async fn status(State(app): State<App>) -> Result<Response, ApiError> {
    Ok(ok(&app.region.status().await?))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ClustersQuery {
    /// Only of this region.
    region: Option<RegionName>,
    /// Only in this state.
    state: Option<ClusterState>,
    /// Where the page before ended (`next`).
    cursor: Option<String>,
    /// Items on the page, 1 to 500; default 100.
    limit: Option<usize>,
}

/// Clusters of all regions, ordered by region and id
#[utoipa::path(get, path = "/v2/clusters", tag = "federation", params(ClustersQuery), responses(
    (status = 200, body = Page<ClusterView>), (status = "default", body = ErrorDocument)))]
pub(super) async fn clusters(State(app): State<App>, call: Call) -> Result<Response, ApiError> {
    let q: ClustersQuery = call.query()?;
    let filter = ClusterFilter { region: q.region, state: q.state };
    let page = PageQuery { cursor: q.cursor, limit: q.limit };
    page.limit()?;
    Ok(ok(&app.region.clusters(filter, page).await?))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RegionQuery {
    /// Only of this region.
    region: Option<RegionName>,
}

/// One cluster, as last heard of
#[utoipa::path(get, path = "/v2/clusters/{id}", tag = "federation", params(
    ("id" = String, Path, description = "The cluster's id"), RegionQuery), responses(
    (status = 200, body = ClusterView), (status = "default", body = ErrorDocument)))]
pub(super) async fn cluster(State(app): State<App>, Path(id): Path<String>, call: Call) -> Result<Response, ApiError> {
    let q: RegionQuery = call.query()?;
    Ok(ok(&app.region.cluster(parse("id", &id)?, q.region).await?))
}

/// What all clusters have, or those of one region
#[utoipa::path(get, path = "/v2/inventory", tag = "federation", params(RegionQuery), responses(
    (status = 200, body = ResourceInventory), (status = "default", body = ErrorDocument)))]
pub(super) async fn inventory(State(app): State<App>, call: Call) -> Result<Response, ApiError> {
    let q: RegionQuery = call.query()?;
    Ok(ok(&app.region.inventory(q.region).await?))
}

/// Links to the peers, with what was measured
#[utoipa::path(get, path = "/v2/links", tag = "federation", responses(
    (status = 200, body = Page<LinkView>), (status = "default", body = ErrorDocument)))]
pub(super) async fn links(State(app): State<App>) -> Result<Response, ApiError> {
    Ok(ok(&Page::last(app.region.links().await?)))
}
