//! Guest and judge agree about every byte, whatever the program, and whatever restarts lie between.

use std::path::Path;

use novafed::drivers::embedded::disk::Disk;
use novafed::drivers::embedded::guest::Guest;
use novafed::drivers::embedded::judge::{JudgeError, Moment, judge, judge_disk};
use novafed::drivers::embedded::program::{Medium, Plan, Superblock};
use novafed::drivers::embedded::snapshot::{self, SnapshotFiles};
use novafed::types::units::{KIB, MIB};
use novafed::types::{DirtyPattern, GuestProgram, RegionNumber, VmId};
use proptest::prelude::*;

const VM: VmId = VmId { region: RegionNumber(1), incarnation: 1, number: 1 };

fn programs() -> impl Strategy<Value = GuestProgram> {
    let pattern = prop_oneof![Just(DirtyPattern::Sequential), Just(DirtyPattern::Random), Just(DirtyPattern::Hot)];
    let sizes = (0..600 * KIB, 0..300 * KIB, 0..5 * MIB);
    (any::<u64>(), 1..2_000_u32, pattern, sizes, (0..600 * KIB, 0..3 * MIB)).prop_map(
        |(seed, tick_ms, pattern, (resident_bytes, working_set_bytes, dirty), (disk_resident_bytes, disk))| {
            // So much per tick, whatever its length.
            let per_second = |rate: u64| rate / u64::from(tick_ms);
            GuestProgram {
                seed,
                tick_ms,
                resident_bytes,
                working_set_bytes,
                dirty_bytes_per_second: per_second(dirty * 4),
                pattern,
                disk_resident_bytes,
                disk_bytes_per_second: per_second(disk * 4),
            }
        },
    )
}

#[derive(Debug, Clone, Copy)]
enum Act {
    Tick(u16),
    Stop,
    Crash,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![4 => (1..400_u16).prop_map(Act::Tick), 1 => Just(Act::Stop), 1 => Just(Act::Crash)];
    prop::collection::vec(act, 1..8)
}

fn judged(guest: &Guest, plan: &Plan, directory: &Path) -> Result<(), JudgeError> {
    snapshot::write(guest, VM, directory).unwrap();
    let files = SnapshotFiles::of(directory, VM);
    let registers = files.read_registers().unwrap();
    let moment = Moment { boot: registers.boot, boot_tick: registers.boot_tick, tick: registers.tick };
    judge(plan, moment, &files.memory, &files.disk).map(drop)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn memory_and_disk_are_what_the_program_says(program in programs(), acts in acts()) {
        let dir = tempfile::tempdir().unwrap();
        let plan = Plan::new(&program, MIB, MIB);
        let path = dir.path().join("disk");
        let boot = |lineage| Guest::boot(plan.clone(), Disk::open(&path, plan.blocks).unwrap(), lineage).unwrap();
        drop(Disk::create(&path, plan.blocks).unwrap());
        let mut guest = boot(1);
        let mut boots = 1;
        judged(&guest, &plan, dir.path()).unwrap();
        for act in acts {
            let before = guest.registers();
            match act {
                Act::Tick(ticks) => for _ in 0..ticks {
                    guest.tick().unwrap();
                },
                Act::Stop => {
                    guest.shut_down().unwrap();
                    let stopped = Superblock::of_stopped(before.boot, before.boot_tick, before.tick);
                    judge_disk(&plan, before.tick, stopped, &path).unwrap();
                    guest = boot(boots);
                    boots += 1;
                    prop_assert_eq!(guest.registers().tick, before.tick, "a stop loses no tick");
                }
                Act::Crash => {
                    guest = boot(boots);
                    boots += 1;
                    prop_assert!(guest.registers().tick >= before.tick, "ticks never go back");
                }
            }
            prop_assert_eq!(guest.registers().boot, boots);
            judged(&guest, &plan, dir.path()).unwrap();
        }
    }
}

#[test]
fn the_judge_names_the_first_page_or_block_that_differs() {
    use std::os::unix::fs::FileExt;
    let dir = tempfile::tempdir().unwrap();
    let program = GuestProgram {
        resident_bytes: 256 * KIB,
        dirty_bytes_per_second: MIB,
        disk_resident_bytes: 256 * KIB,
        ..GuestProgram::default()
    };
    let plan = Plan::new(&program, MIB, MIB);
    let disk = Disk::create(&dir.path().join("disk"), plan.blocks).unwrap();
    let mut guest = Guest::boot(plan.clone(), disk, 1).unwrap();
    guest.tick().unwrap();
    judged(&guest, &plan, dir.path()).unwrap();
    let files = SnapshotFiles::of(dir.path(), VM);
    let moment = Moment { boot: 1, boot_tick: 0, tick: 1 };
    let differs = |moment| match judge(&plan, moment, &files.memory, &files.disk) {
        Err(JudgeError::Differs { medium, index, byte, .. }) => (medium, index, byte),
        other => panic!("{other:?}"),
    };
    // A tick that was lost or done twice shows in the first page that it writes.
    assert_eq!(differs(Moment { tick: 2, ..moment }), (Medium::Memory, 0, 0));
    let flip = |path: &Path, at: u64| {
        let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    };
    flip(&files.disk, 3 * 64 * KIB + 5);
    assert_eq!(differs(moment), (Medium::Disk, 3, 5));
    flip(&files.memory, 700 * KIB);
    assert_eq!(differs(moment), (Medium::Memory, 175, 0));
}

#[test]
fn an_idle_guest_costs_next_to_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let plan = Plan::new(&GuestProgram::default(), 8 << 30, 64 << 30);
    let disk = Disk::create(&dir.path().join("disk"), plan.blocks).unwrap();
    let mut guest = Guest::boot(plan, disk, 1).unwrap();
    for _ in 0..1_000 {
        guest.tick().unwrap();
    }
    assert_eq!(guest.memory().chunks_len(), 0);
    assert_eq!(guest.disk().written_blocks(), 1);
    use std::os::unix::fs::MetadataExt;
    let blocks = std::fs::metadata(dir.path().join("disk")).unwrap().blocks();
    assert!(blocks * 512 <= 64 * KIB, "{blocks} sectors");
}

#[test]
fn the_dirty_rate_is_measured_in_distinct_pages() {
    let dir = tempfile::tempdir().unwrap();
    let program = GuestProgram {
        tick_ms: 10,
        resident_bytes: 8 * MIB,
        working_set_bytes: MIB,
        dirty_bytes_per_second: 20 * MIB,
        disk_resident_bytes: 4 * MIB,
        disk_bytes_per_second: 2 * MIB,
        ..GuestProgram::default()
    };
    let plan = Plan::new(&program, 16 * MIB, 16 * MIB);
    let disk = Disk::create(&dir.path().join("disk"), plan.blocks).unwrap();
    let mut guest = Guest::boot(plan, disk, 1).unwrap();
    for _ in 0..500 {
        guest.tick().unwrap();
    }
    let rate = guest.dirty_rate();
    // Twenty times a second over a working set of one MiB: one MiB of distinct pages.
    assert_eq!(rate.memory_bytes_per_second, MIB);
    assert!((2 * MIB - 128 * KIB..=2 * MIB + 128 * KIB).contains(&rate.disk_bytes_per_second), "{rate:?}");
    assert_eq!((rate.working_set_bytes, rate.resident_bytes), (MIB, 8 * MIB));
    assert_eq!(rate.disk_resident_bytes, 4 * MIB + 64 * KIB);
}
