//! Health of clusters from evidence.
