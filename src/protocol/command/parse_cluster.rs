//! The arguments of CLUSTER and of the commands that only cluster clients send, given their types.

use super::parse::{Call, Parsed, session, store};
use super::*;
use crate::types::SLOTS;

pub(super) fn accepted(_: Call<'_>) -> Parsed<'_> {
    session(Session::Accepted)
}

pub(super) fn readonly(_: Call<'_>) -> Parsed<'_> {
    session(Session::ReadCopies(true))
}

pub(super) fn readwrite(_: Call<'_>) -> Parsed<'_> {
    session(Session::ReadCopies(false))
}

fn cluster(command: Cluster<'_>) -> Parsed<'_> {
    session(Session::Cluster(command))
}

pub(super) fn slots(_: Call<'_>) -> Parsed<'_> {
    cluster(Cluster::Slots)
}

pub(super) fn shards(_: Call<'_>) -> Parsed<'_> {
    cluster(Cluster::Shards)
}

pub(super) fn nodes(_: Call<'_>) -> Parsed<'_> {
    cluster(Cluster::Nodes)
}

pub(super) fn info(_: Call<'_>) -> Parsed<'_> {
    cluster(Cluster::Info)
}

pub(super) fn my_id(_: Call<'_>) -> Parsed<'_> {
    cluster(Cluster::MyId)
}

pub(super) fn replicas(call: Call<'_>) -> Parsed<'_> {
    cluster(Cluster::Replicas(call.word(2)))
}

pub(super) fn links(_: Call<'_>) -> Parsed<'_> {
    cluster(Cluster::Links)
}

pub(super) fn key_slot(call: Call<'_>) -> Parsed<'_> {
    cluster(Cluster::KeySlot(call.word(2)))
}

pub(super) fn count(call: Call<'_>) -> Parsed<'_> {
    let slot = slot(call.integer(2)?).ok_or(CommandError::Text("ERR Invalid slot"))?;
    store(StoreCommand::CountInSlot(slot))
}

pub(super) fn keys(call: Call<'_>) -> Parsed<'_> {
    let (number, count) = (call.integer(2)?, call.integer(3)?);
    let (Some(slot), Ok(count)) = (slot(number), u64::try_from(count)) else {
        return Err(CommandError::Text("ERR Invalid slot or number of keys"));
    };
    store(StoreCommand::KeysInSlot { slot, count })
}

fn slot(number: i64) -> Option<Slot> {
    let slot = u16::try_from(number).ok().map(Slot);
    slot.filter(|slot| u32::from(slot.0) < SLOTS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::OwnedArgs;
    use crate::protocol::command::parse;

    /// What `line` is parsed to, as its debug form; errors as their text.
    fn read(line: &str) -> String {
        let mut args = OwnedArgs::new();
        line.split(' ').for_each(|word| args.push(word.as_bytes()));
        match parse(args.view()) {
            Ok(Command::Session(command)) => format!("{command:?}"),
            Ok(Command::Store(command)) => format!("{command:?}"),
            Ok(other) => panic!("{line}: {other:?}"),
            Err(error) => format!("{error:?}"),
        }
    }

    #[test]
    fn slots_are_numbers_below_16384() {
        let count = |word: &str| read(&format!("cluster countkeysinslot {word}"));
        assert_eq!(count("16383"), "CountInSlot(Slot(16383))");
        for word in ["16384", "65536", "-1", "9223372036854775807"] {
            assert_eq!(count(word), "ERR Invalid slot");
        }
        assert_eq!(count("x"), "ERR value is not an integer or out of range");
        assert_eq!(
            read("cluster getkeysinslot 7 0"),
            "KeysInSlot { slot: Slot(7), count: 0 }"
        );
        for words in ["7 -1", "16384 1"] {
            let said = read(&format!("cluster getkeysinslot {words}"));
            assert_eq!(said, "ERR Invalid slot or number of keys");
        }
    }

    #[test]
    fn what_would_change_a_cluster_is_unknown() {
        for name in ["addslots", "failover", "meet", "setslot", "forget", "foo"] {
            let said = read(&format!("cluster {name} 1"));
            let unknown = format!("ERR unknown subcommand '{name}'. Try CLUSTER HELP.");
            assert_eq!(said, unknown);
        }
        assert_eq!(
            read("cluster slots x"),
            "ERR wrong number of arguments for 'cluster|slots' command"
        );
        for (line, read_as) in [
            ("readonly", "ReadCopies(true)"),
            ("READWRITE", "ReadCopies(false)"),
            ("asking", "Accepted"),
            ("cluster replicas 0", "Cluster(Replicas([48]))"),
        ] {
            assert_eq!(read(line), read_as);
        }
    }
}
