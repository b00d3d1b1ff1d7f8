//! Whole federations by seed. Owns: deterministic simulation: regions, hosts, network, disks and clients in one process,
//! on one thread and paused time, with faults.
//! Always: everything under test is the code of production: cores, actors, store, protocol, API and the embedded host;
//! simulated are the clock, the disks, the network and what befalls them. A seed is a run, and always the same.
//!
//! ```text
//! seed ── plan.rs ──► run.rs ─┬─ world.rs      machines: region.rs (nodes), the hosts, network.rs (ways)
//!                             ├─ workload.rs   clients: client.rs (a request), book.rs (what they know)
//!                             ├─ inject.rs     faults: faults.rs (kinds), points.rs (at steps)
//!                             ├─ witness.rs    who ran when, checked at every event
//!                             └─ checks.rs     what must hold in the end; operator.rs answers parked jobs
//! ```

pub mod book;
pub mod checks;
pub mod client;
pub mod coverage;
pub mod faults;
pub mod gate;
pub mod inject;
pub mod network;
pub mod operator;
pub mod plan;
pub mod points;
pub mod region;
pub mod run;
pub mod shrink;
pub mod sweep;
pub mod trace;
pub mod udp;
pub mod witness;
pub mod workload;
pub mod world;
