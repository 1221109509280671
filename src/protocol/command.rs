//! A request's arguments as a typed command: what is asked, by who must do it.
//!
//! [`Spec::of`] finds the row of the table, [`Spec::parse`] reads the arguments; [`parse`] does
//! both. Everything borrows from the request. All that can be judged without the data is judged
//! here, in Redis's order and with Redis's words; [`crate::shard::evaluate`] does the rest.

use super::reply::{Protocol, Reply};
use super::resp::ArgView;
use crate::types::{Level, Slot, Version};

mod describe;
mod error;
mod merge;
mod parse;
mod parse_cluster;
mod parse_kv;
mod parse_session;
mod table;

pub use describe::{CommandFilter, Introspection};
pub use error::CommandError;
pub use merge::Merge;
pub use table::*;

/// Finds the row for `args` in the table and reads the arguments.
pub fn parse(args: ArgView<'_>) -> Result<Command<'_>, CommandError<'_>> {
    Spec::of(args)?.parse(args)
}

/// One request, by who answers it.
#[derive(Clone, Copy, Debug)]
pub enum Command<'a> {
    /// The connection, or the node as a whole.
    Session(Session<'a>),
    /// The core that owns the key.
    Key(KeyCommand<'a>),
    /// The cores that own the keys, each for its own part.
    Keys(KeysCommand<'a>),
    /// The core that owns the key, with versions and levels.
    Kv(KvCommand<'a>),
    /// All cores.
    Store(StoreCommand<'a>),
}

/// What needs no stored data.
#[derive(Clone, Copy, Debug)]
pub enum Session<'a> {
    /// Answers PONG, or the message.
    Ping(Option<&'a [u8]>),
    /// Answers the message.
    Echo(&'a [u8]),
    /// Greeting.
    Hello(Hello<'a>),
    /// Log in.
    Auth(Login<'a>),
    /// Choose a database.
    Select(i64),
    /// OK, and hang up.
    Quit,
    /// Answers RESET; the connection is as new.
    Reset,
    /// About this and other connections.
    Client(Client<'a>),
    /// About the commands: [`Introspection::answer`] has it all.
    Describe(Introspection<'a>),
    /// Reports: the named sections, or the default ones if none is named.
    Info(ArgView<'a>),
    /// About the configuration.
    Config(Config<'a>),
    /// Which core has which keys.
    Cluster(Cluster<'a>),
    /// READONLY (true), READWRITE: whether copies may be read where a core has no more.
    ReadCopies(bool),
    /// ASKING: accepted; no key is ever between two nodes.
    Accepted,
    /// Set the levels of this connection's KV commands; none is given: tell them.
    Consistency {
        /// Of reads.
        read: Option<Level>,
        /// Of writes.
        write: Option<Level>,
    },
    /// Seconds and microseconds.
    Time,
    /// Start to queue.
    Multi,
    /// Run what is queued.
    Exec,
    /// Forget what is queued.
    Discard,
    /// Let EXEC fail if one of these keys changes.
    Watch(ArgView<'a>),
    /// Watch nothing.
    Unwatch,
}

/// HELLO's arguments.
#[derive(Clone, Copy, Debug)]
pub struct Hello<'a> {
    /// The protocol to speak from now on, with this very answer.
    pub protocol: Option<Protocol>,
    /// Log in first.
    pub login: Option<Login<'a>>,
    /// Name the connection.
    pub name: Option<&'a [u8]>,
}

/// A user and a password.
#[derive(Clone, Copy)]
pub struct Login<'a> {
    /// `None`: the default user.
    pub user: Option<&'a [u8]>,
    /// The password.
    pub password: &'a [u8],
}

/// Without the password, so that no log line has it.
impl std::fmt::Debug for Login<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let user = self.user.map(String::from_utf8_lossy);
        f.debug_struct("Login")
            .field("user", &user)
            .finish_non_exhaustive()
    }
}

/// CLIENT's subcommands.
#[derive(Clone, Copy, Debug)]
pub enum Client<'a> {
    /// The connection's number.
    Id,
    /// Its name.
    GetName,
    /// Name it; an empty name takes the name away.
    SetName(&'a [u8]),
    /// Which library the client uses.
    SetInfo(ClientInfo, &'a [u8]),
    /// Describe this connection.
    Info,
    /// Describe connections.
    List(ClientFilter<'a>),
    /// Accepted: connections are never evicted.
    NoEvict,
    /// Accepted: a read moves nothing that a client could see.
    NoTouch,
}

/// What CLIENT SETINFO sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientInfo {
    /// The library's name.
    LibName,
    /// Its version.
    LibVer,
}

/// Which connections CLIENT LIST describes.
#[derive(Clone, Copy, Debug)]
pub enum ClientFilter<'a> {
    /// All that are clients.
    All,
    /// Those of a kind that this server has none of: replicas, primaries, subscribers.
    Nobody,
    /// Those with these numbers, all of which are valid.
    Ids(ArgView<'a>),
}

/// CONFIG's subcommands.
#[derive(Clone, Copy, Debug)]
pub enum Config<'a> {
    /// Settings whose names match one of these patterns.
    Get(ArgView<'a>),
    /// Names and values in turn.
    Set(ArgView<'a>),
    /// Start the statistics afresh.
    ResetStat,
    /// Write the configuration file.
    Rewrite,
}

/// CLUSTER's subcommands that need no keys.
#[derive(Clone, Copy, Debug)]
pub enum Cluster<'a> {
    /// Ranges of slots, each with its nodes.
    Slots,
    /// Nodes, each with its ranges of slots.
    Shards,
    /// Nodes, a line for each.
    Nodes,
    /// How the cluster is.
    Info,
    /// The name of the node that answers.
    MyId,
    /// Who has copies of what the node of this name owns.
    Replicas(&'a [u8]),
    /// The slot of this key.
    KeySlot(&'a [u8]),
    /// Connections between the nodes: none that a client could see.
    Links,
}

/// One key and what to do to it.
#[derive(Clone, Copy, Debug)]
pub struct KeyCommand<'a> {
    /// The key.
    pub key: &'a [u8],
    /// What to do.
    pub op: KeyOp<'a>,
}

/// One key, what to do to it, and what level that is to have.
#[derive(Clone, Copy, Debug)]
pub struct KvCommand<'a> {
    /// The key.
    pub key: &'a [u8],
    /// `None`: that of the connection.
    pub level: Option<Level>,
    /// What to do.
    pub op: KvOp<'a>,
}

/// What a KV command does.
#[derive(Clone, Copy, Debug)]
pub enum KvOp<'a> {
    /// The value and what is known of it.
    Get,
    /// Set it.
    Put {
        /// The value.
        value: &'a [u8],
        /// It expires after so many seconds.
        ttl_s: Option<u64>,
        /// Only if the key has this version.
        if_match: Option<Version>,
    },
    /// Delete it.
    Delete,
}

impl KvOp<'_> {
    /// True if it may change the key.
    pub fn is_write(&self) -> bool {
        !matches!(self, KvOp::Get)
    }
}

/// What a command does to one key.
#[derive(Clone, Copy, Debug)]
pub enum KeyOp<'a> {
    /// The value, or null.
    Get,
    /// Its length.
    Length,
    /// The bytes between two offsets, both included; negative ones count from the end.
    GetRange {
        /// First.
        start: i64,
        /// Last.
        end: i64,
    },
    /// 1 if it exists.
    Exists,
    /// 1 if it exists, as an access.
    Touch,
    /// Its type's name.
    Type,
    /// When it expires.
    Expiry(ExpiryQuestion),
    /// The encoding that Redis would choose.
    Encoding,
    /// The bytes it takes, about.
    MemoryUsage {
        /// Length of the key.
        key_bytes: usize,
    },
    /// Set it.
    Set(Set<'a>),
    /// The value, then delete.
    GetDelete,
    /// The value, then change the expiry. Whether the expiry is an impossible one matters only if
    /// the key exists.
    GetExpire(Result<NewExpiry, CommandError<'a>>),
    /// Add at the end.
    Append(&'a [u8]),
    /// Overwrite from `offset`.
    SetRange {
        /// Where.
        offset: u64,
        /// With what.
        value: &'a [u8],
    },
    /// Add to an integer.
    Add(i64),
    /// Add to a decimal number, both as text.
    AddFloat(&'a [u8]),
    /// Let it expire.
    Expire(Expire),
    /// Let it live.
    Persist,
    /// 1 if it existed, and does no more.
    Delete,
}

/// Everything that sets a whole value: SET and its older siblings.
#[derive(Clone, Copy, Debug)]
pub struct Set<'a> {
    /// The value.
    pub value: &'a [u8],
    /// When to.
    pub condition: SetCondition,
    /// The expiry it then has.
    pub expiry: NewExpiry,
    /// What to answer.
    pub answer: SetAnswer,
}

/// When to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetCondition {
    /// In any case.
    Always,
    /// If the key does not exist.
    IfAbsent,
    /// If the key exists.
    IfPresent,
}

/// What to answer to a SET.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetAnswer {
    /// OK, or null if the condition did not hold.
    Ok,
    /// 1, or 0 if the condition did not hold.
    Flag,
    /// The former value, or null.
    Former,
}

/// What becomes of a key's expiry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewExpiry {
    /// It has none.
    None,
    /// It stays as it is.
    Keep,
    /// It is this.
    At(Deadline),
}

/// When a key is to expire, as the client said it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline {
    /// Milliseconds, from `origin`.
    pub millis: i64,
    /// What they are counted from.
    pub origin: Origin,
    /// The command that said so: errors name it.
    pub command: &'static str,
}

/// What a deadline is counted from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The moment when the command is carried out.
    Now,
    /// 1970.
    Epoch,
}

/// EXPIRE and its siblings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expire {
    /// When.
    pub deadline: Deadline,
    /// NX: only if it has no expiry.
    pub if_none: bool,
    /// XX: only if it has one.
    pub if_some: bool,
    /// GT: only if this is later; none counts as never.
    pub if_later: bool,
    /// LT: only if this is earlier.
    pub if_earlier: bool,
}

/// In what form the expiry is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpiryQuestion {
    /// TTL: seconds from now.
    SecondsLeft,
    /// PTTL: milliseconds from now.
    MillisLeft,
    /// EXPIRETIME: Unix seconds.
    UnixSeconds,
    /// PEXPIRETIME: Unix milliseconds.
    UnixMillis,
}

impl KeyOp<'_> {
    /// False if it may be carried out without knowing what the key holds: a blind write.
    pub fn needs_current(&self) -> bool {
        match self {
            KeyOp::Set(set) => {
                set.condition != SetCondition::Always
                    || set.expiry == NewExpiry::Keep
                    || set.answer == SetAnswer::Former
            }
            _ => true,
        }
    }

    /// False if existence, expiry and the value's length are enough: the value may then be given as
    /// empty.
    pub fn needs_value(&self) -> bool {
        match self {
            KeyOp::Exists | KeyOp::Touch | KeyOp::Type | KeyOp::Expiry(_) | KeyOp::Delete => false,
            KeyOp::Length | KeyOp::MemoryUsage { .. } => false,
            KeyOp::Set(set) => set.answer == SetAnswer::Former,
            _ => true,
        }
    }

    /// True if it may change the key.
    pub fn is_write(&self) -> bool {
        match self {
            KeyOp::Get
            | KeyOp::Length
            | KeyOp::GetRange { .. }
            | KeyOp::Exists
            | KeyOp::Touch
            | KeyOp::Type
            | KeyOp::Expiry(_)
            | KeyOp::Encoding
            | KeyOp::MemoryUsage { .. } => false,
            KeyOp::Set(_)
            | KeyOp::GetDelete
            | KeyOp::GetExpire(_)
            | KeyOp::Append(_)
            | KeyOp::SetRange { .. }
            | KeyOp::Add(_)
            | KeyOp::AddFloat(_)
            | KeyOp::Expire(_)
            | KeyOp::Persist
            | KeyOp::Delete => true,
        }
    }
}

/// The same done to several keys, each a command of its own, and one answer made of theirs.
#[derive(Clone, Copy, Debug)]
pub struct KeysCommand<'a> {
    kind: KeysKind,
    words: ArgView<'a>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum KeysKind {
    Get,
    Set,
    Delete,
    Exists,
    Touch,
}

impl<'a> KeysCommand<'a> {
    /// The parts, in order. Parts of one key must be carried out in this order.
    pub fn parts(self) -> impl ExactSizeIterator<Item = KeyCommand<'a>> {
        (0..self.len()).map(move |index| self.part(index))
    }

    /// How many parts there are.
    pub fn len(self) -> usize {
        self.words.len() / self.step()
    }

    /// Never true: one key is the least.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// How the answers of the parts make one.
    pub fn merge(self) -> Merge {
        match self.kind {
            KeysKind::Get => Merge::Array,
            KeysKind::Set => Merge::Ok,
            KeysKind::Delete | KeysKind::Exists | KeysKind::Touch => Merge::Sum,
        }
    }

    /// True if it may change keys.
    pub fn is_write(self) -> bool {
        matches!(self.kind, KeysKind::Set | KeysKind::Delete)
    }

    fn step(self) -> usize {
        if self.kind == KeysKind::Set { 2 } else { 1 }
    }

    fn part(self, index: usize) -> KeyCommand<'a> {
        let at = index * self.step();
        let op = match self.kind {
            KeysKind::Get => KeyOp::Get,
            KeysKind::Delete => KeyOp::Delete,
            KeysKind::Exists => KeyOp::Exists,
            KeysKind::Touch => KeyOp::Touch,
            KeysKind::Set => KeyOp::Set(Set {
                value: self.words.get(at + 1).unwrap_or_default(),
                condition: SetCondition::Always,
                expiry: NewExpiry::None,
                answer: SetAnswer::Ok,
            }),
        };
        KeyCommand {
            key: self.words.get(at).unwrap_or_default(),
            op,
        }
    }
}

/// What concerns all keys.
#[derive(Clone, Copy, Debug)]
pub enum StoreCommand<'a> {
    /// One page of the keys.
    Scan(Scan<'a>),
    /// All keys that match.
    Keys {
        /// Glob pattern.
        pattern: &'a [u8],
    },
    /// How many there are.
    Size,
    /// Any one.
    RandomKey,
    /// How many there are in this slot.
    CountInSlot(Slot),
    /// Some of those in this slot.
    KeysInSlot {
        /// The slot.
        slot: Slot,
        /// So many at most.
        count: u64,
    },
    /// Delete all.
    Flush,
}

/// SCAN's arguments.
#[derive(Clone, Copy, Debug)]
pub struct Scan<'a> {
    /// Where to go on; 0: at the start.
    pub cursor: u64,
    /// Only keys that match.
    pub pattern: Option<&'a [u8]>,
    /// About how many keys to look at.
    pub count: u64,
    /// False: only keys of a type that this server has none of are wanted.
    pub strings: bool,
}
