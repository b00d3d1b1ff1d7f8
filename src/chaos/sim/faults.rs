//! Kinds of faults. Owns: which there are, which rows of the catalogue they are, how often a seed has one, and how one
//! is drawn. Rows are numbered as in the fault catalogue of `docs/chaos.md`.
//! Always: a fault names regions and clusters by their place in the plan and holds all that it needs.
//! Not here: how it is done and undone (`inject.rs`).

use std::fmt;

use super::plan::{Level, RegionPlan};
use crate::decision::migration::steps::KillPoint;
use crate::drivers::embedded::faults::{CallKind, Fault as HostFault};
use crate::types::Millis;

/// A cluster: its region's place in the plan, and its own in the region.
pub type ClusterAt = (usize, usize);

/// A fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL of a node; it is started again after the fault's time.
    KillNode(usize),
    /// A node dies when it passes this point next.
    KillAtStep(usize, KillPoint),
    /// Source and target die together when the first passes this point next, whoever they are.
    KillBoth(KillPoint),
    /// A node dies, and again so long after it came back, several times.
    KillAgain(usize, Millis, u8),
    /// All machines lose their power at once; of what was not synced a part is on the disks. Seed of that part.
    PowerLossOfAll(u64),
    /// One machine, node and hosts, loses its power.
    PowerLoss(usize, u64),
    /// SIGSTOP and SIGCONT of a node.
    HoldNode(usize),
    /// SIGSTOP and SIGCONT of a host.
    HoldHost(ClusterAt),
    /// SIGKILL of a host.
    KillHost(ClusterAt),
    /// Of so many passed points per thousand, the actor there panics.
    PanicStorm(u16),
    /// Whoever passes this point panics, each time.
    Poison(KillPoint),
    /// So many requests at once, again and again.
    Overload(usize, u32),
    /// Every commit takes so long.
    SlowDisk(usize, Millis),
    /// The n-th sync from now fails, and later ones say that all is well.
    SyncFails(usize, u64),
    /// The n-th write from now, and all after it, find the disk full; new work is refused before that.
    DiskFull(usize, u64),
    /// The n-th write from now fails once.
    WriteFails(usize, u64),
    /// The n-th read from now fails once.
    ReadFails(usize, u64),
    /// A node dies and finds a bit of its file flipped, somewhere.
    BitFlip(usize, u64),
    /// A node dies and finds its file cut off, or empty: at this many thousandths of its length.
    Truncated(usize, u16),
    /// A node dies and an older copy of its file is put in its place.
    OlderCopy(usize),
    /// A region is cut off from all others.
    Isolate(usize),
    /// The federation is cut in two: the regions in this set, and the others.
    Split(u32),
    /// What one region sends to another does not arrive, what comes from there does.
    OneWay(usize, usize),
    /// Two regions can't reach each other, the others can.
    NonTransitive(usize, usize),
    /// A link is up for the first time and down for the second, again and again.
    Flap(usize, usize, Millis, Millis),
    /// Delay and jitter.
    Far(usize, usize, Millis, Millis),
    /// Lost per thousand, in both directions.
    Lossy(usize, usize, u16),
    /// Reordered, doubled and damaged per thousand; messages are never damaged, datagrams are.
    Disorder(usize, usize, u16, u16, u16),
    /// The connection breaks and is there again after the fault's time.
    Break(usize, usize),
    /// Bytes per second of bulk.
    Narrow(usize, usize, u64),
    /// Bulk streams break once so many more bytes went from the first to the second.
    CutBulk(usize, usize, u64),
    /// Datagrams longer than this vanish.
    SmallMtu(usize, usize, u16),
    /// The wall clock of a region's machine is set; set back afterwards.
    ClockJump(usize, i64),
    /// So many of the next calls of this kind go wrong like this.
    Host(ClusterAt, CallKind, HostFault, u32),
    /// The disk of a host is full.
    HostDiskFull(ClusterAt),
}

/// A fault with how long it stays.
pub struct Drawn {
    /// The fault.
    pub fault: Fault,
    /// How long.
    pub lasts: Millis,
}

macro_rules! kinds {
    ($($kind:ident $name:literal rows $rows:expr, seeds $percent:literal times $times:literal;)*) => {
        /// A kind of fault.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        #[allow(missing_docs, reason = "each is explained at the fault of that name")]
        pub enum Kind { $($kind),* }

        impl Kind {
            /// All, in the order of their table.
            pub const ALL: [Kind; [$($name),*].len()] = [$(Kind::$kind),*];

            /// Its name in reports.
            pub const fn name(self) -> &'static str {
                match self { $(Kind::$kind => $name),* }
            }
            /// The rows of the catalogue that it is.
            pub const fn rows(self) -> &'static [u8] {
                match self { $(Kind::$kind => &$rows),* }
            }
            /// In how many of a hundred seeds there are some.
            pub(super) const fn percent_of_seeds(self) -> u8 {
                match self { $(Kind::$kind => $percent),* }
            }
            /// How many there are then at most.
            pub(super) const fn times_max(self) -> u64 {
                match self { $(Kind::$kind => $times),* }
            }
        }

        impl Fault {
            /// Its kind.
            pub fn kind(&self) -> Kind {
                match self { $(Fault::$kind { .. } => Kind::$kind),* }
            }
        }
    };
}

kinds! {
    KillNode "kill-node" rows [1, 34], seeds 40 times 4;
    KillAtStep "kill-at-step" rows [1], seeds 60 times 8;
    KillBoth "kill-both-sides" rows [2], seeds 30 times 3;
    KillAgain "kill-in-recovery" rows [2], seeds 25 times 2;
    PowerLossOfAll "power-loss-of-all" rows [3, 15, 16], seeds 15 times 1;
    PowerLoss "power-loss" rows [15, 16], seeds 25 times 2;
    HoldNode "hold-node" rows [4, 40], seeds 25 times 3;
    HoldHost "hold-host" rows [4], seeds 20 times 2;
    KillHost "kill-host" rows [56], seeds 20 times 2;
    PanicStorm "panic-storm" rows [6], seeds 15 times 1;
    Poison "poison" rows [10], seeds 8 times 1;
    Overload "overload" rows [9], seeds 8 times 1;
    SlowDisk "slow-disk" rows [14, 19], seeds 15 times 2;
    SyncFails "sync-fails" rows [17], seeds 15 times 2;
    DiskFull "disk-full" rows [18], seeds 15 times 2;
    WriteFails "write-fails" rows [24], seeds 10 times 2;
    ReadFails "read-fails" rows [24], seeds 8 times 1;
    BitFlip "bit-flip" rows [20], seeds 8 times 1;
    Truncated "file-cut-off" rows [21], seeds 8 times 1;
    OlderCopy "older-copy" rows [22], seeds 12 times 1;
    Isolate "isolate" rows [26, 37], seeds 25 times 2;
    Split "split" rows [26, 37], seeds 20 times 2;
    OneWay "one-way" rows [27], seeds 25 times 3;
    NonTransitive "non-transitive" rows [28], seeds 25 times 3;
    Flap "flapping" rows [29], seeds 15 times 2;
    Far "far" rows [30], seeds 20 times 3;
    Lossy "lossy" rows [31], seeds 30 times 3;
    Disorder "disorder" rows [32, 33], seeds 30 times 3;
    Break "broken-connection" rows [34], seeds 30 times 5;
    Narrow "narrow" rows [35], seeds 20 times 2;
    CutBulk "cut-bulk" rows [34], seeds 50 times 10;
    SmallMtu "small-mtu" rows [36], seeds 25 times 1;
    ClockJump "clock-jump" rows [38, 41], seeds 20 times 2;
    Host "hypervisor-lies" rows [56], seeds 40 times 10;
    HostDiskFull "host-disk-full" rows [18, 56], seeds 10 times 1;
}

/// Points that the way forward passes, and those back.
fn any_point(rng: &mut fastrand::Rng) -> KillPoint {
    let points = KillPoint::all();
    points[rng.usize(0..points.len())]
}

impl Kind {
    /// Whether there is such a fault at this level.
    pub fn at(self, level: Level) -> bool {
        match self {
            Kind::SmallMtu => level == Level::Full,
            // Bytes are counted by the links in memory.
            Kind::CutBulk => level == Level::Message,
            _ => true,
        }
    }

    /// Draws one.
    pub(super) fn draw(self, rng: &mut fastrand::Rng, regions: &[RegionPlan]) -> Drawn {
        let count = regions.len();
        let a = rng.usize(0..count);
        // Another one, if there is one.
        let b = if count > 1 { (a + rng.usize(1..count)) % count } else { a };
        let cluster = (a, rng.usize(0..regions[a].clusters.len()));
        let short = Millis(rng.u64(200..=5_000));
        let middle = Millis(rng.u64(2_000..=30_000));
        let (fault, lasts) = match self {
            Kind::KillNode => (Fault::KillNode(a), short),
            Kind::KillAtStep => (Fault::KillAtStep(a, any_point(rng)), middle),
            Kind::KillBoth => (Fault::KillBoth(any_point(rng)), middle),
            Kind::KillAgain => (Fault::KillAgain(a, Millis(rng.u64(0..=1_500)), rng.u8(1..=3)), short),
            Kind::PowerLossOfAll => (Fault::PowerLossOfAll(rng.u64(..)), short),
            Kind::PowerLoss => (Fault::PowerLoss(a, rng.u64(..)), short),
            Kind::HoldNode => (Fault::HoldNode(a), [short, middle, Millis(60_000)][rng.usize(0..3)]),
            Kind::HoldHost => (Fault::HoldHost(cluster), [short, Millis(15_000)][rng.usize(0..2)]),
            Kind::KillHost => (Fault::KillHost(cluster), short),
            Kind::PanicStorm => (Fault::PanicStorm(rng.u16(5..=60)), Millis(60_000)),
            Kind::Poison => (Fault::Poison(any_point(rng)), middle),
            Kind::Overload => (Fault::Overload(a, rng.u32(50..=400)), Millis(2_000)),
            Kind::SlowDisk => (Fault::SlowDisk(a, Millis(rng.u64(50..=1_000))), middle),
            Kind::SyncFails => (Fault::SyncFails(a, rng.u64(1..=40)), middle),
            Kind::DiskFull => (Fault::DiskFull(a, rng.u64(1..=120)), middle),
            Kind::WriteFails => (Fault::WriteFails(a, rng.u64(1..=200)), middle),
            Kind::ReadFails => (Fault::ReadFails(a, rng.u64(1..=50)), middle),
            Kind::BitFlip => (Fault::BitFlip(a, rng.u64(..)), middle),
            Kind::Truncated => (Fault::Truncated(a, [0, rng.u16(1..1_000)][rng.usize(0..2)]), middle),
            Kind::OlderCopy => (Fault::OlderCopy(a), middle),
            Kind::Isolate => (Fault::Isolate(a), [short, middle, Millis(7_200_000)][long_seldom(rng)]),
            Kind::Split => (Fault::Split(rng.u32(1..1 << count)), [short, middle, Millis(600_000)][long_seldom(rng)]),
            Kind::OneWay => (Fault::OneWay(a, b), middle),
            Kind::NonTransitive => (Fault::NonTransitive(a, b), middle),
            Kind::Flap => (Fault::Flap(a, b, Millis(1_000), Millis(3_000)), Millis(rng.u64(20_000..=120_000))),
            Kind::Far => {
                let (delay, jitter) = [(300, 100), (2_000, 200)][rng.usize(0..2)];
                (Fault::Far(a, b, Millis(delay), Millis(jitter)), middle)
            }
            Kind::Lossy => {
                let (permille, lasts) = [(100, middle), (300, middle), (1_000, Millis(3_000))][rng.usize(0..3)];
                (Fault::Lossy(a, b, permille), lasts)
            }
            Kind::Disorder => (Fault::Disorder(a, b, 250, 50, 10), middle),
            Kind::Break => (Fault::Break(a, b), Millis(rng.u64(10..=2_000))),
            Kind::Narrow => (Fault::Narrow(a, b, [8_000, 64_000][rng.usize(0..2)]), middle),
            Kind::CutBulk => (Fault::CutBulk(a, b, rng.u64(0..=400_000)), middle),
            Kind::SmallMtu => (Fault::SmallMtu(a, b, 1_280), middle),
            Kind::ClockJump => {
                let by = [3_600_000, -3_600_000, 86_400_000, -86_400_000, 315_360_000_000, -315_360_000_000];
                (Fault::ClockJump(a, by[rng.usize(0..by.len())]), middle)
            }
            Kind::Host => host(rng, cluster, middle),
            Kind::HostDiskFull => (Fault::HostDiskFull(cluster), short),
        };
        Drawn { fault, lasts }
    }
}

/// Two of the shorter kinds, seldom the long one.
fn long_seldom(rng: &mut fastrand::Rng) -> usize {
    [0, 0, 0, 0, 1, 1, 1, 1, 1, 2][rng.usize(0..10)]
}

fn host(rng: &mut fastrand::Rng, cluster: ClusterAt, lasts: Millis) -> (Fault, Millis) {
    let call = CallKind::ALL[rng.usize(0..CallKind::ALL.len())];
    let fault = match rng.u8(0..6) {
        0 => HostFault::Slow(Millis(rng.u64(100..=8_000))),
        1 => HostFault::Refuses,
        2 => HostFault::Hangs,
        3 => HostFault::SaysFailed,
        4 => HostFault::Dies,
        _ => HostFault::Forgets,
    };
    (Fault::Host(cluster, call, fault, rng.u32(1..=3)), lasts)
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parameters = format!("{self:?}");
        let parameters = parameters.split_once('(').map_or("", |(_, rest)| rest.trim_end_matches(')'));
        write!(f, "{}({parameters})", self.kind().name())
    }
}
