//! Which injected faults are active. Owns: when each begins and ends, and what they come to together.
//! Always: a fault ends at its time, whether or not anybody looks; none lasts longer than is allowed; what several of
//! them do to one thing is what the worst of them does. Not here: doing any of it (`node/faults/`).

use std::collections::{BTreeMap, VecDeque};

use crate::types::limits::{CHAOS_ENDED_MAX, CHAOS_FAULTS_MAX};
use crate::types::{FaultId, FaultSpec, Millis, RegionName, Tick, Toward};

/// A fault on the board. `A` is what the shell knows of who asked for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry<A> {
    /// Its id.
    pub id: FaultId,
    /// What it is.
    pub spec: FaultSpec,
    /// What only one fault may have at a time, if it takes such a thing.
    pub takes: Option<String>,
    /// When it began.
    pub began: Tick,
    /// When it ends.
    pub ends: Tick,
    /// Who asked.
    pub asked: A,
}

/// A fault that is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gone<A> {
    /// What it was.
    pub entry: Entry<A>,
    /// When it ended.
    pub at: Tick,
    /// Why.
    pub why: String,
}

/// Why a fault does not begin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Enough of them are active.
    #[error("{CHAOS_FAULTS_MAX} faults are active already")]
    Full,
    /// Longer than is allowed.
    #[error("{asked} are longer than a fault may last here, {most}")]
    TooLong { asked: Millis, most: Millis },
    /// A fault that lasts, and no time.
    #[error("a fault of this kind needs a time")]
    NoTime,
    /// Another one has what this one takes.
    #[error("{0} does the same already")]
    Taken(FaultId),
}

/// What the way to or from a peer is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Way {
    /// Nothing passes.
    pub cut: bool,
    /// Messages take so much longer,
    pub delay: Millis,
    /// and up to so much more.
    pub jitter: Millis,
    /// So many of a thousand messages get lost.
    pub lose_permille: u32,
    /// All transfers together carry no more.
    pub bytes_per_second: Option<u64>,
}

/// All of them.
#[derive(Debug, Clone)]
pub struct Board<A> {
    most: Millis,
    active: BTreeMap<FaultId, Entry<A>>,
    ended: VecDeque<Gone<A>>,
}

impl<A> Board<A> {
    /// Without a fault; none lasts longer than `most`.
    pub fn new(most: Millis) -> Board<A> {
        Board { most, active: BTreeMap::new(), ended: VecDeque::new() }
    }

    /// How long a fault may last.
    pub fn most(&self) -> Millis {
        self.most
    }

    /// Whether such a fault may begin now. `lasting` counts for one that lasts.
    ///
    /// # Errors
    /// Why not.
    pub fn may_begin(
        &self,
        spec: &FaultSpec,
        takes: Option<&str>,
        now: Tick,
        lasting: Option<Millis>,
    ) -> Result<(), Refusal> {
        match lasting {
            Some(asked) if asked > self.most => return Err(Refusal::TooLong { asked, most: self.most }),
            Some(Millis(0)) | None if spec.lasts() => return Err(Refusal::NoTime),
            Some(_) | None => {}
        }
        if let Some(other) = self.active(now).find(|other| takes.is_some() && other.takes.as_deref() == takes) {
            return Err(Refusal::Taken(other.id));
        }
        if self.active(now).count() >= CHAOS_FAULTS_MAX {
            return Err(Refusal::Full);
        }
        Ok(())
    }

    /// Begins a fault. One that does not last is there until it is ended, for no time.
    ///
    /// # Errors
    /// As [`Board::may_begin`].
    pub fn begin(
        &mut self,
        (id, spec, takes): (FaultId, FaultSpec, Option<String>),
        now: Tick,
        lasting: Option<Millis>,
        asked: A,
    ) -> Result<(), Refusal> {
        self.may_begin(&spec, takes.as_deref(), now, lasting)?;
        let ends = if spec.lasts() { now.plus(lasting.unwrap_or_default()) } else { now };
        self.active.insert(id, Entry { id, spec, takes, began: now, ends, asked });
        Ok(())
    }

    /// Ends a fault before its time; `None` if it is not on the board.
    pub fn end(&mut self, id: FaultId, now: Tick, why: &str) -> Option<&Gone<A>> {
        let entry = self.active.remove(&id)?;
        // Nobody looked while its time ran out: it ended then.
        let at = now.min(entry.ends.max(entry.began));
        self.ended.push_front(Gone { entry, at, why: why.to_owned() });
        self.ended.truncate(CHAOS_ENDED_MAX);
        self.ended.front()
    }

    /// Those whose time is over and that were not ended yet.
    pub fn due(&self, now: Tick) -> Vec<FaultId> {
        self.active.values().filter(|entry| entry.spec.lasts() && entry.ends <= now).map(|entry| entry.id).collect()
    }

    /// When the next one ends by itself.
    pub fn next_end(&self) -> Option<Tick> {
        self.active.values().filter(|entry| entry.spec.lasts()).map(|entry| entry.ends).min()
    }

    /// Those that are active, in the order in which they were asked for.
    pub fn active(&self, now: Tick) -> impl Iterator<Item = &Entry<A>> {
        self.active.values().filter(move |entry| now < entry.ends)
    }

    /// Those that are over, the latest first.
    pub fn ended(&self) -> impl Iterator<Item = &Gone<A>> {
        self.ended.iter()
    }

    /// One that is on the board, active or just over its time.
    pub fn find(&self, id: FaultId) -> Option<&Entry<A>> {
        self.active.get(&id)
    }

    /// What the way of `toward` between this region and `peer` is like.
    pub fn way(&self, peer: &RegionName, toward: Toward, now: Tick) -> Way {
        let mut way = Way::default();
        for entry in self.active(now) {
            match &entry.spec {
                FaultSpec::Cut(cut) => way.cut |= cut.peer == *peer && cut.direction.covers(toward),
                FaultSpec::Delay(delay) if delay.peer == *peer && delay.direction.covers(toward) => {
                    way.delay = way.delay.max(delay.delay_ms);
                    way.jitter = way.jitter.max(delay.jitter_ms);
                }
                FaultSpec::Lose(lose) if lose.peer == *peer && lose.direction.covers(toward) => {
                    way.lose_permille = way.lose_permille.max(lose.permille);
                }
                FaultSpec::Narrow(narrow) if narrow.peer == *peer && narrow.direction.covers(toward) => {
                    let narrowest = way.bytes_per_second.unwrap_or(u64::MAX).min(narrow.bytes_per_second);
                    way.bytes_per_second = Some(narrowest);
                }
                FaultSpec::Delay(_)
                | FaultSpec::Lose(_)
                | FaultSpec::Narrow(_)
                | FaultSpec::Host(_)
                | FaultSpec::SlowStore(_)
                | FaultSpec::Crash(_)
                | FaultSpec::Kill(_) => {}
            }
        }
        way
    }

    /// Whether nothing passes between this region and `peer` in either direction.
    pub fn is_apart(&self, peer: &RegionName, now: Tick) -> bool {
        [Toward::Out, Toward::In].into_iter().all(|toward| self.way(peer, toward, now).cut)
    }

    /// How much longer each commit takes.
    pub fn commit_delay(&self, now: Tick) -> Millis {
        let delay =
            |entry: &Entry<A>| if let FaultSpec::SlowStore(slow) = &entry.spec { slow.delay_ms } else { Millis(0) };
        self.active(now).map(delay).max().unwrap_or_default()
    }

    /// The kill point that is armed.
    pub fn kill_point(&self, now: Tick) -> Option<&str> {
        self.active(now)
            .find_map(|entry| if let FaultSpec::Kill(kill) = &entry.spec { kill.at.as_deref() } else { None })
    }

    /// Whether some active fault has `takes`.
    pub fn is_taken(&self, takes: &str, now: Tick) -> bool {
        self.active(now).any(|entry| entry.takes.as_deref() == Some(takes))
    }
}

#[cfg(test)]
mod tests;
