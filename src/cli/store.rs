//! `store`: what is in it, asked of the node; looking it over and changing its key, on the file itself.
//! Always: the file is worked on only while no node has it open.

use std::path::Path;

use super::CliError;
use super::args::StoreVerb;
use super::output::Output;
use crate::admin::client::Client;
use crate::admin::{StoreStats, TableStats};
use crate::config::{Config, KeySource};
use crate::store::{StoreError, StoreKey, StoreOptions, load_keys, rekey_file, verify_file};
use crate::types::units::human_bytes;
use crate::types::{ApiError, ErrorCode};

/// Damage that is shown to people; programs get all of it.
const SHOWN_MAX: usize = 10;

pub(super) async fn store(client: &Client, dir: &Path, out: &mut Output, verb: StoreVerb) -> Result<u8, CliError> {
    match verb {
        StoreVerb::Stats => stats(client, out).await.map(|()| 0),
        StoreVerb::Verify => verify(dir, out).await,
        StoreVerb::Rekey => rekey(dir, out).await.map(|()| 0),
    }
}

fn failed(error: StoreError) -> CliError {
    let code = match error {
        StoreError::InUse { .. } => ErrorCode::Unavailable,
        _ => ErrorCode::Internal,
    };
    let hint = match error {
        StoreError::InUse { .. } => "stop the node first; its VMs go on meanwhile",
        _ => error.advice(),
    };
    CliError::Own(ApiError::new(code, error.to_string()).hint(hint))
}

fn config(dir: &Path) -> Result<Config, CliError> {
    Config::load(dir)
        .map_err(|e| CliError::Own(ApiError::new(ErrorCode::InvalidArgument, e.to_string()).hint(e.hint())))
}

fn options(dir: &Path, config: &Config, keys: Vec<StoreKey>) -> Result<StoreOptions, CliError> {
    let path = dir.join("state.redb");
    // The mark beside the file says that there was one: then its loss is for the store to explain.
    if !path.exists() && !path.with_extension("id").exists() {
        let text = format!("there is no store in {}", dir.display());
        return Err(CliError::Own(
            ApiError::new(ErrorCode::NotFound, text).hint("the node makes it at its first start"),
        ));
    }
    Ok(StoreOptions::file(path, config.region.name.clone(), keys))
}

async fn verify(dir: &Path, out: &mut Output) -> Result<u8, CliError> {
    let config = config(dir)?;
    let keys = match &config.store.key {
        KeySource::File(path) => load_keys(path).map_err(failed)?,
        KeySource::Command(command) => vec![StoreKey::from_command(command).await.map_err(failed)?],
    };
    let report = verify_file(&options(dir, &config, keys)?).map_err(failed)?;
    if out.json() {
        out.document(&report)?;
    } else if report.is_good() {
        out.line(&format!("The store of region {} is good: {} values, every page.", report.region, report.values))?;
    } else {
        let (bad, all) = (report.damaged, report.damaged + report.values);
        out.line(&format!("The store of region {} is damaged: {bad} of {all} values.", report.region))?;
        for problem in report.problems.iter().take(SHOWN_MAX) {
            out.line(&format!("  {problem}"))?;
        }
    }
    Ok(if report.is_good() { 0 } else { 1 })
}

async fn rekey(dir: &Path, out: &mut Output) -> Result<(), CliError> {
    let config = config(dir)?;
    let KeySource::File(path) = &config.store.key else {
        let text = "store.key is a command: its key is not ours to replace";
        let hint = "set store.key to a file for the change, or change the key where the command gets it from";
        return Err(CliError::Own(ApiError::new(ErrorCode::PreconditionFailed, text).hint(hint)));
    };
    let mut nonce = [0; 8];
    // A nonce that the incarnation before also had would let a copy of the store pass for it.
    getrandom::fill(&mut nonce)
        .map_err(|e| ApiError::new(ErrorCode::Internal, format!("the system gives no random bytes: {e}")))?;
    let keys = load_keys(path).map_err(failed)?;
    let report = rekey_file(options(dir, &config, keys)?, path, u64::from_le_bytes(nonce)).await.map_err(failed)?;
    if out.json() {
        return Ok(out.document(&report)?);
    }
    out.line(&format!("{} values are sealed with the new key {}.", report.values, report.key))?;
    Ok(out.line(&format!("It is in {}: keep a copy elsewhere, and throw old copies away.", path.display()))?)
}

async fn stats(client: &Client, out: &mut Output) -> Result<(), CliError> {
    let stats: StoreStats = client.get("/v2/store").await?;
    if out.json() {
        return Ok(out.document(&stats)?);
    }
    let takes = match (stats.accepts_work, &stats.reason) {
        (true, _) => "yes".to_owned(),
        (false, why) => format!("no: {}", why.as_deref().unwrap_or("unknown")),
    };
    out.fields(&[
        ("store", format!("{}, {}", stats.path, human_bytes(stats.file_bytes))),
        ("takes work", takes),
        ("disk", format!("{} free, reserve {}", human_bytes(stats.free_bytes), human_bytes(stats.reserve_bytes))),
        ("opened", format!("{} times", stats.incarnation)),
        ("commits", format!("{} of {} transactions", stats.commits, stats.transactions)),
        ("waiting", stats.queue.to_string()),
    ])?;
    let row = |table: &TableStats| vec![table.name.clone(), table.rows.to_string(), human_bytes(table.bytes)];
    Ok(out.table(&["table", "rows", "size"], stats.tables.iter().map(row).collect(), "It has no tables.")?)
}
