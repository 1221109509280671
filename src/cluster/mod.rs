//! Which node and core holds which keys.

pub mod ring;
