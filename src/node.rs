//! Assembly of a region.
