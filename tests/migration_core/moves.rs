//! What may happen next. Owns: every move of the world, its kind, and when a world is bad, at an end, or waits for a
//! person. Always: a *live* move is one that the product itself will make for as long as it can; only those count for
//! the question whether an end can still be reached.

use novafed::decision::migration::TargetRequest;
use novafed::decision::migration::source::{Command as C, End, Event as SourceEvent, ParkReason, Phase};
use novafed::decision::migration::target::{self, Event as TargetEvent, Phase as TargetPhase};
use novafed::decision::ownership::{Decision, VmDecisions};
use novafed::drivers::embedded::rules::{Event as HostEvent, Power, Rules};

use super::intern::bits;
use super::model::{Model, Taken, round};
use super::world::{ASKED, FENCE, Planted, Side, World, next_fence};

/// Why a move happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// The product does it by itself.
    Live,
    /// It may happen: late, again, or as luck has it.
    Weather,
    /// Something dies or lies.
    Fault,
    /// Somebody says so.
    Person,
}

/// What may happen; the numbers are those of the model's tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Move {
    /// The source performs a command.
    SourceDoes(u16),
    /// The target's state answers a question of the source that waits.
    Answered(u16),
    /// The source's core takes an event.
    SourceTakes(u16),
    /// The target performs a command.
    TargetDoes(u16),
    /// The target's core takes an event.
    TargetTakes(u16),
    /// The last round arrives.
    LastRound,
    /// The watchdog fires.
    Watchdog,
    /// A cluster mends what is not as it should be.
    Repair(Side),
    /// The owed discard arrives.
    Discard,
    /// Something that was sent long ago arrives.
    Late(u16),
    /// A host dies and begins anew.
    HostDies(Side),
    /// A node dies and begins anew: what was on its way to it is lost; a fold of its journal is its state.
    NodeDies(Side),
    /// A person at the target starts a VM whose memory was lost from its disk.
    ColdStart,
    /// Somebody else of the owning region records an abort of this attempt.
    Rival,
    /// The planted fault shows.
    Broken,
}

/// How much may go wrong.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Deaths of nodes and hosts, and lies of hosts and peers.
    pub faults: u8,
    /// Cancels and quarantines.
    pub persons: u8,
    /// Whether hosts and peers may claim failures that are none: they may cost the move, never the VM.
    pub lies: bool,
}

impl Model {
    /// Everything that may be tried next; some of it changes nothing.
    pub fn choices(&mut self, w: &World, limits: Limits) -> Vec<(Move, Kind)> {
        let mut list = Vec::with_capacity(32);
        self.choices_of_source(w, &mut list);
        self.choices_of_target(w, &mut list);
        if !matches!(self.host(w, Side::Source).power, Power::Running | Power::Absent) {
            list.extend([(Move::LastRound, Kind::Live), (Move::Watchdog, Kind::Live)]);
        }
        list.extend([(Move::Repair(Side::Source), Kind::Live), (Move::Repair(Side::Target), Kind::Live)]);
        for id in bits(w.stale) {
            if self.late_matters(w, id) {
                list.push((Move::Late(id), Kind::Weather));
            }
        }
        if w.faults < limits.faults {
            for side in [Side::Source, Side::Target] {
                list.extend([(Move::HostDies(side), Kind::Fault), (Move::NodeDies(side), Kind::Fault)]);
            }
            list.push((Move::Rival, Kind::Fault));
            if limits.lies {
                self.lies(w, &mut list);
            }
        }
        let said: &[SourceEvent] = match self.source(w).phase {
            Phase::Parked { .. } => &[SourceEvent::Retry, SourceEvent::Probe, SourceEvent::Undo, SourceEvent::Abandon],
            _ if w.persons < limits.persons => &[SourceEvent::Cancel, SourceEvent::Quarantined],
            _ => &[],
        };
        list.extend(said.iter().map(|event| (Move::SourceTakes(self.source_events.id(event)), Kind::Person)));
        let lost = self.target(w).is_some_and(|t| matches!(t.phase, TargetPhase::Lost { .. }));
        if w.moved && lost && w.persons < limits.persons {
            list.push((Move::ColdStart, Kind::Person));
        }
        if self.planted().is_some() {
            list.push((Move::Broken, Kind::Fault));
        }
        list
    }

    fn choices_of_source(&mut self, w: &World, list: &mut Vec<(Move, Kind)>) {
        let mut takes = |model: &mut Model, event, kind| {
            list.push((Move::SourceTakes(model.source_events.id(&event)), kind));
        };
        if self.source(w).phase == Phase::Queued {
            takes(self, SourceEvent::Go, Kind::Live);
        }
        let commands = self.source_commands(w);
        for (_, command) in commands.iter() {
            match command {
                C::Patience(_) => takes(self, SourceEvent::TimedOut, Kind::Live),
                C::Pause | C::Hold | C::CancelPause | C::ReleaseHold => {
                    takes(self, SourceEvent::Unknown, Kind::Weather);
                }
                C::FinishCopy => takes(self, SourceEvent::Unknown, Kind::Weather),
                C::Copy => {
                    takes(self, SourceEvent::Round(round(false)), Kind::Weather);
                    takes(self, SourceEvent::Unknown, Kind::Weather);
                }
                C::AskTarget(_) | C::Retire | C::Decide(_) | C::Observe => {}
            }
        }
        for (id, command) in commands.iter() {
            if !matches!(command, C::Patience(_)) {
                list.push((Move::SourceDoes(*id), Kind::Live));
            }
            if matches!(command, C::AskTarget(_)) && w.source_inbox & ASKED != 0 {
                list.push((Move::Answered(*id), Kind::Live));
            }
        }
        list.extend(bits(w.source_inbox & !ASKED).map(|n| (Move::SourceTakes(n), Kind::Live)));
    }

    fn choices_of_target(&mut self, w: &World, list: &mut Vec<(Move, Kind)>) {
        for (id, command) in self.target_commands(w).iter() {
            let what = match command {
                target::Command::Patience(_) => Move::TargetTakes(self.target_events.id(&TargetEvent::TimedOut)),
                _ => Move::TargetDoes(*id),
            };
            list.push((what, Kind::Live));
        }
        list.extend(bits(w.target_inbox).map(|n| (Move::TargetTakes(n), Kind::Live)));
        if w.discard_owed {
            list.push((Move::Discard, Kind::Live));
        }
    }

    fn lies(&mut self, w: &World, list: &mut Vec<(Move, Kind)>) {
        let why = String::new;
        if !self.source_commands(w).is_empty() {
            for lie in [
                SourceEvent::SourceRefused { why: why() },
                SourceEvent::SourceLost { why: why() },
                SourceEvent::TargetRefused { why: why() },
                SourceEvent::TargetLost { why: why() },
            ] {
                list.push((Move::SourceTakes(self.source_events.id(&lie)), Kind::Fault));
            }
        }
        if self.target(w).is_some() {
            for lie in [TargetEvent::HostRefused { why: why() }, TargetEvent::HostLost { why: why() }] {
                list.push((Move::TargetTakes(self.target_events.id(&lie)), Kind::Fault));
            }
        }
    }

    /// Makes a move: the world after it and why it may not be, if so; `None` if it changes nothing.
    pub fn make(&mut self, from: &World, (what, kind): (Move, Kind)) -> Option<(World, Option<&'static str>)> {
        let mut w = *from;
        match kind {
            Kind::Live | Kind::Weather => {}
            Kind::Fault => w.faults += 1,
            // What is done about a parked job is not counted: somebody has to.
            Kind::Person => w.persons += u8::from(!matches!(self.source(&w).phase, Phase::Parked { .. })),
        }
        let mut next = self.happen(&w, what)?;
        if self.host(&next, Side::Source).power == Power::Running {
            next.fresh = false;
        }
        next.moved |= self.log(&next).moved.is_some();
        let violation = self.violation.take().or_else(|| self.bad(&next));
        (next != w || violation.is_some()).then_some((next, violation))
    }

    fn happen(&mut self, w: &World, what: Move) -> Option<World> {
        Some(match what {
            Move::SourceDoes(id) => {
                let command = self.source_command(id).clone();
                let (mut next, outcomes) = self.perform_source(w, self.source(w).attempt, &command);
                for outcome in outcomes {
                    next.source_inbox |= self.source_events.bit(&outcome);
                }
                if let C::AskTarget(_) = command {
                    next.source_inbox |= ASKED;
                }
                next
            }
            Move::Answered(id) => {
                let C::AskTarget(request) = self.source_command(id).clone() else { return None };
                let answer = self.answered(w, self.source(w).attempt, &request)?;
                World { source_inbox: w.source_inbox | self.source_events.bit(&answer), ..*w }
            }
            Move::SourceTakes(id) => return advanced(self.feed_source(w, id)),
            Move::TargetDoes(id) => {
                let command = *self.target_command(id);
                let attempt = self.target(w)?.attempt;
                let (mut next, outcomes) = self.perform_target(w, attempt, &command);
                for outcome in outcomes {
                    next.target_inbox |= self.target_events.bit(&outcome);
                }
                next
            }
            Move::TargetTakes(id) => {
                let attempt = self.target(w)?.attempt;
                return advanced(self.feed_target(w, attempt, id));
            }
            Move::LastRound => self.last_round(w)?,
            Move::Watchdog => {
                let Power::Paused { key } = self.host(w, Side::Source).power else { return None };
                self.host_event(w, Side::Source, &HostEvent::Watchdog { key })
            }
            Move::Repair(side) => self.repair(w, side)?,
            Move::Discard => self.discard(w),
            Move::Late(id) => {
                let call = self.call(id).clone();
                self.arrive_late(w, &call)
            }
            Move::HostDies(side) => {
                let next = self.host_event(w, side, &HostEvent::HostRestarted);
                ((next.source_host, next.target_host) != (w.source_host, w.target_host)).then_some(next)?
            }
            Move::NodeDies(Side::Source) if w.source_inbox != 0 => World { source_inbox: 0, ..*w },
            Move::NodeDies(Side::Target) if w.target_inbox != 0 => World { target_inbox: 0, ..*w },
            Move::NodeDies(_) => return None,
            Move::ColdStart => {
                let attempt = self.target(w)?.attempt;
                let start = self.target_events.id(&TargetEvent::Asked(TargetRequest::Start { cold: true }));
                return advanced(self.feed_target(w, attempt, start));
            }
            Move::Rival => self.propose(w, self.source(w).attempt, Decision::Abort).0,
            Move::Broken => self.broken(w)?,
        })
    }

    /// What only a product with a planted fault does.
    fn broken(&mut self, w: &World) -> Option<World> {
        let rules = self.host(w, Side::Source).clone();
        Some(match (self.planted()?, rules.power) {
            (Planted::ResumeOnTimeout, Power::Held { lost: false, .. })
            | (Planted::RebootStartsOffer, Power::Held { lost: true, .. }) => {
                self.force_host(w, Side::Source, &Rules { power: Power::Running, ..rules })
            }
            (Planted::StartOnMessage, _) => {
                let s = self.source(w);
                if !matches!(s.phase, Phase::Deciding { proposal: Decision::Transfer, .. }) {
                    return None;
                }
                let start = C::AskTarget(TargetRequest::Start { cold: false });
                self.perform_source(w, s.attempt, &start).0
            }
            (Planted::ForgetMove, Power::Absent) if rules.fence == next_fence() => {
                let old = Rules { fence: FENCE, power: Power::Stopped, ..rules };
                let forgot = self.force_host(w, Side::Source, &old);
                self.force_log(&forgot, &VmDecisions::default())
            }
            (Planted::ForgetAbort, Power::Running) => {
                let log = self.log(w).clone();
                if log.decided?.1 != Decision::Abort {
                    return None;
                }
                self.force_log(w, &VmDecisions { decided: None, ..log })
            }
            _ => return None,
        })
    }

    // -- judging -----------------------------------------------------------------

    /// Why this world may not be.
    pub fn bad(&self, w: &World) -> Option<&'static str> {
        let runs = |side| self.host(w, side).power == Power::Running;
        match (runs(Side::Source), runs(Side::Target), w.moved) {
            (true, true, _) => Some("two running guests"),
            (_, true, false) => Some("the target runs and is not the owner"),
            (true, _, true) => Some("the source runs and is not the owner"),
            (true, false, false) | (false, true, true) | (false, false, _) => None,
        }
    }

    /// The end, if all is over and the owner has the guest: running, or lost with its host and reported as such.
    pub fn end(&self, w: &World) -> Option<End> {
        let (source, target) = (self.source(w), self.target(w));
        let Phase::Ended(end) = source.phase else { return None };
        let power = |side| self.host(w, side).power;
        let over_there = match target.map(|t| &t.phase) {
            None | Some(TargetPhase::Discarded) => end != End::Completed,
            Some(TargetPhase::Running { .. } | TargetPhase::Lost { owned: true, .. }) => end == End::Completed,
            Some(_) => false,
        };
        let owner = match end {
            // What a dead source left is an owed clean-up; here it was done.
            End::Completed => power(Side::Source) == Power::Absent && self.runs_or_is_reported(w),
            End::RolledBack | End::Cancelled => power(Side::Source) == Power::Running,
        };
        (over_there && owner).then_some(end)
    }

    fn runs_or_is_reported(&self, w: &World) -> bool {
        let reported = matches!(self.target(w).map(|t| &t.phase), Some(TargetPhase::Lost { owned: true, .. }));
        self.host(w, Side::Target).power == Power::Running || reported
    }

    /// It needs a person, for a reason on the short list.
    pub fn parked(&self, w: &World) -> Option<ParkReason> {
        match &self.source(w).phase {
            Phase::Parked { why: ParkReason::SourceHostSilent, .. } => None,
            Phase::Parked { why, .. } => Some(*why),
            _ => None,
        }
    }

    /// The move in words.
    pub fn told(&self, what: Move) -> String {
        match what {
            Move::SourceDoes(id) => format!("source does {:?}", self.source_command(id)),
            Move::Answered(id) => format!("target answers {:?}", self.source_command(id)),
            Move::SourceTakes(id) => format!("source takes {:?}", self.source_events.get(id)),
            Move::TargetDoes(id) => format!("target does {:?}", self.target_command(id)),
            Move::TargetTakes(id) => format!("target takes {:?}", self.target_events.get(id)),
            Move::Late(id) => format!("late {:?}", self.call(id)),
            other => format!("{other:?}"),
        }
    }
}

fn advanced(taken: Taken) -> Option<World> {
    match taken {
        Taken::Advanced(next) => Some(next),
        Taken::Ignored | Taken::Refused => None,
    }
}
