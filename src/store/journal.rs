//! Journals of jobs and their checkpoints. Owns: entry numbers, what a checkpoint covers, when entries may go.
//! Always: entries of a job are numbered from 1 without gaps, also after a trim; entries are trimmed only up to a
//! checkpoint that is in the same transaction or already durable, so journal and checkpoint together never lose one.

use std::ops::Bound;

use serde::{Deserialize, Serialize};

use super::engine::Snapshot;
use super::error::StoreError;
use super::tables::{Area, job_key, journal_key, journal_sequence, prefix_end};
use super::txn::Txn;
use super::value::{Marker, Plain, plain_of, value_of};
use super::{Store, page_of};
use crate::stored;
use crate::types::JobId;
use crate::types::limits::JOURNAL_ENTRY_BYTES_MAX;

/// Marker of a journal entry, whose bytes are the caller's.
const ENTRY: Marker = Marker { kind: *b"jrnl", version: 1 };

/// A checkpoint: the fold of a job's journal up to an entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The last entry that it covers.
    pub upto: u64,
    /// The state, in the caller's versioned bytes.
    pub bytes: Vec<u8>,
}
stored!(Checkpoint, b"ckpt");

impl Txn<'_, '_> {
    /// Appends an event to a job's journal and returns its number.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`], or a read error.
    pub fn append_event(&mut self, job: JobId, event: &[u8]) -> Result<u64, StoreError> {
        if event.len() > JOURNAL_ENTRY_BYTES_MAX {
            let max = JOURNAL_ENTRY_BYTES_MAX;
            return Err(StoreError::TooLarge { what: "a journal entry", bytes: event.len(), max });
        }
        let sequence = self.last_event(job)? + 1;
        let plain = Plain { marker: ENTRY, payload: event.to_vec() };
        self.put_plain(Area::Journal, journal_key(job, sequence), plain)?;
        Ok(sequence)
    }

    /// The number of a job's last event; 0 if it has none.
    ///
    /// # Errors
    /// A read error.
    pub fn last_event(&mut self, job: JobId) -> Result<u64, StoreError> {
        let (from, to) = (journal_key(job, 0), journal_key(job, u64::MAX));
        match self.last_key(Area::Journal, (Bound::Included(&from), Bound::Included(&to)))? {
            Some(key) => journal_sequence(&key),
            // All of it is trimmed, or there never was any.
            None => Ok(self.checkpoint_of(job)?.map_or(0, |checkpoint| checkpoint.upto)),
        }
    }

    /// Records the fold of a job's journal up to event `upto`.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`].
    pub fn checkpoint(&mut self, job: JobId, bytes: &[u8], upto: u64) -> Result<(), StoreError> {
        let plain = plain_of(&Checkpoint { upto, bytes: bytes.to_vec() })?;
        self.put_plain(Area::Checkpoints, job_key(job), plain)
    }

    /// A job's checkpoint.
    ///
    /// # Errors
    /// A read error.
    pub fn checkpoint_of(&mut self, job: JobId) -> Result<Option<Checkpoint>, StoreError> {
        let plain = self.get_plain(Area::Checkpoints, &job_key(job))?;
        plain.map(|plain| value_of(&plain, Area::Checkpoints.name(), &job.to_string())).transpose()
    }

    /// Deletes the events that the job's checkpoint covers; returns how many.
    ///
    /// # Errors
    /// A read error.
    pub fn trim(&mut self, job: JobId) -> Result<usize, StoreError> {
        let Some(checkpoint) = self.checkpoint_of(job)? else { return Ok(0) };
        self.delete_events(job, checkpoint.upto)
    }

    /// Deletes journal and checkpoint of a job that has ended.
    ///
    /// # Errors
    /// A read error.
    pub fn forget_job(&mut self, job: JobId) -> Result<(), StoreError> {
        self.delete_events(job, u64::MAX)?;
        self.delete_plain(Area::Checkpoints, job_key(job));
        Ok(())
    }

    fn delete_events(&mut self, job: JobId, upto: u64) -> Result<usize, StoreError> {
        let (from, to) = (journal_key(job, 0), journal_key(job, upto));
        let keys = self.keys(Area::Journal, (Bound::Included(&from), Bound::Included(&to)))?;
        let count = keys.len();
        for key in keys {
            self.delete_plain(Area::Journal, key);
        }
        Ok(count)
    }
}

impl Store {
    /// The events of a job that are not trimmed, in order.
    ///
    /// # Errors
    /// A read error, or [`StoreError::Damaged`] if one is missing.
    pub fn journal(&self, job: JobId) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
        let damaged = |detail: String| StoreError::Damaged { what: format!("journal of {job}"), detail };
        let prefix = job_key(job);
        let end = prefix_end(&prefix);
        let range = (Bound::Included(&prefix[..]), end.as_deref().map_or(Bound::Unbounded, Bound::Excluded));
        let mut snapshot = self.snapshot()?;
        let covered = checkpoint_in(&mut snapshot, job)?.map_or(0, |checkpoint| checkpoint.upto);
        let mut events: Vec<(u64, Vec<u8>)> = Vec::new();
        for (key, plain) in page_of(&mut snapshot, Area::Journal, range, usize::MAX)? {
            let sequence = journal_sequence(&key)?;
            if plain.marker != ENTRY {
                return Err(damaged(format!("entry {sequence} is not a version 1 entry")));
            }
            let follows = match events.last() {
                Some((before, _)) => sequence == before + 1,
                // Trimmed or not, what is missing in front is in the checkpoint.
                None => sequence <= covered + 1,
            };
            if !follows {
                return Err(damaged(format!("entry {} is missing", sequence - 1)));
            }
            events.push((sequence, plain.payload));
        }
        Ok(events)
    }

    /// A job's checkpoint.
    ///
    /// # Errors
    /// A read error.
    pub fn checkpoint(&self, job: JobId) -> Result<Option<Checkpoint>, StoreError> {
        checkpoint_in(&mut self.snapshot()?, job)
    }
}

fn checkpoint_in(snapshot: &mut Snapshot<'_>, job: JobId) -> Result<Option<Checkpoint>, StoreError> {
    let plain = snapshot.get(Area::Checkpoints, &job_key(job))?;
    plain.map(|plain| value_of(&plain, Area::Checkpoints.name(), &job.to_string())).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checkpoint_format_is_frozen() {
        crate::store::fixture::holds(&Checkpoint { upto: 300, bytes: vec![1, 2, 3] });
    }
}
