//! The judge: recomputes what a guest's memory and disk must hold and compares it with snapshot files.
//! Owns: the answer to "is every byte right?", from (program, boot, boot tick, tick) alone; these come from the witness.
//! Always: no checksum made by anybody else is used, and of files no code of the guest's storage either: only the meaning
//! of the program.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use super::guest::{Guest, Registers};
use super::program::{Medium, Plan, SUPERBLOCK_BYTES, Superblock, fill};
use crate::types::limits::{DISK_BLOCK_BYTES, PAGE_BYTES};

/// Which moment of which life is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// How often the guest had booted.
    pub boot: u64,
    /// The tick at which it booted last.
    pub boot_tick: u64,
    /// The tick after which the snapshot was taken.
    pub tick: u64,
}

/// How much was compared and found right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// Pages of memory.
    pub pages: u64,
    /// Blocks of the disk.
    pub blocks: u64,
}

/// What is wrong.
#[derive(Debug, thiserror::Error)]
pub enum JudgeError {
    /// A snapshot file could not be read.
    #[error("reading {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The first page or block that differs.
    #[error("{medium:?} {index} differs at byte {byte}: it must hold what was written at tick {tick:?}")]
    Differs {
        /// Memory or disk.
        medium: Medium,
        /// Page or block number.
        index: u64,
        /// First differing byte in it.
        byte: usize,
        /// The tick of its last write; `None` if it must be zeros.
        tick: Option<u64>,
    },
    /// The file ends too early.
    #[error("{medium:?} ends after {found} pages or blocks of {expected}")]
    Short {
        /// Memory or disk.
        medium: Medium,
        /// Whole pages or blocks in the file.
        found: u64,
        /// At least so many must be there.
        expected: u64,
    },
}

/// The tick of the last write per index, found by going back from `tick`; `born` where there was none.
fn last_writes(
    count: u64,
    born: u64,
    tick: u64,
    until: impl Fn(u64) -> u64,
    target: impl Fn(u64) -> u64,
    offset: u64,
) -> Vec<u64> {
    let mut last = vec![None; usize::try_from(count).expect("a guest fits the address space")];
    let mut missing = count;
    let mut at = tick;
    while at > born && missing > 0 {
        for k in (until(at - 1)..until(at)).rev() {
            let slot = &mut last[usize::try_from(target(k) - offset).expect("inside the guest")];
            if slot.is_none() {
                *slot = Some(at);
                missing -= 1;
            }
        }
        at -= 1;
    }
    last.into_iter().map(|tick| tick.unwrap_or(born)).collect()
}

struct Reader {
    path: PathBuf,
    file: BufReader<File>,
}

impl Reader {
    fn open(path: &Path) -> Result<Reader, JudgeError> {
        let file = File::open(path).map_err(|source| JudgeError::Io { path: path.to_owned(), source })?;
        Ok(Reader { path: path.to_owned(), file: BufReader::with_capacity(1 << 20, file) })
    }

    /// Fills `unit` if the file holds another whole one.
    fn next(&mut self, unit: &mut [u8]) -> Result<bool, JudgeError> {
        match self.file.read_exact(unit) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(source) => Err(JudgeError::Io { path: self.path.clone(), source }),
        }
    }
}

fn compare(medium: Medium, index: u64, tick: Option<u64>, must: &[u8], is: &[u8]) -> Result<(), JudgeError> {
    match must.iter().zip(is).position(|(a, b)| a != b) {
        None => Ok(()),
        Some(byte) => Err(JudgeError::Differs { medium, index, byte, tick }),
    }
}

fn last_page_writes(plan: &Plan, moment: Moment) -> Vec<u64> {
    let until = |tick| plan.page_writes_until(tick);
    last_writes(plan.resident_pages, moment.boot_tick, moment.tick, until, |k| plan.page_of_write(k), 0)
}

fn last_block_writes(plan: &Plan, tick: u64) -> Vec<u64> {
    let until = |tick| plan.block_writes_until(tick);
    last_writes(plan.resident_blocks, 0, tick, until, |k| plan.block_of_write(k), 1)
}

/// What a page must hold, and when it was written.
fn page_must(plan: &Plan, last: &[u64], page: u64, must: &mut [u8]) -> Option<u64> {
    let tick = usize::try_from(page).ok().and_then(|at| last.get(at)).copied();
    match tick {
        Some(tick) => fill(plan.seed, Medium::Memory, page, tick, must),
        None => must.fill(0),
    }
    tick
}

/// What a block must hold, and when it was written.
fn block_must(plan: &Plan, last: &[u64], superblock: Superblock, block: u64, must: &mut [u8]) -> Option<u64> {
    let Some(at) = block.checked_sub(1) else {
        must.fill(0);
        must[..SUPERBLOCK_BYTES].copy_from_slice(&superblock.encode());
        return Some(superblock.written_tick);
    };
    let tick = usize::try_from(at).ok().and_then(|at| last.get(at)).copied();
    match tick {
        Some(tick) => fill(plan.seed, Medium::Disk, block, tick, must),
        None => must.fill(0),
    }
    tick
}

/// Compares the memory in `path` with what the program makes of it.
pub fn judge_memory(plan: &Plan, moment: Moment, path: &Path) -> Result<u64, JudgeError> {
    let last = last_page_writes(plan, moment);
    let mut reader = Reader::open(path)?;
    let (mut must, mut is) = ([0; PAGE_BYTES], [0; PAGE_BYTES]);
    let mut page = 0;
    while reader.next(&mut is)? {
        let tick = page_must(plan, &last, page, &mut must);
        compare(Medium::Memory, page, tick, &must, &is)?;
        page += 1;
    }
    if page < plan.resident_pages {
        return Err(JudgeError::Short { medium: Medium::Memory, found: page, expected: plan.resident_pages });
    }
    Ok(page)
}

/// Compares the disk in `path` with what the program makes of it; `superblock` is what its first block must hold.
pub fn judge_disk(plan: &Plan, tick: u64, superblock: Superblock, path: &Path) -> Result<u64, JudgeError> {
    let last = last_block_writes(plan, tick);
    let mut reader = Reader::open(path)?;
    let (mut must, mut is) = (vec![0; DISK_BLOCK_BYTES], vec![0; DISK_BLOCK_BYTES]);
    let mut block = 0;
    while reader.next(&mut is)? {
        let tick = block_must(plan, &last, superblock, block, &mut must);
        compare(Medium::Disk, block, tick, &must, &is)?;
        block += 1;
    }
    if block < plan.blocks {
        return Err(JudgeError::Short { medium: Medium::Disk, found: block, expected: plan.blocks });
    }
    Ok(block)
}

/// Judges the snapshot of a guest that was running or paused.
pub fn judge(plan: &Plan, moment: Moment, memory: &Path, disk: &Path) -> Result<Verdict, JudgeError> {
    let superblock = Superblock::of_running(moment.boot, moment.boot_tick, moment.tick);
    Ok(Verdict { pages: judge_memory(plan, moment, memory)?, blocks: judge_disk(plan, moment.tick, superblock, disk)? })
}

/// Judges a guest as it stands, without files: what the program fills is right, and nothing else was ever written.
/// Its bytes are read through its own storage, which a snapshot need not trust; for simulated hosts there is none.
pub fn judge_guest(guest: &Guest) -> Result<Verdict, JudgeError> {
    let (plan, Registers { boot, boot_tick, tick, .. }) = (guest.plan(), guest.registers());
    let moment = Moment { boot, boot_tick, tick };
    let superblock = Superblock::of_running(boot, boot_tick, tick);
    let last = last_page_writes(plan, moment);
    let (mut must, zeros) = ([0; PAGE_BYTES], [0; PAGE_BYTES]);
    let pages = plan.resident_pages.max(guest.memory().resident_pages());
    for page in 0..pages {
        let tick = page_must(plan, &last, page, &mut must);
        compare(Medium::Memory, page, tick, &must, guest.memory().pages(page, 1).unwrap_or(&zeros))?;
    }
    let last = last_block_writes(plan, tick);
    let (mut must, mut is) = (vec![0; DISK_BLOCK_BYTES], vec![0; DISK_BLOCK_BYTES]);
    let blocks = (1 + plan.resident_blocks).max(guest.disk().versions().len() as u64);
    for block in 0..blocks {
        let tick = block_must(plan, &last, superblock, block, &mut must);
        let path = guest.disk().path().to_owned();
        guest.disk().read(block, &mut is).map_err(|e| JudgeError::Io { path, source: io::Error::other(e) })?;
        compare(Medium::Disk, block, tick, &must, &is)?;
    }
    Ok(Verdict { pages, blocks })
}
