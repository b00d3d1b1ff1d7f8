//! `novafed chaos report`: summaries of runs, added up, as a page for people and a document for programs.
//! Owns: which files are read, what is no summary, what is written and where.
//! Always: nothing is written unless every summary could be read; the document is a summary itself, so that reports can
//! be added up again.
//! Not here: how figures add up (`summary.rs`), how the page looks (`report/`).

mod matrix;
mod page;
mod text;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};

pub use page::page;

use super::summary::Summary;

/// A summary has a few tens of KiB.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// The page.
pub const PAGE: &str = "report.html";
/// The document.
pub const DOCUMENT: &str = "report.json";

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// A report of nothing would look like one of success.
    #[error("no summary was given")]
    NoSummaries,
    /// It is not there, or not for us.
    #[error("reading the summary {}: {source}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is there and something else.
    #[error("{} is not a summary of a chaos run: {why}", path.display())]
    NotASummary {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// It would be counted twice.
    #[error("{} was given twice", path.display())]
    Twice {
        /// Which.
        path: PathBuf,
    },
    /// The result can't be written.
    #[error("writing {}: {source}", path.display())]
    Unwritable {
        /// What.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl ReportError {
    /// What to do.
    pub fn advice(&self) -> &'static str {
        match self {
            Self::NoSummaries | Self::Unreadable { .. } | Self::NotASummary { .. } => {
                "a summary is what `novafed chaos sim --json > summary.json` writes; nothing was written"
            }
            Self::Twice { .. } => "give each summary once, or its figures count double; nothing was written",
            Self::Unwritable { .. } => "choose another --out, or make room and rights for it",
        }
    }

    /// The exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NoSummaries | Self::Unreadable { .. } | Self::NotASummary { .. } | Self::Twice { .. } => 2,
            Self::Unwritable { .. } => 1,
        }
    }
}

/// Reads all summaries and adds them up.
pub fn read(summaries: &[PathBuf]) -> Result<Summary, ReportError> {
    if summaries.is_empty() {
        return Err(ReportError::NoSummaries);
    }
    let mut sum = Summary::default();
    let mut seen = BTreeSet::new();
    for path in summaries {
        let unreadable = |source| ReportError::Unreadable { path: path.clone(), source };
        if !seen.insert(path.canonicalize().map_err(unreadable)?) {
            return Err(ReportError::Twice { path: path.clone() });
        }
        sum.add(&read_one(path)?);
    }
    Ok(sum)
}

fn read_one(path: &Path) -> Result<Summary, ReportError> {
    let unreadable = |source| ReportError::Unreadable { path: path.to_owned(), source };
    let not_a_summary = |why: String| ReportError::NotASummary { path: path.to_owned(), why };
    let mut bytes = Vec::new();
    File::open(path).map_err(unreadable)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(not_a_summary(format!("it has more than {} MiB", FILE_BYTES_MAX >> 20)));
    }
    if bytes.trim_ascii().is_empty() {
        return Err(not_a_summary("it is empty, as if its run had been cut short".into()));
    }
    serde_json::from_slice(&bytes).map_err(|error| not_a_summary(error.to_string()))
}

/// Writes the page and the document into `directory`, which is made if it is not there. Returns where they are.
pub fn write(summary: &Summary, directory: &Path) -> Result<[PathBuf; 2], ReportError> {
    let mut document = serde_json::to_vec_pretty(summary).expect("a summary is JSON");
    document.push(b'\n');
    let files = [(directory.join(PAGE), page(summary).into_bytes()), (directory.join(DOCUMENT), document)];
    std::fs::create_dir_all(directory)
        .map_err(|source| ReportError::Unwritable { path: directory.to_owned(), source })?;
    for (path, bytes) in &files {
        std::fs::write(path, bytes).map_err(|source| ReportError::Unwritable { path: path.clone(), source })?;
    }
    Ok(files.map(|(path, _)| path))
}

/// Says where the files are, and what the page says at its top.
pub fn announce(summary: &Summary, written: &[PathBuf]) {
    let mut out = io::stdout().lock();
    for path in written {
        // Who closed stdout has enough.
        let _ = writeln!(out, "{}", path.display());
    }
    let _ = writeln!(io::stderr().lock(), "{}", page::verdict(summary));
}
