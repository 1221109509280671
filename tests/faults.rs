//! Real faults, the real program, real file systems: a full disk, a disk that fails, power cuts,
//! and limits of the machine. What was acknowledged stays; what cannot be done is refused in plain
//! words.
//!
//! Each test has a file system of its own (ext4 on a loop device), which takes root; some need
//! further programs. What is missing is said in one loud line, and the test is skipped then.
//! Mounts, loop devices and processes go away with the test, however it ends.
//!
//! `QUOIT_LONG=1` makes them long; `SEED=…` repeats the choices (not the moments).

mod common;

#[path = "faults/block_log.rs"]
mod block_log;
#[path = "faults/disk.rs"]
mod disk;
#[path = "faults/disk_full.rs"]
mod disk_full;
#[path = "faults/io_errors.rs"]
mod io_errors;
#[path = "faults/ledger.rs"]
mod ledger;
#[path = "faults/limits.rs"]
mod limits;
#[path = "faults/load.rs"]
mod load;
#[path = "faults/power_cuts.rs"]
mod power_cuts;
