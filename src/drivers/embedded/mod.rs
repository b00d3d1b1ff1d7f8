//! Driver of the embedded hypervisor.
