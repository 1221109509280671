//! Versions and, from a later step on, one operation over its replicas.

pub mod clock;
pub mod quorum;
