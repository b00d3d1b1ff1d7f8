//! The embedded hypervisor: a small one of our own, so that everything runs with nothing installed.
//! Owns: deterministic guests, the rules of a host, the host process and the driver that speaks to it.
//! Always: what may happen to a VM is decided in `rules/`, which is pure; everything else only performs it.
//! Not here: the contract (`drivers/mod.rs`), who owns a VM (`decision/`).
//!
//! ```text
//! node ── client.rs ──(unix socket, wire.rs)── process.rs ── host.rs ─┬─ rules/        what may happen (pure)
//!   └──── launch.rs starts, adopts, stops it                          ├─ slot.rs       performs it for one VM
//!                                                                     ├─ guest.rs      program.rs memory.rs disk.rs
//!                                                                     ├─ scheduler.rs  ticks all guests
//!                                                                     ├─ transfer/     blocks from host to host
//!                                                                     ├─ state.rs      what outlives the process
//!                                                                     └─ media.rs      files, real or simulated
//! local.rs drives a host in this process; sim.rs gives it a simulated machine (simulated.rs), whose processes die and
//! are held still (life.rs), for nodes that die as well (port.rs).
//! judge.rs and witness.rs look at files alone and are used by demo, tests and benches, never by the runtime.
//! ```

pub mod client;
pub mod console;
pub mod disk;
pub mod faults;
pub mod guest;
pub mod host;
pub mod judge;
pub mod launch;
pub mod life;
pub mod local;
pub mod media;
pub mod memory;
pub mod port;
pub mod process;
pub mod program;
pub mod rules;
pub mod scheduler;
pub mod sim;
pub mod simulated;
pub mod slot;
pub mod snapshot;
pub mod state;
pub mod transfer;
pub mod wire;
pub mod witness;

/// The driver's name.
pub const NAME: &str = "embedded";
