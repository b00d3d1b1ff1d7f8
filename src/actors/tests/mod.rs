//! Properties of supervision and mailboxes, on paused time.
