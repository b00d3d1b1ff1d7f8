//! Placement: which cluster gets a VM, and why.
