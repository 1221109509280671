//! Rows of the command table: strings.
//!
//! Arity, marks, key positions and tips are those of Redis 7.0, by which clients route and check.

use super::*;
use crate::protocol::command::parse;

/// Sorted by name.
pub(super) const ROWS: &[Spec] = &[
    spec("append", 3, WRITE | DENYOOM | FAST | STRING, parse::append)
        .one_key(&["RW", "insert"])
        .doc(Group::String, "2.0.0", "O(1)")
        .usage(
            "key value",
            "Adds bytes at the end of a value, which is empty at first.",
        ),
    spec("decr", 2, WRITE | DENYOOM | FAST | STRING, parse::decr)
        .one_key(&["RW", "access", "update"])
        .doc(Group::String, "1.0.0", "O(1)")
        .usage("key", "Takes one from an integer, which is 0 at first."),
    spec("decrby", 3, WRITE | DENYOOM | FAST | STRING, parse::decr_by)
        .one_key(&["RW", "access", "update"])
        .doc(Group::String, "1.0.0", "O(1)")
        .usage(
            "key decrement",
            "Takes a number from an integer, which is 0 at first.",
        ),
    spec("get", 2, READONLY | FAST | STRING, parse::get)
        .one_key(&["RO", "access"])
        .doc(Group::String, "1.0.0", "O(1)")
        .usage("key", "Returns the value of a key."),
    spec("getdel", 2, WRITE | FAST | STRING, parse::get_del)
        .one_key(&["RW", "access", "delete"])
        .doc(Group::String, "6.2.0", "O(1)")
        .usage("key", "Returns the value of a key and deletes the key."),
    spec("getex", -2, WRITE | FAST | STRING, parse::get_ex)
        .one_key(&["RW", "access", "update"])
        .doc(Group::String, "6.2.0", "O(1)")
        .usage(
            "key [EX seconds|PX milliseconds|EXAT unix-time-seconds|\
             PXAT unix-time-milliseconds|PERSIST]",
            "Returns the value of a key and sets or removes its expiry.",
        ),
    spec("getrange", 4, READONLY | STRING, parse::get_range)
        .one_key(&["RO", "access"])
        .doc(Group::String, "2.4.0", "O(N) over the bytes returned")
        .usage(
            "key start end",
            "Returns the bytes of a value between two offsets.",
        ),
    spec("getset", 3, WRITE | DENYOOM | FAST | STRING, parse::get_set)
        .one_key(&["RW", "access", "update"])
        .doc(Group::String, "1.0.0", "O(1)")
        .usage("key value", "Sets a key and returns its former value.")
        .deprecated("6.2.0", "`SET` with its option `GET`"),
    spec("incr", 2, WRITE | DENYOOM | FAST | STRING, parse::incr)
        .one_key(&["RW", "access", "update"])
        .doc(Group::String, "1.0.0", "O(1)")
        .usage("key", "Adds one to an integer, which is 0 at first."),
    spec("incrby", 3, WRITE | DENYOOM | FAST | STRING, parse::incr_by)
        .one_key(&["RW", "access", "update"])
        .doc(Group::String, "1.0.0", "O(1)")
        .usage(
            "key increment",
            "Adds a number to an integer, which is 0 at first.",
        ),
    spec(
        "incrbyfloat",
        3,
        WRITE | DENYOOM | FAST | STRING,
        parse::incr_by_float,
    )
    .one_key(&["RW", "access", "update"])
    .doc(Group::String, "2.6.0", "O(1)")
    .usage(
        "key decimal",
        "Adds to a decimal number, which is 0 at first.",
    ),
    spec("mget", -2, READONLY | FAST | STRING, parse::mget)
        .all_keys(1, &["RO", "access"])
        .tips(&["request_policy:multi_shard"])
        .doc(Group::String, "1.0.0", "O(N) over the keys given")
        .usage("key...", "Returns the values of several keys."),
    spec("mset", -3, WRITE | DENYOOM | STRING, parse::mset)
        .all_keys(2, &["OW", "update"])
        .tips(&[
            "request_policy:multi_shard",
            "response_policy:all_succeeded",
        ])
        .doc(Group::String, "1.0.1", "O(N) over the keys given")
        .usage("(key value)...", "Sets several keys, each as SET would."),
    spec("psetex", 4, WRITE | DENYOOM | STRING, parse::psetex)
        .one_key(&["OW", "update"])
        .doc(Group::String, "2.6.0", "O(1)")
        .usage(
            "key milliseconds value",
            "Sets a key with an expiry in milliseconds.",
        ),
    spec("set", -3, WRITE | DENYOOM | STRING, parse::set)
        .one_key(&["RW", "access", "update", "variable_flags"])
        .doc(Group::String, "1.0.0", "O(1)")
        .usage(
            "key value [NX|XX] [GET] [EX seconds|PX milliseconds|EXAT unix-time-seconds|\
             PXAT unix-time-milliseconds|KEEPTTL]",
            "Sets a key, if wished on a condition or with an expiry.",
        ),
    spec("setex", 4, WRITE | DENYOOM | STRING, parse::setex)
        .one_key(&["OW", "update"])
        .doc(Group::String, "2.0.0", "O(1)")
        .usage("key seconds value", "Sets a key with an expiry in seconds."),
    spec("setnx", 3, WRITE | DENYOOM | FAST | STRING, parse::setnx)
        .one_key(&["OW", "insert"])
        .doc(Group::String, "1.0.0", "O(1)")
        .usage("key value", "Sets a key that does not exist."),
    spec("setrange", 4, WRITE | DENYOOM | STRING, parse::set_range)
        .one_key(&["RW", "update"])
        .doc(Group::String, "2.2.0", "O(N) over the length of the value")
        .usage(
            "key offset value",
            "Overwrites part of a value, padding with zero bytes up to it.",
        ),
    spec("strlen", 2, READONLY | FAST | STRING, parse::strlen)
        .one_key(&["RO"])
        .doc(Group::String, "2.2.0", "O(1)")
        .usage("key", "Returns the length of a value."),
    spec("substr", 4, READONLY | STRING, parse::get_range)
        .one_key(&["RO", "access"])
        .doc(Group::String, "1.0.0", "O(N) over the bytes returned")
        .usage(
            "key start end",
            "Returns the bytes of a value between two offsets.",
        )
        .deprecated("2.0.0", "`GETRANGE`"),
];
