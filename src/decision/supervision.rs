//! Restart budget: which child is restarted when, and when its supervisor gives up.
