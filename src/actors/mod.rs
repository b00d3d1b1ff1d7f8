//! Actors: ractor shells around the cores. Owns: supervision, admission, and who performs which effect.
//! Always: nothing outside this folder names ractor; a core and its actor bear the same name.
//!
//! An actor implements [`Serve`]; a [`ChildSpec`] tells its [`Supervisor`] how to make one; a [`Handle`] is where
//! messages go, over all restarts. See `serve.rs`, `supervisor.rs`, `mailbox.rs`.

mod call;
mod child;
pub mod cluster;
pub mod context;
pub mod crash_rows;
pub mod directory;
mod effect;
pub mod events;
pub mod host_keeper;
pub mod inbound;
pub mod jobs;
pub mod kill;
mod ledger;
mod mailbox;
pub mod outbox;
pub mod records;
pub mod recovery;
mod serve;
mod source_effects;
pub mod source_job;
mod supervise;
mod supervisor;
pub mod tables;
mod target_client;
mod target_effects;
pub mod target_job;
mod tree;
pub mod vms;

pub use call::{CallError, Reply};
pub use child::ChildSpec;
pub use ledger::{CrashLedger, LedgerError, LedgerFuture, MemoryLedger};
pub use mailbox::{Admission, Class, Counts, Handle, Load, SendError, current_trace, with_trace};
pub use serve::{Ctx, Exit, HandlerError, Serve, Start, Timer};
pub use supervisor::{Ended, Root, Supervisor, SupervisorError, SupervisorSpec};
pub use tree::{Tree, TreeState};

#[cfg(test)]
mod tests;
