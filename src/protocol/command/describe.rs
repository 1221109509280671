//! COMMAND's answers and HELP: the table, told to clients in Redis 7.0's shape.

use super::table::*;
use super::{ArgView, Reply};
use crate::protocol::glob;

mod syntax;

/// What is asked about the commands.
#[derive(Clone, Copy, Debug)]
pub enum Introspection<'a> {
    /// All rows.
    All,
    /// The number of rows.
    Count,
    /// The named rows, or all.
    Info(ArgView<'a>),
    /// The documentation of the named rows, or of all.
    Docs(ArgView<'a>),
    /// The names of some.
    List(CommandFilter<'a>),
    /// The keys of this request.
    GetKeys(&'static Spec, ArgView<'a>),
    /// The keys of this request, and what it does to them.
    GetKeysAndFlags(&'static Spec, ArgView<'a>),
    /// A container's subcommands, for people.
    Help(&'static Spec),
}

/// Which names COMMAND LIST lists.
#[derive(Clone, Copy, Debug)]
pub enum CommandFilter<'a> {
    /// All.
    All,
    /// Those of some module: none.
    Module,
    /// Those of an ACL category.
    Category(&'a [u8]),
    /// Those that match.
    Pattern(&'a [u8]),
}

impl Introspection<'_> {
    /// Writes the answer.
    pub fn answer(&self, reply: &mut Reply<'_>) {
        match *self {
            Introspection::Count => reply.integer(COMMANDS.len() as i64),
            Introspection::Info(names) if !names.is_empty() => {
                reply.array(names.len());
                for name in names.iter() {
                    match Spec::find_full(name) {
                        Some(spec) => row(spec, reply),
                        None => reply.null(),
                    }
                }
            }
            Introspection::All | Introspection::Info(_) => {
                reply.array(COMMANDS.len());
                COMMANDS.iter().for_each(|spec| row(spec, reply));
            }
            Introspection::Docs(names) if !names.is_empty() => {
                let found = || names.iter().filter_map(Spec::find_full);
                reply.map(found().count());
                found().for_each(|spec| documentation(spec, reply));
            }
            Introspection::Docs(_) => {
                reply.map(COMMANDS.len());
                COMMANDS.iter().for_each(|spec| documentation(spec, reply));
            }
            Introspection::List(filter) => list(filter, reply),
            Introspection::GetKeys(spec, args) => {
                reply.array(spec.keys.indices(args.len()).count());
                for index in spec.keys.indices(args.len()) {
                    reply.bulk(args.get(index).unwrap_or_default());
                }
            }
            Introspection::GetKeysAndFlags(spec, args) => {
                reply.array(spec.keys.indices(args.len()).count());
                for index in spec.keys.indices(args.len()) {
                    reply.array(2);
                    reply.bulk(args.get(index).unwrap_or_default());
                    statuses(access(spec, args), reply);
                }
            }
            Introspection::Help(container) => help(container, reply),
        }
    }
}

/// What a request does to its keys: SET's access is that of its options.
fn access(spec: &Spec, args: ArgView<'_>) -> &'static [&'static str] {
    let varies = spec.keys.access.contains(&"variable_flags");
    let has_get = || {
        args.from(3)
            .iter()
            .any(|word| word.eq_ignore_ascii_case(b"GET"))
    };
    match varies {
        false => spec.keys.access,
        true if has_get() => &["RW", "access", "update"],
        true => &["OW", "update"],
    }
}

const FLAG_NAMES: [(Marks, &str); 12] = [
    (WRITE, "write"),
    (READONLY, "readonly"),
    (DENYOOM, "denyoom"),
    (ADMIN, "admin"),
    (NOSCRIPT, "noscript"),
    (LOADING, "loading"),
    (STALE, "stale"),
    (SKIP_SLOWLOG, "skip_slowlog"),
    (FAST, "fast"),
    (NO_AUTH, "no_auth"),
    (ALLOW_BUSY, "allow_busy"),
    (NO_MULTI, "no_multi"),
];

/// The ACL categories of a command, in Redis's order: those that it is marked with and those
/// that follow from its flags.
fn categories(spec: &Spec) -> Vec<&'static str> {
    let all = [
        (spec.is(KEYSPACE), "@keyspace"),
        (spec.is(READONLY), "@read"),
        (spec.is(WRITE), "@write"),
        (spec.is(STRING), "@string"),
        (spec.is(ADMIN), "@admin"),
        (spec.is(FAST), "@fast"),
        (!spec.is(FAST), "@slow"),
        (spec.is(DANGEROUS) || spec.is(ADMIN), "@dangerous"),
        (spec.is(CONNECTION), "@connection"),
        (spec.is(TRANSACTION), "@transaction"),
    ];
    all.into_iter()
        .filter(|(holds, _)| *holds)
        .map(|(_, name)| name)
        .collect()
}

fn statuses(names: &[&str], reply: &mut Reply<'_>) {
    reply.set(names.len());
    names.iter().for_each(|name| reply.simple(name));
}

fn bulk(text: &str, reply: &mut Reply<'_>) {
    reply.bulk(text.as_bytes());
}

/// A row as COMMAND INFO shows it.
fn row(spec: &Spec, reply: &mut Reply<'_>) {
    let first = i64::from(spec.keys.first);
    let flags = FLAG_NAMES
        .iter()
        .filter(|(flag, _)| spec.is(*flag))
        .map(|(_, name)| *name);
    reply.array(10);
    bulk(spec.name, reply);
    reply.integer(i64::from(spec.arity));
    statuses(&flags.collect::<Vec<_>>(), reply);
    reply.integer(first);
    reply.integer(if spec.keys.to_the_end { -1 } else { first });
    reply.integer(i64::from(spec.keys.step));
    statuses(&categories(spec), reply);
    reply.set(spec.tips.len());
    spec.tips.iter().for_each(|tip| bulk(tip, reply));
    key_specification(spec.keys, reply);
    match spec.subcommands.len() {
        0 => reply.set(0), // In Redis, too, only a list of some is an array.
        count => reply.array(count),
    }
    spec.subcommands
        .iter()
        .for_each(|subcommand| row(subcommand, reply));
}

fn key_specification(keys: Keys, reply: &mut Reply<'_>) {
    if keys.first == 0 {
        return reply.set(0);
    }
    reply.set(1);
    reply.map(3);
    bulk("flags", reply);
    statuses(keys.access, reply);
    bulk("begin_search", reply);
    search("index", &[("index", i64::from(keys.first))], reply);
    bulk("find_keys", reply);
    let last = if keys.to_the_end { -1 } else { 0 };
    let range = [
        ("lastkey", last),
        ("keystep", i64::from(keys.step)),
        ("limit", 0),
    ];
    search("range", &range, reply);
}

fn search(kind: &str, fields: &[(&str, i64)], reply: &mut Reply<'_>) {
    reply.map(2);
    bulk("type", reply);
    bulk(kind, reply);
    bulk("spec", reply);
    reply.map(fields.len());
    for (name, value) in fields {
        bulk(name, reply);
        reply.integer(*value);
    }
}

/// A row as COMMAND DOCS shows it: its name, and a map.
fn documentation(spec: &Spec, reply: &mut Reply<'_>) {
    let arguments = syntax::arguments(spec.syntax);
    let deprecation = if spec.deprecated.is_some() { 3 } else { 0 };
    let fields = 4
        + deprecation
        + usize::from(!arguments.is_empty())
        + usize::from(!spec.subcommands.is_empty());
    bulk(spec.name, reply);
    reply.map(fields);
    let texts = [
        ("summary", spec.summary),
        ("since", spec.since),
        ("group", spec.group.name()),
        ("complexity", spec.complexity),
    ];
    for (field, text) in texts {
        bulk(field, reply);
        bulk(text, reply);
    }
    if let Some((since, instead)) = spec.deprecated {
        bulk("doc_flags", reply);
        statuses(&["deprecated"], reply);
        bulk("deprecated_since", reply);
        bulk(since, reply);
        bulk("replaced_by", reply);
        bulk(instead, reply);
    }
    if !arguments.is_empty() {
        bulk("arguments", reply);
        syntax::write(&arguments, reply);
    }
    if !spec.subcommands.is_empty() {
        bulk("subcommands", reply);
        reply.map(spec.subcommands.len());
        spec.subcommands
            .iter()
            .for_each(|subcommand| documentation(subcommand, reply));
    }
}

fn list(filter: CommandFilter<'_>, reply: &mut Reply<'_>) {
    let wanted = |spec: &&Spec| match filter {
        CommandFilter::All => true,
        CommandFilter::Module => false,
        CommandFilter::Category(word) => categories(spec)
            .iter()
            .any(|name| name.as_bytes()[1..].eq_ignore_ascii_case(word)),
        CommandFilter::Pattern(pattern) => {
            glob::matches(&pattern.to_ascii_lowercase(), spec.name.as_bytes())
        }
    };
    let all = || {
        let rows = COMMANDS.iter().copied();
        rows.flat_map(|spec| std::iter::once(spec).chain(spec.subcommands))
            .filter(wanted)
    };
    reply.array(all().count());
    all().for_each(|spec| bulk(spec.name, reply));
}

fn help(container: &Spec, reply: &mut Reply<'_>) {
    let name = container.name.to_ascii_uppercase();
    reply.array(1 + 2 * container.subcommands.len());
    reply.simple(&format!(
        "{name} <subcommand> [<arg> [value] [opt] ...]. Subcommands are:"
    ));
    for spec in container.subcommands {
        let line = format!("{} {}", spec.last_name().to_ascii_uppercase(), spec.syntax);
        reply.simple(line.trim_end());
        reply.simple(&format!("    {}", spec.summary));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{OwnedArgs, Protocol};

    fn answer(what: Introspection<'_>, protocol: Protocol) -> String {
        let mut out = Vec::new();
        what.answer(&mut Reply::new(&mut out, protocol));
        String::from_utf8(out).expect("the table is text")
    }

    /// How many bytes the first reply in `text` takes, all its elements included.
    fn reply_length(text: &str) -> usize {
        let end = text.find("\r\n").expect("a line") + 2;
        let number = || text[1..end - 2].parse::<usize>().expect("a length");
        let elements = match text.as_bytes()[0] {
            b'$' => return end + number() + 2,
            b'*' | b'~' => number(),
            b'%' => 2 * number(),
            _ => 0,
        };
        (0..elements).fold(end, |at, _| at + reply_length(&text[at..]))
    }

    #[test]
    fn every_answer_is_one_well_formed_reply() {
        let none = OwnedArgs::new();
        let containers = COMMANDS.iter().filter(|spec| !spec.subcommands.is_empty());
        let fixed = [
            Introspection::All,
            Introspection::Count,
            Introspection::Info(none.view()),
            Introspection::Docs(none.view()),
            Introspection::List(CommandFilter::All),
        ];
        for what in fixed
            .into_iter()
            .chain(containers.map(|spec| Introspection::Help(spec)))
        {
            for protocol in [Protocol::Resp2, Protocol::Resp3] {
                let text = answer(what, protocol);
                assert_eq!(reply_length(&text), text.len(), "{what:?} in {protocol:?}");
            }
        }
    }

    #[test]
    fn lists_are_filtered() {
        let list = |filter| answer(Introspection::List(filter), Protocol::Resp2);
        assert_eq!(list(CommandFilter::Module), "*0\r\n");
        assert_eq!(list(CommandFilter::Category(b"nosuch")), "*0\r\n");
        assert!(list(CommandFilter::Category(b"Transaction")).starts_with("*5\r\n"));
        assert_eq!(
            list(CommandFilter::Pattern(b"GET?ET")),
            "*1\r\n$6\r\ngetset\r\n"
        );
        assert!(
            list(CommandFilter::All).contains("\r\nclient|id\r\n"),
            "subcommands are listed"
        );
    }

    #[test]
    fn documentation_of_unknown_commands_is_left_out() {
        let mut names = OwnedArgs::new();
        ["nosuch", "GETSET"]
            .iter()
            .for_each(|name| names.push(name.as_bytes()));
        let text = answer(Introspection::Docs(names.view()), Protocol::Resp3);
        assert!(
            text.starts_with("%1\r\n$6\r\ngetset\r\n%8\r\n$7\r\nsummary\r\n"),
            "{text}"
        );
        assert!(
            text.contains("doc_flags\r\n~1\r\n+deprecated\r\n"),
            "{text}"
        );
    }
}
