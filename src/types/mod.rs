//! Nouns of the system: ids, units, limits, fences, records, and the plan's structs.
//! Owns: what things are called and which values are possible. Always: no I/O, no clock, no randomness.
//! Not here: what is decided about them (`decision/`), how they are kept (`store/`).

pub mod chaos;
pub mod cluster;
pub mod error;
pub mod fence;
pub mod guest;
pub mod ids;
pub mod limits;
pub mod migration;
pub mod suggest;
pub mod switch;
pub mod units;
pub mod vm;

pub use chaos::*;
pub use cluster::*;
pub use error::*;
pub use fence::*;
pub use guest::*;
pub use ids::*;
pub use migration::*;
pub use switch::*;
pub use units::*;
pub use vm::*;
