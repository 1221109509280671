//! CLUSTER SLOTS and CLUSTER SHARDS, as servers answer them. Pure.

use crate::slots::Range;
use crate::value::Value;

/// From CLUSTER SLOTS: `[first, last, [host, port, ...], replicas ...]` for each range. Where the
/// host is empty or null it is the one that was asked, `asked`.
pub fn from_slots(reply: &Value, asked: &str) -> Result<Vec<Range>, String> {
    let ranges = reply.list().iter().map(|entry| {
        let entry = entry.list();
        let node = entry.get(2)?.list();
        let host = node.first()?.text();
        range(
            entry.first()?,
            entry.get(1)?,
            &address(host, node.get(1)?, asked)?,
        )
    });
    whole(ranges.collect(), "CLUSTER SLOTS")
}

/// From CLUSTER SHARDS: a map of `slots` (first and last in turn) and `nodes` for each shard; the
/// master of each is taken.
pub fn from_shards(reply: &Value, asked: &str) -> Result<Vec<Range>, String> {
    let shards = reply.list().iter().map(|shard| {
        let is_master = |node: &&Value| node.get("role").and_then(Value::text) == Some("master");
        let node = shard.get("nodes")?.list().iter().find(is_master)?;
        let host = node
            .get("endpoint")
            .or_else(|| node.get("ip"))
            .and_then(Value::text);
        let address = address(host, node.get("port")?, asked)?;
        let pairs = shard.get("slots")?.list().chunks_exact(2);
        pairs
            .map(|pair| range(&pair[0], &pair[1], &address))
            .collect::<Option<Vec<_>>>()
    });
    let shards: Option<Vec<Vec<Range>>> = shards.collect();
    whole(shards.map(|shards| shards.concat()), "CLUSTER SHARDS")
}

fn whole(ranges: Option<Vec<Range>>, command: &str) -> Result<Vec<Range>, String> {
    match ranges {
        Some(ranges) if !ranges.is_empty() => Ok(ranges),
        _ => Err(format!(
            "{command} does not tell which nodes serve the slots"
        )),
    }
}

fn range(first: &Value, last: &Value, address: &str) -> Option<Range> {
    Some(Range {
        first: first.integer()?.try_into().ok()?,
        last: last.integer()?.try_into().ok()?,
        address: address.to_owned(),
    })
}

fn address(host: Option<&str>, port: &Value, asked: &str) -> Option<String> {
    let port: u16 = port.integer()?.try_into().ok()?;
    let host = host
        .filter(|host| !host.is_empty() && *host != "?")
        .unwrap_or(asked);
    Some(format!("{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Value {
        Value::Text(text.into())
    }

    fn list<const N: usize>(values: [Value; N]) -> Value {
        Value::List(values.to_vec())
    }

    #[test]
    fn both_commands_tell_the_same_map() {
        let node = |host, port| list([host, Value::Integer(port), text("id"), list([])]);
        let slots = list([
            list([
                Value::Integer(0),
                Value::Integer(99),
                node(text("10.0.0.1"), 7000),
                node(text("replica"), 1),
            ]),
            list([
                Value::Integer(100),
                Value::Integer(16383),
                node(Value::Null, 7001),
            ]),
        ]);
        let shard = |first, last, host: &str, port| {
            let replica = list([
                text("role"),
                text("replica"),
                text("port"),
                Value::Integer(1),
            ]);
            let node = [
                text("endpoint"),
                text(host),
                text("port"),
                Value::Integer(port),
                text("role"),
                text("master"),
            ];
            let slots = list([Value::Integer(first), Value::Integer(last)]);
            list([
                text("slots"),
                slots,
                text("nodes"),
                list([replica, list(node)]),
            ])
        };
        let shards = list([shard(0, 99, "10.0.0.1", 7000), shard(100, 16383, "", 7001)]);
        let expected =
            [(0, 99, "10.0.0.1:7000"), (100, 16383, "seed:7001")].map(|(first, last, address)| {
                Range {
                    first,
                    last,
                    address: address.into(),
                }
            });
        assert_eq!(from_slots(&slots, "seed").unwrap(), expected);
        assert_eq!(from_shards(&shards, "seed").unwrap(), expected);
    }

    #[test]
    fn answers_without_a_map_are_refused() {
        for wrong in [
            Value::Null,
            list([]),
            list([text("x")]),
            list([list([
                Value::Integer(-1),
                Value::Integer(5),
                list([text("a"), Value::Integer(1)]),
            ])]),
            list([list([
                Value::Integer(0),
                Value::Integer(5),
                list([text("a"), Value::Integer(70_000)]),
            ])]),
        ] {
            assert!(from_slots(&wrong, "seed").is_err(), "{wrong:?}");
            assert!(from_shards(&wrong, "seed").is_err(), "{wrong:?}");
        }
    }
}
