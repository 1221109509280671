//! Which batches of logs something says to have been durable: by the formats' rules, from a list of
//! all batches, of which some are lost.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use quoit::storage::wal::format::Stream;

use crate::layout::{Batch, Known, Layout, dir_of, segment_of};

/// Decides whether somebody says that `batch` of the log segment at `path` was durable, if only
/// those batches can be read that are `left`.
pub fn is_proven(
    layouts: &BTreeMap<PathBuf, Layout>,
    known: &BTreeMap<PathBuf, Known>,
    (path, batch): (&Path, &Batch),
    left: &dyn Fn(&Path, &Batch) -> bool,
) -> bool {
    let segment = segment_of(path).expect("only logs have batches");
    let core = &known[&dir_of(path)];
    let says = |path: &Path, other: &Batch| other.synced >= batch.sequence && left(path, other);
    if !core.is_replayed(segment) {
        return layouts[path].batches.iter().any(|other| says(path, other));
    }
    let chain = chain_of(layouts, core, &dir_of(path), segment.0);
    if chain.iter().any(|(path, other)| says(path, other)) {
        return true;
    }
    // Without this batch the log is not read on: which is the first write that is missing then?
    let behind = chain
        .iter()
        .filter(|(_, other)| other.sequence >= batch.sequence);
    let missing = behind.flat_map(|(_, other)| &other.numbers);
    let missing = missing
        .copied()
        .filter(|number| *number > core.flushed)
        .min();
    let mut durable = 0;
    for stream in [Stream::Records, Stream::Values] {
        let chain = chain_of(layouts, core, &dir_of(path), stream);
        let stays = |(path, other): &&(&Path, &Batch)| {
            left(path, other) && (stream != segment.0 || other.sequence < batch.sequence)
        };
        let read = chain.iter().take_while(stays);
        durable = read.map(|(_, other)| other.durable).fold(durable, u64::max);
    }
    missing.is_some_and(|missing| missing <= durable)
}

/// The batches of a log that a start reads, in order.
fn chain_of<'a>(
    layouts: &'a BTreeMap<PathBuf, Layout>,
    known: &Known,
    dir: &Path,
    stream: Stream,
) -> Vec<(&'a Path, &'a Batch)> {
    let of_chain = |path: &Path| {
        let segment = segment_of(path).filter(|segment| segment.0 == stream);
        dir_of(path) == dir && segment.is_some_and(|segment| known.is_replayed(segment))
    };
    let segments = layouts.iter().filter(|(path, _)| of_chain(path));
    let batches = segments.flat_map(|(path, layout)| {
        let batches = layout.batches.iter();
        batches.map(move |batch| (path.as_path(), batch))
    });
    batches.collect()
}
