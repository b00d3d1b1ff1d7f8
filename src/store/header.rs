//! redb's file header. Owns: one check that redb itself can't make.
//! Always: what it changes is one flag, and only in a file that nobody else has open: the caller holds its lock.
//!
//! redb's first page names, in one byte without a checksum, which of two commit slots is the current one. With
//! two-phase commit redb believes that byte blindly: one flipped bit, and the file opens one commit back, silently
//! without records that were acknowledged. So if the *other* slot is intact and newer, the two-phase flag is cleared
//! before redb looks: it then takes the newest slot whose pages all verify. A crash between the two phases looks the
//! same; then the newer commit was not acknowledged, and is taken whole or not at all, both of which are right.

use redb::StorageBackend;
use xxhash_rust::xxh3::xxh3_128;

use super::error::StoreError;

const HEADER_BYTES: usize = 320;
const GOD_BYTE: usize = 9;
const PRIMARY: u8 = 1;
const TWO_PHASE: u8 = 4;
const SLOT_BYTES: usize = 128;
const SLOT_CHECKSUM: usize = 112;
const TRANSACTION_ID: usize = 104;

/// Makes redb choose the newest intact commit slot of `backend`.
pub(super) fn settle(backend: &impl StorageBackend) -> Result<(), StoreError> {
    let failed = |e| StoreError::redb("reading the file's header", e);
    if backend.len().map_err(failed)? < HEADER_BYTES as u64 {
        return Ok(());
    }
    let mut header = [0; HEADER_BYTES];
    backend.read(0, &mut header).map_err(failed)?;
    let primary = usize::from(header[GOD_BYTE] & PRIMARY != 0);
    let stale = match (slot_transaction(&header, primary), slot_transaction(&header, primary ^ 1)) {
        (Some(current), Some(other)) => other > current,
        _ => false,
    };
    if stale && header[GOD_BYTE] & TWO_PHASE != 0 {
        tracing::warn!("the state file's current commit is not its newest one; taking the newest that is whole");
        header[GOD_BYTE] &= !TWO_PHASE;
        backend.write(0, &header).map_err(failed)?;
        backend.sync_data().map_err(failed)?;
    }
    Ok(())
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
