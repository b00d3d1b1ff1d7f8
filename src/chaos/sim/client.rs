//! Clients. Owns: one request to one region's API, as a program beside its socket would make it, and what may be said of
//! one that has no answer.
//! Always: silence is *unknown*, never a failure; an answer of a life that runs on another state than the true one counts
//! as silence, because its store is put aside.
//! Not here: what is asked (`workload.rs`).

use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::world::World;
use crate::admin::{Caller, Forwarded};
use crate::types::Millis;

/// How long a client waits.
const DEADLINE: Millis = Millis(10_000);

/// A request.
#[derive(Debug, Clone)]
pub struct Ask {
    method: &'static str,
    path: String,
    body: Vec<u8>,
    key: Option<String>,
    deadline: Millis,
}

impl Ask {
    /// Reads `path`.
    pub fn get(path: impl Into<String>) -> Ask {
        Ask { method: "GET", path: path.into(), body: Vec::new(), key: None, deadline: DEADLINE }
    }
    /// Sends `body` to `path`, once under `key`.
    pub fn post(path: impl Into<String>, key: &str, body: &impl Serialize) -> Ask {
        let body = serde_json::to_vec(body).expect("what clients send is JSON");
        Ask { method: "POST", path: path.into(), body, key: Some(key.to_owned()), deadline: DEADLINE }
    }
    /// Does what `path` names, once under `key`.
    pub fn order(path: impl Into<String>, key: &str) -> Ask {
        Ask { method: "POST", path: path.into(), body: Vec::new(), key: Some(key.to_owned()), deadline: DEADLINE }
    }
    /// Deletes `path`, once under `key`.
    pub fn delete(path: impl Into<String>, key: &str) -> Ask {
        Ask { method: "DELETE", ..Ask::order(path, key) }
    }
}

/// What a client heard.
#[derive(Debug, Clone, PartialEq)]
pub enum Heard {
    /// It was done, or shown.
    Done(Value),
    /// It was refused: surely not done. Its code.
    Refused(String),
    /// It may have been done, or be done yet.
    Unknown(String),
}

impl Heard {
    /// For the trace.
    pub fn word(&self) -> &str {
        match self {
            Heard::Done(_) => "done",
            Heard::Refused(code) | Heard::Unknown(code) => code,
        }
    }
    /// What was shown, as a `T`.
    pub fn shown<T: DeserializeOwned>(&self) -> Option<T> {
        match self {
            Heard::Done(value) => T::deserialize(value).ok(),
            Heard::Refused(_) | Heard::Unknown(_) => None,
        }
    }
}

/// Asks the n-th region.
pub async fn ask(world: &World, n: usize, ask: Ask) -> Heard {
    let region = world.region(n);
    let Some(life) = region.life() else { return Heard::Refused("NOT_RUNNING".into()) };
    let headers = ask.key.map(|key| ("idempotency-key".to_owned(), key)).into_iter().collect();
    let request = Forwarded {
        method: ask.method.to_owned(),
        path: ask.path,
        headers,
        body: ask.body,
        caller: Caller { uid: 0, gid: 0, pid: None, via: None },
        deadline: ask.deadline,
        trace: u128::from(world.dice(1..=u64::MAX)),
    };
    let answered = async { life.gate.through(life.api.dispatch(request)).await };
    let reply = tokio::select! {
        biased;
        () = life.gate.died() => return Heard::Unknown("BROKEN".into()),
        reply = answered => reply,
        () = tokio::time::sleep(ask.deadline.duration() + Millis(1_000).duration()) => {
            return Heard::Unknown("SILENT".into());
        }
    };
    if region.is_replaced() {
        return Heard::Unknown("OF_ANOTHER_STATE".into());
    }
    let document: Value = serde_json::from_slice(&reply.body).unwrap_or(Value::Null);
    if (200..300).contains(&reply.status) {
        return Heard::Done(document);
    }
    let code = document["error"]["code"].as_str().unwrap_or("WITHOUT_CODE").to_owned();
    match reply.status {
        400..500 => Heard::Refused(code),
        // A store that failed while it wrote says that it is unavailable.
        _ => Heard::Unknown(code),
    }
}

/// Asks the n-th region `requests` times at once, again and again, for so long.
pub async fn flood(world: &Arc<World>, n: usize, requests: u32, every: Millis, lasts: Millis) {
    let mut passed = 0;
    while passed < lasts.0 && !world.is_healing() {
        for _ in 0..requests {
            let world = Arc::clone(world);
            tokio::spawn(async move { ask(&world, n, Ask::get("/v2/vms")).await });
        }
        world.until(every).await;
        passed += every.0;
    }
}
