//! Kinds of faults of real processes. Owns: which there are, how one is drawn, when each one is due.
//! Always: a fault names regions by their place in the run and holds all that it needs; the same seed gives the same
//! plan. A kind that the simulator has too has its name there.
//! Not here: how it is done and undone (`inject.rs`).

use std::fmt;

use crate::decision::migration::steps::KillPoint;
use crate::drivers::embedded::faults::{CallKind, Fault as HostFault};
use crate::types::Millis;

/// A fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL of a node; it is started again after the fault's time.
    KillNode(usize),
    /// A node dies when it passes this point next.
    KillAtStep(usize, KillPoint),
    /// The nodes of source and target of a move that is open die together; of these two regions if none is.
    KillBoth(usize, usize),
    /// A node dies, and again so long after it was started, several times.
    KillAgain(usize, Millis, u8),
    /// All nodes die at once.
    KillAllNodes,
    /// All nodes and all hosts die at once.
    KillEverything,
    /// SIGTERM of a node; it is started again once it ended.
    RestartNode(usize),
    /// SIGSTOP and SIGCONT of a node.
    HoldNode(usize),
    /// SIGSTOP and SIGCONT of the host of the n-th place.
    HoldHost(usize),
    /// A node is stopped for most of the time, in slices.
    SlowNode(usize),
    /// SIGKILL of the host of the n-th place.
    KillHost(usize),
    /// So many requests at once, again and again.
    Overload(usize, u32),
    /// The disk of a node's store has so many bytes left.
    DiskFull(usize, u64),
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
    /// Reordered, doubled and damaged per thousand.
    Disorder(usize, usize, u16, u16, u16),
    /// Bytes per second.
    Narrow(usize, usize, u64),
    /// Datagrams longer than this vanish.
    SmallMtu(usize, usize, u16),
    /// Whoever is in between forgets which port was whose, again and again.
    NewAddress(usize, usize),
    /// So many of the next calls of this kind to the host of the n-th place go wrong like this.
    Host(usize, CallKind, HostFault, u32),
}

macro_rules! kinds {
    ($($kind:ident $name:literal;)*) => {
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
    KillNode "kill-node";
    KillAtStep "kill-at-step";
    KillBoth "kill-both-sides";
    KillAgain "kill-in-recovery";
    KillAllNodes "kill-all-nodes";
    KillEverything "kill-everything";
    RestartNode "restart-node";
    HoldNode "hold-node";
    HoldHost "hold-host";
    SlowNode "slow-node";
    KillHost "kill-host";
    Overload "overload";
    DiskFull "disk-full";
    Isolate "isolate";
    Split "split";
    OneWay "one-way";
    NonTransitive "non-transitive";
    Flap "flapping";
    Far "far";
    Lossy "lossy";
    Disorder "disorder";
    Narrow "narrow";
    SmallMtu "small-mtu";
    NewAddress "new-address";
    Host "hypervisor-lies";
}

/// What a run has, as far as faults need it.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Regions.
    pub regions: usize,
    /// Places, which are clusters with a host each.
    pub places: usize,
    /// Whether stores have small disks of their own that can be filled.
    pub small_disks: bool,
}

/// A fault with its time.
#[derive(Debug, Clone)]
pub struct Scheduled {
    /// When it begins.
    pub at: Millis,
    /// How long it stays.
    pub lasts: Millis,
    /// It.
    pub fault: Fault,
}

/// Faults at work at once, at most.
const AT_ONCE_MAX: usize = 4;
/// From the start of clients to the first fault.
const FIRST: Millis = Millis(2_000);

/// All faults of a run of `length`, in the order of their beginnings. Kinds are dealt from a shuffled deck, so that a
/// short run has many of them.
pub fn plan(seed: u64, length: Millis, shape: Shape) -> Vec<Scheduled> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut deck: Vec<Kind> = Vec::new();
    let mut all: Vec<Scheduled> = Vec::new();
    let mut at = FIRST.0;
    while at < length.0 {
        if deck.is_empty() {
            deck = Kind::ALL.into_iter().filter(|kind| kind.can_be(shape)).collect();
            rng.shuffle(&mut deck);
        }
        let Some(kind) = deck.pop() else { break };
        let (fault, lasts) = kind.draw(&mut rng, shape);
        // So late that no more than so many are at work.
        let mut ends: Vec<u64> = all.iter().map(|s| s.at.0 + s.lasts.0).filter(|end| *end > at).collect();
        ends.sort_unstable();
        if ends.len() >= AT_ONCE_MAX {
            at = ends[ends.len() - AT_ONCE_MAX];
        }
        let lasts = Millis(lasts.0.min(length.0.saturating_sub(at)));
        all.push(Scheduled { at: Millis(at), lasts, fault });
        at += rng.u64(300..=2_500);
    }
    all
}

impl Kind {
    /// Whether there is such a fault in such a run.
    pub fn can_be(self, shape: Shape) -> bool {
        match self {
            Kind::DiskFull => shape.small_disks,
            // With fewer it is `isolate`.
            Kind::Split => shape.regions >= 4,
            // With two it is `isolate`.
            Kind::NonTransitive => shape.regions >= 3,
            _ => true,
        }
    }

    fn draw(self, rng: &mut fastrand::Rng, shape: Shape) -> (Fault, Millis) {
        let count = shape.regions;
        let a = rng.usize(0..count);
        let b = (a + rng.usize(1..count)) % count;
        let place = rng.usize(0..shape.places);
        let short = Millis(rng.u64(200..=4_000));
        let middle = Millis(rng.u64(2_000..=10_000));
        // Longer than the deadline of a switch, at which the source's host resumes the guest by itself.
        let long = Millis(rng.u64(11_000..=15_000));
        match self {
            Kind::KillNode => (Fault::KillNode(a), short),
            Kind::KillAtStep => (Fault::KillAtStep(a, any_point(rng)), Millis(rng.u64(6_000..=12_000))),
            Kind::KillBoth => (Fault::KillBoth(a, b), short),
            Kind::KillAgain => (Fault::KillAgain(a, Millis(rng.u64(0..=1_500)), rng.u8(1..=3)), short),
            Kind::KillAllNodes => (Fault::KillAllNodes, Millis(rng.u64(100..=2_000))),
            Kind::KillEverything => (Fault::KillEverything, Millis(rng.u64(100..=2_000))),
            Kind::RestartNode => (Fault::RestartNode(a), short),
            Kind::HoldNode => (Fault::HoldNode(a), [short, middle, long][rng.usize(0..3)]),
            Kind::HoldHost => (Fault::HoldHost(place), [short, long][rng.usize(0..2)]),
            Kind::SlowNode => (Fault::SlowNode(a), middle),
            Kind::KillHost => (Fault::KillHost(place), short),
            Kind::Overload => (Fault::Overload(a, rng.u32(20..=150)), Millis(2_000)),
            Kind::DiskFull => (Fault::DiskFull(a, [0, 0, 16 << 10, 2 << 20][rng.usize(0..4)]), middle),
            Kind::Isolate => (Fault::Isolate(a), [short, middle, long][rng.usize(0..3)]),
            Kind::Split => (Fault::Split(rng.u32(1..(1 << count) - 1)), [short, middle, long][rng.usize(0..3)]),
            Kind::OneWay => (Fault::OneWay(a, b), middle),
            Kind::NonTransitive => (Fault::NonTransitive(a, b), middle),
            Kind::Flap => (Fault::Flap(a, b, Millis(1_000), Millis(3_000)), Millis(rng.u64(8_000..=20_000))),
            Kind::Far => {
                let (delay, jitter) = [(300, 100), (2_000, 200)][rng.usize(0..2)];
                (Fault::Far(a, b, Millis(delay), Millis(jitter)), middle)
            }
            Kind::Lossy => {
                let (permille, lasts) = [(100, middle), (300, middle), (1_000, Millis(3_000))][rng.usize(0..3)];
                (Fault::Lossy(a, b, permille), lasts)
            }
            Kind::Disorder => (Fault::Disorder(a, b, 250, 50, 10), middle),
            Kind::Narrow => (Fault::Narrow(a, b, [8_000, 64_000][rng.usize(0..2)]), middle),
            // What is left of 1,280 bytes behind the heads of IP and UDP.
            Kind::SmallMtu => (Fault::SmallMtu(a, b, 1_252), middle),
            Kind::NewAddress => (Fault::NewAddress(a, b), middle),
            Kind::Host => host(rng, place, middle),
        }
    }
}

/// Mostly points of the way forward, which each move passes.
fn any_point(rng: &mut fastrand::Rng) -> KillPoint {
    let points = if rng.u8(0..4) == 0 { KillPoint::all() } else { KillPoint::all_forward() };
    points[rng.usize(0..points.len())]
}

fn host(rng: &mut fastrand::Rng, place: usize, lasts: Millis) -> (Fault, Millis) {
    let call = CallKind::ALL[rng.usize(0..CallKind::ALL.len())];
    let fault = match rng.u8(0..6) {
        0 => HostFault::Slow(Millis(rng.u64(100..=8_000))),
        1 => HostFault::Refuses,
        2 => HostFault::Hangs,
        3 => HostFault::SaysFailed,
        4 => HostFault::Dies,
        _ => HostFault::Forgets,
    };
    (Fault::Host(place, call, fault, rng.u32(1..=3)), lasts)
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parameters = format!("{self:?}");
        let parameters = parameters.split_once('(').map_or("", |(_, rest)| rest.strip_suffix(')').unwrap_or(rest));
        write!(f, "{}({parameters})", self.kind().name())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const SHAPE: Shape = Shape { regions: 3, places: 4, small_disks: true };

    #[test]
    fn a_seed_is_a_plan_and_a_minute_has_nearly_all_kinds() {
        let text = |seed| format!("{:?}", plan(seed, Millis(60_000), SHAPE));
        assert_eq!(text(7), text(7));
        assert_ne!(text(7), text(8));
        let kinds: BTreeSet<Kind> = plan(7, Millis(60_000), SHAPE).iter().map(|s| s.fault.kind()).collect();
        assert!(kinds.len() >= 20, "{kinds:?}");
    }

    #[test]
    fn no_more_are_at_work_at_once_than_may_be_and_none_outlasts_the_run() {
        for seed in 0..50 {
            let all = plan(seed, Millis(120_000), SHAPE);
            assert!(all.len() > 30, "seed {seed}: {}", all.len());
            for one in &all {
                assert!(one.at.0 + one.lasts.0 <= 120_000);
                let at_work = all.iter().filter(|o| o.at <= one.at && one.at.0 < o.at.0 + o.lasts.0).count();
                assert!(at_work <= AT_ONCE_MAX, "seed {seed}: {at_work}");
            }
        }
    }
}
