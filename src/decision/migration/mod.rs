//! Migration: assess, estimate, and the two sides of the saga.
