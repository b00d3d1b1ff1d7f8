//! Looking over a store. Owns: `verify` (every page, every value) and `stats` (what is in it).
//! Always: neither takes an incarnation, so both can be run on a copy.

use std::ops::{Bound, ControlFlow};

use redb::ReadableTableMetadata;

use super::engine::Engine;
use super::error::StoreError;
use super::open::{LockFile, StoreIdentity, file_len, open_engine};
use super::tables::Area;
use super::writer::WriterStats;
use super::{Medium, Store, StoreOptions};

/// Damage listed one by one; more is only counted.
const LISTED_MAX: usize = 100;

/// What `verify` found.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VerifyReport {
    /// The region whose state it is.
    pub region: String,
    /// True if every page's checksum was verified, which only an opening does.
    pub pages_verified: bool,
    /// Values that were decrypted.
    pub values: u64,
    /// Values that could not be.
    pub damaged: u64,
    /// The first of them, with what is wrong.
    pub problems: Vec<String>,
}

impl VerifyReport {
    /// True if nothing is wrong.
    pub fn is_good(&self) -> bool {
        self.damaged == 0
    }
}

/// One table.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TableStats {
    /// Its name.
    pub table: &'static str,
    /// Its rows.
    pub rows: u64,
    /// Bytes of its keys and sealed values.
    pub bytes: u64,
    /// Bytes of the file that it takes, with inner nodes and gaps.
    pub file_bytes: u64,
}

/// What is in a store.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StoreStats {
    /// The region whose state it is.
    pub region: String,
    /// Bytes of the state file; `None` for other media.
    pub file_bytes: Option<u64>,
    /// Free bytes of its file system, if the system says.
    pub free_bytes: Option<u64>,
    /// The tables that have rows.
    pub tables: Vec<TableStats>,
    /// Commits since it was opened.
    pub commits: u64,
    /// The writer's figures since it was opened.
    pub writer: WriterStats,
}

impl Store {
    /// Decrypts every value, as committed at one moment, while the store goes on serving.
    ///
    /// # Errors
    /// [`StoreError`] if the medium fails; damage is reported, not an error.
    pub fn verify(&self) -> Result<VerifyReport, StoreError> {
        verify_values(&self.inner.engine, &self.inner.identity, false)
    }

    /// What is in it. Walks every table.
    ///
    /// # Errors
    /// [`StoreError`] if the medium fails.
    pub fn stats(&self) -> Result<StoreStats, StoreError> {
        let Store { inner } = self;
        let space = inner.writer.runner.space.free();
        stats_of(&inner.engine, &inner.identity, &inner.medium, space, inner.writer.stats())
    }
}

/// Verifies a state that nobody has open: every page and every value. Repairs what a crash left, as any opening does.
///
/// # Errors
/// [`StoreError`] if it can't be opened at all, e.g. for a page that fails its checksum.
pub fn verify_file(options: &StoreOptions) -> Result<VerifyReport, StoreError> {
    let (engine, identity, _lock) = open_existing(options)?;
    let report = verify_values(&engine, &identity, true)?;
    engine.close()?;
    Ok(report)
}

/// What is in a state that nobody has open.
///
/// # Errors
/// [`StoreError`] if it can't be opened.
pub fn stats_file(options: &StoreOptions) -> Result<StoreStats, StoreError> {
    let (engine, identity, _lock) = open_existing(options)?;
    let stats = stats_of(&engine, &identity, &options.medium, options.space.free(), WriterStats::default())?;
    engine.close()?;
    Ok(stats)
}

fn open_existing(options: &StoreOptions) -> Result<(Engine, StoreIdentity, Option<LockFile>), StoreError> {
    if let Medium::File(path) = &options.medium
        && file_len(path)?.is_none()
        && !path.with_extension("id").exists()
    {
        return Err(StoreError::file("opening", path, std::io::ErrorKind::NotFound.into()));
    }
    let (engine, identity, _, lock) = open_engine(options)?;
    Ok((engine, identity, lock))
}

fn verify_values(engine: &Engine, identity: &StoreIdentity, pages_verified: bool) -> Result<VerifyReport, StoreError> {
    let mut report = VerifyReport {
        region: identity.region.to_string(),
        pages_verified,
        values: 0,
        damaged: 0,
        problems: Vec::new(),
    };
    let mut snapshot = engine.snapshot()?;
    for area in Area::ALL {
        snapshot.visit(*area, (Bound::Unbounded, Bound::Unbounded), false, |key, value| {
            match engine.sealer.open(*area, key, value) {
                Ok(_) => report.values += 1,
                Err(error) => {
                    report.damaged += 1;
                    if report.problems.len() < LISTED_MAX {
                        report.problems.push(error.to_string());
                    }
                }
            }
            ControlFlow::Continue(())
        })?;
    }
    Ok(report)
}

fn stats_of(
    engine: &Engine,
    identity: &StoreIdentity,
    medium: &Medium,
    free_bytes: Option<u64>,
    writer: WriterStats,
) -> Result<StoreStats, StoreError> {
    let snapshot = engine.snapshot()?;
    let mut tables = Vec::new();
    for area in Area::ALL {
        let table = match snapshot.transaction().open_table(area.definition()) {
            Ok(table) => table,
            Err(redb::TableError::TableDoesNotExist(_)) => continue,
            Err(e) => return Err(StoreError::redb("opening a table", e)),
        };
        let failed = |e| StoreError::redb("counting rows", e);
        let (rows, size) = (table.len().map_err(failed)?, table.stats().map_err(failed)?);
        tables.push(TableStats {
            table: area.name(),
            rows,
            bytes: size.stored_bytes(),
            file_bytes: size.stored_bytes() + size.metadata_bytes() + size.fragmented_bytes(),
        });
    }
    let file_bytes = match medium {
        Medium::File(path) => file_len(path)?,
        Medium::Backend { .. } => None,
    };
    let region = identity.region.to_string();
    Ok(StoreStats { region, file_bytes, free_bytes, tables, commits: engine.commits(), writer })
}
