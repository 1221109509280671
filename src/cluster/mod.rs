//! Which node and core holds which keys, who is alive, and how clients are told. Pure, but for the
//! links to other nodes (`peers`).

pub mod claim;
pub mod face;
pub mod faces;
pub mod gossip;
pub mod legs;
pub mod map;
pub mod member;
pub mod peers;
pub mod ring;
