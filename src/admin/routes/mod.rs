//! Paths. Owns: the table of routes, from which the router is built and against which the description is checked.
//! Always: a path that is not in the table does not exist; unknown paths and wrong methods get the one error shape.
//! Not here: what the paths do (the modules below), documents (`views.rs`).

mod chaos;
mod federation;
mod migrations;
mod observe;
mod vms;

use axum::Router;
use axum::http::{Method, Uri};
use axum::routing::{MethodFilter, on};
use utoipa::OpenApi;

use super::call::{App, invalid};
use super::views::ErrorDocument;
use crate::types::suggest::nearest;
use crate::types::{ApiError, ErrorCode};

macro_rules! table {
    ($($method:ident $path:literal => $module:ident::$handler:ident;)*) => {
        /// Every route: its method and its path.
        pub const ROUTES: &[(&str, &str)] = &[$((stringify!($method), $path)),*];

        fn routed(router: Router<App>) -> Router<App> {
            router$(.route($path, on(MethodFilter::$method, $module::$handler)))*
        }

        #[derive(OpenApi)]
        #[openapi(
            info(
                title = "novafed",
                description = "The API of one region of a federation. Every error is an `ErrorDocument`. Durations are \
                    nanoseconds with a twin in milliseconds, or milliseconds where the name says so; times are RFC 3339 \
                    in UTC; lists are pages in a stable order. Mutations take an `Idempotency-Key`: the same key again \
                    gives the same result.",
                license(name = "Apache-2.0"),
            ),
            paths($($module::$handler),*),
            components(schemas(ErrorDocument)),
        )]
        struct Description;
    };
}

table! {
    GET "/livez" => observe::livez;
    GET "/readyz" => observe::readyz;
    GET "/v2/federation/status" => federation::status;
    GET "/v2/clusters" => federation::clusters;
    GET "/v2/clusters/{id}" => federation::cluster;
    GET "/v2/inventory" => federation::inventory;
    GET "/v2/links" => federation::links;
    GET "/v2/vms" => vms::list;
    POST "/v2/vms" => vms::create;
    GET "/v2/vms/{id}" => vms::show;
    DELETE "/v2/vms/{id}" => vms::delete;
    POST "/v2/vms/{id}/start" => vms::start;
    POST "/v2/vms/{id}/stop" => vms::stop;
    POST "/v2/placements" => vms::explain;
    POST "/v2/migration-plans" => migrations::plan;
    GET "/v2/migration-plans/{id}" => migrations::show_plan;
    GET "/v2/migrations" => migrations::list;
    POST "/v2/migrations" => migrations::start;
    GET "/v2/migrations/{id}" => migrations::show;
    GET "/v2/migrations/{id}/events" => migrations::events;
    POST "/v2/migrations/{id}/cancel" => migrations::cancel;
    POST "/v2/migrations/{id}/retry" => migrations::retry;
    POST "/v2/migrations/{id}/probe" => migrations::probe;
    POST "/v2/migrations/{id}/undo" => migrations::undo;
    POST "/v2/migrations/{id}/abandon" => migrations::abandon;
    GET "/v2/chaos/faults" => chaos::list;
    POST "/v2/chaos/faults" => chaos::inject;
    DELETE "/v2/chaos/faults/{id}" => chaos::stop;
    GET "/v2/events" => observe::events;
    GET "/v2/operations" => observe::operations;
    GET "/v2/tree" => observe::tree;
    POST "/v2/tree/{supervisor}/{actor}/restart" => observe::restart_actor;
    GET "/v2/store" => observe::store;
    GET "/v2/metrics" => observe::metrics;
    GET "/v2/openapi.json" => observe::openapi;
}

/// The router of a region's API.
pub(super) fn router(app: App) -> Router {
    routed(Router::new()).fallback(no_such_path).method_not_allowed_fallback(wrong_method).with_state(app)
}

/// The API's description (OpenAPI 3.1), made from the code.
pub fn openapi() -> utoipa::openapi::OpenApi {
    Description::openapi()
}

/// Whether `path` is one of the paths that `template` stands for.
fn matches(template: &str, path: &str) -> bool {
    let (mut template, mut path) = (template.split('/'), path.split('/'));
    loop {
        match (template.next(), path.next()) {
            (None, None) => return true,
            (Some(t), Some(p)) if t == p || (t.starts_with('{') && !p.is_empty()) => {}
            _ => return false,
        }
    }
}

/// The path as the table spells it, for metrics: their number of labels must not depend on what clients send.
pub(super) fn endpoint(path: &str) -> &'static str {
    ROUTES.iter().map(|(_, template)| *template).find(|template| matches(template, path)).unwrap_or("unknown")
}

async fn no_such_path(uri: Uri) -> ApiError {
    let path: String = uri.path().chars().take(120).collect();
    let near = nearest(&path, ROUTES.iter().map(|(_, template)| *template));
    ApiError::new(ErrorCode::NotFound, format!("there is no path {path}")).hint(match near {
        Some(near) => format!("did you mean {near}? GET /v2/openapi.json lists every path"),
        None => "GET /v2/openapi.json lists every path".to_owned(),
    })
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    let template = endpoint(uri.path());
    let allowed: Vec<_> = ROUTES.iter().filter(|(_, path)| *path == template).map(|(method, _)| *method).collect();
    invalid(format!("{template} can't be used with {method}")).hint(format!("use {}", allowed.join(" or ")))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_description_has_every_route_and_no_other() {
        let document = serde_json::to_value(openapi()).unwrap();
        let mut described = BTreeSet::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for method in item.as_object().unwrap().keys() {
                described.insert((method.to_uppercase(), path.clone()));
            }
        }
        let routes: BTreeSet<_> = ROUTES.iter().map(|(m, p)| ((*m).to_owned(), (*p).to_owned())).collect();
        assert_eq!(described, routes);
        assert_eq!(routes.len(), ROUTES.len(), "a route stands in the table twice");
    }

    #[test]
    fn every_reference_of_the_description_leads_somewhere() {
        let document = serde_json::to_value(openapi()).unwrap();
        let mut open = vec![&document];
        let mut seen = 0;
        while let Some(value) = open.pop() {
            match value {
                serde_json::Value::Object(map) => {
                    if let Some(reference) = map.get("$ref").and_then(|r| r.as_str()) {
                        seen += 1;
                        let pointer = reference.strip_prefix('#').expect("a reference inside the document");
                        assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
                    }
                    open.extend(map.values());
                }
                serde_json::Value::Array(list) => open.extend(list),
                _ => {}
            }
        }
        assert!(seen > 50, "only {seen} references");
    }

    #[test]
    fn a_path_is_counted_under_its_template() {
        assert_eq!(endpoint("/v2/vms/vm-1-1-1/start"), "/v2/vms/{id}/start");
        assert_eq!(endpoint("/v2/vms/"), "unknown");
        assert_eq!(endpoint("/etc/passwd"), "unknown");
    }
}
