//! Redis Cluster's slots: which node a key belongs to. Pure.

use crc::{CRC_16_XMODEM, Crc, Table};

pub const SLOTS: usize = 16_384;
/// Nodes that a client holds connections to.
pub const NODES_MAX: usize = 1024;

static CRC: Crc<u16, Table<16>> = Crc::<u16, Table<16>>::new(&CRC_16_XMODEM);

/// The slot of a key: of its part between the first `{` and the next `}`, if there is one.
pub fn slot_of(key: &[u8]) -> u16 {
    let tag = key.iter().position(|byte| *byte == b'{').and_then(|open| {
        let rest = &key[open + 1..];
        let close = rest.iter().position(|byte| *byte == b'}')?;
        (close > 0).then(|| &rest[..close])
    });
    CRC.checksum(tag.unwrap_or(key)) % SLOTS as u16
}

/// A range of slots and the address of the node that serves it, as a server tells them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    pub first: u16,
    pub last: u16,
    pub address: String,
}

/// Which node serves each slot.
#[derive(Clone, Debug)]
pub struct SlotMap {
    nodes: Vec<String>,
    of_slot: Vec<u16>,
}

impl SlotMap {
    /// One node that serves everything.
    pub fn single(address: String) -> SlotMap {
        SlotMap {
            nodes: vec![address],
            of_slot: vec![0; SLOTS],
        }
    }

    /// Nodes of which any serves everything: `node_of` says nothing of them.
    pub fn alike(addresses: Vec<String>) -> SlotMap {
        assert!(!addresses.is_empty() && addresses.len() <= NODES_MAX);
        SlotMap {
            nodes: addresses,
            of_slot: vec![0; SLOTS],
        }
    }

    /// From what the server says; an error where that leaves a slot out.
    pub fn from_ranges(ranges: &[Range]) -> Result<SlotMap, String> {
        const NOBODY: u16 = u16::MAX;
        let mut map = SlotMap {
            nodes: Vec::new(),
            of_slot: vec![NOBODY; SLOTS],
        };
        for range in ranges {
            if range.first > range.last || usize::from(range.last) >= SLOTS {
                return Err(format!(
                    "no range of slots: {} to {}",
                    range.first, range.last
                ));
            }
            let node = map
                .node_of_address(&range.address)
                .ok_or("too many nodes")?;
            map.of_slot[usize::from(range.first)..=usize::from(range.last)].fill(node);
        }
        match map.of_slot.iter().position(|node| *node == NOBODY) {
            Some(slot) => Err(format!("no node serves slot {slot}")),
            None => Ok(map),
        }
    }

    pub fn nodes(&self) -> &[String] {
        &self.nodes
    }

    pub fn node_of(&self, key: &[u8]) -> u16 {
        if self.nodes.len() == 1 {
            return 0;
        }
        self.of_slot[usize::from(slot_of(key))]
    }

    /// Learns from an error `MOVED slot address`: the node to ask instead. `None` if it is none.
    pub fn learn(&mut self, message: &str) -> Option<u16> {
        let mut words = message.strip_prefix("MOVED ")?.split(' ');
        let slot: usize = words.next()?.parse().ok().filter(|slot| *slot < SLOTS)?;
        let address = words.next()?;
        let (host, port) = address.rsplit_once(':')?;
        port.parse::<u16>().ok()?;
        let node = match host.is_empty() {
            true => return None,
            false => self.node_of_address(address)?,
        };
        self.of_slot[slot] = node;
        Some(node)
    }

    fn node_of_address(&mut self, address: &str) -> Option<u16> {
        let known = self.nodes.iter().position(|node| node == address);
        let node = match known {
            Some(node) => node,
            None if self.nodes.len() == NODES_MAX => return None,
            None => {
                self.nodes.push(address.to_owned());
                self.nodes.len() - 1
            }
        };
        Some(node as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u16, last: u16, address: &str) -> Range {
        Range {
            first,
            last,
            address: address.to_owned(),
        }
    }

    /// The examples of the Redis Cluster specification: another slot is another node.
    #[test]
    fn slots_are_those_of_redis_cluster() {
        assert_eq!(CRC.checksum(b"123456789"), 0x31C3);
        assert_eq!(slot_of(b"foo"), 12182);
        assert_eq!(slot_of(b"{user1000}.following"), slot_of(b"user1000"));
        assert_eq!(slot_of(b"foo{}{bar}"), CRC.checksum(b"foo{}{bar}") % 16384);
        assert_eq!(slot_of(b"foo{{bar}}zap"), slot_of(b"{bar"));
        assert_eq!(slot_of(b"foo{bar}{zap}"), slot_of(b"bar"));
    }

    #[test]
    fn keys_go_to_the_node_that_has_their_slot() {
        let map =
            SlotMap::from_ranges(&[range(0, 8191, "a:1"), range(8192, 16383, "b:2")]).unwrap();
        assert_eq!(map.nodes(), ["a:1", "b:2"]);
        assert_eq!(map.node_of(b"foo"), 1);
        assert_eq!(
            map.node_of(b"{user1000}.x"),
            u16::from(slot_of(b"user1000") > 8191)
        );
    }

    #[test]
    fn maps_with_holes_and_nonsense_are_refused() {
        assert!(
            SlotMap::from_ranges(&[range(0, 100, "a:1")])
                .unwrap_err()
                .contains("slot 101")
        );
        assert!(SlotMap::from_ranges(&[range(0, 16384, "a:1")]).is_err());
        assert!(SlotMap::from_ranges(&[range(9, 8, "a:1")]).is_err());
    }

    /// Without learning, each request for a slot that moved would be asked twice for ever.
    #[test]
    fn a_redirection_is_learnt_and_nonsense_is_not() {
        let mut map =
            SlotMap::from_ranges(&[range(0, 8191, "a:1"), range(8192, 16383, "b:2")]).unwrap();
        assert_eq!(map.learn("MOVED 12182 a:1"), Some(0));
        assert_eq!(map.node_of(b"foo"), 0);
        assert_eq!(map.learn("MOVED 12182 c:3"), Some(2));
        assert_eq!(map.nodes().len(), 3);
        for wrong in [
            "ERR",
            "MOVED",
            "MOVED x a:1",
            "MOVED 16384 a:1",
            "MOVED 1 a",
            "MOVED 1 :1",
            "MOVED 1 a:x",
        ] {
            assert_eq!(map.learn(wrong), None, "{wrong}");
        }
        for port in 0..2 * NODES_MAX {
            map.learn(&format!("MOVED 1 d:{port}"));
        }
        assert_eq!(map.nodes().len(), NODES_MAX);
    }
}
