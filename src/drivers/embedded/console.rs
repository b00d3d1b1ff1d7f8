//! A guest's console, written by its host: the witness of who ran when.
//! Always: one line per boot and per tick, appended before the next tick begins; nothing is ever rewritten.
//! Not here: reading it (`witness.rs`). The runtime itself never reads it.
//!
//! Format, fields separated by one space, a line ended by `\n`; nanoseconds are the machine's monotonic clock:
//!
//! ```text
//! B <boot> <tick> <fence> <host> <ns>     booted for the <boot>th time; the next tick is <tick> + 1
//! T <tick> <fence> <host> <ns>            tick <tick> was done
//! ```

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::clock::machine_nanos;
use crate::types::{Fence, HostName};

/// An open console of a guest that runs on this host.
#[derive(Debug)]
pub struct Console {
    file: File,
    host: HostName,
    line: String,
    /// A line was cut short by a full disk: end it before the next begins.
    torn: bool,
}

impl Console {
    /// Opens the console in `path`, made if it is not there.
    pub fn open(path: &Path, host: &HostName) -> io::Result<Console> {
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
        Ok(Console { file, host: host.clone(), line: String::with_capacity(96), torn: false })
    }

    /// The guest booted.
    pub fn boot(&mut self, boot: u64, tick: u64, fence: Fence) -> io::Result<()> {
        self.append(format_args!("B {boot} {tick} {fence}"))
    }

    /// The guest did `tick`.
    pub fn tick(&mut self, tick: u64, fence: Fence) -> io::Result<()> {
        self.append(format_args!("T {tick} {fence}"))
    }

    fn append(&mut self, what: std::fmt::Arguments<'_>) -> io::Result<()> {
        self.line.clear();
        if self.torn {
            self.line.push('\n');
        }
        // Writing to a String can't fail.
        let _ = writeln!(self.line, "{what} {} {}", self.host, machine_nanos());
        self.torn = true;
        self.file.write_all(self.line.as_bytes())?;
        self.torn = false;
        Ok(())
    }
}
