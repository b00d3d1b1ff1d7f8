//! One request to a region's API, and what may be said of one that has no answer.
//! Owns: how answers of the admin client are told apart. Always: silence is *unknown*, never a failure.
//! Not here: what is asked (`workload.rs`).

use serde_json::Value;

use super::world::World;
use crate::admin::client::{Ask, ClientError};
use crate::chaos::sim::client::Heard;

/// Asks the n-th region.
pub async fn ask(world: &World, n: usize, ask: Ask) -> Heard {
    heard(world.client(n).ask(ask).await)
}

fn heard(answer: Result<Value, ClientError>) -> Heard {
    match answer {
        Ok(value) => Heard::Done(value),
        Err(ClientError::NoNode { .. }) => Heard::Refused("NOT_RUNNING".into()),
        Err(error @ ClientError::Refused { status: 400..500, .. }) => Heard::Refused(error.code().to_string()),
        // A store that failed while it wrote says that it is unavailable.
        Err(error) => Heard::Unknown(error.code().to_string()),
    }
}
