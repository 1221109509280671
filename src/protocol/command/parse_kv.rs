//! The arguments of the KV commands, given their types: keys with versions and levels, as HTTP has
//! them.

use super::parse::{Call, Parsed, integer, is, session};
use super::*;
use crate::config::TTL_SECONDS_MAX;

const BAD_LEVEL: CommandError<'_> = CommandError::Text("ERR a level is ONE, QUORUM or ALL");
const BAD_VERSION: CommandError<'_> =
    CommandError::Text("ERR a version is as KV.GET and KV.PUT tell it");

fn level<'a>(word: &[u8]) -> Result<Level, CommandError<'a>> {
    Level::parse(word).ok_or(BAD_LEVEL)
}

/// The options behind the key and the value, each once at most.
#[derive(Default)]
struct Options<'a> {
    ttl: Option<&'a [u8]>,
    level: Option<&'a [u8]>,
    if_match: Option<&'a [u8]>,
}

impl<'a> Options<'a> {
    /// `for_put`: those that only KV.PUT has are options, too.
    fn read(args: ArgView<'a>, for_put: bool) -> Result<Options<'a>, CommandError<'a>> {
        let mut options = Options::default();
        let mut words = args.iter();
        while let Some(word) = words.next() {
            let place = match () {
                () if is(word, "CONSISTENCY") => &mut options.level,
                () if for_put && is(word, "TTL") => &mut options.ttl,
                () if for_put && is(word, "IFMATCH") => &mut options.if_match,
                () => return Err(CommandError::SYNTAX),
            };
            let value = words.next().ok_or(CommandError::SYNTAX)?;
            if place.replace(value).is_some() {
                return Err(CommandError::SYNTAX);
            }
        }
        Ok(options)
    }
}

fn kv<'a>(call: Call<'a>, options: &Options<'a>, op: KvOp<'a>) -> Parsed<'a> {
    Ok(Command::Kv(KvCommand {
        key: call.word(1),
        level: options.level.map(level).transpose()?,
        op,
    }))
}

pub(super) fn put(call: Call<'_>) -> Parsed<'_> {
    let options = Options::read(call.args.from(3), true)?;
    let ttl = |word| match u64::try_from(integer(word)?) {
        Ok(seconds @ 1..=TTL_SECONDS_MAX) => Ok(seconds),
        _ => Err(CommandError::ExpireTime(call.spec.name)),
    };
    let version = |word| Version::parse(word).ok_or(BAD_VERSION);
    let op = KvOp::Put {
        value: call.word(2),
        ttl_s: options.ttl.map(ttl).transpose()?,
        if_match: options.if_match.map(version).transpose()?,
    };
    kv(call, &options, op)
}

pub(super) fn get(call: Call<'_>) -> Parsed<'_> {
    kv(call, &Options::read(call.args.from(2), false)?, KvOp::Get)
}

pub(super) fn del(call: Call<'_>) -> Parsed<'_> {
    kv(
        call,
        &Options::read(call.args.from(2), false)?,
        KvOp::Delete,
    )
}

pub(super) fn consistency(call: Call<'_>) -> Parsed<'_> {
    let (mut read, mut write) = (None, None);
    let mut words = call.args.from(1).iter();
    while let Some(word) = words.next() {
        let place = match () {
            () if is(word, "READ") => &mut read,
            () if is(word, "WRITE") => &mut write,
            () => return Err(CommandError::SYNTAX),
        };
        let chosen = level(words.next().ok_or(CommandError::SYNTAX)?)?;
        if place.replace(chosen).is_some() {
            return Err(CommandError::SYNTAX);
        }
    }
    session(Session::Consistency { read, write })
}
