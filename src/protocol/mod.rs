//! Between regions: envelopes, trust, links.
