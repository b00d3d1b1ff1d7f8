//! Properties of the restart budget.
