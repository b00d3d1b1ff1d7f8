//! The demo: three regions, a busy VM that goes round the world, two nodes killed on the way, and a judge.
//! Owns: what is shown and in which order. Always: it uses a region as anybody would, over its API; whatever it finds
//! out about VMs it finds in their own consoles, disks and memory.
//! Not here: regions as processes (`federation.rs`), what must hold (`invariants.rs`).

pub mod report;
pub mod stage;
