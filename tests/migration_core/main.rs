//! The migration cores, both sides, with the host's rules, the log and the convergence core around them: a small world
//! that tests drive. Owns: the exhaustive search (`search.rs`), random sequences (`random.rs`), each failure, repeat
//! and crash at each step (`saga.rs`), each single (state, event) pair (`pairs.rs`).
#![allow(clippy::print_stdout, reason = "the figures that these tests print are asked for")]

mod intern;
mod model;
mod moves;
mod names;
mod pairs;
mod random;
mod saga;
mod search;
mod world;
