//! `novafed`: many independent VM clusters in many regions as one system.
//!
//! One half decides (`decision/`), the other half does (`actors/`, `protocol/`, `store/`, `drivers/`, `admin/`).
//! `node` alone assembles a region. See `docs/architecture.md`.

pub mod actors;
pub mod admin;
pub mod chaos;
pub mod cli;
pub mod clock;
pub mod config;
pub mod decision;
pub mod drivers;
pub mod node;
pub mod planted;
pub mod protocol;
pub mod store;
pub mod types;
