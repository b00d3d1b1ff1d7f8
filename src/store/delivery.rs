//! Commands between regions. Owns: the durable outbox, what a peer acknowledged, and the memory of what was received.
//! Always: a command's id is given once, in the transaction that enqueues it, ascends per store and is kept over
//! restarts; a received command is remembered in the transaction of its effect until the sender's watermark passes
//! it, and what is below a watermark that was once accepted counts as received for ever.
//!
//! ```text
//! outbox: peer 0 0          -> Watermark: everything up to it is acknowledged
//!         peer 0 1 id       -> command bytes
//! dedup:  peer 0 0          -> Watermark: everything up to it was received and is forgotten
//!         peer 0 1 id       -> what the command's effect answered
//! ```

use std::fmt;
use std::ops::Bound;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::Store;
use super::error::StoreError;
use super::tables::{Area, Table, peer_prefix};
use super::txn::{Minted, Txn};
use super::value::{Marker, Plain, check_len, plain_of, value_of};
use crate::stored;
use crate::types::{Incarnation, IncarnationVerdict, Lineage, RegionName};

const COMMAND: Marker = Marker { kind: *b"cmnd", version: 1 };
const ANSWER: Marker = Marker { kind: *b"answ", version: 1 };
const WATERMARK: u8 = 0;
const ROW: u8 = 1;

/// Names a command of one sender. Ascends over restarts, since each opening of the sender's store takes a later
/// incarnation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MessageId {
    /// The counter of the sender's incarnation when it was enqueued.
    pub incarnation: u64,
    /// The how-manieth of that incarnation.
    pub number: u64,
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.incarnation, self.number)
    }
}

/// Everything up to and including this id is done with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Watermark {
    upto: MessageId,
}
stored!(Watermark, b"wtmk");

/// What this region knows of the lives of a peer's store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerRecord {
    /// The latest that was accepted, with those before it.
    pub accepted: Lineage,
    /// The latest of a copy that was refused.
    pub refused: Option<Incarnation>,
}
stored!(PeerRecord, b"peer");

/// What is known of a command that arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// Never seen: have its effect, and [`Txn::mark_seen`] in the same transaction.
    New,
    /// It had its effect before, which answered this.
    Answered(Vec<u8>),
    /// It had its effect so long ago that the sender had acknowledged the answer.
    Forgotten,
}

fn watermark_key(peer: &RegionName) -> Vec<u8> {
    let mut key = peer_prefix(peer);
    key.push(WATERMARK);
    key
}

fn rows_prefix(peer: &RegionName) -> Vec<u8> {
    let mut key = peer_prefix(peer);
    key.push(ROW);
    key
}

fn row_key(peer: &RegionName, id: MessageId) -> Vec<u8> {
    let mut key = rows_prefix(peer);
    key.extend_from_slice(&id.incarnation.to_be_bytes());
    key.extend_from_slice(&id.number.to_be_bytes());
    key
}

fn row_id(key: &[u8]) -> Result<MessageId, StoreError> {
    let read = |bytes: &[u8]| bytes.last_chunk::<8>().map(|b| u64::from_be_bytes(*b));
    let split = key.len().checked_sub(8).and_then(|at| key.split_at_checked(at));
    let id = split.and_then(|(head, tail)| Some(MessageId { incarnation: read(head)?, number: read(tail)? }));
    id.ok_or_else(|| StoreError::Damaged { what: "outbox".into(), detail: format!("a key of {} bytes", key.len()) })
}

impl Txn<'_, '_> {
    /// Puts a command for `peer` into the outbox and returns its id.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`].
    pub fn enqueue(&mut self, peer: &RegionName, command: &[u8]) -> Result<MessageId, StoreError> {
        check_len(command.len())?;
        let id = MessageId { incarnation: self.incarnation().counter, number: self.mint(Minted::Message) };
        self.put_plain(Area::Outbox, row_key(peer, id), Plain { marker: COMMAND, payload: command.to_vec() })?;
        Ok(id)
    }

    /// Drops the commands for `peer` up to and including `upto`, all of which it has answered; returns how many.
    ///
    /// # Errors
    /// A read error.
    pub fn acknowledge(&mut self, peer: &RegionName, upto: MessageId) -> Result<usize, StoreError> {
        let dropped = self.drop_rows(Area::Outbox, peer, upto)?;
        self.raise_watermark(Area::Outbox, peer, upto)?;
        Ok(dropped)
    }

    /// What is known of the command `id` from `peer`.
    ///
    /// # Errors
    /// A read error.
    pub fn seen(&mut self, peer: &RegionName, id: MessageId) -> Result<Seen, StoreError> {
        if let Some(plain) = self.get_plain(Area::Dedup, &row_key(peer, id))? {
            return Ok(Seen::Answered(plain.payload));
        }
        let forgotten = self.watermark(Area::Dedup, peer)?.is_some_and(|mark| id <= mark);
        Ok(if forgotten { Seen::Forgotten } else { Seen::New })
    }

    /// Remembers that the command `id` from `peer` had its effect, which answered `answer`.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`].
    pub fn mark_seen(&mut self, peer: &RegionName, id: MessageId, answer: &[u8]) -> Result<(), StoreError> {
        check_len(answer.len())?;
        self.put_plain(Area::Dedup, row_key(peer, id), Plain { marker: ANSWER, payload: answer.to_vec() })
    }

    /// Forgets what came from `peer` up to and including `upto`, its durable watermark; returns how many.
    ///
    /// # Errors
    /// A read error.
    pub fn prune_seen(&mut self, peer: &RegionName, upto: MessageId) -> Result<usize, StoreError> {
        let dropped = self.drop_rows(Area::Dedup, peer, upto)?;
        self.raise_watermark(Area::Dedup, peer, upto)?;
        Ok(dropped)
    }

    /// Judges the incarnation that a peer presents, and remembers it if it is the known one or later.
    ///
    /// # Errors
    /// A read error.
    pub fn admit_peer(&mut self, peer: &RegionName, presented: &Lineage) -> Result<IncarnationVerdict, StoreError> {
        let record = self.get::<PeerRecord>(Table::Peers, peer.as_str())?;
        let refused = record.as_ref().and_then(|record| record.refused);
        // A copy that was refused is known again by its own lives, however far it counts since.
        let verdict = match refused {
            Some(refused) if presented.names(refused) => IncarnationVerdict::Stale,
            Some(_) | None => presented.judge(record.as_ref().map(|record| record.accepted.now)),
        };
        let next = match (verdict, &record) {
            // A late hello of an earlier life of the true store is refused, too, and is no copy.
            (IncarnationVerdict::Stale, Some(record)) if record.accepted.parts_from(presented) => {
                PeerRecord { refused: Some(presented.now), ..record.clone() }
            }
            (IncarnationVerdict::Accept, _) => PeerRecord { accepted: presented.clone(), refused },
            (IncarnationVerdict::Stale | IncarnationVerdict::NotNow, _) => return Ok(verdict),
        };
        if record.as_ref() != Some(&next) {
            self.put(Table::Peers, peer.as_str(), &next)?;
        }
        Ok(verdict)
    }

    fn drop_rows(&mut self, area: Area, peer: &RegionName, upto: MessageId) -> Result<usize, StoreError> {
        let (from, to) = (rows_prefix(peer), row_key(peer, upto));
        let keys = self.keys(area, (Bound::Included(&from), Bound::Included(&to)))?;
        let count = keys.len();
        for key in keys {
            self.delete_plain(area, key);
        }
        Ok(count)
    }

    fn watermark(&mut self, area: Area, peer: &RegionName) -> Result<Option<MessageId>, StoreError> {
        let plain = self.get_plain(area, &watermark_key(peer))?;
        let mark: Option<Watermark> = plain.map(|plain| value_of(&plain, area.name(), peer.as_str())).transpose()?;
        Ok(mark.map(|mark| mark.upto))
    }

    fn raise_watermark(&mut self, area: Area, peer: &RegionName, upto: MessageId) -> Result<(), StoreError> {
        // A late, lower one must not make the forgotten look new.
        if self.watermark(area, peer)?.is_some_and(|known| known >= upto) {
            return Ok(());
        }
        self.put_plain(area, watermark_key(peer), plain_of(&Watermark { upto })?)
    }
}

impl Store {
    /// The commands for `peer` that it has not answered, in the order in which they were given.
    ///
    /// # Errors
    /// A read error.
    pub fn outbox(&self, peer: &RegionName) -> Result<Vec<(MessageId, Vec<u8>)>, StoreError> {
        let rows = self.rows(Area::Outbox, &rows_prefix(peer))?;
        rows.into_iter().map(|(key, plain)| Ok((row_id(&key)?, plain.payload))).collect()
    }

    /// Changes when a command was put into the outbox, durably, of whichever peer.
    pub fn outbox_changes(&self) -> watch::Receiver<u64> {
        self.inner.writer.runner.enqueued.subscribe()
    }

    /// The watermark to tell `peer`: everything up to it was answered, here durably.
    ///
    /// # Errors
    /// A read error.
    pub fn acknowledged(&self, peer: &RegionName) -> Result<Option<MessageId>, StoreError> {
        let plain = self.snapshot()?.get(Area::Outbox, &watermark_key(peer))?;
        let mark: Option<Watermark> =
            plain.map(|plain| value_of(&plain, Area::Outbox.name(), peer.as_str())).transpose()?;
        Ok(mark.map(|mark| mark.upto))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_formats_are_frozen() {
        crate::store::fixture::holds(&Watermark { upto: MessageId { incarnation: 3, number: 400 } });
        crate::store::fixture::holds(&PeerRecord {
            accepted: Lineage { now: Incarnation { counter: 7, nonce: 0x1234_5678_9abc }, before: vec![6, 5] },
            refused: Some(Incarnation { counter: 4, nonce: 9 }),
        });
    }

    #[test]
    fn ids_sort_as_their_keys_do() {
        let peer: RegionName = "eu".parse().unwrap();
        let ids = [(1, 1), (1, 256), (2, 1), (256, 0)].map(|(incarnation, number)| MessageId { incarnation, number });
        let keys = ids.map(|id| row_key(&peer, id));
        assert!(keys.is_sorted() && ids.is_sorted());
        for (id, key) in ids.iter().zip(&keys) {
            assert_eq!(row_id(key).unwrap(), *id);
        }
    }
}
