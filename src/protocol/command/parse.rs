//! The arguments of each command, given their types: one function for each row of the table.
//!
//! [`Spec::of`] has checked the number of arguments: `word` relies on the row's arity. Checks
//! stand in Redis's order, so that a request with two faults is refused for the same one.

use super::*;
use crate::protocol::number::parse_i64;

/// What every function here returns.
pub(super) type Parsed<'a> = Result<Command<'a>, CommandError<'a>>;

/// How many keys SCAN looks at in a call if it is not told.
const SCAN_COUNT_DEFAULT: u64 = 10;

/// A request whose row of the table has been found.
#[derive(Clone, Copy)]
pub(super) struct Call<'a> {
    pub(super) spec: &'static Spec,
    pub(super) args: ArgView<'a>,
}

impl<'a> Call<'a> {
    /// Argument `index`, which the arity promises.
    pub(super) fn word(self, index: usize) -> &'a [u8] {
        self.args.get(index).unwrap_or_default()
    }

    pub(super) fn integer(self, index: usize) -> Result<i64, CommandError<'a>> {
        integer(self.word(index))
    }

    fn on_key(self, op: KeyOp<'a>) -> Parsed<'a> {
        Ok(Command::Key(KeyCommand {
            key: self.word(usize::from(self.spec.keys.first)),
            op,
        }))
    }

    fn on_keys(self, kind: KeysKind) -> Parsed<'a> {
        Ok(Command::Keys(KeysCommand {
            kind,
            words: self.args.from(1),
        }))
    }

    fn invalid_expire_time(self) -> CommandError<'a> {
        CommandError::ExpireTime(self.spec.name)
    }

    /// `amount` of `unit` as a deadline, if it fits one.
    fn deadline(
        self,
        amount: i64,
        unit: Unit,
        origin: Origin,
    ) -> Result<Deadline, CommandError<'a>> {
        let millis = match unit {
            Unit::Seconds => amount.checked_mul(1000),
            Unit::Millis => Some(amount),
        };
        let millis = millis.ok_or(self.invalid_expire_time())?;
        Ok(Deadline {
            millis,
            origin,
            command: self.spec.name,
        })
    }

    /// The expiry of a key that is set: never one before its origin.
    fn expiry(
        self,
        word: &[u8],
        unit: Unit,
        origin: Origin,
    ) -> Result<NewExpiry, CommandError<'a>> {
        let amount = integer(word)?;
        if amount <= 0 {
            return Err(self.invalid_expire_time());
        }
        self.deadline(amount, unit, origin).map(NewExpiry::At)
    }
}

#[derive(Clone, Copy)]
enum Unit {
    Seconds,
    Millis,
}

pub(super) fn is(word: &[u8], option: &str) -> bool {
    word.eq_ignore_ascii_case(option.as_bytes())
}

pub(super) fn integer<'a>(word: &[u8]) -> Result<i64, CommandError<'a>> {
    parse_i64(word).ok_or(CommandError::NOT_AN_INTEGER)
}

pub(super) fn session(command: Session<'_>) -> Parsed<'_> {
    Ok(Command::Session(command))
}

pub(super) fn store(command: StoreCommand<'_>) -> Parsed<'_> {
    Ok(Command::Store(command))
}

// Strings.

pub(super) fn get(call: Call<'_>) -> Parsed<'_> {
    call.on_key(KeyOp::Get)
}

pub(super) fn strlen(call: Call<'_>) -> Parsed<'_> {
    call.on_key(KeyOp::Length)
}

pub(super) fn get_range(call: Call<'_>) -> Parsed<'_> {
    call.on_key(KeyOp::GetRange {
        start: call.integer(2)?,
        end: call.integer(3)?,
    })
}

pub(super) fn get_del(call: Call<'_>) -> Parsed<'_> {
    call.on_key(KeyOp::GetDelete)
}

pub(super) fn get_ex(call: Call<'_>) -> Parsed<'_> {
    let options = SetOptions::read(call.args.from(2), Dialect::GetEx)?;
    let expiry = match options.expiry {
        Some((word, unit, origin)) => call.expiry(word, unit, origin),
        None if options.persist => Ok(NewExpiry::None),
        None => Ok(NewExpiry::Keep),
    };
    call.on_key(KeyOp::GetExpire(expiry))
}

pub(super) fn set(call: Call<'_>) -> Parsed<'_> {
    let options = SetOptions::read(call.args.from(3), Dialect::Set)?;
    let expiry = match options.expiry {
        Some((word, unit, origin)) => call.expiry(word, unit, origin)?,
        None if options.keep_ttl => NewExpiry::Keep,
        None => NewExpiry::None,
    };
    let answer = if options.get {
        SetAnswer::Former
    } else {
        SetAnswer::Ok
    };
    let condition = options.condition;
    call.on_key(KeyOp::Set(Set {
        value: call.word(2),
        condition,
        expiry,
        answer,
    }))
}

pub(super) fn setnx(call: Call<'_>) -> Parsed<'_> {
    call.on_key(KeyOp::Set(Set {
        value: call.word(2),
        condition: SetCondition::IfAbsent,
        expiry: NewExpiry::None,
        answer: SetAnswer::Flag,
    }))
}

pub(super) fn setex(call: Call<'_>) -> Parsed<'_> {
    set_expiring(call, Unit::Seconds)
}

pub(super) fn psetex(call: Call<'_>) -> Parsed<'_> {
    set_expiring(call, Unit::Millis)
}

fn set_expiring(call: Call<'_>, unit: Unit) -> Parsed<'_> {
    let expiry = call.expiry(call.word(2), unit, Origin::Now)?;
    call.on_key(KeyOp::Set(Set {
        value: call.word(3),
        condition: SetCondition::Always,
        expiry,
        answer: SetAnswer::Ok,
    }))
}

pub(super) fn get_set(call: Call<'_>) -> Parsed<'_> {
    call.on_key(KeyOp::Set(Set {
        value: call.word(2),
        condition: SetCondition::Always,
        expiry: NewExpiry::None,
        answer: SetAnswer::Former,
    }))
}

pub(super) fn append(call: Call<'_>) -> Parsed<'_> {
    call.on_key(KeyOp::Append(call.word(2)))
}

pub(super) fn set_range(call: Call<'_>) -> Parsed<'_> {
    let offset = u64::try_from(call.integer(2)?)
        .map_err(|_| CommandError::Text("ERR offset is out of range"))?;
    call.on_key(KeyOp::SetRange {
        offset,
        value: call.word(3),
    })
}

pub(super) fn incr(call: Call<'_>) -> Parsed<'_> {
    call.on_key(KeyOp::Add(1))
}

pub(super) fn decr(call: Call<'_>) -> Parsed<'_> {
    call.on_key(KeyOp::Add(-1))
}

pub(super) fn incr_by(call: Call<'_>) -> Parsed<'_> {
    call.on_key(KeyOp::Add(call.integer(2)?))
}

pub(super) fn decr_by(call: Call<'_>) -> Parsed<'_> {
    let amount = call.integer(2)?.checked_neg();
    let amount = amount.ok_or(CommandError::Text("ERR decrement would overflow"))?;
    call.on_key(KeyOp::Add(amount))
}

pub(super) fn incr_by_float(call: Call<'_>) -> Parsed<'_> {
    call.on_key(KeyOp::AddFloat(call.word(2)))
}

pub(super) fn mget(call: Call<'_>) -> Parsed<'_> {
    call.on_keys(KeysKind::Get)
}

pub(super) fn mset(call: Call<'_>) -> Parsed<'_> {
    match call.args.len() % 2 {
        1 => call.on_keys(KeysKind::Set),
        // Not `Arity`: MULTI queues it.
        _ => Err(CommandError::Text(
            "ERR wrong number of arguments for 'mset' command",
        )),
    }
}

/// Which command's options are read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Dialect {
    Set,
    GetEx,
}

/// The options of SET and GETEX.
struct SetOptions<'a> {
    condition: SetCondition,
    get: bool,
    keep_ttl: bool,
    persist: bool,
    expiry: Option<(&'a [u8], Unit, Origin)>,
    /// The option that `expiry` is of: no other may follow, but the same may.
    expiry_option: &'static str,
}

impl<'a> SetOptions<'a> {
    fn read(args: ArgView<'a>, dialect: Dialect) -> Result<SetOptions<'a>, CommandError<'a>> {
        let mut options = SetOptions {
            condition: SetCondition::Always,
            get: false,
            keep_ttl: false,
            persist: false,
            expiry: None,
            expiry_option: "",
        };
        let mut words = args.iter();
        while let Some(word) = words.next() {
            let taken = match dialect {
                Dialect::Set => options.flag_of_set(word),
                Dialect::GetEx => options.flag_of_getex(word),
            };
            if !taken && !options.expiry(word, &mut words) {
                return Err(CommandError::SYNTAX);
            }
        }
        Ok(options)
    }

    fn flag_of_set(&mut self, word: &[u8]) -> bool {
        if is(word, "NX") && self.condition != SetCondition::IfPresent {
            self.condition = SetCondition::IfAbsent;
        } else if is(word, "XX") && self.condition != SetCondition::IfAbsent {
            self.condition = SetCondition::IfPresent;
        } else if is(word, "GET") {
            self.get = true;
        } else if is(word, "KEEPTTL") && self.expiry.is_none() {
            self.keep_ttl = true;
        } else {
            return false;
        }
        true
    }

    fn flag_of_getex(&mut self, word: &[u8]) -> bool {
        let taken = is(word, "PERSIST") && self.expiry.is_none();
        self.persist |= taken;
        taken
    }

    fn expiry(&mut self, word: &[u8], words: &mut impl Iterator<Item = &'a [u8]>) -> bool {
        let forms = [
            ("EX", Unit::Seconds, Origin::Now),
            ("PX", Unit::Millis, Origin::Now),
            ("EXAT", Unit::Seconds, Origin::Epoch),
            ("PXAT", Unit::Millis, Origin::Epoch),
        ];
        let Some((option, unit, origin)) = forms.into_iter().find(|form| is(word, form.0)) else {
            return false;
        };
        let other = self.expiry.is_some() && self.expiry_option != option;
        if other || self.keep_ttl || self.persist {
            return false;
        }
        self.expiry_option = option;
        self.expiry = words.next().map(|amount| (amount, unit, origin));
        self.expiry.is_some()
    }
}

// Keys, whatever they hold.

pub(super) fn del(call: Call<'_>) -> Parsed<'_> {
    call.on_keys(KeysKind::Delete)
}

pub(super) fn exists(call: Call<'_>) -> Parsed<'_> {
    call.on_keys(KeysKind::Exists)
}

pub(super) fn touch(call: Call<'_>) -> Parsed<'_> {
    call.on_keys(KeysKind::Touch)
}

pub(super) fn kind(call: Call<'_>) -> Parsed<'_> {
    call.on_key(KeyOp::Type)
}

pub(super) fn expire(call: Call<'_>) -> Parsed<'_> {
    expire_by(call, Unit::Seconds, Origin::Now)
}

pub(super) fn pexpire(call: Call<'_>) -> Parsed<'_> {
    expire_by(call, Unit::Millis, Origin::Now)
}

pub(super) fn expire_at(call: Call<'_>) -> Parsed<'_> {
    expire_by(call, Unit::Seconds, Origin::Epoch)
}

pub(super) fn pexpire_at(call: Call<'_>) -> Parsed<'_> {
    expire_by(call, Unit::Millis, Origin::Epoch)
}

fn expire_by(call: Call<'_>, unit: Unit, origin: Origin) -> Parsed<'_> {
    let (mut if_none, mut if_some, mut if_later, mut if_earlier) = (false, false, false, false);
    for word in call.args.from(3).iter() {
        let options = [
            ("NX", &mut if_none),
            ("XX", &mut if_some),
            ("GT", &mut if_later),
            ("LT", &mut if_earlier),
        ];
        match options.into_iter().find(|(option, _)| is(word, option)) {
            Some((_, flag)) => *flag = true,
            None => return Err(CommandError::Quote("ERR Unsupported option ", word, "")),
        }
    }
    if if_none && (if_some || if_later || if_earlier) {
        return Err(CommandError::Text(
            "ERR NX and XX, GT or LT options at the same time are not compatible",
        ));
    }
    if if_later && if_earlier {
        return Err(CommandError::Text(
            "ERR GT and LT options at the same time are not compatible",
        ));
    }
    let deadline = call.deadline(call.integer(2)?, unit, origin)?;
    call.on_key(KeyOp::Expire(Expire {
        deadline,
        if_none,
        if_some,
        if_later,
        if_earlier,
    }))
}

pub(super) fn ttl(call: Call<'_>) -> Parsed<'_> {
    call.on_key(KeyOp::Expiry(ExpiryQuestion::SecondsLeft))
}

pub(super) fn pttl(call: Call<'_>) -> Parsed<'_> {
    call.on_key(KeyOp::Expiry(ExpiryQuestion::MillisLeft))
}

pub(super) fn expire_time(call: Call<'_>) -> Parsed<'_> {
    call.on_key(KeyOp::Expiry(ExpiryQuestion::UnixSeconds))
}

pub(super) fn pexpire_time(call: Call<'_>) -> Parsed<'_> {
    call.on_key(KeyOp::Expiry(ExpiryQuestion::UnixMillis))
}

pub(super) fn persist(call: Call<'_>) -> Parsed<'_> {
    call.on_key(KeyOp::Persist)
}

pub(super) fn object_encoding(call: Call<'_>) -> Parsed<'_> {
    call.on_key(KeyOp::Encoding)
}

pub(super) fn memory_usage(call: Call<'_>) -> Parsed<'_> {
    let mut words = call.args.from(3).iter();
    while let Some(word) = words.next() {
        let samples = words
            .next()
            .filter(|_| is(word, "SAMPLES"))
            .ok_or(CommandError::SYNTAX)?;
        if integer(samples)? < 0 {
            return Err(CommandError::SYNTAX);
        }
    }
    call.on_key(KeyOp::MemoryUsage {
        key_bytes: call.word(2).len(),
    })
}

// The whole store.

pub(super) fn scan(call: Call<'_>) -> Parsed<'_> {
    let cursor = cursor(call.word(1)).ok_or(CommandError::Text("ERR invalid cursor"))?;
    let mut scan = Scan {
        cursor,
        pattern: None,
        count: SCAN_COUNT_DEFAULT,
        strings: true,
    };
    let mut words = call.args.from(2).iter();
    while let Some(option) = words.next() {
        let value = words.next().ok_or(CommandError::SYNTAX)?;
        if is(option, "COUNT") {
            scan.count = match integer(value)? {
                count @ 1.. => count.unsigned_abs(),
                _ => return Err(CommandError::SYNTAX),
            };
        } else if is(option, "MATCH") {
            scan.pattern = Some(value);
        } else if is(option, "TYPE") {
            scan.strings = is(value, "string");
        } else {
            return Err(CommandError::SYNTAX);
        }
    }
    store(StoreCommand::Scan(scan))
}

/// Digits, of which the leading ones may be zeros; no digits are a zero.
fn cursor(word: &[u8]) -> Option<u64> {
    word.iter().try_fold(0_u64, |cursor, &byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        cursor.checked_mul(10)?.checked_add(digit)
    })
}

pub(super) fn keys(call: Call<'_>) -> Parsed<'_> {
    store(StoreCommand::Keys {
        pattern: call.word(1),
    })
}

pub(super) fn db_size(_: Call<'_>) -> Parsed<'_> {
    store(StoreCommand::Size)
}

pub(super) fn random_key(_: Call<'_>) -> Parsed<'_> {
    store(StoreCommand::RandomKey)
}

pub(super) fn flush(call: Call<'_>) -> Parsed<'_> {
    let word = call.word(1);
    let sane = match call.args.len() {
        1 => true,
        2 => is(word, "SYNC") || is(word, "ASYNC"),
        _ => false,
    };
    if sane {
        store(StoreCommand::Flush)
    } else {
        Err(CommandError::SYNTAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::OwnedArgs;

    fn with_command(line: &str, then: impl FnOnce(Parsed<'_>)) {
        let mut args = OwnedArgs::new();
        line.split(' ').for_each(|word| args.push(word.as_bytes()));
        then(super::super::parse(args.view()));
    }

    #[test]
    fn a_set_without_conditions_is_a_blind_write() {
        let blind = |line: &str| {
            let mut needs = (true, true);
            with_command(line, |command| match command {
                Ok(Command::Key(command)) => {
                    needs = (command.op.needs_current(), command.op.needs_value());
                }
                other => panic!("{line}: {other:?}"),
            });
            needs
        };
        for line in ["set k v", "set k v ex 5", "setex k 5 v", "psetex k 5 v"] {
            assert_eq!(blind(line), (false, false), "{line}");
        }
        for line in [
            "set k v nx",
            "set k v xx",
            "set k v keepttl",
            "setnx k v",
            "ttl k",
            "type k",
            "strlen k",
            "memory usage k",
        ] {
            assert_eq!(
                blind(line),
                (true, false),
                "{line} needs to know of the key, no more"
            );
        }
        for line in [
            "set k v get",
            "getset k v",
            "append k v",
            "incr k",
            "get k",
            "persist k",
        ] {
            assert_eq!(blind(line), (true, true), "{line}");
        }
    }

    #[test]
    fn several_keys_come_apart_in_order() {
        with_command("mset a 1 b 2", |command| {
            let Ok(Command::Keys(command)) = command else {
                panic!("{command:?}")
            };
            let parts: Vec<KeyCommand<'_>> = command.parts().collect();
            assert_eq!(
                (parts.len(), command.len(), command.merge()),
                (2, 2, Merge::Ok)
            );
            assert_eq!((parts[0].key, parts[1].key), (&b"a"[..], &b"b"[..]));
            assert!(
                matches!(parts[1].op, KeyOp::Set(Set { value: b"2", .. })),
                "{:?}",
                parts[1]
            );
        });
        for (line, merge) in [("mget a b a", Merge::Array), ("del a b a", Merge::Sum)] {
            with_command(line, |command| {
                let Ok(Command::Keys(command)) = command else {
                    panic!("{command:?}")
                };
                let keys: Vec<&[u8]> = command.parts().map(|part| part.key).collect();
                assert_eq!(
                    (keys, command.merge()),
                    (vec![&b"a"[..], b"b", b"a"], merge),
                    "{line}"
                );
            });
        }
    }

    #[test]
    fn scan_reads_cursor_and_options() {
        with_command(
            "scan 18446744073709551615 match a* COUNT 7 type String",
            |command| {
                let Ok(Command::Store(StoreCommand::Scan(scan))) = command else {
                    panic!("{command:?}")
                };
                assert_eq!((scan.cursor, scan.count, scan.strings), (u64::MAX, 7, true));
                assert_eq!(scan.pattern, Some(&b"a*"[..]));
            },
        );
        for cursor in ["18446744073709551616", "-1", "+1", "1x", "0x1"] {
            with_command(&format!("scan {cursor}"), |command| {
                assert_eq!(
                    format!("{command:?}"),
                    "Err(ERR invalid cursor)",
                    "{cursor}"
                );
            });
        }
    }

    #[test]
    fn a_command_is_small_enough_to_be_passed_by_value() {
        assert!(
            size_of::<Command<'_>>() <= 96,
            "{} bytes",
            size_of::<Command<'_>>()
        );
    }
}
