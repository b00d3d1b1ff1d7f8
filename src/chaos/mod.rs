//! Whole regions, driven: what the demo and the tests of real processes share. Named by nobody but `main` and tests.
//! Owns: starting, killing, restarting and removing regions; the world they live in; the judge.
//! Not here: anything that a region needs to work.

pub mod catalogue;
pub mod demo;
pub mod federation;
pub mod history;
pub mod invariants;
pub mod moves;
pub mod plant;
pub mod process;
pub mod real;
pub mod relay;
pub mod report;
pub mod sim;
pub mod summary;
pub mod world;
