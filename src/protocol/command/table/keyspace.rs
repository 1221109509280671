//! Rows of the command table: keys, whatever they hold, and the store as a whole.
//!
//! Arity, marks, key positions and tips are those of Redis 7.0, by which clients route and check.

use super::*;
use crate::protocol::command::{parse, parse_session};

/// Sorted by name.
pub(super) const ROWS: &[Spec] = &[
    spec("dbsize", 1, READONLY | FAST | KEYSPACE, parse::db_size)
        .tips(&["request_policy:all_shards", "response_policy:agg_sum"])
        .doc(Group::Server, "1.0.0", "O(1)")
        .usage("", "Counts the keys."),
    spec("del", -2, WRITE | KEYSPACE, parse::del)
        .all_keys(1, &["RM", "delete"])
        .tips(&["request_policy:multi_shard", "response_policy:agg_sum"])
        .doc(Group::Generic, "1.0.0", "O(N) over the keys given")
        .usage("key...", "Deletes keys and counts those that existed."),
    spec("exists", -2, READONLY | FAST | KEYSPACE, parse::exists)
        .all_keys(1, &["RO"])
        .tips(&["request_policy:multi_shard", "response_policy:agg_sum"])
        .doc(Group::Generic, "1.0.0", "O(N) over the keys given")
        .usage("key...", "Counts how many of the keys named exist."),
    spec("expire", -3, WRITE | FAST | KEYSPACE, parse::expire)
        .one_key(&["RW", "update"])
        .doc(Group::Generic, "1.0.0", "O(1)")
        .usage(
            "key seconds [NX|XX|GT|LT]",
            "Lets a key expire after some seconds.",
        ),
    spec("expireat", -3, WRITE | FAST | KEYSPACE, parse::expire_at)
        .one_key(&["RW", "update"])
        .doc(Group::Generic, "1.2.0", "O(1)")
        .usage(
            "key unix-time-seconds [NX|XX|GT|LT]",
            "Lets a key expire at a Unix time.",
        ),
    spec(
        "expiretime",
        2,
        READONLY | FAST | KEYSPACE,
        parse::expire_time,
    )
    .one_key(&["RO", "access"])
    .doc(Group::Generic, "7.0.0", "O(1)")
    .usage("key", "Returns the Unix time at which a key expires."),
    spec("flushall", -1, WRITE | KEYSPACE | DANGEROUS, parse::flush)
        .tips(&["request_policy:all_shards", "response_policy:all_succeeded"])
        .doc(Group::Server, "1.0.0", "O(N) over all keys")
        .usage("[ASYNC|SYNC]", "Deletes every key."),
    spec("flushdb", -1, WRITE | KEYSPACE | DANGEROUS, parse::flush)
        .tips(&["request_policy:all_shards", "response_policy:all_succeeded"])
        .doc(Group::Server, "1.0.0", "O(N) over all keys")
        .usage("[ASYNC|SYNC]", "Deletes every key of the database."),
    spec("keys", 2, READONLY | KEYSPACE | DANGEROUS, parse::keys)
        .tips(&["request_policy:all_shards", "nondeterministic_output_order"])
        .doc(Group::Generic, "1.0.0", "O(N) over all keys")
        .usage("pattern", "Returns the keys that match a pattern."),
    spec("memory", -2, NO_MARKS, parse_session::container)
        .doc(Group::Server, "4.0.0", "That of the subcommand")
        .usage("", "Questions about memory.")
        .subcommands(MEMORY),
    spec("object", -2, NO_MARKS, parse_session::container)
        .doc(Group::Generic, "2.2.3", "That of the subcommand")
        .usage("", "Questions about how a value is held.")
        .subcommands(OBJECT),
    spec("persist", 2, WRITE | FAST | KEYSPACE, parse::persist)
        .one_key(&["RW", "update"])
        .doc(Group::Generic, "2.2.0", "O(1)")
        .usage("key", "Removes the expiry of a key."),
    spec("pexpire", -3, WRITE | FAST | KEYSPACE, parse::pexpire)
        .one_key(&["RW", "update"])
        .doc(Group::Generic, "2.6.0", "O(1)")
        .usage(
            "key milliseconds [NX|XX|GT|LT]",
            "Lets a key expire after some milliseconds.",
        ),
    spec("pexpireat", -3, WRITE | FAST | KEYSPACE, parse::pexpire_at)
        .one_key(&["RW", "update"])
        .doc(Group::Generic, "2.6.0", "O(1)")
        .usage(
            "key unix-time-milliseconds [NX|XX|GT|LT]",
            "Lets a key expire at a Unix time in milliseconds.",
        ),
    spec(
        "pexpiretime",
        2,
        READONLY | FAST | KEYSPACE,
        parse::pexpire_time,
    )
    .one_key(&["RO", "access"])
    .doc(Group::Generic, "7.0.0", "O(1)")
    .usage(
        "key",
        "Returns the Unix time in milliseconds at which a key expires.",
    ),
    spec("pttl", 2, READONLY | FAST | KEYSPACE, parse::pttl)
        .one_key(&["RO", "access"])
        .tips(&["nondeterministic_output"])
        .doc(Group::Generic, "2.6.0", "O(1)")
        .usage("key", "Returns the milliseconds left until a key expires."),
    spec("randomkey", 1, READONLY | KEYSPACE, parse::random_key)
        .tips(&["request_policy:all_shards", "nondeterministic_output"])
        .doc(Group::Generic, "1.0.0", "O(1)")
        .usage("", "Returns some key."),
    spec("scan", -2, READONLY | KEYSPACE, parse::scan)
        .tips(&["nondeterministic_output", "request_policy:special"])
        .doc(Group::Generic, "2.8.0", "O(1) a call, O(N) for all of it")
        .usage(
            "cursor [MATCH pattern] [COUNT count] [TYPE type]",
            "Walks through the keys, a page for each call.",
        ),
    spec("touch", -2, READONLY | FAST | KEYSPACE, parse::touch)
        .all_keys(1, &["RO"])
        .tips(&["request_policy:multi_shard", "response_policy:agg_sum"])
        .doc(Group::Generic, "3.2.1", "O(N) over the keys given")
        .usage(
            "key...",
            "Counts how many of the keys named exist, as an access to them.",
        ),
    spec("ttl", 2, READONLY | FAST | KEYSPACE, parse::ttl)
        .one_key(&["RO", "access"])
        .tips(&["nondeterministic_output"])
        .doc(Group::Generic, "1.0.0", "O(1)")
        .usage("key", "Returns the seconds left until a key expires."),
    spec("type", 2, READONLY | FAST | KEYSPACE, parse::kind)
        .one_key(&["RO"])
        .doc(Group::Generic, "1.0.0", "O(1)")
        .usage("key", "Returns the type of a value."),
    spec("unlink", -2, WRITE | FAST | KEYSPACE, parse::del)
        .all_keys(1, &["RM", "delete"])
        .tips(&["request_policy:multi_shard", "response_policy:agg_sum"])
        .doc(Group::Generic, "4.0.0", "O(N) over the keys given")
        .usage("key...", "Deletes keys and counts those that existed."),
];

const MEMORY: &[Spec] = &[
    spec("memory|help", 2, LOADING | STALE, parse_session::help)
        .doc(Group::Server, "4.0.0", "O(1)")
        .usage("", "Prints this text."),
    spec("memory|usage", -3, READONLY, parse::memory_usage)
        .second_key(&["RO"])
        .doc(Group::Server, "4.0.0", "O(1)")
        .usage(
            "key [SAMPLES count]",
            "Estimates the bytes that a key takes.",
        ),
];

const OBJECT: &[Spec] = &[
    spec(
        "object|encoding",
        3,
        READONLY | KEYSPACE,
        parse::object_encoding,
    )
    .second_key(&["RO"])
    .tips(&["nondeterministic_output"])
    .doc(Group::Generic, "2.2.3", "O(1)")
    .usage("key", "Returns how the value would be held by Redis."),
    spec(
        "object|help",
        2,
        LOADING | STALE | KEYSPACE,
        parse_session::help,
    )
    .doc(Group::Generic, "6.2.0", "O(1)")
    .usage("", "Prints this text."),
];
