//! Requests of clients, out of bytes that come in pieces of any size.
//!
//! request := '*' count CRLF bulk{count} | word{blank word} [CR] LF     (the latter is "inline")
//! bulk    := '$' length CRLF bytes{length} CRLF
//!
//! What is accepted, refused and answered is what Redis 7.0 does, with two exceptions where it
//! goes on after a client has lost count: a length line's CR or a bulk's bytes that are not
//! followed by what ends them are refused, as otherwise a truncated value would be stored; and
//! a zero byte ends an inline request at once instead of after 64 KiB.
//!
//! Invariants: a request never goes beyond [`Limits`]; the verdict does not depend on how the
//! input was cut; nothing is allocated from a declared length; no byte is looked at twice
//! except a few at the cut.

use std::borrow::Cow;

use super::inline::split_words;
use super::number::parse_i64;

pub use super::args::{ArgView, Args, OwnedArgs};

/// Redis calls greater counts and lengths invalid, whoever sends them.
const COUNT_MAX: i64 = i32::MAX as i64;
const BULK_BYTES_MAX: i64 = 512 << 20;
const CRLF: &[u8] = b"\r\n";

/// What a client may send. Sizes beyond 4 GiB count as 4 GiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Arguments of a request, its name included.
    pub args_max: usize,
    /// Bytes of one argument.
    pub bulk_bytes_max: usize,
    /// Bytes of a request, framing included.
    pub request_bytes_max: usize,
    /// Bytes of an inline request, and of a line that holds a length.
    pub inline_bytes_max: usize,
    /// False: what exceeds the limits above is refused for want of authentication.
    pub authenticated: bool,
}

impl Limits {
    /// For a client that has yet to authenticate: enough for AUTH and HELLO. The numbers are those
    /// of Redis; a request of that many arguments of that size fits.
    pub const fn before_auth() -> Limits {
        Limits {
            args_max: 10,
            bulk_bytes_max: 16 << 10,
            request_bytes_max: 192 << 10,
            inline_bytes_max: 64 << 10,
            authenticated: false,
        }
    }
}

/// Why the bytes of a client are no request. Its text is the last that the client is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtocolError {
    /// The count of an array is no number, or too high.
    ArrayLength,
    /// The length of a bulk is no number, negative, or too high.
    BulkLength,
    /// Where a bulk should begin there was this byte.
    NotBulk(u8),
    /// Not CR LF after a bulk's bytes.
    BulkEnd,
    /// A count without an end.
    ArrayLine,
    /// A length without an end.
    BulkLine,
    /// An inline request without an end.
    InlineLine,
    /// A quote that is not closed, or closed within a word.
    Quotes,
    /// A zero byte in an inline request.
    ZeroByte,
    /// More arguments than before authentication.
    UnauthenticatedArray,
    /// A larger bulk than before authentication.
    UnauthenticatedBulk,
    /// The request as a whole is too large.
    RequestTooBig,
    /// HTTP: someone made a browser talk to us. It gets no answer that it could read.
    CrossProtocol,
}

impl ProtocolError {
    /// What to answer before hanging up; `None`: nothing.
    pub fn text(self) -> Option<Cow<'static, str>> {
        let text = match self {
            ProtocolError::ArrayLength => "ERR Protocol error: invalid multibulk length",
            ProtocolError::BulkLength => "ERR Protocol error: invalid bulk length",
            ProtocolError::BulkEnd => "ERR Protocol error: expected CRLF after bulk",
            ProtocolError::ArrayLine => "ERR Protocol error: too big mbulk count string",
            ProtocolError::BulkLine => "ERR Protocol error: too big bulk count string",
            ProtocolError::InlineLine => "ERR Protocol error: too big inline request",
            ProtocolError::Quotes => "ERR Protocol error: unbalanced quotes in request",
            ProtocolError::ZeroByte => "ERR Protocol error: zero byte in inline request",
            ProtocolError::UnauthenticatedArray => {
                "ERR Protocol error: unauthenticated multibulk length"
            }
            ProtocolError::UnauthenticatedBulk => "ERR Protocol error: unauthenticated bulk length",
            ProtocolError::RequestTooBig => {
                "ERR Protocol error: too big request (limits.request-max)"
            }
            ProtocolError::CrossProtocol => return None,
            ProtocolError::NotBulk(byte) => {
                let got = if byte.is_ascii() {
                    char::from(byte)
                } else {
                    '?'
                };
                return Some(format!("ERR Protocol error: expected '$', got '{got}'").into());
            }
        };
        Some(text.into())
    }
}

/// What the input begins with.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed {
    /// A request, whose arguments now lie at the places that the given [`Args`] holds. None at
    /// all: nothing was asked (an empty line or array), and nothing is to be answered.
    Request {
        /// Bytes of the input that were this request.
        consumed: usize,
    },
    /// An inline request; quotes and escapes are resolved, so it owns its arguments.
    Inline {
        /// Bytes of the input that were this request.
        consumed: usize,
        /// At least one.
        args: OwnedArgs,
    },
    /// The beginning of a request.
    Incomplete {
        /// It cannot end before this many more bytes have come. Within the limits.
        needed: usize,
    },
    /// No request. Answer the error's text, if it has one, and hang up.
    Violation(ProtocolError),
}

/// How far the request at the front of the input has been understood.
///
/// The input given to [`Parser::parse`] always begins with the first byte not yet consumed; while
/// the request is incomplete, each call gives what the last one gave and more.
#[derive(Default)]
pub struct Parser {
    /// Bytes of the input that are understood.
    at: usize,
    /// Bytes after those that were searched in vain for the end of a line.
    searched: usize,
    /// Bulks that are to come before the request is complete; 0 before its count is known.
    bulks_left: u32,
    /// Length of the bulk at `at`, if its length line is understood.
    bulk_bytes: Option<u32>,
    /// The arguments understood so far, if there are any.
    understood: Option<Box<Args>>,
}

/// A node has a parser for each of many thousand connections, most of them idle.
const _: () = assert!(size_of::<Parser>() <= 48);

/// Why parsing stops before the request is complete.
enum Stop {
    Needs(usize),
    Broken(ProtocolError),
}

impl Parser {
    /// At the start of a request.
    pub fn new() -> Parser {
        Parser::default()
    }

    /// Goes on with the request that `input` begins with. Afterwards `args` is filled if it is a
    /// complete array, else empty.
    pub fn parse(&mut self, input: &[u8], limits: &Limits, args: &mut Args) -> Parsed {
        assert!(
            self.at + self.searched <= input.len(),
            "the input of an incomplete request shrank"
        );
        args.clear();
        let outcome = match input.first() {
            None => Err(Stop::Needs(1)),
            Some(b'*') => self.array(input, limits, args),
            Some(_) => match self.inline(input, limits) {
                Ok((consumed, words)) => {
                    *self = Parser::new();
                    return match words.is_empty() {
                        true => Parsed::Request { consumed },
                        false => Parsed::Inline {
                            consumed,
                            args: words,
                        },
                    };
                }
                Err(stop) => Err(stop),
            },
        };
        match outcome {
            Ok(consumed) => {
                *self = Parser::new();
                Parsed::Request { consumed }
            }
            Err(Stop::Needs(needed)) => {
                self.keep(args);
                Parsed::Incomplete { needed }
            }
            Err(Stop::Broken(error)) => {
                args.clear();
                *self = Parser::new();
                Parsed::Violation(error)
            }
        }
    }

    /// Puts the arguments of an incomplete request aside, so that `args` may serve elsewhere.
    fn keep(&mut self, args: &mut Args) {
        match &mut self.understood {
            Some(understood) => std::mem::swap(&mut **understood, args),
            None if args.is_empty() => {}
            None => self.understood = Some(Box::new(std::mem::take(args))),
        }
        assert!(args.is_empty());
    }

    fn array(&mut self, input: &[u8], limits: &Limits, args: &mut Args) -> Result<usize, Stop> {
        if let Some(understood) = &mut self.understood {
            std::mem::swap(&mut **understood, args);
        }
        if self.bulks_left == 0 {
            self.bulks_left = self.count(input, limits)?;
        }
        while self.bulks_left > 0 {
            let length = match self.bulk_bytes {
                Some(length) => length as usize,
                None => self.bulk_length(input, limits)?,
            };
            let end = self.at + length;
            let Some(terminator) = input.get(end..end + CRLF.len()) else {
                self.bulk_bytes = Some(length as u32);
                return Err(Stop::Needs(end + CRLF.len() - input.len()));
            };
            if terminator != CRLF {
                return Err(Stop::Broken(ProtocolError::BulkEnd));
            }
            args.push(self.at as u32..end as u32); // the request's bound is below 4 GiB
            self.at = end + CRLF.len();
            self.bulk_bytes = None;
            self.bulks_left -= 1;
        }
        match args.view(input).get(0) {
            Some(name) if is_http(name) => Err(Stop::Broken(ProtocolError::CrossProtocol)),
            _ => Ok(self.at),
        }
    }

    /// The count of an array, which stands at the front; 0 if it is negative, as Redis has it.
    fn count(&mut self, input: &[u8], limits: &Limits) -> Result<u32, Stop> {
        let invalid = Stop::Broken(ProtocolError::ArrayLength);
        let Some(count) = self.number(input, limits, ProtocolError::ArrayLine)? else {
            return Err(invalid);
        };
        let within_limits = count <= i64::try_from(limits.args_max).unwrap_or(i64::MAX);
        match limits.authenticated {
            _ if count > COUNT_MAX => Err(invalid),
            _ if within_limits => Ok(count.max(0) as u32),
            true => Err(invalid),
            false => Err(Stop::Broken(ProtocolError::UnauthenticatedArray)),
        }
    }

    /// The length of the bulk at `at`.
    fn bulk_length(&mut self, input: &[u8], limits: &Limits) -> Result<usize, Stop> {
        match input.get(self.at) {
            None => return Err(Stop::Needs(b"$0\r\n\r\n".len())),
            Some(b'$') => {}
            Some(&other) => return Err(Stop::Broken(ProtocolError::NotBulk(other))),
        }
        let invalid = Stop::Broken(ProtocolError::BulkLength);
        let length = match self.number(input, limits, ProtocolError::BulkLine)? {
            Some(length) if length >= 0 => length,
            _ => return Err(invalid),
        };
        if length > i64::try_from(limits.bulk_bytes_max).unwrap_or(i64::MAX) {
            return match limits.authenticated || length > BULK_BYTES_MAX {
                true => Err(invalid),
                false => Err(Stop::Broken(ProtocolError::UnauthenticatedBulk)),
            };
        }
        let request_bytes_max = limits.request_bytes_max.min(u32::MAX as usize) as u64;
        match self.at as u64 + length as u64 + CRLF.len() as u64 <= request_bytes_max {
            true => Ok(length as usize),
            false => Err(Stop::Broken(ProtocolError::RequestTooBig)),
        }
    }

    /// The number on the line at `at`, whose first byte is a mark; `None` if it is no number.
    #[inline]
    fn number(
        &mut self,
        input: &[u8],
        limits: &Limits,
        endless: ProtocolError,
    ) -> Result<Option<i64>, Stop> {
        let start = self.at + 1;
        let from = self.at + self.searched.max(1);
        let found = input[from..].iter().position(|&byte| byte == b'\r');
        let end = found.map_or(input.len(), |found| from + found);
        if end - self.at > limits.inline_bytes_max {
            return Err(Stop::Broken(endless));
        }
        match input.get(end + 1) {
            None => {
                self.searched = end - self.at;
                Err(Stop::Needs(end + CRLF.len() - input.len()))
            }
            Some(b'\n') => {
                self.at = end + CRLF.len();
                self.searched = 0;
                Ok(parse_i64(&input[start..end]))
            }
            Some(_) => Ok(None),
        }
    }

    /// The words of an inline request, and how many bytes it took.
    fn inline(&mut self, input: &[u8], limits: &Limits) -> Result<(usize, OwnedArgs), Stop> {
        let unread = &input[self.searched..];
        let found = unread.iter().position(|&byte| byte == b'\n' || byte == 0);
        let end = found.map_or(input.len(), |found| self.searched + found);
        if end > limits.inline_bytes_max {
            return Err(Stop::Broken(ProtocolError::InlineLine));
        }
        match input.get(end) {
            None => {
                self.searched = end;
                return Err(Stop::Needs(1));
            }
            Some(0) => return Err(Stop::Broken(ProtocolError::ZeroByte)),
            Some(_) => {}
        }
        let line = input[..end].strip_suffix(b"\r").unwrap_or(&input[..end]);
        let words = split_words(line).ok_or(Stop::Broken(ProtocolError::Quotes))?;
        let error = if end >= limits.request_bytes_max {
            ProtocolError::RequestTooBig
        } else if words.len() > limits.args_max {
            match limits.authenticated {
                true => ProtocolError::ArrayLength,
                false => ProtocolError::UnauthenticatedArray,
            }
        } else if words.iter().any(|word| word.len() > limits.bulk_bytes_max) {
            match limits.authenticated {
                true => ProtocolError::BulkLength,
                false => ProtocolError::UnauthenticatedBulk,
            }
        } else if words.view().get(0).is_some_and(is_http) {
            ProtocolError::CrossProtocol
        } else {
            return Ok((end + 1, words));
        };
        Err(Stop::Broken(error))
    }
}

/// True for the name of a "command" that only an HTTP client sends.
#[inline]
fn is_http(name: &[u8]) -> bool {
    match name.len() {
        4 => name.eq_ignore_ascii_case(b"post"),
        5 => name.eq_ignore_ascii_case(b"host:"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        args_max: 100,
        bulk_bytes_max: 1000,
        request_bytes_max: 4000,
        inline_bytes_max: 200,
        authenticated: true,
    };

    /// What a client's bytes amount to: its requests, then the violation or the missing rest.
    #[derive(Debug, PartialEq, Eq)]
    struct Heard {
        requests: Vec<OwnedArgs>,
        end: Result<(), ProtocolError>,
    }

    /// Feeds `input` in pieces that end at `cuts`, with one `Args` for all, as a connection does.
    fn hear(input: &[u8], limits: &Limits, cuts: impl IntoIterator<Item = usize>) -> Heard {
        let (mut parser, mut args, mut at) = (Parser::new(), Args::new(), 0);
        let mut requests = Vec::new();
        for cut in cuts.into_iter().chain([input.len()]) {
            loop {
                let (consumed, request) = match parser.parse(&input[at..cut], limits, &mut args) {
                    Parsed::Request { consumed } => {
                        (consumed, OwnedArgs::from_args(&args, &input[at..cut]))
                    }
                    Parsed::Inline { consumed, args } => (consumed, args),
                    Parsed::Incomplete { needed } => {
                        assert!(
                            needed > 0 && needed <= limits.bulk_bytes_max + 6,
                            "{needed}"
                        );
                        assert!(args.is_empty(), "nothing of a part is given away");
                        break;
                    }
                    Parsed::Violation(error) => {
                        return Heard {
                            requests,
                            end: Err(error),
                        };
                    }
                };
                assert!(consumed > 0 && consumed <= limits.request_bytes_max);
                assert!(request.len() <= limits.args_max);
                assert!(request.iter().all(|arg| arg.len() <= limits.bulk_bytes_max));
                at += consumed;
                requests.extend((!request.is_empty()).then_some(request));
            }
        }
        Heard {
            requests,
            end: Ok(()),
        }
    }

    fn words(words: &[&[u8]]) -> OwnedArgs {
        let mut owned = OwnedArgs::new();
        words.iter().for_each(|word| owned.push(word));
        owned
    }

    fn frame(words: &[&[u8]]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut reply = crate::protocol::Reply::new(&mut out, crate::protocol::Protocol::Resp2);
        reply.array(words.len());
        words.iter().for_each(|word| reply.bulk(word));
        out
    }

    fn one(input: &[u8], limits: &Limits) -> Result<Option<OwnedArgs>, ProtocolError> {
        let mut heard = hear(input, limits, []);
        heard.end.map(|()| heard.requests.pop())
    }

    #[test]
    fn a_pipeline_gives_its_requests_in_order() {
        let input = [
            &frame(&[b"SET", b"key", b"a\r\nb\0\xff"])[..],
            b"*0\r\n*-1\r\n*-10\r\n\r\n\n   \r\n",
            b"PING\r\n  get 'a key'\n",
            &frame(&[b""]),
            &frame(&[&b"a"[..]; 20]),
        ]
        .concat();
        let expected = [
            words(&[b"SET", b"key", b"a\r\nb\0\xff"]),
            words(&[b"PING"]),
            words(&[b"get", b"a key"]),
            words(&[b""]),
            words(&[&b"a"[..]; 20]),
        ];
        assert_eq!(
            hear(&input, &LIMITS, []),
            Heard {
                requests: expected.into(),
                end: Ok(())
            }
        );
    }

    #[test]
    fn the_verdict_does_not_depend_on_how_the_input_is_cut() {
        let large = frame(&[b"SET", b"k", &[b'$'; 900]]);
        let inputs: &[&[u8]] = &[
            b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$10\r\n\r\n*1\r\n$1\r\n\r\n*1\r\n$4\r\nPING\r\n",
            b"PING\r\nSET \"a\\x41\" 'b'\r\n\r\n*1\r\n$4\r\nQUIT\r\nx",
            b"*-1\r\n*0\r\nping\n*2\r\n$0\r\n\r\n$0\r\n\r\n",
            b"*2\r\n$3\r\nGET\r\n:1\r\n",
            b"*1\r\n$4\r\nPINGxx*1\r\n",
            b"*1\rx$4\r\nPING\r\n",
            b"*1\r\n$4\rxPING\r\n",
            b"*1\r\n$4\r\nPOST\r\n*1\r\n$4\r\nPING\r\n",
            b"GET / HTTP/1.1\r\nHost: here\r\nPING\r\n",
            b"SET 'a\r\n",
            b"a\0b\n",
            b"*101\r\n",
            b"*1\r\n$1001\r\n",
            b"*5\r\n$1000\r\n",
            &large,
            &[b'x'; 300],
            &[&b"*"[..], &[b'1'; 300], b"\r\n"].concat(),
            &[&b"*1\r\n$"[..], &[b'1'; 300], b"\r\n"].concat(),
        ];
        for input in inputs {
            let whole = hear(input, &LIMITS, []);
            let shown = input.escape_ascii();
            assert_eq!(
                hear(input, &LIMITS, 0..input.len()),
                whole,
                "byte by byte: {shown}"
            );
            for cut in 0..input.len() {
                assert_eq!(hear(input, &LIMITS, [cut]), whole, "cut at {cut}: {shown}");
            }
        }
    }

    #[test]
    fn each_violation_is_told_in_the_words_of_redis() {
        let digits = |head: &[u8]| [head, &[b'1'; 300], b"\r\n"].concat();
        let cases: &[(&[u8], &str)] = &[
            (b"*9223372036854775807\r\n", "invalid multibulk length"),
            (b"*9223372036854775808\r\n", "invalid multibulk length"),
            (b"*2147483648\r\n", "invalid multibulk length"),
            (b"*101\r\n", "invalid multibulk length"),
            (b"*+5\r\n", "invalid multibulk length"),
            (b"*01\r\n", "invalid multibulk length"),
            (b"*-0\r\n", "invalid multibulk length"),
            (b"* 1\r\n", "invalid multibulk length"),
            (b"*\r\n", "invalid multibulk length"),
            (b"*x\r\n", "invalid multibulk length"),
            (b"*1\n\r\n", "invalid multibulk length"),
            (b"*1\r\n$9223372036854775808\r\n", "invalid bulk length"),
            (b"*1\r\n$1001\r\n", "invalid bulk length"),
            (b"*1\r\n$-1\r\n", "invalid bulk length"),
            (b"*1\r\n$+5\r\n", "invalid bulk length"),
            (b"*1\r\n$007\r\n", "invalid bulk length"),
            (b"*1\r\n$\r\n", "invalid bulk length"),
            (b"*1\r\nfoo\r\n", "expected '$', got 'f'"),
            (b"*2\r\n$3\r\nGET\r\n\xff\r\n", "expected '$', got '?'"),
            (&digits(b"*"), "too big mbulk count string"),
            (&digits(b"*1\r\n$"), "too big bulk count string"),
            (&digits(b"P"), "too big inline request"),
            (b"set x \"a\r\n", "unbalanced quotes in request"),
            (b"set x 'a'b\r\n", "unbalanced quotes in request"),
            (b"\0", "zero byte in inline request"),
            (b"*1\r\n$1\r\nab\r\n", "expected CRLF after bulk"),
        ];
        for (input, text) in cases {
            let error = one(input, &LIMITS).expect_err("a violation");
            let expected = format!("ERR Protocol error: {text}");
            assert_eq!(
                error.text().as_deref(),
                Some(&*expected),
                "{}",
                input.escape_ascii()
            );
        }
    }

    #[test]
    fn a_client_that_has_not_authenticated_may_send_little() {
        let limits = Limits::before_auth();
        let cases: &[(&[u8], &str)] = &[
            (b"*11\r\n", "unauthenticated multibulk length"),
            (b"*2147483648\r\n", "invalid multibulk length"),
            (b"*1\r\n$16385\r\n", "unauthenticated bulk length"),
            (b"*1\r\n$536870913\r\n", "invalid bulk length"),
            (
                b"a a a a a a a a a a a\r\n",
                "unauthenticated multibulk length",
            ),
            (
                &[&[b'a'; 16_385][..], b"\n"].concat(),
                "unauthenticated bulk length",
            ),
        ];
        for (input, text) in cases {
            let error = one(input, &limits).expect_err("a violation");
            let expected = format!("ERR Protocol error: {text}");
            assert_eq!(error.text().as_deref(), Some(&*expected));
        }
        let largest = frame(&[&[b'x'; 16 << 10][..]; 10]);
        assert_eq!(
            one(&largest, &limits).map(|args| args.map(|args| args.len())),
            Ok(Some(10))
        );
    }

    #[test]
    fn a_request_at_its_limits_is_taken_and_beyond_them_refused() {
        assert!(matches!(
            one(&frame(&[&b"x"[..]; 100]), &LIMITS),
            Ok(Some(_))
        ));
        assert!(matches!(
            one(&frame(&[&[b'x'; 1000]]), &LIMITS),
            Ok(Some(_))
        ));
        let line = |bytes| [&vec![b'x'; bytes][..], b"\n"].concat();
        assert!(matches!(one(&line(200), &LIMITS), Ok(Some(_))));
        assert_eq!(one(&line(201), &LIMITS), Err(ProtocolError::InlineLine));
        let count = |bytes: usize| [b"*", &vec![b'1'; bytes - 1][..], b"\r\n"].concat();
        assert_eq!(one(&count(200), &LIMITS), Err(ProtocolError::ArrayLength));
        assert_eq!(one(&count(201), &LIMITS), Err(ProtocolError::ArrayLine));
        let input = frame(&[b"MSET", &[b'x'; 500]]);
        let exact = Limits {
            request_bytes_max: input.len(),
            ..LIMITS
        };
        assert!(matches!(one(&input, &exact), Ok(Some(_))));
        let less = Limits {
            request_bytes_max: input.len() - 1,
            ..LIMITS
        };
        assert_eq!(one(&input, &less), Err(ProtocolError::RequestTooBig));
        let less = Limits {
            request_bytes_max: 200,
            ..LIMITS
        };
        assert_eq!(one(&line(200), &less), Err(ProtocolError::RequestTooBig));
    }

    #[test]
    fn a_browser_gets_no_answer() {
        let requests: &[&[u8]] = &[
            b"POST / HTTP/1.1\r\n",
            b"host: localhost\r\n",
            b"*1\r\n$4\r\npOsT\r\n",
            b"*2\r\n$5\r\nHost:\r\n$1\r\nx\r\n",
        ];
        for input in requests {
            assert_eq!(one(input, &LIMITS), Err(ProtocolError::CrossProtocol));
        }
        assert_eq!(ProtocolError::CrossProtocol.text(), None);
        let harmless = one(b"get post host:\r\n", &LIMITS);
        assert_eq!(harmless, Ok(Some(words(&[b"get", b"post", b"host:"]))));
    }

    #[test]
    fn a_declared_length_reserves_nothing() {
        let limits = Limits {
            args_max: 1 << 30,
            bulk_bytes_max: 1 << 30,
            ..LIMITS
        };
        let limits = Limits {
            request_bytes_max: usize::MAX,
            ..limits
        };
        let (mut parser, mut args) = (Parser::new(), Args::new());
        let parsed = parser.parse(b"*1073741824\r\n$1073741824\r\nabc", &limits, &mut args);
        assert_eq!(
            parsed,
            Parsed::Incomplete {
                needed: (1 << 30) + 2 - 3
            }
        );
        assert!(
            parser.understood.is_none(),
            "no memory for what has not come"
        );
        assert_eq!(args, Args::new());
        // The places of a request are 32 bits wide, whatever the limits say.
        let limits = Limits {
            bulk_bytes_max: usize::MAX,
            ..limits
        };
        let error = one(b"*1\r\n$4294967295\r\n", &limits);
        assert_eq!(error, Err(ProtocolError::RequestTooBig));
    }

    #[test]
    fn no_byte_is_looked_at_twice() {
        // Otherwise a large request in small pieces takes time in proportion to its square.
        let (many, large) = (vec![&b"an argument"[..]; 90], vec![b'x'; 990]);
        let long_line = [&[b'x'; 190][..], b"\n"].concat();
        for input in [frame(&many), frame(&[b"SET", b"k", &large]), long_line] {
            let (mut parser, mut args) = (Parser::new(), Args::new());
            for length in 0..input.len() {
                let parsed = parser.parse(&input[..length], &LIMITS, &mut args);
                assert!(matches!(parsed, Parsed::Incomplete { .. }));
                let looked_at = parser.at + parser.searched;
                assert!(
                    parser.bulk_bytes.is_some() || looked_at + 2 >= length,
                    "at {length}"
                );
            }
        }
    }

    #[test]
    fn one_args_serves_many_connections() {
        let input = frame(&[b"SET", b"key", b"value"]);
        let other = frame(&[b"DEL", b"a", b"b", b"c"]);
        for cut in 0..input.len() {
            let (mut args, mut parser) = (Args::new(), Parser::new());
            parser.parse(&input[..cut], &LIMITS, &mut args);
            assert!(matches!(
                Parser::new().parse(&other, &LIMITS, &mut args),
                Parsed::Request { .. }
            ));
            assert_eq!(args.get(&other, 3), b"c");
            let parsed = parser.parse(&input, &LIMITS, &mut args);
            assert_eq!(
                parsed,
                Parsed::Request {
                    consumed: input.len()
                }
            );
            let expected = words(&[b"SET", b"key", b"value"]);
            assert_eq!(
                OwnedArgs::from_args(&args, &input),
                expected,
                "cut at {cut}"
            );
        }
    }

    /// A few requests, most of them damaged somewhere.
    fn hostile_input(random: &mut fastrand::Rng) -> Vec<u8> {
        const LETTERS: &[u8] = b"*$-+019\r\n \"'\\x\0Az\xff";
        let mut input = Vec::new();
        for _ in 0..random.usize(1..4) {
            let mut word = || -> Vec<u8> {
                let length = random.usize(0..20);
                (0..length)
                    .map(|_| LETTERS[random.usize(0..LETTERS.len())])
                    .collect()
            };
            let request = [word(), word(), word()];
            input.extend(frame(&request.each_ref().map(|word| &word[..])));
            input.extend(
                (random.u8(0..3) == 0)
                    .then_some(&b"get \"a\\n\" 'b'\r\n"[..])
                    .into_iter()
                    .flatten(),
            );
        }
        for _ in 0..random.usize(0..5) {
            let at = random.usize(0..input.len());
            match random.u8(0..4) {
                0 => input[at] = LETTERS[random.usize(0..LETTERS.len())],
                1 => input.insert(at, LETTERS[random.usize(0..LETTERS.len())]),
                2 if input.len() > 1 => drop(input.remove(at)),
                _ => input[at] = random.u8(..),
            }
        }
        input
    }

    #[test]
    fn hostile_bytes_stay_within_the_limits_however_they_are_cut() {
        let limits = Limits {
            args_max: 4,
            bulk_bytes_max: 18,
            request_bytes_max: 60,
            inline_bytes_max: 30,
            authenticated: true,
        };
        let (mut requests, mut violations) = (0, 0);
        for seed in 0..20_000 {
            let mut random = fastrand::Rng::with_seed(seed);
            let input = match random.u8(0..8) {
                0 => (0..random.usize(0..40)).map(|_| random.u8(..)).collect(),
                _ => hostile_input(&mut random),
            };
            let whole = hear(&input, &limits, []);
            let mut cuts: Vec<usize> = (0..random.usize(0..6))
                .map(|_| random.usize(0..=input.len()))
                .collect();
            cuts.sort_unstable();
            let in_pieces = hear(&input, &limits, cuts);
            assert_eq!(in_pieces, whole, "seed {seed}: {}", input.escape_ascii());
            requests += whole.requests.len();
            violations += usize::from(whole.end.is_err());
        }
        assert!(
            requests > 5_000 && violations > 5_000,
            "{requests}, {violations}: too tame"
        );
    }
}
