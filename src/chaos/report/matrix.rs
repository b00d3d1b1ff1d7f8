//! The pictures of what met what. Owns: faults against steps, points at which nodes died.
//! Always: a pair that never met is named so in words and not left empty, and a point that does not exist is neither;
//! what a summary names and this program does not know is shown, too.
//! Not here: the rest of the page (`page.rs`), what is counted when (`sim/coverage.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::text::{Esc, count, short_count};
use crate::chaos::catalogue::Family;
use crate::chaos::sim::faults::Kind;
use crate::chaos::sim::plan::Level;
use crate::chaos::summary::Summary;
use crate::decision::migration::steps::{KillPoint, MOMENTS, Moment, STEPS, Side, Step};

/// How many of how many there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reached {
    /// Reached.
    pub hit: usize,
    /// Of so many.
    pub of: usize,
}

impl Reached {
    fn count(&mut self, hit: bool) {
        self.hit += usize::from(hit);
        self.of += 1;
    }
    /// Those that were never reached.
    pub fn never(self) -> usize {
        self.of - self.hit
    }
}

/// Shades of a cell that has a count.
pub const SHADES: u32 = 5;

/// The shade of `n`, of which the largest is `max`: each stands for a power of the same number.
fn shade(n: u64, max: u64) -> u32 {
    let part = (n as f64 + 1.0).ln() / (max as f64 + 1.0).ln();
    ((part * f64::from(SHADES)).ceil() as u32).clamp(1, SHADES)
}

/// The counts at which shades begin, for the legend.
fn shades(max: u64) -> Vec<(u64, u64)> {
    let mut from = 1;
    let mut found = Vec::new();
    for level in 1..=SHADES {
        let to = ((max as f64 + 1.0).powf(f64::from(level) / f64::from(SHADES)) - 1.0).floor() as u64;
        let to = if level == SHADES { max } else { to };
        if to >= from {
            found.push((from, to));
            from = to + 1;
        }
    }
    found
}

fn legend(html: &mut String, max: u64, nowhere: Option<&str>) {
    html.push_str("<p class=\"legend\" aria-hidden=\"true\"><span class=\"cell never\">never</span>");
    for (from, to) in shades(max) {
        let range = if from == to { count(from) } else { format!("{}–{}", count(from), count(to)) };
        let _ = write!(html, "<span class=\"cell s{}\">{range}</span>", shade(to, max));
    }
    if let Some(text) = nowhere {
        let _ = write!(html, "<span class=\"cell none\">—</span> {text}");
    }
    html.push_str("</p>");
}

fn cell(html: &mut String, n: u64, max: u64, class: &str) {
    if n == 0 {
        let _ = write!(html, "<td class=\"never{class}\">never</td>");
    } else {
        let _ = write!(html, "<td class=\"s{}{class}\">{}</td>", shade(n, max), short_count(n));
    }
}

/// A row of the picture of faults.
struct Row<'a> {
    family: &'static str,
    name: &'a str,
    kind: Option<Kind>,
}

/// The family of what this version does not know.
const OTHERS: &str = "Others";

fn family(kind: Kind) -> &'static str {
    Family::of(kind.rows().first().copied().unwrap_or_default()).name()
}

fn rows(summary: &Summary) -> Vec<Row<'_>> {
    let known = Kind::ALL.into_iter().map(|kind| Row { family: family(kind), name: kind.name(), kind: Some(kind) });
    let mut rows: Vec<Row<'_>> = known.collect();
    let named: BTreeSet<&String> = summary.faults_by_kind.keys().chain(summary.met.keys()).collect();
    for name in named {
        if !rows.iter().any(|row| row.name == name) {
            rows.push(Row { family: OTHERS, name, kind: None });
        }
    }
    rows
}

/// Names of steps, as columns: those of the table in its order, then others that a summary has.
fn columns(summary: &Summary) -> Vec<(&str, Option<Step>)> {
    let mut columns: Vec<(&str, Option<Step>)> = STEPS.iter().map(|row| (row.name, Some(row.step))).collect();
    for name in summary.met.values().flat_map(BTreeMap::keys) {
        if !columns.iter().any(|(known, _)| known == name) {
            columns.push((name, None));
        }
    }
    columns
}

/// Where the table goes on in another direction: the heads above its columns.
fn directions(columns: &[(&str, Option<Step>)]) -> Vec<(&'static str, usize)> {
    let mut found: Vec<(&'static str, usize)> = Vec::new();
    for (_, step) in columns {
        let name = match step {
            Some(Step::End) => "over",
            Some(step) if step.row().forward => "way forward",
            Some(_) => "way back",
            None => "others",
        };
        match found.last_mut() {
            Some((last, width)) if *last == name => *width += 1,
            _ => found.push((name, 1)),
        }
    }
    found
}

/// Why a kind can't have been there, if none of the levels has it.
fn nowhere(kind: Kind, levels: &[String]) -> Option<String> {
    let all = [Level::Message, Level::Full];
    let simulated = all.into_iter().filter(|level| levels.iter().any(|name| name == level.name()));
    let only_simulated = levels.iter().all(|name| all.iter().any(|level| level.name() == name));
    let possible = !only_simulated || simulated.into_iter().any(|level| kind.at(level));
    let has = all.into_iter().find(|level| kind.at(*level)).map_or("other", Level::name);
    (!possible).then(|| format!("only at level {has}"))
}

/// How many pairs of fault and step met.
pub fn pairs_met(summary: &Summary) -> Reached {
    let mut reached = Reached { hit: 0, of: 0 };
    for row in rows(summary) {
        for (step, _) in columns(summary) {
            reached.count(met(summary, row.name, step) > 0);
        }
    }
    reached
}

fn met(summary: &Summary, fault: &str, step: &str) -> u64 {
    summary.met.get(fault).and_then(|steps| steps.get(step)).copied().unwrap_or_default()
}

/// Faults against steps.
pub fn faults(html: &mut String, summary: &Summary) {
    let (rows, columns) = (rows(summary), columns(summary));
    let max = summary.met.values().flat_map(BTreeMap::values).copied().max().unwrap_or_default();
    legend(html, max, None);
    html.push_str(
        "<div class=\"scroll\" role=\"region\" tabindex=\"0\" aria-label=\"Faults by steps\"><table class=\"grid\">\
         <caption class=\"hidden\">How often jobs passed each step while a fault of each kind was at work</caption>\
         <thead><tr><th scope=\"col\" rowspan=\"2\">fault</th>\
         <th scope=\"col\" rowspan=\"2\" class=\"number\">injected</th>",
    );
    let directions = directions(&columns);
    for (name, width) in &directions {
        let _ = write!(html, "<th scope=\"colgroup\" class=\"way\" colspan=\"{width}\">{name}</th>");
    }
    html.push_str("</tr><tr>");
    for (at, (name, _)) in columns.iter().enumerate() {
        let _ = write!(html, "<th scope=\"col\" class=\"step{}\">{}</th>", edge(&directions, at), Esc(name));
    }
    html.push_str("</tr></thead>");
    for family in Family::ALL.into_iter().map(Family::name).chain([OTHERS]) {
        let mut of_family = rows.iter().filter(|row| row.family == family).peekable();
        if of_family.peek().is_none() {
            continue;
        }
        let width = columns.len() + 2;
        let _ =
            write!(html, "<tbody><tr><th scope=\"rowgroup\" class=\"family\" colspan=\"{width}\">{family}</th></tr>");
        for row in of_family {
            let _ = write!(html, "<tr><th scope=\"row\">{}", Esc(row.name));
            if let Some(why) = row.kind.and_then(|kind| nowhere(kind, &summary.levels)) {
                let _ = write!(html, " <small>{why}</small>");
            }
            html.push_str("</th>");
            match summary.faults_by_kind.get(row.name).copied().unwrap_or_default() {
                0 => html.push_str("<td class=\"number warn\">never</td>"),
                n => drop(write!(html, "<td class=\"number\">{}</td>", count(n))),
            }
            for (at, (step, _)) in columns.iter().enumerate() {
                cell(html, met(summary, row.name, step), max, edge(&directions, at));
            }
            html.push_str("</tr>");
        }
        html.push_str("</tbody>");
    }
    html.push_str("</table></div>");
}

/// The class of a column at which another direction begins.
fn edge(directions: &[(&str, usize)], at: usize) -> &'static str {
    let mut begins = 0;
    for (_, width) in directions {
        if begins == at && at > 0 {
            return " edge";
        }
        begins += width;
    }
    ""
}

/// How many of the points at which a node can die were met by a death.
pub fn points_met(summary: &Summary) -> Reached {
    let mut reached = Reached { hit: 0, of: 0 };
    for point in KillPoint::all() {
        reached.count(killed(summary, point) > 0);
    }
    reached
}

fn killed(summary: &Summary, point: KillPoint) -> u64 {
    summary.killed_at.get(&point.to_string()).copied().unwrap_or_default()
}

/// Points at which nodes died.
pub fn points(html: &mut String, summary: &Summary) {
    let max = summary.killed_at.values().copied().max().unwrap_or_default();
    legend(html, max, Some("no such point"));
    html.push_str(
        "<div class=\"scroll\" role=\"region\" tabindex=\"0\" aria-label=\"Points at which nodes died\">\
         <table class=\"grid points\"><caption class=\"hidden\">How often a node died at each point of each step\
         </caption><thead><tr><th scope=\"col\" rowspan=\"2\">step</th>",
    );
    let sides = [Side::Source, Side::Target];
    for side in sides {
        let _ = write!(html, "<th scope=\"colgroup\" class=\"way\" colspan=\"3\">{}</th>", side.name());
    }
    html.push_str("</tr><tr>");
    for side in sides {
        for moment in MOMENTS {
            let class = if side == Side::Target && moment == Moment::BeforeWrite { " edge" } else { "" };
            let _ = write!(html, "<th scope=\"col\" class=\"step{class}\">{}</th>", moment.name());
        }
    }
    html.push_str("</tr></thead><tbody>");
    let all: BTreeSet<KillPoint> = KillPoint::all().into_iter().collect();
    for row in STEPS {
        let _ = write!(html, "<tr><th scope=\"row\">{}</th>", row.name);
        for side in sides {
            for moment in MOMENTS {
                let class = if side == Side::Target && moment == Moment::BeforeWrite { " edge" } else { "" };
                let point = KillPoint { step: row.step, side, moment };
                if all.contains(&point) {
                    cell(html, killed(summary, point), max, class);
                } else {
                    let _ = write!(html, "<td class=\"none{class}\"><span aria-label=\"no such point\">—</span></td>");
                }
            }
        }
        html.push_str("</tr>");
    }
    html.push_str("</tbody></table></div>");
    let known: BTreeSet<String> = all.iter().map(ToString::to_string).collect();
    let others: Vec<String> =
        summary.killed_at.iter().filter(|(name, _)| !known.contains(*name)).map(|(n, c)| format!("{n} {c}")).collect();
    if !others.is_empty() {
        let _ = write!(html, "<p>At points that this version does not know: {}.</p>", Esc(&others.join(", ")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shades_cover_every_count_once_and_grow_with_it() {
        for max in [1, 2, 7, 40, 100_000] {
            let ranges = shades(max);
            assert_eq!(ranges.first().map(|range| range.0), Some(1));
            assert_eq!(ranges.last().map(|range| range.1), Some(max));
            assert!(ranges.windows(2).all(|two| two[0].1 + 1 == two[1].0), "{max}: {ranges:?}");
            for (from, to) in ranges {
                assert_eq!(shade(from, max), shade(to, max), "{from}..={to} of {max}");
            }
        }
    }

    #[test]
    fn a_kind_that_no_level_has_says_which_does() {
        let levels = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(nowhere(Kind::SmallMtu, &levels(&["message"])), Some("only at level full".into()));
        assert_eq!(nowhere(Kind::SmallMtu, &levels(&["message", "full"])), None);
        assert_eq!(nowhere(Kind::SmallMtu, &levels(&["process"])), None);
        assert_eq!(nowhere(Kind::KillNode, &levels(&["message"])), None);
    }
}
