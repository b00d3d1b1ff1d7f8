//! What a move will take, before it begins. Owns: the arithmetic of pre-copy: rounds, bytes, duration, blackout.
//! Always: the same figures give the same estimate; it never promises what a round of the real copy would refuse, since
//! both judge by the same rule (`Round::downtime_us` against `SwitchRules::downtime_max`).
//! Not here: measuring (`drivers/`), what an estimate means for a plan (`assess/`).
//!
//! The first round sends what was ever written. While a round of `t` seconds runs, the guest dirties `rate * t` bytes
//! of memory, but never more than its working set, and of disk, but never more than what is in use: so the rounds are a
//! geometric series with the ratio dirty rate / link rate, cut off at the working set.

use serde::{Deserialize, Serialize};

use super::source::SwitchRules;
use crate::types::limits;

/// What was measured of a guest; distinct pages and blocks, so a page written twice counts once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Workload {
    /// Memory dirtied, bytes per second.
    pub memory_bytes_per_second: u64,
    /// Disk dirtied, bytes per second.
    pub disk_bytes_per_second: u64,
    /// Part of memory that is written again and again, bytes; 0 if that was not seen.
    pub working_set_bytes: u64,
    /// Memory ever written, bytes.
    pub resident_bytes: u64,
    /// Disk ever written, bytes.
    pub disk_resident_bytes: u64,
}

/// The way the bytes take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Path {
    /// What it carries, bytes per second, after every cap.
    pub bytes_per_second: u64,
    /// A round trip, microseconds.
    pub rtt_us: u64,
    /// A durable write at either end, microseconds.
    pub commit_us: u64,
}

/// A round trip that was not measured is taken for this, microseconds: so far that a switch is not promised too early.
pub const RTT_NOT_MEASURED_US: u64 = 100_000;
/// Round trips between pause and start that wait for each other: seal, which waits for the last round, and start.
const SWITCH_ROUND_TRIPS: u64 = 2;
/// Durable writes between pause and start that wait for each other: paused, sealed at the target, sealed at the source,
/// held and decided, the target's ownership.
const SWITCH_COMMITS: u64 = 5;
/// Calls to the two hosts and the last look at what is dirty, microseconds: 10,000 on idle cores, twice that on busy ones.
const SWITCH_CALLS_US: u64 = 20_000;

impl Path {
    /// What a switch costs besides its bytes, microseconds.
    pub const fn overhead_us(&self) -> u64 {
        self.rtt_us
            .saturating_mul(SWITCH_ROUND_TRIPS)
            .saturating_add(self.commit_us.saturating_mul(SWITCH_COMMITS))
            .saturating_add(SWITCH_CALLS_US)
    }
}

/// What a move will take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Estimate {
    /// From start to the VM seen running, microseconds.
    pub duration_us: u64,
    /// From pause to start, microseconds.
    pub downtime_us: u64,
    /// Over all rounds, the last one included.
    pub bytes: u64,
    /// Of the first round.
    pub first_round_bytes: u64,
    /// Left for the last round, with the guest paused.
    pub last_round_bytes: u64,
    /// Rounds with the guest running.
    pub rounds: u32,
    /// The blackout gets below the acceptable one within the rounds that are allowed.
    pub converges: bool,
}

/// Microseconds that `bytes` take.
fn transfer_us(bytes: u64, bytes_per_second: u64) -> u64 {
    let us = (u128::from(bytes) * 1_000_000).div_ceil(u128::from(bytes_per_second.max(1)));
    u64::try_from(us).unwrap_or(u64::MAX)
}

/// Bytes that are dirty after `us` microseconds at `rate`, at most `cap`.
fn dirtied(rate: u64, us: u64, cap: u64) -> u64 {
    let bytes = u128::from(rate) * u128::from(us) / 1_000_000;
    u64::try_from(bytes).unwrap_or(u64::MAX).min(cap)
}

/// Estimates a move of `workload` over `path` under `rules`.
pub fn estimate(workload: &Workload, path: &Path, rules: &SwitchRules) -> Estimate {
    let downtime_max_us = rules.downtime_max.0.saturating_mul(1_000);
    let overhead_us = path.overhead_us();
    // A working set that was not seen may be all of the memory.
    let memory_cap = match workload.working_set_bytes {
        0 => workload.resident_bytes,
        set => set,
    };
    let first_round_bytes = workload.resident_bytes.saturating_add(workload.disk_resident_bytes);
    let mut to_send = first_round_bytes;
    let (mut bytes, mut copy_us, mut rounds) = (0_u64, 0_u64, 0_u32);
    loop {
        let round_us = transfer_us(to_send, path.bytes_per_second);
        bytes = bytes.saturating_add(to_send);
        copy_us = copy_us.saturating_add(round_us);
        rounds += 1;
        let memory = dirtied(workload.memory_bytes_per_second, round_us, memory_cap);
        let disk = dirtied(workload.disk_bytes_per_second, round_us, workload.disk_resident_bytes);
        let left = memory.saturating_add(disk);
        let downtime_us = transfer_us(left, path.bytes_per_second).saturating_add(overhead_us);
        let converges = downtime_us <= downtime_max_us;
        // A round that leaves no less than the one before: so will all that follow.
        let hopeless = rounds > 1 && left >= to_send;
        if converges || hopeless || rounds >= rules.rounds_max.clamp(1, limits::ROUNDS_MAX) {
            return Estimate {
                duration_us: copy_us.saturating_add(downtime_us).saturating_add(path.rtt_us),
                downtime_us,
                bytes: bytes.saturating_add(left),
                first_round_bytes,
                last_round_bytes: left,
                rounds,
                converges,
            };
        }
        to_send = left;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::Millis;
    use crate::types::units::MIB;

    fn path(mib_per_second: u64) -> Path {
        Path { bytes_per_second: mib_per_second * MIB, rtt_us: 1_000, commit_us: 2_000 }
    }

    fn busy(memory_mib_per_second: u64) -> Workload {
        Workload {
            memory_bytes_per_second: memory_mib_per_second * MIB,
            disk_bytes_per_second: 0,
            working_set_bytes: 32 * MIB,
            resident_bytes: 64 * MIB,
            disk_resident_bytes: 128 * MIB,
        }
    }

    #[test]
    fn an_idle_guest_takes_one_round_and_the_round_trips() {
        let e = estimate(&busy(0), &path(100), &SwitchRules::default());
        assert_eq!((e.rounds, e.bytes, e.last_round_bytes, e.converges), (1, 192 * MIB, 0, true));
        assert_eq!(e.downtime_us, 2 * 1_000 + 5 * 2_000 + 20_000);
        assert_eq!(e.duration_us, 1_920_000 + e.downtime_us + 1_000);
    }

    #[test]
    fn a_busy_guest_on_a_faster_link_is_a_geometric_series() {
        // Rounds: 192 MiB, then 32 (the working set caps 38.4), then 6.4 MiB in 64 ms, which fits 300 ms.
        let e = estimate(&busy(20), &path(100), &SwitchRules { downtime_max: Millis(150), ..Default::default() });
        assert!(e.converges);
        assert_eq!(e.rounds, 2);
        assert_eq!(e.last_round_bytes, 32 * MIB / 5);
        assert_eq!(e.bytes, 192 * MIB + 32 * MIB + 32 * MIB / 5);
    }

    #[test]
    fn a_guest_that_writes_faster_than_the_link_does_not_converge_unless_its_working_set_fits() {
        let e = estimate(&busy(200), &path(50), &SwitchRules::default());
        assert!(!e.converges);
        assert_eq!(e.last_round_bytes, 32 * MIB, "no more than the working set is ever left");
        let lenient = SwitchRules { downtime_max: Millis(1_000), ..Default::default() };
        assert!(estimate(&busy(200), &path(50), &lenient).converges, "32 MiB take 640 ms");
    }

    #[test]
    fn a_link_without_a_rate_overflows_nothing() {
        let all = Workload {
            memory_bytes_per_second: u64::MAX,
            disk_bytes_per_second: u64::MAX,
            working_set_bytes: u64::MAX,
            resident_bytes: u64::MAX,
            disk_resident_bytes: u64::MAX,
        };
        let none = Path { bytes_per_second: 0, rtt_us: u64::MAX, commit_us: u64::MAX };
        let e = estimate(&all, &none, &SwitchRules::default());
        assert!(!e.converges);
        assert_eq!(e.duration_us, u64::MAX);
    }

    proptest! {
        #[test]
        fn what_converges_is_within_the_acceptable_blackout(
            memory in 0..400_u64, set in 0..256_u64, resident in 0..512_u64, rate in 1..1_000_u64, max in 1..2_000_u64,
        ) {
            let workload = Workload {
                memory_bytes_per_second: memory * MIB,
                working_set_bytes: set * MIB,
                resident_bytes: resident * MIB,
                ..Workload::default()
            };
            let rules = SwitchRules { downtime_max: Millis(max), ..Default::default() };
            let e = estimate(&workload, &path(rate), &rules);
            prop_assert_eq!(e.converges, e.downtime_us <= max * 1_000);
            prop_assert!(e.rounds <= rules.rounds_max);
            prop_assert!(e.bytes >= e.first_round_bytes);
            // A faster link never makes it worse.
            let faster = estimate(&workload, &path(rate * 2), &rules);
            prop_assert!(faster.converges || !e.converges);
            prop_assert!(faster.duration_us <= e.duration_us || faster.rounds > e.rounds);
        }
    }
}
