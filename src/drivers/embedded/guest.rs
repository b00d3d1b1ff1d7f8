//! The guest: a deterministic machine. Owns: its memory, disk and registers, and what one tick does.
//! Always: memory and disk are a function of (program, boot tick, tick); tick numbers never go back, whatever dies.
//! No clock and no task in here: somebody calls [`Guest::tick`] (`scheduler.rs`).
//!
//! Restart: the superblock promises ticks in steps. A guest that was stopped goes on at its tick; one that was killed
//! goes on at the end of the promise, after it repeated the disk writes up to there, which are pure and so do no harm.

use serde::{Deserialize, Serialize};

use super::disk::{Disk, DiskError};
use super::memory::Memory;
use super::program::{Medium, Plan, Superblock, fill};
use crate::drivers::DirtyRate;
use crate::types::limits::{DISK_BLOCK_BYTES, PAGE_BYTES};

/// What a guest is beside memory and disk; it travels at the end of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Registers {
    /// How often it booted.
    pub boot: u64,
    /// The tick at which it booted last.
    pub boot_tick: u64,
    /// Ticks done, over all boots.
    pub tick: u64,
    /// Random, drawn at each boot: page versions of two lineages can't be compared.
    pub lineage: u64,
}

/// Rates over windows of about a second, smoothed.
#[derive(Debug, Clone, Copy, Default)]
struct Meter {
    window: u32,
    ticks: u64,
    pages: u64,
    blocks: u64,
    smooth: Option<(u64, u64)>,
}

/// Room for a block that is written; none for a guest that writes none, of which there may be thousands.
fn block_buffer(plan: &Plan) -> Box<[u8]> {
    vec![0; if plan.resident_blocks > 0 { DISK_BLOCK_BYTES } else { 0 }].into_boxed_slice()
}

/// A guest.
pub struct Guest {
    plan: Plan,
    memory: Memory,
    disk: Disk,
    registers: Registers,
    meter: Meter,
    buffer: Box<[u8]>,
}

impl Guest {
    /// Boots from `disk`, the first time filling it. `lineage` is random.
    pub fn boot(plan: Plan, mut disk: Disk, lineage: u64) -> Result<Guest, DiskError> {
        let mut buffer = block_buffer(&plan);
        let (boot, tick) = match disk.superblock()? {
            None => {
                for block in 1..=plan.resident_blocks {
                    fill(plan.seed, Medium::Disk, block, 0, &mut buffer);
                    disk.write(block, 0, &buffer)?;
                }
                (1, 0)
            }
            Some(last) => {
                disk.assume_written(1 + plan.resident_blocks);
                // One round over the blocks is enough: an earlier write of a block is overwritten by a later one.
                let until = plan.block_writes_until(last.promised_tick);
                let from = plan.block_writes_until(last.written_tick).max(until.saturating_sub(plan.resident_blocks));
                let mut tick = last.written_tick;
                for k in from..until {
                    while plan.block_writes_until(tick) <= k {
                        tick += 1;
                    }
                    let block = plan.block_of_write(k);
                    fill(plan.seed, Medium::Disk, block, tick, &mut buffer);
                    disk.write(block, 0, &buffer)?;
                }
                (last.boot + 1, last.promised_tick)
            }
        };
        disk.write(0, 0, &Superblock::of_running(boot, tick, tick).encode())?;
        let mut memory = Memory::new();
        for page in 0..plan.resident_pages {
            memory.write(page, 0, |bytes| fill(plan.seed, Medium::Memory, page, tick, bytes));
        }
        let registers = Registers { boot, boot_tick: tick, tick, lineage };
        Ok(Guest::of_parts(plan, memory, disk, registers))
    }

    /// A guest as another host had it.
    pub fn of_parts(plan: Plan, memory: Memory, disk: Disk, registers: Registers) -> Guest {
        // Window 0 belongs to what was written before the meter ran.
        let meter = Meter { window: 1, ..Meter::default() };
        let buffer = block_buffer(&plan);
        Guest { plan, memory, disk, registers, meter, buffer }
    }

    /// Advances by one tick. On an error nothing but disk blocks of this very tick has changed: call it again.
    pub fn tick(&mut self) -> Result<u64, DiskError> {
        let Registers { boot, boot_tick, tick, .. } = self.registers;
        let next = tick + 1;
        let superblock = Superblock::of_running(boot, boot_tick, next);
        if superblock.promised_tick != Superblock::of_running(boot, boot_tick, tick).promised_tick {
            self.meter.blocks += u64::from(self.disk.write(0, self.meter.window, &superblock.encode())?);
        }
        for k in self.plan.block_writes_of(next) {
            let block = self.plan.block_of_write(k);
            fill(self.plan.seed, Medium::Disk, block, next, &mut self.buffer);
            self.meter.blocks += u64::from(self.disk.write(block, self.meter.window, &self.buffer)?);
        }
        for k in self.plan.page_writes_of(next) {
            let page = self.plan.page_of_write(k);
            let seed = self.plan.seed;
            let first =
                self.memory.write(page, self.meter.window, |bytes| fill(seed, Medium::Memory, page, next, bytes));
            self.meter.pages += u64::from(first);
        }
        self.registers.tick = next;
        self.measure();
        Ok(next)
    }

    fn measure(&mut self) {
        self.meter.ticks += 1;
        let elapsed_ms = self.meter.ticks * self.plan.tick_ms;
        if elapsed_ms < 1_000 {
            return;
        }
        let (memory, disk) = self.window_rates();
        // Three parts of the past and one of the present: about four seconds of memory.
        let blend = |old: u64, new: u64| (old.saturating_mul(3).saturating_add(new)) / 4;
        let smooth = self.meter.smooth.map_or((memory, disk), |(m, d)| (blend(m, memory), blend(d, disk)));
        self.meter = Meter { window: self.meter.window.wrapping_add(1), smooth: Some(smooth), ..Meter::default() };
    }

    fn window_rates(&self) -> (u64, u64) {
        let elapsed_ms = (self.meter.ticks * self.plan.tick_ms).max(1);
        let rate = |count: u64, unit: usize| count.saturating_mul(unit as u64).saturating_mul(1_000) / elapsed_ms;
        (rate(self.meter.pages, PAGE_BYTES), rate(self.meter.blocks, DISK_BLOCK_BYTES))
    }

    /// The rate of its writes over the last seconds.
    pub fn dirty_rate(&self) -> DirtyRate {
        let (memory, disk) = self.meter.smooth.unwrap_or_else(|| self.window_rates());
        DirtyRate {
            memory_bytes_per_second: memory,
            disk_bytes_per_second: disk,
            working_set_bytes: self.memory.rewritten_pages() * PAGE_BYTES as u64,
            resident_bytes: self.memory.resident_pages() * PAGE_BYTES as u64,
            disk_resident_bytes: self.disk.written_blocks() * DISK_BLOCK_BYTES as u64,
        }
    }

    /// Writes down its exact tick, so that the next boot goes on there. Call it last: it may not tick again.
    pub fn shut_down(&mut self) -> Result<(), DiskError> {
        let Registers { boot, boot_tick, tick, .. } = self.registers;
        self.disk.write(0, self.meter.window, &Superblock::of_stopped(boot, boot_tick, tick).encode())?;
        self.disk.sync()
    }

    /// Its registers.
    pub fn registers(&self) -> Registers {
        self.registers
    }
    /// Its program, fitted.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }
    /// Its memory.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }
    /// Its disk.
    pub fn disk(&self) -> &Disk {
        &self.disk
    }
}
