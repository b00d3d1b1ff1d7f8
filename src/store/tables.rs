//! Tables. Owns: which there are, their names on disk, how keys are laid out.
//! Always: keys and values are bytes for redb, whose own encodings may change (crates.md); a name is never reused.

use redb::TableDefinition;

use super::error::StoreError;
use crate::types::limits::STORE_KEY_BYTES_MAX;
use crate::types::{JobId, RegionName};

macro_rules! areas {
    (named { $($(#[$doc:meta])* $named:ident = $named_text:literal),* $(,)? } own { $($own:ident = $own_text:literal),* $(,)? }) => {
        /// A table whose keys are text and whose values are [`super::Stored`].
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Table { $($(#[$doc])* $named),* }

        /// Every table in the file: those of [`Table`] and those with their own functions.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub(super) enum Area { $($named,)* $($own),* }

        impl Area {
            pub(super) const ALL: &'static [Area] = &[$(Area::$named,)* $(Area::$own),*];
            pub(super) const COUNT: usize = Self::ALL.len();
            /// Its name on disk.
            pub(super) const fn name(self) -> &'static str {
                match self { $(Area::$named => $named_text,)* $(Area::$own => $own_text),* }
            }
        }

        impl From<Table> for Area {
            fn from(table: Table) -> Area {
                match table { $(Table::$named => Area::$named),* }
            }
        }

        impl Table {
            /// All of them.
            pub const ALL: &'static [Table] = &[$(Table::$named),*];
        }
    };
}

areas! {
    named {
        /// The store's own records: identity, incarnation, key check.
        Meta = "meta",
        /// VM records by VM id.
        Vms = "vms",
        /// VM ids by namespace and name.
        VmNames = "vm_names",
        /// Jobs that have not ended, by job id.
        Jobs = "jobs",
        /// Jobs that have ended.
        JobsEnded = "jobs_ended",
        /// Decisions of attempts by VM id: the first recorded wins.
        Decisions = "decisions",
        /// Reservations of capacity.
        Reservations = "reservations",
        /// Migration plans.
        Plans = "plans",
        /// Answers by idempotency key.
        Requests = "requests",
        /// How often an actor or job crashed, over all lives of the process.
        Crashes = "crashes",
        /// Owed clean-ups.
        Cleanups = "cleanups",
        /// Audit records.
        Audit = "audit",
        /// Latest known incarnation per peer.
        Peers = "peers",
    }
    own {
        Journal = "journal",
        Checkpoints = "checkpoints",
        Outbox = "outbox",
        Dedup = "dedup",
        Map = "map",
    }
}

impl Area {
    pub(super) const fn definition(self) -> TableDefinition<'static, &'static [u8], &'static [u8]> {
        TableDefinition::new(self.name())
    }
}

impl Table {
    /// Its name on disk.
    pub fn name(self) -> &'static str {
        Area::from(self).name()
    }
}

/// Refuses keys that are longer than allowed.
pub(super) fn check_key(key: &[u8]) -> Result<(), StoreError> {
    if key.len() <= STORE_KEY_BYTES_MAX {
        Ok(())
    } else {
        Err(StoreError::TooLarge { what: "a store key", bytes: key.len(), max: STORE_KEY_BYTES_MAX })
    }
}

/// The smallest key above all keys that start with `prefix`; `None` if there is none.
pub(super) fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return Some(end);
        }
    }
    None
}

/// A job as a key: fixed width, so that numbers sort as numbers.
pub(super) fn job_key(job: JobId) -> Vec<u8> {
    let mut key = Vec::with_capacity(28);
    key.extend_from_slice(&job.region.0.to_be_bytes());
    key.extend_from_slice(&job.incarnation.to_be_bytes());
    key.extend_from_slice(&job.number.to_be_bytes());
    key
}

/// An entry of a job's journal as a key.
pub(super) fn journal_key(job: JobId, sequence: u64) -> Vec<u8> {
    let mut key = job_key(job);
    key.extend_from_slice(&sequence.to_be_bytes());
    key
}

/// The sequence at the end of a journal key.
pub(super) fn journal_sequence(key: &[u8]) -> Result<u64, StoreError> {
    key.last_chunk::<8>()
        .map(|tail| u64::from_be_bytes(*tail))
        .ok_or_else(|| StoreError::Damaged { what: "journal".into(), detail: format!("a key of {} bytes", key.len()) })
}

/// The start of all keys of a peer: a name never contains a zero byte.
pub(super) fn peer_prefix(peer: &RegionName) -> Vec<u8> {
    let mut key = peer.as_str().as_bytes().to_vec();
    key.push(0);
    key
}

/// A key as people read it.
pub(super) fn key_text(key: &[u8]) -> String {
    match std::str::from_utf8(key) {
        Ok(text) if !text.chars().any(char::is_control) => text.to_owned(),
        _ => key.iter().map(|b| format!("{b:02x}")).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix_is_above_everything_that_starts_with_it() {
        assert_eq!(prefix_end(b"ab"), Some(b"ac".to_vec()));
        assert_eq!(prefix_end(&[1, 255, 255]), Some(vec![2]));
        assert_eq!(prefix_end(&[255]), None);
        assert_eq!(prefix_end(b""), None);
    }

    #[test]
    fn table_names_are_unique() {
        let mut names: Vec<_> = Area::ALL.iter().map(|a| a.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Area::COUNT);
    }
}
