//! redb's file header. Owns: two checks of the first page that redb itself can't make, and the mark in it.
//! Always: what is changed here is one flag, and bytes of that page that redb does not use; only in a file that
//! nobody else has open, since the caller holds its lock.
//!
//! **Which commit is the newest.** One byte without a checksum names the current one of two commit slots. Where the
//! last commit was in two phases (redb's own at opening and closing are) redb believes that byte blindly: one flipped
//! bit, and the file opens one commit back, silently without records that were acknowledged. So if the *other* slot is
//! intact and newer, the two-phase flag is cleared before redb looks: it then takes the newest slot whose pages all
//! verify. A crash between the two phases looks the same; then the newer commit was not acknowledged, and is taken
//! whole or not at all, both of which are right.
//!
//! **Whether it was acknowledged.** Where pages of the last commit don't verify, redb can't tell a commit that was torn
//! by a crash, which must be rolled back, from one that was acknowledged and has rotted since, which must not. So after
//! each commit, before anybody hears of it, its transaction id is written as a *mark*. It needs no sync of its own: it
//! is there at once for a process that restarts, and reaches the disk with the next sync, at the latest when the writer
//! has been quiet for a moment. A marked commit is never rolled back: the opening refuses.

use redb::StorageBackend;
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use super::error::StoreError;

const HEADER_BYTES: usize = 320;
const GOD_BYTE: usize = 9;
const PRIMARY: u8 = 1;
const TWO_PHASE: u8 = 4;
const SLOT_BYTES: usize = 128;
const SLOT_CHECKSUM: usize = 112;
const TRANSACTION_ID: usize = 104;
/// In the first page, which is redb's header and 3,776 unused bytes; in a sector of its own.
const MARK_OFFSET: u64 = 1024;
const MARK_MAGIC: [u8; 8] = *b"nfmark\0\x01";
const MARK_BYTES: usize = 24;

/// What the first page says before redb opens the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found {
    /// True if the newest commit was acknowledged: rolling it back would lose records.
    pub(super) newest_is_acknowledged: bool,
}

/// Looks at the first page of `backend`, which `what` names, and makes redb choose the newest intact commit.
pub(super) fn settle(backend: &impl StorageBackend, what: &str) -> Result<Found, StoreError> {
    let failed = |e| StoreError::redb("reading the file's header", e);
    let mut found = Found { newest_is_acknowledged: false };
    if backend.len().map_err(failed)? < HEADER_BYTES as u64 {
        return Ok(found);
    }
    let mut header = read_header(backend)?;
    let primary = primary_of(&header);
    let (current, other) = (slot_transaction(&header, primary), slot_transaction(&header, primary ^ 1));
    let newest = current.max(other);
    if let Some(mark) = read_mark(backend)? {
        if newest.is_some_and(|newest| newest < mark) {
            return Err(StoreError::Damaged {
                what: what.to_owned(),
                detail: "the header of the last acknowledged commit fails its checksum".into(),
            });
        }
        found.newest_is_acknowledged = newest == Some(mark);
    }
    if current.is_some() && other > current && header[GOD_BYTE] & TWO_PHASE != 0 {
        tracing::warn!("the state file's current commit is not its newest one; taking the newest that is whole");
        header[GOD_BYTE] &= !TWO_PHASE;
        backend.write(0, &header).map_err(failed)?;
        backend.sync_data().map_err(failed)?;
    }
    Ok(found)
}

/// Marks the current commit, which is durable, as acknowledged.
pub(super) fn mark(backend: &impl StorageBackend) -> Result<(), StoreError> {
    let header = read_header(backend)?;
    let Some(transaction) = slot_transaction(&header, primary_of(&header)) else {
        let detail = "the header of the commit just made fails its checksum".into();
        return Err(StoreError::Damaged { what: "state file".into(), detail });
    };
    let mut bytes = [0; MARK_BYTES];
    bytes[..8].copy_from_slice(&MARK_MAGIC);
    bytes[8..16].copy_from_slice(&transaction.to_le_bytes());
    let checksum = xxh3_64(&bytes[..16]);
    bytes[16..].copy_from_slice(&checksum.to_le_bytes());
    backend.write(MARK_OFFSET, &bytes).map_err(|e| StoreError::redb("marking a commit", e))
}

/// The transaction id of the last commit that was marked. A mark that fails its checksum says nothing: then its own
/// sector rotted, and the commits are whole.
fn read_mark(backend: &impl StorageBackend) -> Result<Option<u64>, StoreError> {
    let failed = |e| StoreError::redb("reading the file's mark", e);
    if backend.len().map_err(failed)? < MARK_OFFSET + MARK_BYTES as u64 {
        return Ok(None);
    }
    let mut bytes = [0; MARK_BYTES];
    backend.read(MARK_OFFSET, &mut bytes).map_err(failed)?;
    let (body, checksum) = bytes.split_at(16);
    let whole = body[..8] == MARK_MAGIC && checksum == xxh3_64(body).to_le_bytes();
    Ok(body.last_chunk::<8>().filter(|_| whole).map(|id| u64::from_le_bytes(*id)))
}

fn read_header(backend: &impl StorageBackend) -> Result<[u8; HEADER_BYTES], StoreError> {
    let mut header = [0; HEADER_BYTES];
    backend.read(0, &mut header).map_err(|e| StoreError::redb("reading the file's header", e))?;
    Ok(header)
}

fn primary_of(header: &[u8; HEADER_BYTES]) -> usize {
    usize::from(header[GOD_BYTE] & PRIMARY != 0)
}

/// The transaction id of a slot whose checksum holds.
fn slot_transaction(header: &[u8; HEADER_BYTES], slot: usize) -> Option<u64> {
    let start = 64 + slot * SLOT_BYTES;
    let bytes = &header[start..start + SLOT_BYTES];
    let checksum = u128::from_le_bytes(*bytes.last_chunk::<16>()?);
    if xxh3_128(&bytes[..SLOT_CHECKSUM]) != checksum {
        return None;
    }
    bytes[TRANSACTION_ID..].first_chunk::<8>().map(|id| u64::from_le_bytes(*id))
}
