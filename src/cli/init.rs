//! `init`: a new region's directory. Owns: which files it has and what stands in its first `node.toml`.
//! Always: nothing that is there is overwritten; keys are 0600; `node.toml` comes last, so that a directory with one is
//! complete. Not here: what keys and certificates are (`store/keys.rs`, `protocol/trust/`).

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use serde::Serialize;

use super::CliError;
use super::args::InitArgs;
use super::output::Output;
use crate::clock::Clock;
use crate::config::{Config, FILE_NAME};
use crate::protocol::trust::{LEAF_LIFE_MAX, RegionCa, TrustError};
use crate::store::{StoreError, StoreKey};
use crate::types::{ApiError, ErrorCode, chain};

const KEY: &str = "store.key";
const LEAF: &str = "leaf.pem";
/// What a region's directory has, once it was made or has run: none of it may be there before.
const FILES: [&str; 6] = [FILE_NAME, KEY, "ca.key", "ca.pem", LEAF, "state.redb"];

fn failed(what: impl std::fmt::Display, error: impl std::error::Error) -> CliError {
    CliError::Own(ApiError::new(ErrorCode::Internal, format!("{what}: {}", chain(&error))))
}

/// Makes the region's directory.
pub(super) fn init(dir: &Path, args: InitArgs, out: &mut Output) -> Result<(), CliError> {
    let text = node_toml(&args);
    // The file is read before it is written, so that a name which can't stand in it is refused before anything is there.
    Config::parse(&text, &dir.join(FILE_NAME)).map_err(|e| ApiError::new(ErrorCode::InvalidArgument, e.to_string()))?;
    let now = Clock::start().wall();
    let refused = |e: TrustError| match e {
        TrustError::DnsName(_) => CliError::Own(ApiError::new(ErrorCode::InvalidArgument, e.to_string())),
        _ => failed("making the certificates", e),
    };
    let ca = RegionCa::create(&args.federation, &args.region, now).map_err(refused)?;
    let leaf = ca.issue_leaf(now, LEAF_LIFE_MAX).map_err(refused)?;
    let key = StoreKey::generate().map_err(|e: StoreError| failed("making the store's key", e))?;

    let there: Vec<_> = FILES.iter().filter(|name| fs::symlink_metadata(dir.join(name)).is_ok()).copied().collect();
    if !there.is_empty() {
        let text = format!("{} has {} already: nothing was changed", dir.display(), there.join(", "));
        let hint = "take another --dir; or, if that region is really not needed any more, remove the directory";
        return Err(CliError::Own(ApiError::new(ErrorCode::Conflict, text).hint(hint)));
    }
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|e| failed(dir.display(), e))?;
    key.save(&dir.join(KEY)).map_err(|e| failed(KEY, e))?;
    ca.save(dir).map_err(|e| failed("ca.pem", e))?;
    leaf.save(&dir.join(LEAF)).map_err(|e| failed(LEAF, e))?;
    write_new(&dir.join(FILE_NAME), &text).map_err(|e| failed(FILE_NAME, e))?;
    report(dir, &args, out)
}

fn write_new(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn node_toml(args: &InitArgs) -> String {
    let InitArgs { region, federation, number, listen, cluster } = args;
    let mut text = format!(
        "# Region {region} of federation {federation}. Every key is explained in config/node.toml of the sources.\n\n\
         [region]\nname = \"{region}\"\nfederation = \"{federation}\"\n\
         # The first part of every id that this region mints; never give it to another one.\nnumber = {number}\n\n\
         [listen]\naddress = \"{listen}\"\n"
    );
    let own = format!("{region}-a");
    let ids: Vec<_> = if cluster.is_empty() { vec![own] } else { cluster.iter().map(ToString::to_string).collect() };
    for id in ids {
        text.push_str(&format!(
            "\n[[cluster]]\nid = \"{id}\"\ncapacity = {{ cpu = 16, memory = \"4 GiB\", disk = \"16 GiB\" }}\n"
        ));
    }
    text.push_str(
        "\n# One section for each other region; ca is the ca.pem that `novafed init` made there.\n# [[peer]]\n\
         # region = \"us\"\n# number = 2\n# address = \"us.example.org:7443\"\n# ca = \"peers/us.pem\"\n",
    );
    text
}

fn report(dir: &Path, args: &InitArgs, out: &mut Output) -> Result<(), CliError> {
    #[derive(Serialize)]
    struct Made<'a> {
        directory: &'a Path,
        region: &'a str,
        federation: &'a str,
        files: &'a [&'a str],
    }
    let InitArgs { region, federation, number, listen, .. } = args;
    if out.json() {
        let files = &FILES[..5];
        let (region, federation) = (region.as_str(), federation.as_str());
        return Ok(out.document(&Made { directory: dir, region, federation, files })?);
    }
    let (shown, port) = (dir.display(), listen.port());
    Ok(out.raw(
        format!(
            "Region {region} of federation {federation} is in {shown}:\n  \
             node.toml  what it is and has; add clusters and peers there\n  \
             store.key  encrypts its store; keep a copy elsewhere, without it the store can't be read\n  \
             ca.key     signs its certificates; never leaves this machine\n  \
             ca.pem     for the other regions; not secret\n  \
             leaf.pem   its certificate with its key; the node renews it\n\n\
             Next:\n  \
             novafed node --dir {shown}       start it\n  \
             novafed status --dir {shown}     look at it, from another terminal\n\n\
             To federate, copy ca.pem to the other region as peers/{region}.pem, add to its node.toml\n\n  \
             [[peer]]\n  region = \"{region}\"\n  number = {number}\n  address = \"ADDRESS-OF-THIS-MACHINE:{port}\"\n  \
             ca = \"peers/{region}.pem\"\n\n\
             and here the same of the other one.\n"
        )
        .as_bytes(),
    )?)
}
