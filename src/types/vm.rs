//! VMs: what is asked for, what is recorded, what is observed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Attempt, ClusterId, Fence, GuestProgram, JobId, NamespaceName, RegionName, VmId, VmName, WallMillis};

/// What a client asks for (plan: `VMSpec`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VmSpec {
    /// Unique per (namespace, region).
    pub name: VmName,
    /// Defaults to `default`.
    #[serde(default = "default_namespace")]
    pub namespace: NamespaceName,
    /// Virtual CPUs.
    pub cpu: u32,
    /// Memory, bytes.
    pub memory_bytes: u64,
    /// Disk, bytes.
    pub disk_bytes: u64,
    /// Free labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// What an embedded guest runs.
    #[serde(default)]
    pub program: GuestProgram,
}

fn default_namespace() -> NamespaceName {
    "default".parse().expect("a literal that matches the grammar")
}

/// What its owner wants of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum DesiredPower {
    /// It is to run.
    Running,
    /// It is to be stopped.
    Stopped,
}

/// What a host says of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum GuestPower {
    /// Ticking.
    Running,
    /// Paused for a switch.
    Paused,
    /// Defined, its disk is there, it does not run.
    Stopped,
    /// It was running when its host died: its memory is lost, its disk is there.
    Lost,
    /// Being received.
    Receiving,
    /// Destroyed after a transfer; only its disk is kept, for the retention window.
    Retired,
}

/// The owning region's record of a VM (architecture §9: a VM's spec, wanted power and place).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct VmRecord {
    /// Its id.
    pub id: VmId,
    /// What was asked for.
    pub spec: VmSpec,
    /// Where it is.
    pub cluster: ClusterId,
    /// What its owner wants.
    pub desired: DesiredPower,
    /// Its current fence.
    pub fence: Fence,
    /// The highest attempt that was ever begun to move it.
    pub attempt: Attempt,
    /// The job that moves it, if one does: an exclusive lock.
    pub job: Option<JobId>,
    /// Why it was placed where it is, in words.
    pub reasoning: String,
    /// Counts changes of this record.
    pub resource_version: u64,
    /// When it was created.
    pub created_at: WallMillis,
}

/// Where a VM is or goes. In JSON it is the text `region/cluster`, in the store and on the wire its two names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The region.
    pub region: RegionName,
    /// The cluster in it.
    pub cluster: ClusterId,
}

impl Serialize for Place {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        if s.is_human_readable() { s.collect_str(self) } else { (&self.region, &self.cluster).serialize(s) }
    }
}

impl<'de> Deserialize<'de> for Place {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        if d.is_human_readable() {
            String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
        } else {
            <(RegionName, ClusterId)>::deserialize(d).map(|(region, cluster)| Place { region, cluster })
        }
    }
}

super::ids::schema_as_text!(Place, "^[a-z0-9-]{1,63}/[a-z0-9-]{1,63}$", "eu/eu-a");

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.region, self.cluster)
    }
}

impl std::str::FromStr for Place {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (region, cluster) =
            text.split_once('/').ok_or_else(|| format!("'{text}' is not a place: write <region>/<cluster>"))?;
        Ok(Place {
            region: region.parse().map_err(|e| format!("{e}"))?,
            cluster: cluster.parse().map_err(|e| format!("{e}"))?,
        })
    }
}
