//! The real world in small: VM shapes, arrivals and latencies from `data/` (sources and licences: `data/README.md`).
//! Owns: reading those files. Always: a row is either whole and sane or an error that names file and line.
//! Not here: what is done with them (`demo`).

use crate::types::units::GIB;

/// A VM flavour that some cloud sells.
#[derive(Debug, Clone, PartialEq)]
pub struct Shape {
    /// Who sells it.
    pub cloud: String,
    /// Under which name.
    pub name: String,
    /// Virtual CPUs.
    pub cpu: u32,
    /// Memory, bytes.
    pub memory_bytes: u64,
}

/// A job of the trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// When it came, seconds from the first one kept.
    pub after_s: u64,
    /// How long it ran, seconds.
    pub duration_s: u64,
}

/// All of `data/`.
#[derive(Debug, Clone, PartialEq)]
pub struct World {
    /// VM flavours, in the file's order.
    pub shapes: Vec<Shape>,
    /// Arrivals, in order of time.
    pub arrivals: Vec<Arrival>,
    rtts: Vec<(String, String, u32)>,
}

/// A row that can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("data/{file}:{line}: {why}")]
pub struct WorldError {
    /// The file.
    pub file: &'static str,
    /// The line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub why: String,
}

const SHAPES: (&str, &str) = ("instance_types.csv", include_str!("../../data/instance_types.csv"));
const ARRIVALS: (&str, &str) = ("arrivals.csv", include_str!("../../data/arrivals.csv"));
const RTTS: (&str, &str) = ("region_rtt_ms.csv", include_str!("../../data/region_rtt_ms.csv"));

impl World {
    /// The excerpt that is built into the binary.
    pub fn embedded() -> Result<World, WorldError> {
        Ok(World { shapes: shapes(SHAPES.1)?, arrivals: arrivals(ARRIVALS.1)?, rtts: rtts(RTTS.1)? })
    }

    /// Round trip between two places by their names in the file, milliseconds.
    pub fn rtt_ms(&self, from: &str, to: &str) -> Option<u32> {
        self.rtts.iter().find(|(src, dst, _)| src == from && dst == to).map(|(_, _, rtt)| *rtt)
    }
}

fn shapes(text: &str) -> Result<Vec<Shape>, WorldError> {
    rows(SHAPES.0, text, "cloud,type,vcpus,mem_gib,gpus", |[cloud, name, cpu, memory, _gpus]| {
        let cpu = number::<u32>("vcpus", cpu)?;
        let gib = number::<f64>("mem_gib", memory)?;
        if cpu == 0 || !(0.1..=24_576.0).contains(&gib) {
            return Err(format!("{cpu} CPUs with {gib} GiB is no machine"));
        }
        let memory_bytes = (gib * GIB as f64) as u64;
        Ok(Shape { cloud: cloud.to_owned(), name: name.to_owned(), cpu, memory_bytes })
    })
}

fn arrivals(text: &str) -> Result<Vec<Arrival>, WorldError> {
    let mut first = None;
    let mut last = 0;
    rows(ARRIVALS.0, text, "submit_s,duration_s", |[submit, duration]| {
        let submit = number::<u64>("submit_s", submit)?;
        let begin = *first.get_or_insert(submit);
        if submit < last {
            return Err(format!("{submit} comes after {last}: arrivals are in order of time"));
        }
        last = submit;
        Ok(Arrival { after_s: submit - begin, duration_s: number("duration_s", duration)? })
    })
}

fn rtts(text: &str) -> Result<Vec<(String, String, u32)>, WorldError> {
    rows(RTTS.0, text, "src,dst,rtt_ms", |[src, dst, rtt]| {
        let rtt = number::<u32>("rtt_ms", rtt)?;
        if !(1..=1_000).contains(&rtt) {
            return Err(format!("a round trip of {rtt} ms is not of this planet"));
        }
        Ok((src.to_owned(), dst.to_owned(), rtt))
    })
}

/// Reads the lines after the header `columns`, `N` fields each. No quoting: none of the files has any.
fn rows<const N: usize, T>(
    file: &'static str,
    text: &str,
    columns: &str,
    mut row: impl FnMut([&str; N]) -> Result<T, String>,
) -> Result<Vec<T>, WorldError> {
    let mut lines = (1..).zip(text.lines());
    let error = |line, why| WorldError { file, line, why };
    match lines.next() {
        Some((_, header)) if header == columns => {}
        _ => return Err(error(1, format!("the header is not '{columns}'"))),
    }
    let mut all = Vec::new();
    for (line, text) in lines {
        let fields: Vec<&str> = text.split(',').collect();
        let found = fields.len();
        let fields =
            fields.try_into().map_err(|_| error(line, format!("{found} fields instead of {N}, as in '{columns}'")))?;
        all.push(row(fields).map_err(|why| error(line, why))?);
    }
    if all.is_empty() { Err(error(1, "no rows".into())) } else { Ok(all) }
}

fn number<T: std::str::FromStr>(column: &str, text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{column} is '{text}', which is no number of its kind"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_built_in_can_be_used() {
        let world = World::embedded().expect("the excerpt is sane");
        assert_eq!(world.shapes.len(), 40);
        assert!(world.arrivals.len() > 100);
        assert_eq!(world.arrivals[0].after_s, 0);
        assert_eq!(world.rtt_ms("West Europe", "East US"), Some(85));
        assert_eq!(world.rtt_ms("West Europe", "Atlantis"), None);
    }

    #[test]
    fn a_bad_row_is_named_by_file_and_line() {
        let head = "cloud,type,vcpus,mem_gib,gpus\n";
        let cases = [
            ("", 1, "the header"),
            ("type,cloud\n", 1, "the header"),
            (head, 1, "no rows"),
            (&format!("{head}aws,a,1,2.0,0\naws,b,1\n"), 3, "3 fields instead of 5"),
            (&format!("{head}aws,a,one,2.0,0\n"), 2, "vcpus is 'one'"),
            (&format!("{head}aws,a,1,NaN,0\n"), 2, "no machine"),
            (&format!("{head}aws,a,0,2,0\n"), 2, "no machine"),
            (&format!("{head}aws,a,-1,2,0\n"), 2, "vcpus is '-1'"),
            (&format!("{head}\n"), 2, "1 fields instead of 5"),
        ];
        for (text, line, why) in cases {
            let error = shapes(text).expect_err(text);
            assert_eq!((error.file, error.line), ("instance_types.csv", line), "{text}");
            assert!(error.why.contains(why), "{text}: {}", error.why);
        }
        assert_eq!(arrivals("submit_s,duration_s\n5,1\n4,1\n").expect_err("back in time").line, 3);
        assert_eq!(rtts("src,dst,rtt_ms\na,b,0\n").expect_err("faster than light").line, 2);
    }
}
