//! What people and programs see. Owns: tables, ages, progress, and who gets what: stdout the answer, stderr the rest.

use std::io::{self, IsTerminal, Write};

use comfy_table::Table;
use comfy_table::presets::{NOTHING, UTF8_HORIZONTAL_ONLY};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::admin::ErrorDocument;
use crate::types::units::human_bytes;
use crate::types::{JobState, MigrationStatus, Millis};

/// Where answers go.
pub(super) struct Output {
    json: bool,
}

impl Output {
    pub fn new(json: bool) -> Output {
        Output { json }
    }

    /// Whether a program reads.
    pub fn json(&self) -> bool {
        self.json
    }

    /// Prints a document as it is.
    pub fn document(&mut self, document: &impl Serialize) -> io::Result<()> {
        let mut text = serde_json::to_string_pretty(document)?;
        text.push('\n');
        self.raw(text.as_bytes())
    }

    /// Prints bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(bytes)?;
        out.flush()
    }

    /// Prints a line.
    pub fn line(&mut self, text: &str) -> io::Result<()> {
        self.raw(format!("{text}\n").as_bytes())
    }

    /// Prints a table, or `nothing` if it has no rows.
    pub fn table(&mut self, head: &[&str], rows: Vec<Vec<String>>, nothing: &str) -> io::Result<()> {
        if rows.is_empty() {
            return self.line(nothing);
        }
        let mut table = Table::new();
        // Without a terminal there are no rules either: a line is a row, for grep and its kin.
        table.load_style(if io::stdout().is_terminal() { UTF8_HORIZONTAL_ONLY } else { NOTHING });
        table.set_header(head.iter().map(|name| name.to_uppercase()));
        for row in rows {
            table.add_row(row);
        }
        let plain = |line: String| line.strip_prefix(' ').unwrap_or(&line).trim_end().to_owned();
        let lines: Vec<_> = table.lines().map(plain).collect();
        self.line(&lines.join("\n"))
    }

    /// Prints fields of one thing, a line each.
    pub fn fields(&mut self, fields: &[(&str, String)]) -> io::Result<()> {
        let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let mut text = String::new();
        for (name, value) in fields.iter().filter(|(_, value)| !value.is_empty()) {
            text.push_str(&format!("{name:width$}  {value}\n"));
        }
        self.raw(text.as_bytes())
    }
}

/// Says on stderr what went wrong and what to do.
pub fn complain(message: &str, hint: &str) {
    let mut err = io::stderr().lock();
    // A closed stderr leaves nobody to tell.
    let _ = writeln!(err, "error: {message}");
    if !hint.is_empty() {
        let _ = writeln!(err, " hint: {hint}");
    }
}

/// Says the same to a program.
pub(super) fn complain_json(document: &ErrorDocument) {
    let _ = writeln!(io::stderr().lock(), "{}", serde_json::to_string(document).unwrap_or_default());
}

/// Says something on stderr that is not an answer.
pub(super) fn note(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// A duration as people say it.
pub(super) fn span(ms: Millis) -> String {
    match ms.0 {
        0..1_000 => format!("{} ms", ms.0),
        1_000..60_000 => format!("{:.1} s", ms.0 as f64 / 1000.0),
        60_000..3_600_000 => format!("{} min", ms.0 / 60_000),
        3_600_000..172_800_000 => format!("{} h", ms.0 / 3_600_000),
        _ => format!("{} d", ms.0 / 86_400_000),
    }
}

/// How old something is, and whether it is too old to be believed.
pub(super) fn age(age: Option<Millis>, stale: bool) -> String {
    match age {
        None => "never seen".to_owned(),
        Some(Millis(0)) => "now".to_owned(),
        Some(age) if stale => format!("{} (stale)", span(age)),
        Some(age) => span(age),
    }
}

/// Bytes per second as people say it.
pub(super) fn rate(bytes_per_second: u64) -> String {
    format!("{}/s", human_bytes(bytes_per_second))
}

/// The word that stands for a value in JSON.
pub(super) fn word(value: &impl Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}

/// The progress of a migration: a bar on a terminal, else a line whenever its phase changes.
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    last: String,
}

impl Progress {
    pub fn new() -> Progress {
        let bar = io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(Some(1000), ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template("{prefix:12} {bar:30} {msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        Progress { bar, last: String::new() }
    }

    /// Shows how a job stands.
    pub fn show(&mut self, job: &MigrationStatus) {
        let eta = match job.eta_ms {
            Some(ms) if !job.state.is_end() => format!(", {} to go", span(Millis(ms))),
            _ => String::new(),
        };
        let text = format!(
            "{} of {} at {}, round {}, dirtying {}{eta}",
            human_bytes(job.bytes_acknowledged),
            human_bytes(job.bytes_total),
            rate(job.rate),
            job.iterations,
            rate(job.dirty_rate),
        );
        match &self.bar {
            Some(bar) => {
                bar.set_prefix(job.phase.clone());
                bar.set_position((job.progress.clamp(0.0, 100.0) * 10.0) as u64);
                bar.set_message(text);
            }
            None => {
                let phase = format!("{} {}", word(&job.state), job.phase);
                if phase != self.last {
                    note(&format!("{:12} {:5.1} %  {text}", job.phase, job.progress));
                    self.last = phase;
                }
            }
        }
    }

    /// Shows that there is nothing to show.
    pub fn waiting(&mut self, why: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(why.to_owned()),
            None if self.last != why => {
                note(why);
                self.last = why.to_owned();
            }
            None => {}
        }
    }

    /// Takes the bar away.
    pub fn done(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}

/// How a job ended, in a sentence.
pub(super) fn ending(job: &MigrationStatus) -> String {
    let blackout = match job.downtime_ms {
        Some(ms) => format!(", standing still for {ms:.1} ms (estimated {:.1} ms)", job.estimated_downtime_ms),
        None => String::new(),
    };
    let reason = job.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    match job.state {
        JobState::Completed => format!("{} runs at {}{blackout}", job.vm, job.target),
        JobState::RolledBack => format!("{} could not be moved and stays at {}{reason}", job.vm, job.source),
        JobState::Cancelled => format!("{} was left at {}{reason}", job.vm, job.source),
        JobState::Parked => format!("{} needs a person{reason}", job.id),
        _ => format!("{} goes on, at step {}", job.id, job.phase),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_say_what_they_are_worth() {
        assert_eq!(age(None, true), "never seen");
        assert_eq!(age(Some(Millis(0)), false), "now");
        assert_eq!(age(Some(Millis(1_500)), false), "1.5 s");
        assert_eq!(age(Some(Millis(7_200_000)), true), "2 h (stale)");
    }
}
