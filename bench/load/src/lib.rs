#![doc = include_str!("../README.md")]

pub mod chance;
pub mod content;
pub mod core;
pub mod keys;
pub mod ledger;
#[cfg(test)]
mod liar;
pub mod plan;
pub mod request;
pub mod resp;
pub mod schedule;
pub mod sizes;
pub mod slots;
pub mod tally;
pub mod workload;
