//! Where the files of a data directory hold something: by the formats, not by the code that checks
//! them.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use quoit::rt::Bug;
use quoit::rt::sim::{Options, World};
use quoit::storage::manifest::Manifest;
use quoit::storage::merge::Item;
use quoit::storage::record::Pointer;
use quoit::storage::sstable::verify as table;
use quoit::storage::wal::format::{
    BATCH_HEADER_BYTES, Entry, SegmentId, Stream, batch_is_intact, decode_batch_header,
    decode_life, padded, take_entry, take_numbered,
};

use crate::cluster::NODE;

pub const BLOCK: usize = 4096;
const LOG_HEADER: Range<usize> = 0..48;

pub type Key = Vec<u8>;
pub type Files = BTreeMap<PathBuf, Rc<Vec<u8>>>;

/// What kind of file was damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Identity,
    Cluster,
    Lock,
    Manifest,
    Table,
    Log,
    Values,
    Moved,
}

impl Kind {
    pub fn of(path: &Path) -> Kind {
        match name(path).as_str() {
            "NODE" => Kind::Identity,
            "CLUSTER" | "CLOCK" => Kind::Cluster,
            "LOCK" => Kind::Lock,
            "MANIFEST" => Kind::Manifest,
            other if other.ends_with(".table") => Kind::Table,
            other if other.ends_with(".log") => match segment_of(path).map(|(stream, _)| stream) {
                Some(Stream::Records) => Kind::Log,
                Some(Stream::Values) => Kind::Values,
                Some(Stream::Moved) => Kind::Moved,
                None => panic!("a log of an unknown kind: {other}"),
            },
            other => panic!("a file of an unknown kind: {other}"),
        }
    }
}

pub fn name(path: &Path) -> String {
    let name = path.file_name().expect("a file has a name");
    name.to_string_lossy().into_owned()
}

/// The segment whose file this is.
pub fn segment_of(path: &Path) -> Option<(Stream, SegmentId)> {
    let name = name(path);
    [Stream::Records, Stream::Values, Stream::Moved]
        .into_iter()
        .find_map(|stream| SegmentId::from_file_name(stream, &name).map(|id| (stream, id)))
}

pub fn dir_of(path: &Path) -> PathBuf {
    path.parent().expect("it is in a directory").to_owned()
}

/// What a core's manifest and tables say of its logs.
pub struct Known {
    pub floor: SegmentId,
    pub values_floor: SegmentId,
    /// All writes up to here are in tables.
    pub flushed: u64,
    /// The names of live tables.
    pub tables: BTreeSet<String>,
    /// Live segments of the value log.
    pub listed: BTreeSet<(Stream, SegmentId)>,
    /// Where the newest records in tables lie in it.
    pub pointed: Vec<Pointer>,
}

impl Known {
    /// A start reads this segment as a log.
    pub fn is_replayed(&self, (stream, id): (Stream, SegmentId)) -> bool {
        match stream {
            Stream::Records => id >= self.floor,
            Stream::Values => id >= self.values_floor,
            Stream::Moved => false,
        }
    }

    /// Ranges of this segment that tables point to.
    pub fn pointed(&self, segment: (Stream, SegmentId)) -> impl Iterator<Item = Range<usize>> {
        let to = self.pointed.iter();
        let to = to.filter(move |place| (place.stream, place.segment) == segment);
        to.map(|place| place.offset as usize..(place.offset + place.length) as usize)
    }
}

/// Where a file holds something.
#[derive(Default)]
pub struct Layout {
    /// Bytes that mean something.
    pub stored: Vec<Range<usize>>,
    pub batches: Vec<Batch>,
    /// Its length means something, too.
    pub is_measured: bool,
}

pub struct Batch {
    pub range: Range<usize>,
    pub sequence: u64,
    /// What it says of the batches before it.
    pub synced: u64,
    /// What it says of the writes before it.
    pub durable: u64,
    /// The numbers of its entries.
    pub numbers: Vec<u64>,
    /// What it writes, and where that comes in the order of all writes.
    pub keys: Vec<(u64, Key)>,
}

/// Where something is stored, in each of the files.
pub fn lay_out(files: &Files, known: &BTreeMap<PathBuf, Known>) -> BTreeMap<PathBuf, Layout> {
    let mut layouts: BTreeMap<PathBuf, Layout> = BTreeMap::new();
    for (path, bytes) in files {
        let layout = match Kind::of(path) {
            Kind::Log | Kind::Values | Kind::Moved => {
                lay_out_log(path, bytes, &known[&dir_of(path)])
            }
            Kind::Lock => Layout::default(),
            // What the manifest does not name is left from a crash.
            Kind::Table if !known[&dir_of(path)].tables.contains(&name(path)) => Layout::default(),
            Kind::Identity | Kind::Cluster | Kind::Manifest | Kind::Table => Layout {
                stored: std::iter::once(0..bytes.len()).collect(),
                is_measured: true,
                ..Layout::default()
            },
        };
        layouts.insert(path.clone(), layout);
    }
    layouts
        .values_mut()
        .for_each(|layout| layout.is_measured |= !layout.stored.is_empty());
    layouts
}

/// Keeps what the newest table says of each key.
#[derive(Default)]
pub struct Newest {
    pub pointers: BTreeMap<Key, Option<Pointer>>,
}

impl table::Witness for Newest {
    fn damage(&mut self, offset: u64, what: String) {
        panic!("byte {offset}: {what}");
    }

    fn record(&mut self, item: &Item) -> Option<String> {
        let key = item.record.key().to_vec();
        self.pointers.insert(key, item.record.pointer());
        None
    }

    async fn block_ends(&mut self) {}

    fn seen(&mut self, _: u64) {}
}

/// What is known of each core.
pub fn known_of(files: &Files) -> BTreeMap<PathBuf, Known> {
    let world = world_with(files, &[]);
    let dirs: BTreeSet<PathBuf> = files
        .keys()
        .filter(|path| Kind::of(path) == Kind::Manifest)
        .map(|path| dir_of(path))
        .collect();
    world.run_on(NODE, async move {
        let mut known = BTreeMap::new();
        for dir in dirs {
            let manifest = Manifest::read(&dir).await.expect("sound").expect("there");
            let mut newest = Newest::default();
            for info in &manifest.tables {
                let verified = table::verify(&dir, info.id, Some(info), &mut newest).await;
                verified.expect("a sound table");
            }
            let segments = manifest.segments.iter();
            let this = Known {
                floor: manifest.floor.segment,
                values_floor: manifest.values_floor.segment,
                flushed: manifest.flushed.0,
                tables: manifest
                    .tables
                    .iter()
                    .map(|info| info.id.file_name())
                    .collect(),
                listed: segments.map(|info| (info.stream, info.id)).collect(),
                pointed: newest.pointers.into_values().flatten().collect(),
            };
            known.insert(dir, this);
        }
        known
    })
}

pub fn lay_out_log(path: &Path, bytes: &[u8], known: &Known) -> Layout {
    let segment = segment_of(path).expect("a log's name");
    let mut layout = Layout::default();
    let is_listed = known.listed.contains(&segment);
    let is_replayed = known.is_replayed(segment);
    if !is_replayed && !is_listed {
        return layout;
    }
    let life = decode_life(bytes);
    let mut position = BLOCK;
    while let Some(header) = bytes
        .get(position..)
        .filter(|_| life.is_some())
        .and_then(|rest| decode_batch_header(rest, life))
    {
        let end = position + BATCH_HEADER_BYTES + header.length as usize;
        if !batch_is_intact(header, &bytes[position..]) {
            break;
        }
        layout.stored.push(position..end);
        let entries = &bytes[position + BATCH_HEADER_BYTES..end];
        layout.batches.push(Batch {
            range: position..end,
            sequence: header.sequence,
            synced: header.synced,
            durable: header.durable.0,
            numbers: numbers_of(header.first.0, entries),
            keys: keys_of(header.first.0, entries),
        });
        position += padded(end - position);
    }
    if !layout.batches.is_empty() || !is_replayed {
        layout.stored.push(LOG_HEADER);
    }
    layout
}

fn numbers_of(first: u64, mut entries: &[u8]) -> Vec<u64> {
    let mut numbers = Vec::new();
    while !entries.is_empty() {
        let (number, _) = take_numbered(&mut entries).expect("well-formed");
        numbers.push(first + u64::from(number));
    }
    numbers
}

pub fn keys_of(first: u64, mut entries: &[u8]) -> Vec<(u64, Key)> {
    let mut keys = Vec::new();
    while !entries.is_empty() {
        let (number, entry) = take_numbered(&mut entries).expect("well-formed");
        let number = first + u64::from(number);
        match entry {
            Entry::Record(view) => keys.push((number, view.key().to_vec())),
            Entry::Prepare { mut parts, .. } => {
                while !parts.is_empty() {
                    if let Some(Entry::Record(view)) = take_entry(&mut parts) {
                        keys.push((number, view.key().to_vec()));
                    }
                }
            }
            _ => {}
        }
    }
    keys
}

pub fn world_with(files: &Files, planted: &[Bug]) -> World {
    let world = World::new(Options {
        planted: planted.to_vec(),
        ..Options::calm(7)
    });
    let disk = world.disk(NODE);
    files.iter().for_each(|(path, bytes)| disk.put(path, bytes));
    drop(disk);
    world
}
