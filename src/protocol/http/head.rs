//! The head of a request: its line and its fields, up to the empty line.
//!
//! Bytes are looked at once, as they come: what can already be said against them is said then. A
//! whole head is read by `httparse`; what it lets pass and we do not is judged here.

use super::Refusal;

/// Fields of a head.
pub(super) const FIELDS_MAX: usize = 64;
/// Tags of one condition.
const TAGS_MAX: usize = 64;

/// How much a head may take.
#[derive(Clone, Copy, Debug)]
pub struct HeadLimits {
    /// Bytes of the request's line.
    pub line_bytes_max: usize,
    /// Bytes of all fields.
    pub fields_bytes_max: usize,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// The resource.
    Get,
    /// What GET would answer, without the body.
    Head,
    /// Store the body.
    Put,
    /// Remove.
    Delete,
    /// One that HTTP knows, and no resource here has.
    Other,
}

/// Where the body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is none, and no word of its length.
    None,
    /// After so many bytes.
    Length(u64),
    /// In chunks.
    Chunked,
}

/// Entity tags of a condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tags {
    /// `*`.
    Any,
    /// These, without their quotes; true: a weak one.
    These(Vec<(bool, String)>),
}

/// May the client be asked to go on?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// It waits for nothing.
    Nothing,
    /// It sends the body when it is told to.
    Continue,
}

/// A request without its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// What is asked for.
    pub method: Method,
    /// Of what: the path, as it was sent.
    pub path: String,
    /// The query, as it was sent.
    pub query: Option<String>,
    /// False: HTTP/1.0.
    pub is_1_1: bool,
    /// Where the body ends.
    pub framing: Framing,
    /// The client means to send more requests.
    pub keep_alive: bool,
    /// What it waits for.
    pub expected: Expected,
    /// It would rather have JSON than the bytes.
    pub wants_json: bool,
    /// If-Match.
    pub if_match: Option<Tags>,
    /// If-None-Match.
    pub if_none_match: Option<Tags>,
    /// Authorization.
    pub authorization: Option<String>,
}

/// What is known of some input.
#[derive(Debug)]
pub enum Parsed {
    /// The head is not all there.
    Incomplete,
    /// A head, in so many bytes.
    Head(Box<Head>, usize),
    /// No head that is taken.
    Refused(Refusal),
}

/// Looks for the end of one head, and remembers how far it has looked.
#[derive(Debug, Default)]
pub struct HeadParser {
    scanned: usize,
    /// Where the line begins that is not ended yet.
    line: usize,
    /// Where the fields begin, once that is known.
    fields: Option<usize>,
}

impl HeadParser {
    /// Looks at `input`: all that has come since the last request.
    pub fn parse(&mut self, input: &[u8], limits: HeadLimits) -> Parsed {
        match self.find_end(input, limits) {
            Err(refusal) => Parsed::Refused(refusal),
            Ok(None) => Parsed::Incomplete,
            Ok(Some(end)) => {
                *self = HeadParser::default();
                match read(&input[..end]) {
                    Ok(head) => Parsed::Head(Box::new(head), end),
                    Err(refusal) => Parsed::Refused(refusal),
                }
            }
        }
    }

    fn find_end(&mut self, input: &[u8], limits: HeadLimits) -> Result<Option<usize>, Refusal> {
        const LINE_END: Refusal = Refusal::bad("A line of the head does not end with CR LF.");
        const FOLDED: Refusal = Refusal::bad("A field's value goes on in the next line.");
        const LONG_LINE: Refusal = Refusal::new(414, "The request's line is too long.");
        const LONG_HEAD: Refusal = Refusal::new(431, "The fields of the head are too long.");
        while self.scanned < input.len() {
            let at = self.scanned;
            let before = at.checked_sub(1).map_or(0, |before| input[before]);
            self.scanned += 1;
            match (before, input[at]) {
                (b'\r', b'\n') => {
                    let line = &input[self.line..at - 1];
                    match (self.fields, line.is_empty()) {
                        (Some(_), true) => return Ok(Some(at + 1)),
                        (Some(_), false) => {}
                        (None, true) if self.line == 0 => {} // one line end before a request is no harm
                        (None, true) => {
                            return Err(Refusal::bad("A request begins with its line."));
                        }
                        (None, false) => {
                            check_line(line)?;
                            self.fields = Some(at + 1);
                        }
                    }
                    self.line = at + 1;
                }
                (b'\r', _) | (_, b'\n') => return Err(LINE_END),
                (_, b' ' | b'\t') if at == self.line && self.fields.is_some() => {
                    return Err(FOLDED);
                }
                (_, byte) if at == self.line && self.fields.is_none() && !may_begin(byte) => {
                    return Err(Refusal::bad("This is no HTTP request."));
                }
                _ => {}
            }
            match self.fields {
                None if self.scanned - self.line > limits.line_bytes_max => return Err(LONG_LINE),
                Some(start) if self.scanned - start > limits.fields_bytes_max => {
                    return Err(LONG_HEAD);
                }
                _ => {}
            }
        }
        Ok(None)
    }
}

/// True if a line of a request, or an empty one, may begin so.
fn may_begin(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'\r'
}

/// Refuses what is no request's line, or one of another version, before the rest has come.
fn check_line(line: &[u8]) -> Result<(), Refusal> {
    const NO_LINE: Refusal = Refusal::bad("The request's line is not `METHOD TARGET HTTP/1.1`.");
    let mut words = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(NO_LINE);
    };
    if method.is_empty() || target.is_empty() {
        return Err(NO_LINE);
    }
    match version {
        b"HTTP/1.1" | b"HTTP/1.0" => Ok(()),
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
            if major.is_ascii_digit() && minor.is_ascii_digit() =>
        {
            Err(Refusal::new(505, "HTTP/1.1 and HTTP/1.0 are spoken here."))
        }
        _ => Err(NO_LINE),
    }
}

/// Reads a whole head.
fn read(bytes: &[u8]) -> Result<Head, Refusal> {
    let bytes = bytes.strip_prefix(b"\r\n").unwrap_or(bytes);
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(bytes) {
        Ok(httparse::Status::Complete(length)) if length == bytes.len() => {}
        Err(httparse::Error::TooManyHeaders) => {
            return Err(Refusal::new(431, "There are too many fields in the head."));
        }
        Err(httparse::Error::HeaderName) => {
            return Err(Refusal::bad("The name of a field is not well-formed."));
        }
        _ => return Err(Refusal::bad("The head is not well-formed.")),
    }
    let (Some(method), Some(target), Some(version)) =
        (request.method, request.path, request.version)
    else {
        return Err(Refusal::bad("The head is not well-formed."));
    };
    let method = read_method(method)?;
    let (path, query) = read_target(target)?;
    let is_1_1 = version == 1;
    let fields = Fields(request.headers);
    fields.check_host(is_1_1)?;
    if fields.all("content-range").next().is_some() {
        return Err(Refusal::bad(
            "Parts of a value cannot be written: Content-Range.",
        ));
    }
    if fields.all("if-unmodified-since").next().is_some() {
        return Err(Refusal::new(
            501,
            "Times are no conditions here: use If-Match.",
        ));
    }
    Ok(Head {
        method,
        path,
        query,
        is_1_1,
        framing: fields.framing(is_1_1)?,
        keep_alive: fields.keep_alive(is_1_1),
        expected: fields.expected(is_1_1)?,
        wants_json: fields.wants_json(),
        if_match: fields.tags("if-match")?,
        if_none_match: fields.tags("if-none-match")?,
        authorization: fields.authorization()?,
    })
}

fn read_method(word: &str) -> Result<Method, Refusal> {
    match word {
        "GET" => Ok(Method::Get),
        "HEAD" => Ok(Method::Head),
        "PUT" => Ok(Method::Put),
        "DELETE" => Ok(Method::Delete),
        "POST" | "PATCH" | "OPTIONS" | "TRACE" | "CONNECT" => Ok(Method::Other),
        _ => Err(Refusal::new(501, "This method is not known.")),
    }
}

/// The path and the query of a target, which may be a whole `http://` address.
fn read_target(target: &str) -> Result<(String, Option<String>), Refusal> {
    const BAD: Refusal = Refusal::bad("The target is not well-formed.");
    if !target
        .bytes()
        .all(|byte| byte.is_ascii_graphic() && byte != b'#')
    {
        return Err(BAD);
    }
    let scheme = target
        .get(..7)
        .filter(|start| start.eq_ignore_ascii_case("http://"));
    let path = match scheme {
        None => target,
        Some(scheme) => {
            let rest = &target[scheme.len()..];
            let end = rest.find(['/', '?']).unwrap_or(rest.len());
            match rest[..end].is_empty() {
                true => return Err(BAD),
                false => &rest[end..],
            }
        }
    };
    let (path, query) = match path.split_once('?') {
        None => (path, None),
        Some((path, query)) => (path, Some(query.to_owned())),
    };
    let path = if path.is_empty() { "/" } else { path };
    Ok((path.to_owned(), query))
}

/// The fields of a head.
pub(super) struct Fields<'a>(pub(super) &'a [httparse::Header<'a>]);

impl<'a> Fields<'a> {
    fn all(&self, name: &'static str) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let named = move |field: &&httparse::Header<'_>| field.name.eq_ignore_ascii_case(name);
        let trimmed = |field: &httparse::Header<'a>| field.value.trim_ascii();
        self.0.iter().filter(named).map(trimmed)
    }

    /// The elements of the lists in all fields of this name.
    fn list(&self, name: &'static str) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let elements = |value: &'a [u8]| value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
        self.all(name)
            .flat_map(elements)
            .filter(|word| !word.is_empty())
    }

    fn has(&self, name: &'static str, word: &str) -> bool {
        self.list(name)
            .any(|one| one.eq_ignore_ascii_case(word.as_bytes()))
    }

    /// The value of a field that may be there once.
    fn one(&self, name: &'static str, twice: &'static str) -> Result<Option<&'a [u8]>, Refusal> {
        let mut values = self.all(name);
        let first = values.next();
        match values.next() {
            Some(_) => Err(Refusal::bad(twice)),
            None => Ok(first),
        }
    }

    fn check_host(&self, is_1_1: bool) -> Result<(), Refusal> {
        let host = self.one("host", "There is more than one Host.")?;
        let fits = |byte: &u8| byte.is_ascii_graphic() && !b"/?#@,\\\"<>".contains(byte);
        match host {
            None if is_1_1 => Err(Refusal::bad("There is no Host.")),
            Some(host) if !host.iter().all(fits) => {
                Err(Refusal::bad("The Host is not well-formed."))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn framing(&self, is_1_1: bool) -> Result<Framing, Refusal> {
        let length = self.one("content-length", "There is more than one Content-Length.")?;
        let coding = self.one(
            "transfer-encoding",
            "There is more than one Transfer-Encoding.",
        )?;
        match (length, coding) {
            (None, None) => Ok(Framing::None),
            (Some(_), Some(_)) => Err(Refusal::bad(
                "There are both a Content-Length and a Transfer-Encoding.",
            )),
            (Some(length), None) => read_length(length).map(Framing::Length),
            (None, Some(_)) if !is_1_1 => Err(Refusal::bad("HTTP/1.0 has no Transfer-Encoding.")),
            (None, Some(coding)) => read_coding(coding),
        }
    }

    fn keep_alive(&self, is_1_1: bool) -> bool {
        match is_1_1 {
            true => !self.has("connection", "close"),
            false => self.has("connection", "keep-alive") && !self.has("connection", "close"),
        }
    }

    fn expected(&self, is_1_1: bool) -> Result<Expected, Refusal> {
        match (self.all("expect").next(), is_1_1) {
            (None, _) | (_, false) => Ok(Expected::Nothing),
            _ if self
                .list("expect")
                .all(|word| word.eq_ignore_ascii_case(b"100-continue")) =>
            {
                Ok(Expected::Continue)
            }
            _ => Err(Refusal::new(
                417,
                "Nothing but 100-continue can be expected.",
            )),
        }
    }

    /// True if `application/json` is named, and not as what is not acceptable.
    fn wants_json(&self) -> bool {
        self.list("accept").any(|range| {
            let mut parts = range.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
            let is_json = parts
                .next()
                .is_some_and(|kind| kind.eq_ignore_ascii_case(b"application/json"));
            let is_refused = |part: &[u8]| {
                let weight = part.strip_prefix(b"q=").or(part.strip_prefix(b"Q="));
                weight.is_some_and(|weight| weight.iter().all(|byte| b"0.".contains(byte)))
            };
            is_json && !parts.any(is_refused)
        })
    }

    fn tags(&self, name: &'static str) -> Result<Option<Tags>, Refusal> {
        let mut values = self.all(name).peekable();
        if values.peek().is_none() {
            return Ok(None);
        }
        let mut tags = Vec::new();
        let mut is_any = false;
        for value in values {
            match value {
                b"*" => is_any = true,
                value => read_tags(value, &mut tags)?,
            }
        }
        match (is_any, tags.is_empty()) {
            (true, true) => Ok(Some(Tags::Any)),
            (false, false) => Ok(Some(Tags::These(tags))),
            _ => Err(BAD_TAGS),
        }
    }

    fn authorization(&self) -> Result<Option<String>, Refusal> {
        let value = self.one("authorization", "There is more than one Authorization.")?;
        match value.map(std::str::from_utf8).transpose() {
            Ok(text) => Ok(text.map(str::to_owned)),
            Err(_) => Err(Refusal::bad("The Authorization is not well-formed.")),
        }
    }
}

fn read_length(word: &[u8]) -> Result<u64, Refusal> {
    let is_number = !word.is_empty() && word.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(word).ok().filter(|_| is_number);
    text.and_then(|text| text.parse().ok())
        .ok_or(Refusal::bad("The Content-Length is no plain number."))
}

fn read_coding(value: &[u8]) -> Result<Framing, Refusal> {
    if value.eq_ignore_ascii_case(b"chunked") {
        return Ok(Framing::Chunked);
    }
    let words: Vec<&[u8]> = value
        .split(|byte| *byte == b',')
        .map(<[u8]>::trim_ascii)
        .collect();
    let is_chunked = |word: &&[u8]| word.eq_ignore_ascii_case(b"chunked");
    let chunked = words
        .iter()
        .copied()
        .filter(|word| is_chunked(word))
        .count();
    match words.last().is_some_and(is_chunked) && chunked == 1 {
        true => Err(Refusal::new(
            501,
            "No other encoding than chunked is known.",
        )),
        false => Err(Refusal::bad(
            "The last Transfer-Encoding, and no other, is chunked.",
        )),
    }
}

const BAD_TAGS: Refusal = Refusal::bad("A condition is `*`, or tags in double quotes.");

/// Reads `"tag", W/"tag"`.
fn read_tags(value: &[u8], tags: &mut Vec<(bool, String)>) -> Result<(), Refusal> {
    let mut rest = value;
    loop {
        let (is_weak, quoted) = match rest.strip_prefix(b"W/") {
            Some(quoted) => (true, quoted),
            None => (false, rest),
        };
        let inner = quoted.strip_prefix(b"\"").ok_or(BAD_TAGS)?;
        let end = inner
            .iter()
            .position(|byte| *byte == b'"')
            .ok_or(BAD_TAGS)?;
        let tag = std::str::from_utf8(&inner[..end]).map_err(|_| BAD_TAGS)?;
        if tags.len() == TAGS_MAX {
            return Err(Refusal::new(431, "There are too many tags in a condition."));
        }
        tags.push((is_weak, tag.to_owned()));
        rest = inner[end + 1..].trim_ascii();
        match rest.split_first() {
            None => return Ok(()),
            Some((b',', more)) => rest = more.trim_ascii(),
            Some(_) => return Err(BAD_TAGS),
        }
    }
}
