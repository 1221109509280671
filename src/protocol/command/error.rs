//! Why a request is no command, in Redis's words: clients match on them.

use super::{ArgView, Reply};

/// Bytes of a client's words that an error repeats, at most.
const QUOTE_BYTES_MAX: usize = 128;

/// Why a request is no command. Nothing was done.
#[derive(Clone, Copy)]
pub enum CommandError<'a> {
    /// There is no such command.
    UnknownCommand(ArgView<'a>),
    /// The container has no such subcommand.
    UnknownSubcommand {
        /// The container.
        container: &'static str,
        /// What it does not have.
        word: &'a [u8],
    },
    /// Too many or too few arguments for this command.
    Arity(&'static str),
    /// No time at which this command could let a key expire.
    ExpireTime(&'static str),
    /// A text without parts of the request.
    Text(&'static str),
    /// A text around one of the client's words.
    Quote(&'static str, &'a [u8], &'static str),
}

impl CommandError<'_> {
    /// Arguments that fit no form of the command.
    pub const SYNTAX: CommandError<'static> = CommandError::Text("ERR syntax error");
    /// A word that should be a 64-bit integer.
    pub const NOT_AN_INTEGER: CommandError<'static> =
        CommandError::Text("ERR value is not an integer or out of range");

    /// True if the command could not even be queued: MULTI's EXEC will fail for it. All other
    /// errors are answers of the command, within EXEC's.
    pub fn spoils_transaction(&self) -> bool {
        match self {
            CommandError::UnknownCommand(_)
            | CommandError::UnknownSubcommand { .. }
            | CommandError::Arity(_) => true,
            CommandError::ExpireTime(_) | CommandError::Text(_) | CommandError::Quote(..) => false,
        }
    }

    /// Writes it as an error reply.
    pub fn reply(&self, reply: &mut Reply<'_>) {
        if let CommandError::Text(text) = self {
            return reply.error(text);
        }
        // The client's words need not be text: they go back as they came, but on one line.
        let mut line = self.line();
        for byte in line.iter_mut().filter(|byte| matches!(byte, b'\r' | b'\n')) {
            *byte = b' ';
        }
        reply.raw(b"-");
        reply.raw(&line);
        reply.raw(b"\r\n");
    }

    fn line(&self) -> Vec<u8> {
        match *self {
            CommandError::UnknownCommand(args) => unknown_command(args),
            CommandError::UnknownSubcommand { container, word } => {
                let (word, container) = (quotable(word), container.to_ascii_uppercase());
                let end = format!("'. Try {container} HELP.");
                [b"ERR unknown subcommand '", word, end.as_bytes()].concat()
            }
            CommandError::Arity("exec") => b"EXECABORT Transaction discarded because of: \
                  wrong number of arguments for 'exec' command"
                .to_vec(),
            CommandError::Arity(name) => {
                format!("ERR wrong number of arguments for '{name}' command").into_bytes()
            }
            CommandError::ExpireTime(name) => {
                format!("ERR invalid expire time in '{name}' command").into_bytes()
            }
            CommandError::Text(text) => text.as_bytes().to_vec(),
            CommandError::Quote(before, word, after) => {
                [before.as_bytes(), quotable(word), after.as_bytes()].concat()
            }
        }
    }
}

fn unknown_command(args: ArgView<'_>) -> Vec<u8> {
    let mut line = b"ERR unknown command '".to_vec();
    line.extend_from_slice(quotable(args.get(0).unwrap_or_default()));
    line.extend_from_slice(b"', with args beginning with: ");
    let start = line.len();
    for word in args.from(1).iter() {
        let Some(left) = QUOTE_BYTES_MAX.checked_sub(line.len() - start).filter(|left| *left > 0)
        else {
            break;
        };
        let word = quotable(word);
        line.push(b'\'');
        line.extend_from_slice(&word[..word.len().min(left)]);
        line.extend_from_slice(b"' ");
    }
    line
}

impl std::fmt::Debug for CommandError<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.line()))
    }
}

/// What an error repeats of a client's word: no more than the bound and, as in Redis, nothing
/// from the first zero byte on.
fn quotable(word: &[u8]) -> &[u8] {
    let end = word.iter().position(|&byte| byte == 0).unwrap_or(word.len());
    &word[..end.min(QUOTE_BYTES_MAX)]
}
