//! Clusters: capacity, health and what other regions see of them.

use serde::{Deserialize, Serialize};

use super::{ClusterId, HostName, Millis, RegionName};

/// An amount of what a cluster has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// Virtual CPUs.
    pub cpu: u64,
    /// Memory, bytes.
    pub memory_bytes: u64,
    /// Disk, bytes.
    pub disk_bytes: u64,
}

impl Resources {
    /// The sum, saturating.
    pub fn plus(self, other: Resources) -> Resources {
        Resources {
            cpu: self.cpu.saturating_add(other.cpu),
            memory_bytes: self.memory_bytes.saturating_add(other.memory_bytes),
            disk_bytes: self.disk_bytes.saturating_add(other.disk_bytes),
        }
    }
    /// The difference, at least zero.
    pub fn minus(self, other: Resources) -> Resources {
        Resources {
            cpu: self.cpu.saturating_sub(other.cpu),
            memory_bytes: self.memory_bytes.saturating_sub(other.memory_bytes),
            disk_bytes: self.disk_bytes.saturating_sub(other.disk_bytes),
        }
    }
    /// Whether `other` fits into this.
    pub fn holds(self, other: Resources) -> bool {
        other.cpu <= self.cpu && other.memory_bytes <= self.memory_bytes && other.disk_bytes <= self.disk_bytes
    }
}

/// State of a cluster, from evidence (`decision/membership.rs`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum ClusterState {
    /// Its driver answers.
    Connected,
    /// It answers late, or not each time.
    Degraded,
    /// It does not answer.
    Disconnected,
    /// Nothing is known yet.
    Unknown,
}

/// What a region says of one of its clusters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClusterView {
    /// Its id.
    pub id: ClusterId,
    /// Its region.
    pub region: RegionName,
    /// The host that serves it.
    pub host: HostName,
    /// The driver, for example `embedded`.
    pub driver: String,
    /// Its state.
    pub state: ClusterState,
    /// Why it is in that state.
    pub reason: String,
    /// How long it has been in that state.
    pub since_ms: Millis,
    /// What it has.
    pub capacity: Resources,
    /// What its VMs use.
    pub used: Resources,
    /// What is reserved for VMs on their way.
    pub reserved: Resources,
    /// How many VMs it has.
    pub vms: u64,
    /// How long ago, where it is shown, its host last told of it; null while it never has.
    pub age_ms: Option<Millis>,
    /// Older than the bound within which a view counts as fresh.
    pub stale: bool,
}

impl ClusterView {
    /// How old it is, in words.
    pub fn age(&self) -> String {
        self.age_ms.map_or_else(|| "not seen yet".to_owned(), |age| format!("{age} old"))
    }
    /// What is neither used nor reserved.
    pub fn free(&self) -> Resources {
        self.capacity.minus(self.used).minus(self.reserved)
    }
}
