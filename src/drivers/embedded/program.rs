//! What a guest's program means. Owns: which page and block is written at which tick, and with what bytes.
//! Always: pure functions of the program and the tick; the guest that writes and the judge that recomputes share
//! only this meaning, never storage. Not here: the storage (`memory.rs`, `disk.rs`), the machine (`guest.rs`).
//!
//! Ordinals: memory write number `k` of a guest's life is counted from tick 0 by the program's rate alone, so that
//! write `k` belongs to exactly one tick whatever boots lie between. The same holds for the disk.

use xxhash_rust::xxh3::xxh3_64;

use crate::types::limits::{DISK_BLOCK_BYTES, PAGE_BYTES};
use crate::types::units::MIB;
use crate::types::{DirtyPattern, GuestProgram, VmSpec};

/// The superblock promises ticks in steps of so many: after a crash a guest goes on at the end of the promise.
pub const TICKS_PROMISED: u64 = 256;

const PAGE: u64 = PAGE_BYTES as u64;
const BLOCK: u64 = DISK_BLOCK_BYTES as u64;
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// The finaliser of splitmix64.
pub const fn mix(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// What is filled: memory and disk of one index differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Medium {
    /// A page of memory.
    Memory,
    /// A block of the disk.
    Disk,
}

/// Fills `out` with the contents that `index` has when it was last written at `tick`. `out` is a multiple of 8 bytes.
pub fn fill(seed: u64, medium: Medium, index: u64, tick: u64, out: &mut [u8]) {
    let medium = match medium {
        Medium::Memory => 0x6d65_6d6f_7279,
        Medium::Disk => 0x6469_736b,
    };
    let mut state = mix(seed ^ mix(medium ^ mix(index.wrapping_add(GOLDEN) ^ mix(tick.wrapping_mul(GOLDEN) ^ 1))));
    for word in out.as_chunks_mut::<8>().0 {
        state = state.wrapping_add(GOLDEN);
        *word = mix(state).to_le_bytes();
    }
}

/// What one tick may write. A host ticks all its guests in one task: a tick is short, or the others wait.
pub const TICK_BYTES_MAX: u64 = 64 * MIB;

/// A program that asks for more than a tick may do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the program writes {bytes} bytes in a tick of {tick_ms} ms, more than {TICK_BYTES_MAX}; let it tick more often"
)]
pub struct ProgramTooHeavy {
    bytes: u64,
    tick_ms: u64,
}

/// A program fitted to the VM that runs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Seed of all contents.
    pub seed: u64,
    /// Milliseconds between ticks, at least 1.
    pub tick_ms: u64,
    /// Pages of memory that the VM has.
    pub pages: u64,
    /// Pages filled at boot.
    pub resident_pages: u64,
    /// Blocks of the disk file: the superblock and the VM's disk.
    pub blocks: u64,
    /// Blocks filled at first boot, behind the superblock.
    pub resident_blocks: u64,
    working_pages: u64,
    memory_rate: u64,
    disk_rate: u64,
    pattern: DirtyPattern,
}

impl Plan {
    /// Fits the program of `spec` into its memory and disk.
    pub fn of(spec: &VmSpec) -> Plan {
        Plan::new(&spec.program, spec.memory_bytes, spec.disk_bytes)
    }

    /// Fits `program` into so much memory and disk, bytes.
    pub fn new(program: &GuestProgram, memory_bytes: u64, disk_bytes: u64) -> Plan {
        let resident_pages = program.resident_bytes.min(memory_bytes).div_ceil(PAGE);
        let working = program.working_set_bytes.div_ceil(PAGE).min(resident_pages);
        Plan {
            seed: program.seed,
            tick_ms: u64::from(program.tick_ms.max(1)),
            pages: memory_bytes.div_ceil(PAGE),
            resident_pages,
            blocks: 1 + disk_bytes.div_ceil(BLOCK),
            resident_blocks: program.disk_resident_bytes.min(disk_bytes).div_ceil(BLOCK),
            working_pages: if working == 0 { resident_pages } else { working },
            memory_rate: program.dirty_bytes_per_second,
            disk_rate: program.disk_bytes_per_second,
            pattern: program.pattern,
        }
    }

    /// Checks that its ticks are short enough for a host that runs others too.
    pub fn check(&self) -> Result<(), ProgramTooHeavy> {
        let rate = self.memory_rate.saturating_add(self.disk_rate);
        let bytes = rate.saturating_mul(self.tick_ms) / 1_000;
        if bytes > TICK_BYTES_MAX { Err(ProgramTooHeavy { bytes, tick_ms: self.tick_ms }) } else { Ok(()) }
    }

    /// How many memory writes are done by the end of `tick`.
    pub fn page_writes_until(&self, tick: u64) -> u64 {
        if self.working_pages == 0 { 0 } else { self.writes(tick, self.memory_rate, PAGE) }
    }

    /// How many disk writes are done by the end of `tick`.
    pub fn block_writes_until(&self, tick: u64) -> u64 {
        if self.resident_blocks == 0 { 0 } else { self.writes(tick, self.disk_rate, BLOCK) }
    }

    fn writes(&self, tick: u64, rate: u64, unit: u64) -> u64 {
        let bytes = u128::from(tick) * u128::from(rate) * u128::from(self.tick_ms) / 1000;
        u64::try_from(bytes / u128::from(unit)).unwrap_or(u64::MAX)
    }

    /// The page that memory write number `k` goes to.
    pub fn page_of_write(&self, k: u64) -> u64 {
        let drawn = || mix(self.seed ^ mix(k ^ GOLDEN));
        match self.pattern {
            DirtyPattern::Sequential => k % self.working_pages,
            DirtyPattern::Random => drawn() % self.working_pages,
            DirtyPattern::Hot => {
                let drawn = drawn();
                let hot = drawn % 10 < 9;
                (drawn >> 8) % if hot { (self.working_pages / 10).max(1) } else { self.working_pages }
            }
        }
    }

    /// The block that disk write number `k` goes to: one after the other behind the superblock.
    pub fn block_of_write(&self, k: u64) -> u64 {
        1 + k % self.resident_blocks
    }

    /// Memory writes of a tick, as ordinals.
    pub fn page_writes_of(&self, tick: u64) -> std::ops::Range<u64> {
        self.page_writes_until(tick.saturating_sub(1))..self.page_writes_until(tick)
    }

    /// Disk writes of a tick, as ordinals.
    pub fn block_writes_of(&self, tick: u64) -> std::ops::Range<u64> {
        self.block_writes_until(tick.saturating_sub(1))..self.block_writes_until(tick)
    }
}

/// First block of a guest's disk: how it finds its place in time after a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Superblock {
    /// How often it booted.
    pub boot: u64,
    /// The tick at which it booted last.
    pub boot_tick: u64,
    /// The tick at which this was written.
    pub written_tick: u64,
    /// No tick above this was begun before a later superblock was written. Equal to `written_tick` after a stop.
    pub promised_tick: u64,
}

/// Length of the superblock's used part; the rest of its block is zeros.
pub const SUPERBLOCK_BYTES: usize = 48;
const SUPERBLOCK_MAGIC: &[u8; 8] = b"NFGUEST1";

impl Superblock {
    /// The superblock of a guest that runs, which is a function of its boot and its tick.
    pub fn of_running(boot: u64, boot_tick: u64, tick: u64) -> Superblock {
        let steps = tick.saturating_sub(boot_tick).div_ceil(TICKS_PROMISED).max(1);
        let promised_tick = boot_tick + steps * TICKS_PROMISED;
        Superblock { boot, boot_tick, written_tick: promised_tick - TICKS_PROMISED, promised_tick }
    }

    /// The superblock of a guest that stopped in good order after `tick`.
    pub fn of_stopped(boot: u64, boot_tick: u64, tick: u64) -> Superblock {
        Superblock { boot, boot_tick, written_tick: tick, promised_tick: tick }
    }

    /// Its bytes: magic, four numbers little-endian, checksum.
    pub fn encode(&self) -> [u8; SUPERBLOCK_BYTES] {
        let mut bytes = [0; SUPERBLOCK_BYTES];
        bytes[..8].copy_from_slice(SUPERBLOCK_MAGIC);
        let numbers = [self.boot, self.boot_tick, self.written_tick, self.promised_tick];
        for (place, number) in bytes[8..40].as_chunks_mut::<8>().0.iter_mut().zip(numbers) {
            *place = number.to_le_bytes();
        }
        let sum = xxh3_64(&bytes[..40]);
        bytes[40..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Reads it back: `Ok(None)` for zeros (a disk that never booted), `Err` if it is damaged.
    pub fn decode(bytes: &[u8; SUPERBLOCK_BYTES]) -> Result<Option<Superblock>, DamagedSuperblock> {
        if bytes.iter().all(|b| *b == 0) {
            return Ok(None);
        }
        let words = bytes.as_chunks::<8>().0;
        let number = |at: usize| u64::from_le_bytes(words[at]);
        if &bytes[..8] != SUPERBLOCK_MAGIC || number(5) != xxh3_64(&bytes[..40]) {
            return Err(DamagedSuperblock);
        }
        Ok(Some(Superblock {
            boot: number(1),
            boot_tick: number(2),
            written_tick: number(3),
            promised_tick: number(4),
        }))
    }
}

/// The first block of a disk is neither zeros nor a superblock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the superblock is damaged")]
pub struct DamagedSuperblock;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_superblock_promises_the_tick_that_comes_next_at_the_latest() {
        for tick in [7, 8, 200, 262, 263, 264, 1_000, 5_000] {
            let block = Superblock::of_running(2, 7, tick);
            assert!(block.promised_tick >= tick && block.written_tick <= tick.max(7), "{tick}: {block:?}");
            assert_eq!(Superblock::decode(&block.encode()), Ok(Some(block)));
        }
        assert_eq!(Superblock::decode(&[0; SUPERBLOCK_BYTES]), Ok(None));
        let mut flipped = Superblock::of_running(1, 0, 9).encode();
        flipped[20] ^= 1;
        assert_eq!(Superblock::decode(&flipped), Err(DamagedSuperblock));
    }

    #[test]
    fn contents_differ_by_seed_medium_index_and_tick() {
        let of = |seed, medium, index, tick| {
            let mut bytes = [0; 16];
            fill(seed, medium, index, tick, &mut bytes);
            bytes
        };
        let base = of(1, Medium::Memory, 2, 3);
        assert_eq!(base, of(1, Medium::Memory, 2, 3));
        for other in [
            of(2, Medium::Memory, 2, 3),
            of(1, Medium::Disk, 2, 3),
            of(1, Medium::Memory, 3, 3),
            of(1, Medium::Memory, 2, 4),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn the_rate_of_writes_is_the_programs() {
        let program = GuestProgram {
            tick_ms: 7,
            resident_bytes: 1 << 20,
            dirty_bytes_per_second: 20_000_000,
            ..GuestProgram::default()
        };
        let plan = Plan::new(&program, 1 << 30, 0);
        let ticks = 10_000 / 7;
        let written = plan.page_writes_until(ticks) * PAGE;
        assert!((199_000_000..=200_000_000).contains(&written), "{written}");
    }
}
