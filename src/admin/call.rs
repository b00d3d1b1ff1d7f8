//! One request as a handler sees it. Owns: reading body, query and headers into types, with errors that name the field;
//! sending a request on to the region that owns its object.
//! Always: a request is forwarded once at most. Not here: limits and deadlines of requests (`api.rs`).

use std::sync::Arc;

use axum::body::{Body, to_bytes};
use axum::extract::{FromRequest, Query, Request};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::region::{Answer, Caller, Forwarded, Region, RequestContext, Target, Whereabouts};
use crate::clock::Clock;
use crate::types::limits::{API_BODY_BYTES_MAX, API_DEADLINE_MS, API_DEADLINE_MS_MAX, IDEMPOTENCY_KEY_BYTES_MAX};
use crate::types::suggest::{nearest, unknown_field};
use crate::types::{ApiError, ErrorCode, Millis, RequestId, Tick};

/// The client's key for a mutation.
pub(super) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// How long the client waits.
pub(super) const DEADLINE: HeaderName = HeaderName::from_static("novafed-deadline-ms");
/// Headers of a request that go with it to another region.
pub(super) const FORWARDED_HEADERS: [HeaderName; 2] = [IDEMPOTENCY_KEY, header::IF_MATCH];
/// Headers of an answer that come back from there.
pub(super) const RETURNED_HEADERS: [HeaderName; 4] =
    [header::CONTENT_TYPE, header::ETAG, header::RETRY_AFTER, header::LOCATION];

/// What every handler shares.
#[derive(Clone)]
pub(super) struct App {
    /// The region.
    pub region: Arc<dyn Region>,
    /// Permits of clients that follow events.
    pub watches: Arc<Semaphore>,
    /// For remaining deadlines.
    pub clock: Clock,
}

/// What `api.rs` knows of a request before it is routed.
#[derive(Debug, Clone)]
pub(super) struct Arrival {
    pub request_id: RequestId,
    pub caller: Caller,
    pub trace: u128,
    pub at: Tick,
    pub deadline: Millis,
}

/// A request, its body read.
pub(super) struct Call {
    pub arrival: Arrival,
    pub headers: HeaderMap,
    method: Method,
    uri: Uri,
    body: Bytes,
}

impl FromRequest<App> for Call {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &App) -> Result<Self, ApiError> {
        let (mut head, body) = request.into_parts();
        let arrival = head.extensions.remove::<Arrival>().expect("api.rs puts an arrival onto each request");
        // The body is in memory already; its size was checked while it was read.
        let body = to_bytes(body, API_BODY_BYTES_MAX).await.map_err(|e| invalid(format!("body: {e}")))?;
        Ok(Call { arrival, headers: head.headers, method: head.method, uri: head.uri, body })
    }
}

/// An `INVALID_ARGUMENT`.
pub(super) fn invalid(message: impl Into<String>) -> ApiError {
    ApiError::new(ErrorCode::InvalidArgument, message)
}

/// Parses an id from a path or query.
pub(super) fn parse<T>(field: &str, text: &str) -> Result<T, ApiError>
where
    T: std::str::FromStr,
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|e| invalid(format!("{field}: {e}")).details(json!({ "field": field })))
}

/// The error for what serde says, with the field and the nearest known one where it names one.
fn bad_shape(what: &str, message: &str) -> ApiError {
    let Some((field, known)) = unknown_field(message) else {
        return invalid(format!("{what}: {message}")).hint("GET /v2/openapi.json describes every request");
    };
    let shown: String = field.chars().take(80).collect();
    let meant = nearest(field, known.iter().copied());
    let hint = match meant {
        Some(meant) => format!("did you mean '{meant}'?"),
        None if known.is_empty() => "nothing can be said here".to_owned(),
        None => format!("known are {}", known.join(", ")),
    };
    invalid(format!("{what}: unknown field '{shown}'"))
        .details(json!({ "field": shown, "nearest": meant, "known": known }))
        .hint(hint)
}

impl Call {
    /// The body as JSON.
    pub fn json(&self) -> Result<Value, ApiError> {
        if self.body.is_empty() {
            return Err(invalid("body: it is empty, a JSON object is expected"));
        }
        serde_json::from_slice(&self.body).map_err(|e| {
            invalid(format!("body: it is not JSON: {e}")).details(json!({ "line": e.line(), "column": e.column() }))
        })
    }

    /// The body as a `T`.
    pub fn body<T: DeserializeOwned>(&self) -> Result<T, ApiError> {
        shaped(self.json()?)
    }

    /// The body as a `T`, or the default if there is none.
    pub fn body_or_default<T: DeserializeOwned + Default>(&self) -> Result<T, ApiError> {
        if self.body.is_empty() { Ok(T::default()) } else { self.body() }
    }

    /// The query as a `T`.
    pub fn query<T: DeserializeOwned>(&self) -> Result<T, ApiError> {
        match Query::<T>::try_from_uri(&self.uri) {
            Ok(Query(query)) => Ok(query),
            Err(e) => Err(bad_shape("query", e.body_text().trim_start_matches("Failed to deserialize query string: "))),
        }
    }

    /// What a mutation brings along. Refuses `If-Match`, which would be ignored.
    pub fn context(&self, dry_run: bool) -> Result<RequestContext, ApiError> {
        if self.headers.contains_key(header::IF_MATCH) {
            return Err(invalid("If-Match: this request has no version that it could match"));
        }
        self.context_with(dry_run, None)
    }

    /// The same for a mutation of something that has a resource version.
    pub fn versioned_context(&self, dry_run: bool) -> Result<RequestContext, ApiError> {
        let if_match = match self.headers.get(header::IF_MATCH).map(|v| v.to_str().unwrap_or("")) {
            None | Some("*") => None,
            Some(text) => Some(text.trim_matches('"').parse().map_err(|_| {
                invalid("If-Match: it is not a resource version").hint("send the ETag of the answer that you have read")
            })?),
        };
        self.context_with(dry_run, if_match)
    }

    fn context_with(&self, dry_run: bool, if_match: Option<u64>) -> Result<RequestContext, ApiError> {
        Ok(RequestContext {
            request_id: self.arrival.request_id,
            caller: self.arrival.caller.clone(),
            idempotency_key: idempotency_key(&self.headers)?,
            fingerprint: fingerprint(&self.method, &self.uri, &self.body),
            deadline: self.arrival.deadline,
            dry_run,
            if_match,
            trace: self.arrival.trace,
        })
    }

    /// Has the region that owns `target` answer, if that is another one.
    pub async fn elsewhere(&self, app: &App, target: Target) -> Result<Option<Response>, ApiError> {
        let to = match app.region.locate(target).await? {
            Whereabouts::Here => return Ok(None),
            Whereabouts::Elsewhere(to) => to,
        };
        if let Some(via) = &self.arrival.caller.via {
            // It was here when `via` looked; a second hop could go round for ever.
            let text = format!("{via} asked {}, but the owner is {to} by now", app.region.name());
            return Err(ApiError::new(ErrorCode::Unavailable, text).hint("ask again in a moment"));
        }
        let passed = app.clock.now().since(self.arrival.at);
        let mut caller = self.arrival.caller.clone();
        caller.via = Some(app.region.name());
        let header = |name: HeaderName| {
            let value = self.headers.get(&name)?.to_str().ok()?;
            Some((name.as_str().to_owned(), value.to_owned()))
        };
        let request = Forwarded {
            method: self.method.to_string(),
            path: self.path_and_query().to_owned(),
            headers: FORWARDED_HEADERS.into_iter().filter_map(header).collect(),
            body: self.body.to_vec(),
            caller,
            deadline: Millis(self.arrival.deadline.0.saturating_sub(passed.0)),
            trace: self.arrival.trace,
        };
        let reply = app.region.forward(to, request).await?;
        let mut response = Response::new(Body::from(reply.body));
        *response.status_mut() = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::BAD_GATEWAY);
        for (name, value) in reply.headers {
            let name = RETURNED_HEADERS.into_iter().find(|known| known.as_str() == name);
            if let (Some(name), Ok(value)) = (name, HeaderValue::from_str(&value)) {
                response.headers_mut().insert(name, value);
            }
        }
        response.extensions_mut().insert(AnsweredElsewhere);
        Ok(Some(response))
    }

    /// Answers a read of `target`: from its owner, or, where that can't be reached, with what is known here
    /// (which carries its age). `version` gives the `ETag`, for what has one.
    pub async fn read<T: Serialize>(
        &self,
        app: &App,
        target: Target,
        known_here: Answer<'_, T>,
        version: fn(&T) -> Option<u64>,
    ) -> Result<Response, ApiError> {
        let view = match self.elsewhere(app, target).await {
            Ok(Some(reply)) => return Ok(reply),
            Ok(None) => known_here.await?,
            Err(e) => match e.code {
                ErrorCode::Unavailable | ErrorCode::DeadlineExceeded | ErrorCode::OutcomeUnknown => {
                    known_here.await.map_err(|_| e)?
                }
                _ => return Err(e),
            },
        };
        let response = ok(&view);
        Ok(match version(&view) {
            Some(version) => tagged(response, version),
            None => response,
        })
    }

    /// Path and query as they came.
    pub fn path_and_query(&self) -> &str {
        self.uri.path_and_query().map_or(self.uri.path(), |p| p.as_str())
    }
}

/// Marks an answer whose document another region made, its request id included.
#[derive(Debug, Clone, Copy)]
pub(super) struct AnsweredElsewhere;

/// A JSON value as a `T`.
pub(super) fn shaped<T: DeserializeOwned>(value: Value) -> Result<T, ApiError> {
    serde_json::from_value(value).map_err(|e| bad_shape("body", &e.to_string()))
}

/// The client's key, checked.
fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let Some(key) = headers.get(IDEMPOTENCY_KEY) else { return Ok(None) };
    let key = key.to_str().unwrap_or("");
    if key.is_empty() || key.len() > IDEMPOTENCY_KEY_BYTES_MAX {
        let text = format!("Idempotency-Key: it is not 1 to {IDEMPOTENCY_KEY_BYTES_MAX} visible ASCII characters");
        return Err(invalid(text));
    }
    Ok(Some(key.to_owned()))
}

/// The deadline that the client asks for.
pub(super) fn deadline(headers: &HeaderMap) -> Result<Millis, ApiError> {
    let Some(text) = headers.get(DEADLINE) else { return Ok(API_DEADLINE_MS) };
    match text.to_str().ok().and_then(|t| t.parse().ok()) {
        Some(ms) if (1..=API_DEADLINE_MS_MAX.0).contains(&ms) => Ok(Millis(ms)),
        _ => {
            Err(invalid(format!("{DEADLINE}: it is not a number of milliseconds from 1 to {}", API_DEADLINE_MS_MAX.0)))
        }
    }
}

/// Digest of what a mutation asks. Two spellings of one JSON document are one request.
fn fingerprint(method: &Method, uri: &Uri, body: &[u8]) -> u64 {
    let mut text = format!("{method} {}\n", uri.path_and_query().map_or(uri.path(), |p| p.as_str())).into_bytes();
    match serde_json::from_slice::<Value>(body) {
        Ok(value) => text.extend(value.to_string().into_bytes()),
        Err(_) => text.extend(body),
    }
    xxhash_rust::xxh3::xxh3_64(&text)
}

/// A document with status 200.
pub(super) fn ok<T: Serialize>(value: &T) -> Response {
    document(StatusCode::OK, value)
}

/// A document.
pub(super) fn document<T: Serialize>(status: StatusCode, value: &T) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => (status, [(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(e) => ApiError::new(ErrorCode::Internal, format!("writing the answer as JSON: {e}")).into_response(),
    }
}

/// The same with its resource version as `ETag`.
pub(super) fn tagged(mut response: Response, version: u64) -> Response {
    if let Ok(tag) = HeaderValue::from_str(&format!("\"{version}\"")) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}

impl IntoResponse for ApiError {
    /// The status, and the error itself as an extension, which `api.rs` writes out with the request's id.
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_spellings_of_one_request_have_one_fingerprint() {
        let of = |uri: &'static str, body: &[u8]| fingerprint(&Method::POST, &Uri::from_static(uri), body);
        assert_eq!(of("/v2/vms", br#"{"a":1,"b":2}"#), of("/v2/vms", br#" { "b": 2, "a": 1 }"#));
        assert_ne!(of("/v2/vms", br#"{"a":1}"#), of("/v2/vms", br#"{"a":2}"#));
        assert_ne!(of("/v2/vms", b""), of("/v2/vms?dryRun=true", b""));
        assert_ne!(of("/v2/vms", b"garbage"), of("/v2/vms", b"garbages"));
    }
}
