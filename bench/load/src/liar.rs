//! A server for tests, in memory, that may lie in one way: what verification has to find.

use std::collections::HashMap;

/// What it does wrong, every `every` times that it could.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    None,
    /// Acknowledges writes to values that it does not make.
    Forget,
    /// Acknowledges deletes that it does not make.
    Undelete,
    /// Answers that nothing is there.
    Absent,
    /// Answers with the value before the last.
    Old,
    /// Answers with one bit changed.
    Flip,
    /// Answers with the value of another key.
    Swap,
    /// Answers an addition with one more than it was.
    CountTwice,
    /// Does not keep an addition.
    CountNever,
    /// Gives a lock that another one holds.
    GiveAway,
    /// Answers with an error that says so, and does nothing.
    Refuse,
    /// Answers with what is no RESP.
    Babble,
    /// Answers commands on the first half of the slots with MOVED to `other:1`.
    Move,
}

/// None where there is none.
type Value = Option<Vec<u8>>;

/// See the head of the file.
pub struct Liar {
    pub lie: Lie,
    pub every: u64,
    chances: u64,
    /// The last value, and the one before.
    values: HashMap<Vec<u8>, (Value, Value)>,
    /// Bytes of each connection that are no whole command yet.
    inputs: HashMap<u32, Vec<u8>>,
    pub commands: u64,
}

impl Liar {
    pub fn new(lie: Lie, every: u64) -> Liar {
        Liar {
            lie,
            every,
            chances: 0,
            values: HashMap::new(),
            inputs: HashMap::new(),
            commands: 0,
        }
    }

    /// Bytes came on a connection: the answers to all commands that are whole.
    pub fn on_bytes(&mut self, connection: u32, bytes: &[u8]) -> Vec<u8> {
        let mut input = self.inputs.remove(&connection).unwrap_or_default();
        input.extend_from_slice(bytes);
        let (mut at, mut answers) = (0, Vec::new());
        while let Some((words, length)) = parse(&input[at..]) {
            at += length;
            self.commands += 1;
            answers.extend(self.answer(&words));
        }
        input.drain(..at);
        self.inputs.insert(connection, input);
        answers
    }

    fn lies(&mut self, lie: Lie) -> bool {
        if self.lie != lie {
            return false;
        }
        self.chances += 1;
        self.chances.is_multiple_of(self.every)
    }

    fn answer(&mut self, words: &[Vec<u8>]) -> Vec<u8> {
        let name = words[0].to_ascii_uppercase();
        if self.lies(Lie::Babble) {
            return b"hello\r\n".to_vec();
        }
        if self.lie == Lie::Move && words.len() > 1 && crate::slots::slot_of(&words[1]) < 8192 {
            return format!("-MOVED {} other:1\r\n", crate::slots::slot_of(&words[1])).into_bytes();
        }
        match name.as_slice() {
            b"GET" => self.get(&words[1]),
            b"SET" if words.iter().any(|word| word == b"NX") => self.lock(&words[1], &words[2]),
            b"SET" => self.set(&words[1], &words[2]),
            b"DEL" => {
                let is_there = self
                    .values
                    .get(&words[1])
                    .is_some_and(|(last, _)| last.is_some());
                if is_there && !self.lies(Lie::Undelete) {
                    self.put(&words[1], None);
                }
                integer(i64::from(is_there))
            }
            b"INCR" => self.increment(&words[1]),
            b"EVAL" => {
                let held = self
                    .values
                    .get(&words[3])
                    .and_then(|(last, _)| last.clone());
                let is_ours = held.as_ref() == Some(&words[4]);
                if is_ours {
                    self.put(&words[3], None);
                }
                integer(i64::from(is_ours))
            }
            b"WAIT" => integer(2),
            b"HELLO" => b"%2\r\n$6\r\nserver\r\n$4\r\nliar\r\n+proto\r\n:3\r\n".to_vec(),
            _ => b"+OK\r\n".to_vec(),
        }
    }

    fn put(&mut self, key: &[u8], value: Option<Vec<u8>>) {
        let cell = self.values.entry(key.to_vec()).or_default();
        cell.1 = std::mem::replace(&mut cell.0, value);
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Vec<u8> {
        if self.lies(Lie::Refuse) {
            return b"-MISCONF no space is left\r\n".to_vec();
        }
        if !self.lies(Lie::Forget) {
            self.put(key, Some(value.to_vec()));
        }
        b"+OK\r\n".to_vec()
    }

    fn lock(&mut self, key: &[u8], token: &[u8]) -> Vec<u8> {
        let is_held = self.values.get(key).is_some_and(|(last, _)| last.is_some());
        if is_held && !self.lies(Lie::GiveAway) {
            return b"$-1\r\n".to_vec();
        }
        self.put(key, Some(token.to_vec()));
        b"+OK\r\n".to_vec()
    }

    fn get(&mut self, key: &[u8]) -> Vec<u8> {
        let (last, before) = self.values.get(key).cloned().unwrap_or_default();
        let value = match last {
            Some(_) if self.lies(Lie::Absent) => None,
            Some(_) if before.is_some() && self.lies(Lie::Old) => before,
            Some(_) if self.lies(Lie::Swap) => {
                let mut others = self.values.iter().filter(|(other, _)| *other != key);
                others.find_map(|(_, (last, _))| last.clone())
            }
            Some(mut value) if self.lies(Lie::Flip) => {
                let middle = value.len() / 2;
                value[middle] ^= 4;
                Some(value)
            }
            last => last,
        };
        match value {
            None => b"$-1\r\n".to_vec(),
            Some(value) => [format!("${}\r\n", value.len()).as_bytes(), &value, b"\r\n"].concat(),
        }
    }

    fn increment(&mut self, key: &[u8]) -> Vec<u8> {
        let held = self.values.get(key).and_then(|(last, _)| last.clone());
        let before: i64 = held.map_or(0, |digits| {
            String::from_utf8_lossy(&digits).parse().unwrap_or(0)
        });
        let after = before + 1 + i64::from(self.lies(Lie::CountTwice));
        if !self.lies(Lie::CountNever) {
            self.put(key, Some(after.to_string().into_bytes()));
        }
        integer(after)
    }
}

fn integer(number: i64) -> Vec<u8> {
    format!(":{number}\r\n").into_bytes()
}

/// The first whole command, and how long it is.
fn parse(bytes: &[u8]) -> Option<(Vec<Vec<u8>>, usize)> {
    let mut at = 0;
    let mut line = |kind: u8| {
        let rest = &bytes[at..];
        let end = rest.windows(2).position(|pair| pair == b"\r\n")?;
        assert_eq!(rest[0], kind, "a command is an array of strings");
        let number: usize = std::str::from_utf8(&rest[1..end]).ok()?.parse().ok()?;
        at += end + 2;
        let start = at;
        if kind == b'$' {
            at += number + 2;
        }
        (at <= bytes.len()).then_some((number, start))
    };
    let (count, _) = line(b'*')?;
    let mut words = Vec::new();
    for _ in 0..count {
        let (length, start) = line(b'$')?;
        words.push(bytes[start..start + length].to_vec());
    }
    Some((words, at))
}
