//! Rows of the command table: keys with versions and levels of consistency, which Redis does not
//! have.

use super::*;
use crate::protocol::command::parse_kv;

/// Sorted by name.
pub(super) const ROWS: &[Spec] = &[
    spec(
        "kv.consistency",
        -1,
        LOADING | STALE | FAST | CONNECTION,
        parse_kv::consistency,
    )
    .doc(Group::Connection, "0.1.0", "O(1)")
    .usage(
        "[READ level] [WRITE level]",
        "Sets the levels of this connection's KV commands, or tells them.",
    ),
    spec(
        "kv.del",
        -2,
        WRITE | NO_MULTI | FAST | STRING,
        parse_kv::del,
    )
    .one_key(&["RW", "delete"])
    .doc(Group::String, "0.1.0", "O(1)")
    .usage(
        "key [CONSISTENCY level]",
        "Deletes a key and tells whether it was there.",
    ),
    spec(
        "kv.get",
        -2,
        READONLY | NO_MULTI | FAST | STRING,
        parse_kv::get,
    )
    .one_key(&["RO", "access"])
    .doc(Group::String, "0.1.0", "O(1)")
    .usage(
        "key [CONSISTENCY level]",
        "Returns the value of a key, its version, and when it was written.",
    ),
    spec(
        "kv.put",
        -3,
        WRITE | DENYOOM | NO_MULTI | FAST | STRING,
        parse_kv::put,
    )
    .one_key(&["RW", "update"])
    .doc(Group::String, "0.1.0", "O(1)")
    .usage(
        "key value [TTL seconds] [CONSISTENCY level] [IFMATCH version]",
        "Sets a key, if it has a certain version where one is given, and returns its new version.",
    ),
];
