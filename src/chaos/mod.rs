//! Harness: drives whole regions as processes; relays, witnesses and judges.

pub mod relay;
