//! Health of a cluster from evidence. Owns: what the answers of its driver, and their absence, mean.
//! Always: only consecutive evidence changes the state, and each change says why and since when; a cluster that keeps
//! falling has to be well for longer before it counts as connected again.
//! Not here: probing (the cluster actor), health of a region (`protocol/`).
//!
//! ```text
//! unknown --ok--> connected --failed or slow--> degraded --failed often--> disconnected
//!    ^                ^---- ok, often enough ------'  ^------ ok ---------------'
//!    '---- no evidence for too long: from anywhere
//! ```

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::types::{ClusterState, Millis, Tick};

/// What a probe of a driver showed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Probe {
    /// It answered.
    Ok {
        /// After so long.
        latency: Millis,
    },
    /// It said that it can't.
    Failed {
        /// Why.
        why: String,
    },
    /// It did not answer.
    TimedOut {
        /// How long was waited.
        after: Millis,
    },
}

/// When evidence is enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Thresholds {
    /// An answer that takes longer is slow.
    pub slow_ms: Millis,
    /// So many slow or failed probes in a row: degraded.
    pub degraded_after: u32,
    /// So many failed probes in a row: disconnected.
    pub disconnected_after: u32,
    /// So many good probes in a row: connected again.
    pub connected_after: u32,
    /// Without any probe for so long: unknown.
    pub silence_ms: Millis,
    /// Falls from connected inside this window raise what `connected_after` asks for.
    pub flap_window_ms: Millis,
    /// How often it is doubled, at most.
    pub flap_doublings_max: u32,
}

impl Default for Thresholds {
    fn default() -> Self {
        Thresholds {
            slow_ms: Millis(500),
            degraded_after: 1,
            disconnected_after: 3,
            connected_after: 2,
            silence_ms: Millis(15_000),
            flap_window_ms: Millis(120_000),
            flap_doublings_max: 4,
        }
    }
}

/// A change of state, for the events and the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// What it was.
    pub from: ClusterState,
    /// What it is.
    pub to: ClusterState,
    /// Why.
    pub reason: String,
}

/// The health of one cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    thresholds: Thresholds,
    state: ClusterState,
    reason: String,
    since: Tick,
    /// The latest moment that was told; an earlier one counts as this.
    now: Tick,
    heard: Option<Tick>,
    good: u32,
    weak: u32,
    failed: u32,
    /// Falls from connected, newest last; no more than doublings count.
    falls: VecDeque<Tick>,
}

impl Health {
    /// Of a cluster of which nothing is known at `now`.
    pub fn new(thresholds: Thresholds, now: Tick) -> Health {
        Health {
            thresholds,
            state: ClusterState::Unknown,
            reason: "not probed yet".into(),
            since: now,
            now,
            heard: None,
            good: 0,
            weak: 0,
            failed: 0,
            falls: VecDeque::new(),
        }
    }

    /// The state.
    pub fn state(&self) -> ClusterState {
        self.state
    }
    /// Why.
    pub fn reason(&self) -> &str {
        &self.reason
    }
    /// Since when.
    pub fn since(&self) -> Tick {
        self.since
    }
    /// When a probe last ended, well or not.
    pub fn heard(&self) -> Option<Tick> {
        self.heard
    }

    /// How many good probes in a row make it connected at `now`: more, the more often it fell lately.
    pub fn good_needed(&self, now: Tick) -> u32 {
        let lately = self.falls.iter().filter(|at| now.since(**at) < self.thresholds.flap_window_ms).count();
        // The first fall is bad luck; from the second on it counts as flapping.
        let doublings = u32::try_from(lately).unwrap_or(u32::MAX).saturating_sub(1);
        let factor = 1_u32.checked_shl(doublings.min(self.thresholds.flap_doublings_max)).unwrap_or(u32::MAX);
        self.thresholds.connected_after.max(1).saturating_mul(factor)
    }

    /// Takes the outcome of a probe.
    pub fn observe(&mut self, now: Tick, probe: &Probe) -> Option<Change> {
        self.now = self.now.max(now);
        self.heard = Some(self.now);
        match probe {
            Probe::Ok { latency } if *latency <= self.thresholds.slow_ms => {
                self.good = self.good.saturating_add(1);
                (self.weak, self.failed) = (0, 0);
                self.well(*latency)
            }
            Probe::Ok { latency } => {
                self.good = 0;
                self.failed = 0;
                self.weak = self.weak.saturating_add(1);
                let slow = format!("it answers after {latency}, later than {}", self.thresholds.slow_ms);
                match self.state {
                    // It does answer, so it is not gone.
                    ClusterState::Unknown | ClusterState::Disconnected => self.enter(ClusterState::Degraded, slow),
                    ClusterState::Connected | ClusterState::Degraded => self.weaker(slow),
                }
            }
            Probe::Failed { why } => self.missed(format!("it says: {why}")),
            Probe::TimedOut { after } => self.missed(format!("no answer within {after}")),
        }
    }

    /// Takes that time passed.
    pub fn tick(&mut self, now: Tick) -> Option<Change> {
        self.now = self.now.max(now);
        let heard = self.heard?;
        let silent = self.now.since(heard);
        if silent <= self.thresholds.silence_ms || self.state == ClusterState::Unknown {
            return None;
        }
        (self.good, self.weak, self.failed) = (0, 0, 0);
        self.enter(ClusterState::Unknown, format!("nothing was heard for {silent}"))
    }

    fn well(&mut self, latency: Millis) -> Option<Change> {
        let needed = self.good_needed(self.now);
        match self.state {
            ClusterState::Connected => {
                self.reason = format!("it answers after {latency}");
                None
            }
            // Nothing speaks against the first evidence, unless it fell before.
            ClusterState::Unknown if self.falls.is_empty() || self.good >= needed => {
                self.enter(ClusterState::Connected, format!("it answers after {latency}"))
            }
            ClusterState::Degraded if self.good >= needed => {
                self.enter(ClusterState::Connected, format!("it answered {} times in a row", self.good))
            }
            ClusterState::Degraded => {
                self.reason = format!("it answered {} of {needed} times in a row", self.good);
                None
            }
            ClusterState::Unknown | ClusterState::Disconnected => {
                self.enter(ClusterState::Degraded, format!("it answers again, {} of {needed} times", self.good))
            }
        }
    }

    fn missed(&mut self, what: String) -> Option<Change> {
        self.good = 0;
        self.weak = self.weak.saturating_add(1);
        self.failed = self.failed.saturating_add(1);
        if self.failed >= self.thresholds.disconnected_after.max(1) {
            let reason = format!("{what}; {} times in a row", self.failed);
            return self.enter(ClusterState::Disconnected, reason);
        }
        match self.state {
            ClusterState::Connected | ClusterState::Degraded => self.weaker(what),
            ClusterState::Disconnected | ClusterState::Unknown => {
                self.reason = what;
                None
            }
        }
    }

    fn weaker(&mut self, what: String) -> Option<Change> {
        if self.weak < self.thresholds.degraded_after.max(1) && self.state == ClusterState::Connected {
            return None;
        }
        self.enter(ClusterState::Degraded, what)
    }

    fn enter(&mut self, to: ClusterState, reason: String) -> Option<Change> {
        let from = self.state;
        self.reason = reason;
        if from == to {
            return None;
        }
        if from == ClusterState::Connected {
            self.falls.push_back(self.now);
            while self.falls.len() > self.thresholds.flap_doublings_max as usize + 1 {
                self.falls.pop_front();
            }
        }
        self.state = to;
        self.since = self.now;
        Some(Change { from, to, reason: self.reason.clone() })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ok() -> Probe {
        Probe::Ok { latency: Millis(5) }
    }
    fn slow() -> Probe {
        Probe::Ok { latency: Millis(900) }
    }
    fn timed_out() -> Probe {
        Probe::TimedOut { after: Millis(2_000) }
    }

    fn after(probes: &[Probe]) -> Health {
        let mut health = Health::new(Thresholds::default(), Tick(0));
        for (n, probe) in probes.iter().enumerate() {
            health.observe(Tick(1_000 * (n as u64 + 1)), probe);
        }
        health
    }

    #[test]
    fn each_state_follows_from_its_evidence() {
        use ClusterState as S;
        let table: &[(&[Probe], S)] = &[
            (&[], S::Unknown),
            (&[ok()], S::Connected),
            (&[slow()], S::Degraded),
            (&[timed_out()], S::Unknown),
            (&[timed_out(), timed_out(), timed_out()], S::Disconnected),
            (&[ok(), timed_out()], S::Degraded),
            (&[ok(), slow()], S::Degraded),
            (&[ok(), timed_out(), ok()], S::Degraded),
            (&[ok(), timed_out(), ok(), ok()], S::Connected),
            (&[ok(), timed_out(), timed_out(), timed_out()], S::Disconnected),
            (&[ok(), timed_out(), timed_out(), timed_out(), ok()], S::Degraded),
            (&[ok(), timed_out(), timed_out(), timed_out(), slow()], S::Degraded),
            (&[ok(), timed_out(), timed_out(), timed_out(), ok(), ok()], S::Connected),
        ];
        for (probes, state) in table {
            assert_eq!(after(probes).state(), *state, "{probes:?}");
        }
    }

    #[test]
    fn a_reason_carries_its_figures() {
        assert_eq!(after(&[ok(), slow()]).reason(), "it answers after 900 ms, later than 500 ms");
        let gone = after(&[timed_out(), timed_out(), timed_out()]);
        assert_eq!(gone.reason(), "no answer within 2000 ms; 3 times in a row");
        assert_eq!(gone.since(), Tick(3_000));
    }

    #[test]
    fn silence_makes_it_unknown() {
        let mut health = after(&[ok()]);
        assert_eq!(health.tick(Tick(16_000)), None);
        let change = health.tick(Tick(16_001)).expect("it was silent for 15,001 ms");
        assert_eq!((change.from, change.to), (ClusterState::Connected, ClusterState::Unknown));
        assert_eq!(health.tick(Tick(50_000)), None, "told once");
    }

    #[test]
    fn a_cluster_that_flaps_has_to_be_well_for_longer_each_time() {
        let mut health = Health::new(Thresholds::default(), Tick(0));
        let mut now = 0;
        let mut step = |health: &mut Health, probe: &Probe| {
            now += 100;
            health.observe(Tick(now), probe);
        };
        step(&mut health, &ok());
        for expected in [2, 4, 8, 16, 32, 32, 32] {
            step(&mut health, &timed_out());
            let mut taken = 0;
            while health.state() != ClusterState::Connected {
                step(&mut health, &ok());
                taken += 1;
            }
            assert_eq!(taken, expected);
        }
        assert_eq!(health.good_needed(Tick(now + 200_000)), 2, "forgiven after the window");
    }

    fn probe() -> impl Strategy<Value = Probe> {
        prop_oneof![
            3 => Just(ok()),
            1 => Just(slow()),
            1 => Just(timed_out()),
            1 => Just(Probe::Failed { why: "no such socket".into() })
        ]
    }

    proptest! {
        #[test]
        fn enough_of_one_kind_always_decides(before in prop::collection::vec(probe(), 0..60)) {
            let t = Thresholds::default();
            let mut gone = after(&before);
            let mut well = after(&before);
            let start = 1_000 * (before.len() as u64 + 1);
            for n in 0..u64::from(t.disconnected_after) {
                gone.observe(Tick(start + n), &timed_out());
            }
            prop_assert_eq!(gone.state(), ClusterState::Disconnected);
            let most = u64::from(t.connected_after << t.flap_doublings_max) + 1;
            for n in 0..most {
                well.observe(Tick(start + n), &ok());
            }
            prop_assert_eq!(well.state(), ClusterState::Connected);
        }

        #[test]
        fn one_probe_moves_one_level_and_since_moves_with_the_state(probes in prop::collection::vec(probe(), 1..80)) {
            let mut health = Health::new(Thresholds::default(), Tick(0));
            for (n, probe) in probes.iter().enumerate() {
                let (before, since, failed) = (health.state(), health.since(), health.failed);
                let now = Tick(n as u64 * 500);
                let change = health.observe(now, probe);
                prop_assert_eq!(change.is_some(), before != health.state());
                prop_assert_eq!(health.since(), if change.is_some() { now } else { since });
                if before == ClusterState::Connected {
                    prop_assert_ne!(health.state(), ClusterState::Disconnected, "{} failures before", failed);
                }
                if before == ClusterState::Disconnected {
                    prop_assert_ne!(health.state(), ClusterState::Connected);
                }
                prop_assert!(!health.reason().is_empty());
                prop_assert!(health.falls.len() <= 5);
            }
        }

        #[test]
        fn an_alternation_is_never_connected(turns in 2..100_usize) {
            let mut health = after(&[ok(), timed_out()]);
            for n in 0..turns {
                let probe = if n.is_multiple_of(2) { ok() } else { timed_out() };
                health.observe(Tick(2_000 + n as u64), &probe);
                prop_assert_eq!(health.state(), ClusterState::Degraded);
            }
        }

        #[test]
        fn time_never_runs_back(moments in prop::collection::vec(0..100_000_u64, 1..40)) {
            let mut health = Health::new(Thresholds::default(), Tick(0));
            let mut last = Tick(0);
            for at in moments {
                health.observe(Tick(at), &ok());
                health.tick(Tick(at / 2));
                prop_assert!(health.since() >= last);
                last = health.since();
            }
        }
    }
}
