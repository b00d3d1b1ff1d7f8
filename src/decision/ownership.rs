//! Ownership: fences, decisions about attempts, who may run a VM.
