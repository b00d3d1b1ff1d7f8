//! Following events. Owns: the list form and the stream form (server-sent events) of one and the same query.
//! Always: a stream is bounded, ends with its client, its job or the node, and can be taken up again after the last
//! sequence that was seen (`after`, or `Last-Event-ID`). Not here: what is an event (the region).

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hyper::body::Frame;
use serde::Deserialize;
use tokio::sync::mpsc;
use utoipa::IntoParams;

use super::api::busy;
use super::call::{App, Call, invalid, ok};
use super::region::PageQuery;
use super::views::{EventView, Page};
use crate::types::{ApiError, JobId};

/// Events that wait for a client that reads slowly.
const WAITING_MAX: usize = 16;
/// A stream on which nothing happens says so this often: proxies and clients keep it open, and one that left is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Events that are fetched in one go.
const FETCH_MAX: usize = 100;

/// Which events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Follow {
    /// What happens in the region.
    Region,
    /// What is written into a job's journal.
    Job(JobId),
}

#[derive(Deserialize, Default, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct FollowQuery {
    /// Only events after this sequence.
    after: Option<u64>,
    /// Events in the list, 1 to 500; default 100.
    limit: Option<usize>,
    /// Stream events as they happen.
    watch: bool,
}

impl Follow {
    async fn fetch(self, app: &App, after: u64, limit: usize) -> Result<Vec<EventView>, ApiError> {
        match self {
            Follow::Region => app.region.events(after, limit).await,
            Follow::Job(id) => app.region.migration_events(id, after, limit).await,
        }
    }

    async fn ended(self, app: &App) -> bool {
        match self {
            Follow::Region => false,
            Follow::Job(id) => app.region.migration(id).await.is_ok_and(|job| job.state.is_end()),
        }
    }
}

/// Answers a query for events.
pub(super) async fn follow(app: &App, call: &Call, what: Follow) -> Result<Response, ApiError> {
    let q: FollowQuery = call.query()?;
    let resumed = match call.headers.get("last-event-id") {
        Some(id) => Some(
            id.to_str().ok().and_then(|id| id.parse().ok()).ok_or_else(|| invalid("Last-Event-ID: it is no number"))?,
        ),
        None => None,
    };
    let after = q.after.or(resumed).unwrap_or(0);
    // A stream can't be forwarded: its answer would have no end.
    if !q.watch || call.arrival.caller.via.is_some() {
        let limit = PageQuery { cursor: None, limit: q.limit }.limit()?;
        let items = what.fetch(app, after, limit).await?;
        let next = if items.len() == limit { items.last().map(|e| e.sequence.to_string()) } else { None };
        return Ok(ok(&Page { items, next, warnings: Vec::new() }));
    }
    let permit = app.watches.clone().try_acquire_owned().map_err(|_| busy("too many clients follow events"))?;
    // Fetched before the answer begins, so that what can't be followed is an error and not an empty stream.
    let first = what.fetch(app, after, FETCH_MAX).await?;
    let (sender, receiver) = mpsc::channel(WAITING_MAX);
    let app = app.clone();
    tokio::spawn(async move {
        let _permit = permit;
        pump(&app, what, after, first, sender).await;
    });
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")];
    Ok((headers, Body::new(Frames(receiver))).into_response())
}

/// Sends events until the client leaves, the job ends or the region fails.
async fn pump(app: &App, what: Follow, mut after: u64, mut events: Vec<EventView>, sender: mpsc::Sender<Bytes>) {
    let mut changes = app.region.changes();
    loop {
        for event in &events {
            after = event.sequence;
            let data = serde_json::to_string(event).unwrap_or_default();
            let text = format!("id: {}\nevent: {}\ndata: {data}\n\n", event.sequence, event.kind);
            if sender.send(text.into()).await.is_err() {
                return;
            }
        }
        // Seen before it is fetched again: a change in between is then found by that fetch or by the next wait.
        changes.borrow_and_update();
        // Asked before the fetch: a job that has ended writes nothing more, so what is fetched then is the rest.
        let ended = what.ended(app).await;
        events = match what.fetch(app, after, FETCH_MAX).await {
            Ok(more) => more,
            Err(_) => return,
        };
        if !events.is_empty() {
            continue;
        }
        if ended {
            return;
        }
        tokio::select! {
            biased;
            () = sender.closed() => return,
            changed = changes.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(KEEP_ALIVE) => {
                if sender.send(Bytes::from_static(b": still here\n\n")).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// A response body that is fed from a channel.
struct Frames(mpsc::Receiver<Bytes>);

impl hyper::body::Body for Frames {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.0.poll_recv(context).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}
