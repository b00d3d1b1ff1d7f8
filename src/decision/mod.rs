//! Cores: one per question. Always: pure, synchronous, no clock, no disk, no randomness, ordered collections.

pub mod chaos;
pub mod converge;
pub mod line;
pub mod membership;
pub mod migration;
pub mod ownership;
pub mod placement;
pub mod reservations;
pub mod supervision;
