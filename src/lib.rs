//! Quoit.
pub mod error;
pub mod types;
