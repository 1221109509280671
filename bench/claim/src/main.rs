//! The figures of the claim: how even shares are, what moves when nodes come and go, and where the
//! load of a dead node falls; and the same for the cluster that Quoit is designed for.
//!
//! Everything is computed from maps that `quoit::cluster::claim` made, one join after the other.
//! There is no cluster, no clock and no chance that is not seeded: the same command prints the same
//! figures.

mod design;
mod made;
mod measure;
mod table;

use clap::Parser;

/// Figures of the claim algorithm.
#[derive(Parser)]
#[command(version)]
struct Options {
    /// Vnodes of the ring (Q); several give a table each.
    #[arg(long, default_values_t = [1024, 4096])]
    vnodes: Vec<u32>,
    /// Replicas of each vnode.
    #[arg(long, default_value_t = 3)]
    replicas: u8,
    /// Cores of each node; with unequal weights a node of mean weight has so many.
    #[arg(long, default_value_t = 8)]
    cores: u16,
}

fn main() {
    let options = Options::parse();
    table::explain();
    for vnodes in &options.vnodes {
        table::print(*vnodes, options.replicas, options.cores);
    }
    for vnodes in &options.vnodes {
        design::print(*vnodes, options.replicas, options.cores);
    }
}
