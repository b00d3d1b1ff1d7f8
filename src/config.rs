//! The configuration of a region: `node.toml`. Owns: which keys there are, their defaults, and what a bad value is told.
//! Always: an unknown key is refused with the nearest known one; a bad value names field, value and rule; relative paths
//! count from the directory. Not here: what is done with the values.

pub mod quantity;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

pub use crate::admin::telemetry::{LogConfig, LogFormat};
use crate::decision::migration::steps::KillPoint;
use crate::types::limits::{
    CHAOS_MS, CHAOS_MS_MAX, DOWNTIME_MS_MAX, JOBS_OPEN_MAX, JOBS_RUNNING, RETENTION_MS, ROUNDS_MAX,
    STORE_RESERVE_BYTES, SWITCH_DEADLINE_MS, SWITCH_DEADLINE_MS_MAX,
};
use crate::types::suggest::{nearest, unknown_field};
use crate::types::units::MIB;
use crate::types::{ClusterId, FederationName, HostName, Millis, RegionName, RegionNumber, Resources};

/// Name of the file in a region's directory.
pub const FILE_NAME: &str = "node.toml";
/// UDP port of QUIC unless the configuration says otherwise (architecture §10).
pub const PORT: u16 = 7443;

/// Why a configuration can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("reading {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    /// It is not TOML, or a value has the wrong type or form.
    #[error("{path}: {message}")]
    Syntax { path: PathBuf, message: String },
    /// It has a key that does not exist.
    #[error("{path}, line {line}: unknown key '{key}'{}", .nearest.as_ref().map(|n| format!(", did you mean '{n}'?")).unwrap_or_default())]
    UnknownKey { path: PathBuf, line: usize, key: String, nearest: Option<String> },
    /// A value breaks a rule.
    #[error("{path}: {field} = {value}: {rule}")]
    Value { path: PathBuf, field: String, value: String, rule: String },
}

impl ConfigError {
    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::Read { path, source } if source.kind() == io::ErrorKind::NotFound => format!(
                "make a region there with: novafed init --dir {} --region NAME --federation NAME",
                path.parent().unwrap_or(Path::new(".")).display()
            ),
            Self::Read { .. } => "check the file's owner and mode".into(),
            Self::Syntax { .. } | Self::UnknownKey { .. } | Self::Value { .. } => {
                "config/node.toml in the source tree shows and explains every key".into()
            }
        }
    }
}

/// `node.toml` as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Who this region is.
    pub region: RegionConfig,
    /// Where it listens.
    #[serde(default)]
    pub listen: ListenConfig,
    /// The other regions.
    #[serde(default, rename = "peer")]
    pub peers: Vec<PeerConfig>,
    /// Its clusters.
    #[serde(default, rename = "cluster")]
    pub clusters: Vec<ClusterConfig>,
    /// Its store.
    #[serde(default)]
    pub store: StoreConfig,
    /// Defaults of migrations.
    #[serde(default)]
    pub migration: MigrationConfig,
    /// Logs.
    #[serde(default)]
    pub log: LogConfig,
    /// Faults for tests.
    #[serde(default)]
    pub chaos: ChaosConfig,
}

/// Section `[region]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegionConfig {
    /// Its name.
    pub name: RegionName,
    /// Its federation.
    pub federation: FederationName,
    /// Its number, the first part of the ids that it mints; never that of another region, past ones included.
    pub number: RegionNumber,
}

/// Section `[listen]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ListenConfig {
    /// UDP address of QUIC.
    pub address: SocketAddr,
}

impl Default for ListenConfig {
    fn default() -> Self {
        Self { address: SocketAddr::from(([0, 0, 0, 0], PORT)) }
    }
}

/// A `[[peer]]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerConfig {
    /// Its name.
    pub region: RegionName,
    /// Its number.
    pub number: RegionNumber,
    /// Where it listens: `host:port`.
    pub address: String,
    /// Its CA, a PEM file.
    pub ca: PathBuf,
}

/// A `[[cluster]]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterConfig {
    /// Its id.
    pub id: ClusterId,
    /// The host process that serves it; left out, one of the cluster's own name. Clusters may share one.
    #[serde(default, rename = "host")]
    host_name: Option<HostName>,
    /// What runs its VMs.
    #[serde(default)]
    pub driver: Driver,
    /// What it has.
    #[serde(default)]
    pub capacity: CapacityConfig,
}

impl ClusterConfig {
    /// The host process that serves it.
    pub fn host(&self) -> HostName {
        match &self.host_name {
            Some(host) => host.clone(),
            None => self.id.as_str().parse().expect("ids of clusters and names of hosts have one grammar"),
        }
    }
}

/// Drivers that there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// The hypervisor that is built in.
    #[default]
    Embedded,
}

/// What a cluster offers; of the embedded driver, what its host gives out at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CapacityConfig {
    /// Virtual CPUs.
    pub cpu: u64,
    /// Memory.
    #[serde(deserialize_with = "quantity::size")]
    pub memory: u64,
    /// Disk.
    #[serde(deserialize_with = "quantity::size")]
    pub disk: u64,
}

impl Default for CapacityConfig {
    fn default() -> Self {
        Self { cpu: 16, memory: 4096 * MIB, disk: 16_384 * MIB }
    }
}

impl Driver {
    /// Its name, as a cluster's view and a plan's checks show it.
    pub fn name(self) -> &'static str {
        match self {
            Driver::Embedded => crate::drivers::embedded::NAME,
        }
    }
}

impl CapacityConfig {
    /// The same as an amount.
    pub const fn resources(&self) -> Resources {
        Resources { cpu: self.cpu, memory_bytes: self.memory, disk_bytes: self.disk }
    }
}

/// Where the store's key comes from.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeySource {
    /// A key file as `novafed init` writes it.
    File(PathBuf),
    /// A command that prints what would stand in it; its first word is the program.
    Command(Vec<String>),
}

/// Section `[store]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StoreConfig {
    /// What its page cache may take.
    #[serde(deserialize_with = "quantity::size")]
    pub cache: u64,
    /// Below so much free space new work is refused.
    #[serde(deserialize_with = "quantity::size")]
    pub reserve: u64,
    /// Its key.
    pub key: KeySource,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self { cache: 64 * MIB, reserve: STORE_RESERVE_BYTES, key: KeySource::File("store.key".into()) }
    }
}

/// Section `[migration]`: what holds where a request says nothing.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MigrationConfig {
    /// Blackout that a plan may take.
    #[serde(alias = "max_downtime_ms", deserialize_with = "quantity::duration")]
    pub max_downtime: Millis,
    /// From pause to watchdog.
    #[serde(alias = "switch_deadline_ms", deserialize_with = "quantity::duration")]
    pub switch_deadline: Millis,
    /// Rounds of pre-copy before a job gives up converging.
    pub rounds_max: u32,
    /// Jobs that this region runs at once; the others wait in line.
    pub running_max: usize,
    /// Cap on each transfer, bytes per second; left out, none.
    #[serde(deserialize_with = "quantity::size_option")]
    pub bandwidth_max: Option<u64>,
    /// How long a retired source disk is kept.
    #[serde(alias = "retention_ms", deserialize_with = "quantity::duration")]
    pub retention: Millis,
}

impl Default for MigrationConfig {
    fn default() -> Self {
        Self {
            max_downtime: DOWNTIME_MS_MAX,
            switch_deadline: SWITCH_DEADLINE_MS,
            rounds_max: ROUNDS_MAX,
            running_max: JOBS_RUNNING,
            bandwidth_max: None,
            retention: RETENTION_MS,
        }
    }
}

/// Section `[chaos]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ChaosConfig {
    /// Whether the rest of this section is honoured, and faults may be injected.
    pub allow: bool,
    /// How long one injected fault may last.
    #[serde(alias = "max_ms", deserialize_with = "quantity::duration")]
    pub max: Millis,
    /// `step:side:phase` at which the process sends SIGKILL to itself.
    #[serde(alias = "killAt", deserialize_with = "kill_point")]
    pub kill_at: Option<KillPoint>,
}

impl Default for ChaosConfig {
    fn default() -> Self {
        Self { allow: false, max: CHAOS_MS, kill_at: None }
    }
}

fn kill_point<'de, D: Deserializer<'de>>(from: D) -> Result<Option<KillPoint>, D::Error> {
    String::deserialize(from)?.parse().map(Some).map_err(D::Error::custom)
}

impl Config {
    /// Reads `directory/node.toml`.
    pub fn load(directory: &Path) -> Result<Config, ConfigError> {
        let path = directory.join(FILE_NAME);
        let text = fs::read_to_string(&path).map_err(|source| ConfigError::Read { path: path.clone(), source })?;
        Config::parse(&text, &path)
    }

    /// Parses the text of the file `path`, whose directory relative paths count from.
    pub fn parse(text: &str, path: &Path) -> Result<Config, ConfigError> {
        let mut config: Config = toml::from_str(text).map_err(|e| syntax(text, path, &e))?;
        config.check(path)?;
        // Absolute, so that it does not matter who joins them with what afterwards.
        let whole = std::path::absolute(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let directory = whole.parent().unwrap_or(Path::new("/"));
        for peer in &mut config.peers {
            peer.ca = directory.join(&peer.ca);
        }
        if let KeySource::File(file) = &mut config.store.key {
            *file = directory.join(&*file);
        }
        Ok(config)
    }

    /// Rules that the types don't hold.
    fn check(&self, path: &Path) -> Result<(), ConfigError> {
        let bad = |field: String, value: &dyn std::fmt::Display, rule: &str| {
            Err(ConfigError::Value { path: path.into(), field, value: value.to_string(), rule: rule.into() })
        };
        let mut names = BTreeSet::from([&self.region.name]);
        let mut numbers = BTreeSet::from([self.region.number]);
        if self.region.number.0 == 0 {
            return bad("region.number".into(), &0, "numbers of regions begin at 1");
        }
        for (i, peer) in self.peers.iter().enumerate() {
            if !names.insert(&peer.region) {
                return bad(format!("peer[{i}].region"), &peer.region, "another region has that name");
            }
            if peer.number.0 == 0 || !numbers.insert(peer.number) {
                let rule = "it must be at least 1 and no other region's";
                return bad(format!("peer[{i}].number"), &peer.number, rule);
            }
            let port = peer
                .address
                .rsplit_once(':')
                .and_then(|(host, port)| port.parse::<u16>().ok().filter(|port| *port != 0 && !host.is_empty()));
            if port.is_none() {
                return bad(
                    format!("peer[{i}].address"),
                    &peer.address,
                    "write host:port, for example us.example.org:7443",
                );
            }
        }
        let mut ids = BTreeSet::new();
        for (i, cluster) in self.clusters.iter().enumerate() {
            if !ids.insert(&cluster.id) {
                return bad(format!("cluster[{i}].id"), &cluster.id, "another cluster of this region has that id");
            }
            let CapacityConfig { cpu, memory, disk } = cluster.capacity;
            if let Some((name, _)) = [("cpu", cpu), ("memory", memory), ("disk", disk)].iter().find(|(_, n)| *n == 0) {
                return bad(format!("cluster[{i}].capacity.{name}"), &0, "a cluster without it can't run a VM");
            }
        }
        if let KeySource::Command(words) = &self.store.key
            && words.is_empty()
        {
            return bad("store.key.command".into(), &"[]", "its first word is the program to run");
        }
        if self.store.cache < MIB {
            return bad("store.cache".into(), &self.store.cache, "it must be at least 1 MiB");
        }
        let migration = &self.migration;
        if migration.max_downtime >= migration.switch_deadline {
            let rule = format!("it must be below migration.switch_deadline ({})", migration.switch_deadline);
            return bad("migration.max_downtime".into(), &migration.max_downtime, &rule);
        }
        if migration.switch_deadline > SWITCH_DEADLINE_MS_MAX {
            let rule = format!("it must be at most {SWITCH_DEADLINE_MS_MAX}: a guest would be paused for so long");
            return bad("migration.switch_deadline".into(), &migration.switch_deadline, &rule);
        }
        if migration.max_downtime == Millis(0) {
            return bad("migration.max_downtime".into(), &migration.max_downtime, "no switch takes no time");
        }
        if migration.rounds_max == 0 {
            return bad("migration.rounds_max".into(), &0, "it must be at least 1");
        }
        if !(1..=JOBS_OPEN_MAX).contains(&migration.running_max) {
            let rule = format!("it must be 1 to {JOBS_OPEN_MAX}");
            return bad("migration.running_max".into(), &migration.running_max, &rule);
        }
        if migration.bandwidth_max == Some(0) {
            return bad("migration.bandwidth_max".into(), &0, "nothing would ever move; leave it out for no cap");
        }
        if let Err(e) = self.log.filter() {
            return bad("log.filter".into(), &self.log.filter, &e.to_string());
        }
        if !(1..=CHAOS_MS_MAX.0).contains(&self.chaos.max.0) {
            let rule = format!("it must be 1 ms to {} h", CHAOS_MS_MAX.0 / 3_600_000);
            return bad("chaos.max".into(), &self.chaos.max, &rule);
        }
        if let Some(point) = &self.chaos.kill_at
            && !self.chaos.allow
        {
            return bad("chaos.kill_at".into(), point, "it is honoured only with allow = true");
        }
        Ok(())
    }
}

/// What toml says, with the nearest key where it does not know one.
fn syntax(text: &str, path: &Path, error: &toml::de::Error) -> ConfigError {
    if let Some((key, known)) = unknown_field(error.message()) {
        let at = error.span().map_or(0, |span| span.start).min(text.len());
        let line = text.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count() + 1;
        let nearest = nearest(key, known).map(str::to_owned);
        return ConfigError::UnknownKey { path: path.into(), line, key: key.chars().take(80).collect(), nearest };
    }
    ConfigError::Syntax { path: path.into(), message: error.to_string().trim_end().to_owned() }
}
