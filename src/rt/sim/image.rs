//! The bytes of one simulated file: what readers see, what is durable, and what lies between.
//!
//! A file is a list of 4 KiB blocks that share the buffers they were written from, so that seeing,
//! syncing and crashing move references and copy nothing. A crash image is the durable state plus
//! a random choice of what was not synced, in 512-byte sectors: lost, kept or torn.
//!
//! Invariant: bytes of an image at or behind its length are zeros, so that growing shows zeros.

use std::collections::VecDeque;
use std::rc::Rc;

use super::executor::Chance;
use crate::rt::BLOCK_BYTES;

/// What a disk writes all or nothing of.
const SECTOR_BYTES: usize = 512;
const SECTORS: usize = BLOCK_BYTES / SECTOR_BYTES;
const _: () = assert!(BLOCK_BYTES.is_multiple_of(SECTOR_BYTES));

/// A block's place in the buffer it was written from.
#[derive(Clone)]
struct Block {
    buffer: Rc<Vec<u8>>,
    at: usize,
}

impl Block {
    fn bytes(&self) -> &[u8] {
        &self.buffer[self.at..][..BLOCK_BYTES]
    }

    fn from_bytes(bytes: Vec<u8>) -> Block {
        assert!(bytes.len() == BLOCK_BYTES);
        Block {
            buffer: Rc::new(bytes),
            at: 0,
        }
    }
}

/// One state of a file.
#[derive(Clone, Default)]
pub(super) struct Image {
    blocks: Vec<Option<Block>>,
    length: u64,
    allocated: usize,
}

/// One change of a file.
#[derive(Clone)]
pub(super) enum Change {
    Write {
        first: usize,
        buffer: Rc<Vec<u8>>,
    },
    Length(u64),
    /// The file has at least this length, and space for all of it.
    Allocate(u64),
}

impl Image {
    pub fn from_bytes(bytes: &[u8]) -> Image {
        let mut image = Image::default();
        let mut padded = bytes.to_vec();
        padded.resize(bytes.len().next_multiple_of(BLOCK_BYTES), 0);
        if !padded.is_empty() {
            image.apply(&Change::Write {
                first: 0,
                buffer: Rc::new(padded),
            });
        }
        image.length = bytes.len() as u64;
        image
    }

    pub fn length(&self) -> u64 {
        self.length
    }

    /// Blocks that take space on the disk; holes do not.
    pub fn allocated(&self) -> usize {
        self.allocated
    }

    /// How many blocks `change` would add.
    pub fn growth(&self, change: &Change) -> usize {
        match change {
            Change::Write { first, buffer } => {
                let count = buffer.len() / BLOCK_BYTES;
                let range = *first..first + count;
                count - range.filter(|&index| self.block(index).is_some()).count()
            }
            Change::Length(_) => 0,
            Change::Allocate(length) => {
                let count = length.div_ceil(BLOCK_BYTES as u64) as usize;
                (0..count).filter(|&i| self.block(i).is_none()).count()
            }
        }
    }

    fn block(&self, index: usize) -> Option<&Block> {
        self.blocks.get(index).and_then(Option::as_ref)
    }

    fn set_block(&mut self, index: usize, block: Block) {
        if self.blocks.len() <= index {
            self.blocks.resize(index + 1, None);
        }
        let old = self.blocks[index].replace(block);
        self.allocated += usize::from(old.is_none());
    }

    /// Up to `length` bytes from `position`.
    pub fn read(&self, position: u64, length: usize) -> Vec<u8> {
        let end = self.length.min(position.saturating_add(length as u64));
        let mut bytes = Vec::with_capacity(end.saturating_sub(position) as usize);
        let mut at = position;
        while at < end {
            let within = (at % BLOCK_BYTES as u64) as usize;
            let count = (BLOCK_BYTES - within).min((end - at) as usize);
            match self.block((at / BLOCK_BYTES as u64) as usize) {
                Some(block) => bytes.extend_from_slice(&block.bytes()[within..][..count]),
                None => bytes.resize(bytes.len() + count, 0),
            }
            at += count as u64;
        }
        bytes
    }

    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::Write { first, buffer } => {
                let count = buffer.len() / BLOCK_BYTES;
                for index in 0..count {
                    let block = Block {
                        buffer: Rc::clone(buffer),
                        at: index * BLOCK_BYTES,
                    };
                    self.set_block(first + index, block);
                }
                self.length = self.length.max(((first + count) * BLOCK_BYTES) as u64);
            }
            Change::Length(length) => {
                self.length = *length;
                self.clear_behind_end();
            }
            Change::Allocate(length) => {
                let zeros = Block::from_bytes(vec![0; BLOCK_BYTES]);
                for index in 0..length.div_ceil(BLOCK_BYTES as u64) as usize {
                    if self.block(index).is_none() {
                        self.set_block(index, zeros.clone());
                    }
                }
                self.length = self.length.max(*length);
            }
        }
    }

    /// Applies only the first `count` blocks of a write.
    pub fn apply_start(&mut self, change: &Change, count: usize) {
        if let Change::Write { first, buffer } = change {
            for index in 0..count {
                let block = Block {
                    buffer: Rc::clone(buffer),
                    at: index * BLOCK_BYTES,
                };
                self.set_block(first + index, block);
            }
            if count > 0 {
                self.length = self.length.max(((first + count) * BLOCK_BYTES) as u64);
            }
        }
    }

    /// How many sectors a change writes; 0 if it is none of bytes.
    pub fn sectors(change: &Change) -> usize {
        match change {
            Change::Write { buffer, .. } => buffer.len() / SECTOR_BYTES,
            Change::Length(_) | Change::Allocate(_) => 0,
        }
    }

    /// Applies the sectors of a write that `keeps` says, and its growth of the file if `grows`.
    pub fn apply_sectors(&mut self, change: &Change, keeps: impl Fn(usize) -> bool, grows: bool) {
        let Change::Write { first, buffer } = change else {
            return;
        };
        let count = buffer.len() / BLOCK_BYTES;
        for index in 0..count {
            let sectors = (0..SECTORS).filter(|sector| keeps(index * SECTORS + sector));
            let sectors = sectors.fold(0u8, |bits, sector| bits | 1 << sector);
            let whole = Block {
                buffer: Rc::clone(buffer),
                at: index * BLOCK_BYTES,
            };
            self.mix_block(first + index, whole, sectors);
        }
        if grows {
            self.length = self.length.max(((first + count) * BLOCK_BYTES) as u64);
        }
        self.clear_behind_end();
    }

    /// Applies any of a write's sectors, and the growth of the file or not.
    pub fn apply_torn(&mut self, change: &Change, chance: &Chance) {
        let Change::Write { first, buffer } = change else {
            if chance.coin() {
                self.apply(change);
            }
            return;
        };
        let count = buffer.len() / BLOCK_BYTES;
        // A tear is a missing tail or head, or holes anywhere, or nothing but the new length.
        let cut = chance.below(count * SECTORS + 1);
        let style = chance.below(4);
        for index in 0..count {
            let mut sectors = 0u8;
            for sector in 0..SECTORS {
                let is_before = index * SECTORS + sector < cut;
                let keeps = match style {
                    0 => is_before,
                    1 => !is_before,
                    2 => chance.coin(),
                    _ => false,
                };
                sectors |= u8::from(keeps) << sector;
            }
            let whole = Block {
                buffer: Rc::clone(buffer),
                at: index * BLOCK_BYTES,
            };
            self.mix_block(first + index, whole, sectors);
        }
        let grown = self.length.max(((first + count) * BLOCK_BYTES) as u64);
        if chance.coin() {
            self.length = grown;
        }
        self.clear_behind_end();
    }

    /// Takes the sectors whose bit is set from `new`, the others from what is there.
    fn mix_block(&mut self, index: usize, new: Block, sectors: u8) {
        const _: () = assert!(SECTORS == u8::BITS as usize);
        if sectors == 0 {
            return;
        }
        if sectors == u8::MAX {
            return self.set_block(index, new);
        }
        let mut mixed = match self.block(index) {
            Some(old) => old.bytes().to_vec(),
            None => vec![0; BLOCK_BYTES],
        };
        for sector in (0..SECTORS).filter(|sector| sectors & 1 << sector != 0) {
            let range = sector * SECTOR_BYTES..(sector + 1) * SECTOR_BYTES;
            mixed[range.clone()].copy_from_slice(&new.bytes()[range]);
        }
        self.set_block(index, Block::from_bytes(mixed));
    }

    fn clear_behind_end(&mut self) {
        let whole = (self.length / BLOCK_BYTES as u64) as usize;
        let rest = (self.length % BLOCK_BYTES as u64) as usize;
        let kept = whole + usize::from(rest > 0);
        if self.blocks.len() > kept {
            let dropped = self.blocks.drain(kept..).flatten().count();
            self.allocated -= dropped;
        }
        if rest > 0
            && let Some(block) = self.block(whole)
            && block.bytes()[rest..].iter().any(|&byte| byte != 0)
        {
            let mut bytes = block.bytes().to_vec();
            bytes[rest..].fill(0);
            self.set_block(whole, Block::from_bytes(bytes));
        }
    }

    /// Flips a bit; false if there is none at that byte.
    fn flip(&mut self, position: u64, bit: u8) -> bool {
        let index = (position / BLOCK_BYTES as u64) as usize;
        let Some(block) = self.block(index).filter(|_| position < self.length) else {
            return false;
        };
        let mut bytes = block.bytes().to_vec();
        bytes[(position % BLOCK_BYTES as u64) as usize] ^= 1 << (bit % 8);
        self.set_block(index, Block::from_bytes(bytes));
        true
    }
}

/// A file's contents over its three kinds of state.
#[derive(Default)]
pub(super) struct Contents {
    /// What reads see: all writes that have completed.
    pub visible: Image,
    durable: Image,
    /// Completed and not yet synced, in order of completion, numbered.
    unsynced: VecDeque<(u64, Change)>,
    /// Begun and not yet completed.
    in_flight: Vec<(u64, Change)>,
    numbered: u64,
}

impl Contents {
    /// A file that is as durable as it is visible.
    pub fn durable(image: Image) -> Contents {
        Contents {
            visible: image.clone(),
            durable: image,
            ..Contents::default()
        }
    }

    fn number(&mut self) -> u64 {
        self.numbered += 1;
        self.numbered
    }

    /// A write begins: from now on a crash may leave any of it.
    pub fn begin(&mut self, change: Change) -> u64 {
        let number = self.number();
        self.in_flight.push((number, change));
        number
    }

    /// It is over, one way or the other. `None` if a crash has come between.
    pub fn end(&mut self, number: u64) -> Option<Change> {
        let index = self
            .in_flight
            .iter()
            .position(|(other, _)| *other == number)?;
        Some(self.in_flight.remove(index).1)
    }

    /// A change completes.
    pub fn complete(&mut self, change: Change) {
        self.visible.apply(&change);
        let number = self.number();
        self.unsynced.push_back((number, change));
    }

    /// The first `count` blocks of a write complete.
    pub fn complete_start(&mut self, change: Change, count: usize) {
        self.visible.apply_start(&change, count);
        if let Change::Write { first, buffer } = change
            && count > 0
        {
            let buffer = Rc::new(buffer[..count * BLOCK_BYTES].to_vec());
            let number = self.number();
            self.unsynced
                .push_back((number, Change::Write { first, buffer }));
        }
    }

    /// What a sync that starts now covers.
    pub fn mark(&self) -> u64 {
        self.numbered
    }

    /// How many changes are not durable.
    pub fn unsynced(&self) -> usize {
        self.unsynced.len()
    }

    /// A sync that started at `mark` succeeds.
    pub fn sync(&mut self, mark: u64) {
        while self
            .unsynced
            .front()
            .is_some_and(|&(number, _)| number <= mark)
        {
            let (_, change) = self.unsynced.pop_front().expect("just seen");
            self.durable.apply(&change);
        }
    }

    /// A sync that started at `mark` fails, and the disk forgets what it was to write: any part of
    /// it is durable, the rest never will be, though readers go on to see it all.
    pub fn forget(&mut self, mark: u64, chance: &Chance) {
        while self
            .unsynced
            .front()
            .is_some_and(|&(number, _)| number <= mark)
        {
            let (_, change) = self.unsynced.pop_front().expect("just seen");
            if chance.coin() {
                self.durable.apply_torn(&change, chance);
            }
        }
    }

    /// The process is gone, the machine is not: what was begun completes, in any order.
    pub fn finish_in_flight(&mut self, chance: &Chance) {
        while !self.in_flight.is_empty() {
            let index = chance.below(self.in_flight.len());
            let (_, change) = self.in_flight.remove(index);
            self.complete(change);
        }
    }

    /// The power is gone: chooses what is found afterwards. Returns how many changes were not
    /// found in full.
    pub fn crash(&mut self, is_torn: bool, chance: &Chance) -> usize {
        let mut changes: Vec<Change> = self.unsynced.drain(..).map(|(_, change)| change).collect();
        changes.extend(self.in_flight.drain(..).map(|(_, change)| change));
        if changes.is_empty() {
            self.visible.clone_from(&self.durable);
            return 0;
        }
        let style = chance.below(4);
        let kept_first = chance.below(changes.len() + 1);
        let mut losses = 0;
        for (index, change) in changes.iter().enumerate() {
            let fate = match style {
                0 => Fate::Lost,
                1 => Fate::Kept,
                2 if index < kept_first => Fate::Kept,
                2 if index == kept_first => Fate::Torn,
                2 => Fate::Lost,
                _ => [Fate::Kept, Fate::Lost, Fate::Torn][chance.below(3)],
            };
            match fate {
                Fate::Kept => self.durable.apply(change),
                Fate::Torn if is_torn => self.durable.apply_torn(change, chance),
                Fate::Lost | Fate::Torn => {}
            }
            losses += usize::from(fate != Fate::Kept);
        }
        self.visible.clone_from(&self.durable);
        losses
    }

    /// What is durable, and what a crash may add to it: in order of completion, then what is under
    /// way.
    pub fn choices(&self) -> (Image, Vec<Change>) {
        let pending = self.unsynced.iter().chain(&self.in_flight);
        let changes = pending.map(|(_, change)| change.clone()).collect();
        (self.durable.clone(), changes)
    }

    /// Flips a bit of what is stored; false if there is none at that byte.
    pub fn flip(&mut self, position: u64, bit: u8) -> bool {
        let index = (position / BLOCK_BYTES as u64) as usize;
        let is_same = match (self.visible.block(index), self.durable.block(index)) {
            (Some(seen), Some(kept)) => seen.bytes() == kept.bytes(),
            _ => false,
        };
        if is_same {
            self.durable.flip(position, bit);
        }
        self.visible.flip(position, bit)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Lost,
    Kept,
    Torn,
}
