//! Whole regions, driven: what the demo and the tests of real processes share. Named by nobody but `main` and tests.
//! Owns: starting, killing, restarting and removing regions; the world they live in; the judge.
//! Not here: anything that a region needs to work.

pub mod demo;
pub mod federation;
pub mod invariants;
pub mod moves;
pub mod process;
pub mod relay;
pub mod world;
