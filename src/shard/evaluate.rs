//! What a command does to one key: from what the key holds and what is asked, the reply and what
//! the key holds afterwards.
//!
//! A pure function: no store, no clock, no waiting. Who calls it sees to it that nothing else
//! changes the key between reading `current` and storing the effect, and stores before it lets
//! the client see the reply.

use std::borrow::Cow;

use crate::protocol::command::{
    CommandError, Deadline, Expire, ExpiryQuestion, KeyOp, NewExpiry, Origin, Set, SetAnswer,
    SetCondition,
};
use crate::protocol::number::{self, FloatError};
use crate::protocol::reply::Reply;
use crate::types::UnixMillis;

/// What a key takes besides its own bytes and its value's, about: a record's header, its entry
/// in the sorted memory.
const KEY_OVERHEAD_BYTES: usize = 64;
/// Up to this length Redis keeps a string within its object, and calls it "embstr".
const EMBEDDED_BYTES_MAX: usize = 44;

/// The reply to a write that would make a value longer than `limits.value-max`.
pub const TOO_LONG: &str = "ERR string exceeds maximum allowed size (proto-max-bulk-len)";

/// A key's live value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Current<'a> {
    /// Its bytes; may be empty if the operation does not need them.
    pub value: &'a [u8],
    /// How many it has, also if they are not given.
    pub length: u32,
    /// When it expires; 0: never.
    pub expiry: UnixMillis,
}

/// What is to become of the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect<'a> {
    /// It stays as it is; nothing is written.
    None,
    /// It holds this.
    Put {
        /// The value.
        value: Cow<'a, [u8]>,
        /// When it expires; 0: never.
        expiry: UnixMillis,
    },
    /// It is gone.
    Delete,
}

impl<'a> Effect<'a> {
    fn put(value: impl Into<Cow<'a, [u8]>>, expiry: UnixMillis) -> Effect<'a> {
        Effect::Put {
            value: value.into(),
            expiry,
        }
    }
}

/// Carries out `op` on a key that holds `current`: `None` if it does not exist, has been deleted
/// or has expired at `now`. Writes exactly one reply.
pub fn evaluate<'a>(
    op: &KeyOp<'a>,
    current: Option<Current<'a>>,
    now: UnixMillis,
    value_bytes_max: usize,
    reply: &mut Reply<'_>,
) -> Effect<'a> {
    if let Some(current) = current {
        assert!(
            current.expiry == 0 || now < current.expiry,
            "an expired value is no current one"
        );
    }
    match *op {
        KeyOp::Set(ref set) => self::set(set, current, now, value_bytes_max, reply),
        KeyOp::GetDelete => get_delete(current, reply),
        KeyOp::GetExpire(expiry) => get_expire(expiry, current, now, reply),
        KeyOp::Append(tail) => append(tail, current, value_bytes_max, reply),
        KeyOp::SetRange { offset, value } => {
            set_range(offset, value, current, value_bytes_max, reply)
        }
        KeyOp::Add(amount) => add(amount, current, reply),
        KeyOp::AddFloat(amount) => add_float(amount, current, reply),
        KeyOp::Expire(ref expire) => self::expire(expire, current, now, reply),
        KeyOp::Persist => persist(current, reply),
        KeyOp::Delete => delete(current, reply),
        _ => {
            read(op, current, now, reply);
            Effect::None
        }
    }
}

/// The operations that change nothing.
fn read(op: &KeyOp<'_>, current: Option<Current<'_>>, now: UnixMillis, reply: &mut Reply<'_>) {
    assert!(!op.is_write(), "{op:?} has an effect");
    let value = current.map(|current| current.value);
    match *op {
        KeyOp::Length => reply.integer(current.map_or(0, |current| i64::from(current.length))),
        KeyOp::GetRange { start, end } => reply.bulk(range(value.unwrap_or_default(), start, end)),
        KeyOp::Exists | KeyOp::Touch => reply.integer(i64::from(current.is_some())),
        KeyOp::Type => reply.simple(if current.is_some() { "string" } else { "none" }),
        KeyOp::Expiry(question) => {
            let expiry = current.map(|current| current.expiry);
            reply.integer(tell_expiry(question, expiry, now));
        }
        KeyOp::Encoding => bulk_or_null(value.map(|value| encoding(value).as_bytes()), reply),
        KeyOp::MemoryUsage { key_bytes } => match current {
            Some(current) => {
                let besides = (key_bytes + KEY_OVERHEAD_BYTES) as i64;
                reply.integer(i64::from(current.length) + besides);
            }
            None => reply.null(),
        },
        _ => bulk_or_null(value, reply), // GET: the others are writes, see above.
    }
}

fn bulk_or_null(bytes: Option<&[u8]>, reply: &mut Reply<'_>) {
    match bytes {
        Some(bytes) => reply.bulk(bytes),
        None => reply.null(),
    }
}

fn length(value: &[u8]) -> i64 {
    value.len() as i64
}

/// The bytes from `start` to `end`, both included; negative ones count from the end.
fn range(value: &[u8], start: i64, end: i64) -> &[u8] {
    if start < 0 && end < 0 && start > end {
        return &[];
    }
    let from_front = |at: i64| {
        if at < 0 {
            (at + length(value)).max(0)
        } else {
            at
        }
    };
    let (start, end) = (from_front(start), from_front(end).min(length(value) - 1));
    if start > end {
        &[]
    } else {
        &value[start as usize..=end as usize]
    }
}

/// `expiry` is `None` if there is no such key.
fn tell_expiry(question: ExpiryQuestion, expiry: Option<UnixMillis>, now: UnixMillis) -> i64 {
    const NO_KEY: i64 = -2;
    const NO_EXPIRY: i64 = -1;
    let seconds = |millis: u64| (millis + 500) / 1000;
    let answer = match (expiry, question) {
        (None, _) => return NO_KEY,
        (Some(0), _) => return NO_EXPIRY,
        (Some(at), ExpiryQuestion::UnixMillis) => at,
        (Some(at), ExpiryQuestion::UnixSeconds) => seconds(at),
        (Some(at), ExpiryQuestion::MillisLeft) => at.saturating_sub(now),
        (Some(at), ExpiryQuestion::SecondsLeft) => seconds(at.saturating_sub(now)),
    };
    answer as i64
}

/// What Redis would answer for a value just set.
fn encoding(value: &[u8]) -> &'static str {
    if number::parse_i64(value).is_some() {
        "int"
    } else if value.len() <= EMBEDDED_BYTES_MAX {
        "embstr"
    } else {
        "raw"
    }
}

/// A deadline on the clock; `None`: beyond what 64 bits hold.
fn resolve(deadline: Deadline, now: UnixMillis) -> Option<i64> {
    match deadline.origin {
        Origin::Epoch => Some(deadline.millis),
        Origin::Now => i64::try_from(now).ok()?.checked_add(deadline.millis),
    }
}

fn refuse_deadline(deadline: Deadline, reply: &mut Reply<'_>) {
    CommandError::ExpireTime(deadline.command).reply(reply);
}

/// The key with this value, unless it has expired at the same moment.
fn put_until<'a>(value: &'a [u8], at: i64, now: UnixMillis) -> Effect<'a> {
    match u64::try_from(at) {
        Ok(expiry) if expiry > now => Effect::put(value, expiry),
        _ => Effect::Delete,
    }
}

fn set<'a>(
    set: &Set<'a>,
    current: Option<Current<'a>>,
    now: UnixMillis,
    value_bytes_max: usize,
    reply: &mut Reply<'_>,
) -> Effect<'a> {
    let effect = match set.expiry {
        _ if set.value.len() > value_bytes_max => {
            reply.error(TOO_LONG);
            return Effect::None;
        }
        NewExpiry::None => Effect::put(set.value, 0),
        NewExpiry::Keep => Effect::put(set.value, current.map_or(0, |current| current.expiry)),
        NewExpiry::At(deadline) => match resolve(deadline, now) {
            Some(at) => put_until(set.value, at, now),
            None => {
                refuse_deadline(deadline, reply);
                return Effect::None;
            }
        },
    };
    let holds = match set.condition {
        SetCondition::Always => true,
        SetCondition::IfAbsent => current.is_none(),
        SetCondition::IfPresent => current.is_some(),
    };
    match set.answer {
        SetAnswer::Former => bulk_or_null(current.map(|current| current.value), reply),
        SetAnswer::Flag => reply.integer(i64::from(holds)),
        SetAnswer::Ok if holds => reply.ok(),
        SetAnswer::Ok => reply.null(),
    }
    if holds { effect } else { Effect::None }
}

fn get_delete<'a>(current: Option<Current<'a>>, reply: &mut Reply<'_>) -> Effect<'a> {
    bulk_or_null(current.map(|current| current.value), reply);
    if current.is_some() {
        Effect::Delete
    } else {
        Effect::None
    }
}

fn get_expire<'a>(
    expiry: Result<NewExpiry, CommandError<'a>>,
    current: Option<Current<'a>>,
    now: UnixMillis,
    reply: &mut Reply<'_>,
) -> Effect<'a> {
    let Some(current) = current else {
        reply.null();
        return Effect::None;
    };
    let effect = match expiry {
        Err(error) => {
            error.reply(reply);
            return Effect::None;
        }
        Ok(NewExpiry::At(deadline)) => match resolve(deadline, now) {
            Some(at) => put_until(current.value, at, now),
            None => {
                refuse_deadline(deadline, reply);
                return Effect::None;
            }
        },
        Ok(NewExpiry::None) if current.expiry != 0 => Effect::put(current.value, 0),
        Ok(NewExpiry::None | NewExpiry::Keep) => Effect::None,
    };
    reply.bulk(current.value);
    effect
}

fn append<'a>(
    tail: &'a [u8],
    current: Option<Current<'a>>,
    value_bytes_max: usize,
    reply: &mut Reply<'_>,
) -> Effect<'a> {
    let (head, expiry) = current.map_or((&[][..], 0), |current| (current.value, current.expiry));
    let total = head.len() + tail.len();
    if total > value_bytes_max {
        reply.error(TOO_LONG);
        return Effect::None;
    }
    reply.integer(total as i64);
    if current.is_none() {
        Effect::put(tail, 0)
    } else {
        Effect::put([head, tail].concat(), expiry)
    }
}

fn set_range<'a>(
    offset: u64,
    value: &'a [u8],
    current: Option<Current<'a>>,
    value_bytes_max: usize,
    reply: &mut Reply<'_>,
) -> Effect<'a> {
    let (old, expiry) = current.map_or((&[][..], 0), |current| (current.value, current.expiry));
    if value.is_empty() {
        reply.integer(length(old));
        return Effect::None;
    }
    let end = offset.saturating_add(value.len() as u64);
    if end > value_bytes_max as u64 {
        reply.error(TOO_LONG);
        return Effect::None;
    }
    let (offset, end) = (offset as usize, end as usize);
    let mut new = Vec::with_capacity(old.len().max(end));
    new.extend_from_slice(old);
    new.resize(old.len().max(end), 0);
    new[offset..end].copy_from_slice(value);
    reply.integer(length(&new));
    Effect::put(new, expiry)
}

fn add<'a>(amount: i64, current: Option<Current<'a>>, reply: &mut Reply<'_>) -> Effect<'a> {
    let (text, expiry) = current.map_or((&b"0"[..], 0), |current| (current.value, current.expiry));
    let Some(number) = number::parse_i64(text) else {
        CommandError::NOT_AN_INTEGER.reply(reply);
        return Effect::None;
    };
    let Some(sum) = number.checked_add(amount) else {
        reply.error("ERR increment or decrement would overflow");
        return Effect::None;
    };
    reply.integer(sum);
    Effect::put(sum.to_string().into_bytes(), expiry)
}

fn add_float<'a>(amount: &[u8], current: Option<Current<'a>>, reply: &mut Reply<'_>) -> Effect<'a> {
    let (text, expiry) = current.map_or((&b"0"[..], 0), |current| (current.value, current.expiry));
    match number::add_float(text, amount) {
        Ok(sum) => {
            reply.bulk(sum.as_bytes());
            Effect::put(sum.into_bytes(), expiry)
        }
        Err(FloatError::NotFloat) => {
            reply.error("ERR value is not a valid float");
            Effect::None
        }
        Err(FloatError::NotFinite) => {
            reply.error("ERR increment would produce NaN or Infinity");
            Effect::None
        }
    }
}

fn expire<'a>(
    expire: &Expire,
    current: Option<Current<'a>>,
    now: UnixMillis,
    reply: &mut Reply<'_>,
) -> Effect<'a> {
    let Some(at) = resolve(expire.deadline, now) else {
        refuse_deadline(expire.deadline, reply);
        return Effect::None;
    };
    let current = current.filter(|current| may_expire(expire, current.expiry, at));
    reply.integer(i64::from(current.is_some()));
    current.map_or(Effect::None, |current| put_until(current.value, at, now))
}

/// True if EXPIRE's options let `at` take the place of `expiry`. No expiry is later than any.
fn may_expire(expire: &Expire, expiry: UnixMillis, at: i64) -> bool {
    let former = i64::try_from(expiry).unwrap_or(i64::MAX);
    let has_one = expiry != 0;
    !(expire.if_none && has_one
        || expire.if_some && !has_one
        || expire.if_later && (!has_one || at <= former)
        || expire.if_earlier && has_one && at >= former)
}

fn persist<'a>(current: Option<Current<'a>>, reply: &mut Reply<'_>) -> Effect<'a> {
    let expiring = current.filter(|current| current.expiry != 0);
    reply.integer(i64::from(expiring.is_some()));
    expiring.map_or(Effect::None, |current| Effect::put(current.value, 0))
}

fn delete<'a>(current: Option<Current<'a>>, reply: &mut Reply<'_>) -> Effect<'a> {
    reply.integer(i64::from(current.is_some()));
    if current.is_some() {
        Effect::Delete
    } else {
        Effect::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::command::{self, Command, KeyCommand};
    use crate::protocol::{OwnedArgs, Protocol};

    const NOW: UnixMillis = 1_000_000;
    const VALUE_BYTES_MAX: usize = 64;

    /// What `line` answers and does to a key that holds `current`.
    fn run(line: &str, current: Option<(&str, UnixMillis)>) -> (String, Effect<'static>) {
        let mut args = OwnedArgs::new();
        line.split(' ').for_each(|word| args.push(word.as_bytes()));
        let mut out = Vec::new();
        let mut reply = Reply::new(&mut out, Protocol::Resp2);
        let effect = match command::parse(args.view()) {
            Ok(Command::Key(KeyCommand { op, .. })) => {
                let current = current.map(|(value, expiry)| Current {
                    value: value.as_bytes(),
                    length: value.len() as u32,
                    expiry,
                });
                match evaluate(&op, current, NOW, VALUE_BYTES_MAX, &mut reply) {
                    Effect::Put { value, expiry } => Effect::put(value.into_owned(), expiry),
                    Effect::Delete => Effect::Delete,
                    Effect::None => Effect::None,
                }
            }
            Err(error) => {
                error.reply(&mut reply);
                Effect::None
            }
            Ok(other) => panic!("{line}: {other:?}"),
        };
        (String::from_utf8(out).expect("only text goes in"), effect)
    }

    /// A case: what is asked, what the key holds, the reply and the effect.
    type Case = (
        &'static str,
        Option<(&'static str, UnixMillis)>,
        &'static str,
        Effect<'static>,
    );

    fn check(cases: &[Case]) {
        for (line, current, reply, effect) in cases {
            let got = run(line, *current);
            assert_eq!(got.0, *reply, "{line} on {current:?}: the reply");
            assert_eq!(got.1, *effect, "{line} on {current:?}: the effect");
        }
    }

    fn put(value: &str, expiry: UnixMillis) -> Effect<'static> {
        Effect::put(value.as_bytes().to_vec(), expiry)
    }

    const NULL: &str = "$-1\r\n";
    const OK: &str = "+OK\r\n";
    const SYNTAX: &str = "-ERR syntax error\r\n";
    const NOT_AN_INTEGER: &str = "-ERR value is not an integer or out of range\r\n";

    #[test]
    fn set_replaces_value_and_expiry_unless_told_otherwise() {
        let old = Some(("old", NOW + 7));
        check(&[
            ("set k v", None, OK, put("v", 0)),
            ("set k v", old, OK, put("v", 0)),
            ("set k v keepttl", old, OK, put("v", NOW + 7)),
            ("set k v keepttl", None, OK, put("v", 0)),
            ("set k v ex 2", old, OK, put("v", NOW + 2000)),
            ("set k v px 2", old, OK, put("v", NOW + 2)),
            ("set k v exat 2000", old, OK, put("v", 2_000_000)),
            ("set k v pxat 2000000", old, OK, put("v", 2_000_000)),
            ("setex k 2 v", old, OK, put("v", NOW + 2000)),
            ("psetex k 2 v", old, OK, put("v", NOW + 2)),
            ("getset k v", old, "$3\r\nold\r\n", put("v", 0)),
            ("set k v get", None, NULL, put("v", 0)),
        ]);
    }

    #[test]
    fn set_on_a_condition_writes_only_if_it_holds() {
        let old = Some(("old", 0));
        check(&[
            ("set k v nx", None, OK, put("v", 0)),
            ("set k v nx", old, NULL, Effect::None),
            ("set k v xx", None, NULL, Effect::None),
            ("set k v xx", old, OK, put("v", 0)),
            ("set k v nx get", old, "$3\r\nold\r\n", Effect::None),
            ("set k v nx get", None, NULL, put("v", 0)),
            ("set k v xx get", old, "$3\r\nold\r\n", put("v", 0)),
            ("setnx k v", None, ":1\r\n", put("v", 0)),
            ("setnx k v", old, ":0\r\n", Effect::None),
            ("set k v nx xx", old, SYNTAX, Effect::None),
        ]);
    }

    #[test]
    fn a_write_into_the_past_deletes() {
        let old = Some(("old", 0));
        check(&[
            ("set k v pxat 1", old, OK, Effect::Delete),
            ("set k v pxat 1000000", None, OK, Effect::Delete),
            ("set k v pxat 1000001", None, OK, put("v", NOW + 1)),
            ("expireat k 1000", old, ":1\r\n", Effect::Delete),
            ("pexpireat k 1000001", old, ":1\r\n", put("old", NOW + 1)),
            ("expire k -1", old, ":1\r\n", Effect::Delete),
            ("expire k 0", old, ":1\r\n", Effect::Delete),
            ("expire k 0", None, ":0\r\n", Effect::None),
            ("getex k exat 1", old, "$3\r\nold\r\n", Effect::Delete),
        ]);
    }

    #[test]
    fn an_impossible_expiry_is_refused_and_changes_nothing() {
        let old = Some(("old", 0));
        let refused = |name: &str| format!("-ERR invalid expire time in '{name}' command\r\n");
        for (name, line) in [
            ("set", "set k v ex 0"),
            ("set", "set k v px -1"),
            ("set", "set k v ex 9223372036854775807"),
            ("set", "set k v px 9223372036854775807"),
            ("setex", "setex k 0 v"),
            ("psetex", "psetex k 9223372036854775807 v"),
            ("getex", "getex k px 9223372036854775807"),
            ("getex", "getex k ex 0"),
            ("expire", "expire k 9223372036854775807"),
            ("pexpire", "pexpire k 9223372036854775807"),
            ("expireat", "expireat k -9223372036854775808"),
        ] {
            assert_eq!(run(line, old), (refused(name), Effect::None), "{line}");
        }
        check(&[
            ("getex k ex 0", None, NULL, Effect::None),
            ("getex k ex x", None, NULL, Effect::None),
        ]);
    }

    #[test]
    fn expire_heeds_its_conditions() {
        let (eternal, mortal) = (Some(("v", 0)), Some(("v", NOW + 5000)));
        let (yes, no) = (":1\r\n", ":0\r\n");
        check(&[
            ("expire k 1 nx", eternal, yes, put("v", NOW + 1000)),
            ("expire k 1 nx", mortal, no, Effect::None),
            ("expire k 1 xx", eternal, no, Effect::None),
            ("expire k 1 xx", mortal, yes, put("v", NOW + 1000)),
            ("expire k 5 gt", mortal, no, Effect::None),
            ("expire k 6 gt", mortal, yes, put("v", NOW + 6000)),
            ("expire k 6 gt", eternal, no, Effect::None),
            ("expire k 5 lt", mortal, no, Effect::None),
            ("expire k 4 lt", mortal, yes, put("v", NOW + 4000)),
            ("expire k 4 lt", eternal, yes, put("v", NOW + 4000)),
            ("expire k 4 xx lt", eternal, no, Effect::None),
            ("expire k -1 gt", mortal, no, Effect::None),
            ("persist k", mortal, yes, put("v", 0)),
            ("persist k", eternal, no, Effect::None),
            ("persist k", None, no, Effect::None),
        ]);
    }

    #[test]
    fn times_left_are_rounded_and_absences_told_apart() {
        let mortal = Some(("v", NOW + 1500));
        check(&[
            ("ttl k", None, ":-2\r\n", Effect::None),
            ("ttl k", Some(("v", 0)), ":-1\r\n", Effect::None),
            ("ttl k", mortal, ":2\r\n", Effect::None),
            ("ttl k", Some(("v", NOW + 1499)), ":1\r\n", Effect::None),
            ("pttl k", mortal, ":1500\r\n", Effect::None),
            ("expiretime k", mortal, ":1002\r\n", Effect::None),
            ("pexpiretime k", mortal, ":1001500\r\n", Effect::None),
        ]);
    }

    #[test]
    fn reads_of_a_value() {
        let value = Some(("hello", 0));
        check(&[
            ("get k", value, "$5\r\nhello\r\n", Effect::None),
            ("get k", None, NULL, Effect::None),
            ("strlen k", value, ":5\r\n", Effect::None),
            ("strlen k", None, ":0\r\n", Effect::None),
            ("type k", value, "+string\r\n", Effect::None),
            ("type k", None, "+none\r\n", Effect::None),
            ("getrange k 1 3", value, "$3\r\nell\r\n", Effect::None),
            ("getrange k -3 -1", value, "$3\r\nllo\r\n", Effect::None),
            (
                "getrange k -100 100",
                value,
                "$5\r\nhello\r\n",
                Effect::None,
            ),
            ("getrange k 5 9", value, "$0\r\n\r\n", Effect::None),
            ("getrange k -1 -3", value, "$0\r\n\r\n", Effect::None),
            (
                "getrange k -9223372036854775808 9223372036854775807",
                value,
                "$5\r\nhello\r\n",
                Effect::None,
            ),
            ("getrange k 0 -1", None, "$0\r\n\r\n", Effect::None),
            ("object encoding k", value, "$6\r\nembstr\r\n", Effect::None),
            (
                "object encoding k",
                Some(("12", 0)),
                "$3\r\nint\r\n",
                Effect::None,
            ),
            ("object encoding k", None, NULL, Effect::None),
            ("memory usage k", value, ":70\r\n", Effect::None),
            ("memory usage k", None, NULL, Effect::None),
        ]);
    }

    #[test]
    fn changes_of_a_value_keep_its_expiry() {
        let (text, number) = (Some(("hello", NOW + 9)), Some(("10", NOW + 9)));
        check(&[
            ("append k !", text, ":6\r\n", put("hello!", NOW + 9)),
            ("append k !", None, ":1\r\n", put("!", 0)),
            ("setrange k 1 EL", text, ":5\r\n", put("hELlo", NOW + 9)),
            ("setrange k 6 x", text, ":7\r\n", put("hello\0x", NOW + 9)),
            ("setrange k 2 x", None, ":3\r\n", put("\0\0x", 0)),
            ("setrange k 9 ", None, ":0\r\n", Effect::None),
            ("setrange k 9 ", text, ":5\r\n", Effect::None),
            ("incr k", number, ":11\r\n", put("11", NOW + 9)),
            ("incr k", None, ":1\r\n", put("1", 0)),
            ("decrby k 15", number, ":-5\r\n", put("-5", NOW + 9)),
            (
                "incrbyfloat k 0.5",
                number,
                "$4\r\n10.5\r\n",
                put("10.5", NOW + 9),
            ),
            ("getex k", number, "$2\r\n10\r\n", Effect::None),
            ("getex k persist", number, "$2\r\n10\r\n", put("10", 0)),
            ("getdel k", number, "$2\r\n10\r\n", Effect::Delete),
            ("getdel k", None, NULL, Effect::None),
        ]);
    }

    #[test]
    fn what_does_not_fit_is_refused_and_changes_nothing() {
        let long = Some((
            "0123456789012345678901234567890123456789012345678901234567890123",
            0,
        ));
        let too_long = "-ERR string exceeds maximum allowed size (proto-max-bulk-len)\r\n";
        let overflow = "-ERR increment or decrement would overflow\r\n";
        check(&[
            ("append k x", long, too_long, Effect::None),
            ("setrange k 64 x", None, too_long, Effect::None),
            (
                "setrange k 9223372036854775807 x",
                None,
                too_long,
                Effect::None,
            ),
            (
                "setrange k -1 x",
                None,
                "-ERR offset is out of range\r\n",
                Effect::None,
            ),
            (
                "incr k",
                Some(("9223372036854775807", 0)),
                overflow,
                Effect::None,
            ),
            (
                "decr k",
                Some(("-9223372036854775808", 0)),
                overflow,
                Effect::None,
            ),
            (
                "decrby k -9223372036854775808",
                None,
                "-ERR decrement would overflow\r\n",
                Effect::None,
            ),
            ("incr k", Some(("1.5", 0)), NOT_AN_INTEGER, Effect::None),
            ("incr k", Some((" 1", 0)), NOT_AN_INTEGER, Effect::None),
            ("incrby k 1.5", None, NOT_AN_INTEGER, Effect::None),
            (
                "incrbyfloat k x",
                None,
                "-ERR value is not a valid float\r\n",
                Effect::None,
            ),
            (
                "incrbyfloat k inf",
                None,
                "-ERR increment would produce NaN or Infinity\r\n",
                Effect::None,
            ),
        ]);
        let (reply, effect) = run(&format!("set k {}", "x".repeat(VALUE_BYTES_MAX + 1)), None);
        assert_eq!(
            (&*reply, effect),
            (too_long, Effect::None),
            "a SET beyond the bound"
        );
        let (_, effect) = run(&format!("set k {}", "x".repeat(VALUE_BYTES_MAX)), None);
        assert_ne!(effect, Effect::None, "a SET at the bound");
    }

    #[test]
    fn what_needs_nothing_is_blind_to_what_is_there() {
        // Each of these must do the same whatever the key holds, if `needs_current` says so.
        for line in [
            "set k v",
            "set k v ex 5",
            "set k v pxat 1",
            "setex k 5 v",
            "psetex k 5 v",
        ] {
            assert_eq!(
                run(line, None),
                run(line, Some(("old", NOW + 5))),
                "{line} is a blind write"
            );
        }
    }

    #[test]
    fn a_plain_set_and_a_change_of_expiry_copy_no_value() {
        let set = KeyOp::Set(Set {
            value: b"value",
            condition: SetCondition::Always,
            expiry: NewExpiry::None,
            answer: SetAnswer::Ok,
        });
        let current = Some(Current {
            value: b"held",
            length: 4,
            expiry: NOW + 1,
        });
        for (op, current) in [(set, None), (KeyOp::Persist, current)] {
            let mut out = Vec::new();
            let mut reply = Reply::new(&mut out, Protocol::Resp2);
            let effect = evaluate(&op, current, NOW, VALUE_BYTES_MAX, &mut reply);
            let borrowed = matches!(
                effect,
                Effect::Put {
                    value: Cow::Borrowed(_),
                    ..
                }
            );
            assert!(borrowed, "{op:?} copied a value: {effect:?}");
        }
    }
}
