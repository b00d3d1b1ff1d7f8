//! Between regions: envelopes, trust, links.

pub mod bodies;
