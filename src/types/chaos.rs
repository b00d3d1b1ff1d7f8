//! Faults that a person injects into a running region. Owns: which kinds there are and what each is told.
//! Always: words from outside that only another layer knows (a call of a host, a kill point) are texts here and are
//! judged where they are known. Not here: what is active when (`decision/chaos.rs`), how it is done (`node/faults/`).

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{ClusterId, Millis, RegionName};

/// Which of the two ways between this region and a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum Direction {
    /// Both.
    #[default]
    Both,
    /// From this region to the peer.
    Out,
    /// From the peer to this region.
    In,
}

/// The one way that something takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Toward {
    /// To the peer.
    Out,
    /// From it.
    In,
}

impl Direction {
    /// Whether what goes that way is meant.
    pub const fn covers(self, toward: Toward) -> bool {
        matches!((self, toward), (Self::Both, _) | (Self::Out, Toward::Out) | (Self::In, Toward::In))
    }

    /// In words.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Both => "both ways",
            Self::Out => "outwards",
            Self::In => "inwards",
        }
    }
}

/// Nothing passes between this region and a peer. Both ways: the connections are gone and none comes about. One way:
/// they stand, and what is sent that way never arrives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CutParameters {
    /// The peer.
    pub peer: RegionName,
    /// Which way.
    #[serde(default)]
    pub direction: Direction,
}

/// Messages to or from a peer take longer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DelayParameters {
    /// The peer.
    pub peer: RegionName,
    /// So much longer, each way that is meant.
    pub delay_ms: Millis,
    /// And up to so much more, drawn for each message, so that they overtake each other.
    #[serde(default)]
    pub jitter_ms: Millis,
    /// Which way.
    #[serde(default)]
    pub direction: Direction,
}

/// Messages to or from a peer get lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LoseParameters {
    /// The peer.
    pub peer: RegionName,
    /// So many of a thousand.
    pub permille: u32,
    /// Which way.
    #[serde(default)]
    pub direction: Direction,
}

/// What is copied to or from a peer passes a narrow place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NarrowParameters {
    /// The peer.
    pub peer: RegionName,
    /// All transfers together, each way that is meant.
    pub bytes_per_second: u64,
    /// Which way.
    #[serde(default)]
    pub direction: Direction,
}

/// Calls of a cluster's host go wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HostParameters {
    /// The cluster. Others on the same host have the same fault.
    pub cluster: ClusterId,
    /// The kind of call, for example `hold`.
    pub call: String,
    /// How it goes wrong: `slow`, `refuses`, `hangs`, `saysFailed`, `dies`, `forgets`.
    pub how: String,
    /// With `slow`: how much later it is done.
    #[serde(default)]
    pub late_ms: Option<Millis>,
    /// The next so many calls of that kind.
    #[serde(default = "once")]
    pub times: u32,
}

fn once() -> u32 {
    1
}

/// Each commit of the region's store takes longer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SlowStoreParameters {
    /// So much longer.
    pub delay_ms: Millis,
}

/// An actor is killed where it is, as by a panic; its supervisor starts it anew. Done at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CrashParameters {
    /// Its supervisor and itself, as they stand in the tree: `clusters/cluster-eu-a`.
    pub actor: String,
}

/// The node sends SIGKILL to itself: at once, or at the next time that it passes a point of a migration.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct KillParameters {
    /// The point, `step:side:phase`; left out, now.
    pub at: Option<String>,
}

/// A fault: its kind and what it is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", content = "parameters", rename_all = "kebab-case")]
pub enum FaultSpec {
    /// No way to a peer.
    Cut(CutParameters),
    /// A long way.
    Delay(DelayParameters),
    /// A lossy way.
    Lose(LoseParameters),
    /// A narrow way.
    Narrow(NarrowParameters),
    /// A host that does otherwise than it is told.
    Host(HostParameters),
    /// A slow disk.
    SlowStore(SlowStoreParameters),
    /// An actor that crashes.
    Crash(CrashParameters),
    /// A node that dies.
    Kill(KillParameters),
}

impl FaultSpec {
    /// All kinds, as they are written.
    pub const KINDS: [&'static str; 8] = ["cut", "delay", "lose", "narrow", "host", "slow-store", "crash", "kill"];

    /// Its kind, as it is written.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Cut(_) => "cut",
            Self::Delay(_) => "delay",
            Self::Lose(_) => "lose",
            Self::Narrow(_) => "narrow",
            Self::Host(_) => "host",
            Self::SlowStore(_) => "slow-store",
            Self::Crash(_) => "crash",
            Self::Kill(_) => "kill",
        }
    }

    /// Whether it lasts; else it is done at once, and over.
    pub const fn lasts(&self) -> bool {
        match self {
            Self::Cut(_) | Self::Delay(_) | Self::Lose(_) | Self::Narrow(_) | Self::Host(_) | Self::SlowStore(_) => {
                true
            }
            Self::Crash(_) => false,
            Self::Kill(kill) => kill.at.is_some(),
        }
    }

    /// What it is done to.
    pub fn subject(&self) -> String {
        match self {
            Self::Cut(CutParameters { peer, .. })
            | Self::Delay(DelayParameters { peer, .. })
            | Self::Lose(LoseParameters { peer, .. })
            | Self::Narrow(NarrowParameters { peer, .. }) => format!("link {peer}"),
            Self::Host(host) => format!("cluster {}", host.cluster),
            Self::SlowStore(_) => "store".to_owned(),
            Self::Crash(crash) => format!("actor {}", crash.actor),
            Self::Kill(_) => "node".to_owned(),
        }
    }
}

impl fmt::Display for FaultSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cut(cut) => write!(f, "the link to {} is cut, {}", cut.peer, cut.direction.words()),
            Self::Delay(delay) => {
                write!(f, "messages over the link to {} take {} longer", delay.peer, delay.delay_ms)?;
                if delay.jitter_ms.0 > 0 {
                    write!(f, " and up to {} more", delay.jitter_ms)?;
                }
                write!(f, ", {}", delay.direction.words())
            }
            Self::Lose(lose) => write!(
                f,
                "{} of 1000 messages over the link to {} get lost, {}",
                lose.permille,
                lose.peer,
                lose.direction.words()
            ),
            Self::Narrow(narrow) => write!(
                f,
                "transfers over the link to {} pass at {}/s, {}",
                narrow.peer,
                super::human_bytes(narrow.bytes_per_second),
                narrow.direction.words()
            ),
            Self::Host(host) => {
                let late = host.late_ms.map(|ms| format!(", {ms} late")).unwrap_or_default();
                let HostParameters { cluster, call, how, times, .. } = host;
                write!(f, "the next {times} calls '{call}' at the host of {cluster} go wrong ({how}{late})")
            }
            Self::SlowStore(slow) => write!(f, "each commit of the store takes {} longer", slow.delay_ms),
            Self::Crash(crash) => write!(f, "the actor {} crashes", crash.actor),
            Self::Kill(KillParameters { at: None }) => f.write_str("the node kills itself"),
            Self::Kill(KillParameters { at: Some(point) }) => write!(f, "the node kills itself at {point}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_written_as_the_list_says() {
        let of = |kind: &str| match kind {
            "cut" => serde_json::json!({ "peer": "us" }),
            "delay" => serde_json::json!({ "peer": "us", "delayMs": 5 }),
            "lose" => serde_json::json!({ "peer": "us", "permille": 5, "direction": "in" }),
            "narrow" => serde_json::json!({ "peer": "us", "bytesPerSecond": 5 }),
            "host" => serde_json::json!({ "cluster": "eu-a", "call": "hold", "how": "refuses" }),
            "slow-store" => serde_json::json!({ "delayMs": 5 }),
            "crash" => serde_json::json!({ "actor": "links/link-us" }),
            _ => serde_json::json!({}),
        };
        for kind in FaultSpec::KINDS {
            let value = serde_json::json!({ "kind": kind, "parameters": of(kind) });
            let spec: FaultSpec = serde_json::from_value(value).unwrap();
            assert_eq!(spec.kind(), kind);
            let again: FaultSpec = serde_json::from_value(serde_json::to_value(&spec).unwrap()).unwrap();
            assert_eq!(again, spec);
            assert!(!spec.to_string().is_empty() && !spec.subject().is_empty());
        }
    }

    #[test]
    fn a_direction_covers_its_own_way_and_both_cover_each() {
        let table = [(Direction::Both, true, true), (Direction::Out, true, false), (Direction::In, false, true)];
        for (direction, out, back) in table {
            assert_eq!((direction.covers(Toward::Out), direction.covers(Toward::In)), (out, back), "{direction:?}");
        }
    }
}
