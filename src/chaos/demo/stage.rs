//! Where the demo speaks while it runs. Owns: the timeline, the progress bar.
//! Always: the timeline goes to standard error, so that standard output holds one document or one table.
//! Not here: what is said (`scenario.rs`), the end (`report.rs`).

use std::io::{IsTerminal, Write};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::clock::Clock;
use crate::types::units::human_bytes;

/// Something to write timed lines to.
pub struct Stage {
    clock: Clock,
    bar: ProgressBar,
    terminal: bool,
    told_percent: u64,
}

/// How far a move is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Payload of the first round.
    pub total: u64,
    /// What the target has.
    pub acknowledged: u64,
    /// Bytes per second.
    pub rate: u64,
    /// Rounds finished.
    pub rounds: u32,
}

/// Without a terminal a bar would be noise: a line at each of these percents instead.
const TOLD_EVERY_PERCENT: u64 = 25;

impl Stage {
    /// A stage whose time begins now.
    pub fn open() -> Stage {
        let terminal = std::io::stderr().is_terminal();
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        Stage { clock: Clock::start(), bar, terminal, told_percent: 0 }
    }

    /// Seconds since it opened.
    pub fn seconds(&self) -> f64 {
        self.clock.now().0 as f64 / 1_000.0
    }

    /// One line: when, who, what.
    pub fn say(&self, who: &str, what: &str) {
        let line = format!("{:6.1} s  {who:<9} {what}", self.seconds());
        if self.terminal && !self.bar.is_hidden() {
            self.bar.println(line);
        } else {
            // A closed standard error is no reason to stop.
            let _ = writeln!(std::io::stderr(), "{line}");
        }
    }

    /// A line without time and speaker.
    pub fn head(&self, what: &str) {
        let _ = writeln!(std::io::stderr(), "{what}");
    }

    /// Begins the bar of one move.
    pub fn begin(&mut self, title: &str) {
        self.told_percent = 0;
        if self.terminal {
            self.bar = ProgressBar::with_draw_target(Some(1), ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template("          {prefix:<9} [{bar:32}] {msg}");
            self.bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
            self.bar.set_prefix(title.to_owned());
        }
    }

    /// Moves the bar, or tells a quarter.
    pub fn progress(&mut self, title: &str, p: Progress) {
        let percent = (p.acknowledged.min(p.total) * 100).checked_div(p.total).unwrap_or(0);
        let (done, total, rate) = (human_bytes(p.acknowledged), human_bytes(p.total), human_bytes(p.rate));
        let text = format!("{percent:3} %  {done} of {total}, {rate}/s, round {}", p.rounds + 1);
        if self.terminal {
            self.bar.set_length(p.total.max(1));
            self.bar.set_position(p.acknowledged.min(p.total));
            self.bar.set_message(text);
        } else if percent >= self.told_percent + TOLD_EVERY_PERCENT {
            self.told_percent = percent - percent % TOLD_EVERY_PERCENT;
            self.say(title, &text);
        }
    }

    /// Ends the bar.
    pub fn end(&mut self) {
        self.bar.finish_and_clear();
        self.bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
    }
}
