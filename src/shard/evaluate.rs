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

const TOO_LONG: &str = "ERR string exceeds maximum allowed size (proto-max-bulk-len)";

/// A key's live value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Current<'a> {
    /// Its bytes; may be empty if the operation does not need them.
    pub value: &'a [u8],
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
        Effect::Put { value: value.into(), expiry }
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
        assert!(current.expiry == 0 || now < current.expiry, "an expired value is no current one");
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
        KeyOp::Length => reply.integer(value.map_or(0, length)),
        KeyOp::GetRange { start, end } => reply.bulk(range(value.unwrap_or_default(), start, end)),
        KeyOp::Exists | KeyOp::Touch => reply.integer(i64::from(current.is_some())),
        KeyOp::Type => reply.simple(if current.is_some() { "string" } else { "none" }),
        KeyOp::Expiry(question) => {
            let expiry = current.map(|current| current.expiry);
            reply.integer(tell_expiry(question, expiry, now));
        }
        KeyOp::Encoding => bulk_or_null(value.map(|value| encoding(value).as_bytes()), reply),
        KeyOp::MemoryUsage { key_bytes } => match value {
            Some(value) => reply.integer(length(value) + (key_bytes + KEY_OVERHEAD_BYTES) as i64),
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
    let from_front = |at: i64| if at < 0 { (at + length(value)).max(0) } else { at };
    let (start, end) = (from_front(start), from_front(end).min(length(value) - 1));
    if start > end { &[] } else { &value[start as usize..=end as usize] }
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
    if current.is_some() { Effect::Delete } else { Effect::None }
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
    if current.is_some() { Effect::Delete } else { Effect::None }
}
