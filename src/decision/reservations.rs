//! Reservations: room that is promised for a while.
