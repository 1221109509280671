//! CONFIG GET and its siblings: our settings, under the names by which Redis's tools ask for them.

use super::Shard;
use crate::cluster::face::Port;
use crate::config::{Config, DurabilityName};
use crate::protocol::command::Config as Question;
use crate::protocol::glob;
use crate::protocol::reply::Reply;

type Value = fn(&Config, Port) -> String;

/// Names in Redis, and what our configuration says about each.
const SETTINGS: &[(&str, Value)] = &[
    ("appendfsync", |config, _| {
        let name = match config.durability {
            DurabilityName::Sync => "always",
            DurabilityName::Periodic => "everysec",
            DurabilityName::None => "no",
        };
        name.to_owned()
    }),
    ("appendonly", |config, _| {
        if config.durability == DurabilityName::None {
            "no"
        } else {
            "yes"
        }
        .to_owned()
    }),
    ("bind", |config, _| config.bind.to_string()),
    ("cluster-enabled", |_, port| {
        match port {
            Port::Shared => "no",
            Port::Core => "yes",
        }
        .to_owned()
    }),
    ("databases", |_, _| "1".to_owned()),
    ("dir", |config, _| config.dir.display().to_string()),
    ("maxclients", |config, _| {
        config.limits.clients_max.to_string()
    }),
    ("maxmemory", |_, _| "0".to_owned()),
    ("maxmemory-policy", |_, _| "noeviction".to_owned()),
    ("port", |config, _| config.port.to_string()),
    ("proto-max-bulk-len", |config, _| {
        config.limits.value_max.0.to_string()
    }),
    ("replica-read-only", |_, _| "yes".to_owned()),
    ("save", |_, _| String::new()),
    ("slave-read-only", |_, _| "yes".to_owned()),
    ("timeout", |config, _| {
        config.limits.idle_timeout_s.to_string()
    }),
];

impl Shard {
    /// Answers; true if the statistics are to be counted from zero.
    pub(super) fn configure(
        &self,
        question: &Question<'_>,
        port: Port,
        reply: &mut Reply<'_>,
    ) -> bool {
        match question {
            Question::Get(patterns) => {
                let asked = |name: &str| {
                    let name = name.as_bytes();
                    patterns
                        .iter()
                        .any(|pattern| glob::matches(&pattern.to_ascii_lowercase(), name))
                };
                let found: Vec<_> = SETTINGS.iter().filter(|(name, _)| asked(name)).collect();
                reply.map(found.len());
                for (name, value) in found {
                    reply.bulk(name.as_bytes());
                    reply.bulk(value(&self.config, port).as_bytes());
                }
            }
            Question::Set(_) => reply
                .error("ERR CONFIG SET is not possible: change config.toml and restart the node"),
            Question::Rewrite => reply.error("ERR The server is running without a config file"),
            Question::ResetStat => {
                reply.ok();
                return true;
            }
        }
        false
    }
}
