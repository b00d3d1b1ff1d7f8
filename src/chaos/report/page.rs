//! The page for people. Owns: what it says, in which order, and the verdict at its top.
//! Always: one file that needs nothing else, runs no script and reads without colours; what was not checked is said
//! next to what was.
//! Not here: its looks (`page.css`), the two pictures (`matrix.rs`), how text becomes HTML (`text.rs`).

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::matrix;
use super::text::{Esc, count, listed, of, span};
use crate::chaos::invariants;
use crate::chaos::summary::Summary;

const STYLE: &str = include_str!("page.css");

/// Nothing may be fetched or run, whatever a text in it tries.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";

/// What it comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Held,
    Broken,
    Nothing,
}

impl Verdict {
    fn of(summary: &Summary) -> Verdict {
        let broken = summary.clean < summary.seeds
            || !summary.failures.is_empty()
            || summary.invariants.iter().any(|invariant| invariant.violated > 0)
            || summary.judges.values().any(|judge| judge.violated > 0);
        let looked = summary.seeds > 0 && summary.invariants.iter().any(|invariant| invariant.checked > 0);
        match (broken, looked) {
            (true, _) => Verdict::Broken,
            (false, true) => Verdict::Held,
            (false, false) => Verdict::Nothing,
        }
    }

    fn heading(self) -> &'static str {
        match self {
            Verdict::Held => "Everything that was checked held",
            Verdict::Broken => "Something did not hold",
            Verdict::Nothing => "Nothing was checked",
        }
    }

    fn class(self) -> &'static str {
        match self {
            Verdict::Held => "held",
            Verdict::Broken => "broken",
            Verdict::Nothing => "nothing",
        }
    }
}

/// The verdict, as the page says it.
pub fn verdict(summary: &Summary) -> &'static str {
    Verdict::of(summary).heading()
}

/// The page of a summary.
pub fn page(summary: &Summary) -> String {
    let mut html = String::new();
    let verdict = Verdict::of(summary);
    let _ = write!(
        html,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{POLICY}\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <meta name=\"color-scheme\" content=\"light dark\">\
         <title>{}: novafed chaos report</title>\n<style>\n{STYLE}</style></head>\n<body><main>\n",
        verdict.heading()
    );
    top(&mut html, summary, verdict);
    failures(&mut html, summary);
    figures(&mut html, summary);
    held(&mut html, summary);
    histories(&mut html, summary);
    coverage(&mut html, summary);
    ends(&mut html, summary);
    html.push_str(
        "<footer><p>Written by <code>novafed chaos report</code>. The same figures stand in <code>report.json</code>, \
         which can be given to <code>novafed chaos report</code> again, together with others.</p></footer>\n\
         </main></body></html>\n",
    );
    html
}

fn top(html: &mut String, summary: &Summary, verdict: Verdict) {
    let levels: Vec<&str> = summary.levels.iter().map(String::as_str).collect();
    let at = if levels.is_empty() {
        String::new()
    } else {
        format!(" at level{} {}", if levels.len() > 1 { "s" } else { "" }, listed(&levels))
    };
    let _ = write!(
        html,
        "<header class=\"{}\"><p class=\"over\">novafed chaos report</p><h1>{}</h1><p class=\"lead\">",
        verdict.class(),
        verdict.heading()
    );
    let seeds = of(summary.seeds, "seed", "seeds");
    match verdict {
        Verdict::Held => {
            let _ = write!(html, "{seeds}{}, from seed {} on, all of them clean.", Esc(&at), summary.first_seed);
        }
        Verdict::Nothing => {
            let _ = write!(html, "{seeds}{}, and no invariant was looked at: this says nothing.", Esc(&at));
        }
        Verdict::Broken => {
            let bad = summary.seeds.saturating_sub(summary.clean);
            let _ = write!(html, "In {} of {seeds}{}, something did not hold.", count(bad), Esc(&at));
            if let Some(seed) = summary.first_failing_seed {
                let _ = write!(html, " The first was seed {seed}.");
            }
            let names = summary.invariants.iter().filter(|invariant| invariant.violated > 0);
            let names: Vec<&str> = names.map(|invariant| invariant.name.as_str()).collect();
            if !names.is_empty() {
                let _ = write!(html, " Violated: {}.", Esc(&listed(&names)));
            }
            let judges = summary.judges.iter().filter(|(_, judge)| judge.violated > 0);
            let judges: Vec<&str> = judges.map(|(name, _)| name.as_str()).collect();
            if !judges.is_empty() {
                let _ = write!(html, " Histories that no order explains, by: {}.", Esc(&listed(&judges)));
            }
        }
    }
    html.push_str("</p></header>\n");
    let limits = limits(summary);
    if !limits.is_empty() {
        html.push_str("<aside aria-label=\"What this does not show\"><h2>What this does not show</h2><ul>");
        for limit in limits {
            let _ = write!(html, "<li>{}</li>", Esc(&limit));
        }
        html.push_str("</ul></aside>\n");
    }
}

/// What nobody looked at, in sentences.
fn limits(summary: &Summary) -> Vec<String> {
    let mut limits = Vec::new();
    let unchecked: Vec<&str> =
        invariant_rows(summary).into_iter().filter(|row| row.checked == 0).map(|row| row.name).collect();
    if !unchecked.is_empty() {
        limits.push(format!("Never looked at: {}.", listed(&unchecked)));
    }
    if summary.judges.values().all(|judge| judge.checked == 0) {
        limits.push("No history of a client was judged.".into());
    }
    let not_judged: u64 = summary.judges.values().map(|judge| judge.not_checked).sum();
    if not_judged > 0 {
        limits.push(format!(
            "{} left out, too large or too slow to be judged: they did not pass.",
            of(not_judged, "judgement of a key was", "judgements of keys were")
        ));
    }
    let pairs = matrix::pairs_met(summary);
    if pairs.never() > 0 {
        limits.push(format!("{} of {} pairs of a fault and a step never met.", pairs.never(), pairs.of));
    }
    let points = matrix::points_met(summary);
    if points.never() > 0 {
        limits.push(format!("At {} of {} points no node died.", points.never(), points.of));
    }
    if summary.determinism_rechecked == 0 {
        limits.push("No seed was run twice to see the same events.".into());
    }
    limits
}

fn failures(html: &mut String, summary: &Summary) {
    if summary.failures.is_empty() {
        return;
    }
    let bad = summary.seeds.saturating_sub(summary.clean);
    html.push_str("<section><h2>What did not hold</h2>");
    if bad > summary.failures.len() as u64 {
        let _ = write!(html, "<p class=\"note\">{} of {} are shown.</p>", summary.failures.len(), count(bad));
    }
    html.push_str("<ol class=\"failures\">");
    for failure in &summary.failures {
        let _ = write!(
            html,
            "<li><h3>{} <span>seed {}</span></h3><p>{}</p><p class=\"label\">run it again</p>\
             <pre tabindex=\"0\"><code>{}</code></pre></li>",
            Esc(&failure.invariant),
            failure.seed,
            Esc(&failure.seen),
            Esc(&failure.replay)
        );
    }
    html.push_str("</ol></section>\n");
}

fn figures(html: &mut String, summary: &Summary) {
    let faults: u64 = summary.faults_by_kind.values().sum();
    let per_hour = summary.region_years_per_cpu_hour();
    let cpu = span((summary.cpu_seconds * 1_000.0) as u64);
    let kinds = summary.faults_by_kind.values().filter(|n| **n > 0).count();
    html.push_str("<section aria-label=\"Figures\"><dl class=\"figures\">");
    let mut figure = |name: &str, value: &str, note: &str| {
        let _ = write!(html, "<div><dt>{name}</dt><dd>{value}</dd><dd class=\"note\">{note}</dd></div>");
    };
    figure("seeds", &count(summary.seeds), &format!("{} clean", count(summary.clean)));
    figure(
        "time of regions",
        &span(summary.virtual_region_seconds.saturating_mul(1_000)),
        &format!("{per_hour:.2} region-years per hour of processor, of which it took {cpu}"),
    );
    figure("moves", &count(summary.migrations), "acknowledged and watched to their end");
    figure("requests", &count(summary.operations), &format!("{} unanswered", count(summary.unanswered)));
    figure("faults", &count(faults), &format!("of {}", of(kinds as u64, "kind", "kinds")));
    figure("run twice", &count(summary.determinism_rechecked), "with the same events");
    html.push_str("</dl></section>\n");
}

struct InvariantRow<'a> {
    name: &'a str,
    means: &'static str,
    checked: u64,
    violated: u64,
}

/// All that there are, whether a summary has them or not, and others that it has.
fn invariant_rows(summary: &Summary) -> Vec<InvariantRow<'_>> {
    let known = invariants::ALL.iter().map(|(name, means)| {
        let found = summary.invariants.iter().find(|invariant| invariant.name == *name);
        let (checked, violated) = found.map_or((0, 0), |invariant| (invariant.checked, invariant.violated));
        InvariantRow { name, means, checked, violated }
    });
    let others = summary.invariants.iter().filter(|i| !invariants::ALL.iter().any(|(name, _)| i.name == *name));
    let others = others.map(|i| InvariantRow { name: &i.name, means: "", checked: i.checked, violated: i.violated });
    known.chain(others).collect()
}

fn state(html: &mut String, checked: u64, violated: u64) {
    let (class, word) = match (checked, violated) {
        (_, 1..) => ("broken", "✗ violated"),
        (0, _) => ("warn", "○ never checked"),
        _ => ("held", "✓ held"),
    };
    let _ = write!(html, "<td class=\"state {class}\">{word}</td>");
}

fn held(html: &mut String, summary: &Summary) {
    html.push_str(
        "<section><h2>What must hold</h2><div class=\"scroll\"><table><caption class=\"hidden\">Invariants, how often \
         each was checked and how often it did not hold</caption><thead><tr><th scope=\"col\">invariant</th>\
         <th scope=\"col\">what it says</th><th scope=\"col\" class=\"number\">checked</th>\
         <th scope=\"col\" class=\"number\">violated</th><th scope=\"col\" class=\"state\">so it</th></tr></thead><tbody>",
    );
    for row in invariant_rows(summary) {
        let _ = write!(
            html,
            "<tr><th scope=\"row\"><code>{}</code></th><td>{}</td><td class=\"number\">{}</td>\
             <td class=\"number\">{}</td>",
            Esc(row.name),
            row.means,
            count(row.checked),
            count(row.violated)
        );
        state(html, row.checked, row.violated);
        html.push_str("</tr>");
    }
    html.push_str("</tbody></table></div></section>\n");
}

fn histories(html: &mut String, summary: &Summary) {
    html.push_str("<section><h2>Histories of clients</h2>");
    if summary.judges.is_empty() {
        html.push_str("<p class=\"note\">None was judged.</p></section>\n");
        return;
    }
    html.push_str(
        "<p class=\"note\">Each judge looks at what clients asked and were told, key by key. A key that is too large \
         or takes too long is not checked, and so did not pass.</p><div class=\"scroll\"><table class=\"narrow\">\
         <caption class=\"hidden\">Verdicts on the histories of clients, by judge</caption><thead><tr>\
         <th scope=\"col\">judge</th><th scope=\"col\" class=\"number\">keys checked</th>\
         <th scope=\"col\" class=\"number\">violated</th><th scope=\"col\" class=\"number\">not checked</th>\
         <th scope=\"col\" class=\"state\">so they</th></tr></thead><tbody>",
    );
    for (judge, tally) in &summary.judges {
        let warn = if tally.not_checked > 0 { " warn" } else { "" };
        let _ = write!(
            html,
            "<tr><th scope=\"row\"><code>{}</code></th><td class=\"number\">{}</td><td class=\"number\">{}</td>\
             <td class=\"number{warn}\">{}</td>",
            Esc(judge),
            count(tally.checked),
            count(tally.violated),
            count(tally.not_checked)
        );
        state(html, tally.checked, tally.violated);
        html.push_str("</tr>");
    }
    html.push_str("</tbody></table></div></section>\n");
}

fn coverage(html: &mut String, summary: &Summary) {
    let pairs = matrix::pairs_met(summary);
    let _ = write!(
        html,
        "<section><h2>Which faults met which steps</h2><p class=\"note\">How often jobs passed a step while a fault of \
         the kind was at work: {} of {} pairs met.</p>",
        pairs.hit, pairs.of
    );
    matrix::faults(html, summary);
    let points = matrix::points_met(summary);
    let _ = write!(
        html,
        "</section>\n<section><h2>Where nodes died</h2><p class=\"note\">How often a node was killed at a point: \
         before the entry of a step is written, after that, and after its effect. {} of {} points.</p>",
        points.hit, points.of
    );
    matrix::points(html, summary);
    html.push_str("</section>\n");
}

fn ends(html: &mut String, summary: &Summary) {
    html.push_str("<section><h2>How it ended</h2><div class=\"lists\">");
    counts(html, "Jobs, by end", "end", &summary.ends, "No job ended.");
    counts(html, "Jobs that waited for a person", "why", &summary.parked, "None.");
    counts(html, "Nodes that ended by themselves", "how", &summary.exits, "None.");
    slowest(html, summary);
    html.push_str("</div></section>\n");
}

fn counts(html: &mut String, title: &str, head: &str, counts: &BTreeMap<String, u64>, none: &str) {
    let _ = write!(html, "<div><h3>{title}</h3>");
    let sum: u64 = counts.values().sum();
    if sum == 0 {
        let _ = write!(html, "<p class=\"note\">{none}</p></div>");
        return;
    }
    let _ = write!(
        html,
        "<table><thead><tr><th scope=\"col\">{head}</th><th scope=\"col\" class=\"number\">times</th></tr></thead><tbody>"
    );
    let mut rows: Vec<(&String, &u64)> = counts.iter().collect();
    rows.sort_by_key(|(name, n)| (std::cmp::Reverse(**n), name.as_str()));
    for (name, n) in rows {
        bar(html, &Esc(name).to_string(), &count(*n), *n as f64 / sum as f64);
    }
    html.push_str("</tbody></table></div>");
}

/// A row with a bar behind it; both texts are HTML.
fn bar(html: &mut String, name: &str, value: &str, part: f64) {
    let _ = write!(
        html,
        "<tr class=\"bar\" style=\"--part:{:.1}%\"><th scope=\"row\">{name}</th><td class=\"number\">{value}</td></tr>",
        part * 100.0
    );
}

fn slowest(html: &mut String, summary: &Summary) {
    html.push_str("<div><h3>Slowest recoveries</h3>");
    let Some(worst) = summary.slowest.first() else {
        html.push_str("<p class=\"note\">None was timed.</p></div>");
        return;
    };
    html.push_str(
        "<table><caption>From the end of all faults until everything had settled</caption><thead><tr>\
         <th scope=\"col\">seed</th><th scope=\"col\" class=\"number\">took</th></tr></thead><tbody>",
    );
    for recovery in &summary.slowest {
        let part = recovery.took_ms as f64 / worst.took_ms.max(1) as f64;
        bar(html, &recovery.seed.to_string(), &span(recovery.took_ms), part);
    }
    html.push_str("</tbody></table></div>");
}
