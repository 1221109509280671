//! The KV commands: their arguments as an operation (`kv`), and its outcome as a reply. Pure.
//!
//! A reply is a map, or null where a key that is read holds nothing.

use super::Shard;
use super::dispatch::KEY_TOO_LARGE;
use super::evaluate::TOO_LONG;
use super::kv::{Condition, Deed, Operation, Outcome, Part, Versions};
use crate::config::Config;
use crate::protocol::OwnedArgs;
use crate::protocol::command::{KvCommand, KvOp};
use crate::protocol::reply::Reply;
use crate::types::Level;

/// The levels of a connection's commands, where they name none.
#[derive(Clone, Copy, Debug, Default)]
pub struct Levels {
    /// Of reads.
    pub read: Level,
    /// Of writes.
    pub write: Level,
}

impl Levels {
    /// Those that are configured.
    pub fn configured(config: &Config) -> Levels {
        Levels {
            read: config.read_consistency,
            write: config.write_consistency,
        }
    }

    /// The level of `command`.
    pub fn of(self, command: &KvCommand<'_>) -> Level {
        let own = match command.op.is_write() {
            true => self.write,
            false => self.read,
        };
        command.level.unwrap_or(own)
    }
}

impl Shard {
    /// Why `command` is too large, if it is.
    pub(super) fn refuse_kv(&self, command: &KvCommand<'_>) -> Option<&'static str> {
        let limits = &self.config.limits;
        if command.key.len() as u64 > limits.key_max.0 {
            return Some(KEY_TOO_LARGE);
        }
        match command.op {
            KvOp::Put { value, .. } if value.len() as u64 > limits.value_max.0 => Some(TOO_LONG),
            _ => None,
        }
    }
}

/// What `command` asks for.
pub fn operation(command: &KvCommand<'_>, level: Level) -> Operation {
    let deed = match command.op {
        KvOp::Get => Deed::Get(Part::Value),
        KvOp::Delete => Deed::Delete(Condition::default()),
        KvOp::Put {
            value,
            ttl_s,
            if_match,
        } => Deed::Put {
            value: value.to_vec(),
            ttl_ms: ttl_s.map(|seconds| seconds * 1000),
            condition: Condition {
                if_match: if_match.map(|version| Versions::These(vec![version])),
                if_none_match: None,
            },
        },
    };
    Operation {
        key: command.key.to_vec(),
        level,
        deed,
    }
}

/// `command` as a request that names its level: for a core that does not know the connection.
pub fn request(command: &KvCommand<'_>, level: Level) -> OwnedArgs {
    let mut args = OwnedArgs::new();
    let mut push = |words: &[&[u8]]| words.iter().for_each(|word| args.push(word));
    match command.op {
        KvOp::Get => push(&[b"KV.GET", command.key]),
        KvOp::Delete => push(&[b"KV.DEL", command.key]),
        KvOp::Put {
            value,
            ttl_s,
            if_match,
        } => {
            push(&[b"KV.PUT", command.key, value]);
            if let Some(seconds) = ttl_s {
                push(&[b"TTL", seconds.to_string().as_bytes()]);
            }
            if let Some(version) = if_match {
                push(&[b"IFMATCH", version.to_string().as_bytes()]);
            }
        }
    }
    push(&[b"CONSISTENCY", level.name().as_bytes()]);
    args
}

/// Writes what became of it.
pub fn reply(outcome: &Outcome, reply: &mut Reply<'_>) {
    let text = |reply: &mut Reply<'_>, key: &str, value: &str| {
        reply.bulk(key.as_bytes());
        reply.bulk(value.as_bytes());
    };
    match outcome {
        Outcome::Found(entry) => {
            reply.map(3);
            reply.bulk(b"value");
            reply.bulk(&entry.value);
            text(reply, "version", &entry.version.to_string());
            reply.bulk(b"last_modified");
            reply.integer(entry.version.millis() as i64);
        }
        Outcome::NotFound => reply.null(),
        Outcome::NothingDeleted => {
            reply.map(1);
            text(reply, "status", "not_found");
        }
        Outcome::Stored(written) | Outcome::Deleted(written) => {
            let status = match outcome {
                Outcome::Stored(_) => "stored",
                _ => "deleted",
            };
            reply.map(3);
            text(reply, "status", status);
            text(reply, "version", &written.version.to_string());
            reply.bulk(b"replicas_written");
            reply.integer(i64::from(written.replicas));
        }
        Outcome::PreconditionFailed(current) => {
            reply.map(2);
            text(reply, "status", "precondition_failed");
            reply.bulk(b"version");
            match current {
                Some(version) => reply.bulk(version.to_string().as_bytes()),
                None => reply.null(),
            }
        }
    }
}
