//! Finds out that the other side of a silent connection is gone: the kernel asks it now and then.
//!
//! A machine that loses power sends no end, and neither does a router that forgets a connection:
//! whoever only waits for the other side to speak would wait for ever, and hold a place and a
//! descriptor. Redis asks as often (`tcp-keepalive 300`).
#![expect(
    unsafe_code,
    reason = "the runtime gives the descriptor of a stream as a number only, and safe calls take a borrowed one"
)]

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::sys::socket::{setsockopt, sockopt};

/// Seconds without a byte until the other side is asked.
const IDLE_S: u32 = 300;
/// Seconds between questions that are not answered, of which so many end the connection.
const AGAIN_S: u32 = 60;
const QUESTIONS: u32 = 3;

/// Has the kernel ask whoever is at the other end of `stream`, if nothing comes for long. Where the
/// kernel will not, nothing else is missing: then the connection is gone already.
pub fn keep_alive(stream: &impl AsRawFd) {
    // SAFETY: `stream` has the descriptor and is borrowed until this function is over, so that it
    // stays open, and its number is -1 of no stream.
    let socket = unsafe { BorrowedFd::borrow_raw(stream.as_raw_fd()) };
    let _ = setsockopt(&socket, sockopt::TcpKeepIdle, &IDLE_S);
    let _ = setsockopt(&socket, sockopt::TcpKeepInterval, &AGAIN_S);
    let _ = setsockopt(&socket, sockopt::TcpKeepCount, &QUESTIONS);
    let _ = setsockopt(&socket, sockopt::KeepAlive, &true);
}
