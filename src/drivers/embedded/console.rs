//! A guest's console, kept by its host: the witness of who ran when.
//! Always: one line per boot and per tick, appended before the next tick begins; nothing is ever rewritten.
//! Not here: reading it (`witness.rs`). The runtime itself never reads it.
//!
//! Format, fields separated by one space, a line ended by `\n`; nanoseconds are the machine's monotonic clock:
//!
//! ```text
//! B <boot> <tick> <fence> <host> <ns>     booted for the <boot>th time; the next tick is <tick> + 1
//! T <tick> <fence> <host> <ns>            tick <tick> was done
//! ```
//!
//! A simulated host's console is a [`Witness`] instead: told at the very moment, and told more, since it can't see the
//! time between two ticks in a file.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use crate::clock::machine_nanos;
use crate::types::{Fence, HostName, VmId};

/// Whoever is told what guests do, at the moment when they do it. It must not call the host that tells it: that one
/// holds the guest's lock meanwhile.
pub trait Witness: Send + Sync + 'static {
    /// `vm` booted for the `boot`-th time; its next tick is `tick` + 1.
    fn boot(&self, vm: VmId, host: &HostName, boot: u64, tick: u64, fence: Fence);
    /// `vm` did `tick`.
    fn tick(&self, vm: VmId, host: &HostName, tick: u64, fence: Fence);
    /// `vm` may tick from now on; `tick` was its last. The beginning of a run, ended by the next `stands` here.
    fn runs(&self, vm: VmId, host: &HostName, fence: Fence, tick: u64);
    /// `vm` can't tick any more; `tick` was its last.
    fn stands(&self, vm: VmId, host: &HostName, tick: u64);
    /// From now on `vm` is under `fence`, whether it runs or not; `tick` was its last.
    fn refence(&self, vm: VmId, host: &HostName, fence: Fence, tick: u64);
}

/// A witness that looks away: for hosts that are measured and not watched.
#[derive(Debug, Clone, Copy, Default)]
pub struct Nobody;

impl Witness for Nobody {
    fn boot(&self, _: VmId, _: &HostName, _: u64, _: u64, _: Fence) {}
    fn tick(&self, _: VmId, _: &HostName, _: u64, _: Fence) {}
    fn runs(&self, _: VmId, _: &HostName, _: Fence, _: u64) {}
    fn stands(&self, _: VmId, _: &HostName, _: u64) {}
    fn refence(&self, _: VmId, _: &HostName, _: Fence, _: u64) {}
}

/// An open console of a guest that runs on this host.
pub struct Console {
    host: HostName,
    sink: Sink,
}

enum Sink {
    File {
        file: File,
        line: String,
        /// A line was cut short by a full disk: end it before the next begins.
        torn: bool,
    },
    Told {
        witness: Arc<dyn Witness>,
        vm: VmId,
    },
}

impl Console {
    /// Opens the console in `path`, made if it is not there.
    pub fn open(path: &Path, host: &HostName) -> io::Result<Console> {
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
        let sink = Sink::File { file, line: String::with_capacity(96), torn: false };
        Ok(Console { host: host.clone(), sink })
    }

    /// The console of `vm` that tells `witness`.
    pub fn told(witness: Arc<dyn Witness>, vm: VmId, host: &HostName) -> Console {
        Console { host: host.clone(), sink: Sink::Told { witness, vm } }
    }

    /// The guest booted.
    pub fn boot(&mut self, boot: u64, tick: u64, fence: Fence) -> io::Result<()> {
        match &self.sink {
            Sink::File { .. } => self.append(format_args!("B {boot} {tick} {fence}")),
            Sink::Told { witness, vm } => {
                witness.boot(*vm, &self.host, boot, tick, fence);
                Ok(())
            }
        }
    }

    /// The guest did `tick`.
    pub fn tick(&mut self, tick: u64, fence: Fence) -> io::Result<()> {
        match &self.sink {
            Sink::File { .. } => self.append(format_args!("T {tick} {fence}")),
            Sink::Told { witness, vm } => {
                witness.tick(*vm, &self.host, tick, fence);
                Ok(())
            }
        }
    }

    /// The guest may tick from now on.
    pub fn runs(&self, fence: Fence, tick: u64) {
        if let Sink::Told { witness, vm } = &self.sink {
            witness.runs(*vm, &self.host, fence, tick);
        }
    }

    /// The guest can't tick any more.
    pub fn stands(&self, tick: u64) {
        if let Sink::Told { witness, vm } = &self.sink {
            witness.stands(*vm, &self.host, tick);
        }
    }

    /// The guest is under `fence` from now on.
    pub fn refence(&self, fence: Fence, tick: u64) {
        if let Sink::Told { witness, vm } = &self.sink {
            witness.refence(*vm, &self.host, fence, tick);
        }
    }

    fn append(&mut self, what: std::fmt::Arguments<'_>) -> io::Result<()> {
        let Sink::File { file, line, torn } = &mut self.sink else { return Ok(()) };
        line.clear();
        if *torn {
            line.push('\n');
        }
        // Writing to a String can't fail.
        let _ = writeln!(line, "{what} {} {}", self.host, machine_nanos());
        *torn = true;
        file.write_all(line.as_bytes())?;
        *torn = false;
        Ok(())
    }
}
