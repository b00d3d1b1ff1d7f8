//! The witness's reader: who ran when, from the consoles alone. Owns: the answer to "did it ever run twice?".
//! Always: pure over the lines; the runtime under test is not asked. Format of a line: see `console.rs`.

use std::collections::BTreeMap;
use std::fmt;

use crate::types::{Fence, HostName, VmId};

/// One line of a console.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// `Some(n)`: booted for the n-th time. `None`: a tick was done.
    pub boot: Option<u64>,
    /// The tick.
    pub tick: u64,
    /// Under which fence.
    pub fence: Fence,
    /// On which host.
    pub host: HostName,
    /// When, nanoseconds of the machine's monotonic clock.
    pub nanos: u64,
}

/// The consoles of one VM, of all hosts that ever ran it.
#[derive(Debug, Clone, Default)]
pub struct Consoles {
    lines: BTreeMap<VmId, Vec<Line>>,
    damaged: u64,
}

/// A property that did not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Violation {
    /// Two runs of one VM overlap in time.
    RunsTwice { vm: VmId, first: Run, second: Run },
    /// A tick does not follow the one before.
    TickGap { vm: VmId, after: u64, found: u64, host: HostName },
    /// The fence went back.
    FenceBack { vm: VmId, from: Fence, to: Fence, host: HostName },
    /// Lines that make no sense.
    Damaged { lines: u64 },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Violation::RunsTwice { vm, first, second } => write!(f, "{vm} ran twice: {first} and {second} overlap"),
            Violation::TickGap { vm, after, found, host } => {
                write!(f, "{vm}: tick {found} on {host} follows tick {after}")
            }
            Violation::FenceBack { vm, from, to, host } => {
                write!(f, "{vm}: fence went back from {from} to {to} on {host}")
            }
            Violation::Damaged { lines } => write!(f, "{lines} console lines make no sense"),
        }
    }
}

/// An unbroken stretch of one VM on one host under one boot and fence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// The host.
    pub host: HostName,
    /// The fence.
    pub fence: Fence,
    /// First tick or boot.
    pub from_tick: u64,
    /// Last tick.
    pub to_tick: u64,
    /// Nanoseconds of its first line.
    pub from_nanos: u64,
    /// Nanoseconds of its last line.
    pub to_nanos: u64,
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Run { host, fence, from_tick, to_tick, from_nanos, to_nanos } = self;
        write!(f, "{host} fence {fence} ticks {from_tick}..={to_tick} ns {from_nanos}..={to_nanos}")
    }
}

/// A change of host between two ticks that follow each other: what a move cost the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// The host that ran it before.
    pub from: HostName,
    /// The host that ran it after.
    pub to: HostName,
    /// The fence after.
    pub fence: Fence,
    /// First tick after the move.
    pub tick: u64,
    /// From the last tick before to the first after, nanoseconds; the guest's own tick interval is part of it.
    pub gap_nanos: u64,
}

/// What is known of one VM.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Account {
    /// Ticks witnessed.
    pub ticks: u64,
    /// Boots witnessed.
    pub boots: u64,
    /// Boot number, boot tick and last tick of its latest life, for the judge.
    pub last: (u64, u64, u64),
    /// Its moves between hosts or fences, in order.
    pub moves: Vec<Move>,
    /// Stretches, in order of time.
    pub runs: Vec<Run>,
}

/// What [`check`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// By VM.
    pub vms: BTreeMap<VmId, Account>,
    /// Lines looked at.
    pub lines: u64,
    /// What did not hold; empty if all is well.
    pub violations: Vec<Violation>,
}

impl Line {
    /// Reads one line, without its end; `None` if it makes no sense.
    pub fn parse(text: &str) -> Option<Line> {
        let mut fields = text.split(' ');
        let boot = match fields.next()? {
            "B" => Some(fields.next()?.parse().ok()?),
            "T" => None,
            _ => return None,
        };
        let tick = fields.next()?.parse().ok()?;
        let (epoch, generation) = fields.next()?.split_once('.')?;
        let fence = Fence { epoch: epoch.parse().ok()?, generation: generation.parse().ok()? };
        let host = fields.next()?.parse().ok()?;
        let nanos = fields.next()?.parse().ok()?;
        if fields.next().is_some() { None } else { Some(Line { boot, tick, fence, host, nanos }) }
    }
}

impl Consoles {
    /// Takes in the text of one console of `vm`. A last line without its end was cut by a kill and does not count.
    pub fn add(&mut self, vm: VmId, text: &str) {
        let lines = self.lines.entry(vm).or_default();
        for line in text.split_inclusive('\n') {
            let Some(line) = line.strip_suffix('\n') else { continue };
            match Line::parse(line) {
                Some(line) => lines.push(line),
                None if line.is_empty() => {}
                None => self.damaged += 1,
            }
        }
    }

    /// Takes in all consoles of a host's `console` directory.
    pub fn add_directory(&mut self, directory: &std::path::Path) -> std::io::Result<()> {
        for entry in std::fs::read_dir(directory)? {
            let path = entry?.path();
            let vm = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_suffix(".log"));
            if let Some(vm) = vm.and_then(|n| n.parse().ok()) {
                let bytes = std::fs::read(&path)?;
                self.add(vm, &String::from_utf8_lossy(&bytes));
            }
        }
        Ok(())
    }
}

/// Checks that ticks are contiguous over all hosts (a boot may skip ahead, never back), that no two hosts or fences
/// ran a VM at overlapping times, and that fences never went back.
pub fn check(consoles: &Consoles) -> Report {
    let mut report = Report::default();
    if consoles.damaged > 0 {
        report.violations.push(Violation::Damaged { lines: consoles.damaged });
    }
    for (vm, lines) in &consoles.lines {
        report.lines += lines.len() as u64;
        let (account, violations) = check_vm(*vm, lines);
        report.vms.insert(*vm, account);
        report.violations.extend(violations);
    }
    report
}

fn check_vm(vm: VmId, lines: &[Line]) -> (Account, Vec<Violation>) {
    let mut violations = Vec::new();
    let mut account = Account { runs: runs(lines), ..Account::default() };
    // Runs are sorted by their start, so an overlap shows against the one that ended last so far.
    let mut longest: Option<&Run> = None;
    for run in &account.runs {
        if let Some(before) = longest
            && run.from_nanos <= before.to_nanos
        {
            violations.push(Violation::RunsTwice { vm, first: before.clone(), second: run.clone() });
        }
        if longest.is_none_or(|before| run.to_nanos > before.to_nanos) {
            longest = Some(run);
        }
    }
    let mut sorted: Vec<&Line> = lines.iter().collect();
    sorted.sort_by_key(|line| line.nanos);
    let mut before: Option<&Line> = None;
    for line in sorted {
        if let Some(last) = before {
            let host = line.host.clone();
            if line.fence < last.fence {
                violations.push(Violation::FenceBack { vm, from: last.fence, to: line.fence, host: host.clone() });
            }
            let follows = if line.boot.is_some() { line.tick >= last.tick } else { line.tick == last.tick + 1 };
            if !follows {
                violations.push(Violation::TickGap { vm, after: last.tick, found: line.tick, host });
            }
            if line.boot.is_none() && (&last.host, last.fence) != (&line.host, line.fence) {
                account.moves.push(Move {
                    from: last.host.clone(),
                    to: line.host.clone(),
                    fence: line.fence,
                    tick: line.tick,
                    gap_nanos: line.nanos - last.nanos,
                });
            }
        }
        match line.boot {
            Some(boot) => {
                account.boots += 1;
                account.last = (boot, line.tick, line.tick);
            }
            None => {
                account.ticks += 1;
                account.last.2 = line.tick;
            }
        }
        before = Some(line);
    }
    (account, violations)
}

/// Stretches of one VM, sorted by their start. Each console is in order of time, so a stretch ends where host, fence
/// or boot changes inside it, or where a tick is not the next.
fn runs(lines: &[Line]) -> Vec<Run> {
    let mut by_place: BTreeMap<(&HostName, Fence), Vec<&Line>> = BTreeMap::new();
    for line in lines {
        by_place.entry((&line.host, line.fence)).or_default().push(line);
    }
    let mut runs = Vec::new();
    for ((host, fence), mut lines) in by_place {
        lines.sort_by_key(|line| line.nanos);
        let mut open: Option<Run> = None;
        for line in lines {
            match &mut open {
                Some(run) if line.boot.is_none() && line.tick == run.to_tick + 1 => {
                    run.to_tick = line.tick;
                    run.to_nanos = line.nanos;
                }
                _ => {
                    runs.extend(open.take());
                    open = Some(Run {
                        host: host.clone(),
                        fence,
                        from_tick: line.tick,
                        to_tick: line.tick,
                        from_nanos: line.nanos,
                        to_nanos: line.nanos,
                    });
                }
            }
        }
        runs.extend(open);
    }
    runs.sort_by_key(|run| (run.from_nanos, run.to_nanos));
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::RegionNumber;

    const VM: VmId = VmId { region: RegionNumber(1), incarnation: 1, number: 1 };

    fn report(consoles: &[&str]) -> Report {
        let mut all = Consoles::default();
        for text in consoles {
            all.add(VM, text);
        }
        check(&all)
    }

    #[test]
    fn a_move_is_contiguous_and_its_gap_is_measured() {
        let report = report(&["B 1 0 1.1 a 10\nT 1 1.1 a 20\nT 2 1.1 a 30\n", "T 3 2.1 b 95\nT 4 2.1 b 105\n"]);
        assert_eq!(report.violations, []);
        let moves = &report.vms[&VM].moves;
        assert_eq!((moves.len(), moves[0].gap_nanos, moves[0].tick), (1, 65, 3));
        assert_eq!(report.vms[&VM].last, (1, 0, 4));
    }

    #[test]
    fn a_double_run_is_seen() {
        let found =
            report(&["B 1 0 1.1 a 10\nT 1 1.1 a 20\nT 2 1.1 a 30\nT 3 1.1 a 40\n", "T 3 2.1 b 35\nT 4 2.1 b 45\n"]);
        assert!(found.violations.iter().any(|v| matches!(v, Violation::RunsTwice { .. })), "{found:?}");
        let same_ticks = report(&["T 1 1.1 a 20\nT 2 1.1 a 30\nT 3 1.1 a 90\n", "T 3 1.1 b 40\nT 4 1.1 b 80\n"]);
        assert!(same_ticks.violations.iter().any(|v| matches!(v, Violation::RunsTwice { .. })), "{same_ticks:?}");
    }

    #[test]
    fn lost_ticks_old_fences_and_garbage_are_seen_and_a_boot_may_skip_ahead() {
        assert!(matches!(report(&["T 1 1.1 a 1\nT 3 1.1 a 2\n"]).violations[..], [Violation::TickGap { .. }]));
        assert!(matches!(report(&["T 1 2.1 a 1\nT 2 1.1 a 2\n"]).violations[..], [Violation::FenceBack { .. }]));
        assert!(matches!(report(&["T 1 2.1 a 1\nnonsense\n"]).violations[..], [Violation::Damaged { lines: 1 }]));
        assert_eq!(report(&["T 1 1.1 a 1\nB 2 256 1.1 a 2\nT 257 1.1 a 3\nT 258 1.1"]).violations, []);
        assert!(matches!(report(&["T 9 1.1 a 1\nB 2 8 1.1 a 2\n"]).violations[..], [Violation::TickGap { .. }]));
    }
}
