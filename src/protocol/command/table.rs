//! The table of commands: arity, keys, parsing, routing and COMMAND's answers all read it.
//!
//! A new command is one row here and one function in parse.rs. Lookup ignores case and allocates
//! nothing: the names are hashed into `INDEX` when this is compiled.

use super::parse::Call;
use super::{Command, CommandError};
use crate::protocol::resp::ArgView;

mod cluster;
mod keyspace;
mod kv;
mod session;
mod strings;

/// What a command is, as a set of the constants below: its flags as COMMAND INFO names them, and
/// the ACL categories that do not follow from the flags.
pub type Marks = u32;

/// No mark at all.
pub const NO_MARKS: Marks = 0;
/// May change keys.
pub const WRITE: Marks = 1 << 0;
/// Reads keys and changes none.
pub const READONLY: Marks = 1 << 1;
/// Takes room: refused where there is none left.
pub const DENYOOM: Marks = 1 << 2;
/// For operators.
pub const ADMIN: Marks = 1 << 3;
/// Not for scripts.
pub const NOSCRIPT: Marks = 1 << 4;
/// Answered while the data is still being loaded.
pub const LOADING: Marks = 1 << 5;
/// Answered by a replica without its primary.
pub const STALE: Marks = 1 << 6;
/// Kept out of the slow log.
pub const SKIP_SLOWLOG: Marks = 1 << 7;
/// Constant or logarithmic time.
pub const FAST: Marks = 1 << 8;
/// Allowed before AUTH.
pub const NO_AUTH: Marks = 1 << 9;
/// Answered while a script runs.
pub const ALLOW_BUSY: Marks = 1 << 10;
/// Not between MULTI and EXEC.
pub const NO_MULTI: Marks = 1 << 11;
/// ACL category: about keys, whatever they hold.
pub const KEYSPACE: Marks = 1 << 16;
/// ACL category: about strings.
pub const STRING: Marks = 1 << 17;
/// ACL category: about the connection.
pub const CONNECTION: Marks = 1 << 18;
/// ACL category: about transactions.
pub const TRANSACTION: Marks = 1 << 19;
/// ACL category: harms when misused. All that is `ADMIN` is dangerous besides.
pub const DANGEROUS: Marks = 1 << 20;

/// The chapter of the documentation that a command belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Strings.
    String,
    /// Keys of any type.
    Generic,
    /// The connection.
    Connection,
    /// The server.
    Server,
    /// Transactions.
    Transactions,
    /// Redis Cluster.
    Cluster,
}

impl Group {
    /// As COMMAND DOCS spells it.
    pub fn name(self) -> &'static str {
        match self {
            Group::String => "string",
            Group::Generic => "generic",
            Group::Connection => "connection",
            Group::Server => "server",
            Group::Transactions => "transactions",
            Group::Cluster => "cluster",
        }
    }
}

/// Which arguments are keys, counted from the command's name, which is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keys {
    /// The first one; 0: none are.
    pub first: u8,
    /// True: all from `first` to the end in steps of `step`. False: `first` only.
    pub to_the_end: bool,
    /// From one key to the next.
    pub step: u8,
    /// What happens to them, in the words of Redis's key specifications.
    pub access: &'static [&'static str],
}

impl Keys {
    const NONE: Keys = Keys {
        first: 0,
        to_the_end: false,
        step: 0,
        access: &[],
    };

    /// The indices of the keys in a command of `length` arguments.
    pub fn indices(self, length: usize) -> impl Iterator<Item = usize> {
        let first = usize::from(self.first);
        let end = match (first, self.to_the_end) {
            (0, _) => 0,
            (_, true) => length,
            (_, false) => length.min(first + 1),
        };
        (first..end).step_by(usize::from(self.step.max(1)))
    }
}

/// What turns the arguments of one command into its typed form.
pub(super) type Parse = for<'a> fn(Call<'a>) -> Result<Command<'a>, CommandError<'a>>;

/// One row: all that is known of a command.
#[derive(Debug)]
pub struct Spec {
    /// In lower case; a subcommand's is `container|name`.
    pub name: &'static str,
    /// Number of arguments with the name; negative: at least that many.
    pub arity: i8,
    /// Flags and categories.
    pub marks: Marks,
    /// Where the keys are.
    pub keys: Keys,
    /// Hints to clients and proxies, as Redis defines them.
    pub tips: &'static [&'static str],
    /// Chapter of the documentation.
    pub group: Group,
    /// The Redis version that first had it.
    pub since: &'static str,
    /// Its cost.
    pub complexity: &'static str,
    /// What it does, in a sentence.
    pub summary: &'static str,
    /// Its arguments: `[optional]`, `one|other`, `repeated...`, `(a group)`; words in capitals
    /// are typed as they are.
    pub syntax: &'static str,
    /// If Redis discourages it: since which version, and what to use instead.
    pub deprecated: Option<(&'static str, &'static str)>,
    /// Its subcommands, if it is a container.
    pub subcommands: &'static [Spec],
    pub(super) parse: Parse,
}

const fn spec(name: &'static str, arity: i8, marks: Marks, parse: Parse) -> Spec {
    assert!(arity != 0, "the name counts too");
    Spec {
        name,
        arity,
        marks,
        keys: Keys::NONE,
        tips: &[],
        group: Group::Generic,
        since: "",
        complexity: "",
        summary: "",
        syntax: "",
        deprecated: None,
        subcommands: &[],
        parse,
    }
}

/// The rows are written with these.
impl Spec {
    const fn one_key(self, access: &'static [&'static str]) -> Spec {
        let keys = Keys {
            first: 1,
            to_the_end: false,
            step: 1,
            access,
        };
        Spec { keys, ..self }
    }

    const fn second_key(self, access: &'static [&'static str]) -> Spec {
        let keys = Keys {
            first: 2,
            to_the_end: false,
            step: 1,
            access,
        };
        Spec { keys, ..self }
    }

    const fn all_keys(self, step: u8, access: &'static [&'static str]) -> Spec {
        let keys = Keys {
            first: 1,
            to_the_end: true,
            step,
            access,
        };
        Spec { keys, ..self }
    }

    const fn tips(self, tips: &'static [&'static str]) -> Spec {
        Spec { tips, ..self }
    }

    const fn doc(self, group: Group, since: &'static str, complexity: &'static str) -> Spec {
        Spec {
            group,
            since,
            complexity,
            ..self
        }
    }

    const fn usage(self, syntax: &'static str, summary: &'static str) -> Spec {
        Spec {
            syntax,
            summary,
            ..self
        }
    }

    const fn deprecated(self, since: &'static str, instead: &'static str) -> Spec {
        Spec {
            deprecated: Some((since, instead)),
            ..self
        }
    }

    const fn subcommands(self, subcommands: &'static [Spec]) -> Spec {
        Spec {
            subcommands,
            ..self
        }
    }
}

impl Spec {
    /// The command called `name`, in any case; not a subcommand.
    pub fn find(name: &[u8]) -> Option<&'static Spec> {
        let mut at = hash(name) % INDEX_SLOTS;
        loop {
            let row = usize::from(INDEX[at]).checked_sub(1)?;
            if COMMANDS[row].name.as_bytes().eq_ignore_ascii_case(name) {
                return Some(COMMANDS[row]);
            }
            at = (at + 1) % INDEX_SLOTS;
        }
    }

    /// The command or subcommand that COMMAND INFO knows by this name, as `config|get`.
    pub fn find_full(name: &[u8]) -> Option<&'static Spec> {
        match name.iter().position(|&b| b == b'|') {
            Some(bar) => Spec::find(&name[..bar])?.subcommand(&name[bar + 1..]),
            None => Spec::find(name),
        }
    }

    /// The command or subcommand that `args` call, with as many arguments as it takes.
    pub fn of<'a>(args: ArgView<'a>) -> Result<&'static Spec, CommandError<'a>> {
        let name = args.get(0).unwrap_or_default();
        let Some(mut spec) = Spec::find(name) else {
            return Err(CommandError::UnknownCommand(args));
        };
        if !spec.subcommands.is_empty()
            && let Some(word) = args.get(1)
        {
            let container = spec.name;
            spec = spec
                .subcommand(word)
                .ok_or(CommandError::UnknownSubcommand { container, word })?;
        }
        if !spec.takes(args.len()) {
            return Err(CommandError::Arity(spec.name));
        }
        Ok(spec)
    }

    /// Gives the arguments their types. `args` must be those that [`Spec::of`] found `self` for.
    pub fn parse<'a>(&'static self, args: ArgView<'a>) -> Result<Command<'a>, CommandError<'a>> {
        (self.parse)(Call { spec: self, args })
    }

    /// The subcommand called `word`, in any case.
    pub fn subcommand(&self, word: &[u8]) -> Option<&'static Spec> {
        self.subcommands
            .iter()
            .find(|spec| spec.last_name().as_bytes().eq_ignore_ascii_case(word))
    }

    /// The name without its container's.
    pub fn last_name(&self) -> &'static str {
        self.name.rsplit('|').next().unwrap_or(self.name)
    }

    /// True if it has all of `marks`.
    pub fn is(&self, marks: Marks) -> bool {
        self.marks & marks == marks
    }

    /// True if it can be called with `length` arguments, its name among them.
    pub fn takes(&self, length: usize) -> bool {
        let least = usize::from(self.arity.unsigned_abs());
        length == least || (self.arity < 0 && length > least)
    }
}

const GROUPS: [&[Spec]; 5] = [
    strings::ROWS,
    keyspace::ROWS,
    kv::ROWS,
    session::ROWS,
    cluster::ROWS,
];

const COUNT: usize = {
    let (mut count, mut group) = (0, 0);
    while group < GROUPS.len() {
        count += GROUPS[group].len();
        group += 1;
    }
    count
};

/// All commands. Subcommands are in the rows of their containers.
pub static COMMANDS: [&Spec; COUNT] = {
    let mut all = [&strings::ROWS[0]; COUNT];
    let (mut group, mut next) = (0, 0);
    while group < GROUPS.len() {
        let mut row = 0;
        while row < GROUPS[group].len() {
            all[next] = &GROUPS[group][row];
            row += 1;
            next += 1;
        }
        group += 1;
    }
    assert!(next == COUNT);
    all
};

const INDEX_SLOTS: usize = 256;
const _: () = assert!(COUNT * 2 < INDEX_SLOTS, "a fuller index has long chains");

/// Where a name's chain starts: its row and one, or 0 where the chain ends.
static INDEX: [u8; INDEX_SLOTS] = {
    let mut index = [0; INDEX_SLOTS];
    let mut row = 0;
    while row < COUNT {
        let mut at = hash(COMMANDS[row].name.as_bytes()) % INDEX_SLOTS;
        while index[at] != 0 {
            at = (at + 1) % INDEX_SLOTS;
        }
        index[at] = row as u8 + 1;
        row += 1;
    }
    index
};

/// From the length and three letters: no more is needed to tell the names apart nearly always.
const fn hash(name: &[u8]) -> usize {
    if name.is_empty() {
        return 0;
    }
    let first = (name[0] | 0x20) as usize;
    let middle = (name[name.len() / 2] | 0x20) as usize;
    let last = (name[name.len() - 1] | 0x20) as usize;
    (first * 31 + middle * 7 + last * 113 + name.len() * 59) % 65_521
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::command::{Command, Session};
    use crate::protocol::{ArgView, OwnedArgs};

    fn with_view<T>(words: &[&str], then: impl FnOnce(ArgView<'_>) -> T) -> T {
        let mut args = OwnedArgs::new();
        words.iter().for_each(|word| args.push(word.as_bytes()));
        then(args.view())
    }

    fn all_rows() -> impl Iterator<Item = &'static Spec> {
        COMMANDS
            .iter()
            .flat_map(|spec| std::iter::once(*spec).chain(spec.subcommands))
    }

    #[test]
    fn every_name_finds_its_own_row_in_any_case() {
        for spec in all_rows() {
            for name in [spec.name.to_owned(), spec.name.to_ascii_uppercase()] {
                let found = Spec::find_full(name.as_bytes()).expect("its own name");
                assert!(std::ptr::eq(found, spec), "{name} finds {}", found.name);
            }
        }
        for name in [
            "",
            "ge",
            "gett",
            "nosuch",
            "client|",
            "client|nosuch",
            "get|x",
            "|",
            "\u{e7}et",
        ] {
            assert!(
                Spec::find_full(name.as_bytes()).is_none(),
                "{name:?} is no command"
            );
        }
        assert!(
            Spec::find(b"client|id").is_none(),
            "no command is called like a subcommand"
        );
    }

    #[test]
    fn a_lookup_compares_few_names() {
        let probes: Vec<usize> = COMMANDS
            .iter()
            .map(|spec| {
                let home = hash(spec.name.as_bytes()) % INDEX_SLOTS;
                let steps = (0..INDEX_SLOTS).find(|step| {
                    let row = INDEX[(home + step) % INDEX_SLOTS];
                    row > 0 && COMMANDS[usize::from(row) - 1].name == spec.name
                });
                steps.expect("it is in the index") + 1
            })
            .collect();
        assert!(
            probes.iter().all(|&count| count <= 4),
            "a chain is too long: {probes:?}"
        );
        assert!(
            probes.iter().sum::<usize>() < 2 * COMMANDS.len(),
            "chains: {probes:?}"
        );
    }

    #[test]
    fn every_row_is_complete_and_sane() {
        for spec in all_rows() {
            let name = spec.name;
            assert_eq!(name, name.to_ascii_lowercase(), "clients expect lower case");
            assert!(
                !spec.since.is_empty() && !spec.complexity.is_empty(),
                "{name} lacks its doc"
            );
            assert!(
                spec.summary.ends_with('.') && !spec.summary.contains('\n'),
                "{name}'s summary"
            );
            assert!(
                !spec.is(WRITE | READONLY),
                "{name} cannot both write and only read"
            );
            assert!(!spec.is(DENYOOM) || spec.is(WRITE), "{name} takes no room");
            assert_eq!(
                spec.keys.first == 0,
                spec.keys.access.is_empty(),
                "{name}'s key access"
            );
            let least = usize::from(spec.arity.unsigned_abs());
            let keys = spec.keys.indices(least).count();
            assert!(
                spec.keys.first == 0 || keys >= 1,
                "{name} may be called without its key"
            );
            for subcommand in spec.subcommands {
                let container = subcommand.name.strip_suffix(subcommand.last_name());
                assert_eq!(container, Some(&*format!("{name}|")), "{}", subcommand.name);
            }
        }
        for rows in GROUPS {
            assert!(
                rows.is_sorted_by_key(|spec| spec.name),
                "a row is out of order"
            );
        }
    }

    #[test]
    fn what_a_row_says_of_writing_is_what_the_command_does() {
        for spec in COMMANDS.iter().filter(|spec| spec.subcommands.is_empty()) {
            let numbers = vec!["1"; usize::from(spec.arity.unsigned_abs()) - 1];
            let words: Vec<&str> = std::iter::once(spec.name).chain(numbers).collect();
            with_view(&words, |args| {
                let writes = match Spec::of(args).and_then(|spec| spec.parse(args)) {
                    Ok(Command::Key(command)) => command.op.is_write(),
                    Ok(Command::Keys(command)) => command.is_write(),
                    Ok(Command::Store(command)) => {
                        matches!(command, crate::protocol::command::StoreCommand::Flush)
                    }
                    Ok(Command::Kv(command)) => command.op.is_write(),
                    Ok(Command::Session(_)) => false,
                    Err(error) => panic!("{words:?}: {error:?}"),
                };
                assert_eq!(writes, spec.is(WRITE), "{}", spec.name);
            });
        }
    }

    #[test]
    fn keys_are_found_where_the_row_says() {
        let keys = |name: &str, length| -> Vec<usize> {
            Spec::find_full(name.as_bytes())
                .expect("a row")
                .keys
                .indices(length)
                .collect()
        };
        assert_eq!(keys("get", 2), [1]);
        assert_eq!(keys("set", 5), [1], "options are no keys");
        assert_eq!(keys("mset", 7), [1, 3, 5], "values are no keys");
        assert_eq!(keys("del", 4), [1, 2, 3]);
        assert_eq!(keys("object|encoding", 3), [2]);
        assert_eq!(keys("ping", 2), [0; 0]);
        assert_eq!(keys("object|encoding", 2), [0; 0], "cut short of its key");
    }

    #[test]
    fn a_container_needs_a_subcommand_except_command() {
        let fails = |words: &[&str]| with_view(words, |args| Spec::of(args).is_err());
        assert!(
            fails(&["client"]) && fails(&["client", "nosuch"]) && fails(&["client", "id", "x"])
        );
        assert!(!fails(&["client", "ID"]));
        with_view(&["COMMAND"], |args| {
            let command = Spec::of(args).and_then(|spec| spec.parse(args));
            assert!(
                matches!(command, Ok(Command::Session(Session::Describe(_)))),
                "{command:?}"
            );
        });
        assert!(fails(&[]), "no arguments are no command");
    }
}
