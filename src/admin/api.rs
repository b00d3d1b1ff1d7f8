//! A request from its arrival to its answer. Owns: request ids, deadlines, admission, the one error document, the audit
//! record of each mutation, and the API's metrics.
//! Always: a mutation that was begun goes on when its client leaves or its deadline passes, and is recorded when it ends.
//! Not here: sockets (`server.rs`), what a path means (`routes/`).

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use http_body_util::{BodyExt, Limited};
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::Semaphore;
use tracing::Instrument;

use super::call::{AnsweredElsewhere, App, Arrival, DEADLINE, IDEMPOTENCY_KEY, RETURNED_HEADERS, deadline, invalid};
use super::region::{AuditRecord, Caller, Forwarded, ForwardedReply, Region};
use super::routes;
use super::views::ErrorDocument;
use crate::clock::Clock;
use crate::types::limits::{
    API_BODY_BYTES_MAX, API_READ_MS_MAX, API_REQUESTS_MAX, API_RETRY_MS, API_WATCHES_MAX, FRAME_BYTES_MAX,
};
use crate::types::{ApiError, ErrorCode, RequestId};

/// The API of one region, with or without a socket.
#[derive(Clone)]
pub struct Api {
    region: Arc<dyn Region>,
    router: Router,
    permits: Arc<Semaphore>,
    clock: Clock,
}

impl Api {
    /// The API of `region`.
    pub fn new(region: Arc<dyn Region>, clock: Clock) -> Api {
        let app = App {
            region: Arc::clone(&region),
            watches: Arc::new(Semaphore::new(API_WATCHES_MAX)),
            clock: clock.clone(),
        };
        Api { region, router: routes::router(app), permits: Arc::new(Semaphore::new(API_REQUESTS_MAX)), clock }
    }

    /// Executes a request that another region forwarded, as that region's client.
    pub async fn dispatch(&self, request: Forwarded) -> ForwardedReply {
        let mut headers = HeaderMap::new();
        for (name, value) in request.headers.iter().take(8) {
            if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), HeaderValue::from_str(value)) {
                headers.insert(name, value);
            }
        }
        if let Ok(value) = HeaderValue::from_str(&request.deadline.0.to_string()) {
            headers.insert(DEADLINE, value);
        }
        let parsed = request.method.parse::<Method>().ok().zip(request.path.parse::<Uri>().ok());
        let response = match parsed {
            Some((method, uri)) if request.body.len() <= API_BODY_BYTES_MAX => {
                self.answer(method, uri, headers, Ok(request.body.into()), request.caller, Some(request.trace)).await
            }
            _ => self.refuse(invalid("the forwarded request is malformed")),
        };
        let (head, body) = response.into_parts();
        let header = |name: HeaderName| {
            let value = head.headers.get(&name)?.to_str().ok()?;
            Some((name.as_str().to_owned(), value.to_owned()))
        };
        match to_bytes(body, FRAME_BYTES_MAX / 2).await {
            Ok(body) => ForwardedReply {
                status: head.status.as_u16(),
                headers: RETURNED_HEADERS.into_iter().filter_map(header).collect(),
                body: body.to_vec(),
            },
            Err(_) => {
                let error = ApiError::new(ErrorCode::Internal, "the answer is too large to be sent to another region")
                    .hint("ask for fewer items with `limit`");
                let document = ErrorDocument { error, request_id: self.region.next_request().to_string() };
                ForwardedReply {
                    status: ErrorCode::Internal.http_status(),
                    headers: vec![(header::CONTENT_TYPE.to_string(), "application/json".into())],
                    body: serde_json::to_vec(&document).unwrap_or_default(),
                }
            }
        }
    }

    /// Answers a request that came over a socket.
    pub(super) async fn serve(&self, request: Request<hyper::body::Incoming>, caller: Caller) -> Response {
        let (head, body) = request.into_parts();
        let body = read(body).await;
        let unread = body.is_err();
        let mut response = self.answer(head.method, head.uri, head.headers, body, caller, None).await;
        if unread {
            // What is left of the body must not be taken for the next request.
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    /// The answer for somebody who gets no further.
    pub(super) fn refuse(&self, error: ApiError) -> Response {
        written_out(error.into_response(), self.region.next_request())
    }

    async fn answer(
        &self,
        method: Method,
        uri: Uri,
        headers: HeaderMap,
        body: Result<Bytes, ApiError>,
        caller: Caller,
        trace: Option<u128>,
    ) -> Response {
        let request_id = self.region.next_request();
        let at = self.clock.now();
        let mutation = !method.is_safe();
        let endpoint = routes::endpoint(uri.path());
        let trace = trace.or_else(|| trace_of(&headers)).unwrap_or_else(|| fastrand::u128(1..));
        let span = tracing::info_span!("api", request = %request_id, method = method_label(&method), endpoint, trace = format!("{trace:032x}"));
        let record = mutation.then(|| AuditRecord {
            request_id,
            at: self.clock.wall(),
            caller: caller.clone(),
            method: method.to_string(),
            path: uri.path().chars().take(256).collect(),
            idempotency_key: headers.get(IDEMPOTENCY_KEY).and_then(|v| v.to_str().ok()).map(str::to_owned),
            reason: body.as_deref().ok().and_then(reason_in),
            dry_run: uri.query().is_some_and(|q| q.split('&').any(|pair| pair == "dryRun=true")),
            status: 0,
            code: None,
            took_ms: Default::default(),
        });
        let labels = [("method", method_label(&method).to_owned()), ("endpoint", endpoint.to_owned())];
        let limit = deadline(&headers);
        let work = match (limit.clone(), body) {
            (Err(e), _) | (_, Err(e)) => Work::Refused(e),
            (Ok(deadline), Ok(body)) => {
                let arrival = Arrival { request_id, caller, trace, at, deadline };
                let mut request = Request::new(Body::from(body));
                (*request.method_mut(), *request.uri_mut(), *request.headers_mut()) = (method, uri, headers);
                request.extensions_mut().insert(arrival);
                Work::Routed(request)
            }
        };
        let permit = Arc::clone(&self.permits).try_acquire_owned().ok();
        let this = self.clone();
        // A task of its own: it outlives a client that leaves, and its panic is one failed request.
        let task = tokio::spawn(
            async move {
                let response = match (work, permit) {
                    (Work::Refused(e), _) => e.into_response(),
                    (_, None) => busy("too many requests are at work").into_response(),
                    (Work::Routed(request), Some(_permit)) => {
                        let routed = TowerToHyperService::new(this.router.clone()).call(request).await;
                        routed.unwrap_or_else(|never| match never {})
                    }
                };
                this.ended(response, record, request_id, at, labels).await
            }
            .instrument(span),
        );
        let wait = limit.map_or(Duration::ZERO, |ms| ms.duration()) + Duration::from_millis(50);
        let error = match tokio::time::timeout(wait, task).await {
            Ok(Ok(response)) => return response,
            Ok(Err(panic)) => ApiError::new(ErrorCode::Internal, format!("answering the request failed: {panic}"))
                .hint("this is a bug: please report the log lines that carry this request id"),
            Err(_) if mutation => {
                ApiError::new(ErrorCode::OutcomeUnknown, "the deadline passed while the request was carried out").hint(
                    "it may still be carried out: repeat it with the same Idempotency-Key to learn how it ended, or \
                     look at the object",
                )
            }
            Err(_) => ApiError::new(ErrorCode::DeadlineExceeded, "the deadline passed before there was an answer")
                .hint("ask again, or allow more time"),
        };
        written_out(error.into_response(), request_id)
    }

    /// Writes the error out, counts, and records a mutation.
    async fn ended(
        &self,
        response: Response,
        record: Option<AuditRecord>,
        request_id: RequestId,
        at: crate::types::Tick,
        labels: [(&'static str, String); 2],
    ) -> Response {
        let code = response.extensions().get::<ApiError>().map(|e| e.code);
        let response = written_out(response, request_id);
        let took_ms = self.clock.now().since(at);
        let status = response.status().as_u16();
        metrics::histogram!("novacron_federation_api_duration_seconds", &labels)
            .record(took_ms.duration().as_secs_f64());
        let [method, endpoint] = labels;
        let counted = [method, endpoint, ("status", status.to_string())];
        metrics::counter!("novacron_federation_api_requests_total", &counted).increment(1);
        if let Some(mut record) = record {
            (record.status, record.code, record.took_ms) = (status, code, took_ms);
            tracing::info!(
                target: "audit",
                request = %record.request_id,
                uid = record.caller.uid,
                pid = record.caller.pid,
                via = record.caller.via.as_ref().map(|r| r.as_str()),
                method = record.method,
                path = record.path,
                key = record.idempotency_key,
                dry_run = record.dry_run,
                status,
                code = record.code.map(|c| c.to_string()),
                took_ms = took_ms.0,
            );
            if let Err(e) = self.region.audit(record).await {
                tracing::error!(request = %request_id, error = %e, "the audit record could not be kept");
            }
        }
        response
    }
}

/// Reads a request's body, as far as it may go and as long as it may take.
async fn read(body: hyper::body::Incoming) -> Result<Bytes, ApiError> {
    let too_long = || {
        Err(invalid(format!("body: it is longer than {API_BODY_BYTES_MAX} bytes"))
            .details(json!({ "bytesMax": API_BODY_BYTES_MAX })))
    };
    // What it says of itself is believed: it may never send so much, and the wait would be for nothing.
    if hyper::body::Body::size_hint(&body).lower() > API_BODY_BYTES_MAX as u64 {
        return too_long();
    }
    let all = Limited::new(body, API_BODY_BYTES_MAX).collect();
    match tokio::time::timeout(API_READ_MS_MAX.duration(), all).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(e)) if e.is::<http_body_util::LengthLimitError>() => too_long(),
        Ok(Err(e)) => Err(invalid(format!("body: reading it failed: {e}"))),
        Err(_) => {
            let text = format!("body: it did not arrive within {API_READ_MS_MAX}");
            Err(ApiError::new(ErrorCode::DeadlineExceeded, text).hint("send the whole body at once"))
        }
    }
}

/// What is to be done with a request.
enum Work {
    /// Answer with an error.
    Refused(ApiError),
    /// Route it.
    Routed(Request<Body>),
}

/// A `BUSY` with the time after which another try makes sense.
pub(super) fn busy(why: &str) -> ApiError {
    ApiError::new(ErrorCode::Busy, why)
        .details(json!({ "retryAfterMs": API_RETRY_MS }))
        .hint(format!("try again in {API_RETRY_MS}"))
}

/// Gives an error response its document and every response its request id.
fn written_out(mut response: Response, request_id: RequestId) -> Response {
    let known = response.extensions_mut().remove::<ApiError>();
    let made_elsewhere = response.extensions().get::<AnsweredElsewhere>().is_some();
    let failed = response.status().is_client_error() || response.status().is_server_error();
    if known.is_some() || (failed && !made_elsewhere) {
        // Without one of our errors it is the router itself that refused, in plain text: a path that is not UTF-8.
        let error = known.unwrap_or_else(|| invalid("the request's path or query can't be read"));
        let retry_after = (error.code == ErrorCode::Busy)
            .then(|| error.details.get("retryAfterMs").and_then(serde_json::Value::as_u64).unwrap_or(API_RETRY_MS.0))
            .or_else(|| matches!(error.code, ErrorCode::Unavailable | ErrorCode::NoQuorum).then_some(1000));
        let status = StatusCode::from_u16(error.code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let document = ErrorDocument { error, request_id: request_id.to_string() };
        let headers = response.headers().clone();
        response = super::call::document(status, &document);
        if let Some(allow) = headers.get(header::ALLOW) {
            response.headers_mut().insert(header::ALLOW, allow.clone());
        }
        if let Some(ms) = retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(ms.div_ceil(1000).max(1)));
        }
    }
    if let Ok(value) = HeaderValue::from_str(&request_id.to_string()) {
        response.headers_mut().insert("x-request-id", value);
    }
    response
}

/// A method as metrics count it: how many labels there are must not depend on what clients send.
fn method_label(method: &Method) -> &'static str {
    const KNOWN: [Method; 6] = [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];
    const NAMES: [&str; 6] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"];
    KNOWN.iter().position(|known| known == method).map_or("other", |at| NAMES[at])
}

/// The trace id of a W3C `traceparent`.
fn trace_of(headers: &HeaderMap) -> Option<u128> {
    let mut parts = headers.get("traceparent")?.to_str().ok()?.split('-');
    let (version, trace) = (parts.next()?, parts.next()?);
    let id = u128::from_str_radix(trace, 16).ok().filter(|id| *id != 0)?;
    (version.len() == 2 && trace.len() == 32).then_some(id)
}

/// The `reason` that a request's body gives, whatever else is in it.
fn reason_in(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Given {
        reason: Option<String>,
    }
    let given: Given = serde_json::from_slice(body).ok()?;
    given.reason.map(|reason| reason.chars().take(500).collect())
}
