//! Versions; one operation over the replicas of its key; and the register that several nodes hold.

pub mod clock;
pub mod coordinate;
pub mod latency;
pub mod quorum;
pub mod register;
