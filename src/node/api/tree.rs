//! The live tree of actors behind the API. Owns: how it is shown, and the way out of a parked actor.
//! Always: it is shown without asking any actor, so that it shows also what hangs.

use super::{RegionApi, not_found};
use crate::actors::{SupervisorError, Tree, TreeState};
use crate::admin::*;
use crate::decision::supervision::Refusal;
use crate::types::*;

impl RegionApi {
    pub(super) async fn tree_now(&self) -> Result<TreeNode, ApiError> {
        let now = self.ctx.clock.wall();
        Ok(shown_tree(self.root.tree(), now))
    }

    pub(super) async fn restart_actor_now(&self, supervisor: String, actor: String) -> Result<TreeNode, ApiError> {
        let found = self.groups.get(supervisor.as_str()).ok_or_else(|| {
            let known: Vec<&str> = self.groups.keys().copied().collect();
            let text = format!("there is no supervisor '{supervisor}': there are {}", known.join(", "));
            ApiError::new(ErrorCode::NotFound, text).hint("names stand in: novafed tree")
        })?;
        found.restart_child(actor.as_str()).await.map_err(|error| {
            let code = match &error {
                SupervisorError::Refused(Refusal::Unknown(_)) => ErrorCode::NotFound,
                SupervisorError::Busy { .. } => ErrorCode::Busy,
                _ => ErrorCode::Unavailable,
            };
            ApiError::new(code, format!("{supervisor}/{actor} can't be started anew: {}", chain(&error)))
                .hint("names stand in: novafed tree")
        })?;
        self.ctx.events.note(self.ctx.clock.wall(), "actor.restarted", &actor, "started anew by request");
        let tree = shown_tree(found.tree(), self.ctx.clock.wall());
        tree.children.into_iter().find(|child| child.name == actor).ok_or_else(|| not_found("actor", actor))
    }
}

fn shown_tree(tree: Tree, now: WallMillis) -> TreeNode {
    let ago = |since: u64| Millis(now.0.saturating_sub(since));
    let (state, since_ms, reason) = match tree.state {
        TreeState::Starting => (ActorState::Restarting, Millis(0), Some("it is being started".to_owned())),
        TreeState::Running { since } => (ActorState::Running, ago(since), None),
        TreeState::Restarting { .. } => (ActorState::Restarting, Millis(0), tree.last_failure),
        TreeState::Waiting { .. } => (ActorState::Waiting, Millis(0), tree.last_failure),
        TreeState::Stopping { since } => (ActorState::Stopped, ago(since), Some("it is being stopped".to_owned())),
        TreeState::Parked { reason, since } => (ActorState::Parked, ago(since), Some(reason)),
        TreeState::Stopped => (ActorState::Stopped, Millis(0), None),
    };
    TreeNode {
        name: tree.id,
        state,
        since_ms,
        restarts: tree.restarts,
        queue: tree.queue,
        oldest_message_ms: tree.oldest_ms.map(Millis),
        reason,
        children: tree.children.into_iter().map(|child| shown_tree(child, now)).collect(),
    }
}
