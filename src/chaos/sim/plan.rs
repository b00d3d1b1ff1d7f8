//! What a seed stands for. Owns: how large the federation is, how far its regions are from each other, what its clients
//! do, and which faults happen when (swarm testing: each seed draws which kinds there are at all, and how many).
//! Always: a plan is a function of the seed and the options; a fault names all that it needs, so that a plan from
//! which faults were taken away runs as well.
//! Not here: what a fault does (`inject.rs`).

use std::ops::RangeInclusive;

use super::faults::{Drawn, Fault, Kind};
use crate::types::{ClusterId, Millis, RegionName, RegionNumber};

/// How messages travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Over links in memory: whole messages.
    Message,
    /// Over QUIC with mutual TLS on simulated UDP sockets.
    Full,
}

impl Level {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Level::Message => "message",
            Level::Full => "full",
        }
    }
}

/// What is simulated, beside the seed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SimOptions {
    /// How messages travel.
    pub level: Level,
    /// How many regions there are at least and at most.
    pub regions: RangeInclusive<usize>,
}

/// One region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegionPlan {
    /// Its name.
    pub name: RegionName,
    /// Its number.
    pub number: RegionNumber,
    /// Its clusters, each with a host of its own.
    pub clusters: Vec<ClusterId>,
    /// What a commit takes when the disk is well.
    pub commit: Millis,
}

/// The way from one region to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    /// One way.
    pub delay: Millis,
    /// Added to it, evenly drawn from 0 to this.
    pub jitter: Millis,
    /// Of each stream.
    pub bytes_per_second: u64,
}

/// A fault and when it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scheduled {
    /// After the beginning of the safety phase.
    pub at: Millis,
    /// How long it stays.
    pub lasts: Millis,
    /// What it is.
    pub fault: Fault,
}

/// All that a seed stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The seed.
    pub seed: u64,
    /// How messages travel.
    pub level: Level,
    /// The regions, by number.
    pub regions: Vec<RegionPlan>,
    /// The way between the n-th and the m-th region, the lower first, in both directions.
    pub ways: Vec<((usize, usize), Way)>,
    /// A host answers after at most this.
    pub host_latency: Millis,
    /// Clients that create, start, stop, delete and read.
    pub clients: usize,
    /// Clients that move VMs about.
    pub movers: usize,
    /// VMs that there are at most.
    pub vms_max: usize,
    /// Moves that are begun.
    pub moves: usize,
    /// Longest pause of a client between two requests.
    pub think: Millis,
    /// The safety phase ends after this, even if moves are left.
    pub safety_max: Millis,
    /// Faults, by time.
    pub faults: Vec<Scheduled>,
}

/// Names of regions, in the order in which they are given.
const NAMES: [&str; 9] = ["eu", "us", "ap", "sa", "af", "me", "in", "jp", "au"];
/// So many regions at most.
pub const REGIONS_MAX: usize = NAMES.len();

impl Plan {
    /// What `seed` stands for.
    pub fn draw(seed: u64, options: &SimOptions) -> Plan {
        // Told apart from other streams of the same seed.
        let mut rng = fastrand::Rng::with_seed(seed ^ 0x706c_616e_0000_0000);
        let (min, max) = (*options.regions.start(), (*options.regions.end()).min(REGIONS_MAX));
        let count = rng.usize(min.min(max)..=max);
        let regions: Vec<RegionPlan> = (0..count).map(|n| region(&mut rng, n)).collect();
        let mut ways = Vec::new();
        for a in 0..count {
            for b in a + 1..count {
                let delay = Millis([1, 5, 20, 60, 120][rng.usize(0..5)]);
                let jitter = Millis(rng.u64(0..=delay.0 / 4 + 1));
                let bytes_per_second = [256 << 10, 1 << 20, 8 << 20][rng.usize(0..3)];
                ways.push(((a, b), Way { delay, jitter, bytes_per_second }));
            }
        }
        let light = options.level == Level::Full;
        let moves = if light { rng.usize(5..=12) } else { rng.usize(30..=70) };
        let vms_max = rng.usize(4..=14);
        let movers = rng.usize(2..=5);
        // As much as the moves take, more or less: faults are to fall among them.
        let safety_max = Millis((moves as u64 * 4_000 / movers as u64).clamp(20_000, 240_000));
        let faults = faults(&mut rng, options.level, &regions, safety_max);
        // Long faults are waited for, so that what comes after them is seen in the safety phase, too.
        let end = faults.iter().map(|f| f.at.0 + f.lasts.0).max().unwrap_or(0);
        Plan {
            seed,
            level: options.level,
            regions,
            ways,
            host_latency: Millis(rng.u64(0..=8)),
            clients: rng.usize(1..=3),
            movers,
            vms_max,
            moves,
            think: Millis([50, 300, 1_500][rng.usize(0..3)]),
            safety_max: Millis(safety_max.0.max(end)),
            faults,
        }
    }

    /// The same without the faults that `keep` says no to, by their place.
    pub fn keeping(&self, keep: impl Fn(usize) -> bool) -> Plan {
        let faults = self.faults.iter().enumerate().filter(|(n, _)| keep(*n)).map(|(_, f)| f.clone()).collect();
        Plan { faults, ..self.clone() }
    }

    /// The way between two regions, in either direction.
    pub fn way(&self, a: usize, b: usize) -> Way {
        let pair = (a.min(b), a.max(b));
        let found = self.ways.iter().find(|(of, _)| *of == pair);
        found.map(|(_, way)| *way).expect("a plan has a way between any two of its regions")
    }

    /// All ordered pairs of regions.
    pub fn pairs(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let count = self.regions.len();
        (0..count).flat_map(move |a| (0..count).filter(move |b| *b != a).map(move |b| (a, b)))
    }

    /// All clusters with their regions.
    pub fn places(&self) -> impl Iterator<Item = (&RegionPlan, &ClusterId)> {
        self.regions.iter().flat_map(|region| region.clusters.iter().map(move |cluster| (region, cluster)))
    }
}

fn region(rng: &mut fastrand::Rng, n: usize) -> RegionPlan {
    let name: RegionName = NAMES[n].parse().expect("a literal that matches the grammar");
    let letters = ["a", "b"];
    let clusters = (0..rng.usize(1..=2))
        .map(|k| format!("{name}-{}", letters[k]).parse().expect("a name with a letter matches the grammar"))
        .collect();
    let number = RegionNumber(u32::try_from(n + 1).expect("few regions"));
    RegionPlan { name, number, clusters, commit: Millis([0, 1, 1, 4][rng.usize(0..4)]) }
}

fn faults(rng: &mut fastrand::Rng, level: Level, regions: &[RegionPlan], within: Millis) -> Vec<Scheduled> {
    // A few seeds have none, so that what is wrong without any is seen as such.
    if rng.u8(0..20) == 0 {
        return Vec::new();
    }
    let mut faults = Vec::new();
    for kind in Kind::ALL.into_iter().filter(|kind| kind.at(level)) {
        if rng.u8(0..100) >= kind.percent_of_seeds() {
            continue;
        }
        for _ in 0..rng.u64(1..=kind.times_max()) {
            let at = Millis(rng.u64(0..=within.0));
            let Drawn { fault, lasts } = kind.draw(rng, regions);
            faults.push(Scheduled { at, lasts, fault });
        }
    }
    faults.sort_by_key(|scheduled| scheduled.at);
    faults
}
