//! Rows of the command table: connections, transactions and the server itself.
//!
//! Arity, marks, key positions and tips are those of Redis 7.0, by which clients route and check.

use super::*;
use crate::protocol::command::parse_session;

/// Sorted by name.
pub(super) const ROWS: &[Spec] = &[
    spec(
        "auth",
        -2,
        NOSCRIPT | LOADING | STALE | FAST | NO_AUTH | ALLOW_BUSY | CONNECTION,
        parse_session::auth,
    )
    .doc(
        Group::Connection,
        "1.0.0",
        "O(N) over the passwords of the user",
    )
    .usage("[username] password", "Logs the connection in."),
    spec("client", -2, NO_MARKS, parse_session::container)
        .doc(Group::Connection, "2.4.0", "That of the subcommand")
        .usage("", "Questions about client connections.")
        .subcommands(CLIENT),
    spec(
        "command",
        -1,
        LOADING | STALE | CONNECTION,
        parse_session::command,
    )
    .tips(&["nondeterministic_output_order"])
    .doc(Group::Server, "2.8.13", "O(N) over all commands")
    .usage("", "Describes all commands.")
    .subcommands(COMMAND),
    spec("config", -2, NO_MARKS, parse_session::container)
        .doc(Group::Server, "2.0.0", "That of the subcommand")
        .usage("", "Questions about the configuration.")
        .subcommands(CONFIG),
    spec(
        "discard",
        1,
        NOSCRIPT | LOADING | STALE | FAST | ALLOW_BUSY | TRANSACTION,
        parse_session::discard,
    )
    .doc(
        Group::Transactions,
        "2.0.0",
        "O(N) over the commands queued",
    )
    .usage("", "Forgets the commands queued since MULTI."),
    spec(
        "echo",
        2,
        LOADING | STALE | FAST | CONNECTION,
        parse_session::echo,
    )
    .doc(Group::Connection, "1.0.0", "O(1)")
    .usage("message", "Returns its argument."),
    spec(
        "exec",
        1,
        NOSCRIPT | LOADING | STALE | SKIP_SLOWLOG | TRANSACTION,
        parse_session::exec,
    )
    .doc(Group::Transactions, "1.2.0", "That of the commands queued")
    .usage("", "Runs the commands queued since MULTI."),
    spec(
        "hello",
        -1,
        NOSCRIPT | LOADING | STALE | FAST | NO_AUTH | ALLOW_BUSY | CONNECTION,
        parse_session::hello,
    )
    .doc(Group::Connection, "6.0.0", "O(1)")
    .usage(
        "[protover [AUTH username password] [SETNAME clientname]]",
        "Greets the server, and chooses the protocol version.",
    ),
    spec("info", -1, LOADING | STALE | DANGEROUS, parse_session::info)
        .tips(&[
            "nondeterministic_output",
            "request_policy:all_shards",
            "response_policy:special",
        ])
        .doc(Group::Server, "1.0.0", "O(1)")
        .usage("[section...]", "Reports on the state of the server."),
    spec(
        "multi",
        1,
        NOSCRIPT | LOADING | STALE | FAST | ALLOW_BUSY | TRANSACTION,
        parse_session::multi,
    )
    .doc(Group::Transactions, "1.2.0", "O(1)")
    .usage("", "Starts to queue commands, for EXEC to run."),
    spec("ping", -1, FAST | CONNECTION, parse_session::ping)
        .tips(&["request_policy:all_shards", "response_policy:all_succeeded"])
        .doc(Group::Connection, "1.0.0", "O(1)")
        .usage("[message]", "Answers PONG, or its argument."),
    spec(
        "quit",
        -1,
        NOSCRIPT | LOADING | STALE | FAST | NO_AUTH | ALLOW_BUSY | CONNECTION,
        parse_session::quit,
    )
    .doc(Group::Connection, "1.0.0", "O(1)")
    .usage("", "Closes the connection."),
    spec(
        "reset",
        1,
        NOSCRIPT | LOADING | STALE | FAST | NO_AUTH | ALLOW_BUSY | CONNECTION,
        parse_session::reset,
    )
    .doc(Group::Connection, "6.2.0", "O(1)")
    .usage("", "Brings the connection back to how it began."),
    spec(
        "select",
        2,
        LOADING | STALE | FAST | CONNECTION,
        parse_session::select,
    )
    .doc(Group::Connection, "1.0.0", "O(1)")
    .usage("index", "Chooses the database."),
    spec("time", 1, LOADING | STALE | FAST, parse_session::time)
        .tips(&["nondeterministic_output"])
        .doc(Group::Server, "2.6.0", "O(1)")
        .usage("", "Returns the time of the server."),
    spec(
        "unwatch",
        1,
        NOSCRIPT | LOADING | STALE | FAST | ALLOW_BUSY | TRANSACTION,
        parse_session::unwatch,
    )
    .doc(Group::Transactions, "2.2.0", "O(1)")
    .usage("", "Forgets the keys watched."),
    spec(
        "watch",
        -2,
        NOSCRIPT | LOADING | STALE | FAST | ALLOW_BUSY | TRANSACTION,
        parse_session::watch,
    )
    .all_keys(1, &["RO"])
    .doc(Group::Transactions, "2.2.0", "O(N) over the keys given")
    .usage(
        "key...",
        "Makes EXEC fail if one of these keys has changed until then.",
    ),
];

const CLIENT: &[Spec] = &[
    spec(
        "client|getname",
        2,
        NOSCRIPT | LOADING | STALE | CONNECTION,
        parse_session::client_get_name,
    )
    .doc(Group::Connection, "2.6.9", "O(1)")
    .usage("", "Returns the name of the connection."),
    spec(
        "client|help",
        2,
        LOADING | STALE | CONNECTION,
        parse_session::help,
    )
    .doc(Group::Connection, "5.0.0", "O(1)")
    .usage("", "Prints this text."),
    spec(
        "client|id",
        2,
        NOSCRIPT | LOADING | STALE | CONNECTION,
        parse_session::client_id,
    )
    .doc(Group::Connection, "5.0.0", "O(1)")
    .usage("", "Returns the number of the connection."),
    spec(
        "client|info",
        2,
        NOSCRIPT | LOADING | STALE | CONNECTION,
        parse_session::client_info,
    )
    .tips(&["nondeterministic_output"])
    .doc(Group::Connection, "6.2.0", "O(1)")
    .usage("", "Describes the connection."),
    spec(
        "client|list",
        -2,
        ADMIN | NOSCRIPT | LOADING | STALE | CONNECTION,
        parse_session::client_list,
    )
    .tips(&["nondeterministic_output"])
    .doc(Group::Connection, "2.4.0", "O(N) over the connections")
    .usage(
        "[TYPE (NORMAL|MASTER|REPLICA|PUBSUB)] [ID client-id...]",
        "Describes the connections.",
    ),
    spec(
        "client|no-evict",
        3,
        ADMIN | NOSCRIPT | LOADING | STALE | CONNECTION,
        parse_session::client_no_evict,
    )
    .doc(Group::Connection, "7.0.0", "O(1)")
    .usage("ON|OFF", "Accepted; connections are never evicted."),
    spec(
        "client|no-touch",
        3,
        NOSCRIPT | LOADING | STALE | CONNECTION,
        parse_session::client_no_touch,
    )
    .doc(Group::Connection, "7.2.0", "O(1)")
    .usage(
        "ON|OFF",
        "Accepted; reads of this connection count as any others.",
    ),
    spec(
        "client|setinfo",
        4,
        NOSCRIPT | LOADING | STALE | CONNECTION,
        parse_session::client_set_info,
    )
    .tips(&["request_policy:all_nodes", "response_policy:all_succeeded"])
    .doc(Group::Connection, "7.2.0", "O(1)")
    .usage(
        "LIB-NAME libname|LIB-VER libver",
        "Tells which client library the connection uses.",
    ),
    spec(
        "client|setname",
        3,
        NOSCRIPT | LOADING | STALE | CONNECTION,
        parse_session::client_set_name,
    )
    .doc(Group::Connection, "2.6.9", "O(1)")
    .usage("connection-name", "Names the connection."),
];

const COMMAND: &[Spec] = &[
    spec(
        "command|count",
        2,
        LOADING | STALE | CONNECTION,
        parse_session::command_count,
    )
    .doc(Group::Server, "2.8.13", "O(1)")
    .usage("", "Counts the commands."),
    spec(
        "command|docs",
        -2,
        LOADING | STALE | CONNECTION,
        parse_session::command_docs,
    )
    .tips(&["nondeterministic_output_order"])
    .doc(Group::Server, "7.0.0", "O(N) over the commands named")
    .usage("[command-name...]", "Documents commands."),
    spec(
        "command|getkeys",
        -4,
        LOADING | STALE | CONNECTION,
        parse_session::command_get_keys,
    )
    .doc(Group::Server, "2.8.13", "O(N) over the arguments")
    .usage(
        "command [arg...]",
        "Returns which arguments of a command are keys.",
    ),
    spec(
        "command|getkeysandflags",
        -4,
        LOADING | STALE | CONNECTION,
        parse_session::command_get_keys_and_flags,
    )
    .doc(Group::Server, "7.0.0", "O(N) over the arguments")
    .usage(
        "command [arg...]",
        "Returns which arguments of a command are keys, and what it does to them.",
    ),
    spec(
        "command|help",
        2,
        LOADING | STALE | CONNECTION,
        parse_session::help,
    )
    .doc(Group::Server, "5.0.0", "O(1)")
    .usage("", "Prints this text."),
    spec(
        "command|info",
        -2,
        LOADING | STALE | CONNECTION,
        parse_session::command_info,
    )
    .tips(&["nondeterministic_output_order"])
    .doc(Group::Server, "2.8.13", "O(N) over the commands named")
    .usage("[command-name...]", "Describes commands."),
    spec(
        "command|list",
        -2,
        LOADING | STALE | CONNECTION,
        parse_session::command_list,
    )
    .tips(&["nondeterministic_output_order"])
    .doc(Group::Server, "7.0.0", "O(N) over all commands")
    .usage(
        "[FILTERBY (MODULE module-name|ACLCAT category|PATTERN pattern)]",
        "Lists the names of commands.",
    ),
];

const CONFIG: &[Spec] = &[
    spec(
        "config|get",
        -3,
        ADMIN | NOSCRIPT | LOADING | STALE,
        parse_session::config_get,
    )
    .doc(Group::Server, "2.0.0", "O(N) over the patterns")
    .usage("parameter...", "Returns settings by pattern."),
    spec("config|help", 2, LOADING | STALE, parse_session::help)
        .doc(Group::Server, "5.0.0", "O(1)")
        .usage("", "Prints this text."),
    spec(
        "config|resetstat",
        2,
        ADMIN | NOSCRIPT | LOADING | STALE,
        parse_session::config_reset_stat,
    )
    .doc(Group::Server, "2.0.0", "O(1)")
    .usage("", "Starts the statistics afresh."),
    spec(
        "config|rewrite",
        2,
        ADMIN | NOSCRIPT | LOADING | STALE,
        parse_session::config_rewrite,
    )
    .doc(Group::Server, "2.8.0", "O(1)")
    .usage("", "Refused: config.toml is the operator's."),
    spec(
        "config|set",
        -4,
        ADMIN | NOSCRIPT | LOADING | STALE,
        parse_session::config_set,
    )
    .tips(&["request_policy:all_nodes", "response_policy:all_succeeded"])
    .doc(Group::Server, "2.0.0", "O(N) over the settings")
    .usage(
        "(parameter value)...",
        "Refused: settings are read when the node starts.",
    ),
];
