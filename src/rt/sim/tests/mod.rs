//! What the simulated world promises to those who test with it.

mod disk;
mod log;
mod net;
mod world;

use super::{Options, World};

/// The bytes of one block, all the same.
fn block(byte: u8) -> Vec<u8> {
    vec![byte; crate::rt::BLOCK_BYTES]
}

fn calm(seed: u64) -> World {
    World::new(Options::calm(seed))
}
