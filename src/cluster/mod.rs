//! Which node and core holds which keys, and how clients are told.

pub mod face;
pub mod ring;
