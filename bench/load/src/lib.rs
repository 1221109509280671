//! The load generator as a library, for its own program and tests. README.md beside Cargo.toml is
//! the tour.

pub mod chance;
pub mod console;
pub mod content;
pub mod control;
pub mod core;
pub mod driver;
pub mod gaps;
pub mod history;
pub mod keys;
pub mod ledger;
#[cfg(test)]
mod liar;
#[path = "../../../tests/linear/mod.rs"]
pub mod linear;
pub mod options;
pub mod page;
pub mod plan;
pub mod report;
pub mod request;
pub mod resp;
pub mod run;
pub mod schedule;
pub mod series;
pub mod sizes;
pub mod slots;
pub mod summary;
pub mod tally;
pub mod target;
pub mod topology;
pub mod value;
pub mod workload;
