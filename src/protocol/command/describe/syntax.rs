//! The arguments of a command, from the one line of syntax in its row, as COMMAND DOCS tells them.
//!
//! line := part { ' ' part }           a part that is a word in capitals takes the rest of its line
//! part := word | '(' line ')' | '[' line ']', then "..." if it may be repeated
//! A line of alternatives has '|' between them: "EX seconds|PX milliseconds".

use super::{Reply, bulk, statuses};

/// One argument.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Argument<'s> {
    name: String,
    kind: &'static str,
    /// What is typed before it, or instead of it.
    token: Option<&'s str>,
    optional: bool,
    multiple: bool,
    children: Vec<Argument<'s>>,
}

/// Reads a line of syntax.
pub(super) fn arguments(line: &str) -> Vec<Argument<'_>> {
    if split(line, b'|').len() > 1 {
        vec![single(line)]
    } else {
        sequence(line)
    }
}

/// A line as one argument.
fn single(line: &str) -> Argument<'_> {
    let alternatives = split(line, b'|');
    if alternatives.len() > 1 {
        return group(
            "oneof",
            "-or-",
            alternatives.into_iter().map(single).collect(),
        );
    }
    let mut parts = sequence(line);
    if parts.len() == 1 {
        parts.remove(0)
    } else {
        group("block", "-", parts)
    }
}

fn group<'s>(kind: &'static str, between: &str, children: Vec<Argument<'s>>) -> Argument<'s> {
    let names: Vec<&str> = children.iter().map(|child| child.name.as_str()).collect();
    let name = names.join(between);
    Argument {
        name,
        kind,
        token: None,
        optional: false,
        multiple: false,
        children,
    }
}

fn sequence(line: &str) -> Vec<Argument<'_>> {
    let parts = split(line, b' ');
    let mut arguments = Vec::with_capacity(parts.len());
    for (index, part) in parts.iter().enumerate() {
        let (core, multiple) = match part.strip_suffix("...") {
            Some(core) => (core, true),
            None => (*part, false),
        };
        if is_token(core) {
            arguments.push(after_token(core, &parts[index + 1..]));
            break;
        }
        let inner = |open, close| core.strip_prefix(open)?.strip_suffix(close);
        let mut argument = match (inner('[', ']'), inner('(', ')')) {
            (Some(line), _) => Argument {
                optional: true,
                ..single(line)
            },
            (None, Some(line)) => single(line),
            (None, None) => Argument {
                kind: kind_of(core),
                ..group("", "", Vec::new()).named(core)
            },
        };
        argument.multiple |= multiple;
        arguments.push(argument);
    }
    arguments
}

impl<'s> Argument<'s> {
    fn named(self, name: &str) -> Argument<'s> {
        Argument {
            name: name.to_owned(),
            ..self
        }
    }
}

/// A token with what follows it.
fn after_token<'s>(token: &'s str, rest: &[&'s str]) -> Argument<'s> {
    let mut values: Vec<Argument<'s>> = rest.iter().flat_map(|part| sequence(part)).collect();
    let argument = match values.len() {
        0 => group("pure-token", "", Vec::new()).named(&token.to_ascii_lowercase()),
        1 => values.remove(0),
        _ => group("block", "-", values),
    };
    Argument {
        token: Some(token),
        ..argument
    }
}

fn is_token(word: &str) -> bool {
    word.bytes()
        .all(|byte| byte.is_ascii_uppercase() || byte == b'-')
}

fn kind_of(name: &str) -> &'static str {
    match name {
        "key" => "key",
        "pattern" => "pattern",
        "decimal" => "double",
        "unix-time-seconds" | "unix-time-milliseconds" => "unix-time",
        "seconds" | "milliseconds" | "start" | "end" | "offset" | "decrement" | "increment"
        | "cursor" | "count" | "index" | "protover" | "client-id" => "integer",
        _ => "string",
    }
}

/// Splits at `separator` where no bracket is open.
fn split(line: &str, separator: u8) -> Vec<&str> {
    let (mut pieces, mut depth, mut start) = (Vec::new(), 0_usize, 0);
    for (at, byte) in line.bytes().enumerate() {
        match byte {
            b'[' | b'(' => depth += 1,
            b']' | b')' => depth -= 1,
            _ if byte == separator && depth == 0 => {
                pieces.push(&line[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    pieces.push(&line[start..]);
    pieces.retain(|piece| !piece.is_empty());
    pieces
}

/// Writes arguments as COMMAND DOCS does.
pub(super) fn write(arguments: &[Argument<'_>], reply: &mut Reply<'_>) {
    reply.array(arguments.len());
    for argument in arguments {
        let flags: Vec<&str> = [
            (argument.optional, "optional"),
            (argument.multiple, "multiple"),
        ]
        .into_iter()
        .filter_map(|(holds, name)| holds.then_some(name))
        .collect();
        let is_key = argument.kind == "key";
        let fields = [
            is_key,
            argument.token.is_some(),
            !flags.is_empty(),
            !argument.children.is_empty(),
        ];
        reply.map(2 + fields.into_iter().filter(|present| *present).count());
        bulk("name", reply);
        bulk(&argument.name, reply);
        bulk("type", reply);
        bulk(argument.kind, reply);
        if is_key {
            bulk("key_spec_index", reply);
            reply.integer(0);
        }
        if let Some(token) = argument.token {
            bulk("token", reply);
            bulk(token, reply);
        }
        if !flags.is_empty() {
            bulk("flags", reply);
            statuses(&flags, reply);
        }
        if !argument.children.is_empty() {
            bulk("arguments", reply);
            write(&argument.children, reply);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::command::COMMANDS;

    /// An argument on one line: name:kind, =token, ? if optional, + if repeated, {children}.
    fn show(argument: &Argument<'_>) -> String {
        let token = argument
            .token
            .map(|token| format!("={token}"))
            .unwrap_or_default();
        let optional = if argument.optional { "?" } else { "" };
        let multiple = if argument.multiple { "+" } else { "" };
        let children = show_all(&argument.children);
        let children = if children.is_empty() {
            children
        } else {
            format!("{{{children}}}")
        };
        format!(
            "{}:{}{token}{optional}{multiple}{children}",
            argument.name, argument.kind
        )
    }

    fn show_all(arguments: &[Argument<'_>]) -> String {
        arguments.iter().map(show).collect::<Vec<_>>().join(" ")
    }

    fn read(line: &str) -> String {
        show_all(&arguments(line))
    }

    #[test]
    fn each_form_of_syntax_is_understood() {
        assert_eq!(read(""), "");
        assert_eq!(read("key value"), "key:key value:string");
        assert_eq!(read("key..."), "key:key+");
        assert_eq!(
            read("(key value)..."),
            "key-value:block+{key:key value:string}"
        );
        assert_eq!(read("[message]"), "message:string?");
        assert_eq!(read("[section...]"), "section:string?+");
        assert_eq!(read("[GET]"), "get:pure-token=GET?");
        assert_eq!(
            read("[NX|XX]"),
            "nx-or-xx:oneof?{nx:pure-token=NX xx:pure-token=XX}"
        );
        assert_eq!(
            read("ON|OFF"),
            "on-or-off:oneof{on:pure-token=ON off:pure-token=OFF}"
        );
        assert_eq!(
            read("cursor [MATCH pattern]"),
            "cursor:integer pattern:pattern=MATCH?"
        );
        assert_eq!(
            read("[EX seconds|KEEPTTL]"),
            "seconds-or-keepttl:oneof?{seconds:integer=EX keepttl:pure-token=KEEPTTL}"
        );
        assert_eq!(
            read("[protover [AUTH username password]]"),
            "protover-username-password:block?\
             {protover:integer username-password:block=AUTH?{username:string password:string}}"
        );
    }

    #[test]
    fn no_row_has_an_argument_without_a_name() {
        fn check(spec: &str, arguments: &[Argument<'_>]) {
            for argument in arguments {
                assert!(!argument.name.is_empty(), "{spec}: {argument:?}");
                let plain = |byte: u8| byte.is_ascii_lowercase() || byte == b'-';
                assert!(argument.name.bytes().all(plain), "{spec}: {argument:?}");
                check(spec, &argument.children);
            }
        }
        for spec in COMMANDS
            .iter()
            .flat_map(|spec| std::iter::once(*spec).chain(spec.subcommands))
        {
            check(spec.name, &arguments(spec.syntax));
        }
    }
}
