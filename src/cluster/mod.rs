//! Which node and core holds which keys, who is alive, and how clients are told. Pure, all of it.

pub mod claim;
pub mod face;
pub mod gossip;
pub mod map;
pub mod member;
pub mod ring;
