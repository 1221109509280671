//! What the tests of membership share.

use crate::cluster::map::{Node, NodeId, State, Uuid};

/// Some node.
pub fn node(number: u16) -> Node {
    Node {
        id: NodeId(number),
        uuid: Uuid(u128::from(number) << 64 | 3),
        host: format!("10.0.0.{number}"),
        port: 6379,
        core_port: 16_379,
        peer_port: 7379,
        http_port: 8379,
        rack: String::new(),
        weight: 100,
        cores: 2,
        state: State::Alive,
    }
}
