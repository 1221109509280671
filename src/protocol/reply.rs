//! Replies to clients, as bytes of RESP2 or RESP3.
//!
//! Types that only RESP3 has are written in RESP2 as Redis writes them there: a map as an array
//! of twice its length, a set or push as an array, a boolean as 0 or 1, a double or verbatim
//! text as a bulk string.

use std::io::Write;

/// The protocol that a client has chosen with HELLO.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protocol {
    /// The one that every client begins with.
    Resp2,
    /// The one with maps, sets, doubles and pushes.
    Resp3,
}

/// Appends one client's replies to a buffer. The caller sees to it that aggregates are followed
/// by as many elements as they announce.
pub struct Reply<'a> {
    out: &'a mut Vec<u8>,
    protocol: Protocol,
}

impl<'a> Reply<'a> {
    /// Writes to the end of `out`.
    pub fn new(out: &'a mut Vec<u8>, protocol: Protocol) -> Reply<'a> {
        Reply { out, protocol }
    }

    /// What the client speaks.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// `+OK`.
    pub fn ok(&mut self) {
        self.raw(b"+OK\r\n");
    }

    /// A status. A line end within `text` becomes blanks, so that it cannot forge a reply.
    pub fn simple(&mut self, text: &str) {
        self.line(b'+', text);
    }

    /// An error: `text` is its code and the sentence. A line end becomes blanks.
    pub fn error(&mut self, text: &str) {
        self.line(b'-', text);
    }

    /// An integer.
    #[inline]
    pub fn integer(&mut self, value: i64) {
        if let 0..=9 = value {
            return self.raw(&[b':', b'0' + value as u8, b'\r', b'\n']);
        }
        self.out.push(b':');
        if value < 0 {
            self.out.push(b'-');
        }
        self.digits(value.unsigned_abs());
    }

    /// A string of any bytes.
    #[inline]
    pub fn bulk(&mut self, bytes: &[u8]) {
        self.out.reserve(bytes.len() + HEAD_BYTES_MAX + 2);
        self.head(b'$', bytes.len());
        self.raw(bytes);
        self.raw(b"\r\n");
    }

    /// "There is no such value."
    pub fn null(&mut self) {
        self.raw(self.by_protocol(b"$-1\r\n", b"_\r\n"));
    }

    /// "There is no such list."
    pub fn null_array(&mut self) {
        self.raw(self.by_protocol(b"*-1\r\n", b"_\r\n"));
    }

    /// `len` elements follow.
    pub fn array(&mut self, len: usize) {
        self.head(b'*', len);
    }

    /// `pairs` keys, each with its value, follow.
    pub fn map(&mut self, pairs: usize) {
        match self.protocol {
            Protocol::Resp2 => self.head(b'*', 2 * pairs),
            Protocol::Resp3 => self.head(b'%', pairs),
        }
    }

    /// `len` elements without an order follow.
    pub fn set(&mut self, len: usize) {
        self.head(self.by_protocol(b'*', b'~'), len);
    }

    /// `len` elements that answer no request follow.
    pub fn push(&mut self, len: usize) {
        self.head(self.by_protocol(b'*', b'>'), len);
    }

    /// Yes or no.
    pub fn boolean(&mut self, value: bool) {
        self.raw(match value {
            true => self.by_protocol(b":1\r\n", b"#t\r\n"),
            false => self.by_protocol(b":0\r\n", b"#f\r\n"),
        });
    }

    /// A number, in the fewest digits that give it back exactly.
    pub fn double(&mut self, value: f64) {
        let mut text = [0; DOUBLE_BYTES_MAX];
        let length = print_double(value, &mut text);
        match self.protocol {
            Protocol::Resp2 => self.bulk(&text[..length]),
            Protocol::Resp3 => {
                self.out.push(b',');
                self.raw(&text[..length]);
                self.raw(b"\r\n");
            }
        }
    }

    /// Text for people. `format` is three letters, "txt" or "mkd".
    pub fn verbatim(&mut self, format: &str, text: &str) {
        assert_eq!(format.len(), 3, "the protocol says three letters");
        if self.protocol == Protocol::Resp2 {
            return self.bulk(text.as_bytes());
        }
        self.head(b'=', format.len() + 1 + text.len());
        self.raw(format.as_bytes());
        self.raw(b":");
        self.raw(text.as_bytes());
        self.raw(b"\r\n");
    }

    /// Bytes that are a reply, or a part of one, already.
    #[inline]
    pub fn raw(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    fn by_protocol<T>(&self, resp2: T, resp3: T) -> T {
        match self.protocol {
            Protocol::Resp2 => resp2,
            Protocol::Resp3 => resp3,
        }
    }

    fn line(&mut self, mark: u8, text: &str) {
        self.out.push(mark);
        let blanked = text.bytes().map(|byte| {
            if matches!(byte, b'\r' | b'\n') {
                b' '
            } else {
                byte
            }
        });
        self.out.extend(blanked);
        self.raw(b"\r\n");
    }

    /// A type's mark and a length.
    #[inline]
    fn head(&mut self, mark: u8, length: usize) {
        if length <= 9 {
            return self.raw(&[mark, b'0' + length as u8, b'\r', b'\n']);
        }
        self.out.push(mark);
        self.digits(length as u64);
    }

    /// A number and the end of its line.
    fn digits(&mut self, mut value: u64) {
        let mut text = [0; HEAD_BYTES_MAX];
        let mut at = HEAD_BYTES_MAX - 2;
        text[at..].copy_from_slice(b"\r\n");
        loop {
            at -= 1;
            text[at] = b'0' + (value % 10) as u8;
            value /= 10;
            if value == 0 {
                break;
            }
        }
        self.raw(&text[at..]);
    }
}

/// The digits of any u64 and a line end, with a mark to spare.
const HEAD_BYTES_MAX: usize = 1 + 20 + 2;
/// Sign, 17 digits, point, up to four zeros, or an exponent of `e-308`.
const DOUBLE_BYTES_MAX: usize = 32;

/// Prints as C's `%.17g` would lay it out, but with the fewest digits that mean `value`.
fn print_double(value: f64, text: &mut [u8; DOUBLE_BYTES_MAX]) -> usize {
    let mut left = &mut text[..];
    let magnitude = value.abs();
    let plain = magnitude == 0.0 || (1e-4..1e17).contains(&magnitude);
    let printed = if value.is_nan() {
        left.write_all(b"nan")
    } else if value.is_infinite() {
        left.write_all(if value > 0.0 { b"inf" } else { b"-inf" })
    } else if plain {
        write!(left, "{value}")
    } else {
        let mut scientific = [0; DOUBLE_BYTES_MAX];
        let mut scientific_left = &mut scientific[..];
        let printed = write!(scientific_left, "{value:e}");
        let length = DOUBLE_BYTES_MAX - scientific_left.len();
        printed.and_then(|()| write_exponent(&scientific[..length], &mut left))
    };
    printed.expect("no double is longer than the buffer");
    DOUBLE_BYTES_MAX - left.len()
}

/// Rewrites `1e5` as `1e+05`: C gives an exponent its sign and two digits at least.
fn write_exponent(scientific: &[u8], out: &mut impl Write) -> std::io::Result<()> {
    let at = scientific
        .iter()
        .position(|&byte| byte == b'e')
        .unwrap_or(scientific.len());
    let (mantissa, exponent) = scientific.split_at(at);
    let (sign, digits) = match exponent {
        [b'e', b'-', digits @ ..] => (&b"e-"[..], digits),
        [b'e', digits @ ..] => (&b"e+"[..], digits),
        _ => return out.write_all(mantissa),
    };
    let padding = if digits.len() < 2 { &b"0"[..] } else { b"" };
    for part in [mantissa, sign, padding, digits] {
        out.write_all(part)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(protocol: Protocol, write: impl Fn(&mut Reply<'_>)) -> String {
        let mut out = b"before|".to_vec();
        write(&mut Reply::new(&mut out, protocol));
        let text = String::from_utf8(out).expect("text was written");
        text.strip_prefix("before|")
            .expect("what was there stays")
            .to_owned()
    }

    type Case = (fn(&mut Reply<'_>), &'static str, &'static str);

    #[test]
    fn each_type_has_its_bytes_in_both_protocols() {
        let cases: &[Case] = &[
            (|reply| reply.ok(), "+OK\r\n", "+OK\r\n"),
            (|reply| reply.simple("PONG"), "+PONG\r\n", "+PONG\r\n"),
            (|reply| reply.error("ERR no"), "-ERR no\r\n", "-ERR no\r\n"),
            (|reply| reply.bulk(b""), "$0\r\n\r\n", "$0\r\n\r\n"),
            (
                |reply| reply.bulk(b"a\r\nb"),
                "$4\r\na\r\nb\r\n",
                "$4\r\na\r\nb\r\n",
            ),
            (|reply| reply.null(), "$-1\r\n", "_\r\n"),
            (|reply| reply.null_array(), "*-1\r\n", "_\r\n"),
            (|reply| reply.array(0), "*0\r\n", "*0\r\n"),
            (|reply| reply.array(12), "*12\r\n", "*12\r\n"),
            (|reply| reply.map(5), "*10\r\n", "%5\r\n"),
            (|reply| reply.set(3), "*3\r\n", "~3\r\n"),
            (|reply| reply.push(2), "*2\r\n", ">2\r\n"),
            (|reply| reply.boolean(true), ":1\r\n", "#t\r\n"),
            (|reply| reply.boolean(false), ":0\r\n", "#f\r\n"),
            (|reply| reply.double(1.5), "$3\r\n1.5\r\n", ",1.5\r\n"),
            (
                |reply| reply.double(f64::INFINITY),
                "$3\r\ninf\r\n",
                ",inf\r\n",
            ),
            (
                |reply| reply.double(f64::NEG_INFINITY),
                "$4\r\n-inf\r\n",
                ",-inf\r\n",
            ),
            (|reply| reply.double(f64::NAN), "$3\r\nnan\r\n", ",nan\r\n"),
            (
                |reply| reply.verbatim("txt", "é"),
                "$2\r\né\r\n",
                "=6\r\ntxt:é\r\n",
            ),
            (|reply| reply.raw(b"+x\r\n"), "+x\r\n", "+x\r\n"),
        ];
        for (write, resp2, resp3) in cases {
            assert_eq!(written(Protocol::Resp2, write), *resp2);
            assert_eq!(written(Protocol::Resp3, write), *resp3);
        }
    }

    #[test]
    fn integers_are_printed_as_std_prints_them() {
        let mut random = fastrand::Rng::with_seed(17);
        let mut values = vec![0, 9, 10, 99, 100, -1, i64::MIN, i64::MAX];
        values.extend((0..5_000).map(|_| random.i64(..) >> random.u32(0..64)));
        for value in values {
            let ours = written(Protocol::Resp2, |reply| reply.integer(value));
            assert_eq!(ours, format!(":{value}\r\n"));
            let length = value.unsigned_abs() as usize / 2;
            let ours = written(Protocol::Resp3, |reply| reply.map(length));
            assert_eq!(ours, format!("%{length}\r\n"));
        }
    }

    #[test]
    fn a_text_with_line_ends_cannot_forge_a_reply() {
        let forged = "ERR unknown command 'x\r\n+OK\n'";
        let ours = written(Protocol::Resp2, |reply| reply.error(forged));
        assert_eq!(ours, "-ERR unknown command 'x  +OK '\r\n");
        let ours = written(Protocol::Resp3, |reply| reply.simple("a\rb"));
        assert_eq!(ours, "+a b\r\n");
    }

    #[test]
    fn doubles_are_laid_out_as_in_c_and_read_back_exactly() {
        let cases = [
            (0.0, "0"),
            (-0.0, "-0"),
            (0.1, "0.1"),
            (3.0, "3"),
            (1e16, "10000000000000000"),
            (1e17, "1e+17"),
            (1.25e-5, "1.25e-05"),
            (0.0001, "0.0001"),
            (1.7976931348623157e308, "1.7976931348623157e+308"),
            (-5e-324, "-5e-324"),
        ];
        for (value, text) in cases {
            assert_eq!(
                written(Protocol::Resp3, |reply| reply.double(value)),
                format!(",{text}\r\n")
            );
        }
        let mut random = fastrand::Rng::with_seed(19);
        for _ in 0..20_000 {
            let value = f64::from_bits(random.u64(..));
            let ours = written(Protocol::Resp3, |reply| reply.double(value));
            let text = ours
                .strip_prefix(',')
                .and_then(|text| text.strip_suffix("\r\n"));
            let read: f64 = text.and_then(|text| text.parse().ok()).expect("a number");
            assert!(
                read == value || (read.is_nan() && value.is_nan()),
                "{value:e} gave {ours}"
            );
        }
    }
}
